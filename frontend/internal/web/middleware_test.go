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
	for _, c := range []struct {
		method, target string
		status         int
	}{
		{"GET", "/service", 200},
		{"HEAD", "/cat/x", 200},
		{"GET", "/cat/x/picture", 307},
		{"GET", "/service/", 307},
		{"OPTIONS", "/cat/x", 204},
		{"PATCH", "/cat/x", 405},
		{"TRACE", "/cat/x", 405},
		{"GET", "/nothing", 404},
		{"OPTIONS", "*", 404},
		{"GET", "/cat/%00", 422},
		{"GET", "/page/icon.svg", 200},
		{"GET", "/cat/" + strings.Repeat("x", 5000), 414},
		{"DELETE", "/cat/x", 204},
	} {
		rec := a.send(c.method, c.target, nil)
		got := rec.Header()
		if rec.Code != c.status || got.Get("X-Content-Type-Options") != "nosniff" || got.Get("Referrer-Policy") != "no-referrer" ||
			got.Get("Content-Security-Policy") != "default-src 'none'; frame-ancestors 'none'" || got.Get("Cross-Origin-Opener-Policy") != "same-origin" || got.Get("Server") != "" || got.Get("X-Request-Id") == "" {
			t.Errorf("%s %.20s: %d %v; want %d", c.method, c.target, rec.Code, got, c.status)
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

func TestTargetsOver4KiBAreRejected(t *testing.T) {
	a := newAPI(t)
	a.signer.err = errCalled
	long := "/cat/x?download=" + strings.Repeat("x", maxTarget-len("/cat/x?download="))
	wantProblem(t, a.send("GET", long, nil), 422, "invalid_argument")
	for _, target := range []string{long + "x", "/nowhere?" + long, "/service/?" + long} {
		wantProblem(t, a.send("PUT", target, unread{t}), 414, "uri_too_long")
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
	if got := counters(t, a.registry, "requests_rate_limited_total"); got["requests_rate_limited_total"] != "5" {
		t.Errorf("counted %v; want 5", got)
	}
	// Without TRUSTED_PROXIES these headers have no effect.
	wantProblem(t, a.send("GET", "/service", nil, "X-Forwarded-For", "203.0.113.1", "X-Real-Ip", "203.0.113.1", "Forwarded", "for=203.0.113.1"), 429, "rate_limited")
}

func TestClientsOfATrustedProxyHaveOwnLimits(t *testing.T) {
	a := newAPI(t, "RATE_LIMIT=0.1", "RATE_BURST=1", "TRUSTED_PROXIES=192.0.2.0/24") // requests of httptest come from this range
	for _, c := range []struct {
		forwarded string
		status    int
	}{
		{"203.0.113.1", 200},
		{"203.0.113.1:4711", 429},
		{"8.8.8.8, 203.0.113.1", 429},
		{"203.0.113.2", 200},
		{"2001:db8::1", 200},
		{"2001:db8:0:1::2", 429}, // the same /56
		{"2001:db8:0:100::2", 200},
		{"nonsense", 200}, // the proxy itself
		{"", 429},
	} {
		if rec := a.send("GET", "/service", nil, "X-Forwarded-For", c.forwarded); rec.Code != c.status {
			t.Errorf("%q: %d; want %d", c.forwarded, rec.Code, c.status)
		}
	}
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
		t.Run(c.name+" by "+c.method, func(t *testing.T) {
			a := newAPI(t)
			a.signer.pictures["x"] = png
			pool := c.pool(a.deps.Slots)
			send := func(from string) *httptest.ResponseRecorder {
				r := httptest.NewRequestWithContext(t.Context(), c.method, c.target, strings.NewReader(png))
				r.RemoteAddr = from + ":1"
				r.Header.Set("X-Forwarded-For", "198.51.100.1")
				return a.serve(r)
			}
			release := func() {}
			for range c.share {
				var err error
				if release, err = pool.Take("192.0.2.7"); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 {
				if p := wantProblem(t, send("192.0.2.7"), 429, "rate_limited"); !strings.Contains(p.Detail, c.name) {
					t.Errorf("the detail is %q; want %s", p.Detail, c.name)
				}
			}
			if rec := send("192.0.2.8"); rec.Code == 429 || rec.Code == 503 {
				t.Errorf("another client: %d", rec.Code)
			}
			release()
			if rec := send("192.0.2.7"); rec.Code == 429 || rec.Code == 503 {
				t.Errorf("after a release: %d", rec.Code)
			}
			if n := strings.Count(a.log.String(), "TRUSTED_PROXIES"); n != 1 {
				t.Errorf("the log names TRUSTED_PROXIES %d times; want once: %s", n, a.log)
			}
			for i := range pool.Total() {
				_, _ = pool.Take(fmt.Sprint("other", i))
			}
			rec := send("192.0.2.8")
			if wantProblem(t, rec, 503, "overloaded"); rec.Header().Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
		})
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
	headers := "authorization,content-digest,content-encoding,content-md5,content-range,content-type,if-match,if-none-match,traceparent,upload-complete,upload-incomplete,upload-offset,x-request-id"
	for _, method := range []string{"GET", "PUT", "POST", "DELETE"} {
		rec := a.send("OPTIONS", "/cat/x", nil, "Origin", origin, "Access-Control-Request-Method", method, "Access-Control-Request-Headers", headers)
		got := rec.Header()
		if rec.Code != 204 || got.Get("Access-Control-Allow-Origin") != origin || got.Get("Access-Control-Allow-Methods") != method ||
			got.Get("Access-Control-Allow-Headers") != headers || got.Get("Access-Control-Allow-Credentials") != "" || got.Get("Access-Control-Max-Age") != "3600" ||
			!strings.Contains(got.Get("Vary"), "Origin") || got.Get("X-Content-Type-Options") == "" || got.Get("RateLimit") == "" {
			t.Errorf("preflight for %s: %d %v", method, rec.Code, got)
		}
	}
	for _, c := range []struct {
		method, target string
		status         int
		header         string // whose value is gzip
	}{
		{"GET", "/cat/x", 200, ""},
		{"GET", "/cat/nobody", 404, ""},
		{"PUT", "/cat/y", 200, ""},
		{"DELETE", "/cat/y", 204, ""},
		{"GET", "/nowhere", 404, ""},
		{"GET", "/" + strings.Repeat("x", 5000), 414, ""},
		{"PUT", "/cat/x", 400, "Content-Range"},
		{"POST", "/cat/x", 400, "Upload-Offset"},
		{"PUT", "/cat/x", 415, "Content-Encoding"},
	} {
		header := []string{"Origin", origin, "Sec-Fetch-Site", "cross-site"}
		if c.header != "" {
			header = append(header, c.header, "gzip")
		}
		rec := a.send(c.method, c.target, strings.NewReader(png), header...)
		got := rec.Header()
		if rec.Code != c.status || got.Get("Access-Control-Allow-Origin") != origin || !cmp.Equal(got.Values("Vary"), []string{"Origin"}) || got.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("%s %s %s: %d %v", c.method, c.target, c.header, rec.Code, got)
		}
		if want := "Etag, Retry-After, Ratelimit, Ratelimit-Policy, X-Request-Id, Www-Authenticate, Allow, Accept-Encoding"; !strings.EqualFold(got.Get("Access-Control-Expose-Headers"), want) {
			t.Errorf("exposed: %q; want %q", got.Get("Access-Control-Expose-Headers"), want)
		}
	}
	for _, other := range []string{"https://evil.example", "http://cats.example.com", "https://cats.example.com.evil.example", "https://cats.example.com:8443", "null"} {
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
			for _, field := range []string{"", "Bearer mew", "bearer  mew", "Basic bWlhOm1pYQ==", "Bearer", "Bearer mew mew", "Bearer m\xffw", "mew"} {
				a.signer.last = call{}
				needed, valid := strings.Contains(c.needed, method), field == "Bearer mew" || field == "bearer  mew"
				var body io.Reader = unread{t}
				contentType := "image/png"
				if !needed || valid {
					body = strings.NewReader(png)
					if method == "POST" {
						contentType, body = writes[1].contentType, strings.NewReader(writes[1].body)
					}
				}
				header := []string{"Content-Type", contentType, "Authorization", field}
				if field == "" {
					header = header[:2]
				}
				rec := a.send(method, "/cat/mia", body, header...)
				want := map[bool]call{true: {user: "mia", token: "mew"}, false: {user: "mia"}}[needed]
				if needed && !valid {
					want = call{}
				}
				if varies := slices.Contains(rec.Header().Values("Vary"), "Authorization"); varies != needed {
					t.Errorf("%q: %s: Vary is %q", c.settings, method, rec.Header().Values("Vary"))
				}
				if (rec.Code == 401) != (needed && !valid) || (rec.Code == 401) != strings.HasPrefix(rec.Header().Get("WWW-Authenticate"), "Bearer ") ||
					a.signer.last.token != want.token || a.signer.last.user != want.user {
					t.Errorf("%q: %s with %q: %d %v, the signer was called with the token %q", c.settings, method, field, rec.Code, rec.Header(), string(a.signer.last.token))
				}
			}
		}
	}
}
