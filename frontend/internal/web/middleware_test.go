package web

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/shared/apierror"
	"cats.example/shared/ratelimit"
)

func TestSecurityHeadersAreOnEveryResponse(t *testing.T) {
	a := newAPI(t, "CORS_ORIGINS=https://a.example")
	a.signer.pictures["x"] = png
	const policy = "default-src 'none'; frame-ancestors 'none'"
	for request, status := range map[string]int{
		"GET /service": 200, "HEAD /cat/x": 200, "GET /cat/x/picture": 307, "GET /service/": 307, "OPTIONS /cat/x": 204,
		"TRACE /cat/x": 405, "OPTIONS *": 404, "GET /cat/%00": 422, "GET /page/icon.svg": 200, "GET /" + strings.Repeat("x", 5000): 414,
	} {
		method, target, _ := strings.Cut(request, " ")
		rec := a.send(method, target, nil)
		got := rec.Header()
		if rec.Code != status || got.Get("X-Request-Id") == "" || got.Get("Server") != "" ||
			got.Get("X-Content-Type-Options") != "nosniff" || got.Get("Referrer-Policy") != "no-referrer" ||
			got.Get("Content-Security-Policy") != policy || got.Get("Cross-Origin-Opener-Policy") != "same-origin" {
			t.Errorf("%.20s: %d, want %d; %v", request, rec.Code, status, got)
		}
	}
}

func TestRateLimitRejectsUnreadRequests(t *testing.T) {
	a := newAPI(t, "RATE_LIMIT=0.1", "RATE_BURST=3")
	for i := range 3 {
		rec := a.send("GET", []string{"/service", "/nowhere", "/cat/x/"}[i], nil)
		want := []string{`"default";q=3;w=30`, fmt.Sprintf(`"default";r=%d;t=%d`, 2-i, 10*(i+1))}
		if got := []string{rec.Header().Get("RateLimit-Policy"), rec.Header().Get("RateLimit")}; !cmp.Equal(want, got) {
			t.Errorf("request %d: %q; want %q", i, got, want)
		}
	}
	a.signer.err = errCalled
	for _, method := range []string{"GET", "PUT", "POST", "DELETE", "OPTIONS"} {
		rec := a.send(method, "/cat/x", unread{t})
		p := wantProblem(t, rec, 429, "rate_limited")
		if rec.Header().Get("Retry-After") != "10" || rec.Header().Get("RateLimit") != `"default";r=0;t=10` || !strings.Contains(p.Detail, "0.1") {
			t.Errorf("%s: %v %s", method, rec.Header(), rec.Body)
		}
	}
	// Without TRUSTED_PROXIES these headers have no effect.
	wantProblem(t, a.send("GET", "/service", nil, "X-Forwarded-For", "203.0.113.1", "Forwarded", "for=203.0.113.1"), 429, "rate_limited")
}

// newAPI gives one client 1/8 of each pool.
func TestClientsOverTheirShareAreRejectedUnread(t *testing.T) {
	for _, c := range []struct {
		name, method, target string
		pool                 func(Slots) *ratelimit.Pool
		share                int
	}{
		{"requests", "GET", "/cat/x", func(s Slots) *ratelimit.Pool { return s.Requests }, 8},
		{"uploads", "PUT", "/cat/x", func(s Slots) *ratelimit.Pool { return s.Uploads }, 2},
		{"uploads", "POST", "/cat/x", func(s Slots) *ratelimit.Pool { return s.Uploads }, 2},
		{"commits", "POST", "/cat/x/upload/1-7-A/commit", func(s Slots) *ratelimit.Pool { return s.Commits }, 1},
	} {
		a := newAPI(t)
		for range c.share {
			if _, err := c.pool(a.deps.Slots).Take("192.0.2.1"); err != nil { // the address of httptest's requests
				t.Fatal(err)
			}
		}
		for range 2 {
			rec := a.send(c.method, c.target, unread{t}, "X-Forwarded-For", "198.51.100.1")
			if p := wantProblem(t, rec, 429, "rate_limited"); !strings.Contains(p.Detail, c.name) {
				t.Errorf("the detail is %q; want %s", p.Detail, c.name)
			}
		}
		if n := strings.Count(a.log.String(), "TRUSTED_PROXIES"); n != 1 {
			t.Errorf("the log names TRUSTED_PROXIES %d times; want once: %s", n, a.log)
		}
	}
}

