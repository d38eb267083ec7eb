package signerapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/shared/apierror"
)

// stub is the signer behind the handler; each test sets what it needs.
type stub struct {
	put    func(User, io.Reader, PutOptions) (Info, error)
	link   func(User, LinkOptions) (Link, error)
	delete func(User, Preconditions) error
	ticket func(User, int64) (UploadSession, error)
	commit func(User, string, CommitOptions) (Info, error)
	about  About
	ready  error
}

func (s stub) Put(_ context.Context, u User, body io.Reader, opts PutOptions) (Info, error) {
	return s.put(u, body, opts)
}
func (s stub) Link(_ context.Context, u User, o LinkOptions) (Link, error) { return s.link(u, o) }
func (s stub) Delete(_ context.Context, u User, c Preconditions) error     { return s.delete(u, c) }
func (s stub) StartUpload(_ context.Context, u User, size int64) (UploadSession, error) {
	return s.ticket(u, size)
}

func (s stub) CommitUpload(_ context.Context, u User, id string, o CommitOptions) (Info, error) {
	return s.commit(u, id, o)
}
func (s stub) About(context.Context) (About, error) { return s.about, nil }
func (s stub) Ready(context.Context) error          { return s.ready }

// unknown is all that is known of a picture in most tests.
var unknown = PutOptions{Size: -1}

// served is the signer's side of the contract over s, with nothing around it.
func served(s Signer) http.Handler {
	return NewHandler(s, HandlerOptions{})
}

// across returns a client whose signer, on the other side of HTTP, is s.
func across(t *testing.T, s Signer) *Client {
	t.Helper()
	srv := httptest.NewServer(served(s))
	t.Cleanup(srv.Close)
	return clientOf(t, srv.URL)
}

func clientOf(t *testing.T, base string) *Client {
	t.Helper()
	c, err := NewClient(base, ClientOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.transport.(*transport).kept.CloseIdleConnections)
	return c
}

// dialWith makes c open connections with dial.
func dialWith(c *Client, dial func(context.Context, string, string) (net.Conn, error)) {
	t := c.transport.(*transport)
	t.kept.DialContext, t.fresh.DialContext = dial, dial
}

func user(t testing.TB, name string) User {
	t.Helper()
	u, err := ParseUser(name)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestPutCarriesNameSizeAndEveryByte(t *testing.T) {
	content := bytes.Repeat([]byte("cat"), 100_000)
	want := Info{ETag: `"0x8D"`, ContentType: "image/png", Size: int64(len(content)), MD5: []byte("sixteen bytes...")}
	for _, name := range []string{"Davyd", "a b", "Мурчик", "a+b&user=x", "%2F", "a;b"} {
		for _, size := range []int64{-1, int64(len(content))} {
			var got []byte
			opts := PutOptions{
				Size: size, Preconditions: Preconditions{IfMatch: `"0x1"`, IfNoneMatch: "*"},
				Digests: Digests{MD5: make([]byte, 16), SHA256: make([]byte, 32), SHA512: make([]byte, 64)},
			}
			c := across(t, stub{put: func(u User, body io.Reader, told PutOptions) (Info, error) {
				if diff := cmp.Diff(opts, told); diff != "" || u.String() != name {
					t.Errorf("the signer was told user %q; want %q; %s", u, name, diff)
				}
				var err error
				got, err = io.ReadAll(body)
				return want, err
			}})
			info, err := c.Put(t.Context(), user(t, name), bytes.NewReader(content), opts)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, content) {
				t.Errorf("%q: %d bytes arrived of %d", name, len(got), len(content))
			}
			if diff := cmp.Diff(want, info); diff != "" {
				t.Error(diff)
			}
		}
	}
}

