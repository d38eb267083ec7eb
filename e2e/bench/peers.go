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

// The peers are this program again, as processes of their own, with their role
// and what it needs in the environment. They end with their standard input.
const roleVariable = "BENCH_ROLE"

var roles = map[string]func() (http.Handler, error){
	"sink":       newSink,
	"pair-back":  newPairBack,
	"pair-front": newPairFront,
	"pipe-back":  newPipeBack,
	"pipe-front": newPipeFront,
}

// play serves role, under TLS when there is a certificate in the environment, and
// says where on standard output.
func play(role string) error {
	if role == "flood" {
		return flood()
	}
	h, err := roles[role]()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // there is nothing to cancel it
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

// sink is a storage account that has every blob and discards uploads. GET
// /calls returns how many requests it got, by kind.
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
		answerKey(w, r)
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

// The sink has no staged blobs of direct uploads, and says so after a while: until
// then, a commit keeps its slot.
const (
	stagedPrefix = "/cats-api/upload/"
	stagedDelay  = 3 * time.Second
)

func answerKey(w http.ResponseWriter, r *http.Request) {
	var asked struct{ Start, Expiry string }
	if err := xml.NewDecoder(r.Body).Decode(&asked); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/xml")
	fmt.Fprintf(w, `<?xml version="1.0" encoding="utf-8"?><UserDelegationKey><SignedOid>o</SignedOid><SignedTid>t</SignedTid>`+
		`<SignedStart>%s</SignedStart><SignedExpiry>%s</SignedExpiry><SignedService>b</SignedService><SignedVersion>2024-11-04</SignedVersion><Value>a2V5</Value></UserDelegationKey>`,
		asked.Start, asked.Expiry)
}

// The pair is what any two processes cost that answer a GET together: the front
// forwards over loopback, the back answers as many bytes as the signer does.
func newPairBack() (http.Handler, error) {
	n, err := strconv.Atoi(os.Getenv("BENCH_SIZE"))
	if err != nil {
		return nil, err
	}
	body := bytes.Repeat([]byte("x"), n)
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body) // a client that left
	}), nil
}

func newPairFront() (http.Handler, error) {
	back, client := os.Getenv("BENCH_NEXT"), &http.Client{Transport: tuned()}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, back+r.URL.Path, nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		forward(w, client, req)
	}), nil
}

// The pipe is what any two processes cost that pass a picture on: the front copies it
// to the back, and the back, over TLS, to the sink, as one Put Blob.
func newPipeFront() (http.Handler, error) {
	back, client := os.Getenv("BENCH_NEXT"), &http.Client{Transport: tuned()}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { pass(w, r, client, back) }), nil
}

func newPipeBack() (http.Handler, error) {
	sink, transport := os.Getenv("BENCH_NEXT"), tuned()
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, ServerName: "localhost"} // trusts SSL_CERT_FILE
	client := &http.Client{Transport: transport}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { pass(w, r, client, sink) }), nil
}

func pass(w http.ResponseWriter, r *http.Request, client *http.Client, to string) {
	req, err := http.NewRequestWithContext(r.Context(), http.MethodPut, to+r.URL.Path, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	req.ContentLength = r.ContentLength
	forward(w, client, req)
}

func forward(w http.ResponseWriter, client *http.Client, req *http.Request) {
	resp, err := client.Do(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	w.Header().Set("Content-Type", resp.Header.Get("Content-Type"))
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body) // a client that left
}

// tuned returns a transport as good as we know for the yardsticks: the default
// keeps two connections to a host.
func tuned() *http.Transport {
	return &http.Transport{
		MaxIdleConnsPerHost: 512, DisableCompression: true,
		WriteBufferSize: 64 << 10, ReadBufferSize: 64 << 10,
	}
}

// flood uploads BENCH_COUNT pictures of BENCH_SIZE bytes at once, and says how long that took.
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
			return ask(context.Background(), upload(base, fmt.Sprint("flood-", i), "image/png", picture))
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	fmt.Println(time.Since(began))
	return nil
}

// hostOf returns the address that a peer printed.
func hostOf(line string) (string, error) {
	host := strings.TrimSpace(line)
	if _, _, err := net.SplitHostPort(host); err != nil {
		return "", fmt.Errorf("a peer says %q: %w", line, err)
	}
	return host, nil
}
