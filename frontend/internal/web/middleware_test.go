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
		"GET /service": 200, "HEAD /cat/x": 200, "GET /cat/x/picture": 307, "GET /service/": 307, "OPTIONS /cat/x": 204, "PATCH /cat/x": 405,
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
	for name, header := range map[string][]string{
		"another origin":                  {"Sec-Fetch-Site", "cross-site", "Origin", evil},
		"another subdomain":               {"Sec-Fetch-Site", "same-site", "Origin", "https://x.example.com"},
		"another origin, old browser":     {"Origin", evil},
		"sandboxed page":                  {"Origin", "null"},
		"another origin without its name": {"Sec-Fetch-Site", "cross-site"},
	} {
		for _, method := range []string{"PUT", "POST", "DELETE", "PATCH"} {
			rec := a.send(method, "/cat/x", unread{t}, header...)
			if wantProblem(t, rec, 403, "cross_origin"); rec.Header().Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s: %v", name, rec.Header())
			}
		}
		if rec := a.send("GET", "/cat/x", nil, header...); rec.Code != 200 || rec.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("GET from %s: %d %v", name, rec.Code, rec.Header())
		}
	}
	if a.signer.pictures["x"] != png {
		t.Error("the picture has changed")
	}
	for name, header := range map[string][]string{
		"same origin": {"Sec-Fetch-Site", "same-origin", "Origin", own}, "same origin, old browser": {"Origin", own}, "address bar": {"Sec-Fetch-Site", "none"}, "curl": nil,
	} {
		if rec := a.send("PUT", "/cat/x", strings.NewReader(png), header...); rec.Code != 200 {
			t.Errorf("PUT from %s: %d %s", name, rec.Code, rec.Body)
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
		"Access-Control-Max-Age": "3600", "X-Content-Type-Options": "nosniff", "RateLimit-Policy": `"default";q=500;w=1`,
	}
	for _, method := range []string{"GET", "PUT", "POST", "DELETE"} {
		rec := a.send("OPTIONS", "/cat/x", nil, "Origin", origin, "Access-Control-Request-Method", method, "Access-Control-Request-Headers", headers)
		preflight["Access-Control-Allow-Methods"] = method
		for name, want := range preflight {
			if got := rec.Header().Get(name); got != want || rec.Code != 204 || !strings.Contains(rec.Header().Get("Vary"), "Origin") {
				t.Errorf("preflight for %s: %d, %s is %q", method, rec.Code, name, got)
			}
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
	for _, c := range []struct {
		method       string
		length       int64
		major, minor int
		closes       bool
	}{
		{"GET", 0, 1, 1, false},
		{"PUT", int64(len(png)), 1, 1, false},
		{"PUT", -1, 1, 1, true}, // chunked
		{"GET", 0, 1, 0, true},
		{"GET", 0, 1, 2, true},
		{"GET", 0, 2, 0, true},
		{"CONNECT", 0, 1, 1, true},
	} {
		r := httptest.NewRequestWithContext(t.Context(), c.method, "/cat/x", strings.NewReader(png))
		r.ContentLength, r.ProtoMajor, r.ProtoMinor = c.length, c.major, c.minor
		if c.length == 0 {
			r.Body = http.NoBody
		}
		if rec := a.serve(r); (rec.Header().Get("Connection") == "close") != c.closes {
			t.Errorf("%+v: %d %v", c, rec.Code, rec.Header())
		}
	}
}

func TestRequestsWithoutTokenAreRejectedUnread(t *testing.T) {
	const on = "OIDC_ISSUER=https://login.example.com"
	const all = "GET HEAD PUT POST DELETE"
	for _, c := range []struct {
		settings []string
		needed   string // methods that need a token
	}{
		{nil, ""},
		{[]string{on}, all},
		{[]string{on, "READ_ACCESS=signed-in"}, all},
		{[]string{on, "READ_ACCESS=anyone"}, "PUT POST DELETE"},
	} {
		a := newAPI(t, c.settings...)
		a.signer.err = apierror.ErrNotFound
		for method := range strings.FieldsSeq(all) {
			needed := strings.Contains(c.needed, method)
			for _, field := range []string{"", "Bearer mew", "bearer  mew", "Basic bWlhOm1pYQ==", "Bearer", "Bearer mew mew", "Bearer m\xffw", "mew"} {
				a.signer.last = call{}
				header, rejected, want := []string{"Content-Type", writes[1].contentType}, needed && field != "Bearer mew" && field != "bearer  mew", call{}
				if field != "" {
					header = append(header, "Authorization", field)
				}
				var body io.Reader = unread{t}
				if !rejected {
					body = strings.NewReader(map[bool]string{true: writes[1].body, false: png}[method == "POST"])
					want.user = "mia"
				}
				if needed && !rejected {
					want.token = "mew"
				}
				rec := a.send(method, "/cat/mia", body, header...)
				if varies := slices.Contains(rec.Header().Values("Vary"), "Authorization"); varies != needed {
					t.Errorf("%q: %s: Vary is %q", c.settings, method, rec.Header().Values("Vary"))
				}
				if (rec.Code == 401) != rejected || rejected != strings.HasPrefix(rec.Header().Get("WWW-Authenticate"), "Bearer ") ||
					a.signer.last.token != want.token || a.signer.last.user != want.user {
					t.Errorf("%q: %s with %q: %d %v, the signer was called with %+v", c.settings, method, field, rec.Code, rec.Header(), a.signer.last)
				}
			}
		}
	}
}
