package blobstore

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/apierror"
	"cats.example/shared/picture"
	"cats.example/shared/signerapi"
)

// direct has storage answer without a network, which a bubble has none of.
type direct struct {
	storage http.Handler

	mu    sync.Mutex
	lost  error         // in place of an answer
	ahead time.Duration // our clock, of storage's
	onKey func()        // before a key is given
}

func (d *direct) set(lost error, ahead time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lost, d.ahead = lost, ahead
}

func (d *direct) Do(r *http.Request) (*http.Response, error) {
	d.mu.Lock()
	lost, ahead, onKey := d.lost, d.ahead, d.onKey
	d.mu.Unlock()
	if onKey != nil && r.URL.Query().Get("comp") == "userdelegationkey" {
		onKey()
	}
	if lost != nil {
		return nil, &url.Error{Op: r.Method, URL: r.URL.String(), Err: lost}
	}
	w := httptest.NewRecorder()
	w.Header().Set("Date", time.Now().Add(-ahead).UTC().Format(http.TimeFormat))
	if r.Body == nil {
		r.Body = http.NoBody
	}
	d.storage.ServeHTTP(w, r)
	resp := w.Result()
	resp.Request = r
	return resp, nil
}

// tried is a store that runs in a bubble, with a picture of x, of which links can be
// refused.
type tried struct {
	*Store
	back  *storage
	way   *direct
	log   *bytes.Buffer
	heads []url.Values // of trials, as storage saw them

	mu     sync.Mutex
	refuse func(link url.Values) (status int, code string) // 0 for storage's own answer
}

// refusing says from now on what storage answers to links.
func (s *tried) refusing(f func(link url.Values) (int, string)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = f
}

func (s *tried) link(t *testing.T) (url.Values, error) {
	t.Helper()
	l, err := s.Link(t.Context(), user(t, "x"), signerapi.LinkOptions{})
	if err != nil {
		return nil, err
	}
	synctest.Wait()
	u, err := url.Parse(string(l.URL))
	if err != nil {
		t.Fatal(err)
	}
	return u.Query(), nil
}

// trials is how many there were since it was asked last.
func (s *tried) trials() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.heads)
	s.heads = nil
	return n
}

func inBubble(t *testing.T, body func(*testing.T, *tried)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &tried{back: &storage{blobs: map[string]string{"/cats/x/cat": "cat"}, types: map[string]string{}}, log: new(bytes.Buffer)}
		s.back.blocks = map[string]string{}
		s.back.fault = func(w http.ResponseWriter, r *http.Request) bool {
			q := r.URL.Query()
			if q.Get("sig") == "" {
				return false
			}
			if r.Header.Get("Authorization") != "" || r.Method != http.MethodHead || r.URL.Path != "/cats/x/cat" {
				t.Errorf("a link is tried by %s %s with %v", r.Method, r.URL.Path, r.Header)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.heads = append(s.heads, q)
			if s.refuse == nil {
				return false
			}
			status, code := s.refuse(q)
			if status != 0 {
				refuse(w, status, code)
			}
			return status != 0
		}
		s.way = &direct{storage: s.back}
		var err error
		if s.Store, err = New(Options{
			Settings: Settings{
				AccountURL: "https://acct.blob.localhost", LinkBaseURL: "https://cdn.example.com", Container: "cats", BlobName: "cat",
				LinkTTL: time.Hour, LinkMaxTTL: 24 * time.Hour,
			},
			Limits: picture.Limits{MaxPictureSize: 32 << 20, AcceptedTypes: []string{"image/png"}, MaxPixels: 100}, Credential: &cred{}, Transport: s.way, Slots: newSlots(),
		}, slog.New(slog.NewJSONHandler(s.log, nil)), prometheus.NewRegistry()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		ready := make(chan struct{})
		close(ready)
		go func() {
			if err := s.Run(ctx, ready); err != nil {
				t.Error(err)
			}
		}()
		synctest.Wait()
		body(t, s)
	})
}

