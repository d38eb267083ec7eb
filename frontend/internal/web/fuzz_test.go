package web

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

// responseHeaders are all headers that a response may have.
var responseHeaders = strings.Fields(`Accept-Encoding Access-Control-Allow-Headers Access-Control-Allow-Methods Access-Control-Allow-Origin
	Access-Control-Expose-Headers Access-Control-Max-Age Allow Cache-Control Connection Content-Encoding Content-Length Content-Security-Policy
	Content-Type Cross-Origin-Opener-Policy Date Etag Location Ratelimit Referrer-Policy Retry-After Vary Www-Authenticate
	X-Content-Type-Options X-Request-Id`)

// ownPath matches the paths to which a response may redirect.
var ownPath = regexp.MustCompile(`^(/service|/about|/openapi\.json|/docs(/[^/?]*)?|/page/[^/?]*|/cat/[^/?]*(/picture|/upload(/[^/?]*/commit)?)?)(\?.*)?$`)

// FuzzAnyRequest sends arbitrary bytes to the server. The response must be valid HTTP without a header of the client's choice. It
// must not be a 500, or a 5xx that the signer did not return. Calls of the signer must keep to the contract.
func FuzzAnyRequest(f *testing.F) {
	a := newAPI(f, "CORS_ORIGINS=https://cats.example.com")
	signerErrors := slices.SortedFunc(apierror.All(), func(a, b *apierror.Error) int { return cmp.Compare(a.Code, b.Code) })
	signerErrors = slices.Insert(signerErrors, 0, nil) // success
	contentType, form := formOf(f, "file", png[:40], "")
	const start = "HTTP/1.1\r\nHost: cats\r\n"
	put := "PUT /cat/x " + start + "Content-Length: 40\r\n\r\n" + png[:40]
	for i := range signerErrors {
		f.Add(byte(i), []byte(put+"GET /cat/seen "+start+"\r\nDELETE /cat/seen "+start+"\r\n"))
	}
	for i, s := range []string{
		"GET /service " + start + "\r\n",
		put + "GET /cat/x?ttl=1m&download=cat.png " + start + "If-None-Match: \"2\", *\r\n\r\n",
		put + "HEAD /cat/x/picture " + start + "\r\nDELETE /cat/x " + start + "If-Match: \"1\"\r\n\r\n",
		"POST /cat/x " + start + "Content-Type: " + contentType + "\r\nTransfer-Encoding: chunked\r\n\r\n" + "ffff\r\n" + form + "\r\n0\r\n\r\n",
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

	var methods []string // of the requests that the server has parsed
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		methods = append(methods, r.Method)
		a.ServeHTTP(w, r)
	}))
	server.Config.DisableGeneralOptionsHandler, server.Config.ErrorLog = true, slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	_ = server.Listener.Close()
	address := filepath.Join(f.TempDir(), "socket")
	var err error
	if server.Listener, err = (&net.ListenConfig{}).Listen(f.Context(), "unix", address); err != nil {
		f.Fatal(err)
	}
	server.Start()
	f.Cleanup(server.Close)

	f.Fuzz(func(t *testing.T, signerError byte, sent []byte) {
		failure := signerErrors[int(signerError)%len(signerErrors)]
		a.signer.pictures, a.signer.err, methods = map[string]string{"seen": png}, nil, nil
		if failure != nil {
			a.signer.err = failure
		}
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		go func() {
			_, _ = conn.Write(sent) // fails if the server closes the connection early
			_ = conn.(*net.UnixConn).CloseWrite()
		}()
		got, err := io.ReadAll(conn)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("no response to %q", sent)
		}
		if a.signer.fault != nil {
			t.Fatalf("%q: %v", sent, a.signer.fault)
		}
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
				t.Fatalf("the response to %q is %q, which is not HTTP: %v", sent, got, err)
			}
			if resp.StatusCode == http.StatusContinue {
				continue
			}
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if err != nil {
				t.Fatalf("the response to %q is incomplete: %q: %v", sent, got, err)
			}
			if i >= len(methods) { // net/http has answered a malformed request, and closes the connection
				if resp.StatusCode < 400 || resp.StatusCode >= 500 && resp.StatusCode != 501 && resp.StatusCode != 505 {
					t.Fatalf("the response to %q is %q", sent, got)
				}
				return
			}
			checkResponse(t, sent, method, resp, body, failure)
			i++
		}
	})
}

// checkResponse checks a response of the public API. failure is the error of the signer.
func checkResponse(t *testing.T, sent []byte, method string, resp *http.Response, body []byte, failure *apierror.Error) {
	t.Helper()
	fail := func() { t.Helper(); t.Fatalf("the response to %q is %s %q %q", sent, resp.Status, resp.Header, body) }
	location := resp.Header.Get("Location")
	switch {
	case resp.StatusCode >= 500 && (failure == nil || resp.StatusCode != failure.Status),
		location != "" && !ownPath.MatchString(location) && !strings.HasPrefix(location, "https://acct.blob/cats/"),
		resp.Header.Get("X-Request-Id") == "",
		len(body) == 0 && resp.StatusCode >= 400 && method != http.MethodHead:
		fail()
	}
	for name := range resp.Header {
		if !slices.Contains(responseHeaders, name) {
			fail()
		}
	}
	if len(body) == 0 || resp.StatusCode < 400 && resp.Header.Get("Content-Type") != "application/json" {
		return // a file
	}
	var doc map[string]any
	if err := json.Unmarshal(body, &doc); err != nil {
		fail()
	}
	if failed := resp.StatusCode >= 400; failed != (resp.Header.Get("Content-Type") == "application/problem+json") ||
		failed && (doc["detail"] == "" || doc["status"] != float64(resp.StatusCode) || doc["request_id"] != resp.Header.Get("X-Request-Id")) {
		fail()
	}
}

