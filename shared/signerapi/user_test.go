package signerapi

import (
	"errors"
	"net/url"
	"path"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestUserNamesOfAnyScriptAreKept(t *testing.T) {
	for _, name := range []string{"Davyd", "Мурчик", "a b", "猫", "🐱", "a+b", "%2F", ".hidden", "a..b", strings.Repeat("x", MaxUserName)} {
		u, err := ParseUser(name)
		if err != nil || u.String() != name {
			t.Errorf("ParseUser(%q) = %q, %v; want it as it is", name, u, err)
		}
	}
}

func TestUserNamesThatCouldMeanAnotherBlobAreRefused(t *testing.T) {
	for _, name := range []string{
		"", ".", "..", "a.", "...", "a/b", "/", `a\b`, "../x", "a\x00b", "a\nb", "\x7f", "\u0085", "\u2028",
		"\xff", "a\xc3", strings.Repeat("x", MaxUserName+1), strings.Repeat("猫", 43),
	} {
		if u, err := ParseUser(name); !errors.Is(err, ErrInvalidUser) {
			t.Errorf("ParseUser(%q) = %q, %v; want ErrInvalidUser", name, u, err)
		}
	}
}

// FuzzParseUser holds what the blob name and the URL rely on.
func FuzzParseUser(f *testing.F) {
	for _, s := range []string{"Davyd", "..", "a/b", "猫", "\xff", "a ", "a%2Fb", "\u202e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		u, err := ParseUser(name)
		if err != nil {
			if !errors.Is(err, ErrInvalidUser) || u != (User{}) {
				t.Fatalf("ParseUser(%q) = %q, %v", name, u, err)
			}
			return
		}
		if u.String() != name || !utf8.ValidString(name) || len(name) > MaxUserName {
			t.Fatalf("ParseUser(%q) accepted it as %q", name, u)
		}
		if blob := u.String() + "/cat"; path.Clean(blob) != blob || strings.Count(blob, "/") != 1 {
			t.Fatalf("%q is another blob once cleaned", blob)
		}
		if back, err := url.PathUnescape(url.PathEscape(name)); err != nil || back != name {
			t.Fatalf("%q does not survive a URL: %q, %v", name, back, err)
		}
	})
}
