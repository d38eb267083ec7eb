package browser

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// small makes the page upload harness.Cat directly to storage.
var small = map[string]string{"MAX_PICTURE_SIZE": "100KiB"}

func TestPageReportsTheOutcomeOfWrites(t *testing.T) {
	t.Parallel()
	sys := harness.Shared(t)
	direct := harness.StartDirect(t, stack.SystemOptions{FrontendEnv: small, SignerEnv: small})
	for _, row := range harness.Table(t, t.Name()+".txt") {
		t.Run(row[0], func(t *testing.T) {
			t.Parallel()
			sys, method := sys, strings.Fields(row[0])[0]
			if method == "commit" {
				sys = direct
			}
			s := newSession(t, sys)
			faults := harness.ParseFaults(t, row[1])
			var commits atomic.Int64
			inTurn := harness.InTurn(&commits, faults, func(*http.Request) bool { return false })
			s.gate.SetAll(func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
				switch commit := strings.HasSuffix(r.URL.Path, "/commit"); {
				case commit:
					inTurn(w, r, healthy)
				case r.Method == method:
					faults[0](w, r, healthy)
				default:
					healthy.ServeHTTP(w, r)
				}
			})
			if method == "DELETE" {
				s.run("picture")
				s.click("#delete", "#confirm-delete")
			} else {
				s.run("empty")
				s.upload(file(t, "cat.png"))
			}
			s.sees(row[2:]...)
			const notKnown = "It is not known whether"
			if !strings.Contains(strings.Join(row, ""), notKnown) {
				s.run("lack " + notKnown)
			}
			if n := commits.Load(); method == "commit" && !strings.HasPrefix(row[0], fmt.Sprintf("commit %d ", n)) {
				t.Errorf("%d commits", n)
			}
		})
	}
}
