package main

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // what storage and Content-MD5 have
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/term"

	"cats.example/shared/picture"
)

// cat is what the service says of a picture.
type cat struct {
	Owner struct {
		Name string `json:"name"`
	} `json:"owner"`
	PictureURL  string `json:"picture_url,omitempty"`
	ETag        string `json:"etag"`
	ContentType string `json:"content_type"`
	Size        int64  `json:"size"`
	MD5         []byte `json:"content_md5,omitempty"`
	File        string `json:"file,omitempty"` // where the command has put it
}

// source is a picture to be stored.
type source struct {
	file     *os.File
	path     string // absolute; "" of stdin
	start    int64  // where it begins in file
	size     int64  // -1 of a pipe, which can be read once
	modified time.Time
}

func openSource(path string) (*source, error) {
	s := &source{file: os.Stdin, size: -1}
	if path != "-" {
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, fileFailure(err)
		}
		if s.file, err = os.Open(path); err != nil { //nolint:gosec // which the user names
			return nil, fileFailure(err)
		}
		s.path = abs
	}
	info, err := s.file.Stat()
	switch {
	case err != nil:
		return nil, fileFailure(err)
	case info.IsDir():
		return nil, fileFailure(fmt.Errorf("%s is a folder", path))
	case !info.Mode().IsRegular():
		s.path = ""
		return s, nil
	}
	if s.start, err = s.file.Seek(0, io.SeekCurrent); err != nil { // stdin may have been read from
		return nil, fileFailure(err)
	}
	s.size, s.modified = max(0, info.Size()-s.start), info.ModTime()
	return s, nil
}

// part returns n bytes from at on.
func (s *source) part(at, n int64) io.Reader { return io.NewSectionReader(s.file, s.start+at, n) }

// sum returns the MD5 of a part.
func (s *source) sum(at, n int64) ([]byte, error) {
	h := md5.New() //nolint:gosec // against accidents
	if m, err := io.Copy(h, s.part(at, n)); err != nil {
		return nil, fileFailure(err)
	} else if m != n {
		return nil, errShorter
	}
	return h.Sum(nil), nil
}

var errShorter = found(exitOther, "file", "File", "the file changed while it was being sent")

// unchanged is nil while the file is the one that was opened.
func (s *source) unchanged() error {
	info, err := s.file.Stat()
	if err != nil {
		return fileFailure(err)
	}
	if info.Size()-s.start != s.size || !info.ModTime().Equal(s.modified) {
		return errShorter
	}
	return nil
}

// put stores a picture: through the service, or straight in storage where it is larger
// than the service takes.
func (c *client) put(ctx context.Context, user, path string, to conditions) error {
	src, err := openSource(path)
	if err != nil {
		return err
	}
	defer src.file.Close()
	bar := c.newProgress(user, src.size)
	defer bar.close()
	var answer json.RawMessage
	if src.size < 0 {
		answer, err = c.putPipe(ctx, user, src, to, bar)
	} else {
		answer, err = c.putFile(ctx, user, src, to, bar)
	}
	bar.close()
	if err != nil {
		return err
	}
	return c.stored(answer)
}

// stored says what the service says of a picture that is stored.
func (c *client) stored(answer json.RawMessage) error {
	var p cat
	if err := json.Unmarshal(answer, &p); err != nil {
		return found(exitOther, "unexpected_answer", "Unexpected answer", "the picture is stored, but the answer makes no sense: "+err.Error())
	}
	link := map[string]any{"picture_url": nil}
	if p.PictureURL != "" {
		if _, err := parseLink("picture_url", p.PictureURL); err != nil {
			if f, ok := errors.AsType[*failure](err); ok {
				f.Detail = "the picture is stored, but " + f.Detail
			}
			return err
		}
		link["picture_url"] = p.PictureURL
	}
	if c.json {
		c.print(withFields(answer, link))
	}
	c.result("%s: %s, %d bytes, etag %s", p.Owner.Name, p.ContentType, p.Size, p.ETag)
	return nil
}

