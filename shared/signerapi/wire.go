package signerapi

import (
	"cmp"
	"context"
	"encoding/hex"
	"math"
	"net/http"
	"net/url"
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
	for _, arg := range a.all() {
		value, valid := values.Get(arg.name), len(values[arg.name]) <= 1
		if value == "" && valid {
			continue
		}
		switch v := arg.value.(type) {
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
			return User{}, nil, apierror.ErrInvalidArgument.WithDetail(arg.name + ": the value is not valid, or there is more than one")
		}
	}
	user, err := ParseUser(a.user)
	return user, a, cmp.Or(err, a.Preconditions.Validate(), a.Digests.Validate(), ValidateDownloadName(a.Download))
}

// Token is a bearer token as the client sent it. It is not verified.
type Token = Secret

// BearerToken returns the bearer token of a request (RFC 6750 section 2.1), or "" if there is no Authorization field. It returns
// ErrUnauthenticated if there is more than one field, or another scheme, or a token that is not a token68 (RFC 9110 section
// 11.2).
func BearerToken(h http.Header) (Token, error) {
	const token68 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/="
	fields := h["Authorization"]
	if len(fields) == 0 {
		return "", nil
	}
	scheme, token, _ := strings.Cut(fields[0], " ")
	token = strings.TrimLeft(token, " ")
	if len(fields) > 1 || !strings.EqualFold(scheme, "Bearer") || token == "" || strings.Trim(token, token68) != "" {
		return "", apierror.ErrUnauthenticated.WithDetail("Authorization: want one bearer token, as in Authorization: Bearer TOKEN")
	}
	return Token(token), nil
}

// contextKey is the key of a value in a context.
type contextKey string

const (
	tokenKey  contextKey = "token"
	clientKey contextKey = "client"
	callerKey contextKey = "caller"
)

func value[T ~string](ctx context.Context, key contextKey) T {
	v, _ := ctx.Value(key).(T)
	return v
}

// WithToken returns ctx with the bearer token of the caller, which [Client] sends to the signer.
func WithToken(ctx context.Context, t Token) context.Context {
	return context.WithValue(ctx, tokenKey, t)
}

// TokenFrom returns the bearer token of the caller, or "".
func TokenFrom(ctx context.Context) Token { return value[Token](ctx, tokenKey) }

// WithClient returns ctx with the key of the client, which [Client] sends to the signer. The signer limits how many slots of its
// pools one client takes. The key is not a proof of identity.
func WithClient(ctx context.Context, client string) context.Context {
	return context.WithValue(ctx, clientKey, client)
}

// ClientFrom returns the key of the client, or "".
func ClientFrom(ctx context.Context) string { return value[string](ctx, clientKey) }

// WithCaller returns ctx with the key of the authenticated caller. It does not leave the process.
func WithCaller(ctx context.Context, caller string) context.Context {
	return context.WithValue(ctx, callerKey, caller)
}

// CallerFrom returns the key of the authenticated caller, or "".
func CallerFrom(ctx context.Context) string { return value[string](ctx, callerKey) }
