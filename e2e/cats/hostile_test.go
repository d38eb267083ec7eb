package cats

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"cats.example/e2e/harness"
)

// recorder is a server that keeps the method, host and Authorization of each request.
type recorder struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string
}

func newRecorder(t *testing.T, answer http.HandlerFunc) *recorder {
	t.Helper()
	r := &recorder{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.seen = append(r.seen, strings.TrimSpace(req.Method+" "+req.Host+" "+req.Header.Get("Authorization")))
		r.mu.Unlock()
		answer(w, req)
	}))
	t.Cleanup(r.Close)
	return r
}

// wantRequests checks the requests since the last call.
func (r *recorder) wantRequests(t *testing.T, what string, want ...string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.seen, want) {
		t.Errorf("%s: requests %q; want %q", what, r.seen, want)
	}
	r.seen = nil
}

func responds(status int, body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}
}

// controls can control a terminal, as bytes and as escapes of JSON, which allows both in a string.
const controls = "\x7f\u0080\u009b2J\u202egnp.\u2066\u200f\u2028\xff\xc2" + `\u001b]0;x\u0007\u009b31m\r\n\u0000\u202d`

// The service and storage are hostile: the terminal gets no control characters, scripts get one JSON object, and no file is left.
func TestCatsRejectsHostileText(t *testing.T) {
	t.Parallel()
	harness.NeedOwnSystem(t)
	const url, put, get = "url mia", "put mia -", "get mia"
	picture := func(fields string) http.HandlerFunc { // size is an int64 that is no float64
		text := `{"owner":{"name":"X"},` + "\r\n\t" + `FIELDS,"etag":"X","content_type":"image/png","size":12345678901234567,"X":1}`
		return responds(200, strings.ReplaceAll(strings.ReplaceAll(text, "X", controls), "FIELDS", fields))
	}
	problem := strings.ReplaceAll(`{"type":"about:blank","title":"X","status":404,"detail":"no X","code":"X","request_id":"X"}`, "X", controls)
	storage := func(answer http.HandlerFunc) http.HandlerFunc {
		return responds(200, `{"picture_url":"`+newRecorder(t, answer).URL+`/x","etag":"1","content_type":"image/png","size":1}`)
	}
	foreign := newRecorder(t, responds(200, "{}"))
	redirect := responds(307, "", "Location", foreign.URL)
	type row struct {
		args   string
		code   int
		answer http.HandlerFunc
		part   string // of stderr, or of stdout after a success
	}
	rows := []row{
		{url, 0, picture(`"picture_url":"https://a.example/\u009b31m\u202e` + "\u009b\u202e?x=\u0085\u2029" + `"`), "https://a.example/"},
		{put, 0, picture(`"other":"` + controls + `"`), ""},
		{"rm mia", 3, responds(404, problem), ""},
		{url + " --retries 1", 7, responds(503, problem, "Retry-After", "\u009b1"), ""},
		{url, 1, responds(500, controls), ""},
		{url, 1, responds(200, `{"owner":{"name":"`+controls+`"},"size":"`+controls+`"}`), ""},
		{get, 3, storage(responds(404, "<Error><Code>a\u009b31m\u202e&#x7f;&#x85;</Code></Error>", "X-Ms-Request-Id", "\u009b\u202e\xff")), "404"},
		{url, 1, redirect, ""},
		{put, 1, redirect, ""},
		{get, 1, storage(redirect), ""},
	}
	for link, part := range map[string]string{ // see cats/client/testdata/addresses.txt
		"javascript:alert(1)": `"javascript"`, strings.TrimPrefix(foreign.URL, "http:"): `""`,
		"http://user:secret@" + foreign.URL[len("http://"):]: "user name", `http://a\u001b[31m`: "no URL",
	} {
		for _, args := range []string{url, get, put} {
			rows = append(rows, row{args, 1, picture(`"picture_url":"` + link + `"`), part})
		}
	}
	// Of two keys, JSON parsers take different ones; encoding/json ignores their case.
	for _, fields := range []string{`"picture_url":"javascript:alert(1)","PICTURE_URL":"`, `"Picture_Url":"javascript:alert(1)","picture_url":"`} {
		answer := picture(fields + `https://a.example/x"`)
		rows = append(rows, row{url, 0, answer, "https://a.example/x"}, row{put, 0, answer, ""})
	}
	for _, c := range rows {
		s := newShell(t, newRecorder(t, c.answer).URL)
		for _, form := range []string{"--quiet=false", "--json"} {
			got := s.with(bytes.NewReader(harness.Cat), append(strings.Fields(c.args), form)...)
			text := got.out + got.stderr
			if !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool {
				return r < ' ' && r != '\n' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0x200f || r == 0x2028
			}) || strings.Contains(text, "alert") || !strings.Contains(text, c.part) {
				t.Errorf("%s %s: the terminal gets %q; want %q", c.args, form, text, c.part)
			}
			if got.code != c.code || c.code == 0 && got.out == "" {
				t.Errorf("%s %s: exit code %d, %q; want %d", c.args, form, got.code, text, c.code)
			}
			if form == "--json" && (got.keys(t) == "" || c.code == 0 && !strings.Contains(got.out, `"size":12345678901234567`)) {
				t.Errorf("%s: %q", c.args, got.out)
			}
		}
		if left := s.files("*.*"); len(left) > 0 {
			t.Errorf("%s leaves %q", c.args, left)
		}
	}
	foreign.wantRequests(t, "redirects and other schemes")
}

// See TestAddressesKeepTokensAndPicturesWhereTheyBelong.
func TestCatsSendsTokenEncryptedOnly(t *testing.T) {
	t.Parallel()
	harness.NeedOwnSystem(t)
	answer := responds(200, `{"picture_url":"https://a.example/x"}`)
	proxy, service := newRecorder(t, answer), newRecorder(t, answer)
	s := newShell(t, service.URL, "HTTP_PROXY="+proxy.URL, "HTTPS_PROXY="+proxy.URL)
	s.write("token", []byte("secret-token\n"))
	const remote, get = "http://cats.example:8080", "GET cats.example:8080"
	for _, args := range []string{"url", "url --json", "get"} {
		s.cats(append(strings.Fields(args), "mia", "--token-file", "token", "--server", strings.ToUpper(remote))...).want(t, 2, "https", "--insecure")
	}
	proxy.wantRequests(t, "encrypted only")
	s.cats("url", "mia", "--token-file", "token", "--server", remote, "--insecure").want(t, 0)
	s.cats("url", "mia", "--server", remote).want(t, 0)
	proxy.wantRequests(t, "insecure, anonymous", get+" Bearer secret-token", get)
	s.cats("url", "mia", "--token-file", "token", "--retries", "0", "--server", "https://cats.example").want(t, 7)
	proxy.wantRequests(t, "HTTPS", "CONNECT cats.example:443")
	// A proxy or a DNS server would get the token for this machine.
	for _, host := range []string{"localhost", "LOCALHOST", "127.0.0.1", "cats.localhost", "a.b.localhost"} {
		host += service.URL[strings.LastIndex(service.URL, ":"):]
		s.cats("url", "mia", "--token-file", "token", "--server", "http://"+host).want(t, 0)
		service.wantRequests(t, host, "GET "+host+" Bearer secret-token")
	}
	proxy.wantRequests(t, "this machine")
}
