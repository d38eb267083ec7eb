package stack

import (
	"cmp"
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
	"cats.example/shared/telemetry"
)

const (
	federatedLifetime = 10 * time.Minute
	listenTimeout     = time.Minute // from the start of a process to its open listeners
	readyTimeout      = 2 * time.Minute
)

// SystemOptions configure a system. The zero value is valid.
type SystemOptions struct {
	// Dir is the folder for token and logs, by default a folder of the stack named like Container. The start creates it.
	Dir string
	// Container is the container of the pictures, "cats" by default. The start creates it. Use one for each system to separate their
	// pictures.
	Container string
	// Frontend and Signer are the paths of the programs, by default bin/frontend and bin/signer of the checkout.
	Frontend, Signer string
	// The ports of the listeners, each 0 for any.
	FrontendPort, FrontendOpsPort, SignerPort, SignerOpsPort int
	// FrontendEnv and SignerEnv override environment variables that the stack sets; an empty value removes one. The signer trusts the
	// certificates in SSL_CERT_FILE in addition to the stack's.
	FrontendEnv, SignerEnv map[string]string
	// StorageURL is the URL of the account for the signer, by default Azurite's. A fault proxy can be put there. The first label of its
	// host name must be [Account].
	StorageURL string
	// AccessTokenLifetime is 1 h by default, FederatedTokenLifetime 10 min.
	AccessTokenLifetime, FederatedTokenLifetime time.Duration
	// Follow, unless nil, is called for each log line of frontend, signer and issuer.
	Follow func(name, line string)
	// NotReady makes the start return when both processes listen, without waiting until they are ready.
	NotReady bool
}

// System is one signer and one frontend, with the token services that the signer uses.
type System struct {
	// URL is the public URL of the frontend, SignerAPI the URL of the signer's local API; the others are the URLs of the ops listeners.
	// They stay the same when a process is restarted.
	URL, FrontendOps, SignerOps, SignerAPI string

	Frontend, Signer *Process

	// The fields below are nil or empty if the system uses a real account.

	Issuer    *issuer.Issuer    // replaces Entra ID for this system
	IssuerLog *Log              // one line for each token exchange
	Token     *issuer.TokenFile // federated token of the signer
	Container string
	Storage   *Storage

	opts SystemOptions
	closers
}

// StartSystem starts a signer and a frontend and waits until both are ready. ctx limits the start only. [System.Close] or [Stack.Close]
// stops them.
func (s *Stack) StartSystem(ctx context.Context, opts SystemOptions) (*System, error) {
	opts.Container = cmp.Or(opts.Container, "cats")
	opts.Dir = cmp.Or(opts.Dir, filepath.Join(s.opts.Dir, opts.Container))
	opts.Frontend = cmp.Or(opts.Frontend, filepath.Join(s.opts.Root, "bin", "frontend"))
	opts.Signer = cmp.Or(opts.Signer, filepath.Join(s.opts.Root, "bin", "signer"))
	opts.StorageURL = cmp.Or(opts.StorageURL, s.Storage.URL)
	opts.FederatedTokenLifetime = cmp.Or(opts.FederatedTokenLifetime, federatedLifetime)
	sys := &System{Container: opts.Container, Storage: s.Storage, opts: opts}
	return sys, sys.start(ctx, s)
}

// StartReal starts a signer and a frontend that use a real storage account, and waits until both are ready. opts.SignerEnv contains the
// account and the identity. Dir, Frontend and Signer must be set.
func StartReal(ctx context.Context, opts SystemOptions) (*System, error) {
	sys := &System{opts: opts}
	return sys, sys.start(ctx, nil)
}

// start starts the system on stack, which is nil for a real account.
func (s *System) start(ctx context.Context, stack *Stack) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close(context.WithoutCancel(ctx)))
		} else if stack != nil {
			stack.onClose(s.Close)
		}
	}()
	if err := os.MkdirAll(filepath.Join(s.opts.Dir, "logs"), 0o700); err != nil {
		return fmt.Errorf("creating the system's folder: %w", err)
	}
	var identity map[string]string
	if stack != nil {
		if identity, err = s.identity(ctx, stack); err != nil {
			return err
		}
	}
	return s.startProcesses(ctx, identity)
}

