package signerapi

import (
	"errors"
	"net/http"
	"net/url"
	"path"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"cats.example/shared/apierror"
)

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

// FuzzArguments parses arbitrary queries: arguments that are accepted are valid, and cross the wire unchanged.
func FuzzArguments(f *testing.F) {
	for _, s := range []string{
		"user=a", "user=a&ttl_seconds=60", "user=%2e%2e", "user=a&download=x%22.png", "user=a;b", "%", "user=a&size=0", "user=a&if_match=*&md5=" + strings.Repeat("0a", 16),
		"user=a&min_size=1&max_size=9223372036854775807", "user=a&user=b", "user=a&upload_id=1-1-A",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, query string) {
		user, args, err := parseArguments(query)
		if err != nil {
			if e := apierror.AsError(err); e.Status != http.StatusUnprocessableEntity {
				t.Fatalf("%q: %v", query, err)
			}
			return
		}
		if _, err := ParseUser(user.String()); err != nil || args.TTL < 0 || args.Size < -1 || args.MinSize < 0 || args.MaxSize < 0 ||
			args.Preconditions.Validate() != nil || args.Digests.Validate() != nil || ValidateDownloadName(args.Download) != nil {
			t.Fatalf("%q is accepted as %q with %+v", query, user, args)
		}
		if who, again, err := parseArguments(args.query()); err != nil || who != user || !reflect.DeepEqual(args, again) {
			t.Fatalf("%q crosses the wire as %q with %+v, %v; want %q with %+v", query, who, again, err, user, args)
		}
	})
}
