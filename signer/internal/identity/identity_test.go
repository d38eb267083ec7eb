package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/apierror"
	"cats.example/signer/internal/refresh"
)

// entra issues tokens with the lifetime life, or fails with err.
type entra struct {
	life time.Duration

	mu       sync.Mutex
	err      error
	requests int
}

func (e *entra) failWith(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.err = err
}

func (e *entra) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.requests
}

func (e *entra) fetch(context.Context) (azcore.AccessToken, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.requests++
	if e.err != nil {
		return azcore.AccessToken{}, e.err
	}
	return azcore.AccessToken{Token: time.Now().String(), ExpiresOn: time.Now().Add(e.life)}, nil
}

func ready(tokens *Tokens) error {
	_, err := tokens.GetToken(context.Background(), policy.TokenRequestOptions{})
	return err
}

// inBubble runs Tokens with e on a fake clock during body.
func inBubble(t *testing.T, e *entra, body func(*testing.T, *Tokens, *bytes.Buffer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		tokens := New(Options{}, slog.New(slog.NewJSONHandler(&log, nil)), prometheus.NewRegistry())
		tokens.fetch = e.fetch
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- tokens.Run(ctx) }()
		synctest.Wait()
		body(t, tokens, &log)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestTokenIsRenewedLongBeforeItsEnd(t *testing.T) {
	for _, life := range []time.Duration{10 * time.Second, time.Hour, 24 * time.Hour} {
		e := &entra{life: life}
		inBubble(t, e, func(t *testing.T, tokens *Tokens, _ *bytes.Buffer) {
			for range 200 {
				time.Sleep(life / 20)
				token, err := tokens.GetToken(t.Context(), policy.TokenRequestOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if left := time.Until(token.ExpiresOn); left < life*4/10 {
					t.Fatalf("only %v of %v left", left, life)
				}
			}
		})
		if n := e.count(); n < 15 || n > 25 {
			t.Errorf("%d exchanges in ten lifetimes of %v", n, life)
		}
	}
}

func TestCurrentTokenIsUsedDuringAnOutage(t *testing.T) {
	e := &entra{life: time.Hour}
	inBubble(t, e, func(t *testing.T, tokens *Tokens, _ *bytes.Buffer) {
		e.failWith(errors.New("down"))
		time.Sleep(59 * time.Minute)
		if err := ready(tokens); err != nil {
			t.Errorf("before its end: %v", err)
		}
		time.Sleep(2 * time.Minute)
		if err := ready(tokens); !errors.Is(err, apierror.ErrIdentityUnavailable) || !strings.Contains(err.Error(), "down") {
			t.Errorf("after its end: %v", err)
		}
		e.failWith(nil)
		time.Sleep(refresh.LastRetry * 2)
		if err := ready(tokens); err != nil {
			t.Errorf("after the outage: %v", err)
		}
	})
}

func TestGetTokenBeforeTheFirstToken(t *testing.T) {
	e := &entra{life: time.Hour, err: errors.New("down")}
	synctest.Test(t, func(t *testing.T) {
		tokens, answer := New(Options{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry()), make(chan struct{})
		tokens.fetch = func(ctx context.Context) (azcore.AccessToken, error) {
			<-answer
			return e.fetch(ctx)
		}
		ended := make(chan error)
		go func() {
			_, err := tokens.Fetch(t.Context())
			ended <- err
		}()
		synctest.Wait()
		if err := ready(tokens); !errors.Is(err, apierror.ErrSignerUnavailable) {
			t.Errorf("during the first exchange: %v", err)
		}
		close(answer)
		if err := <-ended; err == nil {
			t.Error("the exchange did not fail")
		}
		if err := ready(tokens); !errors.Is(err, apierror.ErrIdentityUnavailable) {
			t.Errorf("after the first exchange has failed: %v", err)
		}
	})
}

func TestFailedExchangesAreRetriedAndLogged(t *testing.T) {
	e := &entra{life: time.Hour, err: explain(errors.New("AADSTS700213: no matching record"), "")}
	inBubble(t, e, func(t *testing.T, tokens *Tokens, log *bytes.Buffer) {
		select {
		case <-tokens.First():
			t.Error("First is closed without a token")
		default:
		}
		time.Sleep(10 * time.Minute)
		if n := e.count(); n < 10 || n > 60 {
			t.Errorf("%d attempts in ten minutes", n)
		}
		if got := testutil.ToFloat64(tokens.acquired.WithLabelValues("error")); got != float64(e.count()) {
			t.Errorf("%v counted of %d", got, e.count())
		}
		synctest.Wait()
		if s := log.String(); !strings.Contains(s, "AADSTS700213") || !strings.Contains(s, "fix: ") || !strings.Contains(s, `"level":"ERROR"`) {
			t.Errorf("log: %s", s)
		}
		e.failWith(nil)
		time.Sleep(refresh.LastRetry * 2)
		<-tokens.First()
	})
}

// Requests that storage rejects during an exchange have the previous token.
func TestRenewDuringAnExchangeCausesNoOther(t *testing.T) {
	e := &entra{life: time.Hour}
	inBubble(t, e, func(t *testing.T, tokens *Tokens, _ *bytes.Buffer) {
		tokens.fetch = func(ctx context.Context) (azcore.AccessToken, error) {
			tokens.Renew()
			return e.fetch(ctx)
		}
		tokens.Renew()
		time.Sleep(10 * time.Minute)
	})
	if n := e.count(); n != 2 {
		t.Errorf("%d exchanges; want the first and one more", n)
	}
}

func TestExplainIsOneLineWithAdvice(t *testing.T) {
	answer := "WorkloadIdentityCredential authentication failed.\nPOST https://login/x/oauth2/v2.0/token\n--------\nRESPONSE 401\n" +
		"{\n  \"error\": \"invalid_client\",\n  \"error_description\": \"AADSTS%s: Something is wrong. Trace ID: x\",\n}\n"
	for code := range fixes {
		got := explain(errors.New(strings.Replace(answer, "%s", code, 1)), "").Error()
		if !strings.HasPrefix(got, "AADSTS"+code+": Something is wrong.") || !strings.Contains(got, "; fix: ") || strings.ContainsAny(got, "\n\"") {
			t.Errorf("%s: %q", code, got)
		}
	}
	if got := explain(errors.New("a\nb "+strings.Repeat("x", 1000)), "").Error(); strings.Contains(got, "\n") || len(got) > 410 {
		t.Errorf("%q", got)
	}
	_, err := Settings{TokenFile: "/t"}.FederatedToken()
	if got := fmt.Sprint(err); !strings.Contains(got, "AZURE_FEDERATED_TOKEN_FILE") || !strings.Contains(got, "/t") || !strings.Contains(got, "; fix: ") {
		t.Errorf("%q", got)
	}
}

func TestAudienceFollowsTheCloud(t *testing.T) {
	for host, want := range map[string]string{
		"":                                          "api://AzureADTokenExchange",
		"https://login.microsoftonline.com/":        "api://AzureADTokenExchange",
		"https://login.microsoftonline.us/":         "api://AzureADTokenExchangeUSGov",
		"https://login.microsoftonline.us":          "api://AzureADTokenExchangeUSGov",
		"https://LOGIN.microsoftonline.us:443/":     "api://AzureADTokenExchangeUSGov",
		"https://login.partner.microsoftonline.cn/": "api://AzureADTokenExchangeChina",
		"https://login.chinacloudapi.cn/":           "api://AzureADTokenExchangeChina",
		"https://login.private.example/":            "api://AzureADTokenExchange",
		"https://%zz":                               "api://AzureADTokenExchange",
	} {
		got := Settings{AuthorityHost: host}.Audience()
		if got != want {
			t.Errorf("%q: %s; want %s", host, got, want)
		}
		err := explain(errors.New("invalid_client: AADSTS700212: No matching federated identity record found for presented assertion audience 'api://other'"), got)
		if !strings.Contains(err.Error(), want+",") || !strings.Contains(err.Error(), "'api://other'") {
			t.Errorf("%q: the advice is %v; want %s in it", host, err, want)
		}
	}
}

func TestTokenFileIsReadForEachExchange(t *testing.T) {
	const client = "11111111-1111-4111-8111-111111111111"
	file := filepath.Join(t.TempDir(), "token")
	tokens := New(Options{Settings: Settings{Credential: WorkloadIdentity, ClientID: client, TenantID: "t.example", TokenFile: file, DisableInstanceDiscovery: true}}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if _, err := tokens.fetch(t.Context()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (Options{Settings: Settings{Credential: WorkloadIdentity, ClientID: client, TenantID: "t.example", TokenFile: file}}).credential(); err != nil {
		t.Errorf("with a file: %v", err)
	}
}
