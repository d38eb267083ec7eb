package web

import (
	"encoding/base64"
	"net/http"
	"strings"

	"github.com/dunglas/httpsfv"

	"cats.example/shared/signerapi"
)

// conditionsOf returns the conditions in a request's header.
func conditionsOf(h http.Header) (signerapi.Conditions, error) {
	for _, name := range []string{"If-Match", "If-None-Match"} {
		if len(h.Values(name)) > 1 {
			return signerapi.Conditions{}, signerapi.ErrInvalidArgument.With(name + ": given more than once")
		}
	}
	c := signerapi.Conditions{IfMatch: h.Get("If-Match"), IfNoneMatch: h.Get("If-None-Match")}
	return c, c.Check()
}

// matches reports whether one of the entity tags in an If-None-Match field is etag,
// or is *. The comparison is weak, RFC 9110 section 13.1.2.
func matches(field []string, etag string) bool {
	for _, value := range field {
		for tag := range strings.SplitSeq(value, ",") { // storage's tags hold no comma
			tag = strings.TrimPrefix(strings.TrimSpace(tag), "W/")
			if tag != "" && (tag == "*" || tag == etag) {
				return true
			}
		}
	}
	return false
}

// digestsOf returns the digests in a header: Content-MD5, and of Content-Digest
// (RFC 9530) md5, sha-256 and sha-512. Others are passed over, as the RFC has it.
func digestsOf(h http.Header) (d signerapi.Digests, err error) {
	if v := h.Get("Content-MD5"); v != "" {
		if d.MD5, err = base64.StdEncoding.DecodeString(v); err != nil || len(h.Values("Content-MD5")) > 1 {
			return d, signerapi.ErrInvalidArgument.With("Content-MD5: want one MD5 in base64")
		}
	}
	field := h.Values("Content-Digest")
	if len(field) == 0 {
		return d, d.Check()
	}
	list, err := httpsfv.UnmarshalDictionary(field)
	if err != nil {
		return d, signerapi.ErrInvalidArgument.With("Content-Digest: want such as sha-256=:BASE64:")
	}
	for name, to := range map[string]*[]byte{"md5": &d.MD5, "sha-256": &d.SHA256, "sha-512": &d.SHA512} {
		member, ok := list.Get(name)
		if !ok {
			continue
		}
		item, _ := member.(httpsfv.Item)
		sum, ok := item.Value.([]byte)
		if !ok || *to != nil && string(*to) != string(sum) {
			return d, signerapi.ErrInvalidArgument.With("Content-Digest: want such as sha-256=:BASE64:, and no two that differ")
		}
		*to = sum
	}
	return d, d.Check()
}
