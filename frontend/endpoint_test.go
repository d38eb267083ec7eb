package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// patient is a timeout that only a program that does not answer reaches.
const patient = 10 * time.Second

// proxyAnswer is what azwi-proxy answers without a resource: 1.0 to 1.6, depending on its variables.
func proxyAnswer(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", "azure-workload-identity/proxy/v1.6.0 (linux/amd64) abcdef/2026-01-01")
		if !strings.HasPrefix(r.URL.Path, "/metadata/identity/oauth2/token") || r.URL.Query().Get("resource") != "" {
			fmt.Fprint(w, `{"access_token":"secret"}`) // never asked for
			return
		}
		http.Error(w, text, http.StatusBadRequest)
	}
}

func answer(status int, contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func TestFindEndpointsRecognizesTokenEndpoints(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	elsewhere := httptest.NewServer(answer(200, "application/json", `{"access_token":"secret"}`))
	defer elsewhere.Close()
	var asked bytes.Buffer
	for _, c := range []struct {
		what   string
		answer http.HandlerFunc
		want   bool
	}{
		{"proxy without a resource", proxyAnswer("The resource parameter is required."), true},
		{"proxy without a client ID", proxyAnswer("The client_id parameter or AZURE_CLIENT_ID environment variable must be set"), true},
		{"proxy behind another name", answer(400, "text/plain", "The resource parameter is required.\n"), true},
		{"old proxy behind another name", answer(400, "text/plain", "The client_id parameter is required.\n"), true},
		{"metadata service", answer(400, "application/json; charset=utf-8", `{"error":"invalid_request","error_description":"Required metadata header not specified"}`), true},
		{"metadata service in text", answer(400, "text/plain", "Required metadata header not specified"), true},
		{"metadata service without an identity", answer(400, "application/json", ` {"error":"invalid_request","error_description":"Identity not found"}`), true},
		{"token in any case", answer(200, "application/json", `{"token_type":"Bearer","access_token":"`+strings.Repeat("s", 4<<10)+`"}`), true},
		{"server name alone", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Server", "IMDS/150.870.65.1854") }, true},

		{"nothing there", http.NotFound, false},
		{"JSON that is not found", answer(404, "application/json", `{"error":"not_found","error_description":"no such path"}`), false},
		{"page for every path", answer(200, "text/html", `<script>x = {"access_token": "error", "error_description": "metadata header"}</script>`), false},
		{"another error", answer(400, "text/plain", "Bad Request"), false},
		{"another error in JSON", answer(400, "application/json", `{"error":"bad request","detail":"access token"}`), false},
		{"advice in a page that works", answer(200, "text/plain", "The resource parameter is required."), false},
		{"empty", func(http.ResponseWriter, *http.Request) {}, false},
		{"redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) }, false},
		{"endless", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = w.Write(bytes.Repeat([]byte("access_token "), 1000))
			}
		}, false},
		{"broken off", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, false},
		{"other program that asks for login", answer(401, "application/json", `{"error":"unauthorized"}`), false},
		{"OAuth resource", answer(401, "application/json", `{"error":"unauthorized","error_description":"Full authentication is required"}`), false},
		{"OAuth resource without a scope", answer(403, "application/json", `{"error":"insufficient_scope","error_description":"x"}`), false},
		{"broken OAuth program", answer(500, "application/json", `{"error":"server_error","error_description":"x"}`), false},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(&asked, "%s %s %q\n", r.Method, r.URL, r.Header["Metadata"])
			c.answer(w, r)
		}))
		address := server.Listener.Addr().String()
		if got := len(findEndpoints(t.Context(), []string{address}, patient)) > 0; got != c.want {
			t.Errorf("%s: found %v; want %v", c.what, got, c.want)
		}
		server.Close()
		if got, want := asked.String(), "GET /metadata/identity/oauth2/token []\n"; got != want {
			t.Errorf("%s: it was asked %q; want %q", c.what, got, want)
		}
		asked.Reset()
	}
}

func TestFindEndpointsIgnoresOtherProtocols(t *testing.T) {
	secure := httptest.NewTLSServer(proxyAnswer("The resource parameter is required."))
	defer secure.Close()
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	closed := httptest.NewServer(nil)
	closed.Close()
	addresses := []string{secure.Listener.Addr().String(), closed.Listener.Addr().String(), "nonsense"}
	var silent []string
	for _, say := range []string{"", "HTTP/1.1 400 access_token\r\n", "220 mail.example ESMTP\r\n", "\x00\x01\x02\n", strings.Repeat("HTTP/1.1 ", 1<<20)} {
		l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // of the test
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close() // with the test
				_, _ = io.WriteString(conn, say)
			}
		}()
		if len(silent) < 2 {
			silent = append(silent, l.Addr().String())
			continue
		}
		addresses = append(addresses, l.Addr().String())
	}
	if got := findEndpoints(t.Context(), silent, time.Millisecond); len(got) > 0 {
		t.Errorf("found %q, which do not answer", got)
	}
	endpoint := httptest.NewServer(proxyAnswer("The resource parameter is required."))
	defer endpoint.Close()
	addresses = append(addresses, endpoint.Listener.Addr().String())
	if got := findEndpoints(t.Context(), addresses, patient); !slices.Equal(got, addresses[len(addresses)-1:]) {
		t.Errorf("found %q of %q; want the last", got, addresses)
	}
}

