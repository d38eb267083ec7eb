package cats

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// amid closes the connection in the middle of the request body.
func amid(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
	_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
	panic(http.ErrAbortHandler)
}

func TestTheCommandTellsTheOutcome(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{FrontendEnv: map[string]string{"MAX_PICTURE_SIZE": "10MiB"}, SignerEnv: map[string]string{"MAX_PICTURE_SIZE": "10MiB"}})
	const unknown = `,"outcome":"unknown"`
	page := "<html>"
	put, create, pipe, commit, rm := []string{"put", "USER", "cat.png"}, []string{"put", "USER", "cat.png", "--create"}, []string{"put", "USER", "-"}, []string{"put", "USER", "large.png"}, []string{"rm", "USER"}
	for i, c := range []struct {
		what    string
		args    []string
		faults  []harness.Fault // of the requests that change the picture
		code    int
		asked   int
		outcome string
	}{
		// The service tells the outcome.
		{"put, unknown", put, []harness.Fault{harness.Problem(500, "internal", unknown)}, 1, 1, "unknown"},
		{"put, unknown for now", put, []harness.Fault{harness.Problem(503, "storage_unavailable", unknown)}, 0, 2, ""},
		{"put, unknown to the end", append(put, "--retries", "1"), []harness.Fault{harness.Problem(503, "throttled", unknown), harness.Problem(503, "throttled", unknown)}, 7, 2, "unknown"},
		{"put, unknown and then refused", put, []harness.Fault{harness.Problem(503, "signer_unavailable", unknown), harness.Problem(409, "leased", "")}, 1, 2, "unknown"},
		{"put, refused", put, []harness.Fault{harness.Problem(409, "conflict", "")}, 6, 1, ""},
		{"put, definite", append(put, "--retries", "0"), []harness.Fault{harness.Problem(503, "storage_unavailable", "")}, 7, 1, ""},
		{"put, an outcome of another version", append(put, "--retries", "0"), []harness.Fault{harness.Problem(503, "storage_unavailable", `,"outcome":"deleted"`)}, 7, 1, "deleted"},
		{"put, damaged", put, []harness.Fault{harness.Problem(502, "damaged", `,"outcome":"stored"`)}, 0, 2, ""},
		{"put, damaged for long", append(put, "--retries", "1"), []harness.Fault{harness.Problem(502, "damaged", `,"outcome":"stored"`), harness.Problem(502, "damaged", `,"outcome":"stored"`)}, 7, 2, "stored"},
		{"creation, damaged", create, []harness.Fault{harness.Problem(502, "damaged", `,"outcome":"stored"`)}, 7, 1, "stored"},
		{"pipe, unknown", pipe, []harness.Fault{harness.Problem(503, "storage_unavailable", unknown)}, 7, 1, "unknown"},
		{"commit, unknown", commit, []harness.Fault{harness.Problem(500, "internal", unknown)}, 1, 1, "unknown"},
		{"commit, unknown for now", commit, []harness.Fault{harness.Problem(503, "storage_unavailable", unknown)}, 0, 2, ""},
		{"commit, unknown and then refused", commit, []harness.Fault{harness.Problem(503, "throttled", unknown), harness.Problem(409, "leased", "")}, 1, 2, "unknown"},
		{"rm, unknown", rm, []harness.Fault{harness.Problem(503, "storage_unavailable", unknown)}, 7, 1, "unknown"},
		{"rm, unknown, refused when repeated", rm, []harness.Fault{harness.Problem(412, "precondition_failed", unknown)}, 6, 1, "unknown"},
		{"rm, definite", rm, []harness.Fault{harness.Problem(503, "storage_unavailable", "")}, 0, 2, ""},
		{"rm, refused", rm, []harness.Fault{harness.Problem(409, "immutable", "")}, 1, 1, ""},

		// The answer is lost, or another program's.
		{"put, no answer", append(put, "--retries", "0"), []harness.Fault{harness.Drop}, 7, 1, "unknown"},
		{"put, half an answer", append(put, "--retries", "0"), []harness.Fault{harness.CutOff}, 7, 1, "unknown"},
		{"put, a proxy", append(put, "--retries", "0"), []harness.Fault{harness.Respond(502, page)}, 7, 1, "unknown"},
		{"put, a proxy's failure", put, []harness.Fault{harness.Respond(500, page)}, 1, 1, "unknown"},
		{"put, a page", put, []harness.Fault{harness.Respond(200, page)}, 1, 1, "unknown"},
		{"put, nothing", put, []harness.Fault{harness.Respond(204, "")}, 1, 1, "unknown"},
		{"put, a proxy's limit", put, []harness.Fault{harness.Respond(413, page)}, 1, 1, ""},
		{"put, no answer and then refused", put, []harness.Fault{harness.Drop, harness.Problem(409, "leased", "")}, 1, 2, "unknown"},
		{"pipe, no answer", pipe, []harness.Fault{harness.Drop}, 7, 1, "unknown"},
		{"pipe, a proxy", pipe, []harness.Fault{harness.Respond(504, page)}, 7, 1, "unknown"},
		{"commit, no answer", append(commit, "--retries", "0"), []harness.Fault{harness.Drop}, 7, 1, "unknown"},
		{"commit, no answer for now", commit, []harness.Fault{harness.Drop}, 0, 2, ""},
		{"commit, a proxy", append(commit, "--retries", "0"), []harness.Fault{harness.Respond(503, page)}, 7, 1, "unknown"},
		{"rm, no answer", rm, []harness.Fault{harness.Drop}, 7, 1, "unknown"},
		{"rm, half an answer", rm, []harness.Fault{harness.CutOff}, 7, 1, "unknown"},
		{"rm, a proxy", rm, []harness.Fault{harness.Respond(502, page)}, 7, 1, "unknown"},
		{"rm, a page", rm, []harness.Fault{harness.Respond(200, page)}, 1, 1, "unknown"},
		{"rm, an answer to something else", rm, []harness.Fault{harness.Respond(200, "{}")}, 1, 1, "unknown"},

		// A request that is not sent whole changes nothing.
		{"put, cut off", []string{"put", "USER", "cut.png", "--retries", "0"}, []harness.Fault{amid}, 7, 1, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			user := fmt.Sprint("u", i)
			harness.Do(t, http.MethodPut, sys.URL+"/cat/"+user, "", harness.Cat).Want(t, 200)
			var asked atomic.Int64
			s := newShell(t, harness.FaultProxy(t, sys.URL, harness.InTurn(&asked, c.faults, func(r *http.Request) bool {
				return r.Method == http.MethodGet || strings.HasSuffix(r.URL.Path, "/upload")
			})))
			s.write("cat.png", harness.Cat)
			s.write("cut.png", harness.Picture(8<<20, 'c'))
			s.write("large.png", harness.Picture(11<<20, 'l'))
			args := append(slices.Clone(c.args), "--json")
			args[1] = user
			got := s.with(bytes.NewReader(harness.Cat), args...)
			if got.code != c.code || int(asked.Load()) != c.asked {
				t.Errorf("exit code %d after %d requests, %q; want %d after %d", got.code, asked.Load(), got.stderr, c.code, c.asked)
			}
			var said struct{ Outcome string }
			if err := json.Unmarshal([]byte(got.out), &said); err != nil || said.Outcome != c.outcome {
				t.Errorf("%q, %v; want outcome %q", got.out, err, c.outcome)
			}
		})
	}
}
