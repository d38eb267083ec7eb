package stack

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// caLifetime is the lifetime of the certificate. No stack runs longer.
const caLifetime = 7 * 24 * time.Hour

// CA is the certificate of one stack. It is self-signed: Azurite copies from its own HTTPS endpoint and trusts it only then. It cannot
// sign other certificates, so that a client that trusts it trusts this machine only.
type CA struct {
	Pool *x509.CertPool  // contains only this certificate
	Leaf tls.Certificate // for the loopback addresses and the names passed to OpenCA

	File, KeyFile string // PEM; only the owner can read the key
}

// OpenCA returns the certificate for names from the files ca.pem and ca-key.pem in dir. It creates them if they are missing, are for
// other names or expire soon.
func OpenCA(dir string, names ...string) (*CA, error) {
	ca := &CA{File: filepath.Join(dir, "ca.pem"), KeyFile: filepath.Join(dir, "ca-key.pem")}
	if ca.load(names) == nil {
		return ca, nil
	}
	if err := ca.create(names); err != nil {
		return nil, fmt.Errorf("creating the local certificate: %w", err)
	}
	if err := ca.load(names); err != nil {
		return nil, fmt.Errorf("reading the local certificate: %w", err)
	}
	return ca, nil
}

// readCA returns the certificate in a file that another process has created.
func readCA(file string) (*CA, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	ca := &CA{Pool: x509.NewCertPool(), File: file}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("reading the certificate: %s contains none", file)
	}
	if ca.Leaf.Leaf, err = x509.ParseCertificate(block.Bytes); err != nil {
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	ca.Pool.AddCert(ca.Leaf.Leaf)
	return ca, nil
}

// load reads the files. It returns an error unless the certificate is valid for names and for the next half of caLifetime.
func (ca *CA) load(names []string) (err error) {
	if ca.Leaf, err = tls.LoadX509KeyPair(ca.File, ca.KeyFile); err != nil {
		return err
	}
	ca.Pool = x509.NewCertPool()
	ca.Pool.AddCert(ca.Leaf.Leaf)
	for _, name := range names {
		if _, err := ca.Leaf.Leaf.Verify(x509.VerifyOptions{
			DNSName: strings.Replace(name, "*", "any", 1), Roots: ca.Pool, CurrentTime: time.Now().Add(caLifetime / 2),
		}); err != nil {
			return err
		}
	}
	return nil
}

// covers reports whether the certificate is valid for host, which is then a name of this machine.
func (ca *CA) covers(host string) bool { return ca.Leaf.Leaf.VerifyHostname(host) == nil }

func (ca *CA) create(names []string) error {
	now := time.Now()
	cert := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "cats-api on this machine, created " + now.UTC().Format(time.RFC3339)},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(caLifetime),
		BasicConstraintsValid: true, // not a CA certificate
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:              names,
		IPAddresses:           []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	certDER, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(ca.File, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certDER}), 0o644),
		os.WriteFile(ca.KeyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600),
	)
}

// Secure returns l with TLS.
func (ca *CA) Secure(l net.Listener) net.Listener {
	return tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{ca.Leaf}, MinVersion: tls.VersionTLS12})
}
