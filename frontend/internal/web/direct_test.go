package web

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cats.example/shared/access"
	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

func TestATicketAndItsCommitAreForwarded(t *testing.T) {
	h, signer, _ := newWeb(t)
	rec := ask(h, "POST", "/cat/a%20b/upload?size=7", nil)
	if want := `{"owner":{"name":"a b"},"id":"1-7-A","upload_url":"https://acct.blob/cats/upload?sig=a%2Fb&sp=c","expires_at":"2033-05-18T03:33:20Z"}`; rec.Code != 201 || rec.Body.String() != want {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	rec = ask(h, "POST", "/cat/a%20b/upload/1-7-A/commit?content_md5=AAAAAAAAAAAAAAAAAAAAAA%3D%3D", http.Header{"If-None-Match": {"*"}})
	if want := `{"owner":{"name":"a b"},"etag":"\"1\"","content_type":"image/png","size":3}`; rec.Code != 200 || rec.Body.String() != want || rec.Header().Get("ETag") != `"1"` {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	if diff := cmp.Diff(signerapi.CommitOptions{Preconditions: signerapi.Preconditions{IfNoneMatch: "*"}, MD5: make([]byte, 16)}, signer.commit); diff != "" || signer.ticket != "1-7-A" || signer.asked != "a b" {
		t.Errorf("the signer was asked for %q of %q; %s", signer.ticket, signer.asked, diff)
	}
	signer.asked = ""
	for target, status := range map[string]int{
		"/cat/x/upload":                                        422,
		"/cat/x/upload?size=":                                  422,
		"/cat/x/upload?size=1e3":                               422,
		"/cat/x/upload?size=-1":                                422,
		"/cat/x/upload?size=1&size=1":                          422,
		"/cat/a%2Fb/upload?size=1":                             422,
		"/cat/a%2Fb/upload/1-7-A/commit":                       422,
		"/cat/x/upload/1_7/commit":                             404,
		"/cat/x/upload/%2e%2e/commit":                          404,
		"/cat/x/upload/" + strings.Repeat("a", 97) + "/commit": 404,
		"/cat/x/upload/1-7-A/commit?content_md5=":              422,
		"/cat/x/upload/1-7-A/commit?content_md5=AAAA":          422,
		"/cat/x/upload/1-7-A":                                  404,
	} {
		if rec := ask(h, "POST", target, nil); rec.Code != status || signer.asked != "" {
			t.Errorf("%s: %d %s; want %d. The signer was asked for %q", target, rec.Code, rec.Body, status, signer.asked)
		}
	}
	if rec := ask(h, "POST", "/cat/x/upload/1-7-A/commit", http.Header{"If-Match": {"W/x"}}); rec.Code != 422 {
		t.Errorf("a condition that is none: %d", rec.Code)
	}
}

func TestAboutSaysWhatClientsCanDo(t *testing.T) {
	limits := `{"max_picture_size":20000,"max_direct_size":5368709120,"picture_types":["image/png"],"max_pixels":1000,"link_ttl_seconds":3600,"link_max_ttl_seconds":86400,"storage_origin":"https://acct.blob"`
	settings := []string{"ACCEPTED_TYPES=image/png", "MAX_PIXELS=1000"}
	for _, c := range []struct{ setting, said string }{
		{"", "}"}, // anyone may do anything
		{"OIDC_ISSUER=https://login.example.com", `,"read_access":"own"}`},
		{"OIDC_CLIENT_ID=page", `,"read_access":"own","sign_in":{"issuer":"https://login.example.com","discovery_url":"https://login.example.com/.well-known/openid-configuration","client_id":"page","scope":"openid","user_claim":"oid"}}`},
		{"OIDC_DISCOVERY_URL=https://b2c.example/v2.0?p=a", `,"read_access":"own","sign_in":{"issuer":"https://login.example.com","discovery_url":"https://b2c.example/v2.0/.well-known/openid-configuration?p=a","client_id":"page","scope":"openid","user_claim":"oid"}}`},
	} {
		settings = append(settings, c.setting)
		h, _, _ := newWebWith(t, settings...)
		if rec := ask(h, "GET", "/about", nil); rec.Code != 200 || rec.Body.String() != limits+c.said {
			t.Errorf("%v: %d %s", settings, rec.Code, rec.Body)
		}
	}
	h, signer, _ := newWeb(t)
	signer.fail = apierror.ErrSignerUnavailable
	wantProblem(t, ask(h, "GET", "/about", nil), 503, "signer_unavailable")
	if err := (Options{SignIn: SignIn{ClientID: "page"}}).Validate(); err == nil || !strings.Contains(err.Error(), "OIDC_ISSUER is not set") {
		t.Errorf("a client of no issuer: %v", err)
	}
	if err := (Options{Policy: access.Policy{Issuer: "https://login.example.com"}, SignIn: SignIn{ClientID: "page", Scope: "api://x/.default"}}).Validate(); err == nil || !strings.Contains(err.Error(), `OIDC_SCOPE is "api://x/.default"`) {
		t.Errorf("a scope without openid: %v", err)
	}
}

func ask(h http.Handler, method, target string, header http.Header) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, nil) //nolint:noctx // a test's own
	maps.Copy(r.Header, header)
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}
