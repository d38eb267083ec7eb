package web

import (
	"encoding/base64"
	"net/http"
	"strconv"

	"github.com/gorilla/mux"

	"cats.example/shared/access"
	"cats.example/shared/apierror"
	"cats.example/shared/picture"
	"cats.example/shared/signerapi"
)

// SignIn are the settings of how the page has people sign in, where callers must be
// known.
type SignIn struct {
	ClientID string `json:"client_id" env:"OIDC_CLIENT_ID" help:"with OIDC_ISSUER, the client as which the page has people sign in, a public one (authorization code with PKCE) whose redirect URI is that of the page; unless set, the page has no sign-in"`
	Scope    string `json:"scope" env:"OIDC_SCOPE" envDefault:"openid" help:"with OIDC_CLIENT_ID, what the page asks the issuer for, such as openid api://API/.default at Entra ID, API being the client id of the API's registration, so that its access token is for OIDC_AUDIENCE"`
}

// about is the answer to GET /about: what clients can do here.
type about struct {
	MaxPicture    picture.Size      `json:"max_picture_size"` // through POST and PUT
	MaxDirect     int64             `json:"max_direct_size"`
	Types         []string          `json:"picture_types"`
	MaxPixels     uint64            `json:"max_pixels"`
	LinkTTL       int64             `json:"link_ttl_seconds"`
	LinkMaxTTL    int64             `json:"link_max_ttl_seconds"`
	StorageOrigin string            `json:"storage_origin"`
	ReadAccess    access.ReadAccess `json:"read_access,omitempty"`
	SignIn        *signIn           `json:"sign_in,omitempty"`
}

type signIn struct {
	Issuer    string `json:"issuer"`
	Discovery string `json:"discovery_url"`
	SignIn
	UserClaim string `json:"user_claim"`
}

func (s web) getAbout(w http.ResponseWriter, r *http.Request) error {
	said, err := s.signer.About(r.Context())
	s.metrics.count("about", err)
	if err != nil {
		return err
	}
	o := s.options
	answer := about{
		MaxPicture: o.MaxPictureSize, MaxDirect: said.MaxDirectUploadSize, Types: o.AcceptedTypes, MaxPixels: o.MaxPixels,
		LinkTTL: said.LinkTTL, LinkMaxTTL: said.LinkMaxTTL, StorageOrigin: said.LinkOrigin,
	}
	if o.AuthenticationOn() {
		answer.ReadAccess = o.ReadAccess
	}
	if o.AuthenticationOn() && o.ClientID != "" {
		answer.SignIn = &signIn{o.Issuer, o.ConfigurationURL(), o.SignIn, said.UserClaim}
	}
	signerapi.WriteJSON(w, http.StatusOK, "application/json", answer)
	return nil
}

// ticket is the answer to POST /cat/{user}/upload.
type ticket struct {
	Owner owner `json:"owner"`
	signerapi.UploadSession
}

// postUpload starts a direct upload: it returns an upload URL.
func (s web) postUpload(w http.ResponseWriter, r *http.Request, user signerapi.User) error {
	query, err := arguments(r, "size")
	if err != nil {
		return err
	}
	size, err := strconv.ParseInt(query.Get("size"), 10, 64)
	if err != nil || size < 0 {
		return apierror.ErrInvalidArgument.WithDetail("size: want how many bytes the picture has, such as size=240512")
	}
	given, err := s.signer.StartUpload(r.Context(), user, size)
	s.metrics.count("start_upload", err)
	if err != nil {
		return err
	}
	signerapi.WriteJSON(w, http.StatusCreated, "application/json", ticket{owner{user.String()}, given})
	return nil
}

// postCommit commits a direct upload: the staged blob becomes the picture.
func (s web) postCommit(w http.ResponseWriter, r *http.Request, user signerapi.User) error {
	id := mux.Vars(r)["id"]
	if err := signerapi.ValidateUploadID(id); err != nil {
		return err
	}
	conditions, err := conditionsOf(r.Header)
	if err != nil {
		return err
	}
	query, err := arguments(r, "content_md5")
	if err != nil {
		return err
	}
	opts := signerapi.CommitOptions{Preconditions: conditions}
	if query.Has("content_md5") {
		if opts.MD5, err = base64.StdEncoding.DecodeString(query.Get("content_md5")); err != nil || len(opts.MD5) != 16 {
			return apierror.ErrInvalidArgument.WithDetail("content_md5: want an MD5 in base64, percent-encoded")
		}
	}
	info, err := s.signer.CommitUpload(r.Context(), user, id, opts)
	return s.answerStored(w, "commit_upload", user, info, err)
}
