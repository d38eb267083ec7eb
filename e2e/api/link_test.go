package api

import (
	"bytes"
	"fmt"
	"mime"
	"net/url"
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

	// A proxy in front of Azurite may reject requests as well, which proves nothing about the signature.
	rejected := func(a harness.Response, code string) bool {
		return a.StatusCode == 403 && a.Header.Get("X-Ms-Error-Code") == code && strings.HasPrefix(a.Header.Get("Server"), "Azurite-Blob/")
	}
	for _, row := range harness.Table(t, "signed-urls.txt", "{user}", user, "{other}", other) {
		row = append(row, "", "", "")[:max(len(row), 5)]
		target := strings.Replace(signed, row[2], row[3], 1)
		if row[2] == "" {
			target = signed + row[3]
		} else if target == signed {
			t.Errorf("the signed URL has no %s", row[2])
		}
		if a := harness.Send(t, row[1], target, row[4], row[5:]...); !rejected(a, row[0]) {
			t.Errorf("%q: %d %v; want 403 %s by Azurite", row[1:], a.StatusCode, a.Header, row[0])
		}
	}
	if a := harness.Do(t, "GET", strings.Split(signed, "?")[0], "", nil); a.StatusCode/100 == 2 {
		t.Errorf("without a signature: %d", a.StatusCode)
	}

	harness.Eventually(t, func() error {
		if a := harness.Send(t, "GET", short, ""); !rejected(a, "AuthorizationFailure") {
			return fmt.Errorf("the URL has not expired: %d", a.StatusCode)
		}
		return nil
	})
	if time.Now().Before(soon.Add(-time.Second)) {
		t.Error("the URL expired too early")
	}
	harness.WantPicture(t, sys, user, harness.Cat)
}

func TestSignedURLIsStable(t *testing.T) {
	t.Parallel()
	harness.NeedOwnSystem(t) // several replicas have several keys
	sys, user := harness.Shared(t), harness.User(t)
	harness.Put(t, sys, user, harness.Cat)
	urls := map[string]bool{}
	for range 5 { // at most two twelfths of the lifetime
		signed, expires := harness.Link(t, sys, user, "?ttl=600s")
		if urls[signed] = true; !expires.Equal(expires.Truncate(50 * time.Second)) {
			t.Errorf("the URL expires at %v", expires)
		}
		urls[harness.Do(t, "GET", sys.URL+"/cat/"+user+"/picture?ttl=10m", "", nil).Header.Get("Location")] = true
	}
	if len(urls) > 2 {
		t.Errorf("%d URLs", len(urls))
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
	for _, row := range harness.Table(t, "download-names.txt") {
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
	}
}
