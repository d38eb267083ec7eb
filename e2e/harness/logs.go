package harness

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cats.example/local/stack"
)

// JWTPrefix is the encoded {"alg":, with which all tokens of the issuers begin. The shorter prefix eyJ also occurs in signatures
// by chance.
const JWTPrefix = "eyJhbGciOi"

// WantNoSecrets fails the test if a log contains a signed URL or a token.
func WantNoSecrets(t *testing.T, sys *stack.System) {
	t.Helper()
	for _, log := range []*stack.Log{sys.Frontend.Log, sys.Signer.Log} {
		b, err := os.ReadFile(log.Path())
		if err != nil {
			t.Fatal(err)
		}
		for _, secret := range []string{"sig=", "sig%3D", JWTPrefix} {
			if bytes.Contains(b, []byte(secret)) {
				t.Errorf("%s is in %s", secret, log.Path())
			}
		}
	}
}

// WaitForLog waits for a line of log after mark that contains all of parts, and returns it.
func WaitForLog(t *testing.T, log *stack.Log, mark int64, parts ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Second, fmt.Errorf("no line with %q", parts))
	defer cancel()
	line, err := log.Wait(ctx, mark, func(line string) bool {
		for _, part := range parts {
			if !strings.Contains(line, part) {
				return false
			}
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// WantNoFaults calls fault for each line of the log at path that no request may cause.
func WantNoFaults(t *testing.T, path string, fault func(format string, args ...any)) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		for _, bad := range []string{`"http.response.status_code":500`, `"http.response.status_code":502`, `"msg":"panic"`, "DATA RACE", "panic: ", "fatal error: ", "sig=", JWTPrefix} {
			if strings.Contains(lines.Text(), bad) {
				fault("%s logged: %.2000s", filepath.Base(path), lines.Text())
			}
		}
	}
	if err := lines.Err(); err != nil {
		t.Error(err)
	}
}
