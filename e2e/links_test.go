package e2e

import (
	"bytes"
	"errors"
	"io"
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

	"cats.example/local/stack"
)

// ask sends a request with headers of its own, names and values in turn.
func ask(t *testing.T, method, url, body string, header ...string) answer {
	t.Helper()
	return askBy(t, client(), method, url, body, header...)
}

// askBy is ask with a client of its own.
func askBy(t *testing.T, client *http.Client, method, url, body string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	return answerTo(t, client, req)
}

// answerTo sends a request that must get an answer.
func answerTo(t *testing.T, client *http.Client, req *http.Request) answer {
	t.Helper()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp, b}
}

// wantRefused checks that storage itself said no, and for which reason: what
// stands before it could refuse as well and prove nothing of the signature.
func (a answer) wantRefused(t *testing.T, what, code string) {
	t.Helper()
	if a.StatusCode != http.StatusForbidden || a.Header.Get("X-Ms-Error-Code") != code || !strings.HasPrefix(a.Header.Get("Server"), "Azurite-Blob/") {
		t.Errorf("%s: %d %q by %q; want 403 %q by Azurite", what, a.StatusCode, a.Header.Get("X-Ms-Error-Code"), a.Header.Get("Server"), code)
	}
}

func TestStorageItselfRefusesWhatALinkDoesNotAllow(t *testing.T) {
	t.Parallel()
	const forged, notAllowed = "AuthorizationFailure", "AuthorizationPermissionMismatch"
	sys := public(t)
	put(t, sys, "Davyd", cat)
	put(t, sys, "other", cat)
	picture, _ := link(t, sys, "Davyd", "")
	short, _ := link(t, sys, "Davyd", "?ttl=5s")
	u, err := url.Parse(picture)
	if err != nil {
		t.Fatal(err)
	}

	// What it is for: a look, a part, and all of it.
	ask(t, "HEAD", picture, "").want(t, 200)
	if a := ask(t, "GET", picture, "", "Range", "bytes=10-19").want(t, 206); !bytes.Equal(a.body, cat[10:20]) {
		t.Errorf("a part of the picture is %q", a.body)
	}
	if a := ask(t, "GET", picture, "").want(t, 200); !bytes.Equal(a.body, cat) || a.Header.Get("Content-Disposition") != "inline; filename=cat.png" {
		t.Errorf("the picture is %d bytes, %q", len(a.body), a.Header.Get("Content-Disposition"))
	}

	sig := u.Query().Get("sig")
	for i := 0; i < 42; i += 6 { // the last letter but one has bits to spare
		changed := map[bool]string{true: "A", false: "B"}[sig[i] == 'B']
		query := u.Query()
		query.Set("sig", sig[:i]+changed+sig[i+1:])
		target := u.Scheme + "://" + u.Host + u.Path + "?" + query.Encode()
		ask(t, "GET", target, "").wantRefused(t, "a signature with another letter "+strconv.Itoa(i), forged)
	}
	for _, pinned := range []string{"rsct", "rscd"} {
		query := u.Query()
		query.Set(pinned, "text/html")
		ask(t, "GET", u.Scheme+"://"+u.Host+u.Path+"?"+query.Encode(), "").wantRefused(t, "another "+pinned, forged)
		query.Del(pinned)
		ask(t, "GET", u.Scheme+"://"+u.Host+u.Path+"?"+query.Encode(), "").wantRefused(t, "no "+pinned, forged)
	}
	ask(t, "GET", strings.Replace(picture, "/Davyd/", "/other/", 1), "").wantRefused(t, "another picture", forged)
	ask(t, "GET", strings.Replace(picture, "/Davyd/cat", "/Davyd/dog", 1), "").wantRefused(t, "another blob of the user", forged)
	ask(t, "PUT", picture, "x", "X-Ms-Blob-Type", "BlockBlob").wantRefused(t, "a write", notAllowed)
	ask(t, "PUT", picture+"&comp=block&blockid=AAAA", "x").wantRefused(t, "a block", notAllowed)
	ask(t, "PUT", picture+"&comp=blocklist", "<BlockList></BlockList>").wantRefused(t, "a commit of none", notAllowed)
	ask(t, "PUT", picture+"&comp=metadata", "", "X-Ms-Meta-A", "b").wantRefused(t, "metadata", notAllowed)
	ask(t, "PUT", picture+"&comp=properties", "", "X-Ms-Blob-Content-Type", "text/html").wantRefused(t, "another content type", notAllowed)
	ask(t, "PUT", picture+"&comp=lease", "", "X-Ms-Lease-Action", "acquire", "X-Ms-Lease-Duration", "-1").wantRefused(t, "a lease", notAllowed)
	ask(t, "PUT", picture+"&comp=snapshot", "").wantRefused(t, "a snapshot", notAllowed)
	ask(t, "DELETE", picture, "").wantRefused(t, "a delete", notAllowed)
	eventually(t, func() error {
		if a := ask(t, "GET", short, ""); a.StatusCode == 200 {
			return errors.New("the short link still works")
		}
		return nil
	})
	ask(t, "GET", short, "").wantRefused(t, "an expired link", forged)
	if got := served(t, sys, "Davyd"); !bytes.Equal(got, cat) {
		t.Error("the picture was changed")
	}
}