// early has the service refuse a picture, where it does, before it is sent.
func early(to conditions) http.Header {
	h := to.header()
	h.Set("Expect", "100-continue")
	return h
}

// putPipe sends what can be read once, so that it is sent again only where nothing of
// it was asked for.
func (c *client) putPipe(ctx context.Context, user string, src *source, to conditions, bar *progress) (answer json.RawMessage, err error) {
	body := &counted{r: src.file, p: bar}
	err = c.retry(ctx, bar, func() (err error) {
		answer, err = c.change(ctx, http.MethodPut, catPath(user), early(to), payload{body, -1})
		if f, ok := errors.AsType[*failure](err); ok && body.took.Load() > 0 {
			f.again = false
		}
		return err
	})
	return answer, err
}

func (c *client) putFile(ctx context.Context, user string, src *source, to conditions, bar *progress) (json.RawMessage, error) {
	var about struct {
		MaxPicture int64  `json:"max_picture_size"`
		MaxDirect  int64  `json:"max_direct_size"`
		Storage    string `json:"storage_origin"`
	}
	if err := c.retry(ctx, bar, func() error {
		_, err := c.read(ctx, http.MethodGet, "/about", &about)
		return err
	}); err != nil {
		return nil, err
	}
	switch {
	case src.size <= about.MaxPicture:
		return c.putThrough(ctx, user, src, to, bar)
	case src.size <= about.MaxDirect:
		return c.putDirect(ctx, user, src, to, about.Storage, bar)
	}
	f := found(exitRefused, "too_large", http.StatusText(http.StatusRequestEntityTooLarge),
		fmt.Sprintf("the picture has %d bytes, and %s takes %d at most", src.size, c.base, max(about.MaxPicture, about.MaxDirect)))
	f.Status = http.StatusRequestEntityTooLarge
	return nil, f
}

// putThrough sends a file through the service.
func (c *client) putThrough(ctx context.Context, user string, src *source, to conditions, bar *progress) (answer json.RawMessage, err error) {
	sum, err := src.sum(0, src.size)
	if err != nil {
		return nil, err
	}
	unknown := false // an earlier try may have stored it
	err = c.retry(ctx, bar, func() (err error) {
		body := &counted{r: src.part(0, src.size), p: bar}
		header := early(to)
		header.Set("Content-MD5", base64.StdEncoding.EncodeToString(sum))
		if answer, err = c.change(ctx, http.MethodPut, catPath(user), header, payload{body, src.size}); err == nil {
			return nil
		}
		body.again()
		f, ok := errors.AsType[*failure](err)
		if !ok {
			return err
		}
		unknown = unknown || f.Outcome == outcomeUnknown
		switch {
		case f.Code == "precondition_failed" && unknown:
			// The picture that the condition speaks of was replaced, by that try perhaps.
			var is cat
			got, readErr := c.read(ctx, http.MethodGet, catPath(user), &is)
			if readErr == nil && is.Size == src.size && string(is.MD5) == string(sum) {
				answer, err = withoutLink(got), nil
			}
			return err
		case f.Outcome == outcomeStored:
			f.exit = exitLater
			if f.again = to == (conditions{}); !f.again {
				f.advise("leave out --create and --if-match then")
			}
		case f.again:
			if changed := src.unchanged(); changed != nil {
				return changed
			}
		case f.Code == "interrupted":
			f.advise("the same command begins anew")
		}
		return err
	})
	return answer, err
}

// withoutLink returns the response to GET /cat/{user} as the response to an upload, which has no signed URL.
func withoutLink(answer json.RawMessage) json.RawMessage {
	return withFields(answer, map[string]any{"picture_url": nil, "expires_at": nil})
}

