package stack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const leastNode = 20 // the oldest major version of Node that Azurite runs on

// FindRoot returns the root of the checkout that the working directory is in.
func FindRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the checkout: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "local", "package-lock.json")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("not in a checkout of cats-api: no directory above has local/package-lock.json; run this at the root of the checkout")
		}
		dir = parent
	}
}

// Build builds the frontend, the signer and the command cats of the checkout at root
// into dir, with the given extra flags of go build. It is quick when nothing changed.
func Build(ctx context.Context, root, dir string, flags ...string) error {
	for _, folder := range []string{"signer", "frontend", "cats"} {
		args := append([]string{"-C", filepath.Join(root, folder), "build", "-o", filepath.Join(dir, folder)}, flags...)
		if out, err := command(ctx, "go", append(args, ".")...).CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", folder, err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// Installed reports whether [Install] has nothing to do for the checkout at root.
func Installed(root string) bool {
	want, err := wantedStamp(root)
	if err != nil {
		return false
	}
	have, err := os.ReadFile(stampFile(root))
	return err == nil && string(have) == want
}

// wantedStamp is what is in the stamp file when all that local/package-lock.json
// pins is installed.
func wantedStamp(root string) (string, error) {
	lock, err := os.ReadFile(filepath.Join(root, "local", "package-lock.json")) //nolint:gosec // of the checkout
	if err != nil {
		return "", fmt.Errorf("installing Azurite: %w", err)
	}
	sum := sha256.Sum256(lock)
	return hex.EncodeToString(sum[:]), nil
}

func stampFile(root string) string {
	return filepath.Join(root, "local", "node_modules", ".installed")
}

// Install installs Azurite as local/package-lock.json of the checkout at root
// pins it, with npm ci, into local/node_modules, unless it is there already.
// npm's output is in the file logPath. Several processes may call it at once.
func Install(ctx context.Context, root, logPath string) error {
	if err := CheckNode(ctx); err != nil {
		return err
	}
	if Installed(root) {
		return nil
	}
	dir := filepath.Join(root, "local")
	unlock, err := lockFile(ctx, filepath.Join(dir, "package-lock.json"))
	if err != nil {
		return fmt.Errorf("installing Azurite: %w", err)
	}
	defer unlock()
	if Installed(root) { // by whoever held the lock
		return nil
	}

	out, err := os.Create(logPath) //nolint:gosec // where the caller wants it
	if err != nil {
		return fmt.Errorf("installing Azurite: %w", err)
	}
	defer out.Close()
	npm := command(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	npm.Dir, npm.Stdout, npm.Stderr = dir, out, out
	if err := npm.Run(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("installing Azurite: npm ci in %s: %w%s; npm's output is in %s: is its registry within reach (npm config get registry)? Then run this again",
			dir, err, npmReason(logPath), logPath)
	}
	stamp, err := wantedStamp(root)
	if err != nil {
		return err
	}
	if err := os.WriteFile(stampFile(root), []byte(stamp), 0o600); err != nil {
		return fmt.Errorf("installing Azurite: %w", err)
	}
	return nil
}

// npmReason returns the first error that npm wrote to the file at path.
func npmReason(path string) string {
	b, err := os.ReadFile(path) //nolint:gosec // as Install wrote it
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		reason, ok := strings.CutPrefix(line, "npm error ")
		if ok && !strings.HasPrefix(reason, "code ") {
			return ": " + strings.TrimSpace(reason)
		}
	}
	return ""
}

// CheckNode returns an error that says what to do when there is no Node.js, or
// one that is too old.
func CheckNode(ctx context.Context) error {
	const fix = "install Node.js 20 or newer with npm, from your system's packages or https://nodejs.org"
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("no %s in PATH, which Azurite needs: %s", tool, fix)
		}
	}
	out, err := command(ctx, "node", "--version").Output()
	version := strings.TrimSpace(string(out))
	if err != nil {
		return fmt.Errorf("asking node for its version: %w", err)
	}
	major, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	if n, err := strconv.Atoi(major); err != nil || n < leastNode {
		return fmt.Errorf("node is %s, too old for Azurite: %s", version, fix)
	}
	return nil
}

// command returns a short-lived tool, which the end of ctx kills with all that it started.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // go, node and npm
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd
}

// lockFile waits for the only lock on the file at path, among processes.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	for {
		unlock, err = Lock(path)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return unlock, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Lock takes the only lock on the file at path, which is made when missing, until
// unlock is called or the process ends. The error is [syscall.EWOULDBLOCK] when
// another process has it.
func Lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o600) //nolint:gosec // where the caller wants it
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
	}
	return func() { _ = f.Close() }, nil
}