func TestEndpointAddressesAreThoseOfThePod(t *testing.T) {
	// As the kernel writes them: listening on 127.0.0.1:8000, 127.0.0.1:8081 (the signer), 127.0.0.53:53, 0.0.0.0:8090, and an
	// established connection to 127.0.0.1:9999; and [::1]:4141, [::]:8080, [::ffff:127.0.0.1]:5000, [fe80::1]:6000.
	dir := t.TempDir()
	for name, text := range map[string]string{
		"tcp": `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1501        0 1 1 0 100 0 0 10 0
   1: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000 65533        0 2 1 0 100 0 0 10 0
   2: 3500007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 3 1 0 100 0 0 10 0
   3: 00000000:1F9A 00000000:0000 0A 00000000:00000000 00:00000000 00000000 65532        0 4 1 0 100 0 0 10 0
   4: 0100007F:270F 0100007F:1F91 01 00000000:00000000 00:00000000 00000000 65532        0 5 1 0 100 0 0 10 0
`,
		"tcp6": `  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000001000000:102D 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1501        0 1 1 0 100 0 0 10 0
   1: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000 65532        0 2 1 0 100 0 0 10 0
   2: 0000000000000000FFFF00000100007F:1388 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1501        0 3 1 0 100 0 0 10 0
   3: 000080FE000000000000000001000000:1770 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000  1501        0 4 1 0 100 0 0 10 0
   4: nonsense:0A 0 0A
   5: 00:0A 0 0A
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pod := []string{"KUBERNETES_SERVICE_HOST=10.0.0.1"}
	for _, c := range []struct {
		environ []string
		known   []string
		in      string
		want    []string
	}{
		{nil, []string{"8081"}, dir, []string{"127.0.0.1:8000", "[::1]:8000"}},
		{pod, []string{"8080", "8090", "8081"}, dir, []string{"127.0.0.1:5000", "127.0.0.1:8000", "127.0.0.53:53", "[::1]:4141", "[::1]:8000"}},
		{pod, []string{"5000", ""}, dir, []string{"127.0.0.1:8000", "127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:8090", "127.0.0.53:53", "[::1]:4141", "[::1]:8000"}},
		{nil, []string{"8000"}, dir, nil},
		{nil, nil, dir, []string{"127.0.0.1:8000", "[::1]:8000"}},
		{pod, nil, dir + "/absent", []string{"127.0.0.1:8000", "[::1]:8000"}},
	} {
		if got := endpointAddresses(c.environ, c.known, c.in); !slices.Equal(got, c.want) {
			t.Errorf("%q, known %q: %q; want %q", c.environ, c.known, got, c.want)
		}
	}

	// The kernel's own table.
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // of the test
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := os.Stat("/proc/net/tcp"); err != nil {
		t.Skip("no /proc/net/tcp: not Linux")
	}
	if got := endpointAddresses(pod, nil, "/proc/net"); !slices.Contains(got, l.Addr().String()) {
		t.Errorf("%v is not in %q", l.Addr(), got)
	}
}

func TestReadyFailsWhileATokenEndpointAnswers(t *testing.T) {
	var log bytes.Buffer
	var found []string
	searches := 0
	e := &endpoints{log: slog.New(slog.NewJSONHandler(&log, nil)), search: func() []string {
		searches++
		return found
	}}
	for i, c := range []struct {
		found []string
		lines int
	}{
		{nil, 0},
		{[]string{"127.0.0.1:8000"}, 1},
		{[]string{"127.0.0.1:8000"}, 0},
		{[]string{"127.0.0.1:8000", "127.0.0.1:9000"}, 1},
		{nil, 0},
		{[]string{"127.0.0.1:8000"}, 1},
	} {
		log.Reset()
		found, e.next = c.found, time.Time{}
		for range 3 { // one search in endpointInterval
			err := e.ready()
			if (err != nil) != (len(c.found) > 0) || err != nil && !strings.Contains(err.Error(), c.found[0]) {
				t.Errorf("%d: found %q: %v", i, c.found, err)
			}
		}
		if got := strings.Count(log.String(), `"level":"ERROR"`); got != c.lines || got > 0 && !strings.Contains(log.String(), "inject-proxy-sidecar") {
			t.Errorf("%d: found %q: logged %s", i, c.found, &log)
		}
	}
	if searches != 6 {
		t.Errorf("%d searches; want 6", searches)
	}
}
