package web

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/apierror"
	"cats.example/shared/config"
	"cats.example/shared/signerapi"
)

// refusals are what a signer may say of any call.
var refusals = []*apierror.Error{
	nil, // it does as it is told
	apierror.ErrInvalidArgument, apierror.ErrUnauthenticated, apierror.ErrForbidden, apierror.ErrNotFound, apierror.ErrStalled, apierror.ErrPreconditionFailed,
	apierror.ErrTooLarge, apierror.ErrConflict, apierror.ErrRateLimited, apierror.ErrThrottled, apierror.ErrOverloaded,
	apierror.ErrStorageUnavailable, apierror.ErrIdentityUnavailable, apierror.ErrSignerUnavailable, apierror.ErrIssuerUnavailable,
}

// strict is a signer that wants what the contract promises it of each call.
type strict struct {
	*memory
	t testing.TB // of the input that is being tried
}

func (s *strict) check(u signerapi.User, errs ...error) {
	for _, err := range append(errs, func() error { _, err := signerapi.ParseUser(u.String()); return err }()) {
		if err != nil {
			s.t.Errorf("a call for %q reached the signer: %v", u, err)
		}
	}
}

func (s *strict) Put(ctx context.Context, u signerapi.User, body io.Reader, opts signerapi.PutOptions) (signerapi.Info, error) {
	s.check(u, opts.Preconditions.Validate(), opts.Digests.Validate())
	info, err := s.memory.Put(ctx, u, body, opts)
	if err == nil && (info.Size > maxSize || info.Size == 0 || opts.Size >= 0 && opts.Size != info.Size) {
		s.t.Errorf("a picture of %d bytes, announced as %d, reached the signer whole", info.Size, opts.Size)
	}
	return info, err
}

func (s *strict) Link(ctx context.Context, u signerapi.User, opts signerapi.LinkOptions) (signerapi.Link, error) {
	s.check(u, signerapi.ValidateDownloadName(opts.Download))
	return s.memory.Link(ctx, u, opts)
}

func (s *strict) Delete(ctx context.Context, u signerapi.User, c signerapi.Preconditions) error {
	s.check(u, c.Validate())
	return s.memory.Delete(ctx, u, c)
}

func (s *strict) StartUpload(ctx context.Context, u signerapi.User, size int64) (signerapi.UploadSession, error) {
	s.check(u)
	if size < 0 {
		s.t.Errorf("a picture of %d bytes was announced to the signer", size)
	}
	return s.memory.StartUpload(ctx, u, size)
}

func (s *strict) CommitUpload(ctx context.Context, u signerapi.User, ticket string, opts signerapi.CommitOptions) (signerapi.Info, error) {
	s.check(u, signerapi.ValidateUploadID(ticket), opts.Validate(), signerapi.Digests{MD5: opts.MD5}.Validate())
	return s.memory.CommitUpload(ctx, u, ticket, opts)
}

// wire is a connection on which a client has sent all that it will, and reads what
// it gets.
type wire struct {
	in   *bytes.Reader
	done chan struct{} // closed once the server has said all

	mu     sync.Mutex
	out    bytes.Buffer
	ended  bool
	closed bool
}

func (w *wire) Read(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, net.ErrClosed
	}
	return w.in.Read(p)
}

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return 0, net.ErrClosed
	}
	return w.out.Write(p)
}

// CloseWrite comes half a second before Close where the server leaves a client time
// to read.
func (w *wire) CloseWrite() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ended {
		w.ended = true
		close(w.done)
	}
	return nil
}

func (w *wire) Close() error {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	return w.CloseWrite()
}

func (*wire) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (*wire) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (*wire) SetDeadline(time.Time) error      { return nil }
func (*wire) SetReadDeadline(time.Time) error  { return nil }
func (*wire) SetWriteDeadline(time.Time) error { return nil }

// wires is a listener whose connections are made by whom they are sent from.
type wires chan net.Conn

