package web

import (
	"net/http"

	"cats.example/shared/access"
	"cats.example/shared/picture"
)

// about is the response to GET /about. All sizes are in bytes.
type about struct {
	MaxPictureSize picture.Size      `json:"max_picture_size"`
	MaxDirectSize  int64             `json:"max_direct_size"`
	PictureTypes   []string          `json:"picture_types"`
	MaxPixels      uint64            `json:"max_pixels"`
	LinkTTL        int64             `json:"link_ttl_seconds"`
	LinkMaxTTL     int64             `json:"link_max_ttl_seconds"`
	StorageOrigin  string            `json:"storage_origin"`
	ReadAccess     access.ReadAccess `json:"read_access,omitempty"`
	SignIn         *signIn           `json:"sign_in,omitempty"`
}

// signIn is what a client needs to sign users in.
type signIn struct {
	Issuer       string `json:"issuer"`
	DiscoveryURL string `json:"discovery_url"`
	SignIn
	UserClaim string `json:"user_claim"`
}

func (api) getService(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, map[string]string{"service-name": "cats-api"})
	return nil
}

func (a api) getAbout(w http.ResponseWriter, r *http.Request) error {
	signer, err := a.signer.About(r.Context())
	a.metrics.countSignerRequest("about", err)
	if err != nil {
		return err
	}
	o := a.options
	response := about{
		MaxPictureSize: o.MaxPictureSize, MaxDirectSize: signer.MaxDirectUploadSize, PictureTypes: o.AcceptedTypes, MaxPixels: o.MaxPixels,
		LinkTTL: signer.LinkTTL, LinkMaxTTL: signer.LinkMaxTTL, StorageOrigin: signer.LinkOrigin,
	}
	if o.AuthenticationOn() {
		response.ReadAccess = o.ReadAccess
	}
	if o.signInEnabled() {
		response.SignIn = &signIn{o.Issuer, o.ConfigurationURL(), o.SignIn, signer.UserClaim}
	}
	writeJSON(w, http.StatusOK, response)
	return nil
}
