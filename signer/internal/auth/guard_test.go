package auth

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"cats.example/shared/apierror"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
)

// The log says why a token was rejected, and holds no value of the token.
func TestLogSaysWhyAClaimIsNoName(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t, k)
	type list = []any
	for _, c := range []struct {
		claim  string
		claims list
		want   string // "" for a caller who may
	}{
		{"email", list{"email", "mia", "email_verified", true}, ""},
		{"email", list{"email", "mia", "email_verified", false}, "the claim email_verified of the token is the boolean false: want the boolean true"},
		{"email", list{"email", "mia", "email_verified", "true"}, "the claim email_verified of the token is a string: want the boolean true"},
		{"email", list{"email", "mia", "email_verified", "secret"}, "email_verified of the token is a string"},
		{"email", list{"email", "mia", "email_verified", 1}, "email_verified of the token is a number"},
		{"email", list{"email", "mia", "email_verified", list{true}}, "email_verified of the token is a list"},
		{"email", list{"email", "mia", "email_verified", json.RawMessage("null")}, "email_verified of the token is null"},
		{"email", list{"email", "mia"}, "email_verified of the token is missing"},
		{"email", list{"Email", "mia", "email_verified", true}, "the claim email of the token is missing: want a string"},
		{"email", list{"email", list{"mia"}, "email_verified", true}, "the claim email of the token is a list"},
		{"oid", list{"oid", "mia"}, ""},
		{"oid", list{"oid", "mia", "sub", nil}, ""}, // as Azure AD B2C may have it
		{"oid", list{}, "the claim oid of the token is missing"},
		{"oid", list{"oid", json.RawMessage("null")}, "the claim oid of the token is null"},
		{"oid", list{"oid", ""}, "the claim oid of the token cannot be a user name: the user name is empty"},
		{"oid", list{"oid", 4711}, "the claim oid of the token is a number"},
		{"oid", list{"oid", true}, "the claim oid of the token is the boolean true"},
		{"oid", list{"oid", map[string]any{"id": "secret"}}, "the claim oid of the token is an object"},
		{"oid", list{"oid", "secret"}, "the claim oid of the token names another user"},
		{"oid", list{"oid", "Mia"}, "the claim oid of the token names another user"},
		{"oid", list{"oid", "mia/secret"}, "the claim oid of the token cannot be a user name: the user name must not contain"},
		{"oid", list{"oid", "https://secret.example/#me"}, "the claim oid of the token cannot be a user name"},
		{"oid", list{"oid", strings.Repeat("secret", 100)}, "the claim oid of the token cannot be a user name: the user name is longer than"},
	} {
		s := knowing(t, p, func(o *Options) { o.Claim = c.claim }).Guard(&counting{})
		token := k.sign(t, p.claims(append(list{"sub", "secret"}, c.claims...)...))
		err := s.Delete(with(t, token), user(t, "mia"), signerapi.Preconditions{})
		if c.want == "" {
			if err != nil {
				t.Errorf("%v: %v", c.claims, err)
			}
			continue
		}
		if !errors.Is(err, apierror.ErrForbidden) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), "4711") {
			t.Errorf("%v: %v; want %s", c.claims, err, c.want)
		}
		if detail := apierror.AsError(err).Detail; strings.Contains(detail, "claim") {
			t.Errorf("%v: the client reads %q", c.claims, detail)
		}
	}
}

// This fails for a new call of the contract that guard does not check.
func TestGuardRejectsEveryCallWithoutAToken(t *testing.T) {
	p := newProvider(t, rsaKey(t, "1"))
	inner := &counting{}
	guarded := reflect.ValueOf(knowing(t, p, nil).Guard(inner))
	contract := reflect.TypeFor[signerapi.Signer]()
	for m := range contract.Methods() {
		if m.Name == "About" || m.Name == "Ready" {
			continue
		}
		for name, token := range map[string]string{"no token": "", "a token of nobody": "mew.mew.mew"} {
			args := []reflect.Value{reflect.ValueOf(with(t, token))}
			for i := 1; i < m.Type.NumIn(); i++ {
				args = append(args, reflect.Zero(m.Type.In(i)))
			}
			results := guarded.MethodByName(m.Name).Call(args)
			if err, _ := reflect.TypeAssert[error](results[len(results)-1]); !errors.Is(err, apierror.ErrUnauthenticated) {
				t.Errorf("%s with %s: %v", m.Name, name, err)
			}
		}
	}
	if n := inner.calls.Load(); n > 0 {
		t.Errorf("%d calls came through", n)
	}
}

func TestCallersWithoutSubAreCountedByName(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t, k)
	s := knowing(t, p, func(o *Options) {
		o.Claim, o.RequestLimits = "oid", ratelimit.RequestLimits{RateLimit: 0.01, RateBurst: 1}
	}).Guard(&counting{})
	for _, c := range []struct {
		name string
		want error
	}{{"mia", nil}, {"mia", apierror.ErrRateLimited}, {"tom", nil}} {
		token := k.sign(t, p.claims("sub", nil, "oid", c.name))
		if err := s.Delete(with(t, token), user(t, c.name), signerapi.Preconditions{}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v; want %v", c.name, err, c.want)
		}
	}
}
