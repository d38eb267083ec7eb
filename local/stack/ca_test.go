package stack

import (
	"crypto/tls"
	"net"
	"net/http"
	"os"
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

func TestTheCertificateVouchesForItselfAlone(t *testing.T) {
	dir := t.TempDir()
	ca, err := OpenCA(dir, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	own := ca.Leaf.Leaf
	if own.IsCA || own.MaxPathLen > 0 || own.CheckSignatureFrom(own) == nil {
		t.Error("it could sign another certificate")
	}
	if info, err := os.Stat(ca.KeyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: its key can be read by others", info, err)
	}
	if again, err := OpenCA(dir, "localhost"); err != nil || !again.Leaf.Leaf.Equal(own) {
		t.Errorf("opened again it is another: %v", err)
	}
	if other, err := OpenCA(dir, "localhost", "*.blob.localhost"); err != nil || other.Leaf.Leaf.Equal(own) {
		t.Errorf("opened for another name it is the same: %v", err)
	}
}
