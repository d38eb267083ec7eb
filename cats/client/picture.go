package client

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"time"
)

// About is a part of what the service says about itself (GET /about).
type About struct {
	MaxPictureSize int64  `json:"max_picture_size"` // bytes that the service accepts
	MaxDirectSize  int64  `json:"max_direct_size"`  // bytes of a direct upload; 0 if direct uploads are off
	StorageOrigin  string `json:"storage_origin"`   // of signed URLs and upload URLs
}

// About returns the limits of the service.
func (c *Client) About(ctx context.Context) (a About, err error) {
	err = c.read(ctx, http.MethodGet, "/about", &a)
	return a, err
}

// Picture is the metadata of a stored picture. As JSON it is the response of the service.
type Picture struct {
	Owner struct {
		Name string `json:"name"` // the user
	} `json:"owner"`
	ETag        string `json:"etag"` // with its quotes
	ContentType string `json:"content_type"`
	Size        int64  `json:"size"`                  // in bytes
	MD5         []byte `json:"content_md5,omitempty"` // nil if storage has none, as of direct uploads above 256 MiB

	// URL is the signed URL, which is valid until ExpiresAt. Both are set by Link only.
	URL       string    `json:"picture_url,omitempty"`
	ExpiresAt time.Time `json:"expires_at,omitzero"`
}

func (p Picture) md5() string { return base64.StdEncoding.EncodeToString(p.MD5) }

// LinkOptions are the optional arguments of [Client.Link].
type LinkOptions struct {
	TTL      string // lifetime in whole seconds, as 90s, 10m or 1h30m; by default the service decides
	Download string // file name under which a browser saves the picture; by default it displays the picture
}

// Link returns the metadata of user's picture, and a signed URL. The URL is enough to read the picture until it expires.
func (c *Client) Link(ctx context.Context, user string, opts LinkOptions) (p Picture, err error) {
	query := url.Values{}
	if opts.TTL != "" {
		query.Set("ttl", opts.TTL)
	}
	if opts.Download != "" {
		query.Set("download", opts.Download)
	}
	path := catPath(user)
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	if err = c.read(ctx, http.MethodGet, path, &p); err == nil {
		_, err = parseURL("picture_url", p.URL)
	}
	return p, err
}

// Download writes the picture p, which comes from [Client.Link], to w. After an interruption it continues where it was.
//
// progress, if not nil, is called with the number of bytes that were written since its last call. Download returns nil only if
// the bytes have the size and, where p has one, the MD5 of p. If it fails, w may have received a part of the picture. Download
// returns an error of w as it is.
func (c *Client) Download(ctx context.Context, p Picture, w io.Writer, progress func(bytes int64)) error {
	d := &download{w: w, sum: md5.New(), progress: progress}
	now := p
	err := c.retry(ctx, func() (bool, error) {
		if now.URL == "" { // it may have expired during an earlier try
			if err := c.readOnce(ctx, http.MethodGet, catPath(p.Owner.Name), &now); err != nil {
				return true, err
			}
			if now.ETag != p.ETag {
				return false, newError(CodeConflict, "the picture was replaced during the download")
			}
		}
		err := c.fetch(ctx, now, d)
		now.URL = ""
		return true, err
	})
	if err == nil && (d.n != p.Size || p.MD5 != nil && !bytes.Equal(d.sum.Sum(nil), p.MD5)) {
		err = newError(CodeDigestMismatch, "the download is not the stored picture: %d bytes of %d, or another MD5", d.n, p.Size)
	}
	return err
}

// download is the part of a picture that was written to w.
type download struct {
	w        io.Writer
	sum      hash.Hash
	n        int64 // in bytes
	progress func(int64)
}

// Write implements [io.Writer].
func (d *download) Write(p []byte) (int, error) {
	n, err := d.w.Write(p)
	d.n += int64(n)
	d.sum.Write(p[:n])
	if d.progress != nil {
		d.progress(int64(n))
	}
	return n, err
}

// fetch appends the rest of p to d.
func (c *Client) fetch(ctx context.Context, p Picture, d *download) error {
	if _, err := parseURL("picture_url", p.URL); err != nil {
		return err
	}
	header, want := http.Header{"If-Match": {p.ETag}}, http.StatusOK
	if d.n > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", d.n))
		want = http.StatusPartialContent
	}
	resp, err := c.storage(ctx, http.MethodGet, p.URL, header, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		return newError(CodeStorage, "storage answered %s to a download", resp.Status)
	}
	_, err = io.Copy(d, io.LimitReader(resp.Body, p.Size-d.n+1))
	return err
}

// PutOptions are the optional arguments of [Client.Put].
type PutOptions struct {
	Create  bool   // store the picture only if the user has none (If-None-Match: *)
	IfMatch string // store the picture only if the stored one has this ETag; * means any

	// Progress is called with the number of bytes that were sent since its last call, possibly by several goroutines at once.
	// The number is negative if bytes must be sent again.
	Progress func(bytes int64)

	// Resume is a direct upload that Put continues, or nil. Put starts a new one if this one is of another user or size, or has
	// expired. The caller makes sure that the picture is the same.
	Resume *Upload

	// Save is called when a direct upload has started, has sent another block, and with nil when it is of no further use. A later
	// call of Put can resume the last one saved. The calls do not overlap. Save must not keep the Upload.
	Save func(*Upload)
}

