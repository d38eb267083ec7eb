package signerapi

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/shared/apierror"
)

func TestCallsCarryArgumentsTokensAndResults(t *testing.T) {
	type call struct {
		User, Content, UploadID string
		Token                   Token
		Client                  string
		Size                    int64
		Put                     PutOptions
		Link                    LinkOptions
		Preconditions           Preconditions
		Commit                  CommitOptions
	}
	var got []call
	record := func(ctx context.Context, u User, c call) {
		c.User, c.Token, c.Client = u.String(), TokenFrom(ctx), ClientFrom(ctx)
		got = append(got, c)
	}
	info := Info{ETag: `"0x8D"`, ContentType: "image/png", Size: 300_000, MD5: []byte("sixteen bytes...")}
	link := Link{Info: info, URL: "https://a.blob/cats/x/cat?sig=a%2Bb&se=1", ExpiresAt: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}
	session := UploadSession{ID: "1795-9-AB", URL: "https://a.blob/cats/1?sig=a%2Bb", ExpiresAt: link.ExpiresAt, BlockSize: 8 << 20}
	about := About{MaxDirectUploadSize: 5 << 30, LinkTTL: 3600, LinkMaxTTL: 7200, LinkOrigin: "https://a.blob", UserClaim: "oid"}
	c, connections := serve(t, stub{
		about: about,
		put: func(ctx context.Context, u User, body io.Reader, o PutOptions) (Info, error) {
			content, err := io.ReadAll(body)
			record(ctx, u, call{Content: string(content), Put: o})
			return info, err
		},
		link: func(ctx context.Context, u User, o LinkOptions) (Link, error) {
			record(ctx, u, call{Link: o})
			return link, nil
		},
		delete: func(ctx context.Context, u User, c Preconditions) error {
			record(ctx, u, call{Preconditions: c})
			return nil
		},
		start: func(ctx context.Context, u User, size int64) (UploadSession, error) {
			record(ctx, u, call{Size: size})
			return session, nil
		},
		commit: func(ctx context.Context, u User, id string, o CommitOptions) (Info, error) {
			record(ctx, u, call{UploadID: id, Commit: o})
			return info, nil
		},
	})
	content := strings.Repeat("cat", 100_000)
	conditions := Preconditions{IfMatch: `"0x1"`, IfNoneMatch: "*"}
	sized := PutOptions{Size: 300_000, Preconditions: conditions, Digests: Digests{MD5: make([]byte, 16), SHA256: make([]byte, 32), SHA512: make([]byte, 64)}}
	bounded := PutOptions{Size: -1, MinSize: 1, MaxSize: 1 << 40}
	linkOptions := LinkOptions{TTL: 90 * time.Second, Download: `ca"t 猫.jpg`}
	commit := CommitOptions{Preconditions: conditions, MD5: make([]byte, 16)}
	for _, token := range []Token{"", "eyJhbGciOiJub25lIn0.e30.-_~+/=="} {
		for _, name := range []string{"Davyd", "a b", "Мурчик", "a+b&user=x", "%2F", "a;b"} {
			got = nil
			ctx, u := WithClient(WithToken(t.Context(), token), "2001:db8::/56"), mustUser(t, name)
			stored, err1 := c.Put(ctx, u, strings.NewReader(content), sized)
			stored2, err2 := c.Put(ctx, u, strings.NewReader(content), bounded)
			linked, err3 := c.Link(ctx, u, linkOptions)
			err4 := c.Delete(ctx, u, conditions)
			started, err5 := c.StartUpload(ctx, u, 1<<40)
			committed, err6 := c.CommitUpload(ctx, u, session.ID, commit)
			described, err7 := c.About(ctx)
			if err := errors.Join(err1, err2, err3, err4, err5, err6, err7, c.Ready(ctx)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]any{info, info, link, session, info, about}, []any{stored, stored2, linked, started, committed, described}); diff != "" {
				t.Errorf("results (-want +got):\n%s", diff)
			}
			want := []call{
				{Content: content, Put: sized},
				{Content: content, Put: bounded},
				{Link: linkOptions},
				{Preconditions: conditions},
				{Size: 1 << 40},
				{UploadID: session.ID, Commit: commit},
			}
			for i := range want {
				want[i].User, want[i].Token, want[i].Client = name, token, "2001:db8::/56"
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
		}
	}
	if n := connections.Load(); n != 1+2*12 { // each Delete and CommitUpload has its own
		t.Errorf("%d connections; want 25", n)
	}
	for _, id := range []string{"", "a b", "a/b", "..", strings.Repeat("a", 97), "猫"} {
		if _, err := c.CommitUpload(t.Context(), mustUser(t, "x"), id, CommitOptions{}); !errors.Is(err, apierror.ErrNoUpload) {
			t.Errorf("upload ID %q: %v; want ErrNoUpload", id, err)
		}
	}
}

