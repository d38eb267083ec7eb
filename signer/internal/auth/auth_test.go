package auth

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/access"
	"cats.example/shared/apierror"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
)

func TestGuardChecksTheToken(t *testing.T) {
	p := newProvider(t)
	good, forged, ec := rsaKey(t, "1"), rsaKey(t, "1"), ecKey(t, "2")
	p.publish(good, ec)
	der, err := x509.MarshalPKIXPublicKey(good.public)
	if err != nil {
		t.Fatal(err)
	}
	publicAsSecret := key{"1", jose.HS256, der, nil}
	payload := strings.Split(good.sign(t, p.claims()), ".")[1]
	otherUser := strings.Split(good.sign(t, p.claims("sub", "tom")), ".")
	in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	unauthenticated, forbidden := error(apierror.ErrUnauthenticated), error(apierror.ErrForbidden)
	a := fetched(t, p, nil)
	for name, c := range map[string]struct {
		token string
		want  error
	}{
		"valid":                               {good.sign(t, p.claims()), nil},
		"valid, other algorithm":              {ec.sign(t, p.claims()), nil},
		"valid, without key ID":               {key{"", good.alg, good.private, good.public}.sign(t, p.claims()), nil},
		"several audiences":                   {good.sign(t, p.claims("aud", []string{"x", audience})), nil},
		"other user":                          {good.sign(t, p.claims("sub", "tom")), forbidden},
		"user differs in case":                {good.sign(t, p.claims("sub", "Mia")), forbidden},
		"no user":                             {good.sign(t, p.claims("sub", nil)), forbidden},
		"user is a list":                      {good.sign(t, p.claims("sub", []string{"mia"})), unauthenticated},
		"missing":                             {"", unauthenticated},
		"garbage":                             {"mew", unauthenticated},
		"empty parts":                         {"..", unauthenticated},
		"alg none":                            {base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + payload + ".", unauthenticated},
		"signed with the public key (HS256)":  {publicAsSecret.sign(t, p.claims()), unauthenticated},
		"signed by another key with the ID":   {forged.sign(t, p.claims()), unauthenticated},
		"signature of another token":          {otherUser[0] + "." + payload + "." + otherUser[2], unauthenticated},
		"other issuer":                        {good.sign(t, p.claims("iss", "https://login.example.com")), unauthenticated},
		"other audience":                      {good.sign(t, p.claims("aud", "api-of-dogs")), unauthenticated},
		"no audience":                         {good.sign(t, p.claims("aud", nil)), unauthenticated},
		"expired":                             {good.sign(t, p.claims("exp", in(-ClockSkew-10*time.Second))), unauthenticated},
		"expired within the clock skew":       {good.sign(t, p.claims("exp", in(-ClockSkew+10*time.Second))), nil},
		"no expiry":                           {good.sign(t, p.claims("exp", nil)), unauthenticated},
		"expiry null":                         {good.sign(t, p.claims("exp", json.RawMessage("null"))), unauthenticated},
		"issuer in a claim with another case": {good.sign(t, p.claims("iss", nil, "Iss", p.URL)), unauthenticated},
		"not valid yet":                       {good.sign(t, p.claims("nbf", in(24*time.Hour), "exp", in(25*time.Hour))), unauthenticated},
		"valid soon, within the clock skew":   {good.sign(t, p.claims("nbf", in(2*time.Minute))), nil},
	} {
		inner := &counting{}
		err := a.Guard(inner).Delete(with(t, c.token), user(t, "mia"), signerapi.Preconditions{})
		if !errors.Is(err, c.want) || (inner.calls.Load() == 1) != (c.want == nil) {
			t.Errorf("%s: %v and %d calls; want %v", name, err, inner.calls.Load(), c.want)
		}
		if err != nil && c.token != "" && strings.Contains(err.Error(), c.token) {
			t.Errorf("%s: the error contains the token: %v", name, err)
		}
	}
}

