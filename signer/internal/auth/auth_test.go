package auth

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/access"
	"cats.example/shared/apierror"
	"cats.example/shared/ratelimit"
	"cats.example/shared/signerapi"
	"cats.example/signer/internal/storagetest"
)

func TestAuthorizeChecksTheToken(t *testing.T) {
	p := newProvider(t)
	good, forged, ec := rsaKey(t, "1"), rsaKey(t, "1"), ecKey(t, "2")
	anyAlg := key{"3", "", good.private, good.public}
	p.publish(good, ec, anyAlg)
	der, err := x509.MarshalPKIXPublicKey(good.public)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(change ...any) string { return good.sign(t, p.claims(change...)) }
	payload, long := strings.Split(changed(), ".")[1], strings.Repeat("x", 12_000)
	otherUser := strings.Split(changed("sub", "tom"), ".")
	header := func(alg string) string { return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"` + alg + `"}`)) }
	in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	unauthenticated, forbidden := error(apierror.ErrUnauthenticated), error(apierror.ErrForbidden)
	a := fetched(t, p, nil)
	for name, c := range map[string]struct {
		token string
		want  error
	}{
		"valid":                               {changed(), nil},
		"valid, other algorithm":              {ec.sign(t, p.claims()), nil},
		"valid, without key ID":               {key{"", good.alg, good.private, nil}.sign(t, p.claims()), nil},
		"valid, key without algorithm":        {key{"3", jose.PS256, good.private, nil}.sign(t, p.claims()), nil},
		"other algorithm than the key's":      {key{"1", jose.PS256, good.private, nil}.sign(t, p.claims()), unauthenticated},
		"several audiences":                   {changed("aud", []string{"x", audience}), nil},
		"other user":                          {changed("sub", "tom"), forbidden},
		"user differs in case":                {changed("sub", "Mia"), forbidden},
		"no user":                             {changed("sub", nil), forbidden},
		"user is a list":                      {changed("sub", []string{long}), unauthenticated},
		"missing":                             {"", unauthenticated},
		"garbage":                             {long, unauthenticated},
		"empty parts":                         {"..", unauthenticated},
		"alg none":                            {header("none") + "." + payload + ".", unauthenticated},
		"long alg":                            {header(long) + ".e30.AAAA", unauthenticated},
		"signed with the public key (HS256)":  {key{"1", jose.HS256, der, nil}.sign(t, p.claims()), unauthenticated},
		"signed by another key with the ID":   {forged.sign(t, p.claims()), unauthenticated},
		"signature of another token":          {otherUser[0] + "." + payload + "." + otherUser[2], unauthenticated},
		"other issuer":                        {changed("iss", "https://"+long), unauthenticated},
		"other audience":                      {changed("aud", long), unauthenticated},
		"many audiences":                      {changed("aud", strings.Split(long, "")), unauthenticated},
		"no audience":                         {changed("aud", nil), unauthenticated},
		"expired":                             {changed("exp", in(-ClockSkew-10*time.Second)), unauthenticated},
		"expired within the clock skew":       {changed("exp", in(-ClockSkew+10*time.Second)), nil},
		"long expiry":                         {changed("exp", json.Number("1"+strings.Repeat("0", 5000))), unauthenticated},
		"no expiry":                           {changed("exp", nil), unauthenticated},
		"expiry null":                         {changed("exp", json.RawMessage("null")), unauthenticated},
		"issuer in a claim with another case": {changed("iss", nil, "Iss", p.URL), unauthenticated},
		"not valid yet":                       {changed("nbf", in(24*time.Hour), "exp", in(25*time.Hour)), unauthenticated},
		"valid soon, within the clock skew":   {changed("nbf", in(2*time.Minute)), nil},
	} {
		err := a.authorize(t.Context(), t, c.token)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v; want %v", name, err, c.want)
		}
		if err != nil && (len(err.Error()) > 500 || c.token != "" && strings.Contains(err.Error(), c.token)) {
			t.Errorf("%s: the error is long or contains the token: %.600v", name, err)
		}
	}
}

func TestRuleAndReadAccessDecide(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t, k)
	own, other := k.sign(t, p.claims()), k.sign(t, p.claims("sub", "tom"))
	unauthenticated, forbidden := error(apierror.ErrUnauthenticated), error(apierror.ErrForbidden)
	for _, c := range []struct {
		read   access.ReadAccess
		rule   signerapi.Rule
		others [3]error // of another user's token, of none, and of an invalid one
	}{
		{access.Own, signerapi.Readers, [3]error{forbidden, unauthenticated, unauthenticated}},
		{access.SignedIn, signerapi.Readers, [3]error{nil, unauthenticated, unauthenticated}},
		{access.Anyone, signerapi.Readers, [3]error{}},
		{"unknown", signerapi.Readers, [3]error{forbidden, unauthenticated, unauthenticated}},
		{access.Anyone, signerapi.Owner, [3]error{forbidden, unauthenticated, unauthenticated}},
		{access.Anyone, 77, [3]error{forbidden, unauthenticated, unauthenticated}},
	} {
		a := fetched(t, p, func(s *Settings) { s.ReadAccess = c.read })
		for token, want := range map[string]error{own: nil, other: c.others[0], "": c.others[1], "mew": c.others[2]} {
			ctx, err := a.Authorize(signerapi.WithToken(t.Context(), signerapi.Token(token)), storagetest.User(t, "mia"), c.rule)
			if !errors.Is(err, want) {
				t.Errorf("%s, rule %d, token %.9q: %v; want %v", c.read, c.rule, token, err, want)
			}
			if token == own && c.others[1] != nil && signerapi.CallerFrom(ctx) != "mia" {
				t.Errorf("%s, rule %d: the caller is %q", c.read, c.rule, signerapi.CallerFrom(ctx))
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
		{"email", list{"email", "mia", "email_verified", false}, "email_verified of the token is missing or not the boolean true (bool)"},
		{"email", list{"email", "mia", "email_verified", "true"}, "email_verified of the token is missing or not the boolean true (string)"},
		{"email", list{"email", "mia"}, "email_verified of the token is missing"},
		{"email", list{"Email", "mia", "email_verified", true}, "the claim email of the token is missing or no string (<nil>)"},
		{"oid", list{"oid", "mia", "sub", nil}, ""}, // Azure AD B2C
		{"oid", list{"oid", ""}, "the claim oid of the token cannot be a user name: the user name is empty"},
		{"oid", list{"oid", 4711}, "the claim oid of the token is missing or no string (float64)"},
		{"oid", list{"oid", map[string]any{"id": "secret"}}, "the claim oid of the token is missing or no string (map"},
		{"oid", list{"oid", "secret"}, "the claim oid of the token names another user"},
		{"oid", list{"oid", "mia/secret"}, "the claim oid of the token cannot be a user name"},
	} {
		a := fetched(t, p, func(s *Settings) { s.UserClaim = c.claim })
		err := a.authorize(t.Context(), t, k.sign(t, p.claims(append(list{"sub", "secret"}, c.claims...)...)))
		if c.want == "" && err == nil {
			continue
		}
		text := fmt.Sprint(err)
		leaks := strings.Contains(text, "secret") || strings.Contains(text, "4711")
		if !errors.Is(err, apierror.ErrForbidden) || !strings.Contains(text, c.want) || leaks {
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
	authorize := func(k key) error { return a.authorize(t.Context(), t, k.sign(t, p.claims())) }
	if err := errors.Join(authorize(oldKey), authorize(oldKey)); err != nil || p.keyRequests.Load() != 1 {
		t.Fatalf("%v after %d requests for keys; want 1", err, p.keyRequests.Load())
	}
	p.publish(oldKey, newKey)
	if err := errors.Join(authorize(newKey), authorize(oldKey)); err != nil {
		t.Errorf("with both keys published: %v", err)
	}
	p.publish(newKey)
	if err := a.Fetch(t.Context()); err != nil { // as Run does every hour
		t.Fatal(err)
	}
	if old, err := authorize(oldKey), authorize(newKey); !errors.Is(old, apierror.ErrUnauthenticated) || err != nil {
		t.Errorf("the withdrawn key: %v; the remaining key: %v", old, err)
	}
	before, unknown := p.keyRequests.Load(), rsaKey(t, "x")
	for range 30 {
		if err := authorize(unknown); !errors.Is(err, apierror.ErrUnauthenticated) {
			t.Fatal(err)
		}
	}
	if n := p.keyRequests.Load() - before; n > keysBurst+10 || authorize(newKey) != nil {
		t.Errorf("unknown keys cause %d requests for keys", n)
	}
}

func TestIssuerOutageIsUnavailableNotUnauthenticated(t *testing.T) {
	k, unknown := rsaKey(t, "1"), rsaKey(t, "2")
	p := newProvider(t, k)
	p.failWith(badGateway)
	a := newAuthenticator(p, nil)
	authorize := func(k key) error { return a.authorize(t.Context(), t, k.sign(t, p.claims())) }
	if err := authorize(k); !errors.Is(err, apierror.ErrIssuerUnavailable) {
		t.Errorf("before the first fetch: %v", err)
	}
	if err := a.Fetch(t.Context()); err == nil || !strings.Contains(a.Ready().Error(), "502") {
		t.Errorf("after a fetch that failed with %v: %v; want the status of the issuer", err, a.Ready())
	}
	p.failWith(nil)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { a.Run(ctx); close(ended) }()
	for a.Ready() != nil {
		time.Sleep(time.Millisecond)
	}
	p.failWith(badGateway)
	if err := authorize(k); err != nil {
		t.Errorf("during a later outage, known key: %v", err)
	}
	if err := authorize(unknown); !errors.Is(err, apierror.ErrIssuerUnavailable) {
		t.Errorf("during a later outage, unknown key: %v", err)
	}
	cancel()
	<-ended
	if n := testutil.ToFloat64(a.outcomes.WithLabelValues("issuer_unavailable")); n != 2 {
		t.Errorf("%v calls are counted; want 2", n)
	}
}

func TestCallersAreRateLimitedOneByOne(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t, k)
	for name, c := range map[string]struct {
		claim string
		sub   any
	}{"by sub": {"sub", "mia"}, "by user name without a sub": {"oid", nil}} {
		a := fetched(t, p, func(s *Settings) {
			s.UserClaim, s.RequestLimits = c.claim, ratelimit.RequestLimits{RateLimit: 0.01, RateBurst: 1}
		})
		mia, tom := k.sign(t, p.claims("oid", "mia", "sub", c.sub)), k.sign(t, p.claims("oid", "tom", "sub", "tom"))
		first, second, other := a.authorize(t.Context(), t, mia), a.authorize(t.Context(), t, mia), a.authorize(t.Context(), t, tom)
		limited := errors.Is(second, apierror.ErrRateLimited) && apierror.AsError(second).RetryAfter > 0
		if first != nil || !limited || !errors.Is(other, apierror.ErrForbidden) {
			t.Errorf("%s: %v, then %v; another caller: %v", name, first, second, other)
		}
	}
}

// While the issuer does not answer, few tokens of unknown keys wait. Tokens of known keys do not wait.
func TestFewTokensWaitForTheIssuersKeys(t *testing.T) {
	k, stranger := rsaKey(t, "1"), rsaKey(t, "1")
	p := newProvider(t, k)
	a := fetched(t, p, nil)
	waitFor := func(n int) {
		for a.waiters.Taken() != n {
			time.Sleep(time.Millisecond)
		}
	}
	hang := make(chan struct{})
	p.failWith(func(http.ResponseWriter, *http.Request) { <-hang })
	valid := k.sign(t, p.claims())
	unknown := []string{stranger.sign(t, p.claims()), rsaKey(t, "2").sign(t, p.claims())} // with the ID of a known key, and another
	call := func(client int, token string) error {
		return a.authorize(signerapi.WithClient(t.Context(), fmt.Sprint("client ", client)), t, token)
	}
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() { left <- a.authorize(ctx, t, unknown[0]) }()
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
		ninth, second, known := call(100+i, unknown[i%2]), call(0, unknown[i%2]), call(i, valid)
		if !errors.Is(ninth, apierror.ErrOverloaded) || !errors.Is(second, apierror.ErrRateLimited) || known != nil {
			t.Errorf("a ninth waiter: %v; a second one of a client: %v; a token of a known key: %v", ninth, second, known)
		}
	}
	close(hang)
	for range cap(waiting) {
		if err := <-waiting; !errors.Is(err, apierror.ErrIssuerUnavailable) && !errors.Is(err, apierror.ErrUnauthenticated) {
			t.Errorf("a token that waited: %v", err)
		}
	}
}
