package api

import (
	"bytes"
	"errors"
	"mime"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
)

// parse returns the URL s and the times in its query.
func parse(t *testing.T, s string) (u *url.URL, times map[string]time.Time) {
	t.Helper()
	u, err := url.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	times = map[string]time.Time{}
	for _, name := range []string{"st", "se", "skt", "ske"} {
		if times[name], err = time.Parse(time.RFC3339, u.Query().Get(name)); err != nil {
			t.Fatal(err)
		}
	}
	return u, times
}

func TestStorageRejectsModifiedSignedURLs(t *testing.T) {
	t.Parallel()
	const forged, forbidden = "AuthorizationFailure", "AuthorizationPermissionMismatch"
	sys, user, other := harness.Shared(t), harness.User(t), harness.User(t)
	harness.Put(t, sys, user, harness.Cat)
	harness.Put(t, sys, other, harness.Cat)
	signed, expires := harness.Link(t, sys, user, "")
	short, soon := harness.Link(t, sys, user, "?ttl=5s")
	u, times := parse(t, signed)
	q := u.Query()
	want := []any{"r", "b", "https", expires, "/" + sys.Container + "/" + user + "/cat"}
	if diff := cmp.Diff(want, []any{q.Get("sp"), q.Get("sr"), q.Get("spr"), times["se"], u.Path}); diff != "" {
		t.Errorf("the signed URL has another value:\n%s", diff)
	}
	if harness.Elsewhere == nil && u.Scheme+"://"+u.Host != harness.Stack(t).FrontURL {
		t.Errorf("the signed URL has another base: %s", signed)
	}
	harness.Send(t, "HEAD", signed, "").Want(t, 200)
	if a := harness.Send(t, "GET", signed, "", "Range", "bytes=10-19").Want(t, 206); !bytes.Equal(a.Body, harness.Cat[10:20]) {
		t.Errorf("the range is %q", a.Body)
	}

	modified := map[string]string{
		"another user":      strings.Replace(signed, "/"+user+"/", "/"+other+"/", 1),
		"another blob":      strings.Replace(signed, "/cat?", "/dog?", 1),
		"container listing": strings.Replace(signed, "/"+user+"/cat?", "?restype=container&comp=list&", 1),
	}
	with := func(name, value string) {
		query := u.Query()
		query.Set(name, value)
		if value == "" {
			query.Del(name)
		}
		modified[name+"="+value] = u.Scheme + "://" + u.Host + u.Path + "?" + query.Encode()
	}
	for i := 0; i < 42; i += 6 { // the last letter but one has unused bits
		sig := []byte(q.Get("sig"))
		sig[i] = map[bool]byte{true: 'A', false: 'B'}[sig[i] == 'B']
		with("sig", string(sig))
	}
	for _, c := range [][2]string{
		{"se", "2099-01-01T00:00:00Z"},
		{"ske", "2099-01-01T00:00:00Z"},
		{"sp", "rwd"},
		{"sr", "c"},
		{"rsct", "text/html"},
		{"rscd", "attachment"},
		{"rsct", ""},
		{"rscd", ""},
	} {
		with(c[0], c[1])
	}
	for what, target := range modified {
		harness.Send(t, "GET", target, "").WantRefused(t, what, forged)
	}
	for _, c := range []struct{ method, query, body, header, value string }{
		{"PUT", "", "x", "X-Ms-Blob-Type", "BlockBlob"},
		{"PUT", "&comp=block&blockid=AAAA", "x", "X-A", ""},
		{"PUT", "&comp=blocklist", "<BlockList></BlockList>", "X-A", ""},
		{"PUT", "&comp=metadata", "", "X-Ms-Meta-A", "b"},
		{"PUT", "&comp=properties", "", "X-Ms-Blob-Content-Type", "text/html"},
		{"PUT", "&comp=lease", "", "X-Ms-Lease-Action", "break"},
		{"PUT", "&comp=snapshot", "", "X-A", ""},
		{"DELETE", "", "", "X-A", ""},
	} {
		harness.Send(t, c.method, signed+c.query, c.body, c.header, c.value).WantRefused(t, c.method+" "+c.query, forbidden)
	}
	if a := harness.Do(t, "GET", strings.Split(signed, "?")[0], "", nil); a.StatusCode/100 == 2 {
		t.Errorf("without a signature: %d", a.StatusCode)
	}

	harness.Eventually(t, func() error {
		if a := harness.Send(t, "GET", short, ""); a.StatusCode == http.StatusOK {
			return errors.New("the URL has not expired")
		}
		return nil
	})
	if time.Now().Before(soon.Add(-time.Second)) {
		t.Error("the URL expired too early")
	}
	harness.Send(t, "GET", short, "").WantRefused(t, "expired URL", forged)
	harness.WantPicture(t, sys, user, harness.Cat)
}