func TestLinkCarriesOptionsAndAnswer(t *testing.T) {
	want := Link{
		Info: Info{ETag: `"1"`, ContentType: "image/gif", Size: 3},
		URL:  "https://a.blob/cats/x/cat?sig=a%2Bb&se=1", ExpiresAt: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	opts := LinkOptions{TTL: 90 * time.Second, Download: `ca"t 猫.jpg`}
	c := across(t, stub{link: func(u User, o LinkOptions) (Link, error) {
		if diff := cmp.Diff(opts, o); diff != "" {
			t.Error(diff)
		}
		return want, nil
	}})
	got, err := c.Link(t.Context(), user(t, "x"), opts)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestATicketAndItsCommitCarryEverything(t *testing.T) {
	want := UploadSession{ID: "1795-9-AB", URL: "https://a.blob/cats/cats-api/upload/1?sig=a%2Bb", ExpiresAt: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC), BlockSize: 8 << 20}
	opts := CommitOptions{Preconditions: Preconditions{IfMatch: `"0x1"`, IfNoneMatch: "*"}, MD5: make([]byte, 16)}
	info := Info{ETag: `"1"`, ContentType: "image/gif", Size: 3}
	about := About{MaxDirectUploadSize: 5 << 30, LinkTTL: 3600, LinkMaxTTL: 7200, LinkOrigin: "https://a.blob", UserClaim: "oid"}
	c := across(t, stub{
		about: about,
		ticket: func(u User, size int64) (UploadSession, error) {
			if u.String() != "Мурчик" || size != 1<<40 {
				t.Errorf("the signer was told %q, %d", u, size)
			}
			return want, nil
		},
		commit: func(u User, id string, o CommitOptions) (Info, error) {
			if diff := cmp.Diff(opts, o); diff != "" || u.String() != "Мурчик" || id != want.ID {
				t.Errorf("the signer was told %q, %q, %s", u, id, diff)
			}
			return info, nil
		},
	})
	ticket, err := c.StartUpload(t.Context(), user(t, "Мурчик"), 1<<40)
	if diff := cmp.Diff(want, ticket); err != nil || diff != "" {
		t.Error(err, diff)
	}
	got, err := c.CommitUpload(t.Context(), user(t, "Мурчик"), ticket.ID, opts)
	if diff := cmp.Diff(info, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
	said, err := c.About(t.Context())
	if diff := cmp.Diff(about, said); err != nil || diff != "" {
		t.Error(err, diff)
	}
	for _, id := range []string{"", "a b", "a/b", "..", strings.Repeat("a", 97), "猫"} {
		if _, err := c.CommitUpload(t.Context(), user(t, "x"), id, CommitOptions{}); !errors.Is(err, apierror.ErrNoUpload) {
			t.Errorf("the ticket %q: %v", id, err)
		}
	}
	if s := fmt.Sprintf("%v %+v %#v", want, want, want); strings.Contains(s, "sig=") {
		t.Errorf("a ticket prints its URL: %s", s)
	}
}

func TestContractErrorsCrossTheWire(t *testing.T) {
	for e := range apierror.All() {
		c := across(t, stub{delete: func(User, Preconditions) error {
			return fmt.Errorf("deleting: %w", e.WithDetail("why").WithRetryAfter(7*time.Second).Wrap(errors.New("secret")))
		}})
		err := c.Delete(t.Context(), user(t, "x"), Preconditions{})
		if !errors.Is(err, e) {
			t.Errorf("%s arrived as %v", e.Code, err)
			continue
		}
		if got := apierror.AsError(err); got.Detail != "why" || got.Status != e.Status || got.RetryAfter != 7*time.Second || got.Unwrap() != nil {
			t.Errorf("%s arrived with detail %q, status %d, Retry-After %v, cause %v", e.Code, got.Detail, got.Status, got.RetryAfter, got.Unwrap())
		}
	}
}

func TestAnErrorWithoutACaseArrivesAsInternalAndSaysNothing(t *testing.T) {
	c := across(t, stub{delete: func(User, Preconditions) error { return errors.New("account key is hunter2") }})
	err := c.Delete(t.Context(), user(t, "x"), Preconditions{})
	if !errors.Is(err, apierror.ErrInternal) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v; want a bare apierror.ErrInternal", err)
	}
}

func TestReadyAndNotReady(t *testing.T) {
	if err := across(t, stub{}).Ready(t.Context()); err != nil {
		t.Errorf("a ready signer: %v", err)
	}
	if err := across(t, stub{ready: apierror.ErrIdentityUnavailable}).Ready(t.Context()); !errors.Is(err, apierror.ErrIdentityUnavailable) {
		t.Errorf("a signer without a key: %v", err)
	}
	if err := clientOf(t, "http://127.0.0.1:1").Ready(t.Context()); !errors.Is(err, apierror.ErrSignerUnavailable) {
		t.Errorf("no signer at all: %v", err)
	}
}

// A picture that is cut off must reach the signer as a broken body, whatever the
// reason and wherever the cut, and must come back as that reason.
func TestABrokenBodyIsNeverTheEndOfAPicture(t *testing.T) {
	for name, cause := range map[string]error{
		"a reason of the contract": apierror.ErrTooLarge,
		"a wrapped io.EOF":         fmt.Errorf("reading: %w", io.EOF),
		"an unexpected EOF":        io.ErrUnexpectedEOF,
		"anything":                 errors.New("cable cut"),
	} {
		for _, sent := range []int{0, 1, 5_000, 300_000} {
			t.Run(fmt.Sprintf("%s after %d bytes", name, sent), func(t *testing.T) {
				seen := make(chan error, 1)
				c := across(t, stub{put: func(_ User, body io.Reader, _ PutOptions) (Info, error) {
					_, err := io.Copy(io.Discard, body)
					seen <- err
					return Info{}, err
				}})
				body := io.MultiReader(strings.NewReader(strings.Repeat("x", sent)), failing{cause})
				if _, err := c.Put(t.Context(), user(t, "x"), body, unknown); !errors.Is(err, cause) || errors.Is(err, apierror.ErrSignerUnavailable) {
					t.Errorf("Put returned %v; want %v", err, cause)
				}
				select {
				case err := <-seen:
					if !errors.Is(err, apierror.ErrIncomplete) {
						t.Errorf("the signer read %v; want apierror.ErrIncomplete", err)
					}
				case <-time.After(5 * time.Second):
					// The body broke before the request went out: nothing to see.
					if sent > 0 {
						t.Error("the signer saw no request")
					}
				}
			})
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestARefusalBeforeTheBodyIsHeard(t *testing.T) {
	c := across(t, stub{put: func(User, io.Reader, PutOptions) (Info, error) { return Info{}, apierror.ErrOverloaded }})
	body := &counting{}
	_, err := c.Put(t.Context(), user(t, "x"), body, PutOptions{Size: 1 << 30})
	if !errors.Is(err, apierror.ErrOverloaded) {
		t.Fatalf("Put returned %v; want apierror.ErrOverloaded", err)
	}
	if body.n > 0 {
		t.Errorf("%d bytes were read of a picture that was refused by its header", body.n)
	}
}

// counting is an endless body.
type counting struct{ n int }

func (c *counting) Read(p []byte) (int, error) { c.n += len(p); return len(p), nil }

func TestASignerThatDiesIsUnavailable(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer srv.Close()
	c := clientOf(t, srv.URL)
	if _, err := c.Put(t.Context(), user(t, "x"), strings.NewReader("cat"), PutOptions{Size: 3}); !errors.Is(err, apierror.ErrSignerUnavailable) {
		t.Errorf("Put: %v", err)
	}
	if _, err := c.Link(t.Context(), user(t, "x"), LinkOptions{}); !errors.Is(err, apierror.ErrSignerUnavailable) {
		t.Errorf("Link: %v", err)
	}
}

func TestAnswersOutsideTheContractAreInternal(t *testing.T) {
	for _, answer := range []string{"", "<html>", `{"code":"made_up"}`, `[]`, strings.Repeat("x", 1000)} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusTeapot)
			_, _ = io.WriteString(w, answer)
		}))
		if err := clientOf(t, srv.URL).Delete(t.Context(), user(t, "x"), Preconditions{}); !errors.Is(err, apierror.ErrInternal) {
			t.Errorf("%.20q: %v; want apierror.ErrInternal", answer, err)
		}
		srv.Close()
	}
}

