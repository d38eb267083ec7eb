package web

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/dunglas/httpsfv"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

// headerList returns the values of the header field name as one list (RFC 9110 section 5.3).
func headerList(h http.Header, name string) string { return strings.Join(h.Values(name), ", ") }

// parseQuery returns the query of r. It returns ErrInvalidArgument if the query cannot be parsed, which [url.URL.Query] ignores,
// or contains one of names more than once.
func parseQuery(r *http.Request, names ...string) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, apierror.ErrInvalidArgument.WithDetail("the query cannot be parsed: write % as %25, ; as %3B and & in a value as %26")
	}
	for _, name := range names {
		if len(query[name]) > 1 {
			return nil, apierror.ErrInvalidArgument.WithDetail(name + ": given more than once")
		}
	}
	return query, nil
}

// parsePreconditions returns the preconditions in a request header. It rejects lists of entity tags.
func parsePreconditions(h http.Header) (signerapi.Preconditions, error) {
	c := signerapi.Preconditions{IfMatch: headerList(h, "If-Match"), IfNoneMatch: headerList(h, "If-None-Match")}
	return c, c.Validate()
}

// matchesETag reports whether an If-None-Match field is * or contains etag. The comparison is weak (RFC 9110 section 13.1.2).
func matchesETag(field, etag string) bool {
	for tag := range strings.SplitSeq(field, ",") { // entity tags of storage contain no comma
		tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
		if tag != "" && (tag == "*" || tag == etag) {
			return true
		}
	}
	return false
}

// parseDigests returns the digests in a header: Content-MD5, and md5, sha-256 and sha-512 of Content-Digest (RFC 9530). It
// ignores other algorithms, as the RFC requires.
func parseDigests(h http.Header) (d signerapi.Digests, err error) {
	if v := headerList(h, "Content-MD5"); v != "" {
		if d.MD5, err = base64.StdEncoding.DecodeString(v); err != nil {
			return d, apierror.ErrInvalidArgument.WithDetail("Content-MD5: want one MD5 in base64")
		}
	}
	digests, err := httpsfv.UnmarshalDictionary(h.Values("Content-Digest"))
	if err != nil {
		return d, apierror.ErrInvalidArgument.WithDetail("Content-Digest: want a value such as sha-256=:BASE64:")
	}
	for name, to := range map[string]*[]byte{"md5": &d.MD5, "sha-256": &d.SHA256, "sha-512": &d.SHA512} {
		member, ok := digests.Get(name)
		if !ok {
			continue
		}
		item, _ := member.(httpsfv.Item)
		sum, ok := item.Value.([]byte)
		if !ok || *to != nil && string(*to) != string(sum) {
			return d, apierror.ErrInvalidArgument.WithDetail("Content-Digest: want a value such as sha-256=:BASE64:, and no two different digests of one kind")
		}
		*to = sum
	}
	return d, d.Validate()
}

// checkWhole returns errPartialUpload if a header, of a request or of the file in a form, announces a part of a picture:
//
//   - Content-Range, or X-Content-Range of some upload libraries
//   - Upload-Complete, formerly Upload-Incomplete, of draft-ietf-httpbis-resumable-upload
//   - Upload-Offset of that draft and of tus
func checkWhole(h http.Header) error {
	for name, whole := range map[string]string{"Content-Range": "", "X-Content-Range": "", "Upload-Complete": "?1", "Upload-Incomplete": "?0", "Upload-Offset": ""} {
		for _, value := range h.Values(name) {
			if whole == "" || value != whole {
				return errPartialUpload.WithDetail(fmt.Sprintf("%s is set: %s", name, errPartialUpload.Detail))
			}
		}
	}
	return nil
}

// chunkCounts are the fields, in lower case, in which Dropzone, Plupload, Resumable.js, Flow.js and Fine Uploader send the number
// of chunks of a file.
var chunkCounts = []string{"dztotalchunkcount", "chunks", "resumabletotalchunks", "flowtotalchunks", "qqtotalparts"}

// checkChunkCount returns errPartialUpload if a field of a form or of the query announces a file in several requests.
func checkChunkCount(name, value string) error {
	if n, err := strconv.Atoi(strings.TrimSpace(value)); err == nil && n > 1 && slices.Contains(chunkCounts, strings.ToLower(name)) {
		return errPartialUpload.WithDetail(fmt.Sprintf("the field %q announces a picture in several requests: %s", name, errPartialUpload.Detail))
	}
	return nil
}

// checkEncoding returns ErrUnsupportedMediaType if a header, of a request or of the file in a form, has a content coding.
// RFC 7578 section 4.7 deprecates Content-Transfer-Encoding in forms; HTTP does not have it.
func checkEncoding(h http.Header) error {
	for name, plain := range map[string][]string{"Content-Encoding": {"", "identity"}, "Content-Transfer-Encoding": {"", "7bit", "8bit", "binary"}} {
		value := headerList(h, name)
		for coding := range strings.SplitSeq(value, ",") {
			if !slices.Contains(plain, strings.ToLower(strings.TrimSpace(coding))) {
				return apierror.ErrUnsupportedMediaType.WithDetail(fmt.Sprintf("the %s %.80q is not supported: send the picture without it", name, value))
			}
		}
	}
	return nil
}
