// Package direct tests direct uploads to storage.
package direct

import (
	"bytes"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// commit commits the upload k with headers, names and values in turn. md5 is "" or the digest that the client expects.
func commit(t *testing.T, sys *stack.System, user string, k harness.UploadSession, md5 string, header ...string) harness.Response {
	t.Helper()
	query := ""
	if md5 != "" {
		query = "?content_md5=" + url.QueryEscape(md5)
	}
	return harness.Send(t, "POST", sys.URL+"/cat/"+user+"/upload/"+k.ID+"/commit"+query, "", header...)
}

// another returns a picture that more distinguishes from others.
func another(more string) []byte { return append(bytes.Clone(harness.Cat), more...) }

// wantNotStaged fails the test if the staged blob of k is in storage.
func wantNotStaged(t *testing.T, sys *stack.System, k harness.UploadSession) {
	t.Helper()
	if name := k.BlobName(t, sys); strings.Contains(strings.Join(harness.BlobNames(t, sys), "\n"), name) {
		t.Errorf("%s was not deleted", name)
	}
}

// where injects f into the selected requests.
func where(selected func(*http.Request) bool, f harness.Fault) harness.Fault {
	return func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if selected(r) {
			f(w, r, healthy)
			return
		}
		healthy.ServeHTTP(w, r)
	}
}

func isCopy(r *http.Request) bool { return r.Header.Get("X-Ms-Copy-Source") != "" }

func isBlockList(r *http.Request) bool { return r.URL.Query().Get("comp") == "blocklist" }
