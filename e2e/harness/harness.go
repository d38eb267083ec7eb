// Package harness is what the end-to-end tests share. They test the real binaries as processes, with Azurite as storage and a
// token exchange over HTTPS. Each package of tests has its own stack, which starts with the first test that needs it.
package harness

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"cats.example/local/stack"
)

// BinariesVariable is the environment variable with the folder of the binaries under test. By default, Main builds them into
// bin/e2e of the checkout.
const BinariesVariable = "CATS_E2E_BIN"

// parallelTests is the default of -parallel: the tests wait more than they compute.
const parallelTests = "12"

var (
	// Cat is a photograph, e2e/testdata/cat.png.
	Cat []byte
	// Elsewhere is the running system at CATS_API_URL. It is nil if the tests start their own systems, as they do by default.
	Elsewhere *stack.System

	root  string // of the checkout
	dir   string // of the package's stack
	stops []func() error
)

// Main runs the tests of a package, stops what they started, calls after, and returns the exit code.
func Main(m *testing.M, after ...func() error) int {
	flag.Parse()
	if err := prepare(); err != nil {
		return fatal(err)
	}
	defer os.RemoveAll(dir)
	code := m.Run()
	for _, f := range append(after, stops...) {
		if err := f(); err != nil {
			code = fatal(err)
		}
	}
	return code
}

func prepare() (err error) {
	if root, err = stack.FindRoot(); err != nil {
		return err
	}
	if Cat, err = os.ReadFile(Root("e2e", "testdata", "cat.png")); err != nil {
		return err
	}
	parallel := flag.Lookup("test.parallel").Value
	if url := os.Getenv("CATS_API_URL"); url != "" {
		_ = parallel.Set("1") // the tests share the one container
		if Elsewhere, err = stack.Elsewhere(url, os.Getenv("CATS_STORAGE_URL"), os.Getenv("CATS_AZURITE_URL"), os.Getenv("CATS_CA_FILE")); err != nil {
			return err
		}
	} else if parallel.String() == flag.Lookup("test.parallel").DefValue {
		_ = parallel.Set(parallelTests)
	}
	dir, err = os.MkdirTemp("", "cats-e2e-")
	return err
}

func fatal(err error) int {
	fmt.Fprintln(os.Stderr, "e2e:", err)
	return 1
}

// Root returns the path of a file of the checkout.
func Root(elem ...string) string { return filepath.Join(append([]string{root}, elem...)...) }

var binaries = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv(BinariesVariable); dir != "" {
		return dir, nil
	}
	dir, flags := Root("bin", "e2e"), []string{"-race"}
	if os.Getenv("SOAK") != "" { // which measures memory
		dir, flags = Root("bin", "soak"), nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	return dir, stack.Build(ctx, root, dir, flags...)
})

// BinDir returns the folder of the binaries under test: frontend, signer and cats.
func BinDir(t *testing.T) string {
	t.Helper()
	dir, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

var errNoNode = errors.New("needs Node.js 20 or newer with npm, for Azurite: there is no node in PATH")

var shared = sync.OnceValues(func() (*stack.Stack, error) {
	if _, err := exec.LookPath("node"); err != nil && os.Getenv("CI") == "" {
		return nil, errNoNode
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if err := stack.Install(ctx, root, filepath.Join(dir, "npm.log")); err != nil {
		return nil, err
	}
	st, err := stack.New(ctx, stack.Options{Root: root, Dir: dir})
	if err == nil {
		stops = append(stops, func() error { return st.Close(context.WithoutCancel(ctx)) })
	}
	return st, err
})

// Stack returns the stack of the package's tests. It skips the test on a machine without Node.js, unless CI is set.
func Stack(t *testing.T) *stack.Stack {
	t.Helper()
	NeedOwnSystem(t)
	st, err := shared()
	if errors.Is(err, errNoNode) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return st
}
