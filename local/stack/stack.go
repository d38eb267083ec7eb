// Package stack runs the whole system on one machine: [Stack] is what stands for
// the cloud (storage, the cluster that makes federated tokens, certificates), and
// [System] is one signer and one frontend, as separate processes, with an Entra
// ID of their own. Everything listens on loopback.
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
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"cats.example/local/issuer"
	"cats.example/shared/httpserver"
)

// The one workload that the token issuers know.
const (
	TenantID = "00000000-0000-4000-8000-00000000ca75"
	ClientID = "00000000-0000-4000-8000-0000000000a9"
	ObjectID = "00000000-0000-4000-8000-0000000000b0"

	// Subject is the workload's, in its federated tokens.
	Subject = "system:serviceaccount:cats:cats-api"
)

const storageTimeout = 30 * time.Second // for Azurite to answer after its start

// Options of a stack.
type Options struct {
	// Root is that of the checkout, for Azurite, which [Install] must have put
	// there, and for the binaries.
	Root string
	// Dir, which is made, is for certificates, tokens and logs.
	Dir string
	// Clock gives the stack a clock of its own, see [Stack.SetClock].
	Clock bool
	// FrontPort is where the account is served in plain HTTP, 0 for any.
	FrontPort int
}

// Stack is what one or more systems stack on. Its methods may be called at once
// from several goroutines.
type Stack struct {
	CA      *CA
	Cluster *issuer.Cluster
	Storage *Storage
	// FrontURL is the account in plain HTTP, the base of signed links.
	FrontURL string

	opts  Options
	admin *issuer.Issuer // of the stack's own tokens
	ahead atomic.Int64   // of this machine's clock

	mu      sync.Mutex
	closers []func(context.Context) error // run last to first
}

// New makes the certificates, starts Azurite and waits until it answers. ctx
// bounds the start; [Stack.Close] ends it all.
func New(ctx context.Context, opts Options) (_ *Stack, err error) {
	s := &Stack{opts: opts}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close(context.WithoutCancel(ctx)))
		}
	}()
	if err := os.MkdirAll(filepath.Join(opts.Dir, "logs"), 0o700); err != nil {
		return nil, fmt.Errorf("making the stack's folder: %w", err)
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

func (s *Stack) startStorage(ctx context.Context) error {
	azurite, err := s.azurite()
	if err != nil {
		return err
	}
	s.onClose(func(ctx context.Context) error {
		err := azurite.Stop(ctx)
		return errors.Join(err, azurite.Log.close())
	})
	ctx, cancel := context.WithTimeoutCause(ctx, storageTimeout, fmt.Errorf("it does not answer after %v", storageTimeout))
	defer cancel()
	if err := azurite.Start(ctx); err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(azurite.Address("blob"))
	if err != nil {
		return fmt.Errorf("reading Azurite's address: %w", err)
	}
	s.Storage = NewStorage("https://"+net.JoinHostPort(accountHost, port), s.CA, s.admin.AccessToken)
	s.Storage.Process = azurite
	if err := poll(ctx, func() error {
		_, err := s.Storage.Containers(ctx)
		return err
	}); err != nil {
		return fmt.Errorf("waiting for Azurite: %w%s", err, azurite.Log.tail(10))
	}
	if err := s.Storage.AllowPages(ctx); err != nil {
		return err
	}
	front, err := s.Storage.Front()
	if err != nil {
		return err
	}
	l, err := listen(ctx, s.opts.FrontPort)
	if err != nil {
		return err
	}
	s.FrontURL = "http://" + l.Addr().String()
	s.onClose(serve(l, front))
	return nil
}

func (s *Stack) startCluster(ctx context.Context) error {
	l, err := listen(ctx, 0)
	if err != nil {
		return err
	}
	// The issuer's URL is in its tokens, so it must be known first.
	if s.Cluster, err = issuer.NewCluster("https://" + l.Addr().String()); err != nil {
		_ = l.Close()
		return err
	}
	s.Cluster.Now = s.now
	s.onClose(serve(s.CA.secure(l), s.Cluster))
	return nil
}

// Client returns an HTTP client that trusts the stack's certificates and takes
// names under .localhost for loopback. It follows no redirects.
func (s *Stack) Client() *http.Client { return newClient(newTransport(s.CA)) }

func newClient(transport http.RoundTripper) *http.Client {
	return &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Close stops what is left of the systems, and then the rest. When ctx is done
// first, processes are killed.
func (s *Stack) Close(ctx context.Context) error {
	s.mu.Lock()
	closers := s.closers
	s.closers = nil
	s.mu.Unlock()
	var errs []error
	for _, closer := range slices.Backward(closers) {
		errs = append(errs, closer(ctx))
	}
	return errors.Join(errs...)
}

func (s *Stack) onClose(f func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closers = append(s.closers, f)
}

// listen opens a port on loopback, 0 for any.
func listen(ctx context.Context, port int) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return nil, fmt.Errorf("opening a listener of the stack: %w", err)
	}
	return l, nil
}

// serve serves h until stop is called. A page that uses DNS rebinding cannot reach h: requests for a DNS name get 421.
func serve(l net.Listener, h http.Handler) (stop func(context.Context) error) {
	server := &http.Server{Handler: httpserver.RequireHost(httpserver.LocalHost, h), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	go func() { _ = server.Serve(l) }() // until it is closed
	return func(context.Context) error { return server.Close() }
}

// poll calls f until it returns nil, or ctx is done, and then returns its last error.
func poll(ctx context.Context, f func() error) error {
	var last error
	for {
		err := f()
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil { // a try that was cut off has nothing to say
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), last)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
