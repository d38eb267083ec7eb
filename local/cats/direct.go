package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	parallel   = 4                // blocks on their way at once
	digestSize = 256 << 20        // up to which storage compares the MD5 of all of it
	ticketSpan = 2 * time.Hour    // after which no ticket is any good
	ticketLeft = 10 * time.Second // less than this of a ticket is not worth going on with
)

// ticket is the service's leave to send one picture straight to storage.
type ticket struct {
	ID        string    `json:"id"`
	UploadURL string    `json:"upload_url"`
	ExpiresAt time.Time `json:"expires_at"`
	BlockSize int64     `json:"block_size"`
}

// putDirect sends a file straight to storage and has it made the picture. Where an
// earlier command has begun with the same file, it goes on from there, and begins anew
// only when the ticket turns out to be no good any more.
//
// The upload URL, remembered or new, must be at storage, the origin that the service names: a changed upload URL must
// not receive the picture.
func (c *client) putDirect(ctx context.Context, user string, src *source, to conditions, storage string, bar *progress) (json.RawMessage, error) {
	u := &upload{client: c, user: user, src: src, storageOrigin: storage, bar: bar, memory: remember(c.base, user, src)}
	defer u.memory.close()
	if u.memory.has() && checkOrigin(u.memory.ticket.UploadURL, storage) != nil {
		u.memory.forget()
	}
	for {
		resumed := u.memory.has()
		answer, err := u.run(ctx, to)
		f, ok := errors.AsType[*failure](err)
		switch {
		case err == nil:
			u.memory.forget()
			return answer, nil
		case !ok:
			return nil, err
		}
		gone := f.Code == "no_such_upload" || f.Code == "storage" && f.Status == http.StatusForbidden
		switch {
		case gone && resumed:
			bar.add(-u.sent())
			u.memory.forget()
			c.notice("what was sent before is no good any more (%s): beginning anew", f.Detail)
			continue
		case gone && time.Now().After(u.memory.ticket.ExpiresAt):
			f.Detail = "the upload took longer than its ticket lives, until " + clock(u.memory.ticket.ExpiresAt)
			f.exit = exitOther
			u.memory.forget()
		case gone || f.exit == exitRefused:
			u.memory.forget()
		case f.Code == "precondition_failed" && u.memory.file != nil:
			f.advise("the uploaded bytes are kept until " + clock(u.memory.ticket.ExpiresAt) + ": the command with another condition, or none, need not send it again")
		case u.memory.file != nil && u.memory.has() && (u.memory.ticket.BlockSize > 0 || u.sent() > 0):
			f.advise(fmt.Sprintf("%d bytes of %d have been sent, and the same command goes on from there until %s", u.sent(), src.size, clock(u.memory.ticket.ExpiresAt)))
		default: // nothing of it is of use to another command
			u.memory.forget()
			if f.Code == "interrupted" {
				f.advise("the same command begins anew")
			}
		}
		return nil, err
	}
}

func clock(t time.Time) string { return t.Local().Format("15:04:05") }

// upload is one picture on its way to storage.
type upload struct {
	*client
	user          string
	src           *source
	storageOrigin string
	bar           *progress
	memory        *memory
}

// block returns the size of a block: of the whole picture where it is sent in one piece.
func (u *upload) block() int64 {
	if size := u.memory.ticket.BlockSize; size > 0 {
		return size
	}
	return u.src.size
}

// sent is how many bytes storage has.
func (u *upload) sent() (bytes int64) {
	u.memory.mu.Lock()
	defer u.memory.mu.Unlock()
	for n := range u.memory.done {
		bytes += min(u.block(), u.src.size-n*u.block())
	}
	return bytes
}

