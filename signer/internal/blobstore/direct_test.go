package blobstore

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"

	"cats.example/shared/apierror"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
)

func TestATicketWritesOneBlobForAnHour(t *testing.T) {
	s, _, _ := withKey(t, nil)
	if _, err := s.StartUpload(t.Context(), user(t, "mia"), 1); !errors.Is(err, apierror.ErrTooLarge) {
		t.Errorf("without MaxDirectUploadSize: %v", err)
	}
	s.opts.MaxDirectUploadSize = MaxDirectUploadSize
	for _, c := range []struct {
		size       int64
		permission string
		block      int64
	}{
		{1, "c", 0}, {onePiece, "c", 0}, {onePiece + 1, "w", directBlock}, {MaxDirectUploadSize, "w", directBlock},
	} {
		got, err := s.StartUpload(t.Context(), user(t, "mia"), c.size)
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
		if left := time.Until(got.ExpiresAt); left > ticketLife || left < ticketLife-10*time.Second {
			t.Errorf("it lives for %v", left)
		}
		if !strings.HasPrefix(u.Path, "/cats/"+StagedPrefix) || strings.Count(u.Path, "/") != 4 || strings.Contains(u.Path, "mia") {
			t.Errorf("it is for %s", u.Path)
		}
		if c.block > 0 && c.size/c.block >= 50_000 {
			t.Errorf("%d bytes are too many blocks", c.size)
		}
	}
	for size, want := range map[int64]error{0: apierror.ErrEmpty, -1: apierror.ErrEmpty, MaxDirectUploadSize + 1: apierror.ErrTooLarge} {
		if _, err := s.StartUpload(t.Context(), user(t, "mia"), size); !errors.Is(err, want) {
			t.Errorf("%d bytes: %v; want %v", size, err, want)
		}
	}
}

func TestTheNameOfWhatIsSentGoesByAllThatTheTicketSays(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	one := newTicket(now, 7)
	again, err := parseTicket(one.id)
	if err != nil || again != one {
		t.Fatalf("%+v became %+v, %v", one, again, err)
	}
	name := one.blobName(user(t, "mia"))
	if end, ok := endOf(name); !ok || !end.Equal(now.Add(ticketLife)) {
		t.Errorf("%s ends at %v, %v", name, end, ok)
	}
	seen := map[string]string{name: "itself"}
	for what, other := range map[string]string{
		"another user":   one.blobName(user(t, "Mia")),
		"another ticket": newTicket(now, 7).blobName(user(t, "mia")),
		"another size":   parsed(t, strings.Replace(one.id, "-7-", "-8-", 1)).blobName(user(t, "mia")),
		"a zero more":    parsed(t, strings.Replace(one.id, "-7-", "-07-", 1)).blobName(user(t, "mia")),
		"another end":    parsed(t, strings.Replace(one.id, "1800003600", "1800003601", 1)).blobName(user(t, "mia")),
	} {
		if as, ok := seen[other]; ok {
			t.Errorf("%s has the name of %s", what, as)
		}
		seen[other] = what
	}
	for _, id := range []string{"", "-", "--", "1-2", "x-7-A", "1-x-A", "-1-7-A", "1--7-A", "99999999999-7-A", "1-9223372036854775807-A", "9999999999-7-A", "1-7-A/..", "1-7-" + strings.Repeat("A", 200)} {
		if got, err := parseTicket(id); !errors.Is(err, apierror.ErrNoUpload) {
			t.Errorf("%q is the ticket %+v, %v", id, got, err)
		}
	}
	hash := strings.Repeat("a", 32)
	for _, name := range []string{
		"mia/cat", "cats-api/cat", "cats-api-upload-1800003600-" + hash + "/cat", ScratchPrefix + "1-a", StagedPrefix, "x" + name, name + "x", name + "/cat", name + "\n",
		StagedPrefix + "1", StagedPrefix + "1-" + hash, StagedPrefix + "10000000000-" + hash, StagedPrefix + "xxxxxxxxxx-" + hash, StagedPrefix + "1800003600-" + hash[1:], StagedPrefix + "1800003600-" + hash[1:] + "A",
	} {
		if _, ok := endOf(name); ok {
			t.Errorf("%q would be swept", name)
		}
	}
}

