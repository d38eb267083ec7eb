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
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/shared/apierror"
)

// fakeCall is a call that a fake got.
type fakeCall struct {
	User, Content, UploadID, Client string
	Token                           Token
	Size                            int64
	Put                             PutOptions
	Link                            LinkOptions
	Preconditions                   Preconditions
	Commit                          CommitOptions
}

// fake is a Signer that keeps the calls and returns its fields.
type fake struct {
	info    Info
	link    Link
	session UploadSession
	about   About
	err     error // of Delete
	calls   []fakeCall
}

func (f *fake) keep(ctx context.Context, u User, c fakeCall) {
	c.User, c.Token, c.Client = u.String(), TokenFrom(ctx), ClientFrom(ctx)
	f.calls = append(f.calls, c)
}

func (f *fake) Put(ctx context.Context, u User, body io.Reader, o PutOptions) (Info, error) {
	content, err := io.ReadAll(body)
	f.keep(ctx, u, fakeCall{Content: string(content), Put: o})
	return f.info, err
}

func (f *fake) Link(ctx context.Context, u User, o LinkOptions) (Link, error) {
	f.keep(ctx, u, fakeCall{Link: o})
	return f.link, nil
}

func (f *fake) Delete(ctx context.Context, u User, c Preconditions) error {
	f.keep(ctx, u, fakeCall{Preconditions: c})
	return f.err
}

func (f *fake) StartUpload(ctx context.Context, u User, size int64) (UploadSession, error) {
	f.keep(ctx, u, fakeCall{Size: size})
	return f.session, nil
}

func (f *fake) CommitUpload(ctx context.Context, u User, id string, o CommitOptions) (Info, error) {
	f.keep(ctx, u, fakeCall{UploadID: id, Commit: o})
	return f.info, nil
}

func (f *fake) About(context.Context) (About, error) { return f.about, nil }

func (*fake) Ready(context.Context) error { return nil }

