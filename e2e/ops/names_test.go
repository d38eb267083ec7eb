package ops

import (
	"context"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestUserNamesAreNotLogged(t *testing.T) {
	t.Parallel()
	p := harness.StartProvider(t, "0")
	storage := harness.NewStorageProxy(t)
	debug := map[string]string{"LOG_LEVEL": "debug", "READ_ACCESS": "signed-in"}
	opts := harness.WithAuthentication(p.Issuer, debug)
	opts.StorageURL = storage.URL
	sys := harness.StartDirect(t, opts)
	mia := p.Token(t, "mia", harness.Audience)
	const other = "Purrsephone"
	call := func(name string) {
		t.Helper()
		formType, body := harness.Form(t, harness.Cat)
		body = []byte(strings.ReplaceAll(string(body), "cat.png", "Secretfile.png"))
		at := sys.URL + "/cat/" + name
		for _, c := range []struct{ method, url, body, contentType string }{
			{"PUT", at, string(harness.Cat), ""},
			{"PUT", at, "no picture", ""},
			{"POST", at, string(body), formType},
			{"POST", at, string(body[:len(body)-20]), formType},
			{"GET", at + "?download=Secretfile.png", "", ""},
			{"GET", at + "/picture?download=" + strings.Repeat("Secretfile", 30), "", ""},
			{"POST", at + "/upload?size=240512", "", ""},
			{"POST", at + "/upload/1893456000-240512-ABC/commit", "", ""},
			{"DELETE", at, "", ""},
		} {
			harness.SendAs(t, mia, c.method, c.url, []byte(c.body), "Content-Type", c.contentType)
		}
	}
	call(other)
	call("mia")
	for _, f := range []harness.Fault{
		harness.Reset, harness.Reject(400, "InvalidUri"), harness.Reject(403, "AuthorizationFailure"), harness.Reject(409, "BlobArchived"), harness.Reject(412, "LeaseIdMissing"), harness.Reject(500, "InternalError"),
		func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			http.Redirect(w, r, r.URL.Path+"?x=%zz", http.StatusTemporaryRedirect)
		},
	} {
		storage.SetAll(f)
		harness.SendAs(t, mia, "PUT", sys.URL+"/cat/mia", harness.Cat)
	}
	storage.SetAll(nil)
	storage.Down()
	for _, method := range []string{"PUT", "GET", "DELETE"} {
		harness.SendAs(t, mia, method, sys.URL+"/cat/mia", harness.Cat)
	}
	if err := sys.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
	named := regexp.MustCompile(other + `|Secretfile|\bmia\b`)
	for _, log := range []*stack.Log{sys.Frontend.Log, sys.Signer.Log} {
		content, err := os.ReadFile(log.Path())
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(content), `"http.response.status_code":403`) || !strings.Contains(string(content), `"http.response.status_code":503`) {
			t.Errorf("%s has no line of a request that was rejected", log.Path())
		}
		for line := range strings.Lines(string(content)) {
			if named.MatchString(line) {
				t.Errorf("a name is in the log: %.600s", line)
			}
		}
	}
}
