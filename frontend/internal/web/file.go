package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"io/fs"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// file is a file in the binary. Each of its two forms takes memory from the first request on that needs it.
type file struct {
	contentType   string
	packed, plain func() []byte            // with and without gzip
	hash          func() [sha256.Size]byte // of packed
}

// newFile returns the file called name, which may have been packed already.
func newFile(contentType string, from fs.FS, name string) file {
	packed := sync.OnceValue(func() []byte {
		content := must(fs.ReadFile(from, name))
		if strings.HasSuffix(name, ".gz") {
			return content
		}
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		must(w.Write(content))
		_ = w.Close() // to memory
		return b.Bytes()
	})
	return file{
		contentType, packed,
		sync.OnceValue(func() []byte { return must(io.ReadAll(must(gzip.NewReader(bytes.NewReader(packed()))))) }),
		sync.OnceValue(func() [sha256.Size]byte { return sha256.Sum256(packed()) }),
	}
}

// must returns v. An error is one of a file that is a part of the binary, or of a setting that was checked.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// get answers with the file.
func (f file) get(w http.ResponseWriter, r *http.Request) error { return f.serve(w, r, "") }

// serve answers with the file. A policy is a Content-Security-Policy in place of the guard's, which a browser keeps with the
// file. Browsers must revalidate the file, since its name has no version.
func (f file) serve(w http.ResponseWriter, r *http.Request, policy string) error {
	hash := f.hash()
	sum := sha256.Sum256(append(hash[:], policy...))
	body, tag := f.plain, hex.AppendEncode(append(make([]byte, 0, 32), '"'), sum[:12])
	zipped := acceptsGzip.MatchString(list(r.Header, "Accept-Encoding"))
	if zipped {
		body, tag = f.packed, append(tag, "-gzip"...)
	}
	etag := string(append(tag, '"'))
	h := w.Header()
	if policy != "" {
		h.Set("Content-Security-Policy", policy)
	}
	h.Set("Cache-Control", "no-cache")
	h.Add("Vary", "Accept-Encoding")
	h.Set("ETag", etag)
	if matches(list(r.Header, "If-None-Match"), etag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	if zipped {
		h.Set("Content-Encoding", "gzip")
	}
	h.Set("Content-Type", f.contentType)
	h.Set("Content-Length", strconv.Itoa(len(body())))
	_, _ = w.Write(body()) // the client is gone, and so is anyone to tell
	return nil
}

// acceptsGzip matches an Accept-Encoding that names gzip with a weight above 0, RFC 9110 section 12.5.3.
var acceptsGzip = regexp.MustCompile(`(?i)(^|,)\s*gzip\s*(;\s*q\s*=\s*(1|0?\.0*[1-9]).*)?(,|$)`)
