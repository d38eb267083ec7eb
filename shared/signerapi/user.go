package signerapi

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"cats.example/shared/apierror"
)

// Maximum lengths, in bytes of UTF-8.
const (
	MaxUserName     = 128
	MaxDownloadName = 255
)

// User is a validated user name. Only [ParseUser] makes one; the zero value is no user. Each process parses a name once, where it
// enters the process, so that a function with a User need not validate it.
type User struct{ name string }

// ParseUser returns name as a User if it can be one path segment of a blob name and of a URL without being changed: 1 to 128
// bytes of valid UTF-8, in any script. Case and spaces are kept. It returns ErrInvalidUser, whose detail names the rule, for:
//
//   - "/" and "\", because Blob Storage treats both as separators;
//   - control characters and line separators;
//   - private-use characters and Unicode noncharacters, which Blob Storage answers with 400;
//   - a dot at the end, "." and ".." included, because Blob Storage drops it.
//
// Source: https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
func ParseUser(name string) (User, error) {
	switch {
	case name == "":
		return User{}, invalidUser("is empty")
	case len(name) > MaxUserName:
		return User{}, invalidUser("is longer than %d bytes of UTF-8", MaxUserName)
	case !utf8.ValidString(name):
		return User{}, invalidUser("is not valid UTF-8")
	case strings.ContainsAny(name, `/\`):
		return User{}, invalidUser(`must not contain "/" or "\"`)
	case strings.ContainsFunc(name, isControl):
		return User{}, invalidUser("must not contain control characters")
	case strings.ContainsFunc(name, func(r rune) bool { return unicode.In(r, unicode.Co, unicode.Noncharacter_Code_Point) }):
		return User{}, invalidUser("must not contain private-use characters or Unicode noncharacters")
	case strings.HasSuffix(name, "."):
		return User{}, invalidUser("must not end with a dot")
	}
	return User{name}, nil
}

func invalidUser(format string, args ...any) error {
	return apierror.ErrInvalidUser.WithDetail("the user name " + fmt.Sprintf(format, args...))
}

// String returns the name as it was parsed.
func (u User) String() string { return u.name }

// isControl reports whether r is a C0 or C1 control character, or one of the two separators that some programs treat as the end
// of a line.
func isControl(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }

// ValidateDownloadName returns ErrInvalidArgument unless name is valid UTF-8 of at most 255 bytes without "/", "\" and control
// characters. "" is valid.
func ValidateDownloadName(name string) error {
	fault := ""
	switch {
	case len(name) > MaxDownloadName:
		fault = fmt.Sprintf("is longer than %d bytes of UTF-8", MaxDownloadName)
	case !utf8.ValidString(name):
		fault = "is not valid UTF-8"
	case strings.ContainsAny(name, `/\`) || strings.ContainsFunc(name, isControl):
		fault = `must not contain "/", "\" or control characters`
	default:
		return nil
	}
	return apierror.ErrInvalidArgument.WithDetail("download: the file name " + fault)
}