func TestSignedURLIsStable(t *testing.T) {
	t.Parallel()
	harness.NeedOwnSystem(t) // several replicas have several keys
	sys, user := harness.Shared(t), harness.User(t)
	harness.Put(t, sys, user, harness.Cat)
	at := sys.URL + "/cat/" + user
	var mu sync.Mutex
	seen := map[time.Time]string{} // by expiry
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			signed := harness.Do(t, "GET", at+"/picture?ttl=1m", "", nil).Header.Get("Location")
			if i%2 == 0 {
				signed, _ = harness.Link(t, sys, user, "?ttl=60s")
			}
			_, times := parse(t, signed)
			expires := times["se"]
			mu.Lock()
			defer mu.Unlock()
			if other, ok := seen[expires]; ok && other != signed || !expires.Equal(expires.Truncate(5*time.Second)) {
				t.Errorf("two URLs with the same expiry differ, or it is not at a twelfth of the minute:\n%s\n%s", other, signed)
			}
			seen[expires] = signed
		})
	}
	wg.Wait()
}

func TestRedirectExpiresBeforeItsURL(t *testing.T) {
	t.Parallel()
	sys, user := harness.Shared(t), harness.User(t)
	harness.Put(t, sys, user, harness.Cat)
	for query, ttl := range map[string]time.Duration{
		"": time.Hour, "?ttl=5s": 5 * time.Second, "?ttl=10m": 10 * time.Minute, "?ttl=24h": 24 * time.Hour,
		"?download=Мурчик.png&ttl=30s": 30 * time.Second,
	} {
		a := harness.Do(t, "GET", sys.URL+"/cat/"+user+"/picture"+query, "", nil).Want(t, 307)
		u, times := parse(t, a.Header.Get("Location"))
		if left := time.Until(times["se"]); left > ttl || left < ttl*10/12-time.Second {
			t.Errorf("%q: the URL expires in %v", query, left)
		}
		// Clocks may differ by 15 minutes, and a URL must not outlive its key.
		if time.Since(times["st"]) < 14*time.Minute || times["st"].Before(times["skt"]) || times["se"].After(times["ske"]) {
			t.Errorf("%q: the URL and its key are valid at %v", query, times)
		}
		age := regexp.MustCompile(`^private, max-age=(\d+)$`).FindStringSubmatch(a.Header.Get("Cache-Control"))
		if age == nil || len(a.Body) > 0 || a.Header.Get("Referrer-Policy") != "no-referrer" {
			t.Fatalf("%q: %v %q", query, a.Header, a.Body)
		}
		if n, _ := strconv.Atoi(age[1]); n < 1 && ttl > 5*time.Second || time.Duration(n)*time.Second > time.Until(times["se"]) {
			t.Errorf("%q: cached for %d seconds of %v", query, n, time.Until(times["se"]))
		}
		want := []string{"image/png", "inline", "cat.png"}
		if strings.Contains(query, "download") {
			want = []string{"image/png", "attachment", "Мурчик.png"}
		}
		if !bytes.Equal(wantServed(t, query, u.String(), want...), harness.Cat) {
			t.Errorf("%q: another picture", query)
		}
	}
}

// savedNames are values of download, with the file names for clients that do not support filename*.
var savedNames = map[string]string{
	"a%20b.png": "a_20b.png", "100%.png": "100_.png", "Мурчик.png": "______.png", `my "cat".PNG`: "my _cat_.PNG",
	"it's; a=b, (c) [d].png": "it's; a=b, (c) [d].png", "evil.exe\u202egnp": "evil.exe_gnp.png", "🐱.png": "_.png", "UTF-8''x": "UTF-8''x.png",
}

func TestClientsSaveUnderTheDownloadName(t *testing.T) {
	t.Parallel()
	sys, user := harness.Shared(t), harness.User(t)
	harness.Put(t, sys, user, harness.Cat)
	curl, err := exec.LookPath("curl")
	if err != nil && os.Getenv("CI") != "" {
		t.Fatal("curl is missing: it is Debian's package of that name")
	}
	for name, plain := range savedNames {
		want := name
		if !strings.HasSuffix(strings.ToLower(name), ".png") {
			want += ".png"
		}
		signed, _ := harness.Link(t, sys, user, "?download="+url.QueryEscape(name))
		wantServed(t, name, signed, "image/png", "attachment", want)
		field := harness.Do(t, "HEAD", signed, "", nil).Want(t, 200).Header.Get("Content-Disposition")
		first, _, _ := strings.Cut(field, "; filename*=")
		isASCII := !strings.ContainsFunc(field, func(r rune) bool { return r < ' ' || r > '~' })
		if _, params, err := mime.ParseMediaType(first); err != nil || params["filename"] != plain || !isASCII {
			t.Errorf("%q: %q has the plain file name %q, %v; want %q", name, field, params["filename"], err, plain)
		}
		if curl == "" {
			continue
		}
		cmd := exec.CommandContext(t.Context(), curl, "-q", "--insecure", "--silent", "--show-error", "--noproxy", "*", "-OJ", signed)
		cmd.Dir = t.TempDir()
		out, err := cmd.CombinedOutput()
		if saved, readErr := os.ReadFile(filepath.Join(cmd.Dir, plain)); err != nil || readErr != nil || !bytes.Equal(saved, harness.Cat) {
			t.Errorf("%q: curl did not save %q: %v %s", name, plain, errors.Join(err, readErr), out)
		}
	}
}