func TestErrorsCrossTheWire(t *testing.T) {
	for e := range apierror.All() {
		for _, outcome := range []apierror.Outcome{"", apierror.OutcomeUnknown, apierror.OutcomeStored} {
			sent := e.WithDetail("why").WithRetryAfter(7 * time.Second).Wrap(errors.New("secret"))
			sent.Outcome = outcome
			want := apierror.Error{Code: e.Code, Status: e.Status, Detail: "why", RetryAfter: 7 * time.Second, Outcome: outcome}
			if outcome == "" {
				want.Outcome = e.Outcome // ErrDamaged always has one
			}
			c, _ := serve(t, failing(fmt.Errorf("deleting: %w", sent)))
			got := apierror.AsError(c.Delete(t.Context(), mustUser(t, "x"), Preconditions{}))
			if diff := cmp.Diff(want, *got, cmp.AllowUnexported(apierror.Error{})); diff != "" {
				t.Errorf("%s (-want +got):\n%s", e.Code, diff)
			}
		}
	}
	for _, sent := range []error{errors.New("hunter2"), &apierror.Error{Code: "hunter2", Detail: "hunter2", Outcome: apierror.OutcomeUnknown}} {
		c, _ := serve(t, failing(sent))
		err := c.Delete(t.Context(), mustUser(t, "x"), Preconditions{})
		got := apierror.AsError(err)
		if want := apierror.AsError(sent).Outcome; got.Code != "internal" || got.Outcome != want || strings.Contains(err.Error()+got.Detail, "hunter2") {
			t.Errorf("%v arrived as %v with outcome %q; want internal with outcome %q", sent, err, got.Outcome, want)
		}
	}
}

// do calls h with a request of the contract and returns the response.
func do(t *testing.T, h http.Handler, method, target string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, "/", strings.NewReader("x"))
	r.URL.Path, r.URL.RawQuery, _ = strings.Cut(target, "?")
	r.Header.Set(contractHeader, contractVersion)
	for i := 0; i < len(header); i += 2 {
		r.Header[header[i]] = strings.Split(header[i+1], "|")
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

func TestHandlerValidatesRequests(t *testing.T) {
	h := NewHandler(stub{}, HandlerOptions{}) // panics if it calls the stub
	table, err := os.ReadFile("testdata/rejected-requests.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(table)) {
		var status int
		var method, target string
		if _, err := fmt.Sscan(line, &status, &method, &target); err != nil {
			continue // a comment
		}
		if rec := do(t, h, method, target); rec.Code != status {
			t.Errorf("%s: %d %s", strings.TrimSpace(line), rec.Code, rec.Body)
		}
	}
	for _, field := range []string{"Bearer a|Bearer b", "Basic YTpi", "Bearer", "Bearer a b", "Bearer a,b", ""} {
		if rec := do(t, h, "GET", "/v1/link?user=x", "Authorization", field); rec.Code != http.StatusUnauthorized {
			t.Errorf("Authorization %q: %d %s; want 401", field, rec.Code, rec.Body)
		}
	}
	for _, request := range []string{
		"PUT /v1/picture?user=a", "DELETE /v1/picture?user=a", "GET /v1/link?user=a", "POST /v1/uploads?user=a&size=1",
		"POST /v1/commit?user=a&upload_id=1-1-A", "GET /v1/about", "GET /v1/ready",
	} {
		method, target, _ := strings.Cut(request, " ")
		for _, version := range []string{"", "0", "11"} {
			if rec := do(t, h, method, target, contractHeader, version); rec.Code != http.StatusForbidden {
				t.Errorf("%s with version %q: %d %s; want 403", request, version, rec.Code, rec.Body)
			}
		}
	}
}

func TestHandlerMatchesPathsByteByByte(t *testing.T) {
	h := NewHandler(stub{}, HandlerOptions{Wrap: func(route string, probe bool, _ http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, route, " ", probe) })
	}})
	for target, want := range map[string]string{
		"/v1/link": "/v1/link false", "/v1/link?user=a/../b": "/v1/link false", "http://elsewhere/v1/link": "/v1/link false",
		"/v1/ready": "/v1/ready true", "/v1/about": "/v1/about true", "/": "other false", "//v1/link": "other false", "/v1//link": "other false",
		"/v1/./link": "other false", "/v1/picture/../link": "other false", "/v1/link/": "other false", "/v1/%6cink": "other false",
		"/v1%2flink": "other false", "/V1/link": "other false", "/v1/link;a": "other false", "/v1/link%00": "other false", "/v1\\link": "other false",
	} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, target, nil))
		if got := rec.Body.String(); got != want || rec.Code != http.StatusOK {
			t.Errorf("%s: %d from route %q; want %q", target, rec.Code, got, want)
		}
	}
}

