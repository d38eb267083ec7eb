package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// A newcomer's first minute, as the README has it.
func TestAPictureIsStoredAndFetchedByItsLink(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	if a := harness.Do(t, "GET", sys.URL+"/service", "", nil).Want(t, 200); string(a.Body) != `{"service-name":"cats-api"}` {
		t.Errorf("/service is %q", a.Body)
	}
	harness.Do(t, "GET", sys.URL+"/cat/Davyd", "", nil).WantProblem(t, 404, "not_found")

	contentType, body := harness.Form(t, harness.Cat)
	a := harness.Do(t, "POST", sys.URL+"/cat/Davyd", contentType, body).Want(t, 200)
	if a.Field(t, "content_type") != "image/png" || a.Field(t, "size") != float64(len(harness.Cat)) {
		t.Errorf("the answer to the upload is %s", a.Body)
	}
	a = harness.Do(t, "GET", sys.URL+"/cat/Davyd", "", nil).Want(t, 200)
	if diff := cmp.Diff(map[string]any{"name": "Davyd"}, a.Field(t, "owner")); diff != "" {
		t.Error(diff)
	}
	picture, expires := harness.Link(t, sys, "Davyd", "")
	if left := time.Until(expires); left > time.Hour || left < 54*time.Minute {
		t.Errorf("the link lives for %v", left)
	}
	fetched := harness.Do(t, "GET", picture, "", nil).Want(t, 200)
	if !bytes.Equal(fetched.Body, harness.Cat) || fetched.Header.Get("Content-Type") != "image/png" {
		t.Errorf("%d bytes of %s came back", len(fetched.Body), fetched.Header.Get("Content-Type"))
	}
	a = harness.Do(t, "GET", sys.URL+"/cat/Davyd/picture", "", nil).Want(t, 307)
	if fetched := harness.Do(t, "GET", a.Header.Get("Location"), "", nil).Want(t, 200); !bytes.Equal(fetched.Body, harness.Cat) {
		t.Error("/picture leads elsewhere")
	}
	if maxAge := a.Header.Get("Cache-Control"); !strings.HasPrefix(maxAge, "private, max-age=") {
		t.Errorf("Cache-Control %q", maxAge)
	}
	for path, status := range map[string]int{"/service": 200, "/cat/Davyd": 200, "/cat/Davyd/picture": 307, "/cat/nobody": 404} {
		if a := harness.Do(t, "HEAD", sys.URL+path, "", nil).Want(t, status); len(a.Body) > 0 {
			t.Errorf("HEAD %s has a body", path)
		}
	}
	if diff := cmp.Diff([]string{"Davyd/cat"}, harness.BlobNames(t, sys)); diff != "" {
		t.Error(diff)
	}
	harness.Do(t, "DELETE", sys.URL+"/cat/Davyd", "", nil).Want(t, 204)
	harness.Do(t, "DELETE", sys.URL+"/cat/Davyd", "", nil).WantProblem(t, 404, "not_found")
	harness.Do(t, "GET", sys.URL+"/cat/Davyd", "", nil).WantProblem(t, 404, "not_found")
	if a := harness.Do(t, "GET", picture, "", nil); a.StatusCode != 404 {
		t.Errorf("the picture is still there: %d", a.StatusCode)
	}
}

