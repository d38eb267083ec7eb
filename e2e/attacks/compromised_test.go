package attacks

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"mime"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
)

// A container beside that of the pictures, which the signer's identity could read.
const secretContainer, secretBlob = "attack-secret", "boss/cat"

func TestCompromisedFrontendGetsOnlyTheContract(t *testing.T) {
	t.Parallel()
	a := newAttacker(t, map[string]string{"MAX_PICTURE_SIZE": "1MiB", "MAX_DIRECT_UPLOAD_SIZE": "1GiB"})
	ctx, sys, storage := t.Context(), a.sys, harness.Stack(t).Storage
	pid := sys.Signer.Pid()
	if err := errors.Join(storage.CreateContainer(ctx, secretContainer),
		storage.Put(ctx, secretContainer, secretBlob, "image/png", []byte("secret"))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = storage.DeleteContainer(ctx, secretContainer) })
	before, err := storage.Blobs(ctx, secretContainer)
	if err != nil {
		t.Fatal(err)
	}
	small := string(harness.Cat[:4<<10])
	if r := a.send(t, call("PUT /v1/picture?user=victim", "", small)); r.StatusCode != 200 {
		t.Fatalf("the first picture: %d %s", r.StatusCode, r.Body)
	}
	for name, attack := range map[string]func(*testing.T, string){
		"names": a.names, "ignored fields": a.ignored, "signed URLs": a.signedURLs, "calls": a.calls, "uploads": a.uploads,
		"garbage": a.garbage, "the contract": a.contract,
	} {
		t.Run(name, func(t *testing.T) {
			attack(t, small)
			if _, b, err := storage.Read(ctx, sys.Container, "victim/cat"); err != nil || string(b) != small {
				t.Errorf("the victim's picture has %d bytes: %v", len(b), err)
			}
		})
	}
	var got []string
	for _, name := range harness.BlobNames(t, sys) {
		if user, ok := strings.CutSuffix(name, "/cat"); !ok || strings.Contains(user, "/") {
			t.Errorf("blob %q was stored", name)
		} else {
			got = append(got, user)
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"ignored", "mallory", "polyglot", "victim"}, got); diff != "" {
		t.Errorf("users with a picture (-want +got):\n%s", diff)
	}
	if after, err := storage.Blobs(ctx, secretContainer); err != nil || !cmp.Equal(before, after) {
		t.Errorf("the other container has %v: %v; want %v", after, err, before)
	}
	a.wantUndisturbed(t, pid)
	log, err := os.ReadFile(sys.Signer.Log.Path())
	if err != nil || bytes.Contains(log, []byte(`"panic"`)) || bytes.Contains(log, []byte("http: panic")) ||
		bytes.Contains(log, []byte("DATA RACE")) {
		t.Errorf("the log has a panic or a data race: %v", err)
	}
	harness.WantNoSecrets(t, sys)
}

