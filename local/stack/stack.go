// Package stack runs the whole system on one machine. A [Stack] replaces the cloud: storage, certificates and the cluster that issues
// federated tokens. A [System] is one signer and one frontend, as separate processes, with a replacement of Entra ID. All listeners
// are on loopback.
package stack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cats.example/local/issuer"
	"cats.example/shared/httpserver"
)

// The only workload for which the issuers create tokens.
const (
	TenantID = "00000000-0000-4000-8000-00000000ca75"
	ClientID = "00000000-0000-4000-8000-0000000000a9"
	ObjectID = "00000000-0000-4000-8000-0000000000b0"

	// Subject is the subject of the workload's federated tokens.
	Subject = "system:serviceaccount:cats:cats-api"
)

// Options configure a stack.
type Options struct {
	// Root is the root of the checkout. [Install] must have installed Azurite there.
	Root string
	// Dir is the folder for certificates, tokens and logs. New creates it.
	Dir string
	// Clock gives the stack a clock of its own; see [Stack.SetClock].
	Clock bool
	// FrontPort is the port of [Stack.FrontURL], 0 for any.
	FrontPort int
}

// Stack is the environment of one or more systems. Its methods are safe for concurrent use.
type Stack struct {
	CA      *CA
	Cluster *issuer.Cluster
	Storage *Storage
	// FrontURL is the URL of the account in plain HTTP, the base of signed URLs.
	FrontURL string

	opts  Options
	admin *issuer.Issuer // creates the tokens of Storage
	ahead atomic.Int64   // nanoseconds; see SetClock

	closers
}

// New creates the certificates, starts Azurite and waits until it answers. ctx limits the start only; [Stack.Close] stops everything.
func New(ctx context.Context, opts Options) (_ *Stack, err error) {
	s := &Stack{opts: opts}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close(context.WithoutCancel(ctx)))
		}
	}()
	if err := os.MkdirAll(filepath.Join(opts.Dir, "logs"), 0o700); err != nil {
		return nil, fmt.Errorf("creating the stack's folder: %w", err)
	}
	if s.CA, err = OpenCA(opts.Dir, "localhost", "*.blob.localhost", accountHost); err != nil {
		return nil, err
	}
	if s.admin, err = issuer.New(issuer.Config{Tenant: TenantID, ClientID: ClientID, ObjectID: ObjectID, Now: s.now}); err != nil {
		return nil, err
	}
	if err := s.startStorage(ctx); err != nil {
		return nil, err
	}
	return s, s.startCluster(ctx)
}

func (s *Stack) startCluster(ctx context.Context) error {
	l, err := listen(ctx, 0)
	if err != nil {
		return err
	}
	if s.Cluster, err = issuer.NewCluster("https://" + l.Addr().String()); err != nil {
		_ = l.Close()
		return err
	}
	s.Cluster.Now = s.now
	s.onClose(serve(s.CA.Secure(l), s.Cluster))
	return nil
}

// Client returns an HTTP client that trusts the stack's certificate and resolves its names to loopback. It does not follow redirects.
func (s *Stack) Client() *http.Client { return newClient(newTransport(s.CA)) }

func newClient(transport http.RoundTripper) *http.Client {
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// closers stops what a stack or system has started.
type closers struct {
	mu    sync.Mutex
	funcs []func(context.Context) error
}

func (c *closers) onClose(f func(context.Context) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.funcs = append(c.funcs, f)
}

// Close stops everything in reverse order of its start and waits until it has stopped. Processes that still run when ctx is done are
// killed. Close returns an error for each process that was killed or exited with another code than 0. A second call does nothing.
func (c *closers) Close(ctx context.Context) error {
	c.mu.Lock()
	funcs := c.funcs
	c.funcs = nil
	c.mu.Unlock()
	var errs []error
	for _, f := range slices.Backward(funcs) {
		errs = append(errs, f(ctx))
	}
	return errors.Join(errs...)
}

// listen opens a listener on loopback, on any port if port is 0.
func listen(ctx context.Context, port int) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", loopbackAddress(port))
	if err != nil {
		return nil, fmt.Errorf("opening a listener: %w", err)
	}
	return l, nil
}

// serve serves h until stop is called. Requests for a DNS name other than localhost get 421, which stops pages that use DNS rebinding.
func serve(l net.Listener, h http.Handler) (stop func(context.Context) error) {
	server := &http.Server{
		Handler:           httpserver.RequireHost(httpserver.LocalHost, h),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	go func() { _ = server.Serve(l) }()
	return func(context.Context) error { return server.Close() }
}

// poll calls f until it returns nil. If ctx ends first, poll returns the last error of f.
func poll(ctx context.Context, f func() error) error {
	var last error
	for {
		err := f()
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil { // the error of a canceled call says nothing
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
