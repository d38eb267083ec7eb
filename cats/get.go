package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"cats.example/cats/client"
)

// extensions are the file name extensions of each media type; new names get the first.
var extensions = map[string][]string{
	"image/jpeg":          {".jpg", ".jpeg"},
	"image/png":           {".png"},
	"image/gif":           {".gif"},
	"image/webp":          {".webp"},
	"image/avif":          {".avif"},
	"image/heic":          {".heic", ".heif", ".hif"},
	"image/heif":          {".heif", ".heic", ".hif"},
	"image/heic-sequence": {".heics", ".heifs", ".heic", ".heif", ".hif"},
	"image/heif-sequence": {".heifs", ".heics", ".heif", ".heic", ".hif"},
}

// fileName returns the name of a file in the current directory for the picture of user.
func fileName(user, mediaType string) (string, error) {
	name := user
	if of := extensions[mediaType]; of != nil {
		if ext := filepath.Ext(name); ext == name || !slices.Contains(of, strings.ToLower(ext)) {
			name += of[0]
		}
	}
	if filepath.Base(name) != name {
		return "", errors.New("the user's name cannot be a file name: give the name of a FILE")
	}
	return name, nil
}

// url prints a signed URL of user's picture.
func (a *app) url(ctx context.Context, user string, opts client.LinkOptions) error {
	p, err := a.client.Link(ctx, user, opts)
	if err != nil {
		return err
	}
	if a.json {
		a.print(p)
	} else {
		fmt.Println(escape(p.URL))
	}
	return nil
}

// errTerminal is returned for a picture that would be written to a terminal, because its bytes could control the terminal.
var errTerminal = errors.New("the picture would be written to a terminal: redirect stdout, or give the name of a FILE")

// get downloads the picture of user to path: "-" is stdout, and "" a file with the user's name.
func (a *app) get(ctx context.Context, user, path string, force bool) error {
	switch {
	case path == "-" && a.json:
		return errors.New("--json and the picture cannot both be on stdout")
	case path == "-" && term.IsTerminal(int(os.Stdout.Fd())):
		return errTerminal
	}
	if err := checkFree(path, force); err != nil {
		return err
	}
	p, err := a.client.Link(ctx, user, client.LinkOptions{})
	if err != nil {
		return err
	}
	if path == "" {
		if path, err = fileName(user, p.ContentType); err == nil {
			err = checkFree(path, force)
		}
		if err != nil {
			return err
		}
	}
	out, err := openTarget(path, force)
	if err != nil {
		return err
	}
	a.bar = a.newBar(user, p.Size)
	err = out.finish(a.client.Download(ctx, p, out, a.advance))
	a.removeBar()
	if err != nil || out.path == "" {
		return err
	}
	if a.json {
		p.URL, p.ExpiresAt = "", time.Time{}
		a.print(struct {
			client.Picture
			File string `json:"file"`
		}{p, out.path})
	}
	a.result("%s: %s, %d bytes, etag %s", out.path, p.ContentType, p.Size, p.ETag)
	return nil
}

// target is the file of a download.
type target struct {
	*os.File        // temporary if path is set
	path     string // the name after a success; empty for stdout and special files
	force    bool
}

func openTarget(path string, force bool) (*target, error) {
	if path == "-" {
		return &target{File: os.Stdout}, nil
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() { // such as /dev/null, or a named pipe
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return nil, fileError(err)
		}
		if term.IsTerminal(int(f.Fd())) {
			return nil, errTerminal
		}
		return &target{File: f}, nil
	}
	if linked, err := filepath.EvalSymlinks(path); err == nil {
		path = linked
	}
	temporary := filepath.Join(filepath.Dir(path), ".cats-"+rand.Text()+".part")
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, fileError(err)
	}
	return &target{f, path, force}, nil
}

// Write implements [io.Writer]. It returns file errors.
func (t *target) Write(p []byte) (int, error) {
	n, err := t.File.Write(p)
	if err != nil {
		err = fileError(err)
	}
	return n, err
}

// finish closes the file after a download that returned err. It gives a complete file its name, and removes any other.
func (t *target) finish(err error) error {
	if closeErr := t.Close(); err == nil && closeErr != nil {
		err = fileError(closeErr)
	}
	if t.path == "" {
		return err
	}
	//lint:ignore errcheck the file does not exist after a success
	defer os.Remove(t.Name())
	if err == nil && !t.force {
		err = claim(t.path)
	}
	if err != nil {
		return err
	}
	if err := os.Rename(t.Name(), t.path); err != nil {
		return fileError(err)
	}
	return nil
}

// claim creates an empty file at path, so that a rename to path replaces no file of another program.
func claim(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return localError("exists", path+" exists")
	} else if err != nil {
		return fileError(err)
	}
	return f.Close()
}

// checkFree returns an error if get would replace a file or directory at path, unless force is true.
func checkFree(path string, force bool) error {
	if path == "" || path == "-" || force {
		return nil
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		info, err = os.Lstat(path) // a symbolic link to nothing
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fileError(err)
	case info.Mode()&(fs.ModeDevice|fs.ModeNamedPipe) != 0:
		return nil
	case info.IsDir():
		return fileError(fmt.Errorf("%s is a directory", path))
	}
	return localError("exists", path+" exists")
}