func (l wires) Accept() (net.Conn, error) {
	if c, ok := <-l; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (wires) Close() error   { return nil }
func (wires) Addr() net.Addr { return &net.TCPAddr{} }

// answerHeaders are all that an answer may have.
var answerHeaders = map[string]bool{
	"Access-Control-Allow-Headers": true, "Access-Control-Allow-Methods": true, "Access-Control-Allow-Origin": true, "Access-Control-Expose-Headers": true, "Access-Control-Max-Age": true,
	"Content-Security-Policy": true, "Ratelimit": true, "Vary": true,
	"Accept-Encoding": true, "Allow": true, "Cache-Control": true, "Connection": true, "Content-Encoding": true, "Content-Length": true, "Content-Type": true, "Date": true, "Etag": true,
	"Cross-Origin-Opener-Policy": true, "Location": true, "Referrer-Policy": true, "Retry-After": true, "Www-Authenticate": true, "X-Content-Type-Options": true, "X-Request-Id": true,
}

// own is where an answer of ours can lead.
var own = regexp.MustCompile(`^(/service|/about|/openapi\.json|/docs(/[^/?]*)?|/page/[^/?]*|/cat/[^/?]*(/picture|/upload(/[^/?]*/commit)?)?)(\?.*)?$`)

// FuzzAnyRequest has the server read whatever a stranger sends on a connection. No
// input yields a 500, or any 5xx that is not the signer's; what comes back is HTTP
// and nothing else, with no header that a stranger has put there; and what reaches
// the signer keeps to the contract.
func FuzzAnyRequest(f *testing.F) {
	contentType, form := formOf(f, part{"file", "cat.png", png[:40]})
	const start = "HTTP/1.1\r\nHost: cats\r\n"
	put := "PUT /cat/x " + start + "Content-Length: 40\r\n\r\n" + png[:40]
	for i := range refusals {
		f.Add(byte(i), []byte(put+"GET /cat/seen "+start+"\r\nDELETE /cat/seen "+start+"\r\n"))
	}
	for i, s := range []string{
		"GET /service " + start + "\r\n",
		put + "GET /cat/x?ttl=1m&download=cat.png " + start + "If-None-Match: \"2\", *\r\n\r\n",
		put + "HEAD /cat/x/picture " + start + "\r\nDELETE /cat/x " + start + "If-Match: \"1\"\r\n\r\n",
		"POST /cat/x " + start + "Content-Type: " + contentType + "\r\nTransfer-Encoding: chunked\r\n\r\n" + "ffff\r\n" + string(form) + "\r\n0\r\n\r\n",
		"POST /cat/x " + start + "Expect: 100-continue\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 100\r\n\r\n" +
			"--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\n" + png[:20] + "\r\n--x--",
		"PUT /cat/%F0%9F%90%B1 " + start + "Content-Length: 28\r\nContent-MD5: AAAAAAAAAAAAAAAAAAAAAA==\r\nContent-Digest: sha-256=:QQ==:\r\n\r\n" + png[:28],
		"PUT /cat/x " + start + "Transfer-Encoding: chunked\r\n\r\n14;x=y\r\n" + png[:20] + "\r\n0\r\nTrailer: x\r\n\r\n",
		"GET /cat/a%0d%0aSet-Cookie:x/ " + start + "X-Request-Id: a\x00b\r\n\r\n",
		"GET http://elsewhere//cat/x/ " + start + "X-Request-Id: mine\r\nTraceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n\r\n",
		"OPTIONS * " + start + "\r\nBREW /cat/x " + start + "\r\n",
		"GET /cat/%2e%2e/picture/?ttl=1m;x HTTP/1.0\r\n\r\n",
		"CONNECT elsewhere:443 " + start + "\r\n\r\n", "GET //elsewhere/..%2f/ " + start + "\r\n", "GARBAGE\r\n\r\n", "\x16\x03\x01", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	} {
		f.Add(byte(0), []byte(s))
		f.Add(byte(i), []byte(s))
	}

	var options Options
	if err := config.Parse(&options, []string{"MAX_PICTURE_SIZE=20000", "RATE_LIMIT=0", "CORS_ORIGINS=https://cats.example.com"}); err != nil {
		f.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	signer := &strict{memory: &memory{}}
	h := newHandler(signer, options, 0, reg)
	var methods []string // of the requests that the server saw
	l := make(wires)
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			methods = append(methods, r.Method)
			h.ServeHTTP(w, r)
		}),
		DisableGeneralOptionsHandler: true, MaxHeaderBytes: 16 << 10, ReadHeaderTimeout: 10 * time.Second,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	go func() { _ = server.Serve(l) }()
	f.Cleanup(func() { close(l) })

	f.Fuzz(func(t *testing.T, refusal byte, sent []byte) {
		refused := refusals[int(refusal)%len(refusals)]
		*signer.memory, signer.t, methods = memory{cats: map[string]string{"seen": png}}, t, nil
		if refused != nil {
			signer.fail = refused
		}
		conn := &wire{in: bytes.NewReader(sent), done: make(chan struct{})}
		l <- conn
		select {
		case <-conn.done:
		case <-time.After(20 * time.Second):
			t.Fatalf("%q is not answered", sent)
		}
		conn.mu.Lock()
		got := bytes.Clone(conn.out.Bytes())
		conn.mu.Unlock()
		in := bufio.NewReader(bytes.NewReader(got))
		for i := 0; ; {
			if _, err := in.Peek(1); err == io.EOF {
				return
			}
			method := ""
			if i < len(methods) {
				method = methods[i]
			}
			resp, err := http.ReadResponse(in, &http.Request{Method: method})
			if err != nil {
				t.Fatalf("%q is answered with %q, which is not HTTP: %v", sent, got, err)
			}
			if resp.StatusCode == http.StatusContinue {
				continue
			}
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil {
				t.Fatalf("%q is answered with %q, which breaks off: %v", sent, got, err)
			}
			if i >= len(methods) { // by net/http itself, of what is no request; it hangs up
				if resp.StatusCode < 400 || resp.StatusCode >= 500 && resp.StatusCode != 501 && resp.StatusCode != 505 {
					t.Fatalf("%q is answered with %q", sent, got)
				}
				return
			}
			wantAnswer(t, sent, method, resp, body, refused)
			i++
		}
	})
}

