package web

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// file is a file in the binary. Each of its two forms takes memory from the first request on that needs it.
type file struct {
	contentType   string
	packed, plain func() []byte // with and without gzip
	hash          func() string
}

func newFile(contentType string, read func() (packed []byte)) file {
	packed := sync.OnceValue(read)
	return file{
		contentType, packed,
		sync.OnceValue(func() []byte { return unpack(packed()) }),
		sync.OnceValue(func() string {
			sum := sha256.Sum256(packed())
			return hex.EncodeToString(sum[:12])
		}),
	}
}

// unpack returns the content of a gzip file in the binary.
func unpack(packed []byte) []byte {
	plain := make([]byte, binary.LittleEndian.Uint32(packed[len(packed)-4:])) // RFC 1952 section 2.3.1
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err == nil {
		_, err = io.ReadFull(r, plain)
	}
	if err != nil {
		panic(err) // the file is part of the binary
	}
	return plain
}

func content(from fs.FS, name string) []byte {
	b, err := fs.ReadFile(from, name)
	if err != nil {
		panic(err) // it is embedded
	}
	return b
}

// packed returns what packs a file.
func packed(from fs.FS, name string) func() []byte {
	return func() []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write(content(from, name)) // to memory
		_ = w.Close()
		return b.Bytes()
	}
}

// asPacked returns what reads a file that is packed already.
func asPacked(from fs.FS, name string) func() []byte {
	return func() []byte { return content(from, name) }
}

// get answers with the file. Browsers must revalidate it, since its name has no version.
func (f file) get(w http.ResponseWriter, r *http.Request) error {
	return f.under(w, r, f.hash())
}

// getUnder is get under a policy of its own, which a browser keeps with the file.
func (f file) getUnder(w http.ResponseWriter, r *http.Request, policy string) error {
	w.Header().Set("Content-Security-Policy", policy)
	sum := sha256.Sum256([]byte(f.hash() + policy))
	return f.under(w, r, hex.EncodeToString(sum[:12]))
}

func (f file) under(w http.ResponseWriter, r *http.Request, hash string) error {
	etag, zipped := `"`+hash+`"`, acceptsGzip(r.Header.Values("Accept-Encoding"))
	if zipped {
		etag = `"` + hash + `-gzip"`
	}
	h := w.Header()
	h.Set("Cache-Control", "no-cache")
	h.Add("Vary", "Accept-Encoding")
	h.Set("ETag", etag)
	if matches(r.Header.Values("If-None-Match"), etag) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	body := f.plain
	if zipped {
		body = f.packed
		h.Set("Content-Encoding", "gzip")
	}
	h.Set("Content-Type", f.contentType)
	h.Set("Content-Length", strconv.Itoa(len(body())))
	_, _ = w.Write(body()) // the client is gone, and so is anyone to tell
	return nil
}

// acceptsGzip reports whether Accept-Encoding names gzip, RFC 9110 section 12.5.3.
func acceptsGzip(field []string) bool {
	for _, value := range field {
		for element := range strings.SplitSeq(value, ",") {
			name, weight, _ := strings.Cut(element, ";")
			if strings.EqualFold(strings.TrimSpace(name), "gzip") {
				q, ok := strings.CutPrefix(strings.ReplaceAll(strings.ToLower(weight), " ", ""), "q=")
				return !ok || strings.Trim(q, "0.") != ""
			}
		}
	}
	return false
}
