package identity

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/tracing"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/shared/apierror"
	"cats.example/signer/internal/refresh"
)

// entra issues tokens that are valid for an hour, or fails.
type entra struct {
	failure  atomic.Pointer[error]
	requests atomic.Int64
}

func (e *entra) fetch(context.Context) (azcore.AccessToken, error) {
	e.requests.Add(1)
	time.Sleep(time.Second)
	if err := e.failure.Load(); err != nil {
		return azcore.AccessToken{}, *err
	}
	return azcore.AccessToken{Token: time.Now().String(), ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// inBubble runs Tokens with an entra on a fake clock during body.
func inBubble(t *testing.T, failure error, body func(*testing.T, *entra, *Tokens, *bytes.Buffer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		e, log := &entra{}, &bytes.Buffer{}
		if failure != nil {
			e.failure.Store(&failure)
		}
		tokens := New(Settings{}, nil, tracing.Provider{}, slog.New(slog.NewJSONHandler(log, nil)), prometheus.NewRegistry())
		tokens.fetch = e.fetch
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { tokens.Run(ctx); close(done) }()
		synctest.Wait()
		body(t, e, tokens, log)
		cancel()
		<-done
	})
}

func ready(tokens *Tokens) error {
	_, err := tokens.GetToken(context.Background(), policy.TokenRequestOptions{})
	return err
}

func TestTokenIsRenewedLongBeforeItsEnd(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, e *entra, tokens *Tokens, _ *bytes.Buffer) {
		for range 200 {
			time.Sleep(time.Hour / 20)
			token, err := tokens.GetToken(t.Context(), policy.TokenRequestOptions{})
			if left := time.Until(token.ExpiresOn); err != nil || left < 24*time.Minute {
				t.Fatalf("%v, only %v left", err, left)
			}
		}
		if n := e.requests.Load(); n < 15 || n > 26 {
			t.Errorf("%d exchanges in ten hours", n)
		}
		before := e.requests.Load()
		tokens.Renew()
		time.Sleep(10 * time.Second)
		if n := e.requests.Load() - before; n != 1 {
			t.Errorf("%d exchanges after Renew", n)
		}
	})
}

func TestCurrentTokenIsUsedDuringAnOutage(t *testing.T) {
	down := explain(errors.New("AADSTS700213: no matching record"), "")
	inBubble(t, down, func(t *testing.T, e *entra, tokens *Tokens, log *bytes.Buffer) {
		if err := ready(tokens); !errors.Is(err, apierror.ErrSignerUnavailable) {
			t.Errorf("during the first exchange: %v", err)
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if err := ready(tokens); !errors.Is(err, apierror.ErrIdentityUnavailable) || tokens.first.Err() != nil {
			t.Errorf("without a token: %v, or First is closed", err)
		}
		n := e.requests.Load()
		if failed := testutil.ToFloat64(tokens.acquired.WithLabelValues("error")); n < 10 || n > 60 || failed < float64(n)-1 {
			t.Errorf("%d attempts in ten minutes, of which %v are counted", n, failed)
		}
		if s := log.String(); !strings.Contains(s, "AADSTS700213") || !strings.Contains(s, "fix: ") || !strings.Contains(s, `"level":"ERROR"`) {
			t.Errorf("log: %s", s)
		}
		e.failure.Store(nil)
		<-tokens.First()
		e.failure.Store(&down)
		time.Sleep(59 * time.Minute)
		if err := ready(tokens); err != nil {
			t.Errorf("before the end of the token: %v", err)
		}
		time.Sleep(2 * time.Minute)
		if err := ready(tokens); !errors.Is(err, apierror.ErrIdentityUnavailable) || !strings.Contains(err.Error(), "AADSTS700213") {
			t.Errorf("after its end: %v", err)
		}
		e.failure.Store(nil)
		time.Sleep(refresh.LastRetry * 2)
		if err := ready(tokens); err != nil {
			t.Errorf("after the outage: %v", err)
		}
	})
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
}

func TestAudienceFollowsTheCloud(t *testing.T) {
	for host, want := range map[string]string{
		"": publicAudience, "https://login.private.example/": publicAudience, "https://%zz": publicAudience,
		"https://LOGIN.microsoftonline.us:443/": "api://AzureADTokenExchangeUSGov", "https://login.microsoftonline.us": "api://AzureADTokenExchangeUSGov",
		"https://login.partner.microsoftonline.cn/": "api://AzureADTokenExchangeChina", "https://login.chinacloudapi.cn/": "api://AzureADTokenExchangeChina",
	} {
		got := Settings{AuthorityHost: host}.Audience()
		advice := explain(errors.New("AADSTS700212: No matching record found for presented assertion audience 'api://other'"), got).Error()
		if got != want || !strings.Contains(advice, want+",") || !strings.Contains(advice, "'api://other'") {
			t.Errorf("%q: %s, and the advice is %s; want %s in it", host, got, advice, want)
		}
	}
}

func TestTokenFileIsReadForEachExchange(t *testing.T) {
	settings := Settings{
		Credential: WorkloadIdentity, ClientID: "11111111-1111-4111-8111-111111111111", TenantID: "t.example",
		TokenFile: filepath.Join(t.TempDir(), "token"), DisableInstanceDiscovery: true,
	}
	tokens := New(settings, nil, tracing.Provider{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if _, err := tokens.fetch(t.Context()); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "; fix: ") {
		t.Errorf("without a file: %v", err)
	}
	if err := os.WriteFile(settings.TokenFile, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := settings.credential(nil, tracing.Provider{}); err != nil {
		t.Errorf("with a file: %v", err)
	}
}
