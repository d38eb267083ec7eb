package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"cats.example/frontend/internal/form"
	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

// owner is the user of a picture, as responses have it.
type owner struct {
	Name string `json:"name"`
}

// link is the response to GET /cat/{user}.
type link struct {
	Owner owner `json:"owner"`
	signerapi.Link
}

// stored is the response to an upload and to the commit of a direct upload.
type stored struct {
	Owner owner `json:"owner"`
	signerapi.Info
}

func (a api) getCat(w http.ResponseWriter, r *http.Request, user signerapi.User) error {
	signed, err := a.link(r, user)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", signed.ETag)
	if matchesETag(headerList(r.Header, "If-None-Match"), signed.ETag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return writeJSON(w, http.StatusOK, link{owner{user.String()}, signed})
}

// getPicture redirects to the signed URL of the picture, for use in HTML pages. Browsers may cache the redirect for half of the
// time that the URL remains valid.
func (a api) getPicture(w http.ResponseWriter, r *http.Request, user signerapi.User) error {
	signed, err := a.link(r, user)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Location", string(signed.URL))
	h.Set("Cache-Control", fmt.Sprintf("private, max-age=%d", max(0, int(time.Until(signed.ExpiresAt)/time.Second)/2)))
	w.WriteHeader(http.StatusTemporaryRedirect)
	return nil
}

// link requests a signed URL for the picture of user, with the options in the query. The signer checks the limits of ttl.
func (a api) link(r *http.Request, user signerapi.User) (signed signerapi.Link, err error) {
	query, err := parseQuery(r, "ttl", "download")
	if err != nil {
		return signed, err
	}
	opts := signerapi.LinkOptions{Download: query.Get("download")}
	if query.Has("ttl") {
		if opts.TTL, err = time.ParseDuration(query.Get("ttl")); err != nil || opts.TTL <= 0 || opts.TTL%time.Second != 0 {
			return signed, apierror.ErrInvalidArgument.WithDetail("ttl: want a duration in whole seconds, such as 90s, 10m or 1h30m")
		}
	}
	if query.Has("download") && opts.Download == "" {
		return signed, apierror.ErrInvalidArgument.WithDetail("download: want a file name, such as cat.jpg")
	}
	if err := signerapi.ValidateDownloadName(opts.Download); err != nil {
		return signed, err
	}
	signed, err = a.signer.Link(r.Context(), user, opts)
	return signed, a.counted("link", err)
}

// putCat stores the request body.
func (a api) putCat(w http.ResponseWriter, r *http.Request, user signerapi.User) error {
	digests, err := parseDigests(r.Header)
	if err != nil {
		return err
	}
	err = a.store(w, r, user, signerapi.BodyReader{Body: r.Body}, signerapi.PutOptions{Size: r.ContentLength, Digests: digests})
	if errors.Is(err, apierror.ErrUnsupportedMediaType) && strings.HasPrefix(strings.ToLower(r.Header.Get("Content-Type")), "multipart/") {
		return apierror.ErrUnsupportedMediaType.WithDetail("the body is a form: send forms with POST, or PUT the picture itself")
	}
	return err
}

// postCat stores the file in a form. Digests in the header of the request are of the whole form, digests in the header of the
// part are of the picture.
func (a api) postCat(w http.ResponseWriter, r *http.Request, user signerapi.User) error {
	// A client that sends Expect: 100-continue has not sent the form yet. Other clients have, and a wrong field name is the more
	// useful error.
	maxSize := int64(a.options.MaxPictureSize)
	if r.ContentLength > maxSize+form.MaxBefore+form.MaxAfter && r.Header.Get("Expect") != "" {
		return a.options.ValidateSize(r.ContentLength)
	}
	formDigests, err := parseDigests(r.Header)
	if err != nil {
		return err
	}
	file, err := form.Open(r.Header, formDigests.Reader(signerapi.BodyReader{Body: r.Body}), r.ContentLength, checkChunkCount)
	if err != nil {
		return err
	}
	if file.MinSize > maxSize {
		return apierror.ErrTooLarge.WithDetail(fmt.Sprintf("the picture is larger than %v, or more than 64 KiB follow it in the form", a.options.MaxPictureSize))
	}
	if err := cmp.Or(checkWhole(file.Header), checkEncoding(file.Header)); err != nil {
		return err
	}
	digests, err := parseDigests(file.Header)
	if err != nil {
		return err
	}
	return a.store(w, r, user, file, signerapi.PutOptions{Size: -1, MinSize: file.MinSize, MaxSize: file.MaxSize, Digests: digests})
}

// store checks the first bytes of a picture and sends it to the signer.
func (a api) store(w http.ResponseWriter, r *http.Request, user signerapi.User, body io.Reader, opts signerapi.PutOptions) error {
	var err error
	if opts.Preconditions, err = parsePreconditions(r.Header); err != nil {
		return err
	}
	_, picture, err := a.options.Sniff(body, opts.Size)
	if err != nil {
		return err
	}
	// If the client breaks off, net/http cancels the context shortly before the read of the body returns, and only the error of
	// the read has the reason. After the end of the body, the signer stores the picture in any case.
	info, err := a.signer.Put(context.WithoutCancel(r.Context()), user, picture, opts)
	return a.writeStored(w, "put", user, info, err)
}

// writeStored counts a put or commit_upload request to the signer and writes its result.
func (a api) writeStored(w http.ResponseWriter, operation string, user signerapi.User, info signerapi.Info, err error) error {
	if a.counted(operation, err) != nil {
		return err
	}
	a.uploadBytes.Add(float64(info.Size))
	w.Header().Set("ETag", info.ETag)
	return writeJSON(w, http.StatusOK, stored{owner{user.String()}, info})
}

func (a api) deleteCat(w http.ResponseWriter, r *http.Request, user signerapi.User) error {
	preconditions, err := parsePreconditions(r.Header)
	if err != nil {
		return err
	}
	if err := a.counted("delete", a.signer.Delete(r.Context(), user, preconditions)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
