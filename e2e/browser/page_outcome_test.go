package browser

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// done has the service carry out the request, and answers as told.
func done(then harness.Fault) harness.Fault {
	return func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		healthy.ServeHTTP(httptest.NewRecorder(), r)
		then(w, r, healthy)
	}
}

const (
	notKnown        = "It is not known whether your picture was stored."
	deletionUnknown = "It is not known whether the picture was deleted. This is the current picture."
)

func (b *tab) lacks(text string) {
	b.t.Helper()
	b.holds(fmt.Sprintf(`!document.body.innerText.includes(%q)`, text))
}

func TestPageTellsTheOutcomeOfAnUpload(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	const unknown = `,"outcome":"unknown"`
	for i, c := range []struct {
		what  string
		fault harness.Fault
		sees  []string
		known bool // that nothing was stored
	}{
		{"stored, unknown", done(harness.Problem(503, "storage_unavailable", unknown)), []string{"The response was lost, but this picture is stored now."}, false},
		{"stored, a page", done(harness.Respond(200, "<html>")), []string{"The response was lost, but this picture is stored now."}, false},
		{"stored, a proxy", done(harness.Respond(504, "<html>")), []string{"The response was lost, but this picture is stored now."}, false},
		{"stored, no answer", harness.Drop, []string{"The response was lost, but this picture is stored now."}, false},
		{"unknown, of storage", harness.Problem(503, "throttled", unknown), []string{"The service is not ready", notKnown}, false},
		{"unknown, of the signer", harness.Problem(503, "signer_unavailable", unknown), []string{"The service is not ready", notKnown}, false},
		{"unknown, without a case", harness.Problem(500, "internal", unknown), []string{"Something went wrong", notKnown}, false},
		{"unknown, refused when repeated", harness.Problem(409, "conflict", unknown), []string{"Another upload was faster", notKnown}, false},
		{"a proxy", harness.Respond(502, "<html>"), []string{"The response is not from this service", notKnown}, false},
		{"a page", harness.Respond(200, "<html>"), []string{"The response is not from this service", notKnown}, false},
		{"half an answer", harness.CutOff, []string{"The connection was lost", notKnown}, false},
		{"definite, of storage", harness.Problem(503, "storage_unavailable", ""), []string{"Storage does not respond"}, true},
		{"definite, of the signer", harness.Problem(503, "signer_unavailable", ""), []string{"The service is not ready"}, true},
		{"definite, without a case", harness.Problem(500, "internal", ""), []string{"Something went wrong"}, true},
		{"an outcome of another version", harness.Problem(503, "storage_unavailable", `,"outcome":7`), []string{"Storage does not respond"}, true},
		{"refused", harness.Problem(409, "leased", ""), []string{"This picture is locked"}, true},
		{"a proxy's limit", harness.Respond(413, "<html>"), []string{"This picture is too large"}, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			user := fmt.Sprint("u", i)
			v := harness.NewGate(t, sys.URL)
			b := browse(t, v.URL+"/?user="+user)
			b.sees("No picture yet")
			b.pick(catFile(t))
			b.focused("upload")
			v.Set(http.MethodPut, c.fault)
			b.click("#upload")
			for _, text := range c.sees {
				b.sees(text)
			}
			if c.known {
				b.lacks(notKnown)
			}
		})
	}
}

func TestPageReplacesADamagedPicture(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	harness.Put(t, sys, "mia", harness.OtherPicture)
	v := harness.NewGate(t, sys.URL)
	for user, button := range map[string]string{"Davyd": "Upload", "mia": "Upload and replace"} {
		b := browse(t, v.URL+"/?user="+user)
		b.sees(user + "’s cat")
		b.pick(catFile(t))
		b.sees(button)
		v.Set(http.MethodPut, done(harness.Problem(502, "damaged", `,"outcome":"stored"`)))
		b.click("#upload")
		b.sees("The stored picture is damaged")
		b.lacks(notKnown)
		v.Set("", nil)
		b.click("#message-action")
		b.sees("Stored.")
		harness.WantPicture(t, sys, user, harness.Cat)
	}
}

func TestPageTellsTheOutcomeOfADeletion(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	const unknown = `,"outcome":"unknown"`
	const gone = "The response was lost, but there is no picture now."
	for i, c := range []struct {
		what  string
		fault harness.Fault
		sees  []string
		known bool // that nothing was deleted
	}{
		{"deleted, unknown", done(harness.Problem(503, "storage_unavailable", unknown)), []string{"No picture yet", gone}, false},
		{"deleted, no answer", harness.Drop, []string{"No picture yet", gone}, false},
		{"deleted, a proxy", done(harness.Respond(502, "<html>")), []string{"No picture yet", gone}, false},
		{"deleted, a page", done(harness.Respond(200, "<html>")), []string{"No picture yet", gone}, false},
		{"unknown", harness.Problem(503, "signer_unavailable", unknown), []string{"The service is not ready", deletionUnknown}, false},
		{"unknown, refused when repeated", harness.Problem(412, "precondition_failed", unknown), []string{deletionUnknown}, false},
		{"a proxy", harness.Respond(504, "<html>"), []string{"The response is not from this service", deletionUnknown}, false},
		{"half an answer", harness.CutOff, []string{deletionUnknown}, false},
		{"definite", harness.Problem(503, "storage_unavailable", ""), []string{"Storage does not respond"}, true},
		{"refused", harness.Problem(409, "immutable", ""), []string{"This picture is protected"}, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			user := fmt.Sprint("u", i)
			harness.Put(t, sys, user, harness.Cat)
			v := harness.NewGate(t, sys.URL)
			b := browse(t, v.URL+"/?user="+user)
			b.shown()
			v.Set(http.MethodDelete, c.fault)
			b.click("#delete")
			b.click("#confirm-delete")
			for _, text := range c.sees {
				b.sees(text)
			}
			if c.known {
				b.lacks(deletionUnknown)
			}
			if c.sees[0] != "No picture yet" {
				b.shown()
			}
		})
	}
}

