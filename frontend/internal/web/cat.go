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

	"cats.example/shared/signerapi"
)

// owner is whose picture an answer is about.
type owner struct {
	Name string `json:"name"`
}

// stored is the answer to an upload.
type stored struct {
	Owner owner `json:"owner"`
	signerapi.Info
}

// cat is the answer to GET /cat/{user}.
type cat struct {
	Owner      owner               `json:"owner"`
	PictureURL signerapi.SignedURL `json:"picture_url"`
	ExpiresAt  time.Time           `json:"expires_at"`
	signerapi.Info
}

func (web) getService(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, "application/json", map[string]string{"service-name": "cats-api"})
	return nil
}

func (s web) getCat(w http.ResponseWriter, r *http.Request) error {
	user, link, err := s.link(r)
	if err != nil {
		return err
	}
	w.Header().Set("ETag", link.ETag)
	if matches(r.Header.Values("If-None-Match"), link.ETag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	writeJSON(w, http.StatusOK, "application/json", cat{owner{user.String()}, link.URL, link.ExpiresAt, link.Info})
	return nil
}

// getPicture redirects to the picture, so that a page can show it. A browser may
// keep the redirect for half of what is left of the link.
func (s web) getPicture(w http.ResponseWriter, r *http.Request) error {
	_, link, err := s.link(r)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Location", string(link.URL))
	h.Set("Cache-Control", fmt.Sprintf("private, max-age=%d", max(0, int(time.Until(link.ExpiresAt)/time.Second)/2)))
	w.WriteHeader(http.StatusTemporaryRedirect)
	return nil
}

// link asks for a link as the path and the query say. Its limits are the
// signer's to know.
func (s web) link(r *http.Request) (signerapi.User, signerapi.Link, error) {
	user, err := userOf(r)
	if err != nil {
		return user, signerapi.Link{}, err
	}
	var opts signerapi.LinkOptions
	query, err := queryOf(r)
	if err != nil {
		return user, signerapi.Link{}, err
	}
	if ttl, ok, err := once(query, "ttl"); err != nil {
		return user, signerapi.Link{}, err
	} else if ok {
		if opts.TTL, err = time.ParseDuration(ttl); err != nil || opts.TTL <= 0 || opts.TTL%time.Second != 0 {
			return user, signerapi.Link{}, signerapi.ErrInvalidArgument.With("ttl: want a time in whole seconds, such as 90s, 10m or 1h30m")
		}
	}
	if download, ok, err := once(query, "download"); err != nil {
		return user, signerapi.Link{}, err
	} else if ok {
		if download == "" {
			return user, signerapi.Link{}, signerapi.ErrInvalidArgument.With("download: want a file name, such as cat.jpg")
		}
		if err := signerapi.CheckDownloadName(download); err != nil {
			return user, signerapi.Link{}, err
		}
		opts.Download = download
	}
	link, err := s.signer.Link(r.Context(), user, opts)
	s.metrics.count("link", err)
	return user, link, err
}

// queryOf returns the query of a request. [url.URL.Query] would ignore what it cannot parse.
func queryOf(r *http.Request) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, signerapi.ErrInvalidArgument.With("the query cannot be parsed: write % as %25, ; as %3B and & in a value as %26")
	}
	return query, nil
}

// once returns the value of a query argument, and whether it is there.
func once(query url.Values, name string) (string, bool, error) {
	switch values := query[name]; len(values) {
	case 0:
		return "", false, nil
	case 1:
		return values[0], true, nil
	}
	return "", false, signerapi.ErrInvalidArgument.With(name + ": given more than once")
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

// putCat stores the body as it is.
func (s web) putCat(w http.ResponseWriter, r *http.Request) error {
	user, err := userOf(r)
	if err != nil {
		return err
	}
	digests, err := digestsOf(r.Header)
	if err != nil {
		return err
	}
	err = s.store(w, r, user, signerapi.BodyReader{Body: r.Body}, signerapi.PutOptions{Size: r.ContentLength, Digests: digests})
	if mediaType, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); errors.Is(err, signerapi.ErrUnsupportedMediaType) && strings.HasPrefix(mediaType, "multipart/") {
		return signerapi.ErrUnsupportedMediaType.With("the body is a form: send forms with POST, or PUT the picture itself")
	}
	return err
}

// postCat stores the field "file" of a form. Digests in the request's header are of
// the whole form, those in the header of the part are of the picture.
func (s web) postCat(w http.ResponseWriter, r *http.Request) error {
	user, err := userOf(r)
	if err != nil {
		return err
	}
	// A client that waits to be asked for a body that is too large is not asked. Others learn first if the picture is in
	// the wrong field.
	maxSize := int64(s.options.MaxSize)
	if r.ContentLength > maxSize+formOverhead+maxAfterFile && r.Header.Get("Expect") != "" {
		return s.options.CheckSize(r.ContentLength)
	}
	form, err := openForm(r, maxSize)
	if err != nil {
		return err
	}
	file, header, err := form.file()
	if err != nil {
		return err
	}
	if form.atLeast > maxSize {
		return signerapi.ErrTooLarge.With(fmt.Sprintf("the picture is larger than %v, or more than 64 KiB follow it in the form", s.options.MaxSize))
	}
	if err := cmp.Or(checkWhole(http.Header(header)), checkCoding(http.Header(header))); err != nil {
		return err
	}
	digests, err := digestsOf(http.Header(header))
	if err != nil {
		return err
	}
	return s.store(w, r, user, file, signerapi.PutOptions{Size: -1, AtLeast: form.atLeast, AtMost: form.atMost, Digests: digests})
}

// store checks and forwards a picture.
func (s web) store(w http.ResponseWriter, r *http.Request, user signerapi.User, body io.Reader, opts signerapi.PutOptions) error {
	var err error
	if opts.Conditions, err = conditionsOf(r.Header); err != nil {
		return err
	}
	_, whole, err := s.options.Sniff(body, opts.Size)
	if err != nil {
		return err
	}
	// net/http cancels the context a moment before a failing read of the body
	// returns; the read says why, the context does not. After the end of the body
	// there is nothing to cancel: the signer stores what it has whole.
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
	writeJSON(w, http.StatusOK, "application/json", stored{owner{user.String()}, info})
	return nil
}

func (s web) deleteCat(w http.ResponseWriter, r *http.Request) error {
	user, err := userOf(r)
	if err != nil {
		return err
	}
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
