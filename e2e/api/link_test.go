package api

import (
	"bytes"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
)

func TestStorageRejectsModifiedSignedURLs(t *testing.T) {
	t.Parallel()
	sys, user, other := harness.Shared(t), harness.User(t), harness.User(t)
	harness.Put(t, sys, user, harness.Cat)
	harness.Put(t, sys, other, harness.Cat)
	signed, expires := harness.Link(t, sys, user, "")
	short, soon := harness.Link(t, sys, user, "?ttl=5s")
	u, err := url.Parse(signed)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	want := []string{"r", "b", "https", expires.Format(time.RFC3339), "/" + sys.Container + "/" + user + "/cat"}
	if diff := cmp.Diff(want, []string{q.Get("sp"), q.Get("sr"), q.Get("spr"), q.Get("se"), u.Path}); diff != "" {
		t.Errorf("the signed URL has another value:\n%s", diff)
	}
	if harness.Elsewhere == nil && u.Scheme+"://"+u.Host != harness.Stack(t).FrontURL {
		t.Errorf("the signed URL has another base: %s", signed)
	}
	if a := harness.Send(t, "GET", signed, "", "Range", "bytes=10-19").Want(t, 206); !bytes.Equal(a.Body, harness.Cat[10:20]) {
		t.Errorf("the range is %q", a.Body)
	}

	for _, row := range harness.Cases(t, "signed-urls.txt", "{user}", user, "{other}", other) {
		row = append(row, "", "", "")[:max(len(row), 5)]
		target := strings.Replace(signed, row[2], row[3], 1)
		if row[2] == "" {
			target = signed + row[3]
		} else if target == signed {
			t.Errorf("the signed URL has no %s", row[2])
		}
		harness.Send(t, row[1], target, row[4], row[5:]...).WantRefused(t, strings.Join(row[1:], " "), row[0])
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
	harness.Send(t, "GET", short, "").WantRefused(t, "expired URL", "AuthorizationFailure")
	harness.WantPicture(t, sys, user, harness.Cat)
}

func TestSignedURLIsStable(t *testing.T) {
	t.Parallel()
	harness.NeedOwnSystem(t) // several replicas have several keys
	sys, user := harness.Shared(t), harness.User(t)
	harness.Put(t, sys, user, harness.Cat)
	seen := map[time.Time]string{} // by expiry
	for range 10 {
		signed, expires := harness.Link(t, sys, user, "?ttl=60s")
		location := harness.Do(t, "GET", sys.URL+"/cat/"+user+"/picture?ttl=1m", "", nil).Header.Get("Location")
		for _, u := range []string{signed, location} {
			if other, ok := seen[expires]; ok && other != u && strings.Contains(u, url.QueryEscape(expires.Format(time.RFC3339))) {
				t.Errorf("two URLs with the same expiry differ:\n%s\n%s", other, u)
			}
			seen[expires] = u
		}
		if !expires.Equal(expires.Truncate(5 * time.Second)) {
			t.Errorf("the URL expires at %v, which is no twelfth of a minute", expires)
		}
	}
}

// Clocks may differ by 15 minutes, and a URL must not outlive its key.
func TestRedirectExpiresBeforeItsURL(t *testing.T) {
	t.Parallel()
	sys, user := harness.Shared(t), harness.User(t)
	harness.Put(t, sys, user, harness.Cat)
	for _, ttl := range []time.Duration{5 * time.Second, 10 * time.Minute, time.Hour, 24 * time.Hour} {
		query := "?ttl=" + ttl.String()
		if ttl == time.Hour { // the default
			query = ""
		}
		a := harness.Do(t, "GET", sys.URL+"/cat/"+user+"/picture"+query, "", nil).Want(t, 307)
		u, err := url.Parse(a.Header.Get("Location"))
		if err != nil {
			t.Fatal(err)
		}
		times := map[string]time.Time{}
		for _, name := range []string{"st", "se", "skt", "ske"} {
			if times[name], err = time.Parse(time.RFC3339, u.Query().Get(name)); err != nil {
				t.Fatal(err)
			}
		}
		left := time.Until(times["se"])
		if left > ttl || left < ttl*10/12-time.Second || time.Since(times["st"]) < 14*time.Minute ||
			times["st"].Before(times["skt"]) || times["se"].After(times["ske"]) {
			t.Errorf("%q: the URL, which expires in %v, and its key are valid at %v", query, left, times)
		}
		var age int
		field := a.Header.Get("Cache-Control")
		_, err = fmt.Sscanf(field, "private, max-age=%d", &age)
		if err != nil || age < 1 && ttl > 5*time.Second || time.Duration(age)*time.Second > left {
			t.Errorf("%q: Cache-Control is %q; the URL expires in %v", query, field, left)
		}
	}
}

func TestClientsSaveUnderTheDownloadName(t *testing.T) {
	t.Parallel()
	sys, user := harness.Shared(t), harness.User(t)
	harness.Put(t, sys, user, harness.Cat)
	curl, err := exec.LookPath("curl")
	if err != nil && os.Getenv("CI") != "" {
		t.Fatal("curl is missing: it is Debian's package of that name")
	}
	for _, row := range harness.Cases(t, "download-names.txt") {
		name, plain := row[1], row[2]
		signed := harness.Do(t, "GET", sys.URL+"/cat/"+user+"/picture?download="+row[0], "", nil).Want(t, 307).Header.Get("Location")
		if !bytes.Equal(wantServed(t, row[0], signed, "image/png", "attachment", name), harness.Cat) {
			t.Errorf("%q: another picture is served", name)
		}
		field := harness.Do(t, "HEAD", signed, "", nil).Want(t, 200).Header.Get("Content-Disposition")
		first, _, _ := strings.Cut(field, "; filename*=UTF-8")
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
