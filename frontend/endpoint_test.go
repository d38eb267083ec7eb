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
	"slices"
	"strings"
	"testing"
	"time"
)

// respond returns a handler with this response. It is the webhook's proxy, azwi-proxy, if contentType is "".
func respond(status int, contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		if contentType == "" {
			w.Header().Set("Server", "azure-workload-identity/proxy/v1.6.0 (linux/amd64) abcdef/2026-01-01")
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func TestFindEndpointsRecognizesTokenEndpoints(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	const json, text = "application/json", "text/plain"
	elsewhere := httptest.NewServer(respond(200, json, `{"access_token":"secret"}`))
	defer elsewhere.Close()
	var requests bytes.Buffer
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		want    bool
	}{
		"proxy without a resource":             {respond(400, "", "The resource parameter is required."), true},
		"proxy without a client ID":            {respond(400, "", "The client_id parameter or AZURE_CLIENT_ID environment variable must be set"), true},
		"proxy without its name":               {respond(400, text, "The resource parameter is required.\n"), true},
		"old proxy without its name":           {respond(400, text, "The client_id parameter is required.\n"), true},
		"metadata service":                     {respond(400, json, `{"error":"invalid_request","error_description":"Required metadata header not specified"}`), true},
		"metadata service in text":             {respond(400, text, "Required metadata header not specified"), true},
		"metadata service without an identity": {respond(400, json, ` {"error":"invalid_request","error_description":"Identity not found"}`), true},
		"token":                                {respond(200, json, `{"token_type":"Bearer","access_token":"`+strings.Repeat("s", 4<<10)+`"}`), true},
		"server name alone":                    {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Server", "IMDS/150.870.65.1854") }, true},

		"not found":                    {http.NotFound, false},
		"not found in JSON":            {respond(404, json, `{"error":"not_found","error_description":"no such path"}`), false},
		"page for every path":          {respond(200, "text/html", `<script>x = {"access_token": "error", "error_description": "metadata header"}</script>`), false},
		"other error":                  {respond(400, text, "Bad Request"), false},
		"other error in JSON":          {respond(400, json, `{"error":"bad request","detail":"access token"}`), false},
		"same text with 200":           {respond(200, text, "The resource parameter is required."), false},
		"empty":                        {func(http.ResponseWriter, *http.Request) {}, false},
		"redirect":                     {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL, http.StatusFound) }, false},
		"endless":                      {respond(200, text, strings.Repeat("access_token ", 1<<20)), false},
		"aborted":                      {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, false},
		"program with a login":         {respond(401, json, `{"error":"unauthorized"}`), false},
		"OAuth resource":               {respond(401, json, `{"error":"unauthorized","error_description":"Full authentication is required"}`), false},
		"OAuth resource without scope": {respond(403, json, `{"error":"insufficient_scope","error_description":"x"}`), false},
		"OAuth resource with an error": {respond(500, json, `{"error":"server_error","error_description":"x"}`), false},
	} {
		requests.Reset()
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(&requests, "%s %s %q\n", r.Method, r.URL, r.Header["Metadata"])
			c.handler(w, r)
		}))
		if got := len(findEndpoints(t.Context(), []string{server.Listener.Addr().String()}, 10*time.Second)) > 0; got != c.want {
			t.Errorf("%s: found %v; want %v", name, got, c.want)
		}
		server.Close()
		if got, want := requests.String(), "GET /metadata/identity/oauth2/token []\n"; got != want {
			t.Errorf("%s: the requests were %q; want %q", name, got, want)
		}
	}
}

