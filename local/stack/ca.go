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
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// caLifetime is that of the certificate: a stack does not run for longer.
const caLifetime = 7 * 24 * time.Hour

// CA is the certificate of one stack. It is its own authority, and that of no other:
// Azurite takes what it is shown itself for a source of its copies when that has
// signed itself, and whoever trusts it trusts it for this machine only.
type CA struct {
	Pool *x509.CertPool  // trusts it alone
	Leaf tls.Certificate // for the loopback addresses and the names asked for

	File, KeyFile string // PEM, the key readable by the owner alone
}

// OpenCA returns the certificate for names that is in dir: ca.pem and ca-key.pem. It
// makes it when it is missing or no longer good.
func OpenCA(dir string, names ...string) (*CA, error) {
	ca := &CA{File: filepath.Join(dir, "ca.pem"), KeyFile: filepath.Join(dir, "ca-key.pem")}
	if ca.load(names) == nil {
		return ca, nil
	}
	if err := ca.make(names); err != nil {
		return nil, fmt.Errorf("making the local certificate: %w", err)
	}
	if err := ca.load(names); err != nil {
		return nil, fmt.Errorf("reading the local certificate: %w", err)
	}
	return ca, nil
}

// readCA returns the certificate in a file that another process made.
func readCA(file string) (*CA, error) {
	b, err := os.ReadFile(file) //nolint:gosec // where the caller has it
	if err != nil {
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	ca := &CA{Pool: x509.NewCertPool(), File: file}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("reading the certificate: %s holds none", file)
	}
	if ca.Leaf.Leaf, err = x509.ParseCertificate(block.Bytes); err != nil {
		return nil, fmt.Errorf("reading the certificate: %w", err)
	}
	ca.Pool.AddCert(ca.Leaf.Leaf)
	return ca, nil
}

// load reads the files, and returns an error unless they hold for names, and for
// some time to come.
func (ca *CA) load(names []string) error {
	root, err := os.ReadFile(ca.File)
	if err != nil {
		return err
	}
	if ca.Leaf, err = tls.LoadX509KeyPair(ca.File, ca.KeyFile); err != nil {
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
	var serial [16]byte
	_, _ = rand.Read(serial[:]) // never fails
	serial[0] &= 0x7f           // positive in DER's 16 bytes
	cert := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "cats-api on this machine, made " + now.UTC().Format(time.RFC3339)},
		SerialNumber:          new(big.Int).SetBytes(serial[:]),
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(caLifetime),
		BasicConstraintsValid: true, // it can sign no other
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
		os.WriteFile(ca.File, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certDER}), 0o644), //nolint:gosec // for all to trust
		os.WriteFile(ca.KeyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600),
	)
}

// secure returns l with TLS, under the leaf certificate.
func (ca *CA) secure(l net.Listener) net.Listener {
	return tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{ca.Leaf}, MinVersion: tls.VersionTLS12})
}