// What the link does not allow is refused by Azurite, which checks signatures.
func TestALinkReadsOnePictureAndNothingElse(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	harness.Put(t, sys, "Davyd", harness.Cat)
	harness.Put(t, sys, "other", harness.Cat)
	picture, _ := harness.Link(t, sys, "Davyd", "")
	u, err := url.Parse(picture)
	if err != nil {
		t.Fatal(err)
	}
	with := func(name, value string) string {
		q := u.Query()
		q.Set(name, value)
		c := *u
		c.RawQuery = q.Encode()
		return c.String()
	}
	signature := []byte(u.Query().Get("sig"))
	signature[3] ^= 1
	for what, target := range map[string]string{
		"a changed signature":      with("sig", string(signature)),
		"another picture":          strings.Replace(picture, "/Davyd/", "/other/", 1),
		"a later end":              with("se", "2099-01-01T00:00:00Z"),
		"more permissions":         with("sp", "rwd"),
		"the container":            with("sr", "c"),
		"another content type":     with("rsct", "text/html"),
		"another end of the key":   with("ske", "2099-01-01T00:00:00Z"),
		"no signature":             strings.Split(picture, "?")[0],
		"a listing with that link": strings.Replace(picture, "/Davyd/cat?", "?restype=container&comp=list&", 1),
	} {
		if a := harness.Do(t, "GET", target, "", nil); a.StatusCode != 403 && (what != "no signature" || a.StatusCode/100 == 2) {
			t.Errorf("%s: %d; want 403", what, a.StatusCode)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, picture, bytes.NewReader([]byte("x")))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Ms-Blob-Type", "BlockBlob")
	resp, err := harness.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 403 {
		t.Errorf("a write: %d; want 403", resp.StatusCode)
	}
	if a := harness.Do(t, "DELETE", picture, "", nil); a.StatusCode != 403 {
		t.Errorf("a delete: %d; want 403", a.StatusCode)
	}
	if got := harness.Served(t, sys, "Davyd"); !bytes.Equal(got, harness.Cat) {
		t.Error("the picture was changed")
	}
}

func TestALinkExpires(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	harness.Put(t, sys, "x", harness.Cat)
	picture, expires := harness.Link(t, sys, "x", "?ttl=5s")
	if left := time.Until(expires); left > 5*time.Second || left < 0 {
		t.Errorf("the link lives for %v", left)
	}
	harness.Do(t, "GET", picture, "", nil).Want(t, 200)
	harness.Eventually(t, func() error {
		if a := harness.Do(t, "GET", picture, "", nil); a.StatusCode != 403 {
			return fmt.Errorf("%d; want 403", a.StatusCode)
		}
		return nil
	})
	if time.Now().Before(expires.Add(-time.Second)) {
		t.Error("it was refused before its time")
	}
}

func TestALinkIsTheSameForAWhileAndAsLongAsIsAsked(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{SignerEnv: map[string]string{"LINK_MAX_TTL": "2h"}})
	harness.Put(t, sys, "x", harness.Cat)
	first, _ := harness.Link(t, sys, "x", "?ttl=2h") // stands still for ten minutes
	second, _ := harness.Link(t, sys, "x", "?ttl=2h")
	if third, _ := harness.Link(t, sys, "x", "?ttl=2h"); first != second && second != third { // ten minutes may end between two
		t.Error("three links within a moment are all different")
	}
	for query, most := range map[string]time.Duration{"": time.Hour, "?ttl=10m": 10 * time.Minute, "?ttl=2h": 2 * time.Hour, "?ttl=90s": 90 * time.Second} {
		if _, expires := harness.Link(t, sys, "x", query); time.Until(expires) > most || time.Until(expires) < most*10/12 {
			t.Errorf("%q: the link lives for %v", query, time.Until(expires))
		}
	}
	for _, query := range []string{"?ttl=2h1s", "?ttl=4s", "?ttl=0s", "?ttl=-1m", "?ttl=1", "?ttl=soon", "?ttl=1m&ttl=1m", "?download=", "?download=a%2Fb", "?download=%0d%0aX:y"} {
		harness.Do(t, "GET", sys.URL+"/cat/x"+query, "", nil).WantProblem(t, 422, "invalid_argument")
		harness.Do(t, "GET", sys.URL+"/cat/x/picture"+query, "", nil).WantProblem(t, 422, "invalid_argument")
	}
}

func TestADownloadHasItsName(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	harness.Put(t, sys, "x", harness.Cat)
	for _, name := range []string{"cat.png", "Мурчик 猫.png", `a "quoted"; name.png`, "100%.png"} {
		picture, _ := harness.Link(t, sys, "x", "?download="+url.QueryEscape(name))
		a := harness.Do(t, "GET", picture, "", nil).Want(t, 200)
		disposition, params, err := mime.ParseMediaType(a.Header.Get("Content-Disposition"))
		if err != nil || disposition != "attachment" || params["filename"] != name || !bytes.Equal(a.Body, harness.Cat) {
			t.Errorf("%q: Content-Disposition %q, %v", name, a.Header.Get("Content-Disposition"), err)
		}
	}
}

