package stack

import (
	"crypto/x509"
	"os"
	"testing"
)

func TestCertificateIsTrustedForItsNamesAndSignsNoOther(t *testing.T) {
	dir := t.TempDir()
	open := func(names ...string) *CA {
		t.Helper()
		ca, err := OpenCA(dir, names...)
		if err != nil {
			t.Fatal(err)
		}
		return ca
	}
	names := []string{"localhost", "*.blob.localhost", accountHost}
	ca := open(names...)
	own := ca.Leaf.Leaf
	for name, want := range map[string]bool{
		"localhost": true, "127.0.0.1": true, "::1": true, accountHost: true, "other.blob.localhost": true,
		"davydscats.blob.core.windows.net": false, "192.0.2.1": false,
	} {
		_, err := own.Verify(x509.VerifyOptions{DNSName: name, Roots: ca.Pool})
		if (err == nil) != want || ca.covers(name) != want {
			t.Errorf("%s: %v; trusted must be %t", name, err, want)
		}
	}
	if own.IsCA || own.MaxPathLen > 0 || own.CheckSignatureFrom(own) == nil {
		t.Error("it can sign another certificate")
	}
	if info, err := os.Stat(ca.KeyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info, err)
	}
	if !open(names...).Leaf.Leaf.Equal(own) || open("another").Leaf.Leaf.Equal(own) {
		t.Error("a certificate is created again for the same names, or not for another name")
	}
}
