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

const leastRotation = 100 * time.Millisecond

// TokenFile is the file of the federated token that a pod sees: the kubelet
// writes it before the pod starts, and a new one when 80 % of its life is over.
type TokenFile struct {
	path    string
	cluster *Cluster
	right   Federated
	changed chan struct{}

	mu      sync.Mutex
	current Federated
}

// NewTokenFile writes a token as right describes it to path, readable by its
// owner alone. [TokenFile.Run] keeps it fresh.
func NewTokenFile(path string, cluster *Cluster, right Federated) (*TokenFile, error) {
	f := &TokenFile{path: path, cluster: cluster, right: right, changed: make(chan struct{}, 1)}
	return f, f.Set(right)
}

// Path is where the token is.
func (f *TokenFile) Path() string { return f.path }

// Right describes the token that the issuer accepts, for a test to change
// something about.
func (f *TokenFile) Right() Federated { return f.right }

// Set writes a token as d describes it, now; later ones are like it.
func (f *TokenFile) Set(d Federated) error {
	f.mu.Lock()
	f.current = d
	f.mu.Unlock()
	select {
	case f.changed <- struct{}{}: // Run counts from here
	default:
	}
	return f.write()
}

// Reset writes the right token again.
func (f *TokenFile) Reset() error { return f.Set(f.right) }

// Run rotates the token until ctx is done. A token that cannot be written is
// logged, and tried again a second later.
func (f *TokenFile) Run(ctx context.Context, log *slog.Logger) {
	for {
		f.mu.Lock()
		wait := max(f.current.Lifetime*8/10, leastRotation)
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
				log.InfoContext(ctx, "federated token rotated", "lifetime", f.right.Lifetime.String())
				break
			}
			log.ErrorContext(ctx, "federated token not rotated", "error", err.Error())
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
		}
	}
}

// write replaces the file in one step: a reader sees the old token or the new one.
func (f *TokenFile) write() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	token, err := f.cluster.Token(f.current)
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(f.path), ".token-*") // made 0600
	if err != nil {
		return fmt.Errorf("writing the federated token: %w", err)
	}
	defer func() { _ = os.Remove(temp.Name()) }() // gone, unless something failed
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