// TestGuardChecksEveryCall also fails for a new method of the contract that guard does not check.
func TestGuardChecksEveryCall(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t, k)
	for token, want := range map[string]error{
		"": apierror.ErrUnauthenticated, "mew.mew.mew": apierror.ErrUnauthenticated,
		k.sign(t, p.claims("sub", "tom")): apierror.ErrForbidden, k.sign(t, p.claims()): nil,
	} {
		inner := &counting{}
		guarded := reflect.ValueOf(fetched(t, p, nil).Guard(inner))
		calls := 0
		for m := range reflect.TypeFor[signerapi.Signer]().Methods() {
			if m.Name == "About" || m.Name == "Ready" {
				continue
			}
			args := []reflect.Value{reflect.ValueOf(with(t, token)), reflect.ValueOf(user(t, "mia"))}
			for i := 2; i < m.Type.NumIn(); i++ {
				args = append(args, reflect.Zero(m.Type.In(i)))
			}
			results := guarded.MethodByName(m.Name).Call(args)
			if err, _ := reflect.TypeAssert[error](results[len(results)-1]); !errors.Is(err, want) {
				t.Errorf("%s with %.20q: %v; want %v", m.Name, token, err, want)
			}
			calls++
		}
		if n := inner.calls.Load(); (n == int64(calls)) != (want == nil) || n > 0 && want != nil || calls < 5 {
			t.Errorf("with %.20q: %d of %d calls passed", token, n, calls)
		}
	}
}

func TestReadAccessDecidesAboutLinks(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t, k)
	own, other := k.sign(t, p.claims()), k.sign(t, p.claims("sub", "tom"))
	for read, want := range map[access.ReadAccess]map[string]error{
		access.Own:      {own: nil, other: apierror.ErrForbidden, "": apierror.ErrUnauthenticated, "mew": apierror.ErrUnauthenticated},
		access.SignedIn: {own: nil, other: nil, "": apierror.ErrUnauthenticated, "mew": apierror.ErrUnauthenticated},
		access.Anyone:   {own: nil, other: nil, "": nil, "mew": nil},
		"unknown":       {own: nil, other: apierror.ErrForbidden, "": apierror.ErrUnauthenticated},
	} {
		a := fetched(t, p, func(o *Options) { o.ReadAccess = read })
		for token, want := range want {
			if _, err := a.Guard(&counting{}).Link(with(t, token), user(t, "mia"), signerapi.LinkOptions{}); !errors.Is(err, want) {
				t.Errorf("%s: %v; want %v", read, err, want)
			}
			if err := remove(t, a, token); (err == nil) != (token == own) {
				t.Errorf("%s: delete with %.20q: %v", read, token, err)
			}
		}
	}
}

