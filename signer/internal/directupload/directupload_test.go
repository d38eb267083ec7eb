package directupload

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"cats.example/shared/apierror"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/blobstore"
	"cats.example/signer/internal/signing"
	"cats.example/signer/internal/storagetest"
)

// fixture has Uploads with a key, their storage, and a session of mia with a staged PNG.
type fixture struct {
	*Uploads
	server *storagetest.Server
	mia    signerapi.User
	id     string // of the session
	staged string // name of the staged blob
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	server, pools := storagetest.New(t), ratelimit.NewPools("test", 0.0625, prometheus.NewRegistry())
	keys := signing.New(signing.Settings{LinkTTL: time.Hour, LinkMaxTTL: 24 * time.Hour}, server.Client, SessionTTL, server.Logger, server.Registry)
	if _, err := keys.Fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, mia := newSession(time.Now(), 100), storagetest.User(t, "mia")
	f := &fixture{New(Options{
		Settings: Settings{MaxDirectUploadSize: MaxSize}, Limits: storagetest.Limits, Storage: server.Client, Keys: keys,
		Store:   blobstore.New(blobstore.Options{Storage: server.Client}, server.Logger, server.Registry),
		Commits: pools.New("commits", 16),
	}, server.Logger, server.Registry), server, mia, s.id, s.blobName(mia)}
	server.Put(f.staged, storagetest.PNG(100), "")
	server.Calls()
	return f
}

// bubble calls test with a new fixture in a bubble.
func bubble(t *testing.T, test func(*testing.T, *fixture)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newFixture(t)) })
}

func (f *fixture) commit(ctx context.Context) (signerapi.Info, error) {
	return f.CommitUpload(ctx, f.mia, f.id, signerapi.CommitOptions{})
}

func TestUploadURLWritesOneBlobForAnHour(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		end := time.Now().Add(SessionTTL).UTC().Format(time.RFC3339)
		for _, c := range []struct {
			size       int64
			permission string
			block      int64
			err        error
		}{
			{-1, "", 0, apierror.ErrEmpty},
			{0, "", 0, apierror.ErrEmpty},
			{maxPutBlob, "c", 0, nil},
			{maxPutBlob + 1, "w", blockSize, nil},
			{MaxSize, "w", blockSize, nil},
			{MaxSize + 1, "", 0, apierror.ErrTooLarge},
		} {
			got, err := f.StartUpload(t.Context(), f.mia, c.size)
			u, _ := url.Parse(string(got.URL))
			if q := u.Query(); !errors.Is(err, c.err) || q.Get("sp") != c.permission || got.BlockSize != c.block || err == nil && q.Get("se") != end {
				t.Errorf("%d bytes: %v, blocks of %d by %v", c.size, err, got.BlockSize, q)
			}
		}
		f.MaxDirectUploadSize = 0
		if _, err := f.StartUpload(t.Context(), f.mia, 1); !errors.Is(err, apierror.ErrTooLarge) {
			t.Errorf("with direct uploads off: %v", err)
		}
	})
}

