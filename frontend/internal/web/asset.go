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

	"github.com/gorilla/mux"
)

// asset is a file that is embedded in the binary. Each of its two forms uses memory from the first request that needs it.
type asset struct {
	contentType    string
	plain, gzipped func() []byte
	hash           func() [sha256.Size]byte // of gzipped
}

// newAsset returns the file called name. Its name ends in .gz if it is already compressed.
func newAsset(contentType string, from fs.FS, name string) asset {
	gzipped := sync.OnceValue(func() []byte {
		content := must(fs.ReadFile(from, name))
		if strings.HasSuffix(name, ".gz") {
			return content
		}
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		must(w.Write(content))
		_ = w.Close() // writes to memory
		return b.Bytes()
	})
	return asset{
		contentType: contentType,
		plain:       sync.OnceValue(func() []byte { return must(io.ReadAll(must(gzip.NewReader(bytes.NewReader(gzipped()))))) }),
		gzipped:     gzipped,
		hash:        sync.OnceValue(func() [sha256.Size]byte { return sha256.Sum256(gzipped()) }),
	}
}

// must returns v and panics on an error: of an embedded file, or of a validated setting.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// acceptsGzip matches an Accept-Encoding that has gzip with a weight above 0 (RFC 9110 section 12.5.3).
var acceptsGzip = regexp.MustCompile(`(?i)(^|,)\s*gzip\s*(;\s*q\s*=\s*(1|0?\.0*[1-9]).*)?(,|$)`)

func (a asset) get(w http.ResponseWriter, r *http.Request) error { return a.serve(w, r, "") }

// serve writes the file. policy replaces the Content-Security-Policy of securityHeaders unless it is empty; it is part of the
// ETag, because browsers cache it with the file. They must revalidate: the file's URL has no version.
func (a asset) serve(w http.ResponseWriter, r *http.Request, policy string) error {
	hash := a.hash()
	sum := sha256.Sum256(append(hash[:], policy...))
	body, tag := a.plain, hex.AppendEncode(append(make([]byte, 0, 32), '"'), sum[:12])
	gzipped := acceptsGzip.MatchString(headerList(r.Header, "Accept-Encoding"))
	if gzipped {
		body, tag = a.gzipped, append(tag, "-gzip"...)
	}
	etag := string(append(tag, '"'))
	h := w.Header()
	if policy != "" {
		h.Set("Content-Security-Policy", policy)
	}
	h.Set("Cache-Control", "no-cache")
	h.Add("Vary", "Accept-Encoding")
	h.Set("ETag", etag)
	if matchesETag(headerList(r.Header, "If-None-Match"), etag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	if gzipped {
		h.Set("Content-Encoding", "gzip")
	}
	h.Set("Content-Type", a.contentType)
	h.Set("Content-Length", strconv.Itoa(len(body())))
	_, _ = w.Write(body()) // fails only if the client is gone
	return nil
}

// assets are files by the last segment of their path.
type assets map[string]asset

func (a assets) get(w http.ResponseWriter, r *http.Request) error {
	file, ok := a[mux.Vars(r)["file"]]
	if !ok {
		return errNoRoute
	}
	return file.get(w, r)
}
