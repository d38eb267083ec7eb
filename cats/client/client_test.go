package client

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
)

// transport is a network in memory, for tests of time.
type transport func(*http.Request) (*http.Response, error)

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) { return t(r) }

func response(status int, body io.Reader, retryAfter string) *http.Response {
	header := http.Header{"Retry-After": {retryAfter}}
	return &http.Response{StatusCode: status, Status: fmt.Sprint(status), Header: header, Body: io.NopCloser(body)}
}

func newClient(t *testing.T, base string, opts Options) *Client {
	t.Helper()
	c, err := New(base, opts)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// wantError returns err as an *Error with this code.
func wantError(t *testing.T, err error, code string) *Error {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Code != code {
		t.Fatalf("%v; want an error with the code %s", err, code)
	}
	return e
}

func TestRetriesWait(t *testing.T) {
	const least, most = (250 + 500) * time.Millisecond, (750 + 1500) * time.Millisecond
	for _, c := range []struct {
		retryAfter  string
		requests    int
		least, most time.Duration
	}{
		{"30", 3, time.Minute, time.Minute},
		{"31", 1, 0, 0},
		{"", 3, least, most},
		{"-1", 3, least, most},
		{"Fri, 31 Dec 2100 23:59:59 GMT", 3, least, most},
	} {
		synctest.Test(t, func(t *testing.T) {
			requests, began := 0, time.Now()
			overloaded := transport(func(*http.Request) (*http.Response, error) {
				requests++
				return response(503, strings.NewReader(`{"code":"overloaded","detail":"x"}`), c.retryAfter), nil
			})
			_, err := newClient(t, "http://a.example", Options{MaxRetries: 2, Transport: overloaded}).About(t.Context())
			e := wantError(t, err, "overloaded")
			if took := time.Since(began); requests != c.requests || took < c.least || took > c.most || !e.Temporary() {
				t.Errorf("Retry-After %q: %d requests in %v", c.retryAfter, requests, took)
			}
		})
	}
}

func TestInterruptionEndsRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		throttled := transport(func(*http.Request) (*http.Response, error) {
			return response(503, strings.NewReader(`{"code":"throttled","detail":"x","outcome":"unknown"}`), "9"), nil
		})
		c := newClient(t, "http://a.example", Options{MaxRetries: 9, Transport: throttled})
		_, err := c.Put(ctx, "mia", iotest.OneByteReader(strings.NewReader("")), PutOptions{})
		if e := wantError(t, err, CodeInterrupted); e.Outcome != OutcomeUnknown || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, outcome %q", err, e.Outcome)
		}
	})
}

// pace is a reader and writer that waits before each byte.
type pace struct {
	context.Context
	wait  time.Duration
	bytes int
}

func (p *pace) Read(b []byte) (int, error) {
	if p.bytes == 0 {
		return 0, io.EOF
	}
	p.bytes--
	return p.Write(b[:1])
}

func (p *pace) Write(b []byte) (int, error) {
	select {
	case <-time.After(p.wait):
		return len(b), nil
	case <-p.Done():
		return 0, p.Err()
	}
}

func TestStalledTransferFails(t *testing.T) {
	for _, c := range []struct {
		local, network time.Duration // that a byte takes
		fails          bool
	}{
		{time.Hour, 0, false},
		{0, 59 * time.Second, false},
		{0, 61 * time.Second, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			client := newClient(t, "http://a.example", Options{Transport: transport(func(r *http.Request) (*http.Response, error) {
				if r.Method == http.MethodGet {
					return response(200, &pace{r.Context(), c.network, 3}, ""), nil
				}
				_, err := io.CopyBuffer(&pace{r.Context(), c.network, 0}, r.Body, make([]byte, 1))
				return response(200, strings.NewReader(`{}`), ""), err
			})})
			local := &pace{t.Context(), c.local, 3}
			_, putErr := client.Put(t.Context(), "mia", local, PutOptions{})
			getErr := client.Download(t.Context(), Picture{Size: 3, URL: "http://storage.example/x"}, local, nil)
			for _, err := range []error{putErr, getErr} {
				if (err != nil) != c.fails || c.fails && !strings.Contains(err.Error(), "no byte was transferred for 1m0s") {
					t.Errorf("%v: %v", c, err)
				}
			}
		})
	}
}