// withFields returns the JSON object with other values of fields, without those that are nil. It removes keys that equal one of
// fields but for case: encoding/json has read the last of them, and other programs read another.
func withFields(object json.RawMessage, fields map[string]any) json.RawMessage {
	var all map[string]any
	decoder := json.NewDecoder(bytes.NewReader(object))
	decoder.UseNumber()
	if err := decoder.Decode(&all); err != nil {
		return object // not an object
	}
	for name, value := range fields {
		maps.DeleteFunc(all, func(key string, _ any) bool { return strings.EqualFold(key, name) })
		if value != nil {
			all[name] = value
		}
	}
	b, err := json.Marshal(all)
	if err != nil {
		panic(err) // it was JSON before
	}
	return b
}

// get fetches a picture into the file at path; "-" is stdout, and "" a file called
// after the user. What was there stays unless force is true.
func (c *client) get(ctx context.Context, user, path string, force bool) error {
	switch {
	case path == "-" && c.json:
		return errors.New("--json and the picture cannot both be on stdout")
	case path == "-" && term.IsTerminal(int(os.Stdout.Fd())):
		return errTerminal
	}
	if path != "" && path != "-" && !force {
		if err := isFree(path); err != nil {
			return err // before anything is fetched
		}
	}
	var is cat
	if err := c.retry(ctx, nil, func() error {
		_, err := c.read(ctx, http.MethodGet, catPath(user), &is)
		return err
	}); err != nil {
		return err
	}
	if path == "" {
		if path, _ = picture.WithExtension(user, is.ContentType); filepath.Base(path) != path {
			return errors.New("no file can be called after this user: name one")
		}
		if !force {
			if err := isFree(path); err != nil {
				return err
			}
		}
	}
	bar := c.newProgress(user, is.Size)
	defer bar.close()
	if path == "-" {
		return c.fetch(ctx, user, is, os.Stdout, bar)
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() { // such as /dev/null
		f, err := os.OpenFile(path, os.O_WRONLY, 0) //nolint:gosec // which the user names
		if err != nil {
			return fileFailure(err)
		}
		defer f.Close()
		if term.IsTerminal(int(f.Fd())) {
			return errTerminal
		}
		return c.fetch(ctx, user, is, f, bar)
	}
	if to, err := filepath.EvalSymlinks(path); err == nil {
		path = to
	}
	temporary := filepath.Join(filepath.Dir(path), ".cats-"+rand.Text()+".part")
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666) //nolint:gosec // as the umask has it
	if err != nil {
		return fileFailure(err)
	}
	defer os.Remove(temporary) //nolint:errcheck // it is gone where all went well
	err = c.fetch(ctx, user, is, f, bar)
	if closeErr := f.Close(); err == nil && closeErr != nil {
		err = fileFailure(closeErr)
	}
	if err == nil {
		err = place(temporary, path, force)
	}
	if err != nil {
		return err
	}
	bar.close()
	if c.json {
		is.PictureURL, is.File = "", path
		c.print(is)
	}
	c.result("%s: %s, %d bytes, etag %s", path, is.ContentType, is.Size, is.ETag)
	return nil
}

// errTerminal is returned for a picture that would be written to a terminal, which could be controlled by its bytes.
var errTerminal = errors.New("the picture would go to a terminal: redirect stdout, or name a file")

// isFree is nil when get may make a file at path.
func isFree(path string) error {
	info, err := os.Lstat(path)
	if to, statErr := os.Stat(path); statErr == nil {
		info = to // /dev/stdout is a link
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fileFailure(err)
	case info.Mode()&(fs.ModeDevice|fs.ModeNamedPipe) != 0:
		return nil // nothing is lost
	case info.IsDir():
		return fileFailure(fmt.Errorf("%s is a folder", path))
	}
	f := found(exitCondition, "exists", "Exists", path+" is there already")
	f.hint = "--force replaces it"
	return f
}

// place gives a file that is whole its name.
func place(temporary, path string, force bool) error {
	if !force {
		err := os.Link(temporary, path) // as nothing else, it replaces nothing
		switch {
		case err == nil:
			return nil
		case errors.Is(err, fs.ErrExist):
			return errors.Join(isFree(path), fileFailure(err))
		}
		if err := isFree(path); err != nil { // a file system without links
			return err
		}
	}
	if err := os.Rename(temporary, path); err != nil {
		return fileFailure(err)
	}
	return nil
}

