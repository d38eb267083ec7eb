package blobstore

import (
	"errors"
	"mime"
	"net/url"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/google/go-cmp/cmp"

	"cats.example/shared/apierror"
	"cats.example/shared/picture"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/refresh"
)

func TestLinkIsOneRoundTripAndWhatTheContractSays(t *testing.T) {
	s, back, _ := withKey(t, func(o *Options) { o.LinkBaseURL = "https://cdn.example.com" })
	back.blobs["/cats/a b/cat"], back.types["/cats/a b/cat"] = "cat", "image/gif"
	now := time.Date(2030, 1, 2, 3, 4, 59, 0, time.UTC)
	s.now = func() time.Time { return now }
	s.key.key.Load().end = now.Add(100 * time.Hour)
	got, err := s.Link(t.Context(), user(t, "a b"), signerapi.LinkOptions{TTL: 10 * time.Minute, Download: `my "猫".gif`})
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
		"rsct": "image/gif", "rscd": `attachment; filename="my ___.gif"; filename*=UTF-8''my%20%22%E7%8C%AB%22.gif`, "skoid": "o",
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
	if _, err := s.Link(t.Context(), user(t, "nobody"), signerapi.LinkOptions{}); !errors.Is(err, apierror.ErrNotFound) {
		t.Errorf("no picture: %v", err)
	}
}

func TestALinkServesAPictureAsWhatItIsAndAllElseToBeSaved(t *testing.T) {
	s, back, _ := withKey(t, nil)
	for _, c := range []struct{ stored, download, contentType, disposition string }{
		{"image/png", "", "image/png", "inline; filename=cat.png"},
		{"image/jpeg", "", "image/jpeg", "inline; filename=cat.jpg"},
		{"image/gif", "", "image/gif", "inline; filename=cat.gif"},
		{"image/webp", "", "image/webp", "inline; filename=cat.webp"},
		{"image/avif", "", "image/avif", "inline; filename=cat.avif"},
		{"image/heic", "", "image/heic", "inline; filename=cat.heic"},
		{"image/heif", "", "image/heif", "inline; filename=cat.heif"},
		{"image/png", "my cat.png", "image/png", `attachment; filename="my cat.png"`},
		{"image/png", "a;b.PNG", "image/png", `attachment; filename="a;b.PNG"`},
		{"image/png", "a=\"b\".png", "image/png", "attachment; filename=\"a=_b_.png\"; filename*=UTF-8''a%3D%22b%22.png"},
		{"image/jpeg", "cat.jpeg", "image/jpeg", "attachment; filename=cat.jpeg"},
		{"image/png", "evil.html", "image/png", "attachment; filename=evil.html.png"},
		{"image/gif", "evil.exe\u202egif", "image/gif", "attachment; filename=evil.exe_gif.gif; filename*=UTF-8''evil.exe%E2%80%AEgif.gif"},
		{"image/png", "a%20b.png", "image/png", "attachment; filename=a_20b.png; filename*=UTF-8''a%2520b.png"},
		{"image/png", "100%25.png", "image/png", "attachment; filename=100_25.png; filename*=UTF-8''100%2525.png"},
		{"image/jpeg", "猫", "image/jpeg", "attachment; filename=_.jpg; filename*=UTF-8''%E7%8C%AB.jpg"},
		{"image/heic", "café (1)", "image/heic", "attachment; filename=\"caf_ (1).heic\"; filename*=UTF-8''caf%C3%A9%20%281%29.heic"},
		{"text/html", "%.html", "application/octet-stream", "attachment; filename=_.html.bin; filename*=UTF-8''%25.html.bin"},
		{"image/gif", ".gif", "image/gif", "attachment; filename=.gif.gif"},
		{"text/html", "", "application/octet-stream", "attachment; filename=cat.bin"},
		{"text/html", "evil.html", "application/octet-stream", "attachment; filename=evil.html.bin"},
		{"image/svg+xml", "", "application/octet-stream", "attachment; filename=cat.bin"},
		{"image/png; charset=x", "", "application/octet-stream", "attachment; filename=cat.bin"},
		{"", "", "application/octet-stream", "attachment; filename=cat.bin"},
	} {
		back.blobs["/cats/x/cat"], back.types["/cats/x/cat"] = "cat", c.stored
		got, err := s.Link(t.Context(), user(t, "x"), signerapi.LinkOptions{Download: c.download})
		if err != nil {
			t.Fatal(err)
		}
		q := queryOf(t, got.URL)
		if q.Get("rsct") != c.contentType || q.Get("rscd") != c.disposition || got.ContentType != c.stored {
			t.Errorf("%s as %q: served as %s, %s", c.stored, c.download, q.Get("rsct"), q.Get("rscd"))
		}
	}
}