func TestForbiddenLogsTheClaimButNoValue(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t, k)
	type list = []any
	for _, c := range []struct {
		claim  string
		claims list
		want   string // "" if the token is accepted
	}{
		{"email", list{"email", "mia", "email_verified", true}, ""},
		{"email", list{"email", "mia", "email_verified", false}, "the claim email_verified of the token is the boolean false: want the boolean true"},
		{"email", list{"email", "mia", "email_verified", "secret"}, "the claim email_verified of the token is a string: want the boolean true"},
		{"email", list{"email", "mia", "email_verified", 1}, "email_verified of the token is a number"},
		{"email", list{"email", "mia", "email_verified", list{true}}, "email_verified of the token is a list"},
		{"email", list{"email", "mia", "email_verified", json.RawMessage("null")}, "email_verified of the token is null"},
		{"email", list{"email", "mia"}, "email_verified of the token is missing"},
		{"email", list{"Email", "mia", "email_verified", true}, "the claim email of the token is missing: want a string"},
		{"oid", list{"oid", "mia", "sub", nil}, ""}, // Azure AD B2C
		{"oid", list{"oid", ""}, "the claim oid of the token cannot be a user name: the user name is empty"},
		{"oid", list{"oid", 4711}, "the claim oid of the token is a number"},
		{"oid", list{"oid", true}, "the claim oid of the token is the boolean true"},
		{"oid", list{"oid", map[string]any{"id": "secret"}}, "the claim oid of the token is an object"},
		{"oid", list{"oid", "secret"}, "the claim oid of the token names another user"},
		{"oid", list{"oid", "mia/secret"}, "the claim oid of the token cannot be a user name"},
		{"oid", list{"oid", strings.Repeat("secret", 100)}, "the claim oid of the token cannot be a user name"},
	} {
		err := remove(t, fetched(t, p, func(o *Options) { o.UserClaim = c.claim }), k.sign(t, p.claims(append(list{"sub", "secret"}, c.claims...)...)))
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

func TestKeysRotate(t *testing.T) {
	oldKey, newKey := rsaKey(t, "1"), rsaKey(t, "2")
	p := newProvider(t, oldKey)
	a := fetched(t, p, nil)
	token := func(k key) string { return k.sign(t, p.claims()) }
	if err := errors.Join(remove(t, a, token(oldKey)), remove(t, a, token(oldKey))); err != nil || p.keyRequests.Load() != 1 {
		t.Fatalf("%v after %d requests for keys; want 1", err, p.keyRequests.Load())
	}
	p.publish(oldKey, newKey)
	if err := errors.Join(remove(t, a, token(newKey)), remove(t, a, token(oldKey))); err != nil {
		t.Errorf("with both keys published: %v", err)
	}
	p.publish(newKey)
	if err := a.Fetch(t.Context()); err != nil { // as Run does every hour
		t.Fatal(err)
	}
	if err := remove(t, a, token(oldKey)); !errors.Is(err, apierror.ErrUnauthenticated) {
		t.Errorf("with a withdrawn key: %v", err)
	}
	if err := remove(t, a, token(newKey)); err != nil {
		t.Errorf("with the remaining key: %v", err)
	}
}

func TestUnknownKeysCauseFewFetches(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t, k)
	a, token := fetched(t, p, nil), rsaKey(t, "x").sign(t, p.claims())
	for range 30 {
		if err := remove(t, a, token); !errors.Is(err, apierror.ErrUnauthenticated) {
			t.Fatal(err)
		}
	}
	if n := p.keyRequests.Load(); n > keysBurst+1 {
		t.Errorf("%d requests for keys", n)
	}
	if err := remove(t, a, k.sign(t, p.claims())); err != nil {
		t.Errorf("a valid token: %v", err)
	}
}