func TestStagedNameDependsOnWholeSession(t *testing.T) {
	parsed := func(id string) session {
		s, err := parseSession(id)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	now, mia := time.Unix(1_800_000_000, 0), storagetest.User(t, "mia")
	one := newSession(now, 7)
	if again := parsed(one.id); again != one {
		t.Fatalf("%+v became %+v", one, again)
	}
	name := one.blobName(mia)
	if end, ok := sessionEnd(name); !ok || !end.Equal(now.Add(SessionTTL)) {
		t.Errorf("%s ends at %v, %v", name, end, ok)
	}
	seen := map[string]string{name: "itself"}
	for what, other := range map[string]string{
		"another user":    one.blobName(storagetest.User(t, "Mia")),
		"another session": newSession(now, 7).blobName(mia),
		"another size":    parsed(strings.Replace(one.id, "-7-", "-8-", 1)).blobName(mia),
		"one more zero":   parsed(strings.Replace(one.id, "-7-", "-07-", 1)).blobName(mia),
		"another end":     parsed(strings.Replace(one.id, "1800003600", "1800003601", 1)).blobName(mia),
	} {
		if as, ok := seen[other]; ok {
			t.Errorf("%s has the name of %s", what, as)
		}
		seen[other] = what
	}
	for _, id := range []string{
		"", "--", "1-2", strings.Replace(one.id, "1", "11", 1), strings.Replace(one.id, "-7-", "-x-", 1), strings.Replace(one.id, "-7-", "--7-", 1),
		strings.Replace(one.id, "-7-", "-9223372036854775807-", 1), one.id + "A", one.id + "/..", one.id + "\n",
	} {
		if got, err := parseSession(id); !errors.Is(err, apierror.ErrNoUpload) {
			t.Errorf("%q is the session %+v, %v", id, got, err)
		}
	}
	hash := strings.Repeat("a", 32)
	for _, name := range []string{
		"mia/cat", "cats-api/cat", "cats-api-upload-1800003600-" + hash + "/cat", stagedPrefix, "x" + name, name + "x", name + "/cat", name + "\n",
		stagedPrefix + "1-" + hash, stagedPrefix + "10000000000-" + hash, stagedPrefix + "xxxxxxxxxx-" + hash, stagedPrefix + "1800003600-" + hash[1:],
	} {
		if _, ok := sessionEnd(name); ok {
			t.Errorf("the sweeper would delete %q", name)
		}
	}
}

// FuzzSession checks that every accepted upload ID names one well-formed blob, which differs for another user and expires with
// the session.
func FuzzSession(f *testing.F) {
	f.Add(newSession(time.Unix(1_800_000_000, 0), 7).id, "mia")
	f.Add("0-0-", "a b")
	f.Add("9999999999-1-ABCDEFGHIJKLMNOPQRSTUVWXYZ", strings.Repeat("x", 128))
	f.Fuzz(func(t *testing.T, id, name string) {
		user, err := signerapi.ParseUser(name)
		if err != nil {
			return
		}
		s, err := parseSession(id)
		if err != nil {
			if !errors.Is(err, apierror.ErrNoUpload) {
				t.Fatalf("%q: %v", id, err)
			}
			return
		}
		blob := s.blobName(user)
		end, ok := sessionEnd(blob)
		if !ok || !end.Equal(s.end) || strings.Trim(strings.TrimPrefix(blob, stagedPrefix), "0123456789abcdef-") != "" || s.size < 0 {
			t.Fatalf("%q is %+v, for %q", id, s, blob)
		}
		if name != "x" && blob == s.blobName(storagetest.User(t, "x")) {
			t.Fatalf("%q is for two users", blob)
		}
	})
}

// The copies of a commit must not be the calls by which the circuit breaker closes.
func TestCommitCopiesAndDeletesTheStagedBlob(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		f.server.SetFault(storagetest.Rejecting(500, "InternalError", nil))
		for range 11 {
			_, _ = f.commit(t.Context())
		}
		f.server.Calls()
		time.Sleep(6 * time.Second)
		f.server.SetFault(func(_ http.ResponseWriter, r *http.Request) bool {
			if storagetest.Is("PUT block")(r) && (r.Header.Get("X-Ms-Source-If-Match") == "" || r.Header.Get("X-Ms-Source-Content-Md5") == "") {
				t.Errorf("the copy has no precondition or no MD5: %v", r.Header)
			}
			return false
		})
		info, err := f.commit(t.Context())
		stored := f.server.Blob("mia/cat")
		if err != nil || info.ETag != stored.ETag || stored.Content != storagetest.PNG(100) || stored.Type != "image/png" || f.server.Blob(f.staged).Content != "" {
			t.Errorf("%+v, %v; stored %+v", info, err, stored)
		}
		if got := fmt.Sprint(f.server.Calls()); got != "[HEAD HEAD HEAD GET PUT block PUT blocklist DELETE]" {
			t.Error(got)
		}
	})
}

func TestCommitIsPossibleShortlyAfterTheSession(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		f.server.Change(func(blobs map[string]*storagetest.Blob) { clear(blobs) })
		time.Sleep(SessionTTL + commitGrace - time.Second)
		for _, asked := range []bool{true, false} { // nothing is staged, so both commits have the same error
			if _, err := f.commit(t.Context()); !errors.Is(err, apierror.ErrNoUpload) || len(f.server.Calls()) > 0 != asked {
				t.Errorf("%v; storage was asked: %t", err, !asked)
			}
			time.Sleep(2 * time.Second)
		}
	})
}