func TestRateLimitOfTheCallerIsReported(t *testing.T) {
	a := newAPI(t, "RATE_LIMIT=0.1", "RATE_BURST=100")
	a.signer.err = apierror.ErrRateLimited.WithRetryAfter(7 * time.Second)
	rec := a.send("GET", "/cat/x", nil)
	wantProblem(t, rec, 429, "rate_limited")
	want := []string{`"default";r=99;t=10`, `"caller";r=0;t=7`}
	if got := rec.Header().Values("RateLimit"); rec.Header().Get("Retry-After") != "7" || !cmp.Equal(want, got) {
		t.Errorf("RateLimit is %q; want %q", got, want)
	}
}

func TestCrossOriginWritesAreRejected(t *testing.T) {
	a := newAPI(t)
	a.signer.pictures["x"] = png
	const evil, own = "https://evil.example", "https://example.com" // the host of httptest's requests
	for _, header := range [][]string{
		{"Sec-Fetch-Site", "cross-site", "Origin", evil},
		{"Sec-Fetch-Site", "same-site", "Origin", "https://x.example.com"},
		{"Origin", evil}, // old browser
		{"Origin", "null"},
		{"Sec-Fetch-Site", "cross-site"},
	} {
		for _, method := range []string{"PUT", "POST", "DELETE", "PATCH"} {
			rec := a.send(method, "/cat/x", unread{t}, header...)
			if wantProblem(t, rec, 403, "cross_origin"); rec.Header().Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s: %v", header, rec.Header())
			}
		}
		if rec := a.send("GET", "/cat/x", nil, header...); rec.Code != 200 || rec.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("GET from %s: %d %v", header, rec.Code, rec.Header())
		}
	}
	for _, header := range [][]string{{"Sec-Fetch-Site", "same-origin", "Origin", own}, {"Origin", own}, {"Sec-Fetch-Site", "none"}, nil} {
		if rec := a.send("PUT", "/cat/x", strings.NewReader(png), header...); rec.Code != 200 {
			t.Errorf("PUT from %s: %d %s", header, rec.Code, rec.Body)
		}
	}
}

