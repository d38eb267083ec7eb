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

// asset is a file that is embedded in the binary. Its content uses memory from the first request on.
type asset struct {
	contentType string
	content     func() content
}

type content struct {
	plain, gzipped []byte
	hash           [sha256.Size]byte // of gzipped
}

// newAsset returns the file called name. Its name ends in .gz if it is already compressed.
func newAsset(contentType string, from fs.FS, name string) asset {
	return asset{contentType, sync.OnceValue(func() content {
		b := must(fs.ReadFile(from, name))
		if strings.HasSuffix(name, ".gz") {
			return content{must(io.ReadAll(must(gzip.NewReader(bytes.NewReader(b))))), b, sha256.Sum256(b)}
		}
		var gzipped bytes.Buffer
		w := gzip.NewWriter(&gzipped)
		must(w.Write(b))
		_ = w.Close() // writes to memory
		return content{b, gzipped.Bytes(), sha256.Sum256(gzipped.Bytes())}
	})}
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
	content := a.content()
	sum := sha256.Sum256(append(content.hash[:], policy...))
	body, tag := content.plain, `"`+hex.EncodeToString(sum[:12])
	gzipped := acceptsGzip.MatchString(headerList(r.Header, "Accept-Encoding"))
	if gzipped {
		body, tag = content.gzipped, tag+"-gzip"
	}
	etag := tag + `"`
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
	h.Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // fails only if the client is gone
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
