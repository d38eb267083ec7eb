package browser

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

const (
	unknown         = `,"outcome":"unknown"`
	storedAnyway    = "The response was lost, but this picture is stored now."
	deletedAnyway   = "The response was lost, but there is no picture now."
	notKnown        = "It is not known whether"
	uploadUnknown   = notKnown + " your picture was stored."
	deletionUnknown = notKnown + " the picture was deleted. This is the current picture."
	mayBeStored     = "The whole picture had been sent and may still be stored."
)

// small makes the page upload harness.Cat directly to storage.
var small = map[string]string{"MAX_PICTURE_SIZE": "100KiB"}

// done carries out the request, and responds with then.
func done(then harness.Fault) harness.Fault {
	return func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		healthy.ServeHTTP(httptest.NewRecorder(), r)
		then(w, r, healthy)
	}
}

// turns injects faults into the first requests, one each.
func turns(faults ...harness.Fault) harness.Fault {
	return harness.InTurn(new(atomic.Int64), faults, func(*http.Request) bool { return false })
}

func TestPageReportsTheOutcomeOfWrites(t *testing.T) {
	t.Parallel()
	sys := harness.Shared(t)
	direct := harness.StartDirect(t, stack.SystemOptions{FrontendEnv: small, SignerEnv: small})
	problem, respond := harness.Problem, harness.Respond
	const proxy, locked = "The response is not from this service", "This picture is locked"
	for _, c := range []struct {
		what    string // PUT, DELETE or commit, and the case
		fault   harness.Fault
		sees    []string
		commits int64
	}{
		{"PUT stored, unknown", done(problem(503, "storage_unavailable", unknown)), []string{storedAnyway}, 0},
		{"PUT stored, a page", done(respond(200, "<html>")), []string{storedAnyway}, 0},
		{"PUT stored, no response", harness.Drop, []string{storedAnyway}, 0},
		{"PUT unknown, throttled", problem(503, "throttled", unknown), []string{"The service is not ready", uploadUnknown}, 0},
		{"PUT unknown, internal", problem(500, "internal", unknown), []string{"Something went wrong", uploadUnknown}, 0},
		{"PUT unknown, rejected when repeated", problem(409, "conflict", unknown), []string{"Another upload was faster", uploadUnknown}, 0},
		{"PUT a proxy", respond(502, "<html>"), []string{proxy, uploadUnknown}, 0},
		{"PUT half a response", harness.CutOff, []string{"The connection was lost", uploadUnknown}, 0},
		{"PUT definite, storage", problem(503, "storage_unavailable", ""), []string{"Storage does not respond"}, 0},
		{"PUT definite, internal", problem(500, "internal", ""), []string{"Something went wrong"}, 0},
		{"PUT an outcome of another version", problem(503, "storage_unavailable", `,"outcome":7`), []string{"Storage does not respond"}, 0},
		{"PUT rejected", problem(409, "leased", ""), []string{locked}, 0},
		{"PUT limit of a proxy", respond(413, "<html>"), []string{"This picture is too large"}, 0},
		{"DELETE deleted, unknown", done(problem(503, "storage_unavailable", unknown)), []string{"No picture yet", deletedAnyway}, 0},
		{"DELETE deleted, no response", harness.Drop, []string{"No picture yet", deletedAnyway}, 0},
		{"DELETE deleted, a page", done(respond(200, "<html>")), []string{"No picture yet", deletedAnyway}, 0},
		{"DELETE unknown", problem(503, "signer_unavailable", unknown), []string{"The service is not ready", deletionUnknown, "Expires in"}, 0},
		{"DELETE unknown, rejected when repeated", problem(412, "precondition_failed", unknown), []string{deletionUnknown, "Expires in"}, 0},
		{"DELETE a proxy", respond(504, "<html>"), []string{proxy, deletionUnknown, "Expires in"}, 0},
		{"DELETE half a response", harness.CutOff, []string{deletionUnknown, "Expires in"}, 0},
		{"DELETE definite", problem(503, "storage_unavailable", ""), []string{"Storage does not respond", "Expires in"}, 0},
		{"DELETE rejected", problem(409, "immutable", ""), []string{"This picture is protected", "Expires in"}, 0},
		// The page repeats a commit of unknown outcome once; that is safe.
		{"commit unknown", turns(problem(503, "storage_unavailable", unknown)), []string{"Stored."}, 2},
		{"commit done, no response", turns(harness.Drop), []string{"Stored."}, 2},
		{"commit done, a proxy", turns(done(respond(502, "<html>"))), []string{"Stored."}, 2},
		{"commit unknown, then rejected", turns(problem(503, "throttled", unknown), problem(409, "leased", "")), []string{locked, uploadUnknown}, 2},
		{"commit rejected", problem(409, "leased", ""), []string{locked}, 1},
		{"commit definite", problem(503, "storage_unavailable", ""), []string{"Storage does not respond"}, 1},
	} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			sys, user := sys, harness.User(t)
			method, _, _ := strings.Cut(c.what, " ")
			if method == "commit" {
				sys = direct
			}
			if method == "DELETE" {
				harness.Put(t, sys, user, harness.Cat)
			}
			var commits atomic.Int64
			b := browse(t, harness.FaultProxy(t, sys.URL, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
				commit := strings.HasSuffix(r.URL.Path, "/commit")
				if commit {
					commits.Add(1)
				}
				if commit || r.Method == method {
					c.fault(w, r, healthy)
				} else {
					healthy.ServeHTTP(w, r)
				}
			})+"/?user="+user)
			if method == "DELETE" {
				b.shown()
				b.click("#delete", "#confirm-delete")
			} else {
				b.sees("No picture yet")
				b.upload(catFile(t))
			}
			b.sees(c.sees...)
			if !strings.Contains(strings.Join(c.sees, ""), notKnown) {
				b.lacks(notKnown)
			}
			if n := commits.Load(); n != c.commits {
				t.Errorf("%d commits; want %d", n, c.commits)
			}
		})
	}
}

func TestPageReportsAKilledFrontend(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.Start(t, stack.SystemOptions{StorageURL: storage.URL})
	reached, release := make(chan string, 2), make(chan struct{})
	tabs := map[string]*tab{}
	for _, user := range []string{"mia", "tom"} {
		harness.Put(t, sys, user, harness.Cat)
		tabs[user] = browse(t, sys.URL+"/?user="+user)
		tabs[user].shown()
		storage.Set(user, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			if r.Method == http.MethodPut || r.Method == http.MethodDelete {
				reached <- r.Method
				<-release
			}
			healthy.ServeHTTP(w, r)
		})
	}
	tabs["mia"].upload(catFile(t))
	tabs["tom"].click("#delete", "#confirm-delete")
	<-reached
	<-reached
	sys.Frontend.Kill()
	close(release)
	tabs["mia"].sees("The connection was lost", uploadUnknown)
	tabs["tom"].sees("The service cannot be reached", notKnown+" the picture was deleted.")
}
