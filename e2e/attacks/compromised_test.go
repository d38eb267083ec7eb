package attacks

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
)

var stagedForm = regexp.MustCompile(`^/e2e-[0-9]+/cats-api/upload/[0-9]{10}-[0-9a-f]{32}$`)

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
	a.play(t, []string{"200", "PUT /v1/picture?user=victim", "", small})
	for name, attack := range map[string]func(*testing.T, string){
		"names": a.names, "ignored fields": a.ignored, "calls": a.calls, "uploads": a.uploads,
		"garbage": a.garbage, "the contract": a.contract,
	} {
		t.Run(name, func(t *testing.T) {
			attack(t, small)
			if _, b, err := storage.Read(ctx, sys.Container, "victim/cat"); err != nil || string(b) != small {
				t.Errorf("the victim's picture has %d bytes: %v", len(b), err)
			}
		})
	}
	want := []string{"ignored/cat", "mallory/cat", "polyglot/cat", "victim/cat"}
	if diff := cmp.Diff(want, harness.BlobNames(t, sys)); diff != "" {
		t.Errorf("the blobs (-want +got):\n%s", diff)
	}
	if after, err := storage.Blobs(ctx, secretContainer); err != nil || !cmp.Equal(before, after) {
		t.Errorf("the other container has %v: %v; want %v", after, err, before)
	}
	a.wantUndisturbed(t, pid)
	harness.WantNoSecrets(t, sys)
}

// play makes calls in turn: the expected statuses ("4xx" stands for all of 400 to 499), method and target, more header lines ("-" for
// none), the body, and the user and the longest lifetime in seconds of the signed URL in the response.
func (a *attacker) play(t *testing.T, rows ...[]string) {
	t.Helper()
	for _, row := range rows {
		row = append(slices.Clone(row), "", "", "", "")
		responses := a.exchange(t, call(row[1], strings.TrimPrefix(row[2], "-"), row[3]), false)
		status := "400" // a lost one, since the signer resets connections with unread data
		if len(responses) > 0 {
			status = fmt.Sprint(responses[0].StatusCode)
		}
		if !strings.Contains(row[0], status) && row[0] != status[:1]+"xx" {
			t.Errorf("%.200q: %s; want %s", row[1:], status, row[0])
			continue
		}
		for _, r := range responses[min(1, len(responses)):] {
			if r.StatusCode/100 == 2 {
				t.Errorf("%.200q: a request in the body got %d", row[1:], r.StatusCode)
			}
		}
		if seconds, err := strconv.Atoi(row[5]); err == nil {
			a.wantSignedURL(t, responses[0], row[4], time.Duration(seconds)*time.Second)
		}
	}
}

// names uses names that may mean another blob, each for a whole life of a picture.
func (a *attacker) names(t *testing.T, small string) {
	rows := harness.Table(t, "names.txt", "{secret}", secretContainer)
	harness.Each(len(rows), func(i int) {
		query, user, seconds, status := rows[i][0], "", "", "422"
		if len(rows[i]) == 2 {
			user, seconds, status = rows[i][1], "3600", "2xx"
		}
		a.play(t,
			[]string{status, "PUT /v1/picture?" + query, "", small},
			[]string{status, "GET /v1/link?" + query, "", "", user, seconds},
			[]string{status, "DELETE /v1/picture?" + query})
	})
}

