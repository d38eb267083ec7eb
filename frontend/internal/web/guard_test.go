package web

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/apierror"
	"cats.example/shared/config"
	"cats.example/shared/httpserver"
	"cats.example/shared/ratelimit"
)

// sendWith is send with headers, name and value in turn.
func sendWith(t testing.TB, h http.Handler, method, target string, body io.Reader, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, target, body)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

// unread is a body that must not be asked for.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body was read")
	return 0, io.EOF
}

func TestEveryAnswerSaysHowBrowsersAreToTakeIt(t *testing.T) {
	h, m, _ := newWebWith(t, "RATE_LIMIT=0", "CORS_ORIGINS=https://a.example")
	m.cats["x"] = png
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
		{"GET", "/cat/" + strings.Repeat("x", 5000), 414},
		{"DELETE", "/cat/x", 204},
	} {
		rec := send(t, h, c.method, c.target, "", nil)
		got := rec.Header()
		if rec.Code != c.status || got.Get("X-Content-Type-Options") != "nosniff" || got.Get("Referrer-Policy") != "no-referrer" ||
			got.Get("Content-Security-Policy") != "default-src 'none'; frame-ancestors 'none'" || got.Get("Cross-Origin-Opener-Policy") != "same-origin" || got.Get("Server") != "" || got.Get("X-Request-Id") == "" {
			t.Errorf("%s %.20s: %d %v; want %d", c.method, c.target, rec.Code, got, c.status)
		}
	}
}

func TestForeignHostsAreRejectedBeforeAnythingElse(t *testing.T) {
	options := Options{HostAllowed: httpserver.LocalHost}
	if err := config.Parse(&options, []string{"RATE_LIMIT=0", "CORS_ORIGINS=https://a.example"}); err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	m := &memory{cats: map[string]string{"x": png}, fail: errors.New("the signer was asked")}
	h := newHandler(m, options, 0, reg)
	for _, target := range []string{"/cat/x", "/cat/x/", "/cat/x/picture", "/", "/docs", "/nothing"} {
		for _, method := range []string{"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"} {
			r := httptest.NewRequestWithContext(t.Context(), method, target, unread{t})
			r.Host = "evil.example:8080"
			r.Header.Set("Sec-Fetch-Site", "same-origin")
			r.Header.Set("Access-Control-Request-Method", "PUT")
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			wantProblem(t, rec, 421, "misdirected_request")
		}
	}
}

func TestATargetLongerThan4KiBIsRefused(t *testing.T) {
	h, m, _ := newWeb(t)
	m.fail = errors.New("the signer was asked")
	long := "/cat/x?download=" + strings.Repeat("x", maxTarget-len("/cat/x?download="))
	wantProblem(t, send(t, h, "GET", long, "", nil), 422, "invalid_argument")
	for _, target := range []string{long + "x", "/nowhere?" + long, "/service/?" + long} {
		wantProblem(t, send(t, h, "PUT", target, "", unread{t}), 414, "uri_too_long")
	}
}

