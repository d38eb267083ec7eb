package web

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/dunglas/httpsfv"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

// conditionsOf returns the conditions in a request's header. A list of entity tags is not one.
func conditionsOf(h http.Header) (signerapi.Preconditions, error) {
	c := signerapi.Preconditions{IfMatch: list(h, "If-Match"), IfNoneMatch: list(h, "If-None-Match")}
	return c, c.Validate()
}

// list returns the fields called name as one (RFC 9110 section 5.3).
func list(h http.Header, name string) string { return strings.Join(h.Values(name), ", ") }

// matches reports whether one of the entity tags in an If-None-Match field is etag,
// or is *. The comparison is weak, RFC 9110 section 13.1.2.
func matches(field, etag string) bool {
	for tag := range strings.SplitSeq(field, ",") { // storage's tags hold no comma
		tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
		if tag != "" && (tag == "*" || tag == etag) {
			return true
		}
	}
	return false
}

// checkWhole returns errPartialUpload if h, the header of a request or of the file in a form, says that its content is a part
// of a picture: by Content-Range or, as some uploaders call it, X-Content-Range, by Upload-Complete or, as it was called before, Upload-Incomplete of
// draft-ietf-httpbis-resumable-upload, or by Upload-Offset of that draft and of tus.
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

// chunkTotals are the fields, in lower case, in which Dropzone, Plupload, Resumable.js, Flow.js and Fine Uploader send the
// number of requests that a file is cut into.
var chunkTotals = []string{"dztotalchunkcount", "chunks", "resumabletotalchunks", "flowtotalchunks", "qqtotalparts"}

// checkChunks returns errPartialUpload if a field of a form or of the query says that a file comes in several requests.
func checkChunks(name, value string) error {
	if n, err := strconv.Atoi(strings.TrimSpace(value)); err == nil && n > 1 && slices.Contains(chunkTotals, strings.ToLower(name)) {
		return errPartialUpload.WithDetail(fmt.Sprintf("the field %q says that the picture comes in several requests: %s", name, errPartialUpload.Detail))
	}
	return nil
}

// checkCoding returns ErrUnsupportedMediaType if h, the header of a request or of the file in a form, says that its content
// is encoded. RFC 7578 section 4.7 deprecates Content-Transfer-Encoding in forms; HTTP does not have it.
func checkCoding(h http.Header) error {
	for name, plain := range map[string][]string{"Content-Encoding": {"", "identity"}, "Content-Transfer-Encoding": {"", "7bit", "8bit", "binary"}} {
		field := list(h, name)
		for coding := range strings.SplitSeq(field, ",") {
			if !slices.Contains(plain, strings.ToLower(strings.TrimSpace(coding))) {
				return apierror.ErrUnsupportedMediaType.WithDetail(fmt.Sprintf("the %s %.80q is not supported: send the picture without it", name, field))
			}
		}
	}
	return nil
}

// digestsOf returns the digests in a header: Content-MD5, and of Content-Digest
// (RFC 9530) md5, sha-256 and sha-512. Others are passed over, as the RFC has it.
func digestsOf(h http.Header) (d signerapi.Digests, err error) {
	if v := list(h, "Content-MD5"); v != "" {
		if d.MD5, err = base64.StdEncoding.DecodeString(v); err != nil {
			return d, apierror.ErrInvalidArgument.WithDetail("Content-MD5: want one MD5 in base64")
		}
	}
	digests, err := httpsfv.UnmarshalDictionary(h.Values("Content-Digest"))
	if err != nil {
		return d, apierror.ErrInvalidArgument.WithDetail("Content-Digest: want such as sha-256=:BASE64:")
	}
	for name, to := range map[string]*[]byte{"md5": &d.MD5, "sha-256": &d.SHA256, "sha-512": &d.SHA512} {
		member, ok := digests.Get(name)
		if !ok {
			continue
		}
		item, _ := member.(httpsfv.Item)
		sum, ok := item.Value.([]byte)
		if !ok || *to != nil && string(*to) != string(sum) {
			return d, apierror.ErrInvalidArgument.WithDetail("Content-Digest: want such as sha-256=:BASE64:, and no two that differ")
		}
		*to = sum
	}
	return d, d.Validate()
}
