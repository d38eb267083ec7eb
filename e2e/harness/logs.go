package harness

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"cats.example/local/stack"
)

// JWTPrefix is the encoded {"alg":, with which all tokens of the issuers begin. The shorter prefix eyJ also occurs in signatures
// by chance.
const JWTPrefix = "eyJhbGciOi"

var secrets = regexp.MustCompile("sig=|sig%3D|" + JWTPrefix)

// WantNoSecrets fails the test if a log contains a signed URL or a token.
func WantNoSecrets(t *testing.T, sys *stack.System) {
	t.Helper()
	for _, log := range []*stack.Log{sys.Frontend.Log, sys.Signer.Log} {
		b, err := os.ReadFile(log.Path())
		if err != nil {
			t.Fatal(err)
		}
		if secret := secrets.Find(b); secret != nil {
			t.Errorf("%s is in %s", secret, log.Path())
		}
	}
}

// WaitForLog waits for a line of log after mark that contains all of parts, and returns it.
func WaitForLog(t *testing.T, log *stack.Log, mark int64, parts ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), Patience, fmt.Errorf("no line with %q", parts))
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
	log, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	bad := regexp.MustCompile(`.*("http.response.status_code":50[02]|"msg":"panic"|DATA RACE|panic: |fatal error: |sig=|` + JWTPrefix + `).*`)
	for _, line := range bad.FindAll(log, -1) {
		fault("%s logged: %.2000s", filepath.Base(path), line)
	}
}
