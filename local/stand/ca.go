package stand

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// caLifetime is that of the certificates: a stand does not run for longer.
const caLifetime = 7 * 24 * time.Hour

// CA is a certificate authority made for one stand. Its private key exists only
// while the certificates are made.
type CA struct {
	Pool *x509.CertPool  // trusts the authority alone
	Leaf tls.Certificate // for localhost, the loopback addresses and *.blob.localhost

	File              string // PEM of the authority's certificate
	CertFile, KeyFile string // PEM of the leaf, its key readable by the owner alone
}

// newCA makes an authority and its leaf certificate, and writes them to dir:
// ca.pem, localhost.pem and localhost-key.pem.
func newCA(dir string) (*CA, error) {
	ca, err := makeCA(dir)
	if err != nil {
		return nil, fmt.Errorf("making the local certificates: %w", err)
	}
	return ca, nil
}

func makeCA(dir string) (*CA, error) {
	now := time.Now()
	root := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "cats-api local CA, made " + now.UTC().Format(time.RFC3339)},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(caLifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
		// Whoever trusts this authority trusts it for this machine only.
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{"localhost"},
		PermittedIPRanges:           loopback(),
	}
	leaf := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "localhost"},
		NotBefore:   now.Add(-time.Hour),
		NotAfter:    now.Add(caLifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost", "*.blob.localhost", accountHost},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	root.SerialNumber, leaf.SerialNumber = serial(), serial()
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		return nil, err
	}
	if root, err = x509.ParseCertificate(rootDER); err != nil {
		return nil, err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, leafKey.Public(), rootKey)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		return nil, err
	}

	ca := &CA{
		Pool:     x509.NewCertPool(),
		File:     filepath.Join(dir, "ca.pem"),
		CertFile: filepath.Join(dir, "localhost.pem"),
		KeyFile:  filepath.Join(dir, "localhost-key.pem"),
	}
	ca.Pool.AddCert(root)
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leafDER})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	if ca.Leaf, err = tls.X509KeyPair(certPEM, keyPEM); err != nil {
		return nil, err
	}
	for _, f := range []struct {
		path string
		pem  []byte
		mode os.FileMode
	}{
		{ca.File, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: rootDER}), 0o644},
		{ca.CertFile, certPEM, 0o644},
		{ca.KeyFile, keyPEM, 0o600},
	} {
		if err := os.WriteFile(f.path, f.pem, f.mode); err != nil {
			return nil, err
		}
	}
	return ca, nil
}

// secure returns l with TLS, under the leaf certificate.
func (ca *CA) secure(l net.Listener) net.Listener {
	return tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{ca.Leaf}, MinVersion: tls.VersionTLS12})
}

func loopback() []*net.IPNet {
	return []*net.IPNet{
		{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)},
		{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)},
	}
}

func serial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[0] &= 0x7f           // positive in DER's 16 bytes
	return new(big.Int).SetBytes(b[:])
}
