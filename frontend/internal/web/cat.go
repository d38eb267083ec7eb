package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

// owner names the user of a picture in responses.
type owner struct {
	Name string `json:"name"`
}

// stored is the answer to an upload and to the commit of a direct upload.
type stored struct {
	Owner owner `json:"owner"`
	signerapi.Info
}

// cat is the answer to GET /cat/{user}.
type cat struct {
	Owner owner `json:"owner"`
	signerapi.Link
}

func (web) getService(w http.ResponseWriter, _ *http.Request) error {
	signerapi.WriteJSON(w, http.StatusOK, "application/json", map[string]string{"service-name": "cats-api"})
	return nil
}

func (s web) getCat(w http.ResponseWriter, r *http.Request, user signerapi.User) error {
	link, err := s.link(r, user)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", link.ETag)
	if matches(list(r.Header, "If-None-Match"), link.ETag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	signerapi.WriteJSON(w, http.StatusOK, "application/json", cat{owner{user.String()}, link})
	return nil
}

// getPicture redirects to the signed URL of the picture, for use in HTML pages. Browsers may cache the redirect for half of
// the time in which the URL is valid.
func (s web) getPicture(w http.ResponseWriter, r *http.Request, user signerapi.User) error {
	link, err := s.link(r, user)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Location", string(link.URL))
	h.Set("Cache-Control", fmt.Sprintf("private, max-age=%d", max(0, int(time.Until(link.ExpiresAt)/time.Second)/2)))
	w.WriteHeader(http.StatusTemporaryRedirect)
	return nil
}

// link requests a signed URL of the picture of user with the options in the query. The signer checks the limits of ttl.
func (s web) link(r *http.Request, user signerapi.User) (link signerapi.Link, err error) {
	query, err := arguments(r, "ttl", "download")
	if err != nil {
		return link, err
	}
	opts := signerapi.LinkOptions{Download: query.Get("download")}
	if query.Has("ttl") {
		if opts.TTL, err = time.ParseDuration(query.Get("ttl")); err != nil || opts.TTL <= 0 || opts.TTL%time.Second != 0 {
			return link, apierror.ErrInvalidArgument.WithDetail("ttl: want a time in whole seconds, such as 90s, 10m or 1h30m")
		}
	}
	if query.Has("download") && opts.Download == "" {
		return link, apierror.ErrInvalidArgument.WithDetail("download: want a file name, such as cat.jpg")
	}
	if err := signerapi.ValidateDownloadName(opts.Download); err != nil {
		return link, err
	}
	link, err = s.signer.Link(r.Context(), user, opts)
	s.metrics.count("link", err)
	return link, err
}

// arguments returns the query of r. It returns ErrInvalidArgument if the query cannot be parsed, which [url.URL.Query]
// would ignore, or has one of names more than once.
func arguments(r *http.Request, names ...string) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, apierror.ErrInvalidArgument.WithDetail("the query cannot be parsed: write % as %25, ; as %3B and & in a value as %26")
	}
	for _, name := range names {
		if len(query[name]) > 1 {
			return nil, apierror.ErrInvalidArgument.WithDetail(name + ": given more than once")
		}
	}
	return query, nil
}

// whole rejects a request whose body is a part of a picture, or is encoded, before h reads it.
func whole(h handler) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := checkWhole(r.Header); err != nil {
			return err
		}
		for name, values := range r.URL.Query() {
			if err := checkChunks(name, values[0]); err != nil {
				return err
			}
		}
		if err := checkCoding(r.Header); err != nil {
			w.Header().Set("Accept-Encoding", "identity") // RFC 9110 section 15.5.16
			return err
		}
		return h(w, r)
	}
}

// putCat stores the body of the request.
func (s web) putCat(w http.ResponseWriter, r *http.Request, user signerapi.User) error {
	digests, err := digestsOf(r.Header)
	if err != nil {
		return err
	}
	err = s.store(w, r, user, signerapi.BodyReader{Body: r.Body}, signerapi.PutOptions{Size: r.ContentLength, Digests: digests})
	if mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); errors.Is(err, apierror.ErrUnsupportedMediaType) && strings.HasPrefix(mediaType, "multipart/") {
		return apierror.ErrUnsupportedMediaType.WithDetail("the body is a form: send forms with POST, or PUT the picture itself")
	}
	return err
}

// postCat stores the field "file" of a form. Digests in the header of the request are those of the whole form, digests in
// the header of the part are those of the picture.
func (s web) postCat(w http.ResponseWriter, r *http.Request, user signerapi.User) error {
	// A client that sends Expect: 100-continue gets its answer instead of 100. For other clients, a wrong field name is the
	// better answer.
	maxSize := int64(s.options.MaxPictureSize)
	if r.ContentLength > maxSize+formOverhead+maxAfterFile && r.Header.Get("Expect") != "" {
		return s.options.ValidateSize(r.ContentLength)
	}
	form, err := openForm(r)
	if err != nil {
		return err
	}
	file, header, err := form.file()
	if err != nil {
		return err
	}
	if form.atLeast > maxSize {
		return apierror.ErrTooLarge.WithDetail(fmt.Sprintf("the picture is larger than %v, or more than 64 KiB follow it in the form", s.options.MaxPictureSize))
	}
	if err := cmp.Or(checkWhole(http.Header(header)), checkCoding(http.Header(header))); err != nil {
		return err
	}
	digests, err := digestsOf(http.Header(header))
	if err != nil {
		return err
	}
	return s.store(w, r, user, file, signerapi.PutOptions{Size: -1, MinSize: form.atLeast, MaxSize: form.atMost, Digests: digests})
}

// store checks and forwards a picture.
func (s web) store(w http.ResponseWriter, r *http.Request, user signerapi.User, body io.Reader, opts signerapi.PutOptions) error {
	var err error
	if opts.Preconditions, err = conditionsOf(r.Header); err != nil {
		return err
	}
	_, whole, err := s.options.Sniff(body, opts.Size)
	if err != nil {
		return err
	}
	// net/http cancels the context a moment before a failing read of the body returns, and only the error of the read has
	// the reason. After the end of the body the signer stores the picture in any case.
	info, err := s.signer.Put(context.WithoutCancel(r.Context()), user, whole, opts)
	return s.answerStored(w, "put", user, info, err)
}

// answerStored counts the call op, a Put or a Commit, and answers with its result.
func (s web) answerStored(w http.ResponseWriter, op string, user signerapi.User, info signerapi.Info, err error) error {
	s.metrics.count(op, err)
	if err != nil {
		return err
	}
	s.metrics.stored.Add(float64(info.Size))
	w.Header().Set("ETag", info.ETag)
	signerapi.WriteJSON(w, http.StatusOK, "application/json", stored{owner{user.String()}, info})
	return nil
}

func (s web) deleteCat(w http.ResponseWriter, r *http.Request, user signerapi.User) error {
	conditions, err := conditionsOf(r.Header)
	if err != nil {
		return err
	}
	err = s.signer.Delete(r.Context(), user, conditions)
	s.metrics.count("delete", err)
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