// FuzzPath requests arbitrary paths. The response must not be a 500. The user that reaches the signer must be the decoded path
// segment.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"/cat/Davyd", "/cat/%2e%2e", "/cat/a%2Fb/picture", "/service/", "//x", "/cat/%ff", "/cat/a?ttl=1m&download=x", "/cat/;", "/cat/%2541", "/cat/%F0%9F%90%B1/picture"} {
		f.Add("GET", s)
		f.Add("DELETE", s)
	}
	a := newAPI(f)
	f.Fuzz(func(t *testing.T, method, target string) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://cats.test"+target, nil)
		if err != nil || !strings.HasPrefix(target, "/") {
			return
		}
		r.Method, r.Body = method, io.NopCloser(strings.NewReader(""))
		a.signer.last = call{}
		rec := httptest.NewRecorder()
		a.ServeHTTP(rec, r)
		if rec.Code >= 500 {
			t.Fatalf("%s %q: %d %s", method, target, rec.Code, rec.Body)
		}
		if location := rec.Header().Get("Location"); strings.HasPrefix(location, "//") || strings.Contains(location, `\`) {
			t.Fatalf("%q redirects to %q", target, location)
		}
		user := a.signer.last.user
		if user == "" {
			return
		}
		path, _, _ := strings.Cut(target, "?")
		path, _, _ = strings.Cut(path, "#")
		segment, found := strings.CutPrefix(path, "/cat/")
		name, err := url.PathUnescape(strings.TrimSuffix(segment, "/picture"))
		if _, invalid := signerapi.ParseUser(name); !found || err != nil || invalid != nil || name != user {
			t.Fatalf("%s %q reached the signer as %q", method, target, user)
		}
	})
}

// FuzzDigests parses arbitrary digest headers. Digests must have the length of their kind and be in the header.
func FuzzDigests(f *testing.F) {
	f.Add("", "sha-256=:AAAA:")
	f.Add("1B2M2Y8AsgTpgAmY7PhCfg==", "md5=:1B2M2Y8AsgTpgAmY7PhCfg==:, x=?1")
	f.Add("x", "sha-512=(1 2);a, sha-512=:QQ==:")
	f.Add("", "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:")
	if _, err := parseDigests(http.Header{"Content-Md5": {"1B2M2Y8AsgTpgAmY7PhCfg=="}, "Content-Digest": {"md5=:AAAAAAAAAAAAAAAAAAAAAA==:"}}); err == nil {
		f.Error("two different digests were accepted")
	}
	f.Fuzz(func(t *testing.T, contentMD5, contentDigest string) {
		sum := sha256.Sum256([]byte(contentMD5))
		valid := http.Header{"Content-Digest": {"sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"}}
		if d, err := parseDigests(valid); err != nil || !bytes.Equal(d.SHA256, sum[:]) {
			t.Fatalf("%q: %+v, %v", valid, d, err)
		}
		d, err := parseDigests(http.Header{"Content-Md5": {contentMD5}, "Content-Digest": {contentDigest}})
		if err != nil && apierror.AsError(err).Status != 422 || err == nil && d.Validate() != nil {
			t.Fatalf("%q, %q: %+v, %v", contentMD5, contentDigest, d, err)
		}
		for name, sum := range map[string][]byte{"md5": d.MD5, "sha-256": d.SHA256, "sha-512": d.SHA512} {
			encoded := base64.StdEncoding.EncodeToString(sum)
			encoded = encoded[:max(0, len(encoded)-4)] // decoders ignore the last bits
			in := map[bool]string{true: contentMD5 + " " + contentDigest, false: contentDigest}[name == "md5"]
			if err == nil && !strings.Contains(strings.NewReplacer("\r", "", "\n", "").Replace(in), encoded) {
				t.Fatalf("%q, %q: %s is %x", contentMD5, contentDigest, name, sum)
			}
		}
	})
}

func TestMatchesETagComparesWeakly(t *testing.T) {
	const etag = `"1"`
	for field, want := range map[string]bool{
		`"1"`: true, `W/"1"`: true, "*": true, `"a", "1"`: true, ` , "1" ,`: true, "\"a\"\t,\tW/\"1\"": true, `W/"a", *`: true,
		"": false, `"2"`: false, `1`: false, `"1`: false, `w/"1"`: false, `""1""`: false, "W/": false, ",": false,
	} {
		if got := matchesETag(field, etag); got != want {
			t.Errorf("%q: %v", field, got)
		}
	}
}
