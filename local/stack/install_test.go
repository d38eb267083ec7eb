package stack

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeTools puts a node of the given version and an npm that runs script in
// PATH, alone, and returns the root of an empty checkout.
func fakeTools(t *testing.T, version, script string) (root string) {
	t.Helper()
	bin, root := t.TempDir(), t.TempDir()
	for name, body := range map[string]string{"node": "echo " + version, "npm": script} {
		if body != "" {
			if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", bin)
	writeLock(t, root, "{}")
	return root
}

func writeLock(t *testing.T, root, content string) {
	t.Helper()
	dir := filepath.Join(root, "local")
	if err := os.MkdirAll(filepath.Join(dir, "node_modules"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "package-lock.json"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestInstallsOnceForEachLock(t *testing.T) {
	root := fakeTools(t, "v24.1.0", "echo installed >> ../installs")
	install := func(wantInstalls int) {
		t.Helper()
		if err := Install(t.Context(), root, filepath.Join(root, "npm.log")); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(root, "installs"))
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(b), "installed"); n != wantInstalls {
			t.Errorf("npm ran %d times, want %d", n, wantInstalls)
		}
		if !Installed(root) {
			t.Error("not installed")
		}
	}
	install(1)
	install(1)
	writeLock(t, root, `{"lockfileVersion": 3}`)
	if Installed(root) {
		t.Error("installed, though the lock has changed")
	}
	install(2)
}

func TestInstallSaysWhatToDo(t *testing.T) {
	for _, c := range []struct{ name, version, npm, want string }{
		{"no npm", "v20.0.0", "", "no npm in PATH, which Azurite needs: install Node.js 20"},
		{"old node", "v18.19.1", "exit 0", "node is v18.19.1, too old"},
		{"npm fails", "v20.0.0", "echo 'npm error code E404'; echo 'npm error 404 Not Found'; exit 7", "exit status 7: 404 Not Found"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := fakeTools(t, c.version, c.npm)
			err := Install(t.Context(), root, filepath.Join(root, "npm.log"))
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %v, want one line with %q", err, c.want)
			}
			if Installed(root) {
				t.Error("installed all the same")
			}
		})
	}
}
