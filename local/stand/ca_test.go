package stand

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
)

func TestLeafIsTrustedUnderEachName(t *testing.T) {
	ca, err := OpenCA(t.TempDir(), "localhost", "*.blob.localhost", accountHost)
	if err != nil {
		t.Fatal(err)
	}
	l, err := listen(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	stop := serve(ca.secure(l), http.NotFoundHandler())
	defer func() { _ = stop(t.Context()) }()
	dial := func(name string) (net.Conn, error) {
		d := tls.Dialer{Config: &tls.Config{RootCAs: ca.Pool, ServerName: name}}
		return d.DialContext(t.Context(), "tcp", l.Addr().String())
	}
	for _, name := range []string{"localhost", "127.0.0.1", "::1", accountHost, "other.blob.localhost"} {
		conn, err := dial(name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		_ = conn.Close()
	}
	for _, name := range []string{"davydscats.blob.core.windows.net", "192.0.2.1"} {
		if conn, err := dial(name); err == nil {
			_ = conn.Close()
			t.Errorf("%s is trusted", name)
		}
	}
}

func TestKeyOfTheAuthorityIsNowhere(t *testing.T) {
	dir := t.TempDir()
	ca, err := OpenCA(dir, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("PRIVATE KEY")) && (f != ca.KeyFile || info.Mode().Perm() != 0o600) {
			t.Errorf("%s, mode %v, holds a key", f, info.Mode())
		}
	}
	b, err := os.ReadFile(ca.File)
	if err != nil {
		t.Fatal(err)
	}
	block, rest := pem.Decode(b)
	if block == nil || len(rest) > 0 {
		t.Fatalf("%s does not hold one certificate", ca.File)
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(b, must(os.ReadFile(ca.KeyFile))); err == nil || !root.IsCA {
		t.Error("the leaf's key is the authority's")
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}
