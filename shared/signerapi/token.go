package signerapi

import (
	"context"
	"net/http"
	"strings"

	"cats.example/shared/apierror"
)

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