// stub is a service, and the storage of its signed URLs. It handles one request after the other, under its lock.
type stub struct {
	sync.Mutex
	*httptest.Server
	http.ServeMux
	requests int // counted by some handlers
}

func newStub(t *testing.T) *stub {
	t.Helper()
	s := &stub{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.Lock()
		defer s.Unlock()
		s.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

// says returns a handler that responds with a text.
func says(format string, args ...any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, format, args...) }
}

// abort closes the connection without a response.
func abort(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

func TestPutRepeatsOnlyUnreadReaders(t *testing.T) {
	for name, c := range map[string]struct {
		picture io.Reader
		read    bool // by the service, of the first request
		code    string
	}{
		"unread pipe": {io.MultiReader(strings.NewReader("cat")), false, ""},
		"broken pipe": {iotest.ErrReader(io.ErrNoProgress), true, CodeBody},
		"broken file": {brokenFile{strings.NewReader("cat")}, true, CodeBody},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStub(t)
			s.HandleFunc("GET /about", says(`{"max_picture_size":100}`))
			s.HandleFunc("PUT /cat/mia", func(w http.ResponseWriter, r *http.Request) {
				if s.requests++; s.requests > 1 {
					got, _ := io.ReadAll(r.Body)
					fmt.Fprintf(w, `{"size":%d}`, len(got))
				} else if c.read {
					_, _ = io.Copy(io.Discard, r.Body)
					abort(w, r)
				} else {
					w.WriteHeader(503)
				}
			})
			p, err := newClient(t, s.URL, Options{MaxRetries: 1}).Put(t.Context(), "mia", c.picture, PutOptions{})
			s.Lock()
			defer s.Unlock()
			if c.code == "" && (err != nil || p.Size != 3) {
				t.Errorf("%v, %v", p, err)
			} else if c.code != "" && (wantError(t, err, c.code).Temporary() == (c.code == CodeBody) || s.requests > 1) {
				t.Errorf("%v after %d requests", err, s.requests)
			}
		})
	}
}

// brokenFile is a file that cannot be read.
type brokenFile struct{ *strings.Reader }

func (brokenFile) ReadAt([]byte, int64) (int, error) { return 0, io.ErrNoProgress }

func TestDownloadReturnsWholePictureOnly(t *testing.T) {
	const picture = "a whole picture"
	sum := md5.Sum([]byte(picture))
	half := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(picture)))
		fmt.Fprint(w, picture[:8])
		_ = http.NewResponseController(w).Flush()
		abort(w, r)
	}
	whole := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(picture))
	}
	for name, c := range map[string]struct {
		first, second http.HandlerFunc
		etag          string // after the first response
		code          string
	}{
		"interrupted":          {half, whole, `"1"`, ""},
		"interrupted for good": {half, abort, `"1"`, CodeUnreachable},
		"replaced":             {half, whole, `"2"`, CodeConflict},
		"range ignored":        {half, says(picture), `"1"`, CodeStorage},
		"other bytes":          {says("A whole picture"), nil, `"1"`, CodeDigestMismatch},
		"too short":            {says("a whole"), nil, `"1"`, CodeDigestMismatch},
		"too long":             {says(picture + " and more"), nil, `"1"`, CodeDigestMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStub(t)
			s.HandleFunc("GET /cat/mia", says(`{"owner":{"name":"mia"},"etag":%q,"picture_url":"%s/blob?sig=secret"}`, c.etag, s.URL))
			s.HandleFunc("GET /blob", func(w http.ResponseWriter, r *http.Request) {
				if s.requests++; s.requests == 1 {
					c.first(w, r)
				} else {
					c.second(w, r)
				}
			})
			p := Picture{ETag: `"1"`, Size: int64(len(picture)), MD5: sum[:], URL: s.URL + "/blob?sig=secret"}
			p.Owner.Name = "mia"
			var got bytes.Buffer
			var progress int64
			err := newClient(t, s.URL, Options{MaxRetries: 1}).Download(t.Context(), p, &got, func(n int64) { progress += n })
			if c.code != "" {
				if e := wantError(t, err, c.code); strings.Contains(e.Error(), "secret") {
					t.Errorf("the error contains the signed URL: %v", err)
				}
			} else if err != nil || got.String() != picture || progress != p.Size {
				t.Errorf("%q, %v, progress %d", got.String(), err, progress)
			}
		})
	}
}