// What caches go by: as long as a link ends at the same time it is the same, to
// the byte, whoever asks and however; and it ends on the twelfths of its life.
func TestALinkStandsStillWithinItsWindow(t *testing.T) {
	t.Parallel()
	const ttl, step = time.Minute, 5 * time.Second
	sys := start(t, stack.SystemOptions{}) // one replica: each has a key of its own
	put(t, sys, "x", cat)
	var mu sync.Mutex
	seen := map[string]string{}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			var got string
			if i%2 == 0 {
				got, _ = do(t, "GET", sys.URL+"/cat/x?ttl=60s", "", nil).field(t, "picture_url").(string)
			} else {
				got = do(t, "GET", sys.URL+"/cat/x/picture?ttl=1m", "", nil).Header.Get("Location")
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
	sys := public(t)
	put(t, sys, "x", cat)
	for query, most := range map[string]time.Duration{"": time.Hour, "?ttl=10m": 10 * time.Minute, "?download=Мурчик.png&ttl=30s": 30 * time.Second} {
		a := ask(t, "GET", sys.URL+"/cat/x/picture"+query, "").want(t, 307)
		if len(a.body) > 0 || a.Header.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%q: %q, Referrer-Policy %q", query, a.body, a.Header.Get("Referrer-Policy"))
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
		fetched := ask(t, "GET", u.String(), "").want(t, 200)
		kind, params, _ := mime.ParseMediaType(fetched.Header.Get("Content-Disposition"))
		if saved := strings.Contains(query, "download"); saved != (kind == "attachment" && params["filename"] == "Мурчик.png") || saved == (kind == "inline" && params["filename"] == "cat.png") {
			t.Errorf("%q: Content-Disposition %q", query, fetched.Header.Get("Content-Disposition"))
		}
		if fetched.Header.Get("Content-Type") != "image/png" || !bytes.Equal(fetched.body, cat) {
			t.Errorf("%q: %d bytes of %s", query, len(fetched.body), fetched.Header.Get("Content-Type"))
		}
	}
	const allowed = "GET, HEAD, OPTIONS"
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH"} {
		a := ask(t, method, sys.URL+"/cat/x/picture", "x")
		a.problem(t, 405, "method_not_allowed")
		if a.Header.Get("Allow") != allowed {
			t.Errorf("%s: Allow %q", method, a.Header.Get("Allow"))
		}
	}
	if a := ask(t, "OPTIONS", sys.URL+"/cat/x/picture", "").want(t, 204); a.Header.Get("Allow") != allowed {
		t.Errorf("OPTIONS: Allow %q", a.Header.Get("Allow"))
	}
	a := ask(t, "GET", sys.URL+"/cat/nobody/picture", "")
	a.problem(t, 404, "not_found")
	if a.field(t, "detail") != "Cat not found" || a.Header.Get("Location") != "" {
		t.Errorf("nobody's picture: %s, to %q", a.body, a.Header.Get("Location"))
	}
}

// savedNames are names of pictures, and the names under which clients without filename* save them.
var savedNames = map[string]string{
	"a b.png": "a b.png", "a%20b.png": "a_20b.png", "100%.png": "100_.png", "100%25.png": "100_25.png", "猫": "_.png", "Мурчик.png": "______.png", `my "cat".PNG`: "my _cat_.PNG", "café": "caf_.png",
	"it's; a=b, (c) [d].png": "it's; a=b, (c) [d].png", "evil.exe\u202egnp": "evil.exe_gnp.png", "🐱.png": "_.png", "%": "_.png", "UTF-8''x": "UTF-8''x.png", "evil.html": "evil.html.png",
}

func TestDownloadNameSurvives(t *testing.T) {
	t.Parallel()
	sys := public(t)
	put(t, sys, "x", cat)
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
		picture, _ := link(t, sys, "x", "?download="+url.QueryEscape(name))
		a := ask(t, "GET", picture, "").want(t, 200)
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
		if saved, err := os.ReadFile(filepath.Join(dir, plain)); err != nil || !bytes.Equal(saved, cat) {
			entries, _ := os.ReadDir(dir)
			t.Errorf("%q: curl saves it as %v; want %q", name, entries, plain)
		}
	}
}

// What the API says of a picture is what storage has.
func TestAnAnswerSaysWhatIsStored(t *testing.T) {
	t.Parallel()
	sys := public(t)
	for i, content := range [][]byte{cat, random(oneBlob+77, 1), append(pixel(t, "image/jpeg"), random(999, 2)...)} {
		contentType, body := form(t, content)
		uploaded := do(t, "POST", sys.URL+"/cat/x", contentType, body).want(t, 200)
		picture, expires := link(t, sys, "x", "")
		got := do(t, "GET", sys.URL+"/cat/x", "", nil).want(t, 200)
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
		all := func(a answer) map[string]any {
			m := map[string]any{}
			for name := range want {
				m[name] = a.field(t, name)
			}
			return m
		}
		for what, a := range map[string]answer{"the answer to the upload": uploaded, "the cat": got} {
			if diff := cmp.Diff(want, all(a)); diff != "" {
				t.Errorf("upload %d: storage and %s differ:\n%s", i, what, diff)
			}
			if a.Header.Get("Content-Type") != "application/json" || a.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: %q, Cache-Control %q", what, a.Header.Get("Content-Type"), a.Header.Get("Cache-Control"))
			}
		}
		u, err := url.Parse(picture)
		if err != nil || (elsewhere == nil && u.Scheme+"://"+u.Host != st.FrontURL) || u.Path != "/"+sys.Container+"/x/cat" ||
			u.Query().Get("sp") != "r" || u.Query().Get("sr") != "b" || u.Query().Get("spr") != "https" ||
			u.Query().Get("se") != expires.Format(time.RFC3339) {
			t.Errorf("the link is %s, to %v; %v", picture, expires, err)
		}
	}
}
