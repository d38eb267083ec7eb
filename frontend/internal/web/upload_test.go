package web

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

func TestDirectUploadIsForwarded(t *testing.T) {
	a := newAPI(t)
	rec := a.send("POST", "/cat/a%20b/upload?size=7", nil)
	if want := `{"owner":{"name":"a b"},"id":"1-7-A","upload_url":"https://acct.blob/cats/upload?sig=a%2Fb&sp=c","expires_at":"2033-05-18T03:33:20Z"}`; rec.Code != 201 || rec.Body.String() != want {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	rec = a.send("POST", "/cat/a%20b/upload/1-7-A/commit?content_md5=AAAAAAAAAAAAAAAAAAAAAA%3D%3D", nil, "If-None-Match", "*")
	if want := `{"owner":{"name":"a b"},"etag":"\"1\"","content_type":"image/png","size":3}`; rec.Code != 200 || rec.Body.String() != want || rec.Header().Get("ETag") != `"1"` {
		t.Errorf("%d %s", rec.Code, rec.Body)
	}
	want := call{user: "a b", uploadID: "1-7-A", commit: signerapi.CommitOptions{Preconditions: signerapi.Preconditions{IfNoneMatch: "*"}, MD5: make([]byte, 16)}}
	if diff := cmp.Diff(want, a.signer.last, cmp.AllowUnexported(call{})); diff != "" {
		t.Error(diff)
	}
}

func TestInvalidDirectUploadsDoNotReachTheSigner(t *testing.T) {
	a := newAPI(t)
	a.signer.err = errCalled
	for target, code := range map[string]string{
		"/cat/x/upload":                                        "invalid_argument",
		"/cat/x/upload?size=":                                  "invalid_argument",
		"/cat/x/upload?size=1e3":                               "invalid_argument",
		"/cat/x/upload?size=-1":                                "invalid_argument",
		"/cat/x/upload?size=1&size=1":                          "invalid_argument",
		"/cat/x/upload?size=%zz":                               "invalid_argument",
		"/cat/x/upload?size=1;2":                               "invalid_argument",
		"/cat/a%2Fb/upload?size=1":                             "invalid_user",
		"/cat/a%2Fb/upload/1-7-A/commit":                       "invalid_user",
		"/cat/x/upload/1_7/commit":                             "no_such_upload",
		"/cat/x/upload/%2e%2e/commit":                          "no_such_upload",
		"/cat/x/upload/" + strings.Repeat("a", 97) + "/commit": "no_such_upload",
		"/cat/x/upload/1-7-A/commit?content_md5=":              "invalid_argument",
		"/cat/x/upload/1-7-A/commit?content_md5=AAAA":          "invalid_argument",
		"/cat/x/upload/1-7-A/commit?content_md5=%zz":           "invalid_argument",
		"/cat/x/upload/1-7-A/commit?content_md5=a;b":           "invalid_argument",
		"/cat/x/upload/1-7-A":                                  "no_such_path",
	} {
		rec := a.send("POST", target, nil)
		wantProblem(t, rec, declared()[code].Status, code)
	}
	wantProblem(t, a.send("POST", "/cat/x/upload/1-7-A/commit", nil, "If-Match", "W/x"), 422, "invalid_argument")
}

func TestServiceAndAbout(t *testing.T) {
	if rec := newAPI(t).send("GET", "/service", nil); rec.Code != 200 || rec.Body.String() != `{"service-name":"cats-api"}` || rec.Header().Get("Content-Type") != "application/json" {
		t.Errorf("/service: %d %v %s; want the tutorial's response", rec.Code, rec.Header(), rec.Body)
	}
	limits := `{"max_picture_size":20000,"max_direct_size":5368709120,"picture_types":["image/png"],"max_pixels":1000,"link_ttl_seconds":3600,"link_max_ttl_seconds":86400,"storage_origin":"https://acct.blob"`
	settings := []string{"ACCEPTED_TYPES=image/png", "MAX_PIXELS=1000"}
	for _, c := range []struct{ setting, rest string }{
		{"", "}"},
		{"OIDC_ISSUER=https://login.example.com", `,"read_access":"own"}`},
		{"OIDC_CLIENT_ID=page", `,"read_access":"own","sign_in":{"issuer":"https://login.example.com","discovery_url":"https://login.example.com/.well-known/openid-configuration","client_id":"page","scope":"openid","user_claim":"oid"}}`},
		{"OIDC_DISCOVERY_URL=https://b2c.example/v2.0?p=a", `,"read_access":"own","sign_in":{"issuer":"https://login.example.com","discovery_url":"https://b2c.example/v2.0/.well-known/openid-configuration?p=a","client_id":"page","scope":"openid","user_claim":"oid"}}`},
	} {
		settings = append(settings, c.setting)
		if rec := newAPI(t, settings...).send("GET", "/about", nil); rec.Code != 200 || rec.Body.String() != limits+c.rest {
			t.Errorf("%v: %d %s", settings, rec.Code, rec.Body)
		}
	}
	a := newAPI(t)
	a.signer.err = apierror.ErrSignerUnavailable
	wantProblem(t, a.send("GET", "/about", nil), 503, "signer_unavailable")
}
