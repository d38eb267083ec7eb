package web

import "net/http"

func (api) getService(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, map[string]string{"service-name": "cats-api"})
}

// getAbout writes the limits and what a client needs to sign users in. All sizes are in bytes.
func (a api) getAbout(w http.ResponseWriter, r *http.Request) error {
	signer, err := a.signer.About(r.Context())
	if a.counted("about", err) != nil {
		return err
	}
	o := a.options
	response := map[string]any{
		"max_picture_size": o.MaxPictureSize, "max_direct_size": signer.MaxDirectUploadSize,
		"picture_types": o.AcceptedTypes, "max_pixels": o.MaxPixels,
		"link_ttl_seconds": signer.LinkTTL, "link_max_ttl_seconds": signer.LinkMaxTTL, "storage_origin": signer.LinkOrigin,
	}
	if o.AuthenticationOn() {
		response["read_access"] = o.ReadAccess
	}
	if o.signInEnabled() {
		response["sign_in"] = map[string]string{
			"issuer": o.Issuer, "discovery_url": o.ConfigurationURL(),
			"client_id": o.ClientID, "scope": o.Scope, "user_claim": signer.UserClaim,
		}
	}
	return writeJSON(w, http.StatusOK, response)
}
