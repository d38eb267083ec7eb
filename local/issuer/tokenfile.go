package issuer

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

const minRotation = 100 * time.Millisecond

// TokenFile is the file with the federated token in a pod. Like the kubelet, it replaces the token after 80% of its lifetime. Its methods
// are safe for concurrent use.
type TokenFile struct {
	path    string
	cluster *Cluster
	valid   Federated
	changed chan struct{}

	mu      sync.Mutex
	current Federated
}

// NewTokenFile writes a token with the properties in valid to path. Only the owner can read the file. [TokenFile.Run] rotates the token.
func NewTokenFile(path string, cluster *Cluster, valid Federated) (*TokenFile, error) {
	f := &TokenFile{path: path, cluster: cluster, valid: valid, changed: make(chan struct{}, 1)}
	return f, f.Set(valid)
}

// Path returns the path of the file.
func (f *TokenFile) Path() string { return f.path }

// Default returns the properties of the token that NewTokenFile wrote, from which tests derive invalid tokens.
func (f *TokenFile) Default() Federated { return f.valid }

// Set writes a token with the properties in d. Later rotations use d, too.
func (f *TokenFile) Set(d Federated) error {
	f.mu.Lock()
	f.current = d
	f.mu.Unlock()
	select {
	case f.changed <- struct{}{}: // the lifetime starts again
	default:
	}
	return f.write()
}

// Reset writes a valid token again.
func (f *TokenFile) Reset() error { return f.Set(f.valid) }

// Run rotates the token until ctx is done. If a write fails, Run logs the error and tries again after a second.
func (f *TokenFile) Run(ctx context.Context, log *slog.Logger) {
	wait := f.rotation()
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.changed:
			wait = f.rotation()
			continue
		case <-time.After(wait):
		}
		if err := f.write(); err != nil {
			log.ErrorContext(ctx, "rotating the federated token failed", "error", err.Error())
			wait = time.Second
			continue
		}
		wait = f.rotation()
		log.InfoContext(ctx, "federated token rotated", "next_rotation", wait.String())
	}
}

// rotation returns the time after which the current token is replaced.
func (f *TokenFile) rotation() time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return max(f.current.Lifetime*8/10, minRotation)
}

// write replaces the file atomically.
func (f *TokenFile) write() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	token, err := f.cluster.Token(f.current)
	if err != nil {
		return err
	}
	if err = os.WriteFile(f.path+".new", []byte(token), 0o600); err == nil {
		err = os.Rename(f.path+".new", f.path)
	}
	if err != nil {
		return fmt.Errorf("writing the federated token: %w", err)
	}
	return nil
}