// wantAnswer checks one answer of the public API.
func wantAnswer(t *testing.T, sent []byte, method string, resp *http.Response, body []byte, refused *apierror.Error) {
	t.Helper()
	if resp.StatusCode >= 500 && (refused == nil || resp.StatusCode != refused.Status) {
		t.Fatalf("%q is answered with %s %s", sent, resp.Status, body)
	}
	for name := range resp.Header {
		if !answerHeaders[name] {
			t.Fatalf("%q is answered with the header %q", sent, resp.Header)
		}
	}
	if location := resp.Header.Get("Location"); location != "" && !own.MatchString(location) && !strings.HasPrefix(location, "https://acct.blob/cats/") {
		t.Fatalf("%q is sent to %q", sent, location)
	}
	if resp.Header.Get("X-Request-Id") == "" {
		t.Fatalf("%q is answered without an id: %q", sent, resp.Header)
	}
	if len(body) == 0 {
		if resp.StatusCode >= 400 && method != http.MethodHead {
			t.Fatalf("%q is answered with %s and nothing else", sent, resp.Status)
		}
		return
	}
	if resp.StatusCode < 400 && resp.Header.Get("Content-Type") != "application/json" {
		return // a file of the page or the documentation
	}
	var doc map[string]any
	if err := json.Unmarshal(body, &doc); err != nil {
		t.Fatalf("%q is answered with %q, which is not JSON: %v", sent, body, err)
	}
	if failed := resp.StatusCode >= 400; failed != (resp.Header.Get("Content-Type") == "application/problem+json") ||
		failed && (doc["detail"] == "" || doc["status"] != float64(resp.StatusCode) || doc["request_id"] != resp.Header.Get("X-Request-Id")) {
		t.Fatalf("%q is answered with %s %q", sent, resp.Header, body)
	}
}