func TestAnAddressThatAsksTooMuchIsRefusedBeforeItsBodyIsRead(t *testing.T) {
	h, m, reg := newWebWith(t, "RATE_LIMIT=0.1", "RATE_BURST=3")
	for i := range 3 {
		rec := send(t, h, "GET", []string{"/service", "/nowhere", "/cat/x/"}[i], "", nil)
		want := []string{`"default";q=3;w=30`, fmt.Sprintf(`"default";r=%d;t=%d`, 2-i, 10*(i+1))}
		if got := []string{rec.Header().Get("RateLimit-Policy"), rec.Header().Get("RateLimit")}; !cmp.Equal(want, got) {
			t.Errorf("number %d says %q; want %q", i, got, want)
		}
	}
	m.fail = errors.New("the signer was asked")
	for _, method := range []string{"GET", "PUT", "POST", "DELETE", "OPTIONS"} {
		rec := send(t, h, method, "/cat/x", "", unread{t})
		p := wantProblem(t, rec, 429, "rate_limited")
		if rec.Header().Get("Retry-After") != "10" || rec.Header().Get("RateLimit") != `"default";r=0;t=10` || !strings.Contains(p.Detail, "0.1 a second") {
			t.Errorf("%s: %v %s", method, rec.Header(), rec.Body)
		}
	}
	if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP cats_frontend_requests_rate_limited_total Requests that were rejected because their client exceeds RATE_LIMIT.
# TYPE cats_frontend_requests_rate_limited_total counter
cats_frontend_requests_rate_limited_total 5
`), "cats_frontend_requests_rate_limited_total"); err != nil {
		t.Error(err)
	}
	// Claims of others change nothing: nobody is trusted.
	wantProblem(t, sendWith(t, h, "GET", "/service", nil, "X-Forwarded-For", "203.0.113.1", "X-Real-Ip", "203.0.113.1", "Forwarded", "for=203.0.113.1"), 429, "rate_limited")
}

func TestClientsBehindATrustedProxyHaveLimitsOfTheirOwn(t *testing.T) {
	h, _, _ := newWebWith(t, "RATE_LIMIT=0.1", "RATE_BURST=1", "TRUSTED_PROXIES=192.0.2.0/24") // httptest's requests are from there
	for _, c := range []struct {
		forwarded string
		status    int
	}{
		{"203.0.113.1", 200},
		{"203.0.113.1:4711", 429},
		{"8.8.8.8, 203.0.113.1", 429},
		{"203.0.113.2", 200},
		{"2001:db8::1", 200},
		{"2001:db8:0:1::2", 429}, // of the same /56
		{"2001:db8:0:100::2", 200},
		{"nonsense", 200}, // the proxy itself
		{"", 429},
	} {
		if rec := sendWith(t, h, "GET", "/service", nil, "X-Forwarded-For", c.forwarded); rec.Code != c.status {
			t.Errorf("%q: %d; want %d", c.forwarded, rec.Code, c.status)
		}
	}
}

// One client takes one slot in 16 of each pool; another client has slots of its own.
func TestClientHasItsShareOfEachPool(t *testing.T) {
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
			reg := prometheus.NewRegistry()
			slots := newSlots(0.125, reg)
			var options Options
			if err := config.Parse(&options, []string{"RATE_LIMIT=0"}); err != nil {
				t.Fatal(err)
			}
			var log strings.Builder
			h := New(&memory{cats: map[string]string{"x": png}}, options, newRequests(slots, reg), slots, slog.New(slog.NewTextHandler(&log, nil)), reg)
			send := func(from, body string) *httptest.ResponseRecorder {
				r := httptest.NewRequestWithContext(t.Context(), c.method, c.target, strings.NewReader(body))
				r.RemoteAddr = from + ":1"
				r.Header.Set("X-Forwarded-For", "198.51.100.1")
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, r)
				return rec
			}
			var releases []func()
			for range c.share {
				release, err := c.pool(slots).Take("192.0.2.7")
				if err != nil {
					t.Fatal(err)
				}
				releases = append(releases, release)
			}
			for range 2 {
				p := wantProblem(t, send("192.0.2.7", png), 429, "rate_limited")
				if want := fmt.Sprintf("too many %s from this client at once: %d are possible", c.name, c.share); !strings.HasPrefix(p.Detail, want) {
					t.Errorf("the detail is %q; want %q", p.Detail, want)
				}
			}
			if rec := send("192.0.2.8", png); rec.Code == 429 || rec.Code == 503 {
				t.Errorf("another client: %d", rec.Code)
			}
			releases[0]()
			if rec := send("192.0.2.7", png); rec.Code == 429 || rec.Code == 503 {
				t.Errorf("after one has ended: %d", rec.Code)
			}
			if n := strings.Count(log.String(), "TRUSTED_PROXIES"); n != 1 {
				t.Errorf("the log names TRUSTED_PROXIES %d times; want once: %s", n, &log)
			}
			for i := range 64 { // the rest, by others
				_, _ = c.pool(slots).Take(fmt.Sprint("other", i))
			}
			rec := send("192.0.2.8", png)
			if wantProblem(t, rec, 503, "overloaded"); rec.Header().Get("Retry-After") == "" {
				t.Error("no Retry-After")
			}
		})
	}
}

// A signed-in caller is counted by the signer.
func TestARefusalOfTheCallerIsTold(t *testing.T) {
	h, m, _ := newWebWith(t, "RATE_LIMIT=0.1", "RATE_BURST=100")
	m.fail = apierror.ErrRateLimited.WithRetryAfter(7 * time.Second)
	rec := send(t, h, "GET", "/cat/x", "", nil)
	wantProblem(t, rec, 429, "rate_limited")
	want := []string{`"default";r=99;t=10`, `"caller";r=0;t=7`}
	if got := rec.Header().Values("RateLimit"); rec.Header().Get("Retry-After") != "7" || !cmp.Equal(want, got) {
		t.Errorf("RateLimit is %q; want %q", got, want)
	}
}

func TestPagesOfOtherOriginsChangeNothing(t *testing.T) {
	h, m, _ := newWeb(t)
	m.cats["x"] = png
	other, own := []string{"Origin", "https://evil.example"}, []string{"Origin", "https://example.com"} // httptest's Host
	for name, header := range map[string][]string{
		"of another origin":         append([]string{"Sec-Fetch-Site", "cross-site"}, other...),
		"of another subdomain":      {"Sec-Fetch-Site", "same-site", "Origin", "https://x.example.com"},
		"of another, an old one":    other,
		"of a sandbox":              {"Origin", "null"},
		"that does not say its own": {"Sec-Fetch-Site", "cross-site"},
	} {
		for _, method := range []string{"PUT", "POST", "DELETE", "PATCH"} {
			rec := sendWith(t, h, method, "/cat/x", unread{t}, header...)
			wantProblem(t, rec, 403, "cross_origin")
			if rec.Header().Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s: %v", name, rec.Header())
			}
		}
		if rec := sendWith(t, h, "GET", "/cat/x", nil, header...); rec.Code != 200 || rec.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("a GET by a browser %s: %d %v", name, rec.Code, rec.Header())
		}
	}
	for name, header := range map[string][]string{
		"of this one": append([]string{"Sec-Fetch-Site", "same-origin"}, own...), "of this one, an old one": own, "that a person asked": {"Sec-Fetch-Site", "none"}, "or curl": nil,
	} {
		if rec := sendWith(t, h, "PUT", "/cat/x", strings.NewReader(png), header...); rec.Code != 200 {
			t.Errorf("a page %s: %d %s", name, rec.Code, rec.Body)
		}
	}
	if m.cats["x"] != png {
		t.Error("something was changed")
	}
}

func TestPagesOfAllowedOriginsMayUseTheAPI(t *testing.T) {
	const origin = "https://cats.example.com"
	h, m, _ := newWebWith(t, "RATE_LIMIT=1000", "CORS_ORIGINS=https://first.example:8443, "+origin)
	m.cats["x"] = png
	headers := "authorization,content-digest,content-encoding,content-md5,content-range,content-type,if-match,if-none-match,traceparent,upload-complete,upload-incomplete,upload-offset,x-request-id"
	for _, method := range []string{"GET", "PUT", "POST", "DELETE"} {
		rec := sendWith(t, h, "OPTIONS", "/cat/x", nil, "Origin", origin, "Access-Control-Request-Method", method, "Access-Control-Request-Headers", headers)
		got := rec.Header()
		if rec.Code != 204 || got.Get("Access-Control-Allow-Origin") != origin || got.Get("Access-Control-Allow-Methods") != method ||
			got.Get("Access-Control-Allow-Headers") != headers || got.Get("Access-Control-Allow-Credentials") != "" || got.Get("Access-Control-Max-Age") != "3600" ||
			!strings.Contains(got.Get("Vary"), "Origin") || got.Get("X-Content-Type-Options") == "" || got.Get("RateLimit") == "" {
			t.Errorf("may it %s: %d %v", method, rec.Code, got)
		}
	}
	for _, c := range []struct {
		method, target string
		status         int
	}{{"GET", "/cat/x", 200}, {"GET", "/cat/nobody", 404}, {"PUT", "/cat/y", 200}, {"DELETE", "/cat/y", 204}, {"GET", "/nowhere", 404}, {"GET", "/" + strings.Repeat("x", 5000), 414}} {
		rec := sendWith(t, h, c.method, c.target, strings.NewReader(png), "Origin", origin, "Sec-Fetch-Site", "cross-site")
		got := rec.Header()
		exposed := strings.ToLower(got.Get("Access-Control-Expose-Headers"))
		if rec.Code != c.status || got.Get("Access-Control-Allow-Origin") != origin || !cmp.Equal(got.Values("Vary"), []string{"Origin"}) || got.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("%s %s: %d %v", c.method, c.target, rec.Code, got)
		}
		for _, name := range []string{"etag", "retry-after", "ratelimit", "ratelimit-policy", "x-request-id", "www-authenticate", "allow", "accept-encoding"} {
			if !strings.Contains(exposed, name) {
				t.Errorf("%s is not among %q", name, exposed)
			}
		}
	}
	for _, other := range []string{"https://evil.example", "http://cats.example.com", "https://cats.example.com.evil.example", "https://cats.example.com:8443", "null"} {
		rec := sendWith(t, h, "OPTIONS", "/cat/x", nil, "Origin", other, "Access-Control-Request-Method", "PUT")
		if rec.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s may: %v", other, rec.Header())
		}
		wantProblem(t, sendWith(t, h, "PUT", "/cat/x", unread{t}, "Origin", other, "Sec-Fetch-Site", "cross-site"), 403, "cross_origin")
	}
	for header, status := range map[string]int{"Content-Range": 400, "Upload-Offset": 400, "Content-Encoding": 415} {
		for _, method := range []string{"PUT", "POST"} {
			rec := sendWith(t, h, method, "/cat/x", unread{t}, "Origin", origin, "Sec-Fetch-Site", "cross-site", header, "gzip")
			if rec.Code != status || rec.Header().Get("Access-Control-Allow-Origin") != origin {
				t.Errorf("%s with %s: %d %v", method, header, rec.Code, rec.Header())
			}
		}
	}
	rec := sendWith(t, h, "GET", "/cat/x", nil)
	if rec.Header().Get("Vary") != "Origin" || rec.Header().Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("without an origin: %v", rec.Header())
	}
	if rec := sendWith(t, h, "OPTIONS", "/cat/x", nil, "Origin", origin); rec.Code != 204 || rec.Header().Get("Allow") == "" {
		t.Errorf("OPTIONS that is no preflight: %d %v", rec.Code, rec.Header())
	}
}

func TestOriginsAreExact(t *testing.T) {
	for _, s := range []string{
		"*", "https://*.example.com", "cats.example.com", "https://cats.example.com/", "https://cats.example.com/x", "null", "HTTPS://cats.example.com",
		"https://Cats.example.com", "ftp://x", "https://u@x", "https://x?y", "https://", "https://[:", "https://[g]", "https://x:y", "https://x:", "https://x\ny",
	} {
		if err := config.Parse(new(Options), []string{"CORS_ORIGINS=" + s}); err == nil || !strings.Contains(err.Error(), "CORS_ORIGINS") {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"https://cats.example.com", "http://localhost:5173", "http://[::1]:80", "https://a_b.example", " https://x "} {
		if err := config.Parse(new(Options), []string{"CORS_ORIGINS=" + s}); err != nil {
			t.Error(err)
		}
	}
}

// A body in chunks, and HTTP/1.0, end the connection.
func TestWhatCanBeReadInTwoWaysIsTheLastOfItsConnection(t *testing.T) {
	h, _, _ := newWeb(t)
	for name, c := range map[string]struct {
		change func(*http.Request)
		closes bool
	}{
		"a GET":                    {func(*http.Request) {}, false},
		"a body of a known length": {func(r *http.Request) { r.Method = "PUT"; r.ContentLength = int64(len(png)) }, false},
		"a body in chunks":         {func(r *http.Request) { r.Method = "PUT"; r.ContentLength = -1 }, true},
		"HTTP/1.0":                 {func(r *http.Request) { r.ProtoMinor = 0 }, true},
		"HTTP/1.2":                 {func(r *http.Request) { r.ProtoMinor = 2 }, true},
		"HTTP/2":                   {func(r *http.Request) { r.ProtoMajor, r.ProtoMinor = 2, 0 }, true},
		"a tunnel":                 {func(r *http.Request) { r.Method = "CONNECT" }, true},
	} {
		r := httptest.NewRequestWithContext(t.Context(), "GET", "/service", strings.NewReader(png))
		r.ContentLength = 0
		c.change(r)
		if r.ContentLength == 0 {
			r.Body = http.NoBody
		} else {
			r.URL.Path = "/cat/x"
		}
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		if got := rec.Header().Get("Connection") == "close"; got != c.closes {
			t.Errorf("%s: closes %v, after %d", name, got, rec.Code)
		}
	}
}

func BenchmarkService(b *testing.B) {
	for name, settings := range map[string][]string{
		"unlimited": {"RATE_LIMIT=0"}, "limited": {"RATE_LIMIT=1e8", "RATE_BURST=1000000"},
		"proxied": {"RATE_LIMIT=1e8", "RATE_BURST=1000000", "TRUSTED_PROXIES=10.0.0.0/8,192.0.2.0/24"},
	} {
		b.Run(name, func(b *testing.B) {
			h, _, _ := newWebWith(b, settings...)
			r := httptest.NewRequestWithContext(b.Context(), "GET", "/service", nil)
			r.Header.Set("X-Forwarded-For", "8.8.8.8, 203.0.113.7")
			for b.Loop() {
				h.ServeHTTP(httptest.NewRecorder(), r)
			}
		})
	}
}