// fetch writes the picture that is says to out, and goes on where a try has broken off.
// It fails unless what has arrived is what is stored.
func (c *client) fetch(ctx context.Context, user string, is cat, out io.Writer, bar *progress) error {
	d := download{to: out, sum: md5.New(), bar: bar} //nolint:gosec // against accidents
	first := true
	err := c.retry(ctx, bar, func() error {
		now := is
		if !first { // the link may have ended
			if _, err := c.read(ctx, http.MethodGet, catPath(user), &now); err != nil {
				return err
			}
			if now.ETag != is.ETag {
				return found(exitCondition, "conflict", "Conflict", "the picture was replaced while it was being fetched")
			}
		}
		first = false
		return c.rest(ctx, now, &d)
	})
	if err != nil {
		return err
	}
	if d.at != is.Size || is.MD5 != nil && string(d.sum.Sum(nil)) != string(is.MD5) {
		return found(exitOther, "digest_mismatch", "Digest mismatch", fmt.Sprintf("what arrived is not the picture: %d bytes of %d, or others", d.at, is.Size))
	}
	return nil
}

// download is how much of a picture has arrived.
type download struct {
	to  io.Writer
	sum hash.Hash
	at  int64
	bar *progress
}

// Write implements [io.Writer]; its errors are failures, of the file.
func (d *download) Write(p []byte) (int, error) {
	n, err := d.to.Write(p)
	d.at += int64(n)
	d.sum.Write(p[:n])
	d.bar.add(int64(n))
	if err != nil {
		return n, fileFailure(err)
	}
	return n, nil
}

// rest fetches what has not arrived yet.
func (c *client) rest(ctx context.Context, is cat, d *download) error {
	if _, err := parseLink("picture_url", is.PictureURL); err != nil {
		return err
	}
	header, want := http.Header{"If-Match": {is.ETag}}, http.StatusOK
	if d.at > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", d.at))
		want = http.StatusPartialContent
	}
	resp, err := c.storage(ctx, http.MethodGet, is.PictureURL, header, payload{})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		return found(exitOther, "storage", "Storage", "storage answers "+resp.Status)
	}
	_, err = io.Copy(d, io.LimitReader(resp.Body, is.Size-d.at+1))
	if _, ok := errors.AsType[*failure](err); err == nil || ok {
		return err
	}
	return broken(ctx, resp.Request.URL, err)
}

// link prints a signed link.
func (c *client) link(ctx context.Context, user, ttl, download string) error {
	query := url.Values{}
	if ttl != "" {
		query.Set("ttl", ttl)
	}
	if download != "" {
		query.Set("download", download)
	}
	path := catPath(user)
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	var is cat
	return c.retry(ctx, nil, func() error {
		answer, err := c.read(ctx, http.MethodGet, path, &is)
		if err == nil {
			_, err = parseLink("picture_url", is.PictureURL)
		}
		switch {
		case err != nil:
			return err
		case c.json:
			c.print(withFields(answer, map[string]any{"picture_url": is.PictureURL}))
		default:
			fmt.Println(escape(is.PictureURL))
		}
		return nil
	})
}

// remove deletes a picture. It repeats the request only if nothing was deleted: there could be another picture by then.
func (c *client) remove(ctx context.Context, user string, there conditions) error {
	err := c.retry(ctx, nil, func() error {
		_, err := c.change(ctx, http.MethodDelete, catPath(user), there.header(), payload{})
		if f, ok := errors.AsType[*failure](err); ok && f.Outcome == outcomeUnknown {
			f.again = false
		}
		return err
	})
	if err != nil {
		return err
	}
	if c.json {
		c.print(map[string]any{"owner": map[string]string{"name": user}, "deleted": true})
	}
	c.result("%s: deleted", user)
	return nil
}
