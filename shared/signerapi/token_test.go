package signerapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cats.example/shared/apierror"
)

func TestTheCallersTokenIsPassedOnAndNeverShown(t *testing.T) {
	var got []Token
	srv := httptest.NewServer(served(tokens{stub{}, &got}))
	defer srv.Close()
	c := clientOf(t, srv.URL)
	for _, want := range []Token{"", "eyJhbGciOiJub25lIn0.e30.-_~+/=="} {
		got = nil
		ctx := t.Context()
		if want != "" {
			ctx = WithToken(ctx, want)
		}
		_, put := c.Put(ctx, user(t, "x"), strings.NewReader("x"), PutOptions{Size: 1})
		_, link := c.Link(ctx, user(t, "x"), LinkOptions{})
		if err := errors.Join(put, link, c.Delete(ctx, user(t, "x"), Preconditions{})); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]Token{want, want, want}, got); diff != "" {
			t.Errorf("tokens (-want +got):\n%s", diff)
		}
		for _, shown := range []string{fmt.Sprint(want), fmt.Sprintf("%#v %+v %q", want, want, want), want.LogValue().String()} {
			if want != "" && strings.Contains(shown, string(want)) {
				t.Errorf("it is shown: %s", shown)
			}
		}
	}
	for _, field := range [][]string{{"Bearer a", "Bearer b"}, {"Basic YTpi"}, {"Bearer"}, {"Bearer a b"}, {"Bearer a,b"}, {""}} {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/v1/link?user=x", nil)
		r.Header.Set(contractHeader, contractVersion)
		r.Header["Authorization"] = field
		rec := httptest.NewRecorder()
		served(stub{}).ServeHTTP(rec, r) // which panics when it is called
		if rec.Code != http.StatusUnauthorized {
			t.Errorf("%q: %d %s; want 401", field, rec.Code, rec.Body)
		}
	}
}

// tokens notes whose token comes with each call.
type tokens struct {
	stub
	got *[]Token
}

func (s tokens) Put(ctx context.Context, _ User, body io.Reader, _ PutOptions) (Info, error) {
	*s.got = append(*s.got, TokenFrom(ctx))
	_, err := io.Copy(io.Discard, body)
	return Info{}, err
}

func (s tokens) Link(ctx context.Context, _ User, _ LinkOptions) (Link, error) {
	*s.got = append(*s.got, TokenFrom(ctx))
	return Link{}, nil
}

func (s tokens) Delete(ctx context.Context, _ User, _ Preconditions) error {
	*s.got = append(*s.got, TokenFrom(ctx))
	return nil
}

func TestTokensAreRejectedWithoutAuthentication(t *testing.T) {
	var paths []string
	wrap := func(route string, _ bool, h http.Handler) http.Handler {
		paths = append(paths, route)
		return h
	}
	// The stub's other calls panic.
	h := NewHandler(stub{about: About{LinkTTL: 7}}, HandlerOptions{AuthenticationOff: true, SharedSettings: map[string]string{"OIDC_ISSUER": ""}, Wrap: wrap})
	for _, path := range paths {
		for _, method := range []string{"GET", "PUT", "POST", "DELETE"} {
			for _, token := range []string{"mew", "a.b.c"} {
				rec := httptest.NewRecorder()
				req := httptest.NewRequestWithContext(t.Context(), method, "/?user=mia&size=1&ticket=1-1-A", strings.NewReader("cat"))
				req.URL.Path = path
				req.Header.Set(contractHeader, contractVersion)
				req.Header.Set("Authorization", "Bearer "+token)
				if h.ServeHTTP(rec, req); path == "other" && rec.Code == http.StatusNotFound || rec.Code == http.StatusMethodNotAllowed {
					continue
				}
				if rec.Code != http.StatusServiceUnavailable || !strings.Contains(rec.Body.String(), `"misconfigured"`) || rec.Header().Get("Retry-After") == "" {
					t.Errorf("%s %s with the token %q: %d %s", method, path, token, rec.Code, rec.Body)
				}
			}
		}
	}
	srv := httptest.NewServer(h)
	defer srv.Close()
	c := clientOf(t, srv.URL)
	if about, err := c.About(t.Context()); err != nil || about.LinkTTL != 7 || about.SharedSettings["OIDC_ISSUER"] != "" || len(about.SharedSettings) != 1 {
		t.Errorf("about without a token: %+v, %v", about, err)
	}
	if err := c.Ready(t.Context()); err != nil {
		t.Errorf("ready without a token: %v", err)
	}
	if err := c.Delete(WithToken(t.Context(), "mew"), user(t, "mia"), Preconditions{}); !errors.Is(err, apierror.ErrMisconfigured) {
		t.Errorf("a client that passes a token on: %v", err)
	}
}