func TestSecretsDoNotPrintOrLog(t *testing.T) {
	const secret = "sig=abc"
	link, session, token := Link{URL: "https://a/b?" + secret}, UploadSession{URL: "https://a/b?" + secret}, Token(secret)
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "url", link.URL, "link", link, "session", session, "token", token)
	for _, v := range []any{link, session, token, link.URL, fmt.Sprint(WithToken(t.Context(), token))} {
		if printed := fmt.Sprintf("%v %+v %#v %s %q", v, v, v, v, v) + log.String(); strings.Contains(printed, secret) {
			t.Errorf("the secret is printed: %s", printed)
		}
	}
	if b, err := json.Marshal(link); err != nil || !strings.Contains(string(b), secret) {
		t.Errorf("JSON is %s, %v; want the whole URL", b, err)
	}
}

func TestNewClientRejectsInvalidURLs(t *testing.T) {
	for _, base := range []string{"", "127.0.0.1:8081", "http://127.0.0.1", "https://127.0.0.1:1", "http://127.0.0.1:1/x", "http://", "http://a:1?b", ":"} {
		if _, err := NewClient(base, ClientOptions{}); err == nil {
			t.Errorf("NewClient(%q) returned no error", base)
		}
	}
}

// Without a connection nothing was sent, so no write has an unknown outcome.
func TestCallsWithoutConnectionChangeNothing(t *testing.T) {
	for name, cause := range map[string]error{
		"timeout": os.ErrDeadlineExceeded, "no address": &net.DNSError{Err: "no such host", Name: "signer.test"}, "closed port": nil,
	} {
		for called, call := range everyCall {
			t.Run(called+", "+name, func(t *testing.T) {
				c := newClient(t, "http://signer.test:1")
				dialWith(c, func(ctx context.Context, _, _ string) (net.Conn, error) {
					if cause == nil {
						return new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:1")
					}
					return nil, &net.OpError{Op: "dial", Net: "tcp", Err: cause}
				})
				err := call.do(t.Context(), c, mustUser(t, "Davyd"), 7)
				checkError(t, err, "signer_unavailable", "", "")
				if strings.Contains(err.Error(), "Davyd") {
					t.Errorf("the error contains the user name: %v", err)
				}
			})
		}
	}
}

func TestBodyReaderTranslatesErrors(t *testing.T) {
	for _, c := range []struct{ err, want error }{
		{io.EOF, io.EOF},
		{apierror.ErrTooLarge, apierror.ErrTooLarge},
		{fmt.Errorf("reading: %w", os.ErrDeadlineExceeded), apierror.ErrStalled},
		{fmt.Errorf("reading: %w", io.EOF), apierror.ErrIncomplete},
		{errors.New("cable cut"), apierror.ErrIncomplete},
	} {
		if _, err := (BodyReader{broken{c.err}}).Read(nil); !errors.Is(err, c.want) || c.want == io.EOF && err != io.EOF {
			t.Errorf("%v is translated to %v; want %v", c.err, err, c.want)
		}
	}
}

func TestDigestsDetectOtherContent(t *testing.T) {
	md5Sum, sha256Sum, sha512Sum := md5.Sum([]byte("cat")), sha256.Sum256([]byte("cat")), sha512.Sum512([]byte("cat"))
	for _, d := range []Digests{{MD5: md5Sum[:]}, {SHA256: sha256Sum[:]}, {SHA512: sha512Sum[:]}} {
		for content, want := range map[string]error{"cat": nil, "cot": apierror.ErrDigestMismatch, "": apierror.ErrDigestMismatch} {
			if _, err := io.ReadAll(d.Reader(strings.NewReader(content))); !errors.Is(err, want) {
				t.Errorf("%q with %+v: %v; want %v", content, d, err, want)
			}
		}
	}
}