func TestAllowedOriginsMayUseTheAPI(t *testing.T) {
	const origin = "https://cats.example.com"
	a := newAPI(t, "RATE_LIMIT=1000", "CORS_ORIGINS=https://first.example:8443, "+origin)
	a.signer.pictures["x"] = png
	headers := "authorization,content-digest,content-encoding,content-md5,content-range,content-type,if-match,if-none-match,traceparent," +
		"upload-complete,upload-incomplete,upload-offset,x-request-id"
	preflight := map[string]string{
		"Access-Control-Allow-Origin": origin, "Access-Control-Allow-Headers": headers, "Access-Control-Allow-Credentials": "",
		"Access-Control-Allow-Methods": "DELETE", "Access-Control-Max-Age": "3600", "X-Content-Type-Options": "nosniff", "RateLimit-Policy": `"default";q=500;w=1`,
	}
	rec := a.send("OPTIONS", "/cat/x", nil, "Origin", origin, "Access-Control-Request-Method", "DELETE", "Access-Control-Request-Headers", headers)
	for name, want := range preflight {
		if got := rec.Header().Get(name); got != want || rec.Code != 204 || !strings.Contains(rec.Header().Get("Vary"), "Origin") {
			t.Errorf("preflight: %d, %s is %q; want %q", rec.Code, name, got, want)
		}
	}
	exposed := "Etag, Retry-After, Ratelimit, Ratelimit-Policy, X-Request-Id, Www-Authenticate, Allow, Accept-Encoding"
	long := "GET /" + strings.Repeat("x", 5000)
	for request, status := range map[string]int{"GET /cat/x": 200, "PUT /cat/y": 200, "GET /nowhere": 404, long: 414} {
		method, target, _ := strings.Cut(request, " ")
		rec := a.send(method, target, strings.NewReader(png), "Origin", origin, "Sec-Fetch-Site", "cross-site")
		got := rec.Header()
		if rec.Code != status || got.Get("Access-Control-Allow-Origin") != origin || !cmp.Equal(got.Values("Vary"), []string{"Origin"}) ||
			got.Get("Access-Control-Allow-Credentials") != "" || !strings.EqualFold(got.Get("Access-Control-Expose-Headers"), exposed) {
			t.Errorf("%.40s: %d %v", request, rec.Code, got)
		}
	}
	for _, other := range []string{"https://evil.example", "http://cats.example.com", origin + ".evil.example", origin + ":8443", "null"} {
		rec := a.send("OPTIONS", "/cat/x", nil, "Origin", other, "Access-Control-Request-Method", "PUT")
		if rec.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s is allowed: %v", other, rec.Header())
		}
		wantProblem(t, a.send("PUT", "/cat/x", unread{t}, "Origin", other, "Sec-Fetch-Site", "cross-site"), 403, "cross_origin")
	}
	if rec := a.send("GET", "/cat/x", nil); rec.Header().Get("Vary") != "Origin" || rec.Header().Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("without an origin: %v", rec.Header())
	}
	if rec := a.send("OPTIONS", "/cat/x", nil, "Origin", origin); rec.Code != 204 || rec.Header().Get("Allow") == "" {
		t.Errorf("OPTIONS that is not a preflight: %d %v", rec.Code, rec.Header())
	}
}

func TestRequestsWithoutTokenAreRejectedUnread(t *testing.T) {
	const on, all = "OIDC_ISSUER=https://login.example.com", "GET HEAD PUT POST DELETE"
	for settings, needed := range map[string]string{ // the methods that need a token
		"": "", on: all, on + " READ_ACCESS=signed-in": all, on + " READ_ACCESS=anyone": "PUT POST DELETE",
	} {
		a := newAPI(t, strings.Fields(settings)...)
		for method := range strings.FieldsSeq(all) {
			for _, field := range []string{"", "Bearer mew", "bearer  mew", "Basic bWlhOm1pYQ==", "Bearer", "Bearer mew mew", "Bearer m\xffw", "mew"} {
				a.signer.last, a.signer.err = call{}, apierror.ErrNotFound
				var body io.Reader = strings.NewReader(map[bool]string{true: formOf("file", png, ""), false: png}[method == "POST"])
				needed := strings.Contains(needed, method)
				want := call{user: "mia"}
				switch valid := field == "Bearer mew" || field == "bearer  mew"; {
				case needed && valid:
					want.token = "mew"
				case needed:
					want, body = call{}, unread{t}
				}
				rec := a.send(method, "/cat/mia", body, "Content-Type", formType, "Authorization", field)
				got := call{user: a.signer.last.user, token: a.signer.last.token}
				rejected := rec.Code == 401 && strings.HasPrefix(rec.Header().Get("WWW-Authenticate"), "Bearer ")
				if diff := cmp.Diff(want, got, cmp.AllowUnexported(call{})); diff != "" || rejected != (want.user == "") {
					t.Errorf("%q: %s with %q: %d %v, the call (-want +got):\n%s", settings, method, field, rec.Code, rec.Header(), diff)
				}
				if varies := slices.Contains(rec.Header().Values("Vary"), "Authorization"); varies != needed {
					t.Errorf("%q: %s: Vary is %q", settings, method, rec.Header().Values("Vary"))
				}
			}
		}
	}
}
