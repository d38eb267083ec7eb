package client

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	parallelBlocks = 4
	maxDigestSize  = 256 << 20        // of a direct upload whose MD5 the service compares
	minRemaining   = 10 * time.Second // of a direct upload's lifetime, to resume it
)

// Upload is a direct upload: the picture goes to a staged blob in storage, which a commit makes the picture of the user. It can
// be stored as JSON and resumed by another process. It must not be used by two calls at once.
type Upload struct {
	User      string    `json:"user"`
	Size      int64     `json:"size"` // of the picture in bytes
	ID        string    `json:"id"`
	URL       string    `json:"upload_url"`           // a credential for the staged blob
	ExpiresAt time.Time `json:"expires_at"`           // of the URL
	BlockSize int64     `json:"block_size,omitempty"` // in bytes; 0 if the picture is sent in one request
	Sent      []int64   `json:"sent,omitempty"`       // numbers of the blocks that storage has, from 0; [0] after one request
}

// SentBytes returns the number of bytes that storage has.
func (u *Upload) SentBytes() (bytes int64) {
	for _, n := range u.Sent {
		bytes += min(u.block(), u.Size-n*u.block())
	}
	return bytes
}

// block returns the size of a block; one request sends the whole picture as block 0.
func (u *Upload) block() int64 {
	if u.BlockSize > 0 {
		return u.BlockSize
	}
	return u.Size
}

// startUpload starts a direct upload of a picture of size bytes. Its URL is at the origin storage.
func (c *Client) startUpload(ctx context.Context, user string, size int64, storage string) (*Upload, error) {
	u := &Upload{}
	err := c.read(ctx, http.MethodPost, catPath(user)+"/upload?size="+strconv.FormatInt(size, 10), u)
	u.User, u.Size, u.Sent = user, size, nil
	if err == nil {
		err = checkOrigin(u.URL, storage)
	}
	return u, err
}

// putDirect sends a picture directly to storage. It continues opts.Resume if possible.
func (c *Client) putDirect(ctx context.Context, user string, src content, storage string, opts PutOptions) (Picture, error) {
	u := opts.Resume
	resumed := u != nil && u.User == user && u.Size == src.size && time.Until(u.ExpiresAt) > minRemaining &&
		checkOrigin(u.URL, storage) == nil
	for {
		if !resumed {
			var err error
			if u, err = c.startUpload(ctx, user, src.size, storage); err != nil {
				return Picture{}, err
			}
			opts.Save(u)
		}
		p, err := c.continueUpload(ctx, u, src, opts)
		e, failed := errors.AsType[*Error](err)
		expired := failed && (e.Code == "no_such_upload" || e.Code == CodeStorage && e.Status == http.StatusForbidden)
		if expired && resumed {
			opts.Progress(-u.SentBytes())
			c.opts.OnRetry(e, 0)
			resumed = false
			continue
		}
		if expired && time.Now().After(u.ExpiresAt) {
			err = newError(CodeUploadExpired, "the upload took longer than its URL is valid, until %v", u.ExpiresAt.Format(time.RFC3339))
		}
		if !failed || expired || slices.Contains([]int{400, 413, 414, 415, 422}, e.Status) { // the picture is rejected
			opts.Save(nil)
		}
		return p, err
	}
}

// continueUpload sends the blocks that storage does not have, and commits the upload.
func (c *Client) continueUpload(ctx context.Context, u *Upload, src content, opts PutOptions) (Picture, error) {
	s := &sender{c: c, u: u, src: src, opts: opts}
	opts.Progress(u.SentBytes())
	var err error
	if u.BlockSize > 0 {
		err = s.blocks(ctx, slices.Clone(u.Sent))
	} else if len(u.Sent) == 0 {
		// Storage rejects a second write of the staged blob. If the first one had no response, it has arrived; the commit tells.
		err = s.block(ctx, 0, u.URL, http.Header{"X-Ms-Blob-Type": {"BlockBlob"}}, func(e *Error) bool {
			return e.Status == http.StatusForbidden || e.Status == http.StatusConflict
		})
	}
	if err != nil {
		return Picture{}, err
	}
	path := catPath(u.User) + "/upload/" + url.PathEscape(u.ID) + "/commit"
	if src.size <= maxDigestSize {
		sum, err := src.md5(0, src.size)
		if err != nil {
			return Picture{}, err
		}
		path += "?content_md5=" + url.QueryEscape(sum)
	}
	var text []byte
	if err := c.retry(ctx, func() (bool, error) { // the service repeats the result of a commit
		text, err = c.change(ctx, http.MethodPost, path, opts.header(), nil)
		e, failed := errors.AsType[*Error](err)
		return failed && e.Outcome != OutcomeStored, err
	}); err != nil {
		return Picture{}, err
	}
	return decodeStored(text)
}

// sender sends the blocks of one upload.
type sender struct {
	c    *Client
	u    *Upload
	src  content
	opts PutOptions
	mu   sync.Mutex // guards u.Sent while blocks are sent
}

// block sends block n, with retries. It ignores the errors of repeated requests for which arrived returns true.
func (s *sender) block(ctx context.Context, n int64, target string, header http.Header, arrived func(*Error) bool) error {
	offset := n * s.u.block()
	size := min(s.u.block(), s.src.size-offset)
	sum, err := s.src.md5(offset, size)
	if err != nil {
		return err
	}
	header.Set("Content-MD5", sum)
	repeated := false
	if err := s.c.retry(ctx, func() (bool, error) {
		b := s.src.body(offset, size, s.opts.Progress)
		err := s.put(ctx, target, header, b)
		if e, failed := errors.AsType[*Error](err); failed {
			if repeated && arrived(e) {
				return false, nil
			}
			b.stop()
		}
		repeated = true
		return true, err
	}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.u.Sent = append(s.u.Sent, n)
	s.opts.Save(s.u)
	return nil
}

// blocks sends all blocks but those in sent, and then their list, which makes them the staged blob.
func (s *sender) blocks(ctx context.Context, sent []int64) error {
	var list strings.Builder
	sending, each := errgroup.WithContext(ctx)
	sending.SetLimit(parallelBlocks)
	for n := range (s.src.size + s.u.BlockSize - 1) / s.u.BlockSize {
		id := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%08d", n))
		list.WriteString("<Latest>" + id + "</Latest>")
		if slices.Contains(sent, n) || each.Err() != nil {
			continue
		}
		sending.Go(func() error {
			target := s.u.URL + "&comp=block&blockid=" + url.QueryEscape(id)
			return s.block(each, n, target, http.Header{}, func(*Error) bool { return false })
		})
	}
	if err := sending.Wait(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return interruption(ctx, "")
	}
	text := "<BlockList>" + list.String() + "</BlockList>"
	return s.c.retry(ctx, func() (bool, error) {
		b := &body{r: strings.NewReader(text), size: int64(len(text)), progress: func(int64) {}}
		return true, s.put(ctx, s.u.URL+"&comp=blocklist", http.Header{}, b)
	})
}

// put sends one request to storage.
func (s *sender) put(ctx context.Context, target string, header http.Header, b *body) error {
	resp, err := s.c.storage(ctx, http.MethodPut, target, header.Clone(), b)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