func TestTheHandlerTrustsNothing(t *testing.T) {
	h := served(stub{
		put:    func(User, io.Reader, PutOptions) (Info, error) { t.Error("put was called"); return Info{}, nil },
		link:   func(User, LinkOptions) (Link, error) { t.Error("link was called"); return Link{}, nil },
		delete: func(User, Preconditions) error { t.Error("delete was called"); return nil },
	})
	for _, c := range []struct {
		method, target string
		status         int
	}{
		{"PUT", "/v1/picture", 422},
		{"PUT", "/v1/picture?user=..", 422},
		{"PUT", "/v1/picture?user=a%2Fb", 422},
		{"PUT", "/v1/picture?user=a&user=b", 422},
		{"PUT", "/v1/picture?user=a&size=-2", 422},
		{"PUT", "/v1/picture?user=a&size=99999999999999999999", 422},
		{"DELETE", "/v1/picture?user=%ff", 422},
		{"DELETE", "/v1/picture?user=a%", 422},
		{"GET", "/v1/picture?user=a", 405},
		{"POST", "/v1/link?user=a", 405},
		{"GET", "/v1/link?user=a&ttl_seconds=0", 422},
		{"GET", "/v1/link?user=a&ttl_seconds=-1", 422},
		{"GET", "/v1/link?user=a&ttl_seconds=9223372036854775807", 422},
		{"GET", "/v1/link?user=a&ttl_seconds=1h", 422},
		{"GET", "/v1/link?user=a&download=%0d%0aSet-Cookie:x", 422},
		{"GET", "/v1/link?user=a&download=" + strings.Repeat("x", 256), 422},
		{"GET", "/v1/link?user=a&download=..%2Fx", 422},
		{"GET", "/v1/uploads?user=a&size=1", 405},
		{"POST", "/v1/uploads?user=a", 422},
		{"POST", "/v1/uploads?user=a&size=-1", 422},
		{"POST", "/v1/uploads?user=..&size=1", 422},
		{"POST", "/v1/commit?user=a", 404},
		{"POST", "/v1/commit?user=a&ticket=..%2Fx", 404},
		{"POST", "/v1/commit?user=a%2Fb&ticket=1-1-A", 422},
		{"POST", "/v1/commit?user=a&ticket=1-1-A&md5=00", 422},
		{"POST", "/v1/commit?user=a&ticket=1-1-A&if_match=x", 422},
		{"POST", "/v1/about", 405},
		{"GET", "/v1/list", 404},
		{"GET", "/", 404},
	} {
		r := httptest.NewRequestWithContext(t.Context(), c.method, c.target, strings.NewReader("x"))
		r.Header.Set(contractHeader, contractVersion)
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		if rec.Code != c.status {
			t.Errorf("%s %s: %d %s; want %d", c.method, c.target, rec.Code, rec.Body, c.status)
		}
	}
}

