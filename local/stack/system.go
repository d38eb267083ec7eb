package stack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"cats.example/local/issuer"
)

const (
	federatedLifetime = 10 * time.Minute
	listenTimeout     = 10 * time.Second // for a process to listen after its start
	readyTimeout      = 30 * time.Second
)

// SystemOptions of one system. The zero value is a good system.
type SystemOptions struct {
	// Dir, which is made, is for the token and the logs; by default a folder of
	// the stack's named like Container.
	Dir string
	// Container of the pictures, made when missing; "cats" by default. Systems that
	// should not see each other's pictures have one each.
	Container string
	// Frontend and Signer are the binaries, by default bin/frontend and bin/signer
	// of the checkout.
	Frontend, Signer string
	// Ports, each 0 for any.
	FrontendPort, FrontendOpsPort, SignerPort, SignerOpsPort int
	// FrontendEnv and SignerEnv are set over the stack's own; "" takes one away. The
	// certificates in SSL_CERT_FILE of SignerEnv are added to the stack's.
	FrontendEnv, SignerEnv map[string]string
	// StorageURL is what the signer takes for the account, in place of Azurite's
	// own, such as that of a faulty proxy. Its host name must begin with [Account].
	StorageURL string
	// AccessTokenLifetime is 1 h by default, FederatedTokenLifetime 10 min.
	AccessTokenLifetime, FederatedTokenLifetime time.Duration
	// Follow, which may be nil, gets each line that frontend, signer and issuer log.
	Follow func(name, line string)
	// NotReady returns from the start as soon as both listen.
	NotReady bool
}

// System is one signer and one frontend, and whom they ask for tokens.
type System struct {
	// URL is the frontend's public one. The others are of the ops listeners, and
	// of the signer's local API. They stay the same over restarts.
	URL, FrontendOps, SignerOps, SignerAPI string

	Frontend, Signer *Process

	// Of a system on a stack, and nil or empty on a real account:

	Issuer    *issuer.Issuer    // Entra ID, of this system alone
	IssuerLog *Log              // a line for each exchange
	Token     *issuer.TokenFile // the signer's federated token
	Container string

	opts SystemOptions
	// Storage is the account, to look at without going through the signer.
	Storage *Storage

	closing sync.Once
	closers []func(context.Context) error // run last to first
	closed  error
}