func TestFindEndpointsIgnoresOtherProtocols(t *testing.T) {
	endpoint := respond(400, "", "The resource parameter is required.")
	secure, found := httptest.NewTLSServer(endpoint), httptest.NewServer(endpoint)
	defer secure.Close()
	defer found.Close()
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	closed := httptest.NewServer(nil)
	closed.Close()
	listen := func(response string) string {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
				t.Cleanup(func() { conn.Close() })
				_, _ = io.WriteString(conn, response)
			}
		}()
		return l.Addr().String()
	}
	if got := findEndpoints(t.Context(), []string{listen(""), listen("HTTP/1.1 400 access_token\r\n")}, time.Millisecond); len(got) > 0 {
		t.Errorf("found %q, which do not answer", got)
	}
	addresses := []string{
		secure.Listener.Addr().String(), closed.Listener.Addr().String(), "nonsense",
		listen("220 mail.example ESMTP\r\n"), listen("\x00\x01\x02\n"), listen(strings.Repeat("HTTP/1.1 ", 1<<20)), found.Listener.Addr().String(),
	}
	if got := findEndpoints(t.Context(), addresses, 10*time.Second); !slices.Equal(got, addresses[len(addresses)-1:]) {
		t.Errorf("found %q of %q; want the last", got, addresses)
	}
}

// testdata/net has, in the kernel's format, an established connection to 127.0.0.1:9999, and listeners on 127.0.0.1:8000,
// 127.0.0.1:8081 (the signer), 127.0.0.53:53, 0.0.0.0:8090, [::1]:4141, [::]:8080, [::ffff:127.0.0.1]:5000 and [fe80::1]:6000.
func TestEndpointAddressesAreThoseOfThePod(t *testing.T) {
	const pod, ownPorts = "KUBERNETES_SERVICE_HOST=10.0.0.1", "8080 8090 8081"
	for _, c := range []struct{ environ, ownPorts, procNet, want string }{
		{"", "8081", "testdata/net", "127.0.0.1:8000 [::1]:8000"},
		{pod, ownPorts, "testdata/net", "127.0.0.1:5000 127.0.0.1:8000 127.0.0.53:53 [::1]:4141 [::1]:8000"},
		{pod, "5000", "testdata/net", "127.0.0.1:8000 127.0.0.1:8080 127.0.0.1:8081 127.0.0.1:8090 127.0.0.53:53 [::1]:4141 [::1]:8000"},
		{"", "8000", "testdata/net", ""},
		{pod, "", "testdata/absent", "127.0.0.1:8000 [::1]:8000"},
	} {
		if got := strings.Join(endpointAddresses([]string{c.environ}, strings.Fields(c.ownPorts), c.procNet), " "); got != c.want {
			t.Errorf("%+v: got %s", c, got)
		}
	}
	// The kernel's own table.
	server := httptest.NewServer(nil)
	defer server.Close()
	if _, err := os.Stat("/proc/net/tcp"); err != nil {
		t.Skip("no /proc/net/tcp: not Linux")
	}
	if got := endpointAddresses([]string{pod}, []string{""}, "/proc/net"); !slices.Contains(got, server.Listener.Addr().String()) {
		t.Errorf("%v is not in %q", server.Listener.Addr(), got)
	}
}

func TestReadyFailsWhileATokenEndpointAnswers(t *testing.T) {
	var log bytes.Buffer
	var found []string
	searches := 0
	e := &endpoints{log: slog.New(slog.NewTextHandler(&log, nil)), search: func() []string {
		searches++
		return found
	}}
	for i, c := range []struct {
		found string
		logs  bool
	}{
		{"", false},
		{"127.0.0.1:8000", true},
		{"127.0.0.1:8000", false},
		{"127.0.0.1:8000 127.0.0.1:9000", true},
		{"", false},
		{"127.0.0.1:8000", true},
	} {
		log.Reset()
		found, e.next = strings.Fields(c.found), time.Time{}
		for range 3 { // one search in endpointInterval
			if err := e.ready(); (err != nil) != (c.found != "") || err != nil && !strings.Contains(err.Error(), found[0]) {
				t.Errorf("%d: found %q: %v", i, c.found, err)
			}
		}
		if logged := strings.Count(log.String(), "level=ERROR"); (logged == 1) != c.logs || logged > 1 || c.logs && !strings.Contains(log.String(), "inject-proxy-sidecar") {
			t.Errorf("%d: found %q: logged %s", i, c.found, &log)
		}
	}
	if searches != 6 {
		t.Errorf("%d searches; want 6", searches)
	}
}
