package api

import (
	"bytes"
	"errors"
	"mime"
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
	"cats.example/local/stack"
)

func TestStorageItselfRefusesWhatALinkDoesNotAllow(t *testing.T) {
	t.Parallel()
	const forged, notAllowed = "AuthorizationFailure", "AuthorizationPermissionMismatch"
	sys := harness.Public(t)
	harness.Put(t, sys, "Davyd", harness.Cat)
	harness.Put(t, sys, "other", harness.Cat)
	picture, _ := harness.Link(t, sys, "Davyd", "")
	short, _ := harness.Link(t, sys, "Davyd", "?ttl=5s")
	u, err := url.Parse(picture)
	if err != nil {
		t.Fatal(err)
	}

	// What it is for: a look, a part, and all of it.
	harness.Send(t, "HEAD", picture, "").Want(t, 200)
	if a := harness.Send(t, "GET", picture, "", "Range", "bytes=10-19").Want(t, 206); !bytes.Equal(a.Body, harness.Cat[10:20]) {
		t.Errorf("a part of the picture is %q", a.Body)
	}
	if a := harness.Send(t, "GET", picture, "").Want(t, 200); !bytes.Equal(a.Body, harness.Cat) || a.Header.Get("Content-Disposition") != "inline; filename=cat.png" {
		t.Errorf("the picture is %d bytes, %q", len(a.Body), a.Header.Get("Content-Disposition"))
	}

	sig := u.Query().Get("sig")
	for i := 0; i < 42; i += 6 { // the last letter but one has bits to spare
		changed := map[bool]string{true: "A", false: "B"}[sig[i] == 'B']
		query := u.Query()
		query.Set("sig", sig[:i]+changed+sig[i+1:])
		target := u.Scheme + "://" + u.Host + u.Path + "?" + query.Encode()
		harness.Send(t, "GET", target, "").WantRefused(t, "a signature with another letter "+strconv.Itoa(i), forged)
	}
	for _, pinned := range []string{"rsct", "rscd"} {
		query := u.Query()
		query.Set(pinned, "text/html")
		harness.Send(t, "GET", u.Scheme+"://"+u.Host+u.Path+"?"+query.Encode(), "").WantRefused(t, "another "+pinned, forged)
		query.Del(pinned)
		harness.Send(t, "GET", u.Scheme+"://"+u.Host+u.Path+"?"+query.Encode(), "").WantRefused(t, "no "+pinned, forged)
	}
	harness.Send(t, "GET", strings.Replace(picture, "/Davyd/", "/other/", 1), "").WantRefused(t, "another picture", forged)
	harness.Send(t, "GET", strings.Replace(picture, "/Davyd/cat", "/Davyd/dog", 1), "").WantRefused(t, "another blob of the user", forged)
	harness.Send(t, "PUT", picture, "x", "X-Ms-Blob-Type", "BlockBlob").WantRefused(t, "a write", notAllowed)
	harness.Send(t, "PUT", picture+"&comp=block&blockid=AAAA", "x").WantRefused(t, "a block", notAllowed)
	harness.Send(t, "PUT", picture+"&comp=blocklist", "<BlockList></BlockList>").WantRefused(t, "a commit of none", notAllowed)
	harness.Send(t, "PUT", picture+"&comp=metadata", "", "X-Ms-Meta-A", "b").WantRefused(t, "metadata", notAllowed)
	harness.Send(t, "PUT", picture+"&comp=properties", "", "X-Ms-Blob-Content-Type", "text/html").WantRefused(t, "another content type", notAllowed)
	harness.Send(t, "PUT", picture+"&comp=lease", "", "X-Ms-Lease-Action", "acquire", "X-Ms-Lease-Duration", "-1").WantRefused(t, "a lease", notAllowed)
	harness.Send(t, "PUT", picture+"&comp=snapshot", "").WantRefused(t, "a snapshot", notAllowed)
	harness.Send(t, "DELETE", picture, "").WantRefused(t, "a delete", notAllowed)
	harness.Eventually(t, func() error {
		if a := harness.Send(t, "GET", short, ""); a.StatusCode == 200 {
			return errors.New("the short link still works")
		}
		return nil
	})
	harness.Send(t, "GET", short, "").WantRefused(t, "an expired link", forged)
	if got := harness.Served(t, sys, "Davyd"); !bytes.Equal(got, harness.Cat) {
		t.Error("the picture was changed")
	}
}