func TestIssuerOutageIsUnavailableNotUnauthenticated(t *testing.T) {
	k, unknown := rsaKey(t, "1"), rsaKey(t, "2")
	p := newProvider(t, k)
	p.down.Store(true)
	a := newAuthenticator(p, nil)
	s := a.Guard(&counting{})
	if err := a.Fetch(t.Context()); err == nil {
		t.Fatal("the issuer is not down")
	}
	if err := s.Ready(t.Context()); !errors.Is(err, apierror.ErrIssuerUnavailable) || !strings.Contains(err.Error(), "502") {
		t.Errorf("ready: %v; want the status of the issuer", err)
	}
	if err := remove(t, a, k.sign(t, p.claims())); !errors.Is(err, apierror.ErrIssuerUnavailable) {
		t.Errorf("before the first fetch: %v", err)
	}
	p.down.Store(false)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	for s.Ready(t.Context()) != nil {
		time.Sleep(time.Millisecond)
	}
	p.down.Store(true)
	if err := remove(t, a, k.sign(t, p.claims())); err != nil {
		t.Errorf("during a later outage, known key: %v", err)
	}
	if err := remove(t, a, unknown.sign(t, p.claims())); !errors.Is(err, apierror.ErrIssuerUnavailable) {
		t.Errorf("during a later outage, unknown key: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := testutil.ToFloat64(a.outcomes.WithLabelValues(unavailable)); n != 2 {
		t.Errorf("%v calls counted as %s; want 2", n, unavailable)
	}
}

func TestCallersAreRateLimitedOneByOne(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t, k)
	for name, c := range map[string]struct {
		claim string
		of    func(user string) []any
	}{
		"by sub":                     {"sub", func(user string) []any { return []any{"sub", user} }},
		"by user name without a sub": {"oid", func(user string) []any { return []any{"sub", nil, "oid", user} }},
	} {
		s := fetched(t, p, func(o *Options) {
			o.UserClaim, o.RequestLimits = c.claim, ratelimit.RequestLimits{RateLimit: 0.01, RateBurst: 1}
		}).Guard(&counting{})
		for i, row := range []struct {
			user string
			want error
		}{{"mia", nil}, {"mia", apierror.ErrRateLimited}, {"tom", nil}} {
			err := s.Delete(with(t, k.sign(t, p.claims(c.of(row.user)...))), user(t, row.user), signerapi.Preconditions{})
			if !errors.Is(err, row.want) || row.want != nil && apierror.AsError(err).RetryAfter <= 0 {
				t.Errorf("%s, request %d: %v; want %v", name, i, err, row.want)
			}
		}
	}
}

// While the issuer does not answer, few tokens of unknown keys wait. Tokens of known keys do not wait.
func TestFewTokensWaitForTheIssuersKeys(t *testing.T) {
	k, stranger := rsaKey(t, "1"), rsaKey(t, "1")
	p := newProvider(t, k)
	waiters := ratelimit.NewPools("test", 0.0625, prometheus.NewRegistry()).New("waiters", 8)
	s := fetched(t, p, func(o *Options) { o.Waiters = waiters }).Guard(&counting{})
	waitFor := func(n int) {
		for waiters.Taken() != n {
			time.Sleep(time.Millisecond)
		}
	}
	hang := make(chan struct{})
	p.mu.Lock()
	p.handle = func(http.ResponseWriter, *http.Request) bool {
		<-hang
		return false
	}
	p.mu.Unlock()
	valid, mia := k.sign(t, p.claims()), user(t, "mia")
	unknown := []string{stranger.sign(t, p.claims()), rsaKey(t, "2").sign(t, p.claims())} // with the ID of a known key, and another
	call := func(client int, token string) error {
		return s.Delete(signerapi.WithClient(with(t, token), fmt.Sprint("client ", client)), mia, signerapi.Preconditions{})
	}
	ctx, leave := context.WithCancel(with(t, unknown[0]))
	left := make(chan error, 1)
	go func() { left <- s.Delete(ctx, mia, signerapi.Preconditions{}) }()
	waitFor(1)
	leave()
	if err := <-left; !errors.Is(err, apierror.ErrIncomplete) {
		t.Errorf("a client that leaves: %v", err)
	}
	waitFor(0)
	waiting := make(chan error, 8)
	for i := range cap(waiting) {
		go func() { waiting <- call(i, unknown[i%2]) }()
	}
	waitFor(8)
	for i := range 4 {
		if err := call(100+i, unknown[i%2]); !errors.Is(err, apierror.ErrOverloaded) {
			t.Errorf("a ninth waiter: %v; want ErrOverloaded", err)
		}
		if err := call(0, unknown[i%2]); !errors.Is(err, apierror.ErrRateLimited) {
			t.Errorf("a second waiter of a client: %v; want ErrRateLimited", err)
		}
		if err := call(i, valid); err != nil {
			t.Errorf("a token of a known key: %v", err)
		}
	}
	close(hang)
	for range cap(waiting) {
		if err := <-waiting; !errors.Is(err, apierror.ErrUnauthenticated) {
			t.Errorf("a token that waited: %v; want ErrUnauthenticated", err)
		}
	}
}