func TestCommitTakesASlotOfTheCaller(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		f.server.SetFault(func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet {
				if _, err := f.commit(t.Context()); !errors.Is(err, apierror.ErrOverloaded) {
					t.Errorf("the same commit at the same time: %v", err)
				}
			}
			return false
		})
		if _, err := f.commit(t.Context()); err != nil {
			t.Error(err)
		}
		asMia, asTom := signerapi.WithCaller(t.Context(), "mia"), signerapi.WithCaller(t.Context(), "tom")
		_, _ = f.Commits.Take("mia")
		if _, err := f.commit(asMia); !errors.Is(err, apierror.ErrRateLimited) {
			t.Errorf("a caller over its share: %v", err)
		}
		for range 16 {
			_, _ = f.Commits.Take("")
		}
		if _, err := f.commit(asTom); !errors.Is(err, apierror.ErrOverloaded) {
			t.Errorf("with all slots taken: %v", err)
		}
	})
}

func TestFailedCommitNamesTheReason(t *testing.T) {
	png := storagetest.PNG(100)
	contents := map[string]string{
		"short": png[:99], "text": strings.Repeat("x", 100), "gif": "GIF89a\xff\xff\xff\xff\x00\x00\x00" + strings.Repeat("x", 87),
	}
	options := map[string]signerapi.CommitOptions{
		"md5": {MD5: make([]byte, 16)}, "large": {MD5: make([]byte, 16)}, "if_match": {Preconditions: signerapi.Preconditions{IfMatch: `"0x99"`}},
	}
	for _, row := range storagetest.Rows(t, "failed-commits.txt") {
		bubble(t, func(t *testing.T, f *fixture) {
			what, call, status, code, source, want, detail := row[0], row[1], row[2], row[3], row[4], row[5], row[6]
			if contents[what] != "" {
				f.server.Put(f.staged, contents[what], "")
			}
			id := f.id
			if what == "large" {
				id = newSession(time.Now(), blobstore.MaxVerifiedCopy+1).id
			}
			if call != "" {
				f.server.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
					if !storagetest.Is(call)(r) || call == "HEAD" && strings.HasSuffix(r.URL.Path, "/cat") {
						return false
					}
					if what == "large" {
						w.Header().Set("Content-Length", fmt.Sprint(blobstore.MaxVerifiedCopy+1))
					}
					if source != "" {
						w.Header().Set("X-Ms-Copy-Source-Error-Code", source)
					}
					storagetest.Reject(w, int(storagetest.Number(t, status)), code)
					return true
				})
			}
			_, err := f.CommitUpload(t.Context(), f.mia, id, options[what])
			e := apierror.AsError(err)
			deleted := f.server.Blob(f.staged).Content == ""
			if e.Code != want || !strings.Contains(e.Detail, detail) || deleted != (what == "text" || what == "gif") || f.server.Blob("mia/cat").Content != "" {
				t.Errorf("%q: %v, %q; the staged blob was deleted: %t", row, err, e.Detail, deleted)
			}
			if calls := f.server.Calls(); what == "if_match" && slices.Contains(calls, "PUT block") {
				t.Errorf("the precondition was checked after the copy: %v", calls)
			}
			f.server.SetFault(nil)
			if _, err := f.commit(t.Context()); contents[what] == "" && err != nil {
				t.Errorf("%q, and again: %v", row, err)
			}
		})
	}
}

// Another replica may have committed the same upload before the picture got that state.
func TestCommitFindsThePictureOfAnotherReplica(t *testing.T) {
	for _, code := range []string{"ConditionNotMet", "MadeUp"} {
		bubble(t, func(t *testing.T, f *fixture) {
			f.server.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
				if !storagetest.Is("PUT blocklist")(r) {
					return false
				}
				f.server.Put("mia/cat", "theirs", "image/png")
				f.server.Change(func(blobs map[string]*storagetest.Blob) {
					blobs["mia/cat"].Metadata = http.Header{"X-Ms-Meta-Catsid": {f.staged + " " + blobs[f.staged].ETag}}
				})
				storagetest.Reject(w, map[bool]int{true: 412, false: 409}[code == "ConditionNotMet"], code)
				return true
			})
			if info, err := f.commit(t.Context()); err != nil || info.Size != int64(len("theirs")) {
				t.Errorf("%s: %+v, %v", code, info, err)
			}
		})
	}
}
