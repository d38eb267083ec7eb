package stack

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeTools puts a node of the given version and an npm that runs script into an otherwise empty PATH. It returns the root of a checkout.
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
	if err := os.MkdirAll(filepath.Join(root, "local", "node_modules"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeLock(t, root, "{}")
	return root
}

func writeLock(t *testing.T, root, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(root, "local", "package-lock.json"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestInstallRunsOnceForEachLockFile(t *testing.T) {
	root := fakeTools(t, "v24.1.0", "echo installed >> ../installs")
	for i, want := range []string{"installed\n", "installed\n", "installed\ninstalled\n"} {
		if i == 2 {
			writeLock(t, root, `{"lockfileVersion": 3}`)
			if Installed(root) {
				t.Error("the old version counts as installed")
			}
		}
		if err := Install(t.Context(), root, filepath.Join(root, "npm.log")); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(root, "installs")); err != nil || string(got) != want || !Installed(root) {
			t.Errorf("call %d: npm has written %q, %v; want %q", i, got, err, want)
		}
	}
}

func TestInstallErrorsSayWhatToDo(t *testing.T) {
	for _, c := range []struct{ name, version, npm, want string }{
		{"no npm", "v20.0.0", "", "npm is not in PATH, but Azurite needs it: install Node.js 20"},
		{"old node", "v18.19.1", "exit 0", "node v18.19.1 is too old"},
		{"npm fails", "v20.0.0", "echo 'npm error code E404'; echo 'npm error 404 Not Found'; exit 7", "exit status 7: 404 Not Found"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := fakeTools(t, c.version, c.npm)
			err := Install(t.Context(), root, filepath.Join(root, "npm.log"))
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") || Installed(root) {
				t.Errorf("got %v; want one line with %q", err, c.want)
			}
		})
	}
}
