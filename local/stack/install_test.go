package stack

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestInstallRunsOnceForEachLockFileOrSaysWhatToDo(t *testing.T) {
	const script = "#!/bin/sh\n"
	for _, c := range []struct{ node, npm, want string }{
		{"v24.1.0", "echo installed >> ../installs", ""},
		{"v20.0.0", "", "npm is not in PATH, but Azurite needs it: install Node.js 20"},
		{"v18.19.1", "exit 0", "node v18.19.1 is too old"},
		{"v20.0.0", "echo 'npm error code E404'; echo 'npm error 404 Not Found'; exit 7", "exit status 7: 404 Not Found"},
	} {
		bin, root := t.TempDir(), t.TempDir()
		t.Setenv("PATH", bin)
		lock := filepath.Join(root, "local", "package-lock.json")
		err := errors.Join(
			os.WriteFile(filepath.Join(bin, "node"), []byte(script+"echo "+c.node), 0o700),
			os.MkdirAll(filepath.Join(root, "local", "node_modules"), 0o700),
		)
		if c.npm != "" {
			err = errors.Join(err, os.WriteFile(filepath.Join(bin, "npm"), []byte(script+c.npm), 0o700))
		}
		for _, content := range []string{"{}", "{}", `{"lockfileVersion": 3}`} {
			if err := errors.Join(err, os.WriteFile(lock, []byte(content), 0o600)); err != nil {
				t.Fatal(err)
			}
			err := Install(t.Context(), root, filepath.Join(root, "npm.log"))
			if c.want == "" && err != nil || Installed(root) != (c.want == "") {
				t.Errorf("%v: %v; installed: %v", c, err, Installed(root))
			} else if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("%v: %v; want one line with this text", c, err)
			}
		}
		if got, _ := os.ReadFile(filepath.Join(root, "installs")); c.want == "" && strings.Count(string(got), "installed") != 2 {
			t.Errorf("npm has written %q for two lock files", got)
		}
	}
}