var oneDigest = regexp.MustCompile(`^(md5|sha-256|sha-512)=:([A-Za-z0-9+/]*={0,2}):$`)

// FuzzDigests holds that digests have the length of their kind, or are refused, and
// that those whose form is plain are read as they stand there.
func FuzzDigests(f *testing.F) {
	f.Add("", "sha-256=:AAAA:")
	f.Add("1B2M2Y8AsgTpgAmY7PhCfg==", "md5=:1B2M2Y8AsgTpgAmY7PhCfg==:, x=?1")
	f.Add("x", "sha-512=(1 2);a, sha-512=:QQ==:")
	f.Add("", "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:")
	f.Fuzz(func(t *testing.T, contentMD5, contentDigest string) {
		d, err := digestsOf(http.Header{"Content-Md5": {contentMD5}, "Content-Digest": {contentDigest}})
		if err != nil && apierror.AsError(err).Status != 422 {
			t.Fatalf("%q, %q: %v", contentMD5, contentDigest, err)
		}
		if err == nil && d.Validate() != nil {
			t.Fatalf("%q, %q: %+v", contentMD5, contentDigest, d)
		}
		var want signerapi.Digests
		if contentMD5 != "" {
			sum, bad := base64.StdEncoding.DecodeString(contentMD5)
			if (bad != nil || len(sum) != 16) && err == nil {
				t.Fatalf("Content-MD5 %q was taken", contentMD5)
			}
			want.MD5 = sum
		}
		if m := oneDigest.FindStringSubmatch(contentDigest); m != nil {
			sum, bad := base64.StdEncoding.DecodeString(m[2])
			if bad != nil {
				return // the RFC lets a reader be lenient
			}
			if to := map[string]*[]byte{"md5": &want.MD5, "sha-256": &want.SHA256, "sha-512": &want.SHA512}[m[1]]; *to == nil {
				*to = sum
			} else if !bytes.Equal(*to, sum) {
				if err == nil {
					t.Fatalf("%q and %q differ, and were taken", contentMD5, contentDigest)
				}
				return
			}
		} else if contentDigest != "" {
			return
		}
		if known := contentDigest != "" || contentMD5 != ""; (err == nil) != (want.Validate() == nil) && known {
			t.Fatalf("%q, %q: %v", contentMD5, contentDigest, err)
		}
		if err == nil && (!bytes.Equal(d.MD5, want.MD5) || !bytes.Equal(d.SHA256, want.SHA256) || !bytes.Equal(d.SHA512, want.SHA512)) {
			t.Fatalf("%q, %q: %+v", contentMD5, contentDigest, d)
		}
	})
}

// FuzzIfNoneMatch compares which fields hold an entity tag with a reader that takes
// the list apart as RFC 9110 has it.
func FuzzIfNoneMatch(f *testing.F) {
	for _, s := range []string{`"1"`, `W/"1"`, "*", `"a", "1"`, ` , "1" ,`, `"1`, `w/"1"`, `"a"\t,\tW/"1"`, `""1""`} {
		f.Add(s)
	}
	tag := regexp.MustCompile(`^(W/)?"[\x21\x23-\x2b\x2d-\x7e]*"$`) // without commas, which storage's have not
	f.Fuzz(func(t *testing.T, field string) {
		const etag = `"1"`
		want := false
		for one := range strings.SplitSeq(field, ",") {
			one = strings.Trim(one, " \t")
			if one != "" && one != "*" && !tag.MatchString(one) {
				return // whatever may be made of it, it is the client's own picture
			}
			want = want || one == "*" || one == etag || one == "W/"+etag
		}
		if got := matches(field, etag); got != want {
			t.Fatalf("%q: %v", field, got)
		}
	})
}
