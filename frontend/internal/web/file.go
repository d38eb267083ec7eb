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

// file is one that is part of the program. It takes no memory before it is asked for.
type file struct {
	contentType string
	read        func() (packed []byte, hash string) // as gzip has it
}

func newFile(contentType string, packed func() []byte) file {
	return file{contentType, sync.OnceValues(func() ([]byte, string) {
		b := packed()
		sum := sha256.Sum256(b)
		return b, hex.EncodeToString(sum[:12])
	})}
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

// get answers with the file, to be kept and asked for again: its name says nothing
// of its version.
func (f file) get(w http.ResponseWriter, r *http.Request) error {
	_, hash := f.read()
	return f.under(w, r, hash)
}

// getUnder is get under a policy of its own, which a browser keeps with the file.
func (f file) getUnder(w http.ResponseWriter, r *http.Request, policy string) error {
	w.Header().Set("Content-Security-Policy", policy)
	_, hash := f.read()
	sum := sha256.Sum256([]byte(hash + policy))
	return f.under(w, r, hex.EncodeToString(sum[:12]))
}

func (f file) under(w http.ResponseWriter, r *http.Request, hash string) error {
	packed, _ := f.read()
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
	h.Set("Content-Type", f.contentType)
	if zipped {
		h.Set("Content-Encoding", "gzip")
		h.Set("Content-Length", strconv.Itoa(len(packed)))
		_, _ = w.Write(packed) // the client is gone, and so is anyone to tell
		return nil
	}
	size := binary.LittleEndian.Uint32(packed[len(packed)-4:]) // RFC 1952 section 2.3.1
	h.Set("Content-Length", strconv.FormatUint(uint64(size), 10))
	if r.Method == http.MethodHead {
		return nil
	}
	plain, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return err
	}
	_, _ = io.Copy(w, plain) //nolint:gosec // it is our own, and not large
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