// A commit of unknown outcome can be repeated, and the page does so.
func TestPageRepeatsACommitOfUnknownOutcome(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{FrontendEnv: map[string]string{"MAX_PICTURE_SIZE": "100KiB"}, SignerEnv: map[string]string{"MAX_PICTURE_SIZE": "100KiB"}})
	const unknown = `,"outcome":"unknown"`
	for i, c := range []struct {
		what   string
		faults []harness.Fault
		asked  int32
		sees   []string
	}{
		{"unknown", []harness.Fault{harness.Problem(503, "storage_unavailable", unknown)}, 2, []string{"Stored."}},
		{"done, unknown", []harness.Fault{done(harness.Problem(500, "internal", unknown))}, 2, []string{"Stored."}},
		{"done, no answer", []harness.Fault{harness.Drop}, 2, []string{"Stored."}},
		{"done, a proxy", []harness.Fault{done(harness.Respond(502, "<html>"))}, 2, []string{"Stored."}},
		{"unknown, and then refused", []harness.Fault{harness.Problem(503, "throttled", unknown), harness.Problem(409, "leased", "")}, 2, []string{"This picture is locked", notKnown}},
		{"refused", []harness.Fault{harness.Problem(409, "leased", "")}, 1, []string{"This picture is locked"}},
		{"definite", []harness.Fault{harness.Problem(503, "storage_unavailable", "")}, 1, []string{"Storage does not respond"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			var asked atomic.Int32
			url := harness.FaultProxy(t, sys.URL, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
				if strings.HasSuffix(r.URL.Path, "/commit") {
					if n := int(asked.Add(1)); n <= len(c.faults) {
						c.faults[n-1](w, r, healthy)
						return
					}
				}
				healthy.ServeHTTP(w, r)
			})
			user := fmt.Sprint("u", i)
			b := browse(t, url+"/?user="+user)
			b.sees("No picture yet")
			b.pick(catFile(t))
			b.focused("upload")
			b.click("#upload")
			for _, text := range c.sees {
				b.sees(text)
			}
			if len(c.sees) == 1 {
				b.lacks(notKnown)
			}
			if n := asked.Load(); n != c.asked {
				t.Errorf("%d commits; want %d", n, c.asked)
			}
		})
	}
}

// What the page has sent whole may be stored, whatever becomes of the next try.
func TestPageRemembersAnUnknownOutcome(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	v := harness.NewGate(t, sys.URL)
	b := browse(t, v.URL+"/?user=Davyd")
	b.sees("No picture yet")
	b.pick(onDisk(t, "new.png", bytes.NewReader(append(bytes.Clone(harness.Cat), 1))))
	b.focused("upload")
	v.Set(http.MethodPut, harness.Problem(503, "throttled", `,"outcome":"unknown"`))
	b.click("#upload")
	b.sees(notKnown)
	v.Set(http.MethodPut, harness.Problem(409, "leased", ""))
	b.click("#message-action")
	b.sees("This picture is locked")
	v.Set("", nil)
	harness.Put(t, sys, "Davyd", harness.Cat) // as if the first try was carried out late
	b.click("#discard")
	b.sees("The whole picture had been sent and may still be stored.")
	b.shown()
}

func TestPageTellsTheOutcomeOfAKilledFrontend(t *testing.T) {
	harness.NeedOwnSystem(t)
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.Start(t, stack.SystemOptions{StorageURL: storage.URL})
	for _, user := range []string{"mia", "tom"} {
		harness.Put(t, sys, user, append(bytes.Clone(harness.Cat), "old"...))
	}
	reached, release := make(chan string, 2), make(chan struct{})
	hold := func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if r.Method == http.MethodPut || r.Method == http.MethodDelete {
			reached <- r.Method
			<-release
		}
		healthy.ServeHTTP(w, r)
	}
	upload, deletion := browse(t, sys.URL+"/?user=mia"), browse(t, sys.URL+"/?user=tom")
	upload.shown()
	deletion.shown()
	storage.Set("mia", hold)
	storage.Set("tom", hold)
	upload.pick(catFile(t))
	upload.focused("upload")
	upload.click("#upload")
	deletion.click("#delete")
	deletion.click("#confirm-delete")
	<-reached
	<-reached
	sys.Frontend.Kill()
	close(release)
	upload.sees("The connection was lost")
	upload.sees(notKnown)
	deletion.sees("The service cannot be reached")
	deletion.sees("It is not known whether the picture was deleted.")
}
