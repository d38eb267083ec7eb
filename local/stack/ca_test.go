package stack

import (
	"crypto/x509"
	"os"
	"testing"
)

func TestCertificateIsTrustedForItsNames(t *testing.T) {
	ca, err := OpenCA(t.TempDir(), "localhost", "*.blob.localhost", accountHost)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		"localhost": true, "127.0.0.1": true, "::1": true, accountHost: true, "other.blob.localhost": true,
		"davydscats.blob.core.windows.net": false, "192.0.2.1": false,
	} {
		_, err := ca.Leaf.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: ca.Pool})
		if (err == nil) != want || ca.covers(name) != want {
			t.Errorf("%s: %v; trusted must be %t", name, err, want)
		}
	}
}

func TestCertificateSignsNoOther(t *testing.T) {
	dir := t.TempDir()
	ca, err := OpenCA(dir, "localhost")
	if err != nil {
		t.Fatal(err)
	}
	own := ca.Leaf.Leaf
	if own.IsCA || own.MaxPathLen > 0 || own.CheckSignatureFrom(own) == nil {
		t.Error("it can sign another certificate")
	}
	if info, err := os.Stat(ca.KeyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info, err)
	}
	if again, err := OpenCA(dir, "localhost"); err != nil || !again.Leaf.Leaf.Equal(own) {
		t.Errorf("opening it again creates another: %v", err)
	}
	if other, err := OpenCA(dir, "localhost", "*.blob.localhost"); err != nil || other.Leaf.Leaf.Equal(own) {
		t.Errorf("opening it for another name does not create another: %v", err)
	}
}