func TestUserNamesAreKeptAsTheyAreOrRefused(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	for i, c := range []struct{ path, name string }{
		{"Davyd", "Davyd"},
		{"%D0%9C%D1%83%D1%80%D1%87%D0%B8%D0%BA", "Мурчик"},
		{"a%20b", "a b"},
		{"%F0%9F%90%B1", "🐱"},
		{"a+b", "a+b"},
		{"%252F", "%2F"},
		{"davyd", "davyd"},
		{".hidden", ".hidden"},
		{"a..b", "a..b"},
		{"picture", "picture"},
		{"%3Fx=1%23y", "?x=1#y"},
		{"a&b=c", "a&b=c"},
		{"%F0%9F%91%A8%E2%80%8D%F0%9F%91%A9%E2%80%8D%F0%9F%91%A7", "👨\u200d👩\u200d👧"},
		{"e%CC%81", "e\u0301"},
		{"%D7%97%D7%AA%D7%95%D7%9C", "חתול"},
		{"%EF%BF%BC", "\ufffc"},        // the last assigned code point of its plane
		{"%F0%BF%BF%BD", "\U0003fffd"}, // not assigned yet
		{strings.Repeat("x", 128), strings.Repeat("x", 128)},
	} {
		content := append(bytes.Clone(harness.Cat), byte(i))
		harness.Put(t, sys, c.path, content)
		if !slices.Contains(harness.BlobNames(t, sys), c.name+"/cat") {
			t.Errorf("%s is not blob %q but one of %q", c.path, c.name+"/cat", harness.BlobNames(t, sys))
		}
		if got := harness.Served(t, sys, c.path); !bytes.Equal(got, content) {
			t.Errorf("%s: another picture came back", c.path)
		}
		if owner, _ := harness.Do(t, "GET", sys.URL+"/cat/"+c.path, "", nil).Field(t, "owner").(map[string]any); owner["name"] != c.name {
			t.Errorf("%s: owner %v; want %q", c.path, owner, c.name)
		}
	}
	before := harness.BlobNames(t, sys)
	containers, err := sys.Storage.Containers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	contentType, body := harness.Form(t, harness.Cat)
	for _, path := range []string{
		"..%2Fx", "a%5Cb", "%00", "a%2Fb", "%2e%2e", "%2e", "a.", "%ff", "a%0ab", "%7f", strings.Repeat("x", 200), strings.Repeat("%E7%8C%AB", 43),
		"%EE%80%80", "a%EF%80%83", "%EF%A3%BFb", "%F3%B0%80%80", "%F4%8F%BF%BD", // private use: U+E000, U+F003, U+F8FF, U+F0000, U+10FFFD
		"%EF%BF%BE", "%EF%BF%BF", "a%EF%B7%90", "%EF%B7%AF", "%F0%9F%BF%BE", "%F4%8F%BF%BF", // noncharacters: U+FFFE, U+FFFF, U+FDD0, U+FDEF, U+1FFFE, U+10FFFF
	} {
		harness.Do(t, "PUT", sys.URL+"/cat/"+path, "", harness.Cat).WantProblem(t, 422, "invalid_user")
		harness.Do(t, "POST", sys.URL+"/cat/"+path, contentType, body).WantProblem(t, 422, "invalid_user")
		harness.Do(t, "GET", sys.URL+"/cat/"+path, "", nil).WantProblem(t, 422, "invalid_user")
		harness.Do(t, "GET", sys.URL+"/cat/"+path+"/picture", "", nil).WantProblem(t, 422, "invalid_user")
		harness.Do(t, "DELETE", sys.URL+"/cat/"+path, "", nil).WantProblem(t, 422, "invalid_user")
	}
	if diff := cmp.Diff(before, harness.BlobNames(t, sys)); diff != "" {
		t.Errorf("a refused name stored something: %s", diff)
	}
	for _, c := range containers {
		blobs, err := sys.Storage.Blobs(t.Context(), c)
		if err != nil {
			continue // another test's container, gone since
		}
		for _, b := range blobs {
			if strings.HasPrefix(b.Name, "cats-api/upload/") {
				continue // another test's ticket
			}
			if strings.Count(b.Name, "/") != 1 || strings.ContainsAny(b.Name, "\\\x00\n") || strings.HasPrefix(b.Name, "./") || strings.HasPrefix(b.Name, "../") {
				t.Errorf("something was stored as %s in %s", b.Name, c)
			}
		}
	}
}

// What the tutorial service answered at the edges, for clients that moved here.
func TestTheEdgesAreWhatTutorialClientsExpect(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	for path, want := range map[string]string{"/service/": "/service", "/cat/a%20b/": "/cat/a%20b", "/cat/x/?ttl=1m": "/cat/x?ttl=1m"} {
		if a := harness.Do(t, "GET", sys.URL+path, "", nil).Want(t, 307); a.Header.Get("Location") != want {
			t.Errorf("%s leads to %q; want %q", path, a.Header.Get("Location"), want)
		}
	}
	for path, allow := range map[string]string{"/service": "GET, HEAD, OPTIONS", "/cat/x": "DELETE, GET, HEAD, OPTIONS, POST, PUT"} {
		a := harness.Do(t, "PATCH", sys.URL+path, "", nil)
		a.WantProblem(t, 405, "method_not_allowed")
		b := harness.Do(t, "OPTIONS", sys.URL+path, "", nil).Want(t, 204)
		if a.Header.Get("Allow") != allow || b.Header.Get("Allow") != allow {
			t.Errorf("%s: Allow %q and %q; want %q", path, a.Header.Get("Allow"), b.Header.Get("Allow"), allow)
		}
	}
	harness.Do(t, "GET", sys.URL+"/nothing", "", nil).WantProblem(t, 404, "no_such_path")
	a := harness.Do(t, "GET", sys.URL+"/cat/nobody", "", nil)
	var tutorial struct{ Detail string }
	if err := json.Unmarshal(a.Body, &tutorial); err != nil || tutorial.Detail != "Cat not found" {
		t.Errorf("a missing cat is %s", a.Body)
	}
}
