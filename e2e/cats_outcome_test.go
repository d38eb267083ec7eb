package e2e

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

	"cats.example/local/stack"
)

// says is an answer in place of the service.
func says(status int, body string) fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// problemOf is a problem document of the service, with fields added, such as `,"outcome":"unknown"`.
func problemOf(status int, code, fields string) fault {
	return says(status, fmt.Sprintf(`{"title":"x","status":%d,"detail":"why","code":%q%s}`, status, code, fields))
}

// cutOff ends the connection in the middle of the response.
func cutOff(w http.ResponseWriter, r *http.Request, _ http.Handler) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Length", "100")
	_, _ = io.WriteString(w, `{"etag":`)
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// amid closes the connection in the middle of the request body.
func amid(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
	_, _ = io.CopyN(io.Discard, r.Body, 1<<20)
	panic(http.ErrAbortHandler)
}

func TestTheCommandTellsTheOutcome(t *testing.T) {
	t.Parallel()
	sys := direct(t, stack.SystemOptions{FrontendEnv: map[string]string{"MAX_PICTURE_SIZE": "10MiB"}, SignerEnv: map[string]string{"MAX_PICTURE_SIZE": "10MiB"}})
	const unknown = `,"outcome":"unknown"`
	page := "<html>"
	put, create, pipe, commit, rm := []string{"put", "USER", "cat.png"}, []string{"put", "USER", "cat.png", "--create"}, []string{"put", "USER", "-"}, []string{"put", "USER", "large.png"}, []string{"rm", "USER"}
	for i, c := range []struct {
		what    string
		args    []string
		faults  []fault // of the requests that change the picture
		code    int
		asked   int
		outcome string
	}{
		// The service tells the outcome.
		{"put, unknown", put, []fault{problemOf(500, "internal", unknown)}, 1, 1, "unknown"},
		{"put, unknown for now", put, []fault{problemOf(503, "storage_unavailable", unknown)}, 0, 2, ""},
		{"put, unknown to the end", append(put, "--retries", "1"), []fault{problemOf(503, "throttled", unknown), problemOf(503, "throttled", unknown)}, 7, 2, "unknown"},
		{"put, unknown and then refused", put, []fault{problemOf(503, "signer_unavailable", unknown), problemOf(409, "leased", "")}, 1, 2, "unknown"},
		{"put, refused", put, []fault{problemOf(409, "conflict", "")}, 6, 1, ""},
		{"put, definite", append(put, "--retries", "0"), []fault{problemOf(503, "storage_unavailable", "")}, 7, 1, ""},
		{"put, an outcome of another version", append(put, "--retries", "0"), []fault{problemOf(503, "storage_unavailable", `,"outcome":"deleted"`)}, 7, 1, "deleted"},
		{"put, damaged", put, []fault{problemOf(502, "damaged", `,"outcome":"stored"`)}, 0, 2, ""},
		{"put, damaged for long", append(put, "--retries", "1"), []fault{problemOf(502, "damaged", `,"outcome":"stored"`), problemOf(502, "damaged", `,"outcome":"stored"`)}, 7, 2, "stored"},
		{"creation, damaged", create, []fault{problemOf(502, "damaged", `,"outcome":"stored"`)}, 7, 1, "stored"},
		{"pipe, unknown", pipe, []fault{problemOf(503, "storage_unavailable", unknown)}, 7, 1, "unknown"},
		{"commit, unknown", commit, []fault{problemOf(500, "internal", unknown)}, 1, 1, "unknown"},
		{"commit, unknown for now", commit, []fault{problemOf(503, "storage_unavailable", unknown)}, 0, 2, ""},
		{"commit, unknown and then refused", commit, []fault{problemOf(503, "throttled", unknown), problemOf(409, "leased", "")}, 1, 2, "unknown"},
		{"rm, unknown", rm, []fault{problemOf(503, "storage_unavailable", unknown)}, 7, 1, "unknown"},
		{"rm, unknown, refused when repeated", rm, []fault{problemOf(412, "precondition_failed", unknown)}, 6, 1, "unknown"},
		{"rm, definite", rm, []fault{problemOf(503, "storage_unavailable", "")}, 0, 2, ""},
		{"rm, refused", rm, []fault{problemOf(409, "immutable", "")}, 1, 1, ""},

		// The answer is lost, or another program's.
		{"put, no answer", append(put, "--retries", "0"), []fault{lost}, 7, 1, "unknown"},
		{"put, half an answer", append(put, "--retries", "0"), []fault{cutOff}, 7, 1, "unknown"},
		{"put, a proxy", append(put, "--retries", "0"), []fault{says(502, page)}, 7, 1, "unknown"},
		{"put, a proxy's failure", put, []fault{says(500, page)}, 1, 1, "unknown"},
		{"put, a page", put, []fault{says(200, page)}, 1, 1, "unknown"},
		{"put, nothing", put, []fault{says(204, "")}, 1, 1, "unknown"},
		{"put, a proxy's limit", put, []fault{says(413, page)}, 1, 1, ""},
		{"put, no answer and then refused", put, []fault{lost, problemOf(409, "leased", "")}, 1, 2, "unknown"},
		{"pipe, no answer", pipe, []fault{lost}, 7, 1, "unknown"},
		{"pipe, a proxy", pipe, []fault{says(504, page)}, 7, 1, "unknown"},
		{"commit, no answer", append(commit, "--retries", "0"), []fault{lost}, 7, 1, "unknown"},
		{"commit, no answer for now", commit, []fault{lost}, 0, 2, ""},
		{"commit, a proxy", append(commit, "--retries", "0"), []fault{says(503, page)}, 7, 1, "unknown"},
		{"rm, no answer", rm, []fault{lost}, 7, 1, "unknown"},
		{"rm, half an answer", rm, []fault{cutOff}, 7, 1, "unknown"},
		{"rm, a proxy", rm, []fault{says(502, page)}, 7, 1, "unknown"},
		{"rm, a page", rm, []fault{says(200, page)}, 1, 1, "unknown"},
		{"rm, an answer to something else", rm, []fault{says(200, "{}")}, 1, 1, "unknown"},

		// A request that is not sent whole changes nothing.
		{"put, cut off", []string{"put", "USER", "cut.png", "--retries", "0"}, []fault{amid}, 7, 1, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			user := fmt.Sprint("u", i)
			do(t, http.MethodPut, sys.URL+"/cat/"+user, "", cat).want(t, 200)
			var asked atomic.Int64
			s := newShell(t, faulty(t, sys.URL, inTurn(&asked, c.faults, func(r *http.Request) bool {
				return r.Method == http.MethodGet || strings.HasSuffix(r.URL.Path, "/upload")
			})))
			s.write("cat.png", cat)
			s.write("cut.png", picture(8<<20, 'c'))
			s.write("large.png", picture(11<<20, 'l'))
			args := append(slices.Clone(c.args), "--json")
			args[1] = user
			got := s.with(bytes.NewReader(cat), args...)
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
