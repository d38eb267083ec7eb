package web

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/frontend/internal/form"
	"cats.example/shared/signerapi"
)

func TestLinkOptionsAreValidated(t *testing.T) {
	a := newAPI(t)
	a.signer.pictures["x"] = png
	for query, want := range map[string]*signerapi.LinkOptions{
		"":                           {},
		"ttl=1h30m&download=cat.jpg": {TTL: 90 * time.Minute, Download: "cat.jpg"},
		"download=%E7%8C%AB.png":     {Download: "猫.png"},
		"other=1":                    {},
		"ttl=":                       nil, "ttl=10": nil, "ttl=-5m": nil, "ttl=0s": nil, "ttl=1500ms": nil, "ttl=1m&ttl=2m": nil, "ttl=99999999h": nil,
		"download=": nil, "download=a%2Fb": nil, "download=a%0d%0ab": nil, "download=a&download=b": nil, "download=%ff": nil,
		"ttl=5s;x=1": nil, "ttl=5s%": nil, "download=100%.png": nil, "download=a;b.png": nil, "%zz": nil, "a%2=b": nil,
	} {
		for _, path := range []string{"/cat/x", "/cat/x/picture"} {
			rec := a.send("GET", path+"?"+query, nil)
			if want == nil {
				wantProblem(t, rec, 422, "invalid_argument")
			} else if diff := cmp.Diff(*want, a.signer.last.link); diff != "" || rec.Code >= 400 {
				t.Errorf("?%s: %d %s", query, rec.Code, diff)
			}
		}
	}
}

func TestInvalidUploadsAreRejectedEarly(t *testing.T) {
	a := newAPI(t)
	for _, c := range []struct {
		content string
		status  int
		code    string
	}{
		{png[:40] + strings.Repeat("x", maxSize+form.MaxAfter+20<<10), 413, "too_large"},
		{png[:40] + strings.Repeat("x", 8<<20), 413, "too_large"},
		{"<html>" + strings.Repeat("x", 8<<10), 415, "unsupported_media_type"},
	} {
		for method, sent := range map[string]string{"PUT": c.content, "POST": formOf("file", c.content, "")} {
			body := strings.NewReader(sent)
			wantProblem(t, a.send(method, "/cat/x", body, "Content-Type", map[string]string{"POST": formType}[method]), c.status, c.code)
			if read := len(sent) - body.Len(); read > 100<<10 || len(a.signer.pictures) > 0 {
				t.Errorf("%s of %d bytes: %d bytes were read", method, len(c.content), read)
			}
		}
	}
	want := map[string]string{
		`uploads_rejected_total{reason="too_large"}`: "4", `uploads_rejected_total{reason="unsupported_media_type"}`: "2",
	}
	if diff := cmp.Diff(want, counters(t, a.registry, "uploads_rejected_total")); diff != "" {
		t.Errorf("rejections (-want +got):\n%s", diff)
	}
}

func TestInvalidDirectUploadsDoNotReachTheSigner(t *testing.T) {
	a := newAPI(t)
	a.signer.err = errCalled
	for code, targets := range map[string]string{
		"invalid_argument": `/cat/x/upload /cat/x/upload?size= /cat/x/upload?size=1e3 /cat/x/upload?size=-1 /cat/x/upload?size=1&size=1
			/cat/x/upload?size=%zz /cat/x/upload?size=1;2 /cat/x/upload/1-7-A/commit?content_md5= /cat/x/upload/1-7-A/commit?content_md5=AAAA
			/cat/x/upload/1-7-A/commit?content_md5=%zz /cat/x/upload/1-7-A/commit?content_md5=a;b`,
		"invalid_user":   "/cat/a%2Fb/upload?size=1 /cat/a%2Fb/upload/1-7-A/commit",
		"no_such_upload": "/cat/x/upload/1_7/commit /cat/x/upload/%2e%2e/commit /cat/x/upload/" + strings.Repeat("a", 97) + "/commit",
	} {
		for target := range strings.FieldsSeq(targets) {
			wantProblem(t, a.send("POST", target, nil), declared()[code].Status, code)
		}
	}
	wantProblem(t, a.send("POST", "/cat/x/upload/1-7-A/commit", nil, "If-Match", "W/x"), 422, "invalid_argument")
}

func TestAboutDependsOnTheSettings(t *testing.T) {
	const issuer, b2c = "https://login.example.com", "https://b2c.example/v2.0"
	limits := map[string]any{
		"max_picture_size": 20000.0, "max_direct_size": float64(5 << 30), "picture_types": []any{"image/png"}, "max_pixels": 1000.0,
		"link_ttl_seconds": 3600.0, "link_max_ttl_seconds": 86400.0, "storage_origin": "https://acct.blob",
	}
	signIn := map[string]any{
		"issuer": issuer, "discovery_url": b2c + "/.well-known/openid-configuration?p=a", "client_id": "page", "scope": "openid", "user_claim": "oid",
	}
	for settings, more := range map[string]map[string]any{
		"":                      {},
		"OIDC_ISSUER=" + issuer: {"read_access": "own"},
		"OIDC_CLIENT_ID=page OIDC_DISCOVERY_URL=" + b2c + "?p=a OIDC_ISSUER=" + issuer: {"read_access": "own", "sign_in": signIn},
	} {
		want, got := maps.Clone(limits), map[string]any{}
		maps.Copy(want, more)
		a := newAPI(t, append(strings.Fields(settings), "ACCEPTED_TYPES=image/png", "MAX_PIXELS=1000")...)
		err := json.Unmarshal(a.send("GET", "/about", nil).Body.Bytes(), &got)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%v: %v (-want +got):\n%s", settings, err, diff)
		}
	}
}