func queryOf(t *testing.T, link signerapi.SignedURL) url.Values {
	t.Helper()
	u, err := url.Parse(string(link))
	if err != nil {
		t.Fatal(err)
	}
	return u.Query()
}

// Another replica may have put one of another type in its place.
func TestALinkThatIsKnownGoesByTheTypeOfThePictureThatIsThere(t *testing.T) {
	s, back, _ := withKey(t, func(o *Options) { o.ExistenceCacheTTL = time.Second })
	now := time.Date(2030, 1, 2, 3, 0, 0, 0, time.UTC)
	s.now = func() time.Time { return now }
	s.key.key.Load().end = now.Add(100 * time.Hour)
	var last signerapi.SignedURL
	for _, contentType := range []string{"image/png", "image/gif", "text/html", "image/png"} {
		back.blobs["/cats/x/cat"], back.types["/cats/x/cat"] = "cat", contentType
		now = now.Add(2 * time.Second) // in the same window
		for range 2 {
			got, err := s.Link(t.Context(), user(t, "x"), signerapi.LinkOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if pinned := queryOf(t, got.URL).Get("rsct"); pinned != contentType && (contentType != "text/html" || pinned != "application/octet-stream") {
				t.Errorf("a link to %s is to be served as %s", contentType, pinned)
			}
			last = got.URL
		}
	}
	now = now.Add(2 * time.Second)
	if again, err := s.Link(t.Context(), user(t, "x"), signerapi.LinkOptions{}); err != nil || again.URL != last {
		t.Errorf("of the same type, the link does not stand still: %v", err)
	}
}

// The SDK signs a line end, after which come other fields, and makes a slash of a
// backslash.
func TestNothingIsSignedThatCouldBeReadOtherwise(t *testing.T) {
	good := sas.BlobSignatureValues{Permissions: "r", ContainerName: "cats", BlobName: "a b/猫", ContentType: "image/png", ContentDisposition: `inline; filename="a b.png"`}
	if err := checkSigned(good); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"a\nb", "a\rb", "a\x00", "a\x7fb", "a\u0085b", `a\b`, "a\xff", ""} {
		for field, set := range map[string]func(*sas.BlobSignatureValues){
			"container":   func(v *sas.BlobSignatureValues) { v.ContainerName = bad },
			"blob":        func(v *sas.BlobSignatureValues) { v.BlobName = bad },
			"type":        func(v *sas.BlobSignatureValues) { v.ContentType = bad },
			"disposition": func(v *sas.BlobSignatureValues) { v.ContentDisposition = bad },
		} {
			v := good
			set(&v)
			if err := checkSigned(v); !errors.Is(err, errUnsignable) {
				t.Errorf("%s %q: %v", field, bad, err)
			}
		}
	}
	for _, name := range []string{".", "..", "a/../b", "a/./b", "a//b", "/a", "a/"} {
		v := good
		v.BlobName = name
		if err := checkSigned(v); !errors.Is(err, errUnsignable) {
			t.Errorf("blob %q: %v", name, err)
		}
	}
	for _, name := range []string{"cat\n", `..\cat`, ".."} { // settings that were not checked
		s, _, _ := withKey(t, func(o *Options) { o.BlobName = name })
		if link, err := s.readURL(s.opts.LinkBaseURL, "x/"+name, time.Hour, "image/png"); !errors.Is(err, errUnsignable) || link != "" {
			t.Errorf("BLOB_NAME %q: %v", name, err)
		}
	}
}

// BenchmarkLink is what a link costs the store: signed anew, and again in the same
// window.
func BenchmarkLink(b *testing.B) {
	s, back, _ := withKey(b, func(o *Options) { o.ExistenceCacheTTL = time.Hour })
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
		if _, err := s.Link(t.Context(), user(t, "x"), signerapi.LinkOptions{TTL: ttl}); ok != (err == nil) || (!ok && !errors.Is(err, apierror.ErrInvalidArgument)) {
			t.Errorf("ttl %v: %v", ttl, err)
		}
	}
	for _, name := range []string{"a\nb", "a/b", `a\b`, "\xff"} {
		if _, err := s.Link(t.Context(), user(t, "x"), signerapi.LinkOptions{Download: name}); !errors.Is(err, apierror.ErrInvalidArgument) {
			t.Errorf("download %q: %v", name, err)
		}
	}
}

