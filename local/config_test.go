package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cats.example/local/stack"
)

// timeWait returns a port in TIME-WAIT on host: that of a server that closed a connection, or that of a client that did.
func timeWait(t *testing.T, host string, client bool) int {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Skipf("no %s here: %v", host, err)
	}
	defer l.Close()
	local, err := net.ResolveTCPAddr("tcp", net.JoinHostPort(host, strconv.Itoa(freePorts(t).FrontendPort)))
	if err != nil {
		t.Fatal(err)
	}
	first, err := (&net.Dialer{LocalAddr: local}).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	second, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	port := local.Port
	if !client {
		first, second, port = second, first, l.Addr().(*net.TCPAddr).Port
	}
	// Who closes first has TIME-WAIT. Each side sees the end of the other.
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Read(make([]byte, 1)); err == nil {
		t.Fatal("the connection has not ended")
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	return port
}

func TestPortsInTimeWaitAreNotTaken(t *testing.T) {
	for _, c := range []struct {
		host   string
		client bool
		want   string // in the error
	}{
		{"127.0.0.1", false, ""},
		{"127.0.0.2", false, ""},
		{"::1", false, ""},
		{"::1", true, ""},
		// The kernel binds no listener to these.
		{"127.0.0.1", true, "is the local port of a connection"},
	} {
		t.Run(fmt.Sprintf("%s client %t", c.host, c.client), func(t *testing.T) {
			port := timeWait(t, c.host, c.client)
			cfg := freePorts(t)
			cfg.StoragePort = port
			err := cfg.checkPorts(t.Context())
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				listen(t, port).Close()
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "taken") {
				t.Errorf("got %v; want %q", err, c.want)
			}
		})
	}
}

func TestPortsOfListenersAreTaken(t *testing.T) {
	for _, host := range []string{"", "0.0.0.0", "127.0.0.1", "::1", "::"} {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Logf("no %s here: %v", host, err)
			continue
		}
		defer l.Close()
		port := l.Addr().(*net.TCPAddr).Port
		if err := free(t.Context(), port); err == nil || err.Error() != "is taken" {
			t.Errorf("a listener on %q: %v; want that it is taken", host, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := free(t.Context(), port); err != nil {
			t.Errorf("after a listener on %q: %v", host, err)
		}
	}
}

var suggestion = regexp.MustCompile(`: set another, such as SIGNER_PORT=(\d+)$`)

func TestSuggestedPortsCanBeUsed(t *testing.T) {
	for _, port := range []int{-1, 0, 1, 80, 1023, 1024, 8080, 9999, 10_000, 19_999, 20_000, 22_768, 29_999, 30_000, 32_767, 32_768, 49_999, 50_000, 60_999, 65_535, 65_536} {
		used := map[int]bool{port: true}
		for range 3 { // each is another
			m := suggestion.FindStringSubmatch(suggest(t.Context(), "SIGNER_PORT", port, used))
			if m == nil {
				t.Fatalf("port %d: no suggestion", port)
			}
			other, err := strconv.Atoi(m[1])
			if err != nil || other < 1024 || other >= 32_768 || other == port {
				t.Errorf("port %d: %d is suggested", port, other)
			}
			listen(t, other).Close()
		}
	}
	used := map[int]bool{}
	first := suggest(t.Context(), "SIGNER_PORT", 8080, used)
	taken, err := strconv.Atoi(suggestion.FindStringSubmatch(first)[1])
	if err != nil {
		t.Fatal(err)
	}
	defer listen(t, taken).Close()
	if again := suggest(t.Context(), "SIGNER_PORT", 8080, map[int]bool{}); again == first {
		t.Errorf("%d is suggested while it is taken", taken)
	}
	cfg := freePorts(t)
	for _, port := range []*int{&cfg.FrontendPort, &cfg.FrontendOpsPort, &cfg.SignerOpsPort} {
		l := listen(t, 0)
		defer l.Close()
		*port = l.Addr().(*net.TCPAddr).Port
	}
	text := cfg.checkPorts(t.Context()).Error()
	distinct := map[string]bool{}
	for _, m := range regexp.MustCompile(`such as [A-Z_]+=(\d+)`).FindAllStringSubmatch(text, -1) {
		distinct[m[1]] = true
	}
	if len(distinct) != 3 {
		t.Errorf("for three ports it says %q", text)
	}
}

func TestSuggestedPortsAreNotOtherSettings(t *testing.T) {
	cfg := freePorts(t)
	taken := listen(t, cfg.SignerPort)
	defer taken.Close()
	suggested := func() int {
		m := suggestion.FindStringSubmatch(cfg.checkPorts(t.Context()).Error())
		if m == nil {
			t.Fatalf("no suggestion in %v", cfg.checkPorts(t.Context()))
		}
		port, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		return port
	}
	for _, setting := range []*int{&cfg.FrontendPort, &cfg.FrontendOpsPort, &cfg.SignerOpsPort, &cfg.StoragePort, &cfg.PrometheusPort} {
		*setting = suggested() // which the next suggestion must not be
		if port := suggested(); port == *setting {
			t.Errorf("%d is another setting's: %+v", port, cfg)
		}
	}
}

func TestCertificateFileIsChecked(t *testing.T) {
	dir := t.TempDir()
	ca, err := stack.OpenCA(dir, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"empty.pem": "", "text.pem": "mew", "broken.pem": "-----BEGIN CERTIFICATE-----\nbWV3\n-----END CERTIFICATE-----\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for file, want := range map[string]string{
		"": "", ca.File: "", filepath.Join(dir, "nothing.pem"): "no such file", dir: "is a directory", ca.KeyFile: "holds no certificate",
		filepath.Join(dir, "empty.pem"): "holds no certificate", filepath.Join(dir, "text.pem"): "holds no certificate", filepath.Join(dir, "broken.pem"): "holds no certificate",
	} {
		for _, account := range []string{"", "https://davydscats.blob.core.windows.net"} {
			_, err := parse([]string{"SSL_CERT_FILE=" + file, "AZURE_STORAGE_ACCOUNT_URL=" + account})
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "SSL_CERT_FILE")) {
				t.Errorf("%q: %v; want %q", file, err, want)
			}
		}
	}
}

func TestCertificatePathsBecomeAbsolute(t *testing.T) {
	t.Chdir(t.TempDir())
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	environ := []string{"SSL_CERT_FILE=ca.pem", "SSL_CERT_DIR=/etc/ssl/certs:own"}
	want := map[string]string{"SSL_CERT_FILE": here + "/ca.pem", "SSL_CERT_DIR": "/etc/ssl/certs:" + here + "/own"}
	for _, cfg := range []settings{{}, {AccountURL: "https://davydscats.blob.core.windows.net"}} {
		got := pick(nil)
		for name, value := range cfg.signerEnv(environ) {
			if strings.HasPrefix(name, "SSL_") {
				got[name] = value
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("on %q (-want +got):\n%s", cfg.AccountURL, diff)
		}
	}
	if len(frontendEnv(environ)) > 0 {
		t.Error("the frontend gets them")
	}
	if err := checkAuthorities(environ); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not here: %v", err)
	}
}