func parsed(t *testing.T, id string) ticket {
	t.Helper()
	got, err := parseTicket(id)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestATicketEndsAWhileAfterItsURL(t *testing.T) {
	s, back, _ := withKey(t, func(o *Options) { o.MaxDirectUploadSize = MaxDirectUploadSize })
	mia := user(t, "mia")
	got, err := s.StartUpload(t.Context(), mia, 7)
	if err != nil {
		t.Fatal(err)
	}
	// Nothing is there, so that it is the same error; but storage is asked only before.
	for late, asked := range map[time.Duration]bool{commitLate - 2*time.Second: true, commitLate + 2*time.Second: false} {
		s.now = func() time.Time { return got.ExpiresAt.Add(late) }
		back.called()
		if _, err := s.CommitUpload(t.Context(), mia, got.ID, signerapi.CommitOptions{}); !errors.Is(err, apierror.ErrNoUpload) {
			t.Errorf("%v after its end: %v", late, err)
		}
		if got := len(back.called()) > 0; got != asked {
			t.Errorf("%v after its end, storage was asked: %v", late, got)
		}
	}
}

// An authenticated caller has its share of the slots, and a client of the frontend has a share of the buffers.
func TestSlotsAreCountedByCallerOrClient(t *testing.T) {
	s, _, _ := withKey(t, nil)
	anonymous, caller := signerapi.WithClient(t.Context(), "192.0.2.7"), signerapi.WithCaller(t.Context(), "mia")
	put := func(size int64) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := s.Put(ctx, user(t, "mia"), strings.NewReader(pngOf(100<<10)), signerapi.PutOptions{Size: size})
			return err
		}
	}
	commit := func(ctx context.Context) error {
		_, err := s.CommitUpload(ctx, user(t, "mia"), newTicket(s.now(), 7).id, signerapi.CommitOptions{})
		return err
	}
	for _, c := range []struct {
		name          string
		pool          *ratelimit.Pool
		share, total  int
		call          func(context.Context) error
		byClient, own error // of a client and of a caller that have their share
	}{
		{"uploads", s.opts.Slots.Uploads, 12, 192, put(100 << 10), nil, apierror.ErrRateLimited},
		{"commits", s.opts.Slots.Commits, 1, 16, commit, apierror.ErrNoUpload, apierror.ErrRateLimited},
		{"chunked uploads", s.opts.Slots.Chunked, 1, 16, put(-1), apierror.ErrRateLimited, apierror.ErrRateLimited},
	} {
		t.Run(c.name, func(t *testing.T) {
			var releases []func()
			take := func(client string, n int) {
				for range n {
					if release, err := c.pool.Take(client); err == nil {
						releases = append(releases, release)
					}
				}
			}
			take("192.0.2.7", c.share)
			take("mia", c.share)
			if err := c.call(anonymous); !errors.Is(err, c.byClient) {
				t.Errorf("a client over its share: %v; want %v", err, c.byClient)
			}
			if err := c.call(caller); !errors.Is(err, c.own) {
				t.Errorf("a caller over its share: %v; want %v", err, c.own)
			}
			take("", c.total)
			if err := c.call(signerapi.WithCaller(t.Context(), "leo")); !errors.Is(err, apierror.ErrOverloaded) {
				t.Errorf("with all slots taken: %v; want ErrOverloaded", err)
			}
			for _, release := range releases {
				release()
			}
		})
	}
}

// FuzzTicket holds that whatever is taken for a ticket is for one well-formed name,
// which is another for another user, and ends when the ticket does.
func FuzzTicket(f *testing.F) {
	f.Add(newTicket(time.Unix(1_800_000_000, 0), 7).id, "mia")
	f.Add("0-0-", "a b")
	f.Add("8589934591-1-A-B", "猫")
	f.Add("8589934592-1-A", strings.Repeat("x", 128))
	f.Fuzz(func(t *testing.T, id, name string) {
		who, err := signerapi.ParseUser(name)
		if err != nil {
			return
		}
		got, err := parseTicket(id)
		if err != nil {
			if !errors.Is(err, apierror.ErrNoUpload) {
				t.Fatalf("%q: %v", id, err)
			}
			return
		}
		blob := got.blobName(who)
		end, ok := endOf(blob)
		if !ok || !end.Equal(got.end) || strings.Trim(strings.TrimPrefix(blob, StagedPrefix), "0123456789abcdef-") != "" || got.size < 0 {
			t.Fatalf("%q is %+v, for %q", id, got, blob)
		}
		if name != "x" && blob == got.blobName(user(t, "x")) {
			t.Fatalf("%q is for two users", blob)
		}
	})
}