// wantUndisturbed fails the test if the signer has restarted, has panicked, or has sent unexpected requests to storage.
func (a *attacker) wantUndisturbed(t *testing.T, pid int) {
	t.Helper()
	if a.sys.Signer.Pid() != pid || harness.Sum(t, a.sys.SignerOps, "cats_signer_http_panics_total") != 0 {
		t.Error("the signer has restarted or panicked")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, request := range a.unexpected {
		t.Errorf("the signer sent to storage: %s", request)
	}
}

// names uses names that may mean another blob, each for a whole life of a picture.
func (a *attacker) names(t *testing.T, small string) {
	rows := cases(t, "names.txt", "{secret}", secretContainer)
	each(len(rows), func(i int) {
		row := rows[i]
		for _, c := range [][2]string{{"PUT /v1/picture?", small}, {"GET /v1/link?", ""}, {"DELETE /v1/picture?", ""}} {
			r := a.send(t, call(c[0]+row[0], "", c[1]))
			switch {
			case len(row) == 1 && r.StatusCode != 422 || len(row) == 2 && r.StatusCode/100 != 2:
				t.Errorf("%s%.100s: %d %s", c[0], row[0], r.StatusCode, r.Body)
			case len(row) == 2 && c[1] == "" && r.StatusCode == 200:
				a.wantSignedURL(t, r, row[1], time.Hour)
			}
		}
	})
}

// ignored adds parameters and header fields that the contract does not have.
func (a *attacker) ignored(t *testing.T, small string) {
	more := map[string]string{}
	for _, row := range cases(t, "ignored.txt", "{secret}", secretContainer) {
		more[row[0]] += map[string]string{"query": "&"}[row[0]] + row[1]
	}
	for _, c := range [][2]string{{more["query"], ""}, {"", more["header"]}} {
		if r := a.send(t, call("PUT /v1/picture?user=ignored"+c[0], c[1], small)); r.StatusCode != 200 {
			t.Errorf("%q: %d %s", c, r.StatusCode, r.Body)
		}
		r := a.send(t, call("GET /v1/link?user=victim"+c[0], c[1], ""))
		if u := a.wantSignedURL(t, r, "victim", time.Hour); u.Query().Get("rscd") != "inline; filename=cat.png" {
			t.Errorf("the signed URL is %s", u)
		}
	}
	header, b, err := a.sys.Storage.Read(t.Context(), a.sys.Container, "ignored/cat")
	if err != nil || string(b) != small || header.Get("Content-Type") != "image/png" ||
		header.Get("Cache-Control")+header.Get("Content-Disposition")+header.Get("Content-Encoding")+header.Get("X-Ms-Meta-A") != "" {
		t.Errorf("%d bytes with %v are stored: %v", len(b), header, err)
	}
}

// wantSignedURL returns the signed URL in a response. It fails the test unless the URL serves the picture of user, for at most longest.
func (a *attacker) wantSignedURL(t *testing.T, r harness.Response, user string, longest time.Duration) *url.URL {
	t.Helper()
	u, err := url.Parse(field(r, "picture_url"))
	if err != nil || r.StatusCode != 200 {
		t.Errorf("no signed URL: %d %.200s: %v", r.StatusCode, r.Body, err)
		return new(url.URL)
	}
	query := u.Query()
	for name, values := range query {
		if !slices.Contains(strings.Fields("sv st se sr sp spr sig skoid sktid skt ske sks skv rsct rscd"), name) ||
			len(values) != 1 || strings.ContainsAny(values[0], "\r\n") {
			t.Errorf("the signed URL has %s=%q", name, values)
		}
	}
	if end, err := time.Parse(time.RFC3339, query.Get("se")); err != nil || time.Until(end) > longest {
		t.Errorf("the signed URL expires at %s; want at most %v from now", query.Get("se"), longest)
	}
	got := []string{u.Scheme + "://" + u.Host, u.Path, query.Get("sp"), query.Get("sr"), query.Get("spr"), query.Get("rsct")}
	if diff := cmp.Diff([]string{
		harness.Stack(t).FrontURL, "/" + a.sys.Container + "/" + user + "/cat", "r", "b", "https",
		"image/png",
	}, got); diff != "" {
		t.Errorf("the signed URL (-want +got):\n%s", diff)
	}
	return u
}

// signedURLs asks for all kinds of accepted lifetimes and download names.
func (a *attacker) signedURLs(t *testing.T, small string) {
	link := func(query string, longest time.Duration) *url.URL {
		t.Helper()
		r := a.send(t, call("GET /v1/link?user=victim"+query, "", ""))
		return a.wantSignedURL(t, r, "victim", longest)
	}
	for ttl, seconds := range map[string]time.Duration{"": 3600, "5": 5, "60": 60, "007": 7, "%2B60": 60, "86400": 86400} {
		link("&ttl_seconds="+ttl, seconds*time.Second)
	}
	for _, row := range cases(t, "downloads.txt") {
		download, name := row[0], row[1]+".png"
		r := harness.Send(t, "GET", link("&download="+download, time.Hour).String(), "")
		kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Disposition"))
		if err != nil || kind != "attachment" || !cmp.Equal(params, map[string]string{"filename": name}) ||
			r.Header.Get("Content-Type") != "image/png" || r.Header.Get("Set-Cookie") != "" || string(r.Body) != small {
			t.Errorf("download %.60s: %d %v, %v", download, r.StatusCode, r.Header, err)
		}
	}
}

// calls sends calls that the signer rejects.
func (a *attacker) calls(t *testing.T, small string) {
	deletes := strings.Repeat(call("DELETE /v1/picture?user=victim", "{keep}", ""), 50)
	rows := cases(t, "calls.txt", "{small}", small, "{chunks}", "1000\r\n"+small+"\r\n0\r\n\r\n", "{deletes}", deletes, "{secret}",
		secretContainer)
	each(len(rows), func(i int) {
		row := append(rows[i], "", "")
		responses := a.exchange(t, call(row[1], strings.TrimPrefix(row[2], "-"), row[3]), false)
		status := "400" // a lost one, since the signer resets connections with unread data
		if len(responses) > 0 {
			status = fmt.Sprint(responses[0].StatusCode)
		}
		if !strings.Contains(row[0], status) && (row[0] != "4xx" || status[0] != '4') {
			t.Errorf("%.200q: %s; want %s", row[1:], status, row[0])
		}
		for _, r := range responses {
			if r.StatusCode/100 == 2 {
				t.Errorf("%.200q: a request in the body got %d", row[1:], r.StatusCode)
			}
		}
	})
	// A polyglot of GIF and script is a GIF for browsers, since storage returns that type.
	polyglot := "GIF89a/*" + strings.Repeat(" ", 3100) + "*/=1;<script>alert(1)</script>"
	r := a.send(t, call("PUT /v1/picture?user=polyglot", "Content-Type: text/html\r\n", polyglot))
	if field(r, "content_type") != "image/gif" {
		t.Errorf("a polyglot: %d %s", r.StatusCode, r.Body)
	}
}

// uploads misuses upload sessions.
func (a *attacker) uploads(t *testing.T, small string) {
	session := func(user, query string, size int) harness.UploadSession {
		t.Helper()
		r := a.send(t, call(fmt.Sprintf("POST /v1/uploads?user=%s&size=%d%s", url.QueryEscape(user), size, query), "", ""))
		u, err := url.Parse(field(r, "upload_url"))
		if err != nil || r.StatusCode != 200 {
			t.Fatalf("an upload session of %q: %d %.200s: %v", user, r.StatusCode, r.Body, err)
		}
		q := u.Query()
		end, err := time.Parse(time.RFC3339, q.Get("se"))
		want := []string{map[bool]string{true: "w", false: "c"}[size > 64<<20], "b", "https", harness.Stack(t).FrontURL}
		if diff := cmp.Diff(want, []string{q.Get("sp"), q.Get("sr"), q.Get("spr"), u.Scheme + "://" + u.Host}); diff != "" ||
			err != nil || time.Until(end) > time.Hour || !stagedForm.MatchString(strings.TrimPrefix(u.Path, "/"+a.sys.Container+"/")) {
			t.Errorf("the upload URL of %q is %s", user, u)
		}
		return harness.UploadSession{ID: field(r, "id"), URL: u.String()}
	}
	for _, user := range []string{
		"victim", "a b", "猫", "cats-api", "cats-api-upload-1-x", "?comp=list", "#", "%2e%2e", "a&sp=rwd",
		strings.Repeat("x", 128),
	} {
		session(user, "", len(small))
		session(user, "", 65<<20)
	}
	session("victim", "&ttl_seconds=86400&permission=rwdl&container="+secretContainer+"&blob=victim%2Fcat&name=victim%2Fcat", 9)
	own := session("mallory", "", len(small))
	commit := func(user, id, more string) harness.Response {
		t.Helper()
		r := a.send(t, call("POST /v1/commit?user="+url.QueryEscape(user)+"&upload_id="+url.QueryEscape(id)+more, "", ""))
		return r
	}
	for _, id := range []string{
		own.ID + "/..", own.ID + "\r\nx-ms-a: b", own.ID + "%00", own.ID + "?comp=list",
		strings.Replace(own.ID, "-", "--", 1), strings.ToLower(own.ID),
	} {
		if r := commit("mallory", id, ""); r.StatusCode/100 != 4 {
			t.Errorf("a commit of %q: %d %s", id, r.StatusCode, r.Body)
		}
	}
	own.Send(t, strings.NewReader(small), int64(len(small)))
	for _, other := range []string{"victim", "mallor", "Mallory", "mallory "} {
		if r := commit(other, own.ID, ""); r.StatusCode != 404 {
			t.Errorf("mallory's upload, committed for %q: %d %s", other, r.StatusCode, r.Body)
		}
	}
	for _, more := range []string{
		"&md5=00", "&md5=zz", "&if_match=x", "&if_none_match=%0d%0a", "&upload_id=" + own.ID,
		"&user=victim", "&if_match=%22never%22",
	} {
		if r := commit("mallory", own.ID, more); r.StatusCode/100 != 4 {
			t.Errorf("a commit with %s: %d %s", more, r.StatusCode, r.Body)
		}
	}
	r := commit("mallory", own.ID, "&source=https%3A%2F%2Fexample.com%2Fx&container="+secretContainer)
	if field(r, "content_type") != "image/png" {
		t.Errorf("the valid commit: %d %s", r.StatusCode, r.Body)
	}
}

// garbage sends bytes that are no request.
func (a *attacker) garbage(t *testing.T, _ string) {
	rows := cases(t, "garbage.txt", "{h}", " HTTP/1.1\r\nHost: localhost\r\nCats-Contract: 1\r\n")
	random := rand.New(rand.NewPCG(1, 5))
	for range 30 {
		b := make([]byte, 1+random.IntN(4<<10))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		rows = append(rows, []string{string(b)})
	}
	each(len(rows), func(i int) { a.exchange(t, rows[i][0], true) })
}

// contract makes the largest permitted requests, and the next larger ones.
func (a *attacker) contract(t *testing.T, _ string) {
	for _, row := range cases(t, "contract.txt", "{full}", string(harness.Picture(1<<20, 'm'))) {
		row = append(row, "", "")
		if r := a.send(t, call(row[1], "", row[3])); fmt.Sprint(r.StatusCode) != row[0] {
			t.Errorf("%s: %d %s; want %s", row[1], r.StatusCode, r.Body, row[0])
		}
	}
}
