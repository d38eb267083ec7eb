package blobstore

import (
	"errors"
	"net/url"
	"regexp"
	"slices"
	"time"

	"cats.example/shared/config"
	"cats.example/shared/picture"
	"cats.example/shared/signerapi"
)

var (
	containerForm = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9]){2,62}$`)
	// Labels after the name of the account begin with a letter: an IP address is no such host.
	accountForm = regexp.MustCompile(`^https://[a-z0-9]{3,24}(\.[A-Za-z][A-Za-z0-9-]*)*(:[0-9]+)?$`)
)

// Validate reports the faults of the settings, joined.
func (s Settings) Validate() error {
	_, nameErr := signerapi.ParseUser(s.BlobName) // the same rules make a safe path segment
	base, baseErr := url.Parse(s.LinkBaseURL)
	isBase := baseErr == nil && (base.Scheme == "https" || base.Scheme == "http") && base.Host != "" &&
		base.RawQuery == "" && base.Fragment == "" && base.User == nil
	return errors.Join(
		config.Require(accountForm.MatchString(s.AccountURL),
			"AZURE_STORAGE_ACCOUNT_URL is %q: want https://ACCOUNT.blob.core.windows.net, without a path; the first label of the host must be the name of the account; for a custom domain set LINK_BASE_URL instead", s.AccountURL),
		config.Require(containerForm.MatchString(s.Container),
			"STORAGE_CONTAINER is %q: want 3 to 63 of a-z, 0-9 and single hyphens", s.Container),
		config.Require(nameErr == nil, "BLOB_NAME is %q: want one path segment", s.BlobName),
		config.Require(slices.IsSorted([]time.Duration{MinLinkTTL, s.LinkTTL, s.LinkMaxTTL, MaxLinkTTL}),
			"LINK_TTL is %v and LINK_MAX_TTL is %v: want %v ≤ LINK_TTL ≤ LINK_MAX_TTL ≤ %v", s.LinkTTL, s.LinkMaxTTL, MinLinkTTL, MaxLinkTTL),
		config.Require(s.LinkBaseURL == "" || isBase, "LINK_BASE_URL is %q: want a URL such as https://pictures.example.com", s.LinkBaseURL),
		config.Require(0 <= s.MaxDirectUploadSize && s.MaxDirectUploadSize <= MaxDirectUploadSize, "MAX_DIRECT_UPLOAD_SIZE is %v: want 0 to %v", s.MaxDirectUploadSize, picture.Size(MaxDirectUploadSize)),
		config.Require(s.ExistenceCacheTTL >= 0, "EXISTENCE_CACHE_TTL must not be negative"),
	)
}
