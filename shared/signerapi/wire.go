package signerapi

import (
	"cmp"
	"encoding/hex"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"cats.example/shared/apierror"
)

// Paths of the calls.
const (
	picturePath = "/v1/picture"
	linkPath    = "/v1/link"
	uploadPath  = "/v1/uploads"
	commitPath  = "/v1/commit"
	aboutPath   = "/v1/about"
	readyPath   = "/v1/ready"
)

// Header fields of a request; see the package comment.
const (
	contractHeader  = "Cats-Contract"
	contractVersion = "1"
	clientHeader    = "Cats-Client"
)

// arguments are the arguments of all calls. They are the query of a request. Each call uses some of them.
type arguments struct {
	user, uploadID string
	PutOptions
	LinkOptions
}

// argumentsOf returns arguments that only have a user.
func argumentsOf(user User) *arguments {
	return &arguments{user: user.String(), PutOptions: PutOptions{Size: -1}}
}

// argument is one argument: its name in the query, and a pointer to its value.
type argument struct {
	name  string
	value any
}

// all returns all arguments. An array needs no allocation.
func (a *arguments) all() [12]argument {
	return [12]argument{
		{"user", &a.user},
		{"upload_id", &a.uploadID},
		{"size", &a.Size},
		{"min_size", &a.MinSize},
		{"max_size", &a.MaxSize},
		{"if_match", &a.IfMatch},
		{"if_none_match", &a.IfNoneMatch},
		{"md5", &a.MD5},
		{"sha256", &a.SHA256},
		{"sha512", &a.SHA512},
		{"ttl_seconds", &a.TTL},
		{"download", &a.Download},
	}
}

// query returns the arguments that are set as a query.
func (a *arguments) query() string {
	var query []string
	for _, arg := range a.all() {
		var value string
		switch v := arg.value.(type) {
		case *string:
			value = *v
		case *[]byte:
			value = hex.EncodeToString(*v)
		case *int64:
			if *v > 0 || *v == 0 && v == &a.Size { // a Size of 0 is a known size
				value = strconv.FormatInt(*v, 10)
			}
		case *time.Duration:
			if *v != 0 {
				value = strconv.FormatFloat(v.Seconds(), 'f', -1, 64) // the signer rejects fractions
			}
		}
		if value != "" {
			query = append(query, arg.name+"="+url.QueryEscape(value))
		}
	}
	return strings.Join(query, "&")
}

// parseArguments returns the user and the other arguments of a query after it has validated them. It rejects arguments that are
// given twice: another parser might use the other value.
func parseArguments(query string) (User, *arguments, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return User{}, nil, apierror.ErrInvalidArgument.WithDetail("the query is not valid")
	}
	a := argumentsOf(User{})
	all := a.all()
	for name, given := range values {
		i := slices.IndexFunc(all[:], func(arg argument) bool { return arg.name == name })
		if i < 0 || len(given) == 1 && given[0] == "" {
			continue
		}
		value, valid := given[0], len(given) == 1
		switch v := all[i].value.(type) {
		case *string:
			*v = value
		case *[]byte:
			*v, err = hex.DecodeString(value)
		case *int64:
			*v, err = strconv.ParseInt(value, 10, 64)
			valid = valid && *v >= 0
		case *time.Duration:
			var seconds int64
			seconds, err = strconv.ParseInt(value, 10, 64)
			valid = valid && 0 < seconds && seconds <= int64(math.MaxInt64/time.Second)
			*v = time.Duration(seconds) * time.Second
		}
		if err != nil || !valid {
			return User{}, nil, apierror.ErrInvalidArgument.WithDetail(name + ": the value is not valid, or there is more than one")
		}
	}
	user, err := ParseUser(a.user)
	return user, a, cmp.Or(err, a.Preconditions.Validate(), a.Digests.Validate(), ValidateDownloadName(a.Download))
}
