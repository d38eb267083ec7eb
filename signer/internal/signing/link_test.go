package signing

import (
	"errors"
	"mime"
	"net/url"
	"path"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"cats.example/shared/apierror"
	"cats.example/shared/picture"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/refresh"
	"cats.example/signer/internal/storagetest"
)

func TestSignedURLFixesTypeAndDisposition(t *testing.T) {
	for _, row := range storagetest.Rows(t, "served.txt") {
		unquoted := func(i int) string {
			text, err := strconv.Unquote(row[i])
			if err != nil {
				t.Fatalf("%q: %v", row, err)
			}
			return text
		}
		got := readOnly(time.Time{}, time.Time{}, unquoted(0), "cat", unquoted(1))
		if got.ContentType != unquoted(2) || got.ContentDisposition != unquoted(3) || got.Permissions != "r" {
			t.Errorf("%q: served as %s, %s", row, got.ContentType, got.ContentDisposition)
		}
	}
}

func TestAmbiguousValuesAreNotSigned(t *testing.T) {
	good := sas.BlobSignatureValues{Permissions: "r", ContainerName: "cats", BlobName: "a b/猫", ContentType: "image/png", ContentDisposition: `inline; filename="a b.png"`}
	if err := checkUnambiguous(good); err != nil {
		t.Fatal(err)
	}
	rejected := func(change func(*sas.BlobSignatureValues)) {
		t.Helper()
		v := good
		change(&v)
		if err := checkUnambiguous(v); !errors.Is(err, errAmbiguous) {
			t.Errorf("%+v: %v", v, err)
		}
	}
	for _, bad := range []string{"a\nb", "a\rb", "a\x00", "a\x7fb", "a\u0085b", `a\b`, "a\xff", ""} {
		rejected(func(v *sas.BlobSignatureValues) { v.ContainerName = bad })
		rejected(func(v *sas.BlobSignatureValues) { v.BlobName = bad })
		rejected(func(v *sas.BlobSignatureValues) { v.ContentType = bad })
		rejected(func(v *sas.BlobSignatureValues) { v.ContentDisposition = bad })
	}
	for _, name := range []string{".", "..", "a/../b", "a/./b", "a//b", "/a", "a/"} {
		rejected(func(v *sas.BlobSignatureValues) { v.BlobName = name })
	}
	withKey(t, func(t *testing.T, f *fixture) {
		if link, err := f.ReadURL(f.base, "x/cat\n", time.Hour); !errors.Is(err, errAmbiguous) || link != "" {
			t.Errorf("a name with a line end: %v", err)
		}
	})
}

func TestTTLLimits(t *testing.T) {
	s := Settings{LinkTTL: time.Hour, LinkMaxTTL: 24 * time.Hour}
	for ttl, want := range map[time.Duration]time.Duration{
		0: time.Hour, MinLinkTTL: MinLinkTTL, 24 * time.Hour: 24 * time.Hour, MinLinkTTL - time.Second: 0, 24*time.Hour + time.Second: 0, -time.Hour: 0,
	} {
		if got, err := s.TTL(ttl); got != want || (want == 0) != errors.Is(err, apierror.ErrInvalidArgument) {
			t.Errorf("ttl %v: %v, %v", ttl, got, err)
		}
	}
}

func TestLinkDoesNotOutliveTheKey(t *testing.T) {
	withKey(t, func(t *testing.T, f *fixture) {
		f.server.Credential.Err = errors.New("no token")
		if err := f.Ready(t.Context()); err != nil {
			t.Errorf("with a key, without a token: %v", err)
		}
		k := f.key.Load()
		k.end = time.Now().Add(30 * time.Minute)
		for ttl, covered := range map[time.Duration]bool{time.Hour: false, 20 * time.Minute: true} {
			if _, err := f.Link(pictureBlob, "image/png", signerapi.LinkOptions{TTL: ttl}, nil); covered != (err == nil) || !covered && !errors.Is(err, apierror.ErrSignerUnavailable) {
				t.Errorf("a link for %v: %v", ttl, err)
			}
		}
		if err := f.Ready(t.Context()); err == nil {
			t.Error("ready without a key that covers the default lifetime")
		}
		k.end = time.Now().UTC().Add(time.Minute)
		if err := f.probe(t.Context(), k, pictureBlob); err != nil || f.probed().Get("se") != k.end.Format(time.RFC3339) {
			t.Errorf("a probe: %v, or it expires after the key", err)
		}
	})
}

func TestKeyCoversLongestURLUntilRenewal(t *testing.T) {
	for _, longest := range []time.Duration{time.Minute, time.Hour, 24 * time.Hour, MaxLinkTTL} {
		life := keyLifetime(longest)
		for range 1000 {
			if wait := refresh.BeforeHalf(life); life-wait < longest || wait < life/3 || life > maxKeyLifetime {
				t.Fatalf("longest URL %v: renewed after %v of %v", longest, wait, life)
			}
		}
	}
}

// FuzzWindow checks the promises about the validity period of a link.
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
		began := start.Add(ToleratedSkew)
		if began.After(now) || now.Sub(began) >= max(ttl/12, time.Second) {
			t.Fatalf("ttl %v at %v: its window began %v", ttl, now, began)
		}
		if end.After(now.Add(ttl)) || end.Before(now.Add(ttl-ttl/12-time.Second)) {
			t.Fatalf("ttl %v at %v: ends %v", ttl, now, end)
		}
		if start.After(now.Add(-ToleratedSkew)) || start.Nanosecond() != 0 || end.Nanosecond() != 0 {
			t.Fatalf("ttl %v at %v: starts %v", ttl, now, start)
		}
		start2, end2 := window(now.Add(time.Duration(later)*time.Second), ttl)
		if end2.Before(end) || start2.Before(start) || (end2.Equal(end) && later > int64(ttl/12/time.Second)+1) {
			t.Fatalf("ttl %v: %v later it ends %v after %v", ttl, later, end2, end)
		}
	})
}

// FuzzLink checks that each user has one blob and one link: the URL that the SDK requests and the one that is signed have the
// same two segments, whatever the name. The link only reads, and a download has the requested name.
func FuzzLink(f *testing.F) {
	for _, name := range []string{"Davyd", "a b", "猫", "a%2Fb", "a?sig=x#y", "a;b&c=d", ".hidden", "..x", "~", "*"} {
		f.Add(name, "cat.png")
		f.Add("x", name)
	}
	keys := newFixture(f)
	if _, err := keys.Fetch(f.Context()); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name, download string) {
		user, err := signerapi.ParseUser(name)
		if err != nil || signerapi.ValidateDownloadName(download) != nil {
			return
		}
		blob := keys.storage.PictureBlob(user)
		signed, err := keys.Link(blob, "image/png", signerapi.LinkOptions{Download: download}, nil)
		if err != nil {
			t.Fatal(err)
		}
		link, err := url.Parse(string(signed.URL))
		if err != nil {
			t.Fatal(err)
		}
		requested, err := url.Parse(keys.storage.BlobClient(blob).URL())
		if err != nil {
			t.Fatal(err)
		}
		if want := "/cats/" + name + "/cat"; link.Path != want || requested.Path != want || requested.RawQuery != "" || strings.Count(link.EscapedPath(), "/") != 3 || link.Host != "cdn.example.com" {
			t.Fatalf("%q: the SDK requests %s, and the link is %s", name, requested, link)
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
