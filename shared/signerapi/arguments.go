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

// arguments are those of all calls; each call has some of them. They are the query of a request.
type arguments struct {
	user, uploadID string
	PutOptions
	LinkOptions
}

// argumentsFor returns arguments with the user alone.
func argumentsFor(user User) *arguments {
	return &arguments{user: user.String(), PutOptions: PutOptions{Size: -1}}
}

// argument is one of the query.
type argument struct {
	name string
	to   any // pointer to its value
}

// all returns pointers to the arguments. The array needs no allocation.
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
		switch v := arg.to.(type) {
		case *string:
			value = *v
		case *[]byte:
			value = hex.EncodeToString(*v)
		case *int64:
			if *v > 0 || *v == 0 && v == &a.Size { // a picture may be announced as empty
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

// parseArguments returns the arguments in query and their user, all checked. An argument given twice is an error: two readers
// might not pick the same one.
func parseArguments(query string) (User, *arguments, error) {
	a := argumentsFor(User{})
	values, err := url.ParseQuery(query)
	if err != nil {
		return User{}, nil, apierror.ErrInvalidArgument.WithDetail("the query cannot be read")
	}
	all := a.all()
	for name, given := range values {
		i := slices.IndexFunc(all[:], func(arg argument) bool { return arg.name == name })
		if i < 0 || len(given) == 1 && given[0] == "" {
			continue
		}
		value, valid := given[0], len(given) == 1
		switch v := all[i].to.(type) {
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
			return User{}, nil, apierror.ErrInvalidArgument.WithDetail(name + ": given twice, or not valid")
		}
	}
	user, err := ParseUser(a.user)
	return user, a, cmp.Or(err, a.Preconditions.Validate(), a.Digests.Validate(), ValidateDownloadName(a.Download))
}