// What caches go by: as long as a link ends at the same time it is the same, to
// the byte, whoever asks and however; and it ends on the twelfths of its life.
func TestALinkStandsStillWithinItsWindow(t *testing.T) {
	t.Parallel()
	const ttl, step = time.Minute, 5 * time.Second
	sys := harness.Start(t, stack.SystemOptions{}) // one replica: each has a key of its own
	harness.Put(t, sys, "x", harness.Cat)
	var mu sync.Mutex
	seen := map[string]string{}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			var got string
			if i%2 == 0 {
				got, _ = harness.Do(t, "GET", sys.URL+"/cat/x?ttl=60s", "", nil).Field(t, "picture_url").(string)
			} else {
				got = harness.Do(t, "GET", sys.URL+"/cat/x/picture?ttl=1m", "", nil).Header.Get("Location")
			}
			u, err := url.Parse(got)
			if err != nil {
				t.Error(err)
				return
			}
			ends := u.Query().Get("se")
			mu.Lock()
			defer mu.Unlock()
			if other, ok := seen[ends]; ok && other != got {
				t.Errorf("two links that end at %s differ:\n%s\n%s", ends, other, got)
			}
			seen[ends] = got
		})
	}
	wg.Wait()
	for ends := range seen {
		if at, err := time.Parse(time.RFC3339, ends); err != nil || !at.Add(-ttl).Equal(at.Add(-ttl).Truncate(step)) {
			t.Errorf("a link of %v ends at %s, %v", ttl, ends, err)
		}
	}
}

func TestPictureRedirectsAsToldAndIsKeptForLessThanTheLinkLives(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	harness.Put(t, sys, "x", harness.Cat)
	for query, most := range map[string]time.Duration{"": time.Hour, "?ttl=10m": 10 * time.Minute, "?download=Мурчик.png&ttl=30s": 30 * time.Second} {
		a := harness.Send(t, "GET", sys.URL+"/cat/x/picture"+query, "").Want(t, 307)
		if len(a.Body) > 0 || a.Header.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%q: %q, Referrer-Policy %q", query, a.Body, a.Header.Get("Referrer-Policy"))
		}
		u, err := url.Parse(a.Header.Get("Location"))
		if err != nil {
			t.Fatal(err)
		}
		ends, err := time.Parse(time.RFC3339, u.Query().Get("se"))
		if left := time.Until(ends); err != nil || left > most || left < most*10/12 {
			t.Errorf("%q leads to a link that lives for %v, %v", query, left, err)
		}
		kept := regexp.MustCompile(`^private, max-age=(\d+)$`).FindStringSubmatch(a.Header.Get("Cache-Control"))
		if kept == nil {
			t.Fatalf("%q: Cache-Control %q", query, a.Header.Get("Cache-Control"))
		}
		if seconds, _ := strconv.Atoi(kept[1]); seconds < 1 || time.Duration(seconds)*time.Second >= time.Until(ends) {
			t.Errorf("%q: kept for %d seconds of %v", query, seconds, time.Until(ends))
		}
		fetched := harness.Send(t, "GET", u.String(), "").Want(t, 200)
		kind, params, _ := mime.ParseMediaType(fetched.Header.Get("Content-Disposition"))
		if saved := strings.Contains(query, "download"); saved != (kind == "attachment" && params["filename"] == "Мурчик.png") || saved == (kind == "inline" && params["filename"] == "cat.png") {
			t.Errorf("%q: Content-Disposition %q", query, fetched.Header.Get("Content-Disposition"))
		}
		if fetched.Header.Get("Content-Type") != "image/png" || !bytes.Equal(fetched.Body, harness.Cat) {
			t.Errorf("%q: %d bytes of %s", query, len(fetched.Body), fetched.Header.Get("Content-Type"))
		}
	}
	const allowed = "GET, HEAD, OPTIONS"
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH"} {
		a := harness.Send(t, method, sys.URL+"/cat/x/picture", "x")
		a.WantProblem(t, 405, "method_not_allowed")
		if a.Header.Get("Allow") != allowed {
			t.Errorf("%s: Allow %q", method, a.Header.Get("Allow"))
		}
	}
	if a := harness.Send(t, "OPTIONS", sys.URL+"/cat/x/picture", "").Want(t, 204); a.Header.Get("Allow") != allowed {
		t.Errorf("OPTIONS: Allow %q", a.Header.Get("Allow"))
	}
	a := harness.Send(t, "GET", sys.URL+"/cat/nobody/picture", "")
	a.WantProblem(t, 404, "not_found")
	if a.Field(t, "detail") != "Cat not found" || a.Header.Get("Location") != "" {
		t.Errorf("nobody's picture: %s, to %q", a.Body, a.Header.Get("Location"))
	}
}