func TestALinkIsTriedOnceAMinuteWhileSomeAreGiven(t *testing.T) {
	inBubble(t, func(t *testing.T, s *tried) {
		all := 0
		for seconds := range 300 { // all of them the same link
			if _, err := s.link(t); err != nil {
				t.Fatal(err)
			}
			if all += s.trials(); all == 0 || all > 1+seconds/45 {
				t.Errorf("after %d s, %d trials", seconds, all)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(2 * time.Minute) // what was given since the last one
		if all += s.trials(); all < 5 {
			t.Errorf("%d trials in five minutes", all)
		}
		time.Sleep(time.Hour)
		if n := s.trials(); n != 0 {
			t.Errorf("%d trials while no link was given", n)
		}
		if n := testutil.ToFloat64(s.metrics.trials.WithLabelValues(trialOK)); n != float64(all) {
			t.Errorf("%v of %d trials are counted as ok", n, all)
		}
		before := s.key.key.Load()
		delete(s.back.blobs, "/cats/x/cat")
		s.gave(user(t, "x"))
		synctest.Wait()
		if n := s.trials(); n != 1 || s.key.key.Load() != before {
			t.Errorf("a picture that was deleted in the meantime: %d trials, the key was dropped: %v", n, s.key.key.Load() != before)
		}
	})
}

// refusesBefore has storage refuse links of keys that are older than t.
func refusesBefore(t time.Time, code string) func(url.Values) (int, string) {
	return func(link url.Values) (int, string) {
		if start, _ := time.Parse(time.RFC3339, link.Get("skt")); start.Before(t.Add(-keySkew)) {
			return http.StatusForbidden, code
		}
		return 0, ""
	}
}

func TestARevokedKeyIsDroppedAndFetchedAnew(t *testing.T) {
	inBubble(t, func(t *testing.T, s *tried) {
		first, err := s.link(t)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(25 * time.Hour)
		second, err := s.link(t)
		if err != nil || second.Get("skt") == first.Get("skt") {
			t.Fatal("the key was not renewed", err)
		}
		time.Sleep(2 * time.Minute)
		s.refusing(refusesBefore(time.Now(), "AuthenticationFailed"))
		s.trials()
		_, _ = s.link(t) // dead, and noticed by it
		third, err := s.link(t)
		if err != nil {
			t.Fatal(err)
		}
		if start, _ := time.Parse(time.RFC3339, third.Get("skt")); start.Before(time.Now().Add(-keySkew - time.Second)) {
			t.Errorf("links are signed with the key of %v still", start)
		}
		if n := s.trials(); n != 2 {
			t.Errorf("%d trials, want one of each key", n)
		}
		if log := s.log.String(); !strings.Contains(log, `"level":"ERROR","msg":"the user delegation key is refused`) || !strings.Contains(log, "AuthenticationFailed") || !strings.Contains(log, "fix: ") || strings.Contains(log, "sig=") {
			t.Error(log)
		}
	})
}

func TestNewKeyIsTriedAfterADrop(t *testing.T) {
	inBubble(t, func(t *testing.T, s *tried) {
		if _, err := s.link(t); err != nil {
			t.Fatal(err)
		}
		s.way.mu.Lock()
		s.way.onKey = func() {
			s.refusing(func(url.Values) (int, string) { return http.StatusForbidden, "AuthorizationPermissionMismatch" })
			s.gave(user(t, "x"))
			time.Sleep(5 * time.Second)
		}
		s.way.mu.Unlock()
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		if n := strings.Count(s.log.String(), "user delegation key obtained"); n != 1 || s.Ready(t.Context()) == nil {
			t.Errorf("%d keys were used; want the first alone", n)
		}
		s.refusing(nil)
		s.way.mu.Lock()
		s.way.onKey = nil
		s.way.mu.Unlock()
		time.Sleep(time.Minute)
		if err := s.Ready(t.Context()); err != nil {
			t.Errorf("with the role back: %v", err)
		}
	})
}

func TestWithoutItsRoleTheSignerIsNotReadyUntilThatIsBack(t *testing.T) {
	inBubble(t, func(t *testing.T, s *tried) {
		s.refusing(func(url.Values) (int, string) { return http.StatusForbidden, "AuthorizationPermissionMismatch" })
		_, _ = s.link(t)
		for range 5 {
			_, err := s.link(t)
			if !errors.Is(err, apierror.ErrIdentityUnavailable) {
				t.Fatalf("a link of a key that is refused: %v", err)
			}
			if err := s.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "AuthorizationPermissionMismatch") || !strings.Contains(err.Error(), contributorRole) {
				t.Errorf("ready says %v", err)
			}
			time.Sleep(time.Minute)
		}
		if n := testutil.ToFloat64(s.metrics.keyExpiry); n != 0 {
			t.Errorf("the key that is not at hand is said to end at %v", n)
		}
		// In vain ever more slowly.
		if n := s.trials(); n < 8 || n > 40 {
			t.Errorf("%d trials within five minutes", n)
		}
		s.way.set(errors.New("no route to storage"), 0) // a key is not used untried either
		time.Sleep(time.Minute)
		if err := s.Ready(t.Context()); err == nil {
			t.Error("ready with a key that was not tried")
		}
		s.way.set(nil, 0)
		s.refusing(nil)
		time.Sleep(time.Minute)
		if _, err := s.link(t); err != nil || s.Ready(t.Context()) != nil {
			t.Errorf("with the role back: %v", err)
		}
	})
}

func TestWhatSaysNothingAboutTheKeyLeavesIt(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		lost   error
	}{
		{403, "AuthorizationFailure", nil}, // network rules
		{403, "AccountIsDisabled", nil},
		{403, "", nil}, // of some proxy
		{401, "", nil},
		{407, "", nil},
		{409, "BlobArchived", nil},
		{429, "TooManyRequests", nil},
		{500, "InternalError", nil},
		{503, "ServerBusy", nil},
		{0, "", errors.New("connection refused")},
	} {
		inBubble(t, func(t *testing.T, s *tried) {
			if _, err := s.link(t); err != nil {
				t.Fatal(err)
			}
			key := s.key.key.Load()
			time.Sleep(2 * time.Minute)
			s.refusing(func(url.Values) (int, string) { return c.status, c.code })
			s.way.set(c.lost, 0)
			s.gave(user(t, "x"))
			synctest.Wait()
			if s.key.key.Load() != key {
				t.Errorf("%d %s %v: the key was dropped", c.status, c.code, c.lost)
			}
			if n := testutil.ToFloat64(s.metrics.trials.WithLabelValues(trialUnclear)); n != 1 {
				t.Errorf("%d %s %v: %v trials are counted as unclear", c.status, c.code, c.lost, n)
			}
			if log := s.log.String(); !strings.Contains(log, "a link could not be tried") || strings.Contains(log, "sig=") {
				t.Errorf("%d %s %v: %s", c.status, c.code, c.lost, log)
			}
		})
	}
}

