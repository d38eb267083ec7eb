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
	"strings"
	"time"
)

// caLifetime is that of the certificates: a stand does not run for longer.
const caLifetime = 7 * 24 * time.Hour

// CA is a certificate authority made for one stand. Its private key exists only
// while the certificates are made.
type CA struct {
	Pool *x509.CertPool  // trusts the authority alone
	Leaf tls.Certificate // for the loopback addresses and the names asked for

	File              string // PEM of the authority's certificate
	CertFile, KeyFile string // PEM of the leaf, its key readable by the owner alone
}

// OpenCA returns the authority and the leaf certificate for names that are in
// dir: ca.pem, leaf.pem and leaf-key.pem. It makes them when they are missing or
// no longer good.
func OpenCA(dir string, names ...string) (*CA, error) {
	ca := &CA{
		File:     filepath.Join(dir, "ca.pem"),
		CertFile: filepath.Join(dir, "leaf.pem"),
		KeyFile:  filepath.Join(dir, "leaf-key.pem"),
	}
	if ca.load(names) == nil {
		return ca, nil
	}
	if err := ca.make(names); err != nil {
		return nil, fmt.Errorf("making the local certificates: %w", err)
	}
	if err := ca.load(names); err != nil {
		return nil, fmt.Errorf("reading the local certificates: %w", err)
	}
	return ca, nil
}

// load reads the files, and returns an error unless they hold for names, and for
// some time to come.
func (ca *CA) load(names []string) error {
	root, err := os.ReadFile(ca.File)
	if err != nil {
		return err
	}
	if ca.Leaf, err = tls.LoadX509KeyPair(ca.CertFile, ca.KeyFile); err != nil {
		return err
	}
	ca.Pool = x509.NewCertPool()
	ca.Pool.AppendCertsFromPEM(root)
	for _, name := range names {
		if _, err := ca.Leaf.Leaf.Verify(x509.VerifyOptions{
			DNSName: strings.Replace(name, "*", "any", 1), Roots: ca.Pool, CurrentTime: time.Now().Add(caLifetime / 2),
		}); err != nil {
			return err
		}
	}
	return nil
}

// local reports whether a name is one of the certificate's: all of them are
// this machine's own.
func (ca *CA) local(host string) bool { return ca.Leaf.Leaf.VerifyHostname(host) == nil }

func (ca *CA) make(names []string) error {
	now := time.Now()
	var permitted []string
	for _, name := range names {
		permitted = append(permitted, strings.TrimPrefix(name, "*."))
	}
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
		PermittedDNSDomains:         permitted,
		PermittedIPRanges:           loopback(),
	}
	leaf := &x509.Certificate{
		Subject:     pkix.Name{CommonName: names[0]},
		NotBefore:   now.Add(-time.Hour),
		NotAfter:    now.Add(caLifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    names,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	root.SerialNumber, leaf.SerialNumber = serial(), serial()
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		return err
	}
	if root, err = x509.ParseCertificate(rootDER); err != nil {
		return err
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, root, leafKey.Public(), rootKey)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		return err
	}

	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leafDER})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
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
			return err
		}
	}
	return nil
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
