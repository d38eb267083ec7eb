package signerapi

import (
	"context"
	"net/http"
	"strings"

	"cats.example/shared/apierror"
)

// Token is the bearer token of a caller, as it came and not checked.
type Token = Secret

// BearerToken returns the bearer token in a request's header, RFC 6750 section 2.1, and
// "" where there is no Authorization field. One that holds anything else, and
// several, are apierror.ErrUnauthenticated.
func BearerToken(h http.Header) (Token, error) {
	fields := h["Authorization"]
	if len(fields) == 0 {
		return "", nil
	}
	scheme, token, _ := strings.Cut(fields[0], " ")
	token = strings.TrimLeft(token, " ")
	if len(fields) > 1 || !strings.EqualFold(scheme, "Bearer") || token == "" || !IsToken68(token) {
		return "", apierror.ErrUnauthenticated.WithDetail("Authorization: want one bearer token, as in Authorization: Bearer TOKEN")
	}
	return Token(token), nil
}

// IsToken68 reports whether s has only characters of a token68 (RFC 9110 section 11.2), as bearer tokens have.
func IsToken68(s string) bool {
	const characters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/="
	return strings.Trim(s, characters) == ""
}

type tokenKey struct{}

// WithToken returns ctx with the token of the caller on whose behalf a call is made.
func WithToken(ctx context.Context, t Token) context.Context {
	return context.WithValue(ctx, tokenKey{}, t)
}

// TokenFrom returns the token of the caller on whose behalf a call is made, "" for none.
func TokenFrom(ctx context.Context) Token {
	t, _ := ctx.Value(tokenKey{}).(Token)
	return t
}

type clientKey struct{}

// WithClient returns ctx with the key of the client on whose behalf a call is made. The client of the contract sends it to the
// signer, which bounds what one client takes of the pools that are for all. It is no proof of an identity.
func WithClient(ctx context.Context, client string) context.Context {
	return context.WithValue(ctx, clientKey{}, client)
}

// ClientFrom returns the key of the client on whose behalf a call is made, "" for none.
func ClientFrom(ctx context.Context) string {
	client, _ := ctx.Value(clientKey{}).(string)
	return client
}

type callerKey struct{}

// WithCaller returns ctx with the key of the authenticated caller. It does not leave the process.
func WithCaller(ctx context.Context, caller string) context.Context {
	return context.WithValue(ctx, callerKey{}, caller)
}

// CallerFrom returns the key of the authenticated caller, "" for none.
func CallerFrom(ctx context.Context) string {
	caller, _ := ctx.Value(callerKey{}).(string)
	return caller
}
