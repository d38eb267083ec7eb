package harness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"cats.example/local/stack"
)

var containers, users atomic.Int64

// Start starts a system with its own container for the duration of the test. It waits until the system is ready, unless opts say
// otherwise. The programs must stop cleanly.
func Start(t *testing.T, opts stack.SystemOptions) *stack.System {
	t.Helper()
	return StartOn(t, Stack(t), opts)
}

// StartOn is Start on another stack.
func StartOn(t *testing.T, st *stack.Stack, opts stack.SystemOptions) *stack.System {
	t.Helper()
	sys, err := start(t.Context(), st, BinDir(t), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sys.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("stopping: %v", err)
		}
	})
	return sys
}

func start(ctx context.Context, st *stack.Stack, bin string, opts stack.SystemOptions) (*stack.System, error) {
	opts.Container = fmt.Sprintf("e2e-%d", containers.Add(1))
	env := map[string]string{
		"RATE_LIMIT": "0", "CLIENT_SHARE": "0", // all tests come from one address
		"GORACE": "atexit_sleep_ms=0", // the race detector delays each exit by a second
	}
	opts.FrontendEnv = Merge(env, opts.FrontendEnv)
	env["EXISTENCE_CACHE_TTL"] = "0s" // most tests are about what storage says now
	env["SSL_CERT_DIR"] = "/nowhere"  // parsing the machine's certificates takes a fifth of the signer's start
	opts.SignerEnv = Merge(env, opts.SignerEnv)
	opts.Frontend = cmp.Or(opts.Frontend, filepath.Join(bin, "frontend"))
	opts.Signer = cmp.Or(opts.Signer, filepath.Join(bin, "signer"))
	return st.StartSystem(ctx, opts)
}

var directUploads = map[string]string{"MAX_DIRECT_UPLOAD_SIZE": "5GiB"}

var sharedSystem = sync.OnceValues(func() (*stack.System, error) {
	ctx := context.Background()
	if Elsewhere != nil {
		return Elsewhere, Elsewhere.Empty(ctx)
	}
	st, err := shared()
	if err != nil {
		return nil, err
	}
	bin, err := binaries()
	if err != nil {
		return nil, err
	}
	return start(ctx, st, bin, stack.SystemOptions{SignerEnv: directUploads})
})

// Shared returns a system for all tests of a package that need no settings, faults, metrics or logs of their own. It accepts
// direct uploads. A test must use only names from User, because others run at the same time. If CATS_API_URL is set, it is the
// system there: CATS_STORAGE_URL is the host of its signed URLs, and CATS_AZURITE_URL its account at Azurite, with the
// certificate in CATS_CA_FILE.
func Shared(t *testing.T) *stack.System {
	t.Helper()
	if Elsewhere == nil {
		Stack(t) // may skip the test
	}
	sys, err := sharedSystem()
	if err != nil {
		t.Fatal(err)
	}
	return sys
}

// User returns a user name that no other call returns.
func User(t *testing.T) string {
	t.Helper()
	name, _, _ := strings.Cut(t.Name(), "/")
	return fmt.Sprintf("%s-%d", name, users.Add(1))
}

// StartDirect returns a system that accepts direct uploads.
func StartDirect(t *testing.T, opts stack.SystemOptions) *stack.System {
	t.Helper()
	opts.SignerEnv = Merge(directUploads, opts.SignerEnv)
	return Start(t, opts)
}

// StartDiffering is Start for containers whose shared settings differ: only the signer becomes ready.
func StartDiffering(t *testing.T, opts stack.SystemOptions) *stack.System {
	t.Helper()
	opts.NotReady = true
	sys := Start(t, opts)
	Eventually(t, func() error {
		if ready, says := Readyz(t, sys.SignerOps); !ready {
			return errors.New(says)
		}
		return nil
	})
	return sys
}

// NeedStack starts the package's stack, or skips the test as Stack does.
func NeedStack(t *testing.T) {
	t.Helper()
	Stack(t)
}

// NeedOwnSystem skips a test of more than the public API if the tests run against a system elsewhere.
func NeedOwnSystem(t *testing.T) {
	t.Helper()
	if Elsewhere != nil {
		t.Skip("needs more than the public API of the system at CATS_API_URL")
	}
}

// Merge returns defaults, overridden by env.
func Merge(defaults, env map[string]string) map[string]string {
	all := maps.Clone(defaults)
	maps.Copy(all, env)
	return all
}
