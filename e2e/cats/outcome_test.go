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
	const unknown, page = `,"outcome":"unknown"`, "<html>"
	const put, pipe, commit, rm = "put USER cat.png", "put USER -", "put USER large.png", "rm USER"
	files := map[string][]byte{
		"cat.png": harness.Cat, "other.png": append(bytes.Clone(harness.Cat), 1),
		"cut.png": harness.Picture(8<<20, 'c'), "large.png": harness.Picture(11<<20, 'l'),
	}
	later, definite := harness.Problem(503, "storage_unavailable", unknown), harness.Problem(503, "storage_unavailable", "")
	damaged, leased := harness.Problem(502, "damaged", `,"outcome":"stored"`), harness.Problem(409, "leased", "")
	type row struct {
		code     int
		outcome  string
		requests int // that change the picture
		args     string
		faults   []harness.Fault // of these requests
	}
	rows := []row{
		{0, "", 2, put, []harness.Fault{later}},
		{7, "unknown", 2, put + " --retries 1", []harness.Fault{later, later}},
		{1, "unknown", 2, put, []harness.Fault{later, leased}},
		{1, "unknown", 2, put, []harness.Fault{harness.Drop, leased}},
		{0, "", 2, put, []harness.Fault{harness.Drop}},
		{0, "", 2, put, []harness.Fault{damaged}},
		{7, "stored", 1, put + " --create", []harness.Fault{damaged}},
		{0, "", 2, put + " --create", []harness.Fault{harness.Drop}}, // cat.png is stored
		{6, "unknown", 2, "put USER other.png --create", []harness.Fault{harness.Drop}},
		{7, "", 1, "put USER cut.png --retries 0", []harness.Fault{cutRequest}},
		{7, "unknown", 1, pipe, []harness.Fault{later}},
		{0, "", 2, commit, []harness.Fault{later}},
		{0, "", 2, commit, []harness.Fault{harness.Drop}},
		{1, "unknown", 2, commit, []harness.Fault{later, leased}},
		{7, "unknown", 1, rm, []harness.Fault{later}},
		{0, "", 2, rm, []harness.Fault{definite}},
		{6, "unknown", 1, rm, []harness.Fault{harness.Problem(412, "precondition_failed", unknown)}},
	}
	// Without retries, each harness.Fault means the same for each command.
	for _, args := range []string{put, pipe, commit, rm} {
		empty := harness.Respond(204, "")
		if args == rm {
			empty = harness.Respond(200, "{}") // a success of the other commands
		}
		for _, r := range []row{
			{code: 7, outcome: "unknown", faults: []harness.Fault{later}},
			{code: 1, outcome: "unknown", faults: []harness.Fault{harness.Problem(500, "internal", unknown)}},
			{code: 7, faults: []harness.Fault{definite}},
			{code: 6, faults: []harness.Fault{harness.Problem(409, "conflict", "")}},
			{code: 1, faults: []harness.Fault{harness.Problem(409, "immutable", "")}},
			{code: 7, outcome: "stored", faults: []harness.Fault{damaged}},
			{code: 7, outcome: "deleted", faults: []harness.Fault{harness.Problem(503, "throttled", `,"outcome":"deleted"`)}}, // of a later version
			{code: 7, outcome: "unknown", faults: []harness.Fault{harness.Drop}},
			{code: 7, outcome: "unknown", faults: []harness.Fault{harness.CutOff}},
			{code: 7, outcome: "unknown", faults: []harness.Fault{harness.Respond(502, page)}},
			{code: 7, outcome: "unknown", faults: []harness.Fault{harness.Respond(504, page)}},
			{code: 1, outcome: "unknown", faults: []harness.Fault{harness.Respond(500, page)}},
			{code: 1, faults: []harness.Fault{harness.Respond(413, page)}}, // which a proxy says itself
			{code: 1, outcome: "unknown", faults: []harness.Fault{harness.Respond(200, page)}},
			{code: 1, outcome: "unknown", faults: []harness.Fault{empty}},
		} {
			rows = append(rows, row{r.code, r.outcome, 1, args + " --retries 0", r.faults})
		}
	}
	for i, c := range rows {
		user := fmt.Sprint("u", i)
		t.Run(strings.ReplaceAll(c.args, "USER", user), func(t *testing.T) {
			t.Parallel()
			harness.Do(t, http.MethodPut, sys.URL+"/cat/"+user, "", harness.Cat).Want(t, 200)
			var requests atomic.Int64
			s := newShell(t, harness.FaultProxy(t, sys.URL, harness.InTurn(&requests, c.faults, func(r *http.Request) bool {
				return r.Method == http.MethodGet || strings.HasSuffix(r.URL.Path, "/upload")
			})))
			args := strings.Fields(strings.ReplaceAll(c.args, "USER", user) + " --json")
			if content := files[args[2]]; content != nil {
				s.write(args[2], content)
			}
			got := s.with(bytes.NewReader(harness.Cat), args...)
			var document struct{ Outcome string }
			err := json.Unmarshal([]byte(got.out), &document)
			if n := int(requests.Load()); err != nil || got.code != c.code || n != c.requests || document.Outcome != c.outcome {
				t.Errorf("exit code %d, %d requests, %q; want %d, %d, outcome %q", got.code, n, got.out, c.code, c.requests, c.outcome)
			}
			change := map[string]string{"put": "may have been stored", "rm": "may have been deleted"}[args[0]]
			if strings.Contains(got.stderr, change) != (c.outcome == "unknown") {
				t.Errorf("%q contains %q: %v", got.stderr, change, c.outcome != "unknown")
			}
		})
	}
}
