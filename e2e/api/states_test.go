package api

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestStatesOfBlobsHaveTheirOwnErrors(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{})
	harness.Put(t, sys, "mia", harness.Cat)
	size := int64(len(harness.Cat))
	upload := func(tier string) harness.UploadSession {
		t.Helper()
		k := harness.NewUploadSession(t, sys, "mia", size)
		header := http.Header{"X-Ms-Blob-Type": {"BlockBlob"}}
		if tier != "" {
			header.Set("X-Ms-Access-Tier", tier)
		}
		harness.SendToStorage(t, "PUT", k.URL, header, bytes.NewReader(harness.Cat), size).Want(t, 201)
		return k
	}

	// The staged blob is archived.
	k := upload("Archive")
	for range 2 {
		a := k.Commit(t, sys, "mia", "")
		a.WantProblem(t, 409, "archived")
		if detail := a.Field(t, "detail").(string); !strings.Contains(detail, "the uploaded blob is in the archive tier") || !strings.Contains(detail, "without x-ms-access-tier") {
			t.Errorf("an archived upload: %s", a.Body)
		}
	}
	upload("Cool").Commit(t, sys, "mia", "").Want(t, 200)

	// The picture is leased.
	release, err := sys.Storage.Lease(t.Context(), sys.Container, "mia/cat")
	if err != nil {
		t.Fatal(err)
	}
	k = upload("")
	contentType, body := harness.Form(t, harness.Cat)
	for _, a := range []harness.Response{
		harness.Do(t, "PUT", sys.URL+"/cat/mia", "", harness.Cat), harness.Do(t, "POST", sys.URL+"/cat/mia", contentType, body), harness.Do(t, "PUT", sys.URL+"/cat/mia", "", longer(harness.OneBlob+1)),
		harness.Do(t, "DELETE", sys.URL+"/cat/mia", "", nil), harness.Send(t, "DELETE", sys.URL+"/cat/mia", "", "If-Match", "*"), k.Commit(t, sys, "mia", ""),
	} {
		a.WantProblem(t, 409, "leased")
	}
	if err := release(t.Context()); err != nil {
		t.Fatal(err)
	}
	k.Commit(t, sys, "mia", "").Want(t, 200)
	harness.Do(t, "DELETE", sys.URL+"/cat/mia", "", nil).Want(t, 204)
}

// longer is a picture of n bytes.
func longer(n int) []byte {
	return append(bytes.Clone(harness.Cat), make([]byte, n-len(harness.Cat))...)
}

func TestOutagesOfStorageLogNoNames(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
	harness.Put(t, sys, "Davyd", harness.Cat)
	k := harness.NewUploadSession(t, sys, "Davyd", int64(len(harness.Cat)))
	k.Send(t, bytes.NewReader(harness.Cat), int64(len(harness.Cat)))
	mark := sys.Signer.Log.Mark()
	for what, f := range map[string]harness.Fault{
		"no answer": harness.Reset,
		"broken redirect": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			w.Header().Set("Location", r.URL.Path+"%zz")
			w.WriteHeader(http.StatusTemporaryRedirect)
		},
		"broken answer": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			if conn, _, err := http.NewResponseController(w).Hijack(); err == nil {
				_, _ = conn.Write([]byte("HTTP/1.1 what " + r.URL.Path + "\r\n\r\n"))
				_ = conn.Close()
			}
		},
	} {
		storage.Set("Davyd", f)
		for _, a := range []harness.Response{harness.Do(t, "PUT", sys.URL+"/cat/Davyd", "", harness.Cat), harness.Do(t, "DELETE", sys.URL+"/cat/Davyd", "", nil), k.Commit(t, sys, "Davyd", "")} {
			if a.StatusCode < 500 {
				t.Errorf("%s: %d %s", what, a.StatusCode, a.Body)
			}
		}
	}
	lines, err := sys.Signer.Log.Since(mark)
	log := strings.Join(lines, "\n")
	if err != nil || !strings.Contains(log, "no answer from davydscats") || strings.Contains(log, "Davyd") || strings.Contains(log, "://") {
		t.Errorf("the signer's log, %v:\n%s", err, log)
	}
}

func TestNamesThatStorageRejectsAreInvalid(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
	k := harness.NewUploadSession(t, sys, "mia", int64(len(harness.Cat)))
	k.Send(t, bytes.NewReader(harness.Cat), int64(len(harness.Cat)))
	contentType, body := harness.Form(t, harness.Cat)
	for _, code := range []string{"", "InvalidUri", "InvalidResourceName", "OutOfRangeInput"} {
		storage.Set("mia", harness.Reject(400, code))
		for _, a := range []harness.Response{
			harness.Do(t, "PUT", sys.URL+"/cat/mia", "", harness.Cat), harness.Do(t, "POST", sys.URL+"/cat/mia", contentType, body), harness.Do(t, "PUT", sys.URL+"/cat/mia", "", longer(harness.OneBlob+1)),
			harness.Do(t, "GET", sys.URL+"/cat/mia", "", nil), harness.Do(t, "DELETE", sys.URL+"/cat/mia", "", nil), k.Commit(t, sys, "mia", ""),
		} {
			a.WantProblem(t, 422, "invalid_user")
			if a.Field(t, "detail") != "storage does not accept this user name" {
				t.Errorf("%q: %s", code, a.Body)
			}
		}
	}
	storage.Set("mia", nil)
	k.Commit(t, sys, "mia", "").Want(t, 200)
}
