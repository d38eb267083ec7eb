package blobstore

import (
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/shared/signerapi"
)

func TestLinkIsOneRoundTripAndWhatTheContractSays(t *testing.T) {
	s, back, _ := withKey(t, func(o *Options) { o.LinkBase = "https://cdn.example.com" })
	back.blobs["/cats/a b/cat"], back.types["/cats/a b/cat"] = "cat", "image/gif"
	now := time.Date(2030, 1, 2, 3, 4, 59, 0, time.UTC)
	s.now = func() time.Time { return now }
	s.key.key.Load().end = now.Add(100 * time.Hour)
	got, err := s.Link(t.Context(), user(t, "a b"), signerapi.LinkOptions{TTL: 10 * time.Minute, Download: `my "猫".png`})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"HEAD"}, back.called()); diff != "" {
		t.Error(diff)
	}
	u, err := url.Parse(string(got.URL))
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	for name, want := range map[string]string{
		"sp": "r", "sr": "b", "spr": "https", "st": "2030-01-02T02:49:10Z", "se": "2030-01-02T03:14:10Z",
		"rscd": `attachment; filename*=utf-8''my%20%22%E7%8C%AB%22.png`, "skoid": "o",
	} {
		if q.Get(name) != want {
			t.Errorf("%s is %q; want %q", name, q.Get(name), want)
		}
	}
	if u.Host != "cdn.example.com" || u.EscapedPath() != "/cats/a%20b/cat" || q.Get("sig") == "" {
		t.Errorf("the URL is %s", string(got.URL))
	}
	if want := time.Date(2030, 1, 2, 3, 14, 10, 0, time.UTC); !got.ExpiresAt.Equal(want) || got.ContentType != "image/gif" || got.Size != 3 {
		t.Errorf("%+v", got)
	}
	if _, err := s.Link(t.Context(), user(t, "nobody"), signerapi.LinkOptions{}); !errors.Is(err, signerapi.ErrNotFound) {
		t.Errorf("no picture: %v", err)
	}
}

// BenchmarkLink is what a link costs the store: signed anew, and again in the same
// window.
func BenchmarkLink(b *testing.B) {
	s, back, _ := withKey(b, func(o *Options) { o.KnownTTL = time.Hour })
	back.blobs["/cats/x/cat"] = "cat"
	x := user(b, "x")
	for name, opts := range map[string]signerapi.LinkOptions{"signed": {Download: "cat.png"}, "again": {}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Link(b.Context(), x, opts); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestLinkLimits(t *testing.T) {
	s, back, _ := withKey(t, nil)
	back.blobs["/cats/x/cat"] = "cat"
	for ttl, ok := range map[time.Duration]bool{
		0: true, MinLinkTTL: true, 24 * time.Hour: true, MinLinkTTL - time.Second: false, 24*time.Hour + time.Second: false, -time.Hour: false,
	} {
		if _, err := s.Link(t.Context(), user(t, "x"), signerapi.LinkOptions{TTL: ttl}); ok != (err == nil) || (!ok && !errors.Is(err, signerapi.ErrInvalidArgument)) {
			t.Errorf("ttl %v: %v", ttl, err)
		}
	}
	for _, name := range []string{"a\nb", "a/b", `a\b`, "\xff"} {
		if _, err := s.Link(t.Context(), user(t, "x"), signerapi.LinkOptions{Download: name}); !errors.Is(err, signerapi.ErrInvalidArgument) {
			t.Errorf("download %q: %v", name, err)
		}
	}
}

func TestALinkNeverOutlivesItsKey(t *testing.T) {
	s, back, _ := withKey(t, nil)
	back.blobs["/cats/x/cat"] = "cat"
	s.key.key.Load().end = time.Now().Add(30 * time.Minute)
	if _, err := s.Link(t.Context(), user(t, "x"), signerapi.LinkOptions{}); !errors.Is(err, signerapi.ErrIdentityUnavailable) {
		t.Errorf("an hour from a key with half of it: %v", err)
	}
	if _, err := s.Link(t.Context(), user(t, "x"), signerapi.LinkOptions{TTL: 20 * time.Minute}); err != nil {
		t.Errorf("twenty minutes from a key with thirty: %v", err)
	}
	if err := s.Ready(t.Context()); err == nil {
		t.Error("ready without a key that covers the default lifetime")
	}
}

// FuzzWindow holds what is said of a link's times, for any moment and lifetime.
func FuzzWindow(f *testing.F) {
	f.Add(int64(1_900_000_000), int64(3600), int64(200))
	f.Add(int64(0), int64(5), int64(0))
	f.Add(int64(1_900_000_059), int64(72*3600), int64(21_000))
	f.Fuzz(func(t *testing.T, unix, seconds, later int64) {
		ttl := time.Duration(seconds) * time.Second
		if unix < 0 || unix > 1<<36 || ttl < MinLinkTTL || ttl > MaxLinkTTL || later < 0 || later > 1<<20 {
			return
		}
		now := time.Unix(unix, 0)
		began, start, end := window(now, ttl)
		if began.After(now) || now.Sub(began) >= max(ttl/12, time.Second) {
			t.Fatalf("ttl %v at %v: its window began %v", ttl, now, began)
		}
		if end.After(now.Add(ttl)) || end.Before(now.Add(ttl-ttl/12-time.Second)) {
			t.Fatalf("ttl %v at %v: ends %v", ttl, now, end)
		}
		if start.After(now.Add(-LinkSkew)) || start.Nanosecond() != 0 || end.Nanosecond() != 0 {
			t.Fatalf("ttl %v at %v: starts %v", ttl, now, start)
		}
		_, start2, end2 := window(now.Add(time.Duration(later)*time.Second), ttl)
		if end2.Before(end) || start2.Before(start) || (end2.Equal(end) && later > int64(ttl/12/time.Second)+1) {
			t.Fatalf("ttl %v: %v later it ends %v after %v", ttl, later, end2, end)
		}
	})
}

func TestTheKeyIsRenewedWhileTheLongestLinkFits(t *testing.T) {
	for _, longest := range []time.Duration{time.Minute, time.Hour, 24 * time.Hour, MaxLinkTTL} {
		now := time.Now()
		life := keyLifetime(longest)
		for range 1000 {
			wait := renewKeyIn(&delegationKey{end: now.Add(life)}, now)
			if left := life - wait; left < longest || wait < life/3 {
				t.Fatalf("longest link %v: renewed after %v of %v", longest, wait, life)
			}
		}
		if life > maxKeyLife {
			t.Errorf("longest link %v: a key of %v", longest, life)
		}
	}
}