// serve returns a client of f over HTTP, and the number of connections so far.
func serve(t *testing.T, f *fake) (c *Client, connections *atomic.Int64) {
	t.Helper()
	connections = new(atomic.Int64)
	srv := httptest.NewUnstartedServer(NewHandler(f, HandlerOptions{Authorize: permit}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	return newClient(t, srv.URL), connections
}

func TestCallsCarryArgumentsTokensAndResults(t *testing.T) {
	f := &fake{
		info:    Info{ETag: `"0x8D"`, ContentType: "image/png", Size: 300_000, MD5: []byte("sixteen bytes...")},
		session: UploadSession{ID: "1795-9-AB", URL: "https://a.blob/1?sig=a%2Bb", ExpiresAt: time.Unix(2e9, 0).UTC(), BlockSize: 8 << 20},
		about:   About{MaxDirectUploadSize: 5 << 30, LinkTTL: 3600, LinkMaxTTL: 7200, LinkOrigin: "https://a.blob", UserClaim: "oid"},
	}
	f.link = Link{Info: f.info, URL: "https://a.blob/cats/x/cat?sig=a%2Bb&se=1", ExpiresAt: f.session.ExpiresAt}
	c, connections := serve(t, f)
	content := strings.Repeat("cat", 100_000)
	conditions := Preconditions{IfMatch: `"0x1"`, IfNoneMatch: "*"}
	sized := PutOptions{Size: 300_000, Preconditions: conditions, Digests: Digests{MD5: make([]byte, 16), SHA256: make([]byte, 32), SHA512: make([]byte, 64)}}
	bounded := PutOptions{Size: -1, MinSize: 1, MaxSize: 1 << 40}
	linkOptions := LinkOptions{TTL: 90 * time.Second, Download: `ca"t 猫.jpg`}
	commit := CommitOptions{Preconditions: conditions, MD5: make([]byte, 16)}
	const token = "eyJhbGciOiJub25lIn0.e30.-_~+/=="
	ctx := WithClient(WithToken(t.Context(), token), "2001:db8::/56")
	u, err := ParseUser("Мурчик a+b&user=x;%2F")

	stored, err1 := c.Put(ctx, u, strings.NewReader(content), sized)
	stored2, err2 := c.Put(ctx, u, strings.NewReader(content), bounded)
	linked, err3 := c.Link(ctx, u, linkOptions)
	err4 := c.Delete(ctx, u, conditions)
	started, err5 := c.StartUpload(ctx, u, 1<<40)
	committed, err6 := c.CommitUpload(ctx, u, f.session.ID, commit)
	described, err7 := c.About(ctx)
	if err := errors.Join(err, err1, err2, err3, err4, err5, err6, err7, c.Ready(ctx)); err != nil {
		t.Fatal(err)
	}
	results := []any{stored, stored2, linked, started, committed, described}
	if diff := cmp.Diff([]any{f.info, f.info, f.link, f.session, f.info, f.about}, results); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
	want := []fakeCall{
		{Content: content, Put: sized},
		{Content: content, Put: bounded},
		{Link: linkOptions},
		{Preconditions: conditions},
		{Size: 1 << 40},
		{UploadID: f.session.ID, Commit: commit},
	}
	for i := range want {
		want[i].User, want[i].Token, want[i].Client = u.String(), token, "2001:db8::/56"
	}
	if diff := cmp.Diff(want, f.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if n := connections.Load(); n != 3 {
		t.Errorf("%d connections; want one for Delete, one for CommitUpload, and one for all other calls", n)
	}
}

func TestErrorsCrossTheWire(t *testing.T) {
	f := &fake{}
	c, _ := serve(t, f)
	for e := range apierror.All() {
		f.err = fmt.Errorf("deleting: %w", e.WithDetail("why").WithRetryAfter(7*time.Second).Wrap(errors.New("secret")))
		want := apierror.Error{Code: e.Code, Status: e.Status, Detail: "why", RetryAfter: 7 * time.Second, Outcome: e.Outcome}
		got := apierror.AsError(c.Delete(t.Context(), davyd, Preconditions{}))
		if diff := cmp.Diff(want, *got, cmp.AllowUnexported(apierror.Error{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", e.Code, diff)
		}
	}
	made := &apierror.Error{Code: "hunter2", Detail: "hunter2", Outcome: apierror.OutcomeUnknown}
	for _, f.err = range []error{errors.New("hunter2"), made} {
		err := c.Delete(t.Context(), davyd, Preconditions{})
		got, want := apierror.AsError(err), apierror.AsError(f.err).Outcome
		if got.Code != "internal" || got.Outcome != want || strings.Contains(err.Error()+got.Detail, "hunter2") {
			t.Errorf("%v arrived as %v with outcome %q; want internal with outcome %q", f.err, err, got.Outcome, want)
		}
	}
}

func TestBearerTokenRejectsOtherFields(t *testing.T) {
	for _, fields := range [][]string{{"Bearer a", "Bearer b"}, {"Basic YTpi"}, {"Bearer"}, {"Bearer a b"}, {"Bearer a,b"}, {""}} {
		if _, err := BearerToken(http.Header{"Authorization": fields}); !errors.Is(err, apierror.ErrUnauthenticated) {
			t.Errorf("%q: %v", fields, err)
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

func TestBodyReaderTranslatesErrors(t *testing.T) {
	for _, c := range []struct{ err, want error }{
		{io.EOF, io.EOF},
		{apierror.ErrTooLarge, apierror.ErrTooLarge},
		{fmt.Errorf("reading: %w", os.ErrDeadlineExceeded), apierror.ErrStalled},
		{fmt.Errorf("reading: %w", io.EOF), apierror.ErrIncomplete},
	} {
		if _, err := (BodyReader{iotest.ErrReader(c.err)}).Read(nil); !errors.Is(err, c.want) || c.want == io.EOF && err != io.EOF {
			t.Errorf("%v is translated to %v; want %v", c.err, err, c.want)
		}
	}
}

func TestDigestsAcceptTheirContent(t *testing.T) {
	md5Sum, sha256Sum, sha512Sum := md5.Sum([]byte("cat")), sha256.Sum256([]byte("cat")), sha512.Sum512([]byte("cat"))
	d := Digests{MD5: md5Sum[:], SHA256: sha256Sum[:], SHA512: sha512Sum[:]}
	for content, want := range map[string]error{"cat": nil, "cot": apierror.ErrDigestMismatch, "": apierror.ErrDigestMismatch} {
		if _, err := io.ReadAll(d.Reader(strings.NewReader(content))); !errors.Is(err, want) {
			t.Errorf("%q: %v; want %v", content, err, want)
		}
	}
}
