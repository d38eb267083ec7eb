package signerapi

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"cats.example/shared/apierror"
)

// permit is the Authorize of a signer that permits each call.
func permit(ctx context.Context, _ User, _ Rule) (context.Context, error) { return ctx, nil }

// A call whose rule is not in the table fails this test.
func TestEveryCallIsAuthorized(t *testing.T) {
	want := map[string]Rule{
		"PUT /v1/picture": Owner, "DELETE /v1/picture": Owner, "GET /v1/link": Readers, "POST /v1/uploads": Owner,
		"POST /v1/commit": Owner, "GET /v1/about": Everybody, "GET /v1/ready": Everybody,
	}
	const arguments = "?user=mia&size=1&upload_id=1-1-A"
	for path, methods := range callsOf(&fake{}, nil) {
		for method := range methods {
			call := func(options HandlerOptions) *httptest.ResponseRecorder {
				r, rec := httptest.NewRequestWithContext(t.Context(), method, path+arguments, nil), httptest.NewRecorder()
				r.Header = http.Header{contractHeader: {contractVersion}, "Authorization": {"Bearer a.b.c"}}
				NewHandler(&fake{}, options).ServeHTTP(rec, r)
				return rec
			}
			rule, ok := want[method+" "+path]
			asked := Everybody
			rec := call(HandlerOptions{Authorize: func(ctx context.Context, user User, rule Rule) (context.Context, error) {
				asked = rule
				if user.String() != "mia" || TokenFrom(ctx) != "a.b.c" || ClientFrom(ctx) != "" {
					t.Errorf("%s %s: authorized for %q", method, path, user)
				}
				return nil, apierror.ErrUnauthenticated
			}})
			if rejected := rec.Code == http.StatusUnauthorized; !ok || asked != rule || rejected == (rule == Everybody) {
				t.Errorf("%s %s: %d, rule %d; want %d", method, path, rec.Code, asked, rule)
			}
			// The frontend sends a token, and authentication is off here.
			rec = call(HandlerOptions{})
			if rec.Code != http.StatusServiceUnavailable || !strings.Contains(rec.Body.String(), `"misconfigured"`) || rec.Header().Get("Retry-After") != "30" {
				t.Errorf("%s %s with authentication off: %d %s; want misconfigured", method, path, rec.Code, rec.Body)
			}
		}
	}
}
