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
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestFrontendRefusesToStartWithCredentials(t *testing.T) {
	dir := t.TempDir()
	files := []string{filepath.Join(dir, "azure-identity-token"), filepath.Join(dir, "token")}
	for _, name := range files {
		if err := os.WriteFile(name, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	environ := strings.Fields("PATH=/bin AZURE_B= AZURE_A=secret AZURE_A=2 IDENTITY_HEADER=secret IDENTITY_ENDPOINT IMDS_ENDPOINT= " +
		"IDENTITY_SERVER_THUMBPRINT=secret MSI_ENDPOINT=secret MSI_SECRET=secret")
	want := "does not start: token endpoint 127.0.0.1:9, token endpoint [::1]:9, token file " + files[0] + ", token file " + files[1] +
		", variable AZURE_A, variable AZURE_B, variable IDENTITY_ENDPOINT, variable IDENTITY_HEADER, variable IDENTITY_SERVER_THUMBPRINT" +
		", variable IMDS_ENDPOINT, variable MSI_ENDPOINT, variable MSI_SECRET; " + credentialsFix
	err := checkNoCredentials(environ, append(files, dir+"/absent"), []string{"127.0.0.1:9", "[::1]:9"})
	if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v; want one line with %q, and no values", err, want)
	}
	others := strings.Fields("PATH=/bin MY_AZURE_=1 azure_client_id=1 IDENTITY_ENDPOINTS=1 MSI=1")
	if err := checkNoCredentials(others, []string{dir + "/absent"}, nil); err != nil {
		t.Errorf("without credentials: %v", err)
	}
}

func TestFindEndpointsRecognizesTokenEndpoints(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	text, err := os.ReadFile("testdata/responses.txt")
	if err != nil {
		t.Fatal(err)
	}
	rows := []string{
		"aborted\tno\t-\t\t", "too long\tno\t200\tServer: x\t{\"x\":\"" + strings.Repeat("x", 1<<20) + `","access_token":"x"}`,
		"long token\tyes\t200\tServer: x\t{\"access_token\":\"" + strings.Repeat("s", 4<<10),
	}
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			rows = append(rows, strings.TrimSuffix(line, "\n"))
		}
	}
	for _, line := range rows {
		row := strings.Split(line, "\t")
		var requests bytes.Buffer
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(&requests, "%s %s %q", r.Method, r.URL, r.Header["Metadata"])
			status, err := strconv.Atoi(row[2])
			name, value, ok := strings.Cut(row[3], ": ")
			if err != nil || !ok {
				panic(http.ErrAbortHandler)
			}
			w.Header().Set(name, strings.Replace(value, "{elsewhere}", r.Host, 1))
			w.WriteHeader(status)
			_, _ = io.WriteString(w, row[4])
		}))
		found := findEndpoints(t.Context(), []string{server.Listener.Addr().String()}, 10*time.Second)
		server.Close()
		if want := row[1] == "yes"; want != (len(found) > 0) || requests.String() != "GET /metadata/identity/oauth2/token []" {
			t.Errorf("%s: found %v; want %v; the request was %s", row[0], found, want, &requests)
		}
	}
}

func TestFindEndpointsIgnoresOtherProtocols(t *testing.T) {
	endpoint := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "The resource parameter is required.", 400)
	})
	secure, found, closed := httptest.NewTLSServer(endpoint), httptest.NewServer(endpoint), httptest.NewServer(nil)
	defer secure.Close()
	defer found.Close()
	closed.Close()
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	listen := func() net.Listener {
		l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	addresses := []string{secure.Listener.Addr().String(), closed.Listener.Addr().String(), "nonsense"}
	endless := strings.Repeat("HTTP/1.1 ", 1<<20)
	for _, response := range []string{"220 mail.example ESMTP\r\n", endless, "", "HTTP/1.1 400 access_token\r\n"} {
		l := listen()
		go func() {
			for conn, err := l.Accept(); err == nil; conn, err = l.Accept() {
				_, _ = io.WriteString(conn, response)
				conn.Close()
			}
		}()
		addresses = append(addresses, l.Addr().String())
	}
	addresses = append(addresses, found.Listener.Addr().String())
	if got := findEndpoints(t.Context(), addresses, 10*time.Second); !slices.Equal(got, addresses[len(addresses)-1:]) {
		t.Errorf("found %q of %q; want the last", got, addresses)
	}
	if got := findEndpoints(t.Context(), []string{listen().Addr().String()}, time.Millisecond); len(got) > 0 {
		t.Errorf("found %q, which does not answer", got)
	}
}

// testdata/proc/net has, in the kernel's format, an established connection to 127.0.0.1:9999, and listeners on 127.0.0.1:8000,
// 127.0.0.1:8081 (the signer), 127.0.0.53:53, 0.0.0.0:8090, [::1]:4141, [::]:8080, [::ffff:127.0.0.1]:5000 and [fe80::1]:6000.
func TestEndpointAddressesAreThoseOfThePod(t *testing.T) {
	const pod, own = "KUBERNETES_SERVICE_HOST=10.0.0.1", ":8080 0.0.0.0:8090 http://127.0.0.1:8081/"
	for _, c := range []struct{ environ, own, proc, want string }{
		{"", "127.0.0.1:8081", "testdata/proc", "127.0.0.1:8000 [::1]:8000"},
		{pod, own, "testdata/proc", "127.0.0.1:5000 127.0.0.1:8000 127.0.0.53:53 [::1]:4141 [::1]:8000"},
		{pod, ":5000", "testdata/proc", "127.0.0.1:8000 127.0.0.1:8080 127.0.0.1:8081 127.0.0.1:8090 127.0.0.53:53 [::1]:4141 [::1]:8000"},
		{"", "http://localhost:8000", "testdata/proc", ""},
		{"", ":18000", "testdata/proc", "127.0.0.1:8000 [::1]:8000"},
		{pod, "", "testdata/absent", "127.0.0.1:8000 [::1]:8000"},
	} {
		if got := strings.Join(endpointAddresses([]string{c.environ}, strings.Fields(c.own), c.proc), " "); got != c.want {
			t.Errorf("%+v: got %s", c, got)
		}
	}
	// The kernel's own table.
	server := httptest.NewServer(nil)
	defer server.Close()
	if _, err := os.Stat("/proc/net/tcp"); err != nil && os.Getenv("CI") == "" {
		t.Skip("no /proc/net/tcp: not Linux")
	}
	if got := endpointAddresses([]string{pod}, nil, "/proc"); !slices.Contains(got, server.Listener.Addr().String()) {
		t.Errorf("%v is not in %q", server.Listener.Addr(), got)
	}
}