// StartSystem starts a signer and a frontend on the stack and waits until both
// are ready. ctx bounds the start; [System.Close], or the stack's, ends it.
func (s *Stack) StartSystem(ctx context.Context, opts SystemOptions) (_ *System, err error) {
	if opts.Container == "" {
		opts.Container = "cats"
	}
	if opts.Dir == "" {
		opts.Dir = filepath.Join(s.opts.Dir, opts.Container)
	}
	if opts.Frontend == "" {
		opts.Frontend = filepath.Join(s.opts.Root, "bin", "frontend")
	}
	if opts.Signer == "" {
		opts.Signer = filepath.Join(s.opts.Root, "bin", "signer")
	}
	if opts.StorageURL == "" {
		opts.StorageURL = s.Storage.URL
	}
	if opts.FederatedTokenLifetime == 0 {
		opts.FederatedTokenLifetime = federatedLifetime
	}
	sys := &System{Container: opts.Container, opts: opts, Storage: s.Storage}
	defer func() {
		if err != nil {
			err = errors.Join(err, sys.Close(context.WithoutCancel(ctx)))
			return
		}
		s.onClose(sys.Close)
	}()
	if err := os.MkdirAll(filepath.Join(opts.Dir, "logs"), 0o700); err != nil {
		return nil, fmt.Errorf("making the system's folder: %w", err)
	}
	authority, err := sys.startIdentity(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := s.Storage.CreateContainer(ctx, opts.Container); err != nil {
		return nil, err
	}
	authorities, err := sys.authorities(s.CA)
	if err != nil {
		return nil, err
	}
	return sys, sys.start(ctx, map[string]string{
		"AZURE_CLIENT_ID":            ClientID,
		"AZURE_TENANT_ID":            TenantID,
		"AZURE_FEDERATED_TOKEN_FILE": sys.Token.Path(),
		"AZURE_AUTHORITY_HOST":       authority,
		"AZURE_STORAGE_ACCOUNT_URL":  opts.StorageURL,
		"DISABLE_INSTANCE_DISCOVERY": "true",
		"LINK_BASE_URL":              s.FrontURL,
		"SSL_CERT_FILE":              authorities,
		"STORAGE_CONTAINER":          opts.Container,
	})
}

// authorities returns a file with the certificate of ca and those of SSL_CERT_FILE in SignerEnv, which it takes out there.
func (s *System) authorities(ca *CA) (file string, err error) {
	more := s.opts.SignerEnv["SSL_CERT_FILE"]
	if more == "" {
		return ca.File, nil
	}
	own, err := os.ReadFile(ca.File)
	if err != nil {
		return "", fmt.Errorf("reading the local certificate: %w", err)
	}
	b, err := os.ReadFile(more) //nolint:gosec // where the caller has it
	if err != nil {
		return "", fmt.Errorf("reading SSL_CERT_FILE: %w", err)
	}
	file = filepath.Join(s.opts.Dir, "authorities.pem")
	if err := os.WriteFile(file, slices.Concat(own, b), 0o600); err != nil { //nolint:gosec // certificates, in the stack's folder
		return "", fmt.Errorf("writing the signer's authorities: %w", err)
	}
	s.opts.SignerEnv = maps.Clone(s.opts.SignerEnv)
	delete(s.opts.SignerEnv, "SSL_CERT_FILE")
	return file, nil
}

// StartReal starts a signer and a frontend on a real storage account and waits
// until both are ready. The whole identity is in opts.SignerEnv; Dir, Frontend
// and Signer must be set.
func StartReal(ctx context.Context, opts SystemOptions) (_ *System, err error) {
	sys := &System{opts: opts}
	defer func() {
		if err != nil {
			err = errors.Join(err, sys.Close(context.WithoutCancel(ctx)))
		}
	}()
	if err := os.MkdirAll(filepath.Join(opts.Dir, "logs"), 0o700); err != nil {
		return nil, fmt.Errorf("making the system's folder: %w", err)
	}
	return sys, sys.start(ctx, nil)
}

// Elsewhere returns a system that runs already, on the emulator, and is only
// looked at: its public API is at api, and signed URLs lead to front, whatever
// their host: they may be for who sits at a node of the cluster. azurite is the
// account's URL at Azurite itself, which must be on loopback (kubectl port-forward),
// and caFile has its certificate. Of the fields, only URL, Container and Storage
// are set.
func Elsewhere(api, front, azurite, caFile string) (*System, error) {
	to, err := url.Parse(front)
	if err != nil {
		return nil, fmt.Errorf("the front's URL: %w", err)
	}
	ca, err := readCA(caFile)
	if err != nil {
		return nil, err
	}
	transport := newTransport(ca)
	dial := transport.DialContext
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if _, port, err := net.SplitHostPort(address); err == nil && port == to.Port() {
			address = to.Host
		}
		return dial(ctx, network, address)
	}
	admin, err := issuer.New(issuer.Config{Tenant: TenantID, ClientID: ClientID, ObjectID: ObjectID})
	if err != nil {
		return nil, err
	}
	storage := &Storage{URL: azurite, client: newClient(transport), token: admin.AccessToken}
	return &System{URL: api, Container: "cats", Storage: storage}, nil
}

// Client returns an HTTP client that reaches the system's links and follows no
// redirects.
func (s *System) Client() *http.Client { return newClient(s.Storage.client.Transport) }

// Empty deletes all that is stored in the container.
func (s *System) Empty(ctx context.Context) error {
	blobs, err := s.Blobs(ctx)
	for _, b := range blobs {
		err = errors.Join(err, s.Storage.Delete(ctx, s.Container, b.Name))
	}
	return err
}

// startIdentity starts the token file's rotation and the issuer, and returns the
// issuer's URL.
func (s *System) startIdentity(ctx context.Context, stack *Stack) (authority string, err error) {
	if s.IssuerLog, err = newLog("issuer", filepath.Join(s.opts.Dir, "logs", "issuer.log"), s.opts.Follow); err != nil {
		return "", err
	}
	s.onClose(func(context.Context) error { return s.IssuerLog.close() })
	log := slog.New(slog.NewJSONHandler(s.IssuerLog, nil)).With("service.name", "issuer")

	s.Token, err = issuer.NewTokenFile(filepath.Join(s.opts.Dir, "federated-token"), stack.Cluster, issuer.Federated{
		Subject: Subject, Audience: issuer.Audience, Lifetime: s.opts.FederatedTokenLifetime,
	})
	if err != nil {
		return "", err
	}
	rotation, stop := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() { s.Token.Run(rotation, log) })
	s.onClose(func(context.Context) error {
		stop()
		running.Wait()
		return nil
	})

	s.Issuer, err = issuer.New(issuer.Config{
		Tenant: TenantID, ClientID: ClientID, ObjectID: ObjectID,
		Issuer: stack.Cluster.URL(), Subject: Subject,
		Client:   stack.Client(),
		Lifetime: s.opts.AccessTokenLifetime,
		Now:      stack.now,
		Log:      log,
	})
	if err != nil {
		return "", err
	}
	l, err := listen(ctx, 0)
	if err != nil {
		return "", err
	}
	s.onClose(serve(stack.CA.secure(l), s.Issuer))
	return "https://" + l.Addr().String() + "/", nil
}

