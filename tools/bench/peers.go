package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/minio/crc64nvme"
	"golang.org/x/sync/errgroup"
)

// A peer is this program in a child process, which takes its role and parameters from the environment. It exits at the end of
// its standard input.
const roleVariable = "BENCH_ROLE"

var roles = map[string]func() (http.Handler, error){
	"sink":      newSink,
	"responder": newResponder,
	"proxy":     newProxy,
}

// runPeer serves role and prints its address. It uses TLS if BENCH_CERT is set.
func runPeer(role string) error {
	if role == "flood" {
		return flood()
	}
	h, err := roles[role]()
	if err != nil {
		return err
	}
	//lint:ignore noctx Listen does not block
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	if cert := os.Getenv("BENCH_CERT"); cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, os.Getenv("BENCH_KEY"))
		if err != nil {
			return err
		}
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12})
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	server := http.Server{Handler: h, ReadHeaderTimeout: time.Minute}
	return server.Serve(l)
}

// sinkETag is the entity tag of every blob in the sink.
const sinkETag = `"0x8DCA7"`

// callKinds are the kinds of requests that the sink counts.
var callKinds = []string{"HEAD", "Put Blob", "Put Block", "Put Block List", "key", "other"}

// sink is a storage account that has every blob and discards uploads. GET /calls returns the number of requests by kind.
type sink struct {
	mu    sync.Mutex
	calls map[string]int64
}

func newSink() (http.Handler, error) { return &sink{calls: map[string]int64{}}, nil }

func (s *sink) count(kind string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[kind]++
}

func (s *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	comp := query.Get("comp")
	h := w.Header()
	switch {
	case r.Method == http.MethodGet && r.URL.Path == "/calls":
		s.mu.Lock()
		defer s.mu.Unlock()
		_ = json.NewEncoder(w).Encode(s.calls)
	case r.Method == http.MethodPost && comp == "userdelegationkey":
		s.count("key")
		writeKey(w, r)
	case r.Method == http.MethodPut:
		s.count(map[string]string{"": "Put Blob", "block": "Put Block", "blocklist": "Put Block List"}[comp])
		crc := crc64nvme.New()
		if _, err := io.Copy(crc, r.Body); err != nil {
			return
		}
		if comp != "blocklist" {
			h.Set("x-ms-content-crc64", base64.StdEncoding.EncodeToString(binary.LittleEndian.AppendUint64(nil, crc.Sum64())))
		}
		h.Set("ETag", sinkETag)
		h.Set("Last-Modified", "Tue, 01 Jan 2030 00:00:00 GMT")
		w.WriteHeader(http.StatusCreated)
	case comp == "list":
		h.Set("Content-Type", "application/xml")
		_, _ = io.WriteString(w, `<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs/><NextMarker/></EnumerationResults>`)
	case query.Get("restype") == "container":
	case r.Method == http.MethodHead && strings.Contains(r.URL.Path, stagedPrefix):
		time.Sleep(stagedDelay)
		h.Set("x-ms-error-code", "BlobNotFound")
		w.WriteHeader(http.StatusNotFound)
	case r.Method == http.MethodHead:
		s.count("HEAD")
		h.Set("ETag", sinkETag)
		h.Set("Content-Type", "image/png")
		h.Set("Content-Length", "102400")
	default:
		s.count("other")
		w.WriteHeader(http.StatusAccepted)
	}
}

// The sink has no staged blobs. It delays the 404, during which a commit keeps its slot.
const (
	stagedPrefix = "/cats-api/upload/"
	stagedDelay  = 3 * time.Second
)

func writeKey(w http.ResponseWriter, r *http.Request) {
	var requested struct{ Start, Expiry string }
	if err := xml.NewDecoder(r.Body).Decode(&requested); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/xml")
	fmt.Fprintf(w, `<?xml version="1.0" encoding="utf-8"?><UserDelegationKey><SignedOid>o</SignedOid><SignedTid>t</SignedTid>`+
		`<SignedStart>%s</SignedStart><SignedExpiry>%s</SignedExpiry><SignedService>b</SignedService><SignedVersion>2024-11-04</SignedVersion><Value>a2V5</Value></UserDelegationKey>`,
		requested.Start, requested.Expiry)
}

// newResponder returns a server that responds with BENCH_SIZE bytes, as the signer does to a GET.
func newResponder() (http.Handler, error) {
	n, err := strconv.Atoi(os.Getenv("BENCH_SIZE"))
	body := bytes.Repeat([]byte("x"), n)
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body) // the client may have left
	}), err
}

// newProxy returns a server that forwards requests to BENCH_NEXT. It is the minimum that a container has to do. Its transport
// keeps enough idle connections; the default is two.
func newProxy() (http.Handler, error) {
	next := os.Getenv("BENCH_NEXT")
	client := &http.Client{Transport: &http.Transport{
		MaxIdleConnsPerHost: 512, DisableCompression: true,
		WriteBufferSize: 64 << 10, ReadBufferSize: 64 << 10,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, ServerName: "localhost"}, // trusts SSL_CERT_FILE
	}}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req, err := http.NewRequestWithContext(r.Context(), r.Method, next+r.URL.Path, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		req.ContentLength = r.ContentLength
		resp, err := client.Do(req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body) // the client may have left
	}), nil
}

// flood uploads BENCH_COUNT pictures of BENCH_SIZE bytes at once and prints how long that took.
func flood() error {
	n, err := strconv.Atoi(os.Getenv("BENCH_COUNT"))
	if err != nil {
		return err
	}
	size, err := strconv.Atoi(os.Getenv("BENCH_SIZE"))
	if err != nil {
		return err
	}
	picture, base := pictureOf(size), os.Getenv("BENCH_NEXT")
	began := time.Now()
	var g errgroup.Group
	for i := range n {
		g.Go(func() error {
			return send(context.Background(), upload(base, fmt.Sprint("flood-", i), "image/png", picture))
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	fmt.Println(time.Since(began))
	return nil
}
