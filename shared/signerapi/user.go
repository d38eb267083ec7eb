package signerapi

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"cats.example/shared/apierror"
)

// MaxUserName is the longest user name, in bytes of UTF-8.
const MaxUserName = 128

// User is a checked user name. The zero value is no user: only [ParseUser] makes
// one, once at the edge of each process, so that whoever holds a User need not
// check it again.
type User struct{ name string }

// ParseUser checks that name can be one path segment of a blob name and of a
// URL without ever meaning another: valid UTF-8, 1 to 128 bytes, no "/", no "\"
// (Blob Storage turns it into "/"), no control characters, not "." or "..", no
// trailing dot (Blob Storage drops it). Private-use characters and noncharacters are
// rejected too: Blob Storage answers 400 to them ("Naming and referencing containers,
// blobs, and metadata"). Case, spaces and any script are kept as
// they are. The error is apierror.ErrInvalidUser and says which rule was broken.
func ParseUser(name string) (User, error) {
	switch {
	case name == "":
		return User{}, apierror.ErrInvalidUser.WithDetail("the user name is empty")
	case len(name) > MaxUserName:
		return User{}, apierror.ErrInvalidUser.WithDetail("the user name is longer than 128 bytes of UTF-8")
	case !utf8.ValidString(name):
		return User{}, apierror.ErrInvalidUser.WithDetail("the user name is not valid UTF-8")
	case strings.ContainsAny(name, `/\`):
		return User{}, apierror.ErrInvalidUser.WithDetail(`the user name must not hold "/" or "\"`)
	case strings.ContainsFunc(name, isControl):
		return User{}, apierror.ErrInvalidUser.WithDetail("the user name must not hold control characters")
	case strings.ContainsFunc(name, func(r rune) bool { return unicode.In(r, unicode.Co, unicode.Noncharacter_Code_Point) }):
		return User{}, apierror.ErrInvalidUser.WithDetail("the user name must not hold private-use characters or Unicode noncharacters")
	case strings.HasSuffix(name, "."): // "." and ".." among them
		return User{}, apierror.ErrInvalidUser.WithDetail("the user name must not end with a dot")
	}
	return User{name}, nil
}

// String returns the name as it was parsed.
func (u User) String() string { return u.name }

// isControl reports the C0 and C1 controls, and the two separators that some
// readers take for a line end.
func isControl(r rune) bool {
	return unicode.IsControl(r) || r == '\u2028' || r == '\u2029'
}

// ValidateDownloadName returns apierror.ErrInvalidArgument unless name can be the file name
// of a download as [LinkOptions] describes it.
func ValidateDownloadName(name string) error {
	switch {
	case len(name) > MaxDownloadName:
		return apierror.ErrInvalidArgument.WithDetail("download: the file name is longer than 255 bytes of UTF-8")
	case !utf8.ValidString(name):
		return apierror.ErrInvalidArgument.WithDetail("download: the file name is not valid UTF-8")
	case strings.ContainsAny(name, `/\`) || strings.ContainsFunc(name, isControl):
		return apierror.ErrInvalidArgument.WithDetail(`download: the file name must not hold "/", "\" or control characters`)
	}
	return nil
}