// header returns the preconditions of a request.
func (o PutOptions) header() http.Header {
	h := http.Header{}
	if o.Create {
		h.Set("If-None-Match", "*")
	}
	if o.IfMatch != "" {
		h.Set("If-Match", o.IfMatch)
	}
	return h
}

// Put stores picture as the picture of user and returns its metadata. It replaces the stored picture as a whole, or not at all.
//
// If picture implements [io.ReaderAt] and [io.Seeker], as [os.File] and [bytes.Reader] do, Put reads it from the current offset
// to the end, more than once. It sends a digest, can repeat requests, and uploads a picture directly to storage if the service
// does not accept its size. Put sends any other reader once, in chunks, through the service. If ctx ends while such a reader
// blocks, Put returns, and a goroutine remains in Read.
//
// Put repeats a request of unknown outcome if it can. If a precondition then fails, because the first request was executed, Put
// compares size and MD5 of the stored picture and returns no error if they are equal.
func (c *Client) Put(ctx context.Context, user string, picture io.Reader, opts PutOptions) (Picture, error) {
	if opts.Progress == nil {
		opts.Progress = func(int64) {}
	}
	if opts.Save == nil {
		opts.Save = func(*Upload) {}
	}
	src := newContent(picture)
	if src.once != nil {
		return c.put(ctx, user, src, "", opts)
	}
	about, err := c.About(ctx)
	if err != nil {
		return Picture{}, err
	}
	switch {
	case src.size <= about.MaxPictureSize:
		sum, err := src.md5(0, src.size)
		if err != nil {
			return Picture{}, err
		}
		return c.put(ctx, user, src, sum, opts)
	case src.size <= about.MaxDirectSize:
		return c.putDirect(ctx, user, src, about.StorageOrigin, opts)
	}
	limit := max(about.MaxPictureSize, about.MaxDirectSize)
	e := newError(CodeTooLarge, "the picture has %d bytes; %s accepts at most %d", src.size, c.base, limit)
	e.Status, e.Title = http.StatusRequestEntityTooLarge, http.StatusText(http.StatusRequestEntityTooLarge)
	return Picture{}, e
}

// put sends a picture through the service. sum is its MD5, or empty if it can be read only once.
func (c *Client) put(ctx context.Context, user string, src content, sum string, opts PutOptions) (p Picture, err error) {
	var text []byte
	unknown := false // outcome of an earlier try
	found := false   // the picture, which an earlier try has stored
	err = c.retry(ctx, func() (again bool, err error) {
		header, b := opts.header(), src.body(0, src.size, opts.Progress)
		header.Set("Expect", "100-continue") // the service may reject the request before the body is sent
		if sum != "" {
			header.Set("Content-MD5", sum)
		}
		text, err = c.change(ctx, http.MethodPut, catPath(user), header, b)
		e, ok := errors.AsType[*Error](err)
		if !ok {
			return false, err
		}
		started := b.stop()
		unknown = unknown || e.Outcome == OutcomeUnknown
		switch {
		case e.Code == "precondition_failed" && unknown: // perhaps an earlier try has replaced the picture of the precondition
			if getErr := c.readOnce(ctx, http.MethodGet, catPath(user), &p); getErr == nil && p.Size == src.size && p.md5() == sum {
				p.URL, p.ExpiresAt, found = "", time.Time{}, true
				return false, nil
			}
		case e.Outcome == OutcomeStored && (opts.Create || opts.IfMatch != ""): // the damaged picture does not meet the precondition
			return false, err
		}
		return src.once == nil || !started, err
	})
	if err != nil || found {
		return p, err
	}
	return decodeStored(text)
}

// decodeStored returns the metadata of a picture that was stored.
func decodeStored(text []byte) (p Picture, err error) {
	err = json.Unmarshal(text, &p)
	if err == nil && p.URL != "" {
		_, err = parseURL("picture_url", p.URL)
	}
	if err != nil {
		err = newError(CodeUnexpectedResponse, "the picture is stored, but the response is not as documented: %v", err)
	}
	return p, err
}

// Delete deletes the picture of user. If ifMatch is not empty, it does so only if the picture has this ETag.
//
// Delete does not repeat a request of unknown outcome, because another client may have stored another picture by then.
func (c *Client) Delete(ctx context.Context, user, ifMatch string) error {
	return c.retry(ctx, func() (bool, error) {
		_, err := c.change(ctx, http.MethodDelete, catPath(user), PutOptions{IfMatch: ifMatch}.header(), nil)
		e, ok := errors.AsType[*Error](err)
		return ok && e.Outcome != OutcomeUnknown, err
	})
}