func TestALinkThatIsTriedNeverOutlivesItsKey(t *testing.T) {
	s, _, _ := withKey(t, nil)
	k := s.key.key.Load()
	k.end = time.Now().UTC().Truncate(time.Second).Add(time.Minute)
	s.opts.Transport = &direct{storage: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if end := r.URL.Query().Get("se"); end != k.end.Format(time.RFC3339) {
			t.Errorf("it ends at %s; want with the key, at %v", end, k.end)
		}
	})}
	if err := s.tryLink(t.Context(), k, user(t, "x")); err != nil {
		t.Error(err)
	}
}

func TestAClockThatDiffersFromStoragesIsTold(t *testing.T) {
	for _, c := range []struct {
		ahead time.Duration // of storage's
		says  string
	}{
		{0, ""},
		{50 * time.Second, ""},
		{-50 * time.Second, ""},
		{10 * time.Minute, "ahead of storage's; from 15m0s on storage rejects new links"},
		{-10 * time.Minute, "behind storage's; links end that much too early"},
	} {
		inBubble(t, func(t *testing.T, s *tried) {
			s.way.set(nil, c.ahead)
			for range 3 { // told once
				time.Sleep(2 * time.Minute)
				_, _ = s.link(t)
			}
			if got := testutil.ToFloat64(s.metrics.clockAhead); got < c.ahead.Seconds()-1 || got > c.ahead.Seconds()+1 {
				t.Errorf("%v ahead: %v are measured", c.ahead, got)
			}
			log := s.log.String()
			if n := strings.Count(log, `"level":"WARN","msg":"the clock is wrong"`); (n == 1) != (c.says != "") || n > 1 || !strings.Contains(log, c.says) {
				t.Errorf("%v ahead: %s", c.ahead, log)
			}
			s.way.set(nil, 0)
			time.Sleep(2 * time.Minute)
			_, _ = s.link(t)
			if again := strings.Contains(s.log.String(), "agrees with storage's again"); again != (c.says != "") {
				t.Errorf("%v ahead, and then right: %s", c.ahead, s.log.String())
			}
		})
	}
}

// The blocks of a large upload must not be what storage shows by that it answers
// again: they would keep everybody else out until they are stored.
func TestAnUploadAsksWhetherStorageIsBackBeforeItsBlocksDo(t *testing.T) {
	inBubble(t, func(t *testing.T, s *tried) {
		s.way.set(errors.New("connection refused"), 0)
		for range tripAfter {
			_, _ = s.link(t)
		}
		s.way.set(nil, 0)
		put := func() error {
			_, err := s.Put(t.Context(), user(t, "x"), strings.NewReader(pngOf(6<<20)), unknown)
			return err
		}
		if err := put(); !errors.Is(err, errShed) {
			t.Fatalf("the circuit is not open: %v", err)
		}
		time.Sleep(openTime + time.Second)
		s.back.called()
		if err := put(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"HEAD", "HEAD", "HEAD", "HEAD", "PUT block", "PUT block", "PUT blocklist"}, s.back.called()); diff != "" {
			t.Error(diff)
		}
	})
}

// Nor must the copies of a commit be.
func TestACommitAsksWhetherStorageIsBackBeforeItsCopiesDo(t *testing.T) {
	inBubble(t, func(t *testing.T, s *tried) {
		content := pngOf(5 * 1000)
		sent := newTicket(s.now(), int64(len(content)))
		s.back.blobs["/cats/"+sent.blobName(user(t, "x"))] = content
		s.way.set(errors.New("connection refused"), 0)
		for range tripAfter {
			_, _ = s.link(t)
		}
		s.way.set(nil, 0)
		commit := func() error {
			_, err := s.CommitUpload(t.Context(), user(t, "x"), sent.id, signerapi.CommitOptions{})
			return err
		}
		if err := commit(); !errors.Is(err, errShed) {
			t.Fatalf("the circuit is not open: %v", err)
		}
		time.Sleep(openTime + time.Second)
		s.back.called()
		if err := commit(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"HEAD", "HEAD", "HEAD", "HEAD", "HEAD", "HEAD", "GET", "PUT block", "PUT blocklist", "DELETE"}, s.back.called()); diff != "" {
			t.Error(diff)
		}
	})
}