// start starts both processes, the signer with env besides what both always get.
func (s *System) start(ctx context.Context, env map[string]string) (err error) {
	signerEnv := map[string]string{
		"LISTEN_ADDRESS": loopbackAddress(s.opts.SignerPort),
		"OPS_ADDRESS":    loopbackAddress(s.opts.SignerOpsPort),
		// Against DNS rebinding: IP addresses and localhost only.
		"ALLOWED_HOSTS": "localhost",
	}
	if s.opts.SignerEnv["OIDC_ISSUER"] == "" {
		signerEnv["ANONYMOUS_ACCESS"] = "true" // the public API listens on loopback
	}
	maps.Copy(signerEnv, env)
	s.Signer, err = s.process("signer", s.opts.Signer, signerEnv, s.opts.SignerEnv,
		map[string]string{"api": "LISTEN_ADDRESS", "ops": "OPS_ADDRESS"})
	if err != nil {
		return err
	}
	listening, cancel := context.WithTimeoutCause(ctx, listenTimeout, fmt.Errorf("it does not listen after %v", listenTimeout))
	defer cancel()
	if err := s.Signer.Start(listening); err != nil {
		return err
	}
	s.SignerAPI, s.SignerOps = "http://"+s.Signer.Address("api"), "http://"+s.Signer.Address("ops")

	s.Frontend, err = s.process("frontend", s.opts.Frontend, map[string]string{
		"LISTEN_ADDRESS": loopbackAddress(s.opts.FrontendPort),
		"OPS_ADDRESS":    loopbackAddress(s.opts.FrontendOpsPort),
		"SIGNER_URL":     s.SignerAPI,
		"ALLOWED_HOSTS":  "localhost",
	}, s.opts.FrontendEnv, map[string]string{"public": "LISTEN_ADDRESS", "ops": "OPS_ADDRESS"})
	if err != nil {
		return err
	}
	if err := s.Frontend.Start(listening); err != nil {
		return err
	}
	s.URL, s.FrontendOps = "http://"+s.Frontend.Address("public"), "http://"+s.Frontend.Address("ops")
	if s.opts.NotReady {
		return nil
	}
	ready, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not ready after %v", readyTimeout))
	defer cancel()
	return s.WaitReady(ready)
}

func (s *System) process(name, path string, env, over map[string]string, listeners map[string]string) (*Process, error) {
	log, err := newLog(name, filepath.Join(s.opts.Dir, "logs", name+".log"), s.opts.Follow)
	if err != nil {
		return nil, err
	}
	p := &Process{
		Log: log, name: name, path: path, dir: s.opts.Dir,
		listeners: listeners, listening: listeningJSON,
		env: env, addresses: map[string]string{},
	}
	for k, v := range over {
		p.SetEnv(k, v)
	}
	s.onClose(func(ctx context.Context) error {
		err := p.Stop(ctx)
		return errors.Join(err, log.close())
	})
	return p, nil
}

func loopbackAddress(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// WaitReady waits until both say on /readyz that they are ready. The error holds
// what they said last. It returns early when one of them has ended.
func (s *System) WaitReady(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for _, p := range []*Process{s.Signer, s.Frontend} {
		go func() {
			select {
			case <-p.Done():
				cancel(p.Ended())
			case <-ctx.Done():
			}
		}()
		ready := "http://" + p.Address("ops") + "/readyz"
		if err := poll(ctx, func() error { return probe(ctx, ready) }); err != nil {
			return fmt.Errorf("waiting for %s: %w", p.name, err)
		}
	}
	return nil
}

// probe returns nil for a 200, and what was answered otherwise.
func probe(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(b)))
	}
	return nil
}

// Blobs lists what is committed in the system's container.
func (s *System) Blobs(ctx context.Context) ([]Blob, error) {
	return s.Storage.Blobs(ctx, s.Container)
}

// Close stops the frontend, then the signer, then the token services. It returns
// what did not end well: a process that ended with another code than 0, or was
// killed because ctx was done first. Closing twice returns the same.
func (s *System) Close(ctx context.Context) error {
	s.closing.Do(func() {
		var errs []error
		for _, closer := range slices.Backward(s.closers) {
			errs = append(errs, closer(ctx))
		}
		s.closed = errors.Join(errs...)
	})
	return s.closed
}

func (s *System) onClose(f func(context.Context) error) { s.closers = append(s.closers, f) }
