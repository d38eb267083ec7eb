package blobstore

import (
	"errors"
	"fmt"
	"io/fs"
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

// window returns the start and the end of a link with lifetime ttl that is signed at now. They change once in a twelfth of ttl.
// Within that time, the same picture has the same URL, which caches need. The link expires after at least 11/12 of ttl less a
// second, and after at most ttl.
func window(now time.Time, ttl time.Duration) (start, end time.Time) {
	step := max((ttl / 12).Truncate(time.Second), time.Second)
	began := now.UTC().Truncate(step)
	return began.Add(-LinkSkew), began.Add(ttl).Truncate(time.Second)
}

// signedLink is a link to view a picture, and what it was signed with.
type signedLink struct {
	url    signerapi.SignedURL
	inputs linkInputs
}

// linkInputs determine the signed URL of a picture.
type linkInputs struct {
	key         *delegationKey
	start, end  time.Time
	contentType string // of the stored picture
}

// link returns a link to the picture of user. It caches the last link that views the picture.
func (s *Store) link(user signerapi.User, there *existing, ttl time.Duration, download string) (signerapi.Link, error) {
	start, end := window(s.now(), ttl)
	key, err := s.keyCovering(end)
	if err != nil {
		return signerapi.Link{}, err
	}
	inputs := linkInputs{key, start, end, there.info.ContentType}
	signed := there.link.Load()
	if download != "" || signed == nil || signed.inputs != inputs {
		url, err := s.signed(key, s.opts.LinkBaseURL, s.blobName(user), s.readOnly(start, end, there.info.ContentType, download))
		if err != nil {
			return signerapi.Link{}, err
		}
		signed = &signedLink{url, inputs}
	}
	if download != "" {
		s.metrics.signed.WithLabelValues("download").Inc()
	} else {
		there.link.Store(signed)
		s.metrics.views.Inc()
	}
	s.gave(user)
	return signerapi.Link{Info: there.info, URL: signed.url, ExpiresAt: end}, nil
}

// readURL returns a signed URL that reads the blob name for ttl. base is that of [Store.signed].
func (s *Store) readURL(base, name string, ttl time.Duration, contentType string) (signerapi.SignedURL, error) {
	start, end := window(s.now(), ttl)
	key, err := s.keyCovering(end)
	if err != nil {
		return "", err
	}
	return s.signed(key, base, name, s.readOnly(start, end, contentType, ""))
}

// readOnly returns the values of a SAS that permits to read a blob of contentType. [Store.servedAs] describes how storage serves it.
func (s *Store) readOnly(start, end time.Time, contentType, download string) sas.BlobSignatureValues {
	servedType, disposition := s.servedAs(contentType, download)
	return sas.BlobSignatureValues{
		StartTime: start, ExpiryTime: end, Permissions: (&sas.BlobPermissions{Read: true}).String(),
		ContentType: servedType, ContentDisposition: disposition,
	}
}

// signed returns the URL of the blob name at base with a user delegation SAS for HTTPS, which begins with key at the earliest.
// base is the account's URL or LinkBaseURL. The key must not expire before the SAS.
func (s *Store) signed(key *delegationKey, base, name string, values sas.BlobSignatureValues) (signerapi.SignedURL, error) {
	values.Protocol, values.ContainerName, values.BlobName = sas.ProtocolHTTPS, s.opts.Container, name
	if values.StartTime.Before(key.start) {
		values.StartTime = key.start
	}
	if err := checkSigned(values); err != nil {
		return "", err
	}
	query, err := values.SignWithUserDelegation(key.credential)
	if err != nil {
		return "", fmt.Errorf("signing: %w", err)
	}
	path := strings.ReplaceAll(url.PathEscape(name), "%2F", "/")
	return signerapi.SignedURL(base + "/" + s.opts.Container + "/" + path + "?" + query.Encode()), nil
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
	name, ok := picture.WithExtension(name, contentType)
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

// errUnsignable is returned for a SAS that a server could read differently.
var errUnsignable = errors.New("not signing a link")

// checkSigned returns errUnsignable for values that storage or a proxy could read as others. The SDK signs them as lines, and
// turns a backslash of the blob's name into a slash. Servers remove the path segments . and .. from a URL.
func checkSigned(v sas.BlobSignatureValues) error {
	for _, value := range []string{v.ContainerName, v.BlobName, v.ContentType, v.ContentDisposition} {
		if !utf8.ValidString(value) || strings.Contains(value, `\`) || strings.ContainsFunc(value, unicode.IsControl) {
			return fmt.Errorf("%w: a value is %q", errUnsignable, value)
		}
	}
	reads := strings.Contains(v.Permissions, "r") // then the SAS says how storage serves the blob
	switch {
	case v.ContainerName == "", !fs.ValidPath(v.BlobName), v.BlobName == ".":
		return fmt.Errorf("%w: the container is %q and the blob %q", errUnsignable, v.ContainerName, v.BlobName)
	case reads && (v.ContentType == "" || v.ContentDisposition == ""):
		return fmt.Errorf("%w: the content type is %q and the content disposition %q", errUnsignable, v.ContentType, v.ContentDisposition)
	}
	return nil
}