func TestPutUploadsDirectly(t *testing.T) {
	for name, c := range map[string]struct {
		resume *Upload // with the differences from one that can be continued
		reject string  // upload whose URL storage rejects, with this status
		status int
		at     string // of new uploads; the storage origin by default
		commit string // upload that is committed
		code   string // of the error
		sent   int    // blocks
	}{
		"new":             {commit: "new", sent: 3},
		"continued":       {resume: &Upload{}, commit: "old", sent: 1},
		"of another user": {resume: &Upload{User: "tom"}, commit: "new", sent: 3},
		"of another size": {resume: &Upload{Size: 4}, commit: "new", sent: 3},
		"too old":         {resume: &Upload{ExpiresAt: time.Now().Add(time.Second)}, commit: "new", sent: 3},
		"elsewhere":       {resume: &Upload{URL: "http://other.example/blob?sig=old"}, commit: "new", sent: 3},
		"expired":         {resume: &Upload{}, reject: "old", status: 403, commit: "new", sent: 3},
		"redirected":      {reject: "new", status: 307, code: CodeStorage},
		"new, elsewhere":  {at: "http://other.example", code: CodeUnexpectedResponse},
		"new, forged":     {at: "http://secret@other.example", code: CodeUnexpectedResponse},
	} {
		stored := map[string]string{}
		expires := time.Now().Add(time.Hour).Truncate(time.Second)
		s := newStub(t)
		s.HandleFunc("GET /about", says(`{"max_direct_size":3,"storage_origin":%q}`, s.URL))
		s.HandleFunc("POST /cat/mia/upload", says(`{"id":"new","upload_url":"%s/blob?sig=new","expires_at":%q,"block_size":1}`,
			cmp.Or(c.at, s.URL), expires.Format(time.RFC3339)))
		s.HandleFunc("PUT /blob", func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if sum := md5.Sum(body); r.FormValue("sig") == c.reject {
				http.Redirect(w, r, "http://other.example/", c.status)
			} else if r.FormValue("comp") == "block" && r.Header.Get("Content-MD5") == base64.StdEncoding.EncodeToString(sum[:]) {
				stored[r.FormValue("blockid")] = string(body)
			}
		})
		s.HandleFunc("POST /cat/mia/upload/{id}/commit", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, `{"etag":%q}`, r.PathValue("id"))
		})
		if u := c.resume; u != nil {
			u.ID, u.BlockSize, u.Sent, u.User, u.Size = "old", 1, []int64{0, 2}, cmp.Or(u.User, "mia"), cmp.Or(u.Size, 3)
			if u.URL = cmp.Or(u.URL, s.URL+"/blob?sig=old"); u.ExpiresAt.IsZero() {
				u.ExpiresAt = expires
			}
		}
		var progress atomic.Int64
		var saved *Upload
		p, err := newClient(t, s.URL, Options{}).Put(t.Context(), "mia", strings.NewReader("cat"), PutOptions{
			Resume: c.resume, Save: func(u *Upload) { saved = u }, Progress: func(n int64) { progress.Add(n) },
		})
		s.Lock()
		if c.code != "" {
			if e := wantError(t, err, c.code); strings.Contains(e.Error(), "secret") {
				t.Errorf("%s: %v", name, e)
			}
		} else if err != nil || progress.Load() != 3 || saved != nil {
			t.Errorf("%s: %v; progress %d, saved %v", name, err, progress.Load(), saved)
		}
		if p.ETag != c.commit || len(stored) != c.sent {
			t.Errorf("%s: committed %q, stored %q", name, p.ETag, stored)
		}
		s.Unlock()
	}
}
