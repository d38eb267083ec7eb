package cats

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// cutRequest closes the connection in the middle of the request body.
func cutRequest(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
	_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
	panic(http.ErrAbortHandler)
}

func TestCatsReportsOutcome(t *testing.T) {
	t.Parallel()
	limit := map[string]string{"MAX_PICTURE_SIZE": "10MiB"}
	sys := harness.StartDirect(t, stack.SystemOptions{FrontendEnv: limit, SignerEnv: limit})
	files := map[string][]byte{
		"cat.png": harness.Cat, "other.png": append(bytes.Clone(harness.Cat), 1),
		"cut.png": harness.Picture(8<<20, 'c'), "large.png": harness.Picture(11<<20, 'l'),
	}
	for _, row := range harness.Table(t, "outcomes.txt") {
		commands := []string{row[1]}
		if row[1] == "all" {
			commands = []string{"put USER cat.png --retries 0", "put USER - --retries 0", "put USER large.png --retries 0", "rm USER --retries 0"}
		}
		for _, command := range commands {
			t.Run(command+" "+row[2], func(t *testing.T) {
				t.Parallel()
				user := harness.User(t)
				harness.Put(t, sys, user, harness.Cat)
				faults := []harness.Fault{cutRequest}
				if row[2] != "cutrequest" {
					faults = harness.ParseFaults(t, row[2])
				}
				var requests atomic.Int64
				s := newShell(t, harness.FaultProxy(t, sys.URL, harness.InTurn(&requests, faults, func(r *http.Request) bool {
					return r.Method == http.MethodGet || strings.HasSuffix(r.URL.Path, "/upload")
				})))
				args := strings.Fields(strings.ReplaceAll(command, "USER", user) + " --json")
				if content := files[args[2]]; content != nil {
					s.write(args[2], content)
				}
				got := s.with(bytes.NewReader(harness.Cat), args...)
				var document struct{ Outcome string }
				err := json.Unmarshal([]byte(got.out), &document)
				if document.Outcome == "" {
					document.Outcome = "-"
				}
				if result := fmt.Sprint(got.code, " ", document.Outcome, " ", requests.Load()); err != nil || result != row[0] {
					t.Errorf("exit code, outcome and requests are %s, %q; want %s", result, got.out, row[0])
				}
				change := map[string]string{"put": "may have been stored", "rm": "may have been deleted"}[args[0]]
				if unknown := document.Outcome == "unknown"; strings.Contains(got.stderr, change) != unknown {
					t.Errorf("%q contains %q: %v", got.stderr, change, !unknown)
				}
			})
		}
	}
}
