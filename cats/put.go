package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"cats.example/cats/client"
)

// source is a picture to be stored.
type source struct {
	*os.File
	path string      // absolute; empty for stdin and for special files
	size int64       // of the picture; -1 if it can be read only once
	info fs.FileInfo // when it was opened
}

// openSource opens the file at path, or stdin for "-".
func openSource(path string) (*source, error) {
	s := &source{File: os.Stdin, size: -1}
	if path != "-" {
		var err error
		if s.path, err = filepath.Abs(path); err == nil {
			s.File, err = os.Open(path)
		}
		if err != nil {
			return nil, fileError(err)
		}
	}
	var err error
	switch s.info, err = s.Stat(); {
	case err != nil:
		return nil, fileError(err)
	case s.info.IsDir():
		return nil, fileError(fmt.Errorf("%s is a directory", path))
	case !s.info.Mode().IsRegular():
		s.path = ""
		return s, nil
	}
	start, err := s.Seek(0, io.SeekCurrent) // another process may have read a part of stdin
	if err != nil {
		return nil, fileError(err)
	}
	s.size = max(0, s.info.Size()-start)
	return s, nil
}

// ReadAt implements [io.ReaderAt]. It returns an error once the file has changed.
func (s *source) ReadAt(p []byte, offset int64) (int, error) {
	info, err := s.Stat()
	if err != nil {
		return 0, fileError(err)
	}
	if info.Size() != s.info.Size() || !info.ModTime().Equal(s.info.ModTime()) {
		return 0, localError("file", "the file changed while it was being sent")
	}
	n, err := s.File.ReadAt(p, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fileError(err)
	}
	return n, err
}

// put stores the picture at path.
func (a *app) put(ctx context.Context, user, path string, opts client.PutOptions) error {
	src, err := openSource(path)
	if err != nil {
		return err
	}
	defer src.Close()
	a.bar = a.newBar(user, src.size)
	saved := openSavedUpload(a.server, user, src)
	defer saved.close()
	opts.Progress, opts.Resume, opts.Save = a.advance, saved.Upload, saved.save
	var picture io.Reader = src
	if src.size < 0 {
		picture = struct{ io.Reader }{src.File} // a device may pretend to be seekable
	}
	p, err := a.client.Put(ctx, user, picture, opts)
	a.removeBar()
	if e, ok := errors.AsType[*client.Error](err); ok {
		a.hint = putHint(e, src, saved, opts)
		return err
	}
	if a.json {
		a.print(p)
	}
	a.result("%s: %s, %d bytes, etag %s", p.Owner.Name, p.ContentType, p.Size, p.ETag)
	return nil
}

// putHint says what the user can do after an error. It forgets an upload that another command cannot continue.
func putHint(e *client.Error, src *source, saved *savedUpload, opts client.PutOptions) string {
	if u := saved.Upload; saved.file != nil && u != nil && (u.BlockSize > 0 || len(u.Sent) > 0) && e.Code != "file" {
		until := u.ExpiresAt.Local().Format(time.TimeOnly)
		if e.Code == "precondition_failed" {
			return "storage keeps the uploaded bytes until " + until + ": put with another precondition, or none, does not send them again"
		}
		return fmt.Sprintf("%d of %d bytes are uploaded; until %s the same command continues the upload", u.SentBytes(), u.Size, until)
	}
	saved.save(nil)
	switch {
	case e.Code == client.CodeInterrupted && src.size >= 0:
		return "the same command starts from the beginning"
	case e.Outcome == client.OutcomeStored && (opts.Create || opts.IfMatch != ""):
		return "to replace it, leave out --create and --if-match"
	}
	return ""
}

// rm deletes the picture of user.
func (a *app) rm(ctx context.Context, user, ifMatch string) error {
	if err := a.client.Delete(ctx, user, ifMatch); err != nil {
		return err
	}
	if a.json {
		a.print(map[string]any{"owner": map[string]string{"name": user}, "deleted": true})
	}
	a.result("%s: deleted", user)
	return nil
}

// savedUpload is a direct upload in a file of the user's cache directory, so that a later command can continue it. Only the user
// can read the file, because the upload URL is a credential for one staged blob. Without a file (stdin, no cache directory,
// another command that uses it) the upload is not saved.
type savedUpload struct {
	path string   // "" if the upload cannot be saved
	file *os.File // locked; nil until there is something to save
	savedDocument
}

// savedDocument is the content of the file. Server, path, time, and the user and size in the upload identify the picture.
type savedDocument struct {
	Server   string         `json:"server"`
	Path     string         `json:"path"`
	Modified time.Time      `json:"modified"`
	Upload   *client.Upload `json:"upload"`
}

// openSavedUpload returns the saved upload of src, or one without an upload.
func openSavedUpload(server, user string, src *source) *savedUpload {
	s := &savedUpload{savedDocument: savedDocument{server, src.path, src.info.ModTime(), nil}}
	cache, err := os.UserCacheDir()
	if err != nil || src.path == "" {
		return s
	}
	sum := sha256.Sum256([]byte(server + "\x00" + user + "\x00" + src.path))
	s.path = filepath.Join(cache, "cats", hex.EncodeToString(sum[:16])+".upload")
	var found savedDocument
	if s.open(0) && json.NewDecoder(s.file).Decode(&found) == nil &&
		found.Server == server && found.Path == src.path && found.Modified.Equal(s.Modified) {
		s.Upload = found.Upload
	}
	return s
}

// open opens and locks the file. The flag os.O_CREATE creates it.
func (s *savedUpload) open(flag int) bool {
	f, err := os.OpenFile(s.path, os.O_RDWR|flag, 0o600)
	if err != nil {
		return false
	}
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		_ = f.Close()
		s.path = ""
		return false
	}
	s.file = f
	return true
}

// save saves the upload; nil forgets it. If it cannot be saved, a later command starts from the beginning.
func (s *savedUpload) save(u *client.Upload) {
	if s.Upload = nil; u == nil || s.path == "" {
		return
	}
	if s.file == nil {
		dir := filepath.Dir(s.path)
		if os.MkdirAll(dir, 0o700) != nil {
			return
		}
		removeOld(dir)
		if !s.open(os.O_CREATE) {
			return
		}
	}
	same := *u
	same.Sent = slices.Clone(u.Sent)
	s.Upload = &same
	text, err := json.Marshal(s.savedDocument)
	if err != nil {
		return
	}
	if n, err := s.file.WriteAt(text, 0); err == nil {
		_ = s.file.Truncate(int64(n)) // a broken document is not continued
	}
}

// close unlocks the file, and removes it if there is no upload.
func (s *savedUpload) close() {
	if s.file == nil {
		return
	}
	if s.Upload == nil {
		_ = os.Remove(s.path) // its upload URL expires
	}
	_ = s.file.Close()
}

// removeOld removes the files of uploads whose URLs have expired, after at most an hour.
func removeOld(dir string) {
	names, _ := fs.Glob(os.DirFS(dir), "*.upload") // the pattern is valid
	for _, name := range names {
		if info, err := os.Stat(filepath.Join(dir, name)); err == nil && time.Since(info.ModTime()) > 2*time.Hour {
			_ = os.Remove(filepath.Join(dir, name))
		}
	}
}