// savedNames are names of pictures, and the names under which clients without filename* save them.
var savedNames = map[string]string{
	"a b.png": "a b.png", "a%20b.png": "a_20b.png", "100%.png": "100_.png", "100%25.png": "100_25.png", "猫": "_.png", "Мурчик.png": "______.png", `my "cat".PNG`: "my _cat_.PNG", "café": "caf_.png",
	"it's; a=b, (c) [d].png": "it's; a=b, (c) [d].png", "evil.exe\u202egnp": "evil.exe_gnp.png", "🐱.png": "_.png", "%": "_.png", "UTF-8''x": "UTF-8''x.png", "evil.html": "evil.html.png",
}

func TestDownloadNameSurvives(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	harness.Put(t, sys, "x", harness.Cat)
	curl, err := exec.LookPath("curl")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("curl is missing: it is Debian's package of that name")
		}
		t.Log("without curl, only the header is checked")
	}
	for name, plain := range savedNames {
		want := name
		if !strings.HasSuffix(strings.ToLower(name), ".png") {
			want += ".png"
		}
		picture, _ := harness.Link(t, sys, "x", "?download="+url.QueryEscape(name))
		a := harness.Send(t, "GET", picture, "").Want(t, 200)
		field := a.Header.Get("Content-Disposition")
		kind, params, err := mime.ParseMediaType(field)
		if err != nil || kind != "attachment" || params["filename"] != want || strings.Contains(field, "filename*=UTF-8''") != (plain != want) || strings.ContainsFunc(field, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q: Content-Disposition %q, %v", name, field, err)
		}
		first, _, _ := strings.Cut(field, "; filename*=")
		if _, params, err := mime.ParseMediaType(first); err != nil || params["filename"] != plain {
			t.Errorf("%q: the plain file name is %q, %v; want %q", name, params["filename"], err, plain)
		}
		if curl == "" {
			continue
		}
		dir := t.TempDir()
		cmd := exec.CommandContext(t.Context(), curl, "-q", "--insecure", "--silent", "--show-error", "--noproxy", "*", "-OJ", picture)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v: %s", name, err, out)
		}
		if saved, err := os.ReadFile(filepath.Join(dir, plain)); err != nil || !bytes.Equal(saved, harness.Cat) {
			entries, _ := os.ReadDir(dir)
			t.Errorf("%q: curl saves it as %v; want %q", name, entries, plain)
		}
	}
}

// What the API says of a picture is what storage has.
func TestAnAnswerSaysWhatIsStored(t *testing.T) {
	t.Parallel()
	sys := harness.Public(t)
	for i, content := range [][]byte{harness.Cat, harness.Random(harness.OneBlob+77, 1), append(harness.Pixel(t, "image/jpeg"), harness.Random(999, 2)...)} {
		contentType, body := harness.Form(t, content)
		uploaded := harness.Do(t, "POST", sys.URL+"/cat/x", contentType, body).Want(t, 200)
		picture, expires := harness.Link(t, sys, "x", "")
		got := harness.Do(t, "GET", sys.URL+"/cat/x", "", nil).Want(t, 200)
		header, stored, err := sys.Storage.Read(t.Context(), sys.Container, "x/cat")
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(stored, content) {
			t.Errorf("upload %d: %d bytes are stored of %d", i, len(stored), len(content))
		}
		want := map[string]any{
			"owner": map[string]any{"name": "x"}, "etag": header.Get("ETag"),
			"content_type": header.Get("Content-Type"), "size": float64(len(content)),
		}
		all := func(a harness.Response) map[string]any {
			m := map[string]any{}
			for name := range want {
				m[name] = a.Field(t, name)
			}
			return m
		}
		for what, a := range map[string]harness.Response{"the answer to the upload": uploaded, "the cat": got} {
			if diff := cmp.Diff(want, all(a)); diff != "" {
				t.Errorf("upload %d: storage and %s differ:\n%s", i, what, diff)
			}
			if a.Header.Get("Content-Type") != "application/json" || a.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: %q, Cache-Control %q", what, a.Header.Get("Content-Type"), a.Header.Get("Cache-Control"))
			}
		}
		u, err := url.Parse(picture)
		if err != nil || (harness.Elsewhere == nil && u.Scheme+"://"+u.Host != harness.Stack(t).FrontURL) || u.Path != "/"+sys.Container+"/x/cat" ||
			u.Query().Get("sp") != "r" || u.Query().Get("sr") != "b" || u.Query().Get("spr") != "https" ||
			u.Query().Get("se") != expires.Format(time.RFC3339) {
			t.Errorf("the link is %s, to %v; %v", picture, expires, err)
		}
	}
}