// run sends what storage does not have yet, and asks for the commit.
func (u *upload) run(ctx context.Context, to conditions) (answer json.RawMessage, err error) {
	if !u.memory.has() {
		if err := u.retry(ctx, u.bar, func() error {
			var t ticket
			_, err := u.read(ctx, http.MethodPost, catPath(u.user)+"/upload?size="+strconv.FormatInt(u.src.size, 10), &t)
			if err == nil {
				err = checkOrigin(t.UploadURL, u.storageOrigin)
			}
			if err == nil {
				u.memory.begin(t)
			}
			return err
		}); err != nil {
			return nil, err
		}
	}
	u.bar.add(u.sent())
	if u.memory.ticket.BlockSize > 0 {
		err = u.blocks(ctx)
	} else {
		err = u.onePiece(ctx)
	}
	if err == nil {
		err = u.src.unchanged()
	}
	if err != nil {
		if errors.Is(err, errShorter) {
			u.memory.forget()
		}
		return nil, err
	}
	path := catPath(u.user) + "/upload/" + url.PathEscape(u.memory.ticket.ID) + "/commit"
	if u.src.size <= digestSize {
		sum, err := u.src.sum(0, u.src.size)
		if err != nil {
			return nil, err
		}
		path += "?content_md5=" + url.QueryEscape(base64.StdEncoding.EncodeToString(sum))
	}
	err = u.retry(ctx, u.bar, func() (err error) { // asked again, it says the same
		answer, err = u.change(ctx, http.MethodPost, path, to.header(), payload{})
		return err
	})
	return answer, err
}

// part sends one part of the picture, as often as it takes.
func (u *upload) part(ctx context.Context, target string, header http.Header, n int64, accept func(*failure) bool) error {
	at := n * u.block()
	size := min(u.block(), u.src.size-at)
	sum, err := u.src.sum(at, size)
	if err != nil {
		return err
	}
	tried := false
	if err := u.retry(ctx, u.bar, func() error {
		h := header.Clone()
		h.Set("Content-MD5", base64.StdEncoding.EncodeToString(sum))
		body := &counted{r: u.src.part(at, size), p: u.bar}
		resp, err := u.storage(ctx, http.MethodPut, target, h, payload{body, size})
		if err == nil {
			return resp.Body.Close()
		}
		if f, ok := errors.AsType[*failure](err); ok && tried && accept != nil && accept(f) {
			return nil
		}
		tried = true
		body.again()
		return err
	}); err != nil {
		return err
	}
	u.memory.mark(n)
	return nil
}

// onePiece sends it in one request, which replaces nothing: that it is refused is what
// happens where an earlier one has got through, and the commit tells.
func (u *upload) onePiece(ctx context.Context) error {
	if u.memory.marked(0) {
		return nil
	}
	return u.part(ctx, u.memory.ticket.UploadURL, http.Header{"X-Ms-Blob-Type": {"BlockBlob"}}, 0, func(f *failure) bool {
		return f.Status == http.StatusForbidden || f.Status == http.StatusConflict
	})
}

