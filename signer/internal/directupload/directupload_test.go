package directupload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/apierror"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/blobstore"
	"cats.example/signer/internal/signing"
	"cats.example/signer/internal/storage"
	"cats.example/signer/internal/storagetest"
)

// fixture has Uploads with a key, their storage, and a session of mia with a staged PNG.
type fixture struct {
	*Uploads
	server *storagetest.Server
	log    *storagetest.Log
	mia    signerapi.User
	id     string // of the session
	staged string // name of the staged blob
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	transport, pools := storage.NewTransport(), ratelimit.NewPools("test", 0.0625, prometheus.NewRegistry())
	f := &fixture{server: storagetest.New(t, transport), log: &storagetest.Log{}, mia: storagetest.User(t, "mia")}
	log, reg := slog.New(slog.NewTextHandler(f.log, nil)), prometheus.NewRegistry()
	client, err := storage.New(storage.Options{
		Settings:   storage.Settings{AccountURL: storagetest.AccountURL, Container: "cats", BlobName: "cat"},
		Credential: &storagetest.Credential{}, Transport: transport, Retry: &policy.RetryOptions{MaxRetries: -1},
	}, log, reg)
	if err != nil {
		t.Fatal(err)
	}
	keys := signing.New(signing.Settings{LinkTTL: time.Hour, LinkMaxTTL: 24 * time.Hour}, client, sessionTTL, log, reg)
	if _, err := keys.Fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	store := blobstore.New(blobstore.Options{
		Limits: storagetest.Limits, Storage: client, Keys: keys, Uploads: pools.New("uploads", 192), Chunked: pools.New("chunked uploads", 16),
	}, log, reg)
	f.Uploads = New(Options{
		Settings: Settings{MaxDirectUploadSize: MaxSize}, Limits: storagetest.Limits, Storage: client, Keys: keys, Store: store, Commits: pools.New("commits", 16),
	}, log, reg)
	content := storagetest.PNG(100)
	s := newSession(time.Now(), int64(len(content)))
	f.id, f.staged = s.id, s.blobName(f.mia)
	f.server.Put(f.staged, content, "")
	f.server.Calls()
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
		for _, c := range []struct {
			size       int64
			permission string
			block      int64
		}{
			{1, "c", 0}, {maxPutBlob, "c", 0}, {maxPutBlob + 1, "w", blockSize}, {MaxSize, "w", blockSize},
		} {
			got, err := f.StartUpload(t.Context(), f.mia, c.size)
			if err != nil {
				t.Fatal(err)
			}
			u, err := url.Parse(string(got.URL))
			if err != nil {
				t.Fatal(err)
			}
			q := u.Query()
			if q.Get("sp") != c.permission || q.Get("sr") != "b" || q.Get("spr") != "https" || got.BlockSize != c.block || q.Get("se") != got.ExpiresAt.Format(time.RFC3339) {
				t.Errorf("%d bytes: blocks of %d, until %v, by %v", c.size, got.BlockSize, got.ExpiresAt, q)
			}
			if !strings.HasPrefix(u.Path, "/cats/"+stagedPrefix) || strings.Count(u.Path, "/") != 4 || strings.Contains(u.Path, "mia") || !got.ExpiresAt.Equal(time.Now().Add(sessionTTL)) {
				t.Errorf("it is for %s until %v", u.Path, got.ExpiresAt)
			}
			if c.block > 0 && c.size/c.block >= 50_000 {
				t.Errorf("%d bytes are too many blocks", c.size)
			}
		}
		for size, want := range map[int64]error{0: apierror.ErrEmpty, -1: apierror.ErrEmpty, MaxSize + 1: apierror.ErrTooLarge} {
			if _, err := f.StartUpload(t.Context(), f.mia, size); !errors.Is(err, want) {
				t.Errorf("%d bytes: %v; want %v", size, err, want)
			}
		}
		f.opts.MaxDirectUploadSize = 0
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
	if end, ok := sessionEnd(name); !ok || !end.Equal(now.Add(sessionTTL)) {
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
	for _, id := range []string{"", "-", "--", "1-2", "x-7-A", "1-x-A", "-1-7-A", "1--7-A", "99999999999-7-A", "1-9223372036854775807-A", "9999999999-7-A", "1-7-A/..", "1-7-" + strings.Repeat("A", 200)} {
		if got, err := parseSession(id); !errors.Is(err, apierror.ErrNoUpload) {
			t.Errorf("%q is the session %+v, %v", id, got, err)
		}
	}
	hash := strings.Repeat("a", 32)
	for _, name := range []string{
		"mia/cat", "cats-api/cat", "cats-api-upload-1800003600-" + hash + "/cat", "cats-api-doctor-1-a", stagedPrefix, "x" + name, name + "x", name + "/cat", name + "\n",
		stagedPrefix + "1", stagedPrefix + "1-" + hash, stagedPrefix + "10000000000-" + hash, stagedPrefix + "xxxxxxxxxx-" + hash, stagedPrefix + "1800003600-" + hash[1:], stagedPrefix + "1800003600-" + hash[1:] + "A",
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
	f.Add("8589934591-1-A-B", "猫")
	f.Add("8589934592-1-A", strings.Repeat("x", 128))
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

func TestCommitCopiesAndDeletesTheStagedBlob(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
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
		if diff := cmp.Diff([]string{"HEAD", "HEAD", "GET", "PUT block", "PUT blocklist", "DELETE"}, f.server.Calls()); diff != "" {
			t.Error(diff)
		}
		if again, err := f.commit(t.Context()); err != nil || again.ETag != info.ETag {
			t.Errorf("the same commit again: %+v, %v", again, err)
		}
	})
}

func TestCommitIsPossibleShortlyAfterTheSession(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		f.server.Change(func(blobs map[string]*storagetest.Blob) { clear(blobs) })
		time.Sleep(sessionTTL + commitGrace - time.Second)
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
		caller := signerapi.WithCaller(t.Context(), "mia")
		release, err := f.opts.Commits.Take("mia")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.commit(caller); !errors.Is(err, apierror.ErrRateLimited) {
			t.Errorf("a caller over its share: %v", err)
		}
		release()
		for range 16 {
			if _, err := f.opts.Commits.Take(""); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := f.commit(caller); !errors.Is(err, apierror.ErrOverloaded) {
			t.Errorf("with all slots taken: %v", err)
		}
	})
}

