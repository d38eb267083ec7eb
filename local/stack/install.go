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

const minNode = 20 // major version of Node.js that Azurite needs

// FindRoot returns the root of the checkout that contains the working directory.
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
			return "", errors.New("not in a checkout of cats-api: no parent directory contains local/package-lock.json; run this in the root of the checkout")
		}
		dir = parent
	}
}

// Build builds the programs of the checkout at root into dir: signer, frontend and cats. flags are additional flags of go build.
func Build(ctx context.Context, root, dir string, flags ...string) error {
	for _, folder := range []string{"signer", "frontend", "cats"} {
		args := append([]string{"-C", filepath.Join(root, folder), "build", "-o", filepath.Join(dir, folder)}, flags...)
		if out, err := command(ctx, "go", append(args, ".")...).CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", folder, err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// Installed reports whether the checkout at root has the version of Azurite that local/package-lock.json pins.
func Installed(root string) bool {
	want, err := lockDigest(root)
	if err != nil {
		return false
	}
	have, err := os.ReadFile(stampFile(root))
	return err == nil && string(have) == want
}

// lockDigest returns the digest of local/package-lock.json. The stamp file contains it after the installation.
func lockDigest(root string) (string, error) {
	lock, err := os.ReadFile(filepath.Join(root, "local", "package-lock.json"))
	if err != nil {
		return "", fmt.Errorf("installing Azurite: %w", err)
	}
	sum := sha256.Sum256(lock)
	return hex.EncodeToString(sum[:]), nil
}

func stampFile(root string) string {
	return filepath.Join(root, "local", "node_modules", ".installed")
}

// Install installs the version of Azurite that local/package-lock.json of the checkout at root pins into local/node_modules, unless it
// is installed. It runs npm ci and writes npm's output to the file logPath. Several processes may call Install at the same time.
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
	if Installed(root) { // by the process that had the lock
		return nil
	}

	out, err := os.Create(logPath)
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
		return fmt.Errorf("installing Azurite: npm ci in %s: %w%s; npm's output is in %s. Check that npm's registry is reachable (npm config get registry), then try again",
			dir, err, npmReason(logPath), logPath)
	}
	stamp, err := lockDigest(root)
	if err != nil {
		return err
	}
	if err := os.WriteFile(stampFile(root), []byte(stamp), 0o600); err != nil {
		return fmt.Errorf("installing Azurite: %w", err)
	}
	return nil
}

// npmReason returns the first error in the output of npm in the file at path.
func npmReason(path string) string {
	b, err := os.ReadFile(path)
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

// CheckNode returns an error that says what to install if Node.js or npm is missing or too old for Azurite.
func CheckNode(ctx context.Context) error {
	const fix = "install Node.js 20 or newer with npm from the system's packages or https://nodejs.org"
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not in PATH, but Azurite needs it: %s", tool, fix)
		}
	}
	out, err := command(ctx, "node", "--version").Output()
	version := strings.TrimSpace(string(out))
	if err != nil {
		return fmt.Errorf("running node --version: %w", err)
	}
	major, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	if n, err := strconv.Atoi(major); err != nil || n < minNode {
		return fmt.Errorf("node %s is too old for Azurite: %s", version, fix)
	}
	return nil
}

// command returns a command that is killed with all its children when ctx is done.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd
}

// lockFile waits until [Lock] succeeds or ctx is done.
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

// Lock locks the file at path until unlock is called or the process ends. It creates a missing file. The error is
// [syscall.EWOULDBLOCK] if another process has locked the file.
func Lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
	}
	return func() { _ = f.Close() }, nil
}