// identity starts the token services and creates the container. It returns variables of the signer.
func (s *System) identity(ctx context.Context, stack *Stack) (map[string]string, error) {
	authority, err := s.startIssuer(ctx, stack)
	if err != nil {
		return nil, err
	}
	if err := s.Storage.CreateContainer(ctx, s.Container); err != nil {
		return nil, err
	}
	authorities, err := s.authorities(stack.CA)
	return map[string]string{
		"AZURE_CLIENT_ID":            ClientID,
		"AZURE_TENANT_ID":            TenantID,
		"AZURE_FEDERATED_TOKEN_FILE": s.Token.Path(),
		"AZURE_AUTHORITY_HOST":       authority,
		"AZURE_STORAGE_ACCOUNT_URL":  s.opts.StorageURL,
		"DISABLE_INSTANCE_DISCOVERY": "true",
		"LINK_BASE_URL":              stack.FrontURL,
		"SSL_CERT_FILE":              authorities,
		"STORAGE_CONTAINER":          s.Container,
	}, err
}

// authorities returns a file with the certificate of ca and those in SSL_CERT_FILE of SignerEnv. It removes SSL_CERT_FILE there.
func (s *System) authorities(ca *CA) (file string, err error) {
	more := s.opts.SignerEnv["SSL_CERT_FILE"]
	if more == "" {
		return ca.File, nil
	}
	own, err := os.ReadFile(ca.File)
	if err != nil {
		return "", fmt.Errorf("reading the local certificate: %w", err)
	}
	b, err := os.ReadFile(more)
	if err != nil {
		return "", fmt.Errorf("reading SSL_CERT_FILE: %w", err)
	}
	file = filepath.Join(s.opts.Dir, "authorities.pem")
	if err := os.WriteFile(file, slices.Concat(own, b), 0o600); err != nil {
		return "", fmt.Errorf("writing the signer's authorities: %w", err)
	}
	s.opts.SignerEnv = maps.Clone(s.opts.SignerEnv)
	delete(s.opts.SignerEnv, "SSL_CERT_FILE")
	return file, nil
}

// Elsewhere returns a system that already runs in a cluster with the emulator, for tests that use its public API and inspect its storage.
// Only URL, Container and Storage are set.
//
// api is the public URL. front is the URL at which signed URLs are reached, whatever their host, which may be that of a cluster node.
// azurite is the URL of the account at Azurite; it must be on loopback (kubectl port-forward). caFile contains Azurite's certificate.
func Elsewhere(api, front, azurite, caFile string) (*System, error) {
	to, err := url.Parse(front)
	if err != nil {
		return nil, fmt.Errorf("parsing the front's URL: %w", err)
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
	storage, err := newStorage(azurite, transport, admin.AccessToken)
	if err != nil {
		return nil, err
	}
	return &System{URL: api, Container: "cats", Storage: storage}, nil
}

// Client returns an HTTP client that resolves the hosts of signed URLs. It does not follow redirects.
func (s *System) Client() *http.Client { return newClient(s.Storage.http.Transport) }

// Empty deletes all blobs in the container.
func (s *System) Empty(ctx context.Context) error {
	blobs, err := s.Blobs(ctx)
	for _, b := range blobs {
		err = errors.Join(err, s.Storage.Delete(ctx, s.Container, b.Name))
	}
	return err
}

// startIssuer starts the issuer and the rotation of the token file. It returns the issuer's URL.
func (s *System) startIssuer(ctx context.Context, stack *Stack) (authority string, err error) {
	if s.IssuerLog, err = newLog("issuer", filepath.Join(s.opts.Dir, "logs", "issuer.log"), s.opts.Follow); err != nil {
		return "", err
	}
	s.onClose(func(context.Context) error { return s.IssuerLog.close() })
	log := telemetry.NewLogger(s.IssuerLog, slog.LevelInfo, "issuer")

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
	s.onClose(serve(stack.CA.Secure(l), s.Issuer))
	return "https://" + l.Addr().String() + "/", nil
}

// startProcesses starts signer and frontend. env are additional variables of the signer.
func (s *System) startProcesses(ctx context.Context, env map[string]string) (err error) {
	signerEnv := map[string]string{
		"LISTEN_ADDRESS": loopbackAddress(s.opts.SignerPort),
		"OPS_ADDRESS":    loopbackAddress(s.opts.SignerOpsPort),
		// DNS rebinding: only IP addresses and localhost are allowed.
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
	listening, cancel := context.WithTimeoutCause(ctx, listenTimeout, fmt.Errorf("no listener after %v", listenTimeout))
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

// process returns a process. The variables in over replace those in env.
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
	s.onClose(func(ctx context.Context) error { return errors.Join(p.Stop(ctx), log.close()) })
	return p, nil
}

func loopbackAddress(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// WaitReady waits until both processes are ready. It returns an error with the last response of /readyz if ctx is done first, or as soon
// as one of the processes ends.
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

// probe returns nil if url answers 200, otherwise an error with the response.
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

// Blobs lists the committed blobs in the system's container.
func (s *System) Blobs(ctx context.Context) ([]Blob, error) {
	return s.Storage.Blobs(ctx, s.Container)
}
