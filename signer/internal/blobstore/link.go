package blobstore

import (
	"fmt"
	"mime"
	"net/url"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

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
	url   signerapi.SignedURL
	end   time.Time
	ttl   time.Duration
	began time.Time // of its window
	key   *delegationKey
}

// link makes the link: read only, one blob, HTTPS only, never beyond the key. The
// same link is signed once in a window.
func (s *Store) link(user signerapi.User, there *existing, ttl time.Duration, download string) (signerapi.Link, error) {
	began, _, end := window(s.now(), ttl)
	key, err := s.key.covering(began, end)
	if err != nil {
		return signerapi.Link{}, err
	}
	if download != "" {
		s.metrics.downloads.Inc()
		signed, end, err := s.sign(user, ttl, download)
		if err == nil {
			s.key.gave(user)
		}
		return signerapi.Link{Info: there.info, URL: signed, ExpiresAt: end}, err
	}
	s.metrics.views.Inc()
	last := there.link.Load()
	if last == nil || last.ttl != ttl || last.key != key || !last.began.Equal(began) {
		signed, end, err := s.sign(user, ttl, "")
		if err != nil {
			return signerapi.Link{}, err
		}
		last = &signedLink{signed, end, ttl, began, key}
		there.link.Store(last)
	}
	s.key.gave(user)
	return signerapi.Link{Info: there.info, URL: last.url, ExpiresAt: last.end}, nil
}

func (s *Store) sign(user signerapi.User, ttl time.Duration, download string) (signed signerapi.SignedURL, end time.Time, err error) {
	query, end, err := s.signature(s.blobName(user), ttl, download)
	if err != nil {
		return "", time.Time{}, err
	}
	return signerapi.SignedURL(s.opts.LinkBase + s.path(user) + "?" + query), end, nil
}

// path is that of the picture of user, escaped.
func (s *Store) path(user signerapi.User) string {
	return "/" + s.opts.Container + "/" + url.PathEscape(user.String()) + "/" + url.PathEscape(s.opts.BlobName)
}

// signature returns the query that makes a link of the URL of the blob name, and
// when it ends.
func (s *Store) signature(name string, ttl time.Duration, download string) (query string, end time.Time, err error) {
	began, start, end := window(s.now(), ttl)
	key, err := s.key.covering(began, end)
	if err != nil {
		return "", time.Time{}, err
	}
	if start.Before(key.start) {
		start = key.start
	}
	query, err = s.signWith(key, name, start, end, download)
	return query, end, err
}

// signWith returns the query that makes a link from start to end.
func (s *Store) signWith(key *delegationKey, name string, start, end time.Time, download string) (query string, err error) {
	values := sas.BlobSignatureValues{
		Protocol:      sas.ProtocolHTTPS,
		StartTime:     start,
		ExpiryTime:    end,
		Permissions:   (&sas.BlobPermissions{Read: true}).String(),
		ContainerName: s.opts.Container,
		BlobName:      name,
	}
	if download != "" {
		values.ContentDisposition = attachment(download)
	}
	signed, err := values.SignWithUserDelegation(key.credential)
	if err != nil {
		return "", fmt.Errorf("signing: %w", err)
	}
	return signed.Encode(), nil
}

// attachment is the Content-Disposition, as RFC 6266 has it, that saves under
// name, which CheckDownloadName has passed.
func attachment(name string) string {
	return mime.FormatMediaType("attachment", map[string]string{"filename": name})
}