// blocks sends those that storage does not have, and then their list.
func (u *upload) blocks(ctx context.Context) error {
	list := struct {
		XMLName xml.Name `xml:"BlockList"`
		Latest  []string
	}{}
	sending, each := errgroup.WithContext(ctx)
	sending.SetLimit(parallel)
	for n := range (u.src.size + u.block() - 1) / u.block() {
		id := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%08d", n))
		list.Latest = append(list.Latest, id)
		if u.memory.marked(n) || each.Err() != nil {
			continue
		}
		sending.Go(func() error {
			return u.part(each, u.memory.ticket.UploadURL+"&comp=block&blockid="+url.QueryEscape(id), http.Header{}, n, nil)
		})
	}
	if err := sending.Wait(); err != nil {
		return err
	}
	if ctx.Err() != nil { // between two blocks
		return found(exitOther, "interrupted", "Interrupted", "interrupted")
	}
	body, err := xml.Marshal(list)
	if err != nil {
		panic(err) // our own type
	}
	return u.retry(ctx, u.bar, func() error {
		resp, err := u.storage(ctx, http.MethodPut, u.memory.ticket.UploadURL+"&comp=blocklist", http.Header{}, payload{bytes.NewReader(body), int64(len(body))})
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
}

// memory is what a later command has to know of an upload: its ticket, and which blocks
// storage has. It is a file of the user's alone, since the ticket's URL is a credential
// for that one blob: a line of JSON, and then a line with the number of each block.
// Without a file (of stdin, or where none can be made, or while another command is at
// it), it ends with the command.
type memory struct {
	file *os.File
	of   remembered

	mu     sync.Mutex
	ticket ticket
	done   map[int64]bool
}

// remembered says which upload a memory is of.
type remembered struct {
	Server   string `json:"server"`
	User     string `json:"user"`
	Path     string `json:"path"`
	Size     int64  `json:"size"`
	Modified int64  `json:"modified"` // in nanoseconds
}

// firstLine is that of the file.
type firstLine struct {
	remembered
	ticket
}

// remember returns what is known of the upload of src, which may be nothing.
func remember(server, user string, src *source) *memory {
	m := &memory{of: remembered{server, user, src.path, src.size, src.modified.UnixNano()}, done: map[int64]bool{}}
	cache, err := os.UserCacheDir()
	if src.path == "" || err != nil {
		return m
	}
	dir := filepath.Join(cache, "cats")
	if os.MkdirAll(dir, 0o700) != nil {
		return m
	}
	forgetOld(dir)
	sum := sha256.Sum256([]byte(server + "\x00" + user + "\x00" + src.path))
	f, err := os.OpenFile(filepath.Join(dir, hex.EncodeToString(sum[:16])+".upload"), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600) //nolint:gosec // of the user's own cache
	if err != nil {
		return m
	}
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		_ = f.Close()
		return m
	}
	m.file = f
	if !m.recall() {
		m.ticket, m.done = ticket{}, map[int64]bool{}
	}
	return m
}

// recall reads the file, and reports whether it is of this very upload and still good.
func (m *memory) recall() bool {
	text, err := io.ReadAll(m.file)
	if err != nil {
		return false
	}
	whole := bytes.LastIndexByte(text, '\n') + 1 // a command may have ended within a line
	if m.file.Truncate(int64(whole)) != nil {
		return false
	}
	head, rest, _ := strings.Cut(string(text[:whole]), "\n")
	var first firstLine
	if json.Unmarshal([]byte(head), &first) != nil || first.remembered != m.of || time.Until(first.ExpiresAt) < ticketLeft {
		return false
	}
	m.ticket = first.ticket
	for line := range strings.Lines(rest) {
		if n, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64); err == nil {
			m.done[n] = true
		}
	}
	return true
}

func (m *memory) has() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ticket.ID != ""
}

// begin keeps a new ticket, with nothing sent.
func (m *memory) begin(t ticket) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ticket, m.done = t, map[int64]bool{}
	if m.file == nil {
		return
	}
	line, err := json.Marshal(firstLine{m.of, t})
	if err != nil {
		panic(err) // our own type
	}
	if err := m.file.Truncate(0); err == nil {
		m.write(string(line))
	}
}

// mark keeps that storage has a block.
func (m *memory) mark(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done[n] = true
	if m.file != nil {
		m.write(strconv.FormatInt(n, 10))
	}
}

func (m *memory) marked(n int64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.done[n]
}

// write keeps a line. What cannot be kept is sent again one day.
func (m *memory) write(line string) { _, _ = m.file.WriteString(line + "\n") }

// forget drops what is known; without a ticket, close removes the file.
func (m *memory) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ticket, m.done = ticket{}, map[int64]bool{}
}

func (m *memory) close() {
	if m.file == nil {
		return
	}
	if !m.has() {
		_ = os.Remove(m.file.Name()) // where it stays, its ticket is refused
	}
	_ = m.file.Close()
}

// forgetOld removes what nobody has come back to.
func forgetOld(dir string) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, f := range files {
		if info, err := f.Info(); err == nil && strings.HasSuffix(f.Name(), ".upload") && time.Since(info.ModTime()) > ticketSpan {
			_ = os.Remove(filepath.Join(dir, f.Name())) // the next time, then
		}
	}
}
