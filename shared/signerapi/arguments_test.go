package signerapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"cats.example/shared/apierror"
)

func TestParseUserKeepsAnyScript(t *testing.T) {
	for _, name := range []string{"Davyd", "Мурчик", "a b", "猫", "🐱", "a+b", "%2F", ".hidden", "a..b", "\ufffc", "\ufdf0", "\ud7ff", "\uf900", "\U0003fffd", "👩\u200d👧", "e\u0301", "\u200fחתול", strings.Repeat("x", MaxUserName)} {
		u, err := ParseUser(name)
		if err != nil || u.String() != name {
			t.Errorf("ParseUser(%q) = %q, %v; want it unchanged", name, u, err)
		}
	}
}

func TestParseUserRejectsAmbiguousNames(t *testing.T) {
	for _, name := range []string{
		"", ".", "..", "a.", "...", "a/b", "/", `a\b`, "../x", "a\x00b", "a\nb", "\x7f", "\u0085", "\u2028",
		"\xff", "a\xc3", strings.Repeat("x", MaxUserName+1), strings.Repeat("猫", 43),
		"\ue000", "a\uf003", "\uf8ffb", "\U000f0000", "\U000ffffd", "\U00100000", "\U0010fffd", "\ufffe", "\uffff", "\ufdd0", "\ufdef", "\U0001fffe", "\U0010ffff",
	} {
		if u, err := ParseUser(name); !errors.Is(err, apierror.ErrInvalidUser) {
			t.Errorf("ParseUser(%q) = %q, %v; want ErrInvalidUser", name, u, err)
		}
	}
}

// FuzzParseUser checks that a valid name is unchanged in the blob name, in the URL and after the wire, and that two names are
// never equal there.
func FuzzParseUser(f *testing.F) {
	for _, s := range []string{"Davyd", "..", "a/b", "猫", "\xff", "a ", "a%2Fb", "\u202e", "a;b&c=d+e", "\u00e9", "e\u0301"} {
		f.Add(s, s+"x")
	}
	f.Fuzz(func(t *testing.T, name, other string) {
		u, err := ParseUser(name)
		if err != nil {
			if !errors.Is(err, apierror.ErrInvalidUser) || u != (User{}) {
				t.Fatalf("ParseUser(%q) = %q, %v", name, u, err)
			}
			return
		}
		if u.String() != name || !utf8.ValidString(name) || len(name) > MaxUserName {
			t.Fatalf("ParseUser(%q) accepted it as %q", name, u)
		}
		blob := u.String() + "/cat"
		if path.Clean(blob) != blob || strings.Count(blob, "/") != 1 || strings.ContainsAny(blob, "\\\r\n\x00") {
			t.Fatalf("%q is another blob once cleaned", blob)
		}
		link, err := url.Parse("https://a.blob/cats/" + url.PathEscape(name) + "/cat?sig=x")
		if err != nil || link.Path != "/cats/"+blob || link.JoinPath().String() != link.String() || link.RawQuery != "sig=x" {
			t.Fatalf("%q does not survive the URL of a link: %v, %v", name, link, err)
		}
		arrived, args, err := parseArguments(argumentsOf(u).query())
		if want := argumentsOf(u); err != nil || arrived != u || !reflect.DeepEqual(args, want) {
			t.Fatalf("%q crosses the wire as %q with %+v, %v", name, arrived, args, err)
		}
		if v, err := ParseUser(other); err == nil && other != name && (v == u || url.PathEscape(other) == url.PathEscape(name) || url.QueryEscape(other) == url.QueryEscape(name)) {
			t.Fatalf("%q and %q are one user", name, other)
		}
	})
}

// FuzzHandler sends arbitrary queries to the handler: it never responds with 5xx, and only valid arguments reach the signer.
func FuzzHandler(f *testing.F) {
	for _, s := range []string{"user=a", "user=a&ttl_seconds=60", "user=%2e%2e", "user=a&download=x%22.png", "user=a;b", "%", "user=a&size=1"} {
		f.Add("GET", s)
		f.Add("PUT", s)
	}
	f.Fuzz(func(t *testing.T, method, query string) {
		check := func(u User) {
			if _, err := ParseUser(u.String()); err != nil {
				t.Fatalf("user %q reached the signer", u)
			}
		}
		h := NewHandler(stub{
			put: func(_ context.Context, u User, _ io.Reader, o PutOptions) (Info, error) {
				check(u)
				return Info{Size: o.Size}, nil
			},
			link: func(_ context.Context, u User, o LinkOptions) (Link, error) {
				check(u)
				if o.TTL < 0 || ValidateDownloadName(o.Download) != nil {
					t.Fatalf("options %+v reached the signer", o)
				}
				return Link{}, nil
			},
			delete: func(_ context.Context, u User, _ Preconditions) error { check(u); return nil },
			start: func(_ context.Context, u User, size int64) (UploadSession, error) {
				check(u)
				if size < 0 {
					t.Fatalf("a size of %d reached the signer", size)
				}
				return UploadSession{}, nil
			},
			commit: func(_ context.Context, u User, id string, o CommitOptions) (Info, error) {
				check(u)
				if ValidateUploadID(id) != nil || o.Validate() != nil || (Digests{MD5: o.MD5}).Validate() != nil {
					t.Fatalf("the upload ID %q with %+v reached the signer", id, o)
				}
				return Info{}, nil
			},
		}, HandlerOptions{})
		for _, path := range []string{picturePath, linkPath, uploadPath, commitPath} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, strings.NewReader("x"))
			r.Method, r.URL.RawQuery = method, query
			r.Header.Set(contractHeader, contractVersion)
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			if rec.Code >= 500 {
				t.Fatalf("%s %s?%s: %d %s", method, path, query, rec.Code, rec.Body)
			}
		}
	})
}