// The copies of a commit must not be the calls by which the circuit breaker closes.
func TestHalfOpenBreakerIsProbedBeforeCopies(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		f.server.SetFault(storagetest.Rejecting(500, "InternalError", nil))
		var err error
		for i := 0; !errors.Is(err, storage.ErrBreakerOpen); i++ {
			if _, err = f.commit(t.Context()); i > 20 {
				t.Fatalf("the breaker does not open: %v", err)
			}
		}
		f.server.SetFault(nil)
		time.Sleep(6 * time.Second)
		f.server.Calls()
		if _, err := f.commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(f.server.Calls()); got != "[HEAD HEAD HEAD HEAD HEAD HEAD GET PUT block PUT blocklist DELETE]" {
			t.Error(got)
		}
	})
}

func TestFailedCommitNamesTheReason(t *testing.T) {
	const archive, headers, picture = "the uploaded blob is in the archive tier", "no x-ms header besides x-ms-blob-type", "the stored picture is in the archive tier"
	png, none := storagetest.PNG(100), signerapi.CommitOptions{}
	state := func(call, code, source string) storagetest.Handler { // of the staged blob or, with another call than HEAD and GET, the picture
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !storagetest.Is(call)(r) || call == "HEAD" && strings.HasSuffix(r.URL.Path, "/cat") {
				return false
			}
			if source != "" {
				w.Header().Set("X-Ms-Copy-Source-Error-Code", source)
			}
			storagetest.Reject(w, http.StatusConflict, code)
			return true
		}
	}
	for i, c := range []struct {
		content string
		opts    signerapi.CommitOptions
		fault   storagetest.Handler
		want    *apierror.Error
		detail  string
	}{
		{png, none, state("HEAD", "BlobUsesCustomerSpecifiedEncryption", ""), apierror.ErrRejectedByStorage, headers},
		{png, none, state("GET", "BlobArchived", ""), apierror.ErrArchived, archive},
		{png, none, state("GET", "BlobBeingRehydrated", ""), apierror.ErrArchived, archive},
		{png, none, state("GET", "MadeUp", ""), apierror.ErrRejectedByStorage, headers},
		{png, none, state("PUT block", "CannotVerifyCopySource", ""), apierror.ErrArchived, archive},
		{png, none, state("PUT block", "CannotVerifyCopySource", "BlobArchived"), apierror.ErrArchived, archive},
		{png, none, state("PUT block", "CannotVerifyCopySource", "BlobUsesCustomerSpecifiedEncryption"), apierror.ErrRejectedByStorage, headers},
		{png, none, state("PUT block", "BlobArchived", ""), apierror.ErrArchived, picture},
		{png, none, state("PUT block", "BlobBeingRehydrated", ""), apierror.ErrArchived, picture},
		{png, none, state("PUT block", "InvalidBlobType", ""), apierror.ErrRejectedByStorage, "the current state of the blob"},
		{png, none, state("PUT blocklist", "BlobArchived", ""), apierror.ErrArchived, picture},
		{png, none, state("PUT blocklist", "BlobImmutableDueToPolicy", ""), apierror.ErrImmutable, ""},
		{png, none, state("PUT blocklist", "LeaseIdMissing", ""), apierror.ErrLeased, ""},
		{png, none, storagetest.Rejecting(400, "Md5Mismatch", storagetest.Is("PUT block")), apierror.ErrDigestMismatch, ""},
		{png, none, storagetest.Rejecting(412, "SourceConditionNotMet", storagetest.Is("PUT block")), apierror.ErrConflict, "changed during the commit"},
		{png, none, storagetest.Rejecting(500, "InternalError", storagetest.Is("PUT block")), apierror.ErrStorageUnavailable, ""},
		{png, signerapi.CommitOptions{MD5: make([]byte, 16)}, nil, apierror.ErrDigestMismatch, ""},
		{png, signerapi.CommitOptions{Preconditions: signerapi.Preconditions{IfMatch: `"0x99"`}}, nil, apierror.ErrPreconditionFailed, ""},
		{png[:99], none, nil, apierror.ErrIncomplete, "99 bytes of 100"},
		// Another commit of these would have the same result, so the staged blob is deleted.
		{strings.Repeat("x", 100), none, nil, apierror.ErrUnsupportedMediaType, ""},
		{"GIF89a\xff\xff\xff\xff\x00\x00\x00" + strings.Repeat("x", 87), none, nil, apierror.ErrTooLarge, ""},
	} {
		bubble(t, func(t *testing.T, f *fixture) {
			f.server.Put(f.staged, c.content, "")
			f.server.SetFault(c.fault)
			_, err := f.CommitUpload(t.Context(), f.mia, f.id, c.opts)
			deleted := f.server.Blob(f.staged).Content == ""
			if !errors.Is(err, c.want) || !strings.Contains(apierror.AsError(err).Detail, c.detail) || deleted != (c.content[:8] != png[:8]) || f.server.Blob("mia/cat").Content != "" {
				t.Errorf("%d: %v, %q; the staged blob was deleted: %t; want %v", i, err, apierror.AsError(err).Detail, deleted, c.want)
			}
			if calls := f.server.Calls(); c.want == apierror.ErrPreconditionFailed && slices.Contains(calls, "PUT block") {
				t.Errorf("the precondition was checked after the copy: %v", calls)
			}
			f.server.SetFault(nil)
			if _, err := f.commit(t.Context()); c.content == png && err != nil {
				t.Errorf("%d, and again: %v", i, err)
			}
		})
	}
}

