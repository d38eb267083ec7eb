package issuer

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
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
	for {
		f.mu.Lock()
		wait := max(f.current.Lifetime*8/10, minRotation)
		f.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-f.changed:
			continue
		case <-time.After(wait):
		}
		for {
			err := f.write()
			if err == nil {
				log.InfoContext(ctx, "federated token rotated", "lifetime", f.valid.Lifetime.String())
				break
			}
			log.ErrorContext(ctx, "rotating the federated token failed", "error", err.Error())
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
		}
	}
}

// write replaces the file atomically.
func (f *TokenFile) write() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	token, err := f.cluster.Token(f.current)
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(f.path), ".token-*") // mode 0600
	if err != nil {
		return fmt.Errorf("writing the federated token: %w", err)
	}
	defer func() { _ = os.Remove(temp.Name()) }() // fails after the rename
	_, err = temp.WriteString(token)
	if closed := temp.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(temp.Name(), f.path)
	}
	if err != nil {
		return fmt.Errorf("writing the federated token: %w", err)
	}
	return nil
}
