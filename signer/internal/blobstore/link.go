package blobstore

import (
	"errors"
	"fmt"
	"mime"
	"net/url"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"cats.example/shared/picture"
	"cats.example/shared/signerapi"
)

const (
	// MinLinkTTL is the shortest life a link can be given.
	MinLinkTTL = 5 * time.Second
	// MaxLinkTTL is the longest that LINK_MAX_TTL can be: less than half of the
	// 7 days that a user delegation key can live.
	MaxLinkTTL = 72 * time.Hour
	// LinkSkew is how far our clock may be ahead of storage's: links start so much
	// in the past, as keys do.
	LinkSkew = keySkew
)

// window returns when the window began that now is in, and the times of a link
// with lifetime ttl that is signed in it. They stand still for a twelfth of ttl, so
// that the same picture has the same URL and caches can do their work; what is left
// of the link is then between eleven twelfths of ttl, or a second less, and all of it.
func window(now time.Time, ttl time.Duration) (began, start, end time.Time) {
	step := max((ttl / 12).Truncate(time.Second), time.Second)
	began = now.UTC().Truncate(step)
	return began, began.Add(-LinkSkew), began.Add(ttl).Truncate(time.Second)
}

// signedLink is the link of a picture to look at, as it was signed last.
type signedLink struct {
	url         signerapi.SignedURL
	end         time.Time
	ttl         time.Duration
	contentType string    // that the picture had
	began       time.Time // of its window
	key         *delegationKey
}

// link makes the link: read only, one blob, HTTPS only, never beyond the key, and
// served as what it is and nothing else. The same link is signed once in a window.
func (s *Store) link(user signerapi.User, there *existing, ttl time.Duration, download string) (signerapi.Link, error) {
	began, _, end := window(s.now(), ttl)
	key, err := s.key.covering(end)
	if err != nil {
		return signerapi.Link{}, err
	}
	if download != "" {
		s.metrics.downloads.Inc()
		signed, end, err := s.sign(user, ttl, there.info.ContentType, download)
		if err == nil {
			s.key.gave(user)
		}
		return signerapi.Link{Info: there.info, URL: signed, ExpiresAt: end}, err
	}
	s.metrics.views.Inc()
	last := there.link.Load()
	contentType := there.info.ContentType
	if last == nil || last.ttl != ttl || last.contentType != contentType || last.key != key || !last.began.Equal(began) {
		signed, end, err := s.sign(user, ttl, contentType, "")
		if err != nil {
			return signerapi.Link{}, err
		}
		last = &signedLink{signed, end, ttl, contentType, began, key}
		there.link.Store(last)
	}
	s.key.gave(user)
	return signerapi.Link{Info: there.info, URL: last.url, ExpiresAt: last.end}, nil
}

func (s *Store) sign(user signerapi.User, ttl time.Duration, contentType, download string) (signed signerapi.SignedURL, end time.Time, err error) {
	query, end, err := s.signature(s.blobName(user), ttl, contentType, download)
	if err != nil {
		return "", time.Time{}, err
	}
	return signerapi.SignedURL(s.opts.LinkBase + s.path(user) + "?" + query), end, nil
}

// path is that of the picture of user, escaped.
func (s *Store) path(user signerapi.User) string {
	return "/" + s.opts.Container + "/" + url.PathEscape(user.String()) + "/" + url.PathEscape(s.opts.BlobName)
}

// signature returns the query that makes a link of the URL of the blob name, which
// has that content type, and when it ends.
func (s *Store) signature(name string, ttl time.Duration, contentType, download string) (query string, end time.Time, err error) {
	_, start, end := window(s.now(), ttl)
	key, err := s.key.covering(end)
	if err != nil {
		return "", time.Time{}, err
	}
	query, err = s.signWith(key, name, later(start, key.start), end, contentType, download)
	return query, end, err
}

// signWith is signature with that key and from start to end.
func (s *Store) signWith(key *delegationKey, name string, start, end time.Time, contentType, download string) (query string, err error) {
	values := sas.BlobSignatureValues{
		Protocol:      sas.ProtocolHTTPS,
		StartTime:     start,
		ExpiryTime:    end,
		Permissions:   (&sas.BlobPermissions{Read: true}).String(),
		ContainerName: s.opts.Container,
		BlobName:      name,
	}
	values.ContentType, values.ContentDisposition = s.servedAs(contentType, download)
	return signQuery(key, values)
}

func signQuery(key *delegationKey, values sas.BlobSignatureValues) (string, error) {
	if err := checkSigned(values); err != nil {
		return "", err
	}
	signed, err := values.SignWithUserDelegation(key.credential)
	if err != nil {
		return "", fmt.Errorf("signing: %w", err)
	}
	return signed.Encode(), nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// opaque is what a browser only ever saves.
const opaque = "application/octet-stream"

// servedAs is how storage has to serve a blob of contentType through a link,
// whatever becomes of the blob: a picture to look at, or to save when there is a
// name to save it under, and to save only what is no picture, which was not stored
// here. The file name, RFC 6266, ends as those of the type do, so that no picture
// is saved as a program or a page, however it is made and whoever asks for the link.
func (s *Store) servedAs(contentType, download string) (servedType, disposition string) {
	kind, name := "inline", s.opts.BlobName
	if download != "" {
		kind, name = "attachment", download
	}
	name, ok := picture.FileName(name, contentType)
	if !ok {
		contentType, kind, name = opaque, "attachment", name+".bin"
	}
	return contentType, contentDisposition(kind, name)
}

// contentDisposition returns the field of RFC 6266 for a file name. Browsers decode a "%" in filename, and clients disagree
// about quotes, backslashes and characters outside ASCII there. A name with one of them is therefore in filename*
// (RFC 8187). The filename before it has "_" in their place. It is for clients that do not know filename*, such as curl.
func contentDisposition(kind, name string) string {
	plain := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || strings.ContainsRune(`"%\`, r) {
			return '_'
		}
		return r
	}, name)
	field := mime.FormatMediaType(kind, map[string]string{"filename": plain})
	if plain != name {
		field += "; filename*=UTF-8''" + strings.ReplaceAll(url.QueryEscape(name), "+", "%20")
	}
	return field
}

// errUnsignable means that a signature would not say what it seems to.
var errUnsignable = errors.New("not signing a link")

// checkSigned returns errUnsignable for what could be read as other values than it
// holds: what is signed are lines, in which the SDK makes a slash of a backslash
// in the name, and servers take the segments . and .. out of it.
func checkSigned(v sas.BlobSignatureValues) error {
	reads := strings.Contains(v.Permissions, "r") // and then says how it is served
	for _, field := range []struct {
		name, value string
		needed      bool
	}{
		{"container", v.ContainerName, true},
		{"blob", v.BlobName, true},
		{"content type", v.ContentType, reads},
		{"content disposition", v.ContentDisposition, reads},
	} {
		if field.value == "" && field.needed || !utf8.ValidString(field.value) || strings.Contains(field.value, `\`) || strings.ContainsFunc(field.value, unicode.IsControl) {
			return fmt.Errorf("%w: the %s is %q", errUnsignable, field.name, field.value)
		}
	}
	for segment := range strings.SplitSeq(v.BlobName, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return fmt.Errorf("%w: the blob is %q", errUnsignable, v.BlobName)
		}
	}
	return nil
}