// ignored adds parameters and header fields that the contract does not have.
func (a *attacker) ignored(t *testing.T, small string) {
	var query, header string
	for _, row := range harness.Table(t, "ignored.txt", "{secret}", secretContainer) {
		if row[0] == "query" {
			query += "&" + row[1]
		} else {
			header += row[1]
		}
	}
	for _, more := range [][2]string{{query, ""}, {"", header}} {
		a.play(t, []string{"200", "PUT /v1/picture?user=ignored" + more[0], more[1], small})
		u := a.wantSignedURL(t, a.send(t, call("GET /v1/link?user=victim"+more[0], more[1], "")), "victim", time.Hour)
		if u.Query().Get("rscd") != "inline; filename=cat.png" {
			t.Errorf("the signed URL is %s", u)
		}
	}
	stored, b, err := a.sys.Storage.Read(t.Context(), a.sys.Container, "ignored/cat")
	if err != nil || string(b) != small || stored.Get("Content-Type") != "image/png" ||
		stored.Get("Cache-Control")+stored.Get("Content-Disposition")+stored.Get("Content-Encoding")+stored.Get("X-Ms-Meta-A") != "" {
		t.Errorf("%d bytes with %v are stored: %v", len(b), stored, err)
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
	got := []string{u.Scheme + "://" + u.Host + u.Path, query.Get("sp"), query.Get("sr"), query.Get("spr"), query.Get("rsct")}
	want := []string{harness.Stack(t).FrontURL + "/" + a.sys.Container + "/" + user + "/cat", "r", "b", "https", "image/png"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the signed URL (-want +got):\n%s", diff)
	}
	return u
}

// calls makes calls that the signer rejects.
func (a *attacker) calls(t *testing.T, small string) {
	deletes := strings.Repeat(call("DELETE /v1/picture?user=victim", "{keep}", ""), 50)
	rows := harness.Table(t, "calls.txt", "{small}", small, "{chunks}", "1000\r\n"+small+"\r\n0\r\n\r\n", "{deletes}", deletes,
		"{secret}", secretContainer)
	harness.Each(len(rows), func(i int) { a.play(t, rows[i]) })
}

// uploads misuses upload sessions.
func (a *attacker) uploads(t *testing.T, small string) {
	session := func(size int, query string) harness.UploadSession {
		t.Helper()
		r := a.send(t, call(fmt.Sprintf("POST /v1/uploads?size=%d&%s", size, query), "", ""))
		u, err := url.Parse(field(r, "upload_url"))
		if err != nil || r.StatusCode != 200 {
			t.Fatalf("an upload session of %q: %d %.200s: %v", query, r.StatusCode, r.Body, err)
		}
		q := u.Query()
		end, err := time.Parse(time.RFC3339, q.Get("se"))
		permission := map[bool]string{true: "w", false: "c"}[size > 64<<20]
		want := []string{permission, "b", "https", harness.Stack(t).FrontURL}
		if diff := cmp.Diff(want, []string{q.Get("sp"), q.Get("sr"), q.Get("spr"), u.Scheme + "://" + u.Host}); diff != "" ||
			err != nil || time.Until(end) > time.Hour || !stagedForm.MatchString(u.Path) {
			t.Errorf("the upload URL of %q is %s", query, u)
		}
		return harness.UploadSession{ID: field(r, "id"), URL: u.String()}
	}
	for _, row := range harness.Table(t, "sessions.txt", "{secret}", secretContainer) {
		session(len(small), row[0])
		session(65<<20, row[0])
	}
	own := session(len(small), "user=mallory")
	own.Send(t, []byte(small))
	a.play(t, harness.Table(t, "commits.txt", "{id}", own.ID, "{lower id}", strings.ToLower(own.ID), "{secret}", secretContainer)...)
}

// garbage sends bytes that are no request.
func (a *attacker) garbage(t *testing.T, _ string) {
	rows := harness.Table(t, "garbage.txt", "{h}", " HTTP/1.1\r\nHost: localhost\r\nCats-Contract: 1\r\n")
	for i := range 30 {
		rows = append(rows, []string{string(harness.Random(100+i*100, uint64(i))[64:])})
	}
	harness.Each(len(rows), func(i int) { a.exchange(t, rows[i][0], true) })
}

// contract makes the largest permitted requests, and the next larger ones.
func (a *attacker) contract(t *testing.T, _ string) {
	a.play(t, harness.Table(t, "contract.txt", "{full}", string(harness.Picture(1<<20, 'm')))...)
}