// Another replica may have committed the same upload before the picture got that state.
func TestCommitFindsThePictureOfAnotherReplica(t *testing.T) {
	for _, code := range []string{"ConditionNotMet", "LeaseIdMissing", "BlobImmutableDueToPolicy", "BlobArchived", "MadeUp"} {
		bubble(t, func(t *testing.T, f *fixture) {
			f.server.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
				if !storagetest.Is("PUT blocklist")(r) {
					return false
				}
				f.server.Put("mia/cat", "theirs", "image/png")
				f.server.Change(func(blobs map[string]*storagetest.Blob) {
					blobs["mia/cat"].Metadata = http.Header{"X-Ms-Meta-Catsupload": {f.staged + " " + blobs[f.staged].ETag}}
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

// The client may upload another version while the commit deletes the staged blob.
func TestCommitKeepsLaterVersions(t *testing.T) {
	for what, content := range map[string]string{"stored": storagetest.PNG(100), "rejected": strings.Repeat("x", 100)} {
		bubble(t, func(t *testing.T, f *fixture) {
			f.server.Put(f.staged, content, "")
			f.server.SetFault(func(_ http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodDelete {
					f.server.Put(f.staged, "later", "")
				}
				return false
			})
			if _, err := f.commit(t.Context()); (err == nil) != (what == "stored") || f.log.String() != "" || f.server.Blob(f.staged).Content != "later" {
				t.Errorf("%s: %v; the log has %s", what, err, f.log)
			}
			for _, outcome := range []string{deletedCommitted, deletedRejected} {
				if got := testutil.ToFloat64(f.deleted.WithLabelValues(outcome)); got != 0 {
					t.Errorf("%s: %v are counted as %s", what, got, outcome)
				}
			}
		})
	}
}

// expire makes n expired uploads and returns their names.
func (f *fixture) expire(n int) (names []string) {
	f.server.Change(func(blobs map[string]*storagetest.Blob) {
		clear(blobs)
		for i := range n {
			name := fmt.Sprintf("%s%010d-%032x", stagedPrefix, 900_000_000+i, i) // before the bubble's time
			names = append(names, name)
			blobs[name] = &storagetest.Blob{Content: "x", ETag: fmt.Sprintf(`"0xe%d"`, i)}
		}
	})
	return names
}

func TestSweepDeletesExpiredUploadsInParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 600
		f := newFixture(t)
		f.expire(n)
		kept := newSession(time.Now(), 1).blobName(f.mia)
		f.server.Put(kept, "x", "")
		f.server.Put("mia/cat", "cat", "image/png")
		var mu sync.Mutex
		inFlight, most := 0, 0
		f.server.SetEarly(func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodDelete {
				mu.Lock()
				inFlight++
				most = max(most, inFlight)
				mu.Unlock()
				time.Sleep(time.Millisecond)
				mu.Lock()
				inFlight--
				mu.Unlock()
			}
			return false
		})
		if err := f.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{kept, "mia/cat"}, f.server.Names()); diff != "" || most != parallelDeletes {
			t.Errorf("%d at once; left: %s", most, diff)
		}
		if got := testutil.ToFloat64(f.deleted.WithLabelValues(deletedExpired)); got != n {
			t.Errorf("%v are counted", got)
		}
		time.Sleep(sessionTTL + sweepGrace + time.Second)
		if err := f.sweep(t.Context()); err != nil || f.server.Blob(kept).Content != "" {
			t.Errorf("after the session: %v", err)
		}
	})
}

func TestSweepGoesOnAfterErrors(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		names := f.expire(600)
		failing := []string{names[0], names[200], names[400], names[599]}
		f.server.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
			for i, name := range failing {
				if r.Method == http.MethodDelete && strings.HasSuffix(r.URL.Path, name) {
					storagetest.Reject(w, []int{403, 409, 404, 500}[i], "Broken")
					return true
				}
			}
			return false
		})
		if err := f.sweep(t.Context()); err == nil {
			t.Error("no error")
		}
		if diff := cmp.Diff(failing, f.server.Names()); diff != "" {
			t.Errorf("left: %s", diff)
		}
		f.server.SetFault(nil)
		if err := f.sweep(t.Context()); err != nil || len(f.server.Names()) > 0 {
			t.Errorf("the next sweep: %v, and %v are left", err, f.server.Names())
		}
	})
}

