package signing

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
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"

	"cats.example/shared/picture"
	"cats.example/shared/signerapi"
)

// Link is a signed URL with which a client reads a picture.
type Link struct {
	URL       signerapi.SignedURL
	ExpiresAt time.Time
	inputs    linkInputs
}

// linkInputs determine the URL of a Link that shows the picture.
type linkInputs struct {
	key               *delegationKey
	start, end        time.Time
	name, contentType string
}

// Link returns a link to the blob name, a picture of contentType. It returns last if the new link would have the same URL; last may
// be nil. The error is ErrInvalidArgument for a lifetime outside the limits.
func (k *Keys) Link(name, contentType string, opts signerapi.LinkOptions, last *Link) (*Link, error) {
	ttl, err := k.TTL(opts.TTL)
	if err != nil {
		return nil, err
	}
	start, end := window(time.Now(), ttl)
	key, err := k.covering(end)
	if err != nil {
		return nil, err
	}
	link, inputs := last, linkInputs{key, start, end, name, contentType}
	if opts.Download != "" || last == nil || last.inputs != inputs {
		url, err := key.sign(k.base, k.storage.Container, name, readOnly(start, end, contentType, k.storage.BlobName, opts.Download))
		if err != nil {
			return nil, err
		}
		link = &Link{url, end, inputs}
	}
	kind := "view"
	if opts.Download != "" {
		kind = "download"
	}
	k.metrics.signed.WithLabelValues(kind).Inc()
	select {
	case k.linked <- name:
	default: // another probe is due
	}
	return link, nil
}

// ReadURL returns a signed URL at base that reads the blob name for ttl. base is the account's URL or LinkBaseURL.
func (k *Keys) ReadURL(base, name string, ttl time.Duration) (signerapi.SignedURL, error) {
	start, end := window(time.Now(), ttl)
	key, err := k.covering(end)
	if err != nil {
		return "", err
	}
	return key.sign(base, k.storage.Container, name, readOnly(start, end, "", k.storage.BlobName, ""))
}

// UploadURL returns a signed URL that writes the blob name, as permissions allow, until end.
func (k *Keys) UploadURL(name string, permissions sas.BlobPermissions, end time.Time) (signerapi.SignedURL, error) {
	key, err := k.covering(end)
	if err != nil {
		return "", err
	}
	start := time.Now().UTC().Truncate(time.Second).Add(-ToleratedSkew)
	url, err := key.sign(k.base, k.storage.Container, name, sas.BlobSignatureValues{StartTime: start, ExpiryTime: end, Permissions: permissions.String()})
	if err == nil {
		k.metrics.signed.WithLabelValues("upload").Inc()
	}
	return url, err
}

// ToleratedSkew is how far our clock may be ahead of storage's: keys and signed URLs are valid from so long ago.
const ToleratedSkew = 15 * time.Minute

// delegationKey is a user delegation key and its validity period.
type delegationKey struct {
	credential *service.UserDelegationCredential
	start, end time.Time
}

// sign returns the URL of the blob name at base with a SAS for HTTPS only, which is not valid before the key. The key must not
// expire before the SAS.
func (k *delegationKey) sign(base, container, name string, values sas.BlobSignatureValues) (signerapi.SignedURL, error) {
	values.Protocol, values.ContainerName, values.BlobName = sas.ProtocolHTTPS, container, name
	if values.StartTime.Before(k.start) {
		values.StartTime = k.start
	}
	if err := checkUnambiguous(values); err != nil {
		return "", err
	}
	query, err := values.SignWithUserDelegation(k.credential)
	if err != nil {
		return "", fmt.Errorf("signing: %w", err)
	}
	path := strings.ReplaceAll(url.PathEscape(name), "%2F", "/")
	return signerapi.SignedURL(base + "/" + container + "/" + path + "?" + query.Encode()), nil
}

// errAmbiguous is returned for values of a SAS that a server could read differently.
var errAmbiguous = errors.New("not signing a URL")

// checkUnambiguous returns errAmbiguous for values that storage or a proxy could read as others. The SDK signs them as lines, and
// turns a backslash of the blob's name into a slash. Servers remove the path segments . and .. from a URL.
func checkUnambiguous(v sas.BlobSignatureValues) error {
	for _, value := range []string{v.ContainerName, v.BlobName, v.ContentType, v.ContentDisposition} {
		if !utf8.ValidString(value) || strings.Contains(value, `\`) || strings.ContainsFunc(value, unicode.IsControl) {
			return fmt.Errorf("%w: a value is %q", errAmbiguous, value)
		}
	}
	reads := strings.Contains(v.Permissions, "r") // then the SAS says how storage serves the blob
	switch {
	case v.ContainerName == "", !fs.ValidPath(v.BlobName), v.BlobName == ".":
		return fmt.Errorf("%w: the container is %q and the blob %q", errAmbiguous, v.ContainerName, v.BlobName)
	case reads && (v.ContentType == "" || v.ContentDisposition == ""):
		return fmt.Errorf("%w: the content type is %q and the content disposition %q", errAmbiguous, v.ContentType, v.ContentDisposition)
	}
	return nil
}

// window returns the validity period of a URL with lifetime ttl that is signed at now. It changes once in 1/12 of ttl. Within
// that time a picture has one URL, so browsers and CDNs can cache it. A URL expires after at most ttl, and at least 11/12 of ttl
// minus a second.
func window(now time.Time, ttl time.Duration) (start, end time.Time) {
	step := max((ttl / 12).Truncate(time.Second), time.Second)
	began := now.UTC().Truncate(step)
	return began.Add(-ToleratedSkew), began.Add(ttl).Truncate(time.Second)
}

// readOnly returns the values of a SAS that permits to read a blob of contentType, and says how storage serves it, whatever the blob
// itself says. Browsers show a picture, or save it if download has a file name. They always save other content, which the signer
// has not stored. The file name (fileName unless there is a download, RFC 6266) always has the extension of the type, so nobody
// saves a picture as a program or a page.
func readOnly(start, end time.Time, contentType, fileName, download string) sas.BlobSignatureValues {
	kind := "inline"
	if download != "" {
		kind, fileName = "attachment", download
	}
	name, ok := picture.WithExtension(fileName, contentType)
	if !ok {
		contentType, kind, name = "application/octet-stream", "attachment", name+".bin"
	}
	return sas.BlobSignatureValues{
		StartTime: start, ExpiryTime: end, Permissions: (&sas.BlobPermissions{Read: true}).String(),
		ContentType: contentType, ContentDisposition: contentDisposition(kind, name),
	}
}

// contentDisposition returns the field of RFC 6266 for a file name. Browsers decode a "%" in filename, and clients disagree
// about quotes, backslashes and characters outside ASCII there. A name with one of them is therefore in filename*
// (RFC 8187). The filename before it, with "_" in their place, is for clients without filename*, such as curl.
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
