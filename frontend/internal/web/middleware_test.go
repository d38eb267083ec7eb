package web

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/apierror"
	"cats.example/shared/httpserver"
	"cats.example/shared/ratelimit"
)

func TestSecurityHeadersAreOnEveryResponse(t *testing.T) {
	a := newAPI(t, "CORS_ORIGINS=https://a.example")
	a.signer.pictures["x"] = png
	want := map[string]string{
		"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
		"Cross-Origin-Opener-Policy": "same-origin", "Server": "",
	}
	for request, status := range map[string]int{
		"GET /service": 200, "HEAD /cat/x": 200, "GET /cat/x/picture": 307, "GET /service/": 404, "OPTIONS /cat/x": 204, "PATCH /cat/x": 405,
		"TRACE /cat/x": 405, "GET /nothing": 404, "OPTIONS *": 404, "GET /cat/%00": 422, "GET /page/icon.svg": 200, "GET /" + strings.Repeat("x", 5000): 414,
	} {
		method, target, _ := strings.Cut(request, " ")
		rec := a.send(method, target, nil)
		got := map[string]string{}
		for name := range want {
			got[name] = rec.Header().Get(name)
		}
		if diff := cmp.Diff(want, got); diff != "" || rec.Code != status || rec.Header().Get("X-Request-Id") == "" {
			t.Errorf("%.20s: %d; want %d; %v (-want +got):\n%s", request, rec.Code, status, rec.Header(), diff)
		}
	}
}

func TestForeignHostsAreRejectedFirst(t *testing.T) {
	a := newAPI(t, "CORS_ORIGINS=https://a.example")
	a.signer.err, a.signer.pictures["x"] = errCalled, png
	a.deps.HostAllowed, a.deps.Registry = httpserver.LocalHost, prometheus.NewRegistry()
	a.Handler = New(a.options, a.deps)
	for _, target := range []string{"/cat/x", "/cat/x/", "/cat/x/picture", "/", "/docs", "/nothing"} {
		for _, method := range []string{"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"} {
			r := httptest.NewRequestWithContext(t.Context(), method, target, unread{t})
			r.Host = "evil.example:8080"
			r.Header.Set("Sec-Fetch-Site", "same-origin")
			r.Header.Set("Access-Control-Request-Method", "PUT")
			wantProblem(t, a.serve(r), 421, "misdirected_request")
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
func TestClientsHaveAShareOfEachPool(t *testing.T) {
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
		a.signer.pictures["x"] = png
		pool := c.pool(a.deps.Slots)
		send := func(from string) *httptest.ResponseRecorder {
			r := httptest.NewRequestWithContext(t.Context(), c.method, c.target, strings.NewReader(png))
			r.RemoteAddr = from + ":1"
			r.Header.Set("X-Forwarded-For", "198.51.100.1")
			return a.serve(r)
		}
		for range 2 { // a request releases its slot
			if rec := send("192.0.2.7"); rec.Code == 429 || rec.Code == 503 {
				t.Errorf("%s, before: %d", c.name, rec.Code)
			}
		}
		for range c.share {
			if _, err := pool.Take("192.0.2.7"); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if p := wantProblem(t, send("192.0.2.7"), 429, "rate_limited"); !strings.Contains(p.Detail, c.name) {
				t.Errorf("the detail is %q; want %s", p.Detail, c.name)
			}
		}
		if rec := send("192.0.2.8"); rec.Code == 429 || rec.Code == 503 {
			t.Errorf("%s of another client: %d", c.name, rec.Code)
		}
		if n := strings.Count(a.log.String(), "TRUSTED_PROXIES"); n != 1 {
			t.Errorf("the log names TRUSTED_PROXIES %d times; want once: %s", n, a.log)
		}
		for i := range pool.Total() {
			_, _ = pool.Take(fmt.Sprint("other", i))
		}
		if rec := send("192.0.2.8"); wantProblem(t, rec, 503, "overloaded").Status == 503 && rec.Header().Get("Retry-After") == "" {
			t.Errorf("%s: no Retry-After", c.name)
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
	for request, status := range map[string]int{
		"GET /cat/x": 200, "GET /cat/nobody": 404, "PUT /cat/y": 200, "GET /nowhere": 404, "GET /" + strings.Repeat("x", 5000): 414, "PUT /cat/x Content-Range": 400,
		"PUT /cat/x Content-Encoding": 415,
	} {
		method, target, _ := strings.Cut(request, " ")
		target, name, _ := strings.Cut(target, " ")
		header := []string{"Origin", origin, "Sec-Fetch-Site", "cross-site", name, "gzip"}
		rec := a.send(method, target, strings.NewReader(png), header[:4+2*min(len(name), 1)]...)
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

func TestAmbiguousFramingClosesTheConnection(t *testing.T) {
	a := newAPI(t)
	for request, closes := range map[string]bool{
		"GET 0 HTTP/1.1": false, "PUT 9024 HTTP/1.1": false, "PUT -1 HTTP/1.1": true, // chunked
		"GET 0 HTTP/1.0": true, "GET 0 HTTP/1.2": true, "GET 0 HTTP/2.0": true, "CONNECT 0 HTTP/1.1": true,
	} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/cat/x", strings.NewReader(png))
		if _, err := fmt.Sscanf(request, "%s %d HTTP/%d.%d", &r.Method, &r.ContentLength, &r.ProtoMajor, &r.ProtoMinor); err != nil {
			t.Fatal(err)
		}
		if r.ContentLength == 0 {
			r.Body = http.NoBody
		}
		if rec := a.serve(r); (rec.Header().Get("Connection") == "close") != closes {
			t.Errorf("%s: %d %v", request, rec.Code, rec.Header())
		}
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