func TestALinkNeverOutlivesItsKey(t *testing.T) {
	s, back, _ := withKey(t, nil)
	back.blobs["/cats/x/cat"] = "cat"
	s.key.key.Load().end = time.Now().Add(30 * time.Minute)
	if _, err := s.Link(t.Context(), user(t, "x"), signerapi.LinkOptions{}); !errors.Is(err, apierror.ErrSignerUnavailable) {
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
		start, end := window(now, ttl)
		began := start.Add(LinkSkew)
		if began.After(now) || now.Sub(began) >= max(ttl/12, time.Second) {
			t.Fatalf("ttl %v at %v: its window began %v", ttl, now, began)
		}
		if end.After(now.Add(ttl)) || end.Before(now.Add(ttl-ttl/12-time.Second)) {
			t.Fatalf("ttl %v at %v: ends %v", ttl, now, end)
		}
		if start.After(now.Add(-LinkSkew)) || start.Nanosecond() != 0 || end.Nanosecond() != 0 {
			t.Fatalf("ttl %v at %v: starts %v", ttl, now, start)
		}
		start2, end2 := window(now.Add(time.Duration(later)*time.Second), ttl)
		if end2.Before(end) || start2.Before(start) || (end2.Equal(end) && later > int64(ttl/12/time.Second)+1) {
			t.Fatalf("ttl %v: %v later it ends %v after %v", ttl, later, end2, end)
		}
	})
}

// FuzzLink holds that every user has one blob and one link: the URL that is asked of
// storage and the one that is signed are of the same two segments, whatever the name,
// and read nothing else; and a download has the name that was asked for.
func FuzzLink(f *testing.F) {
	for _, name := range []string{"Davyd", "a b", "猫", "a%2Fb", "a?sig=x#y", "a;b&c=d", ".hidden", "..x", "~", "*"} {
		f.Add(name, "cat.png")
		f.Add("x", name)
	}
	s, _, _ := withKey(f, func(o *Options) { o.LinkBaseURL = "https://cdn.example.com" })
	f.Fuzz(func(t *testing.T, name, download string) {
		u, err := signerapi.ParseUser(name)
		if err != nil || signerapi.ValidateDownloadName(download) != nil {
			return
		}
		signed, err := s.link(u, &existing{info: signerapi.Info{ContentType: "image/png"}}, time.Hour, download)
		if err != nil {
			t.Fatal(err)
		}
		link, err := url.Parse(string(signed.URL))
		if err != nil {
			t.Fatal(err)
		}
		asked, err := url.Parse(s.container.NewBlobClient(s.blobName(u)).URL())
		if err != nil {
			t.Fatal(err)
		}
		if want := "/cats/" + name + "/cat"; link.Path != want || asked.Path != want || asked.RawQuery != "" || strings.Count(link.EscapedPath(), "/") != 3 || link.Host != "cdn.example.com" {
			t.Fatalf("%q: storage is asked for %s, and the link is %s", name, asked, link)
		}
		q, err := url.ParseQuery(link.RawQuery)
		if err != nil || len(q["sp"]) != 1 || q.Get("sp") != "r" || q.Get("sr") != "b" || q.Get("spr") != "https" || q.Get("rsct") != "image/png" || len(q["rscd"]) != 1 {
			t.Fatalf("%q, %q: the link is %s, %v", name, download, link, err)
		}
		wantKind, wantName := "inline", "cat.png"
		if download != "" {
			wantKind = "attachment"
			wantName, _ = picture.WithExtension(download, "image/png")
		}
		plain, _, _ := strings.Cut(q.Get("rscd"), "; filename*=")
		if _, params, err := mime.ParseMediaType(plain); err != nil || path.Ext(params["filename"]) != path.Ext(wantName) && !strings.ContainsAny(path.Ext(wantName), `"%`) || strings.ContainsFunc(params["filename"], func(r rune) bool { return r < ' ' || r > '~' || r == '%' || r == '"' }) {
			t.Fatalf("%q is saved as %q without filename*: %q, %v", download, params["filename"], q.Get("rscd"), err)
		}
		if kind, params, err := mime.ParseMediaType(q.Get("rscd")); err != nil || kind != wantKind || params["filename"] != wantName {
			t.Fatalf("%q is %s, saved as %q: %q, %v", download, kind, params["filename"], q.Get("rscd"), err)
		}
	})
}

func TestTheKeyIsRenewedWhileTheLongestLinkFits(t *testing.T) {
	for _, longest := range []time.Duration{time.Minute, time.Hour, 24 * time.Hour, MaxLinkTTL} {
		life := keyLifetime(longest)
		for range 1000 {
			wait := refresh.BeforeHalf(life)
			if left := life - wait; left < longest || wait < life/3 {
				t.Fatalf("longest link %v: renewed after %v of %v", longest, wait, life)
			}
		}
		if life > maxKeyLife {
			t.Errorf("longest link %v: a key of %v", longest, life)
		}
	}
}