func TestHandlerMatchesPathsByteByByte(t *testing.T) {
	h := NewHandler(stub{}, HandlerOptions{Wrap: func(route string, probe bool, _ http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, route, " ", probe) })
	}})
	for target, want := range map[string]string{
		"/v1/link": "/v1/link false", "/v1/link?user=a/../b": "/v1/link false", "http://elsewhere/v1/link": "/v1/link false", "/v1/ready": "/v1/ready true",
		"/": "other false", "//v1/link": "other false", "/v1//link": "other false", "/v1/./link": "other false", "/v1/picture/../link": "other false", "/v1/link/": "other false",
		"/v1/%6cink": "other false", "/v1%2flink": "other false", "/V1/link": "other false", "/v1/link;a": "other false", "/v1/link%00": "other false", "/v1\\link": "other false",
	} {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, target, nil))
		if got := rec.Body.String(); got != want || rec.Code != http.StatusOK {
			t.Errorf("%s: %d, that of %q; want %q", target, rec.Code, got, want)
		}
	}
}

func TestARequestThatDoesNotKnowTheContractIsRefused(t *testing.T) {
	h := served(stub{}) // which panics when it is called
	for _, call := range [][2]string{{"PUT", "/v1/picture?user=a"}, {"DELETE", "/v1/picture?user=a"}, {"GET", "/v1/link?user=a"}, {"POST", "/v1/uploads?user=a&size=1"}, {"POST", "/v1/commit?user=a&ticket=1-1-A"}, {"GET", "/v1/about"}, {"GET", "/v1/ready"}} {
		for _, version := range []string{"", "0", "11"} {
			r := httptest.NewRequestWithContext(t.Context(), call[0], call[1], strings.NewReader("x"))
			r.Header.Set(contractHeader, version)
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			if rec.Code != http.StatusForbidden {
				t.Errorf("%s %s of version %q: %d %s; want 403", call[0], call[1], version, rec.Code, rec.Body)
			}
		}
	}
}

func TestASignedURLDoesNotPrintOrLog(t *testing.T) {
	const secret = "sig=abc"
	link := Link{URL: "https://a/b?" + secret}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "url", link.URL, "link", link)
	printed := fmt.Sprintf("%v %+v %#v %s %q", link, link, link, link.URL, link.URL) + log.String()
	if strings.Contains(printed, secret) {
		t.Errorf("the credential shows: %s", printed)
	}
	if b, err := json.Marshal(link); err != nil || !strings.Contains(string(b), secret) {
		t.Errorf("JSON must carry the whole URL: %s, %v", b, err)
	}
}

func TestClientRefusesABaseThatIsNoSigner(t *testing.T) {
	for _, base := range []string{"", "127.0.0.1:8081", "http://127.0.0.1", "https://127.0.0.1:1", "http://127.0.0.1:1/x", "http://", "http://a:1?b", ":"} {
		if _, err := NewClient(base, ClientOptions{}); err == nil {
			t.Errorf("NewClient(%q) took it", base)
		}
	}
}

func TestTheUserNameStaysOutOfErrors(t *testing.T) {
	err := clientOf(t, "http://127.0.0.1:1").Delete(t.Context(), user(t, "Davyd"), Preconditions{})
	if err == nil || strings.Contains(err.Error(), url.QueryEscape("Davyd")) {
		t.Errorf("got %v", err)
	}
}
