package auth

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
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

// counting is a signer that does what it is asked and counts it.
type counting struct{ calls atomic.Int64 }

func (s *counting) Put(context.Context, signerapi.User, io.Reader, signerapi.PutOptions) (signerapi.Info, error) {
	s.calls.Add(1)
	return signerapi.Info{}, nil
}

func (s *counting) Link(context.Context, signerapi.User, signerapi.LinkOptions) (signerapi.Link, error) {
	s.calls.Add(1)
	return signerapi.Link{}, nil
}

func (s *counting) Delete(context.Context, signerapi.User, signerapi.Preconditions) error {
	s.calls.Add(1)
	return nil
}

func (s *counting) StartUpload(context.Context, signerapi.User, int64) (signerapi.UploadSession, error) {
	s.calls.Add(1)
	return signerapi.UploadSession{}, nil
}

func (s *counting) CommitUpload(context.Context, signerapi.User, string, signerapi.CommitOptions) (signerapi.Info, error) {
	s.calls.Add(1)
	return signerapi.Info{}, nil
}

func (*counting) About(context.Context) (signerapi.About, error) {
	return signerapi.About{}, nil
}

func (*counting) Ready(context.Context) error { return nil }

// knowing returns Callers that have asked p.
func knowing(t *testing.T, p *provider, change func(*Options)) *Callers {
	t.Helper()
	c := asking(p, change)
	if err := c.Fetch(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c
}

func asking(p *provider, change func(*Options)) *Callers {
	opts := Options{
		Settings: Settings{Policy: access.Policy{Issuer: p.URL, ReadAccess: access.Own}, Audience: audience, Claim: "sub"}, Client: p.Client(),
		Waiters: ratelimit.NewPools("test", 0.0625, prometheus.NewRegistry()).New("waiters", 8),
	}
	if change != nil {
		change(&opts)
	}
	return New(opts, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
}

func user(t *testing.T, name string) signerapi.User {
	t.Helper()
	u, err := signerapi.ParseUser(name)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func with(t *testing.T, token string) context.Context {
	t.Helper()
	return signerapi.WithToken(t.Context(), signerapi.Token(token))
}

func TestATokenLetsItsCallerAtTheirOwnPictureAlone(t *testing.T) {
	p := newProvider(t)
	good, forged, ec := rsaKey(t, "1"), rsaKey(t, "1"), ecKey(t, "2")
	p.publish(good, ec)
	der, err := x509.MarshalPKIXPublicKey(good.public)
	if err != nil {
		t.Fatal(err)
	}
	shared := key{"1", jose.HS256, der, nil}
	unsigned := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + strings.Split(good.sign(t, p.claims()), ".")[1] + "."
	parts := strings.Split(good.sign(t, p.claims("sub", "tom")), ".")
	tampered := parts[0] + "." + strings.Split(good.sign(t, p.claims()), ".")[1] + "." + parts[2]
	in := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	for _, c := range []struct {
		name  string
		token string
		want  error
	}{
		{"a good one", good.sign(t, p.claims()), nil},
		{"a good one of another algorithm", ec.sign(t, p.claims()), nil},
		{"that does not name its key", key{"", good.alg, good.private, good.public}.sign(t, p.claims()), nil},
		{"for several services", good.sign(t, p.claims("aud", []string{"x", audience})), nil},
		{"of another caller", good.sign(t, p.claims("sub", "tom")), apierror.ErrForbidden},
		{"of one with almost the name", good.sign(t, p.claims("sub", "Mia")), apierror.ErrForbidden},
		{"of nobody", good.sign(t, p.claims("sub", nil)), apierror.ErrForbidden},
		{"of a name that is none", good.sign(t, p.claims("sub", []string{"mia"})), apierror.ErrUnauthenticated},
		{"none", "", apierror.ErrUnauthenticated},
		{"garbage", "mew", apierror.ErrUnauthenticated},
		{"three times nothing", "..", apierror.ErrUnauthenticated},
		{"not signed", unsigned, apierror.ErrUnauthenticated},
		{"signed with the public key as a secret", shared.sign(t, p.claims()), apierror.ErrUnauthenticated},
		{"signed by another under the key's id", forged.sign(t, p.claims()), apierror.ErrUnauthenticated},
		{"with another's signature", tampered, apierror.ErrUnauthenticated},
		{"of another issuer", good.sign(t, p.claims("iss", "https://login.example.com")), apierror.ErrUnauthenticated},
		{"for another service", good.sign(t, p.claims("aud", "api-of-dogs")), apierror.ErrUnauthenticated},
		{"for no service", good.sign(t, p.claims("aud", nil)), apierror.ErrUnauthenticated},
		{"expired", good.sign(t, p.claims("exp", in(-ClockSkew-10*time.Second))), apierror.ErrUnauthenticated},
		{"expired by our clock, which may be ahead", good.sign(t, p.claims("exp", in(-ClockSkew+10*time.Second))), nil},
		{"without an end", good.sign(t, p.claims("exp", nil)), apierror.ErrUnauthenticated},
		{"with an end of null", good.sign(t, p.claims("exp", json.RawMessage("null"))), apierror.ErrUnauthenticated},
		{"of another issuer in a claim of almost the name", good.sign(t, p.claims("iss", nil, "Iss", p.URL)), apierror.ErrUnauthenticated},
		{"from tomorrow", good.sign(t, p.claims("nbf", in(24*time.Hour), "exp", in(25*time.Hour))), apierror.ErrUnauthenticated},
		{"from soon, as our clock may be behind", good.sign(t, p.claims("nbf", in(2*time.Minute))), nil},
	} {
		callers := knowing(t, p, nil)
		inner := &counting{}
		s := callers.Guard(inner)
		_, put := s.Put(with(t, c.token), user(t, "mia"), nil, signerapi.PutOptions{})
		_, link := s.Link(with(t, c.token), user(t, "mia"), signerapi.LinkOptions{})
		del := s.Delete(with(t, c.token), user(t, "mia"), signerapi.Preconditions{})
		_, ticket := s.StartUpload(with(t, c.token), user(t, "mia"), 1)
		_, commit := s.CommitUpload(with(t, c.token), user(t, "mia"), "1-1-A", signerapi.CommitOptions{})
		for call, err := range map[string]error{"Put": put, "Link": link, "Delete": del, "Ticket": ticket, "Commit": commit} {
			if !errors.Is(err, c.want) {
				t.Errorf("a token %s: %s: %v; want %v", c.name, call, err, c.want)
			}
			if err != nil && c.token != "" && strings.Contains(err.Error(), c.token) {
				t.Errorf("a token %s: the error holds it: %v", c.name, err)
			}
		}
		calls := int64(5)
		if c.want != nil {
			calls = 0
		}
		if got := inner.calls.Load(); got != calls {
			t.Errorf("a token %s: %d calls came through; want %d", c.name, got, calls)
		}
	}
}

func TestWhoReadsIsASetting(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t, k)
	own, other := k.sign(t, p.claims()), k.sign(t, p.claims("sub", "tom"))
	for read, want := range map[access.ReadAccess]map[string]error{
		access.Own:      {own: nil, other: apierror.ErrForbidden, "": apierror.ErrUnauthenticated, "mew": apierror.ErrUnauthenticated},
		access.SignedIn: {own: nil, other: nil, "": apierror.ErrUnauthenticated, "mew": apierror.ErrUnauthenticated},
		access.Anyone:   {own: nil, other: nil, "": nil, "mew": nil},
		"nonsense":      {own: nil, other: apierror.ErrForbidden, "": apierror.ErrUnauthenticated},
	} {
		s := knowing(t, p, func(o *Options) { o.ReadAccess = read }).Guard(&counting{})
		for token, want := range want {
			if _, err := s.Link(with(t, token), user(t, "mia"), signerapi.LinkOptions{}); !errors.Is(err, want) {
				t.Errorf("%s: %v; want %v", read, err, want)
			}
			if err := s.Delete(with(t, token), user(t, "mia"), signerapi.Preconditions{}); token != own && err == nil {
				t.Errorf("%s: another deleted the picture", read)
			}
		}
	}
}

func TestKeysRotate(t *testing.T) {
	old, young := rsaKey(t, "1"), rsaKey(t, "2")
	p := newProvider(t, old)
	c := knowing(t, p, nil)
	s := c.Guard(&counting{})
	may := func(k key) error {
		return s.Delete(with(t, k.sign(t, p.claims())), user(t, "mia"), signerapi.Preconditions{})
	}
	if err := errors.Join(may(old), may(old)); err != nil || p.askedKeys.Load() != 1 {
		t.Fatalf("%v, and the keys were asked for %d times; want once", err, p.askedKeys.Load())
	}
	p.publish(old, young)
	if err := errors.Join(may(young), may(old)); err != nil {
		t.Errorf("with both keys: %v", err)
	}
	p.publish(young)
	if err := c.Fetch(t.Context()); err != nil { // as Run does every hour
		t.Fatal(err)
	}
	if err := may(old); !errors.Is(err, apierror.ErrUnauthenticated) {
		t.Errorf("with a key that was withdrawn: %v", err)
	}
	if err := may(young); err != nil {
		t.Errorf("with the key that is left: %v", err)
	}
}

func TestStrangersCannotHaveTheIssuerAskedAsOftenAsTheyLike(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t, k)
	s := knowing(t, p, nil).Guard(&counting{})
	stranger := rsaKey(t, "x")
	for range 30 {
		if err := s.Delete(with(t, stranger.sign(t, p.claims())), user(t, "mia"), signerapi.Preconditions{}); !errors.Is(err, apierror.ErrUnauthenticated) {
			t.Fatal(err)
		}
	}
	if n := p.askedKeys.Load(); n > keysBurst+1 {
		t.Errorf("the issuer was asked for its keys %d times", n)
	}
	if err := s.Delete(with(t, k.sign(t, p.claims())), user(t, "mia"), signerapi.Preconditions{}); err != nil {
		t.Errorf("a good token meanwhile: %v", err)
	}
}

func TestAnIssuerThatIsDownIsToldAndNotTakenForARefusal(t *testing.T) {
	k, young := rsaKey(t, "1"), rsaKey(t, "2")
	p := newProvider(t, k)
	p.down.Store(true)
	c := asking(p, nil)
	s := c.Guard(&counting{})
	del := func(k key) error {
		return s.Delete(with(t, k.sign(t, p.claims())), user(t, "mia"), signerapi.Preconditions{})
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	for c.failed.Load() == nil {
		time.Sleep(time.Millisecond)
	}
	if err := s.Ready(t.Context()); !errors.Is(err, apierror.ErrIssuerUnavailable) || !strings.Contains(err.Error(), "502") {
		t.Errorf("ready: %v; want that the issuer answers 502", err)
	}
	if err := del(k); !errors.Is(err, apierror.ErrIssuerUnavailable) {
		t.Errorf("before the issuer has answered: %v", err)
	}
	p.down.Store(false)
	for s.Ready(t.Context()) != nil {
		time.Sleep(time.Millisecond)
	}
	if err := del(k); err != nil {
		t.Errorf("after: %v", err)
	}
	p.down.Store(true)
	if err := del(k); err != nil {
		t.Errorf("down again, with a key that is known: %v", err)
	}
	if err := del(young); !errors.Is(err, apierror.ErrIssuerUnavailable) {
		t.Errorf("down again, with a key that is not: %v", err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := testutil.ToFloat64(c.outcomes.WithLabelValues(unavailable)); n != 2 {
		t.Errorf("%v calls counted that could not be checked; want 2", n)
	}
}

func TestAnIssuerThatCannotBeRightIsRefused(t *testing.T) {
	p := newProvider(t, rsaKey(t, "1"))
	for name, change := range map[string]func(*Options){
		"another issuer than was asked": func(o *Options) { o.Issuer += "/" },
		"nobody there":                  func(o *Options) { o.Issuer += "/elsewhere" },
		"a certificate of nobody's":     func(o *Options) { o.Client = &http.Client{Transport: &http.Transport{}} },
	} {
		if err := asking(p, change).Fetch(t.Context()); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := asking(p, nil).Fetch(t.Context()); err != nil {
		t.Errorf("the right one: %v", err)
	}
	plain := httptest.NewServer(p.Config.Handler)
	defer plain.Close()
	p.keysAt = plain.URL + "/keys"
	if err := asking(p, nil).Fetch(t.Context()); err == nil {
		t.Error("keys that anybody on the way can change were taken")
	}
}

func TestACallerMayAskForSoMuchAndOthersStillCan(t *testing.T) {
	k := rsaKey(t, "1")
	p := newProvider(t, k)
	mia, tom := k.sign(t, p.claims()), k.sign(t, p.claims("sub", "tom"))
	s := knowing(t, p, func(o *Options) { o.RequestLimits = ratelimit.RequestLimits{RateLimit: 0.01, RateBurst: 1} }).Guard(&counting{})
	for i, want := range []error{nil, apierror.ErrRateLimited, apierror.ErrRateLimited} {
		err := s.Delete(with(t, mia), user(t, "mia"), signerapi.Preconditions{})
		if !errors.Is(err, want) {
			t.Errorf("request %d: %v; want %v", i, err, want)
		}
		if want != nil && apierror.AsError(err).RetryAfter <= 0 {
			t.Errorf("request %d: it does not say when to come again", i)
		}
	}
	if err := s.Delete(with(t, tom), user(t, "tom"), signerapi.Preconditions{}); err != nil {
		t.Errorf("another caller: %v", err)
	}
}

// While the issuer does not answer, few tokens wait for it. A token that a known key has signed does not wait.
func TestFewTokensWaitForTheIssuersKeys(t *testing.T) {
	k, stranger := rsaKey(t, "1"), rsaKey(t, "1")
	p := newProvider(t, k)
	reg := prometheus.NewRegistry()
	s := knowing(t, p, func(o *Options) { o.Waiters = ratelimit.NewPools("test", 0.0625, reg).New("waiters", 8) }).Guard(&counting{})
	waiters := func() (n float64) {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() == "cats_test_pool_slots_taken" {
				n = f.GetMetric()[0].GetGauge().GetValue()
			}
		}
		return n
	}
	hang := make(chan struct{})
	p.mu.Lock()
	p.handle = func(http.ResponseWriter, *http.Request) bool {
		<-hang
		return false
	}
	p.mu.Unlock()
	good, mia := k.sign(t, p.claims()), user(t, "mia")
	junk := []string{stranger.sign(t, p.claims()), rsaKey(t, "2").sign(t, p.claims())} // with the ID of a known key, and of none
	ask := func(client int, token string) error {
		return s.Delete(signerapi.WithClient(with(t, token), fmt.Sprint("client ", client)), mia, signerapi.Preconditions{})
	}
	gone, leave := context.WithCancel(with(t, junk[0]))
	left := make(chan error, 1)
	go func() { left <- s.Delete(gone, mia, signerapi.Preconditions{}) }()
	for waiters() < 1 {
		time.Sleep(time.Millisecond)
	}
	leave()
	if err := <-left; !errors.Is(err, apierror.ErrIncomplete) || waiters() != 0 {
		t.Errorf("a client that leaves: %v; %v still wait", err, waiters())
	}
	waiting := make(chan error, 8)
	for i := range cap(waiting) {
		go func() { waiting <- ask(i, junk[i%2]) }()
	}
	for waiters() < 8 {
		time.Sleep(time.Millisecond)
	}
	for i := range 4 {
		if err := ask(100+i, junk[i%2]); !errors.Is(err, apierror.ErrOverloaded) {
			t.Errorf("one too many: %v; want ErrOverloaded", err)
		}
		if err := ask(0, junk[i%2]); !errors.Is(err, apierror.ErrRateLimited) {
			t.Errorf("a second one of a client: %v; want ErrRateLimited", err)
		}
		if err := ask(i, good); err != nil {
			t.Errorf("a token that a known key has signed: %v", err)
		}
	}
	close(hang)
	for range cap(waiting) {
		if err := <-waiting; !errors.Is(err, apierror.ErrUnauthenticated) {
			t.Errorf("a token that waited: %v; want ErrUnauthenticated", err)
		}
	}
}
