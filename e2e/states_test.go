package e2e

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"cats.example/local/stack"
)

func TestStatesOfBlobsHaveTheirOwnErrors(t *testing.T) {
	t.Parallel()
	sys := direct(t, stack.SystemOptions{})
	put(t, sys, "mia", cat)
	size := int64(len(cat))
	admin := func(query, name, value string) {
		t.Helper()
		resp, err := sys.Storage.Do(t.Context(), "PUT", "/"+sys.Container+"/mia/cat"+query, http.Header{"X-Ms-Lease-Duration": {"-1"}, "X-Ms-Lease-Break-Period": {"0"}, name: {value}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	upload := func(tier string) ticket {
		t.Helper()
		k := ticketFor(t, sys, "mia", size)
		header := http.Header{"X-Ms-Blob-Type": {"BlockBlob"}}
		if tier != "" {
			header.Set("X-Ms-Access-Tier", tier)
		}
		toStorage(t, "PUT", k.URL, header, bytes.NewReader(cat), size).want(t, 201)
		return k
	}

	// The staged blob is archived.
	k := upload("Archive")
	for range 2 {
		a := k.commit(t, sys, "mia", "")
		a.problem(t, 409, "archived")
		if detail := a.field(t, "detail").(string); !strings.Contains(detail, "the uploaded blob is in the archive tier") || !strings.Contains(detail, "without x-ms-access-tier") {
			t.Errorf("an archived upload: %s", a.body)
		}
	}
	upload("Cool").commit(t, sys, "mia", "").want(t, 200)

	// The picture is leased.
	admin("?comp=lease", "X-Ms-Lease-Action", "acquire")
	k = upload("")
	contentType, body := form(t, cat)
	for _, a := range []answer{
		do(t, "PUT", sys.URL+"/cat/mia", "", cat), do(t, "POST", sys.URL+"/cat/mia", contentType, body), do(t, "PUT", sys.URL+"/cat/mia", "", longer(oneBlob+1)),
		do(t, "DELETE", sys.URL+"/cat/mia", "", nil), ask(t, "DELETE", sys.URL+"/cat/mia", "", "If-Match", "*"), k.commit(t, sys, "mia", ""),
	} {
		a.problem(t, 409, "leased")
	}
	shell := newShell(t, sys.URL)
	shell.write("cat.png", cat)
	shell.cats("put", "mia", "cat.png").want(t, 1, "the stored picture is leased") // 6 would mean that another client was faster
	shell.cats("rm", "mia").want(t, 1, "the stored picture is leased")
	admin("?comp=lease", "X-Ms-Lease-Action", "break")
	k.commit(t, sys, "mia", "").want(t, 200)
	do(t, "DELETE", sys.URL+"/cat/mia", "", nil).want(t, 204)
}

// longer is a picture of n bytes.
func longer(n int) []byte { return append(bytes.Clone(cat), make([]byte, n-len(cat))...) }

func TestOutagesOfStorageLogNoNames(t *testing.T) {
	t.Parallel()
	storage := newAccount(t)
	sys := direct(t, stack.SystemOptions{StorageURL: storage.URL})
	put(t, sys, "Davyd", cat)
	k := ticketFor(t, sys, "Davyd", int64(len(cat)))
	k.send(t, bytes.NewReader(cat), int64(len(cat)))
	mark := sys.Signer.Log.Mark()
	for what, f := range map[string]fault{
		"no answer": reset,
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
		storage.set("Davyd", f)
		for _, a := range []answer{do(t, "PUT", sys.URL+"/cat/Davyd", "", cat), do(t, "DELETE", sys.URL+"/cat/Davyd", "", nil), k.commit(t, sys, "Davyd", "")} {
			if a.StatusCode < 500 {
				t.Errorf("%s: %d %s", what, a.StatusCode, a.body)
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
	storage := newAccount(t)
	sys := direct(t, stack.SystemOptions{StorageURL: storage.URL})
	k := ticketFor(t, sys, "mia", int64(len(cat)))
	k.send(t, bytes.NewReader(cat), int64(len(cat)))
	contentType, body := form(t, cat)
	for _, code := range []string{"", "InvalidUri", "InvalidResourceName", "OutOfRangeInput"} {
		storage.set("mia", refuse(400, code))
		for _, a := range []answer{
			do(t, "PUT", sys.URL+"/cat/mia", "", cat), do(t, "POST", sys.URL+"/cat/mia", contentType, body), do(t, "PUT", sys.URL+"/cat/mia", "", longer(oneBlob+1)),
			do(t, "GET", sys.URL+"/cat/mia", "", nil), do(t, "DELETE", sys.URL+"/cat/mia", "", nil), k.commit(t, sys, "mia", ""),
		} {
			a.problem(t, 422, "invalid_user")
			if a.field(t, "detail") != "storage does not accept this user name" {
				t.Errorf("%q: %s", code, a.body)
			}
		}
	}
	storage.set("mia", nil)
	k.commit(t, sys, "mia", "").want(t, 200)
}
