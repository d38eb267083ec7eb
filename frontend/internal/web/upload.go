package web

import (
	"encoding/base64"
	"net/http"
	"strconv"

	"github.com/gorilla/mux"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

// uploadSession is the response to POST /cat/{user}/upload.
type uploadSession struct {
	Owner owner `json:"owner"`
	signerapi.UploadSession
}

// postUpload starts a direct upload: the response has an upload URL.
func (a api) postUpload(w http.ResponseWriter, r *http.Request, user signerapi.User) error {
	query, err := parseQuery(r, "size")
	if err != nil {
		return err
	}
	size, err := strconv.ParseInt(query.Get("size"), 10, 64)
	if err != nil || size < 0 {
		return apierror.ErrInvalidArgument.WithDetail("size: want the size of the picture in bytes, such as size=240512")
	}
	session, err := a.signer.StartUpload(r.Context(), user, size)
	if a.counted("start_upload", err) != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, uploadSession{owner{user.String()}, session})
}

// postCommit commits a direct upload: the staged blob becomes the picture.
func (a api) postCommit(w http.ResponseWriter, r *http.Request, user signerapi.User) error {
	id := mux.Vars(r)["id"]
	if err := signerapi.ValidateUploadID(id); err != nil {
		return err
	}
	preconditions, err := parsePreconditions(r.Header)
	if err != nil {
		return err
	}
	query, err := parseQuery(r, "content_md5")
	if err != nil {
		return err
	}
	opts := signerapi.CommitOptions{Preconditions: preconditions}
	if query.Has("content_md5") {
		if opts.MD5, err = base64.StdEncoding.DecodeString(query.Get("content_md5")); err != nil || len(opts.MD5) != 16 {
			return apierror.ErrInvalidArgument.WithDetail("content_md5: want an MD5 in base64, percent-encoded")
		}
	}
	info, err := a.signer.CommitUpload(r.Context(), user, id, opts)
	return a.writeStored(w, "commit_upload", user, info, err)
}