func TestSweepKeepsLaterVersions(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		names := f.expire(9)
		f.server.Change(func(blobs map[string]*storagetest.Blob) {
			blobs[names[1]].ETag, blobs[names[2]].ETag = "", "" // blocks have no ETag, as Azure lists them, but do with Azurite
			for _, i := range []int{1, 2, 3, 6} {
				blobs[names[i]].Blocks = true
			}
			blobs[names[4]].Leased, blobs[names[5]].Leased = true, true
		})
		later := map[string]string{names[0]: "DELETE", names[2]: "PUT", names[3]: "DELETE", names[5]: "PUT lease"} // before the first such request
		f.server.SetFault(func(_ http.ResponseWriter, r *http.Request) bool {
			if name := strings.TrimPrefix(r.URL.Path, "/cats/"); later[name] != "" && storagetest.Is(later[name])(r) && f.server.Blob(name).Content != "later" {
				f.server.Put(name, "later", "")
			}
			return false
		})
		if err := f.sweep(t.Context()); err != nil || f.log.String() != "" {
			t.Errorf("%v, and the log has %s", err, f.log)
		}
		if diff := cmp.Diff([]string{names[0], names[2], names[3], names[5]}, f.server.Names()); diff != "" {
			t.Error(diff)
		}
		if got := testutil.ToFloat64(f.deleted.WithLabelValues(deletedExpired)); got != 5 {
			t.Errorf("%v are counted", got)
		}
	})
}

func TestSweepEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		f.expire(600)
		ctx, cancel := context.WithCancel(t.Context())
		f.server.SetEarly(func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodDelete {
				cancel()
			}
			return false
		})
		f.Run(ctx)
		if deleted := 600 - len(f.server.Names()); deleted > parallelDeletes || f.log.String() != "" {
			t.Errorf("%d were deleted after the context was canceled; the log has %s", deleted, f.log)
		}
	})
}

func TestSweepSurvivesResponsesWithoutListing(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		for _, body := range []string{"", "<EnumerationResults/>", "<html>proxy</html>"} {
			f.server.SetFault(func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Content-Type", "application/xml")
				_, _ = io.WriteString(w, body)
				return true
			})
			_ = f.sweep(t.Context()) // an error or none, but no panic
		}
	})
}
