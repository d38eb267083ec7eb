package identity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/tracing"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

func TestTokenIsRenewedLongBeforeItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tokens := New(Settings{}, nil, tracing.Provider{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		exchanges := 0
		tokens.fetch = func(context.Context) (azcore.AccessToken, error) {
			exchanges++
			return azcore.AccessToken{Token: time.Now().String(), ExpiresOn: time.Now().Add(time.Hour)}, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go tokens.Run(ctx)
		<-tokens.First()
		for range 200 {
			time.Sleep(time.Hour / 20)
			token, err := tokens.GetToken(t.Context(), policy.TokenRequestOptions{})
			if left := time.Until(token.ExpiresOn); err != nil || left < 24*time.Minute {
				t.Fatalf("%v, only %v left", err, left)
			}
		}
		synctest.Wait()
		if exchanges < 15 || exchanges > 26 {
			t.Errorf("%d exchanges in ten hours", exchanges)
		}
	})
}

func TestExchangeErrorsAreOneLineWithAFix(t *testing.T) {
	const response = "WorkloadIdentityCredential authentication failed.\nPOST https://login/x/oauth2/v2.0/token\n--------\nRESPONSE 401\n" +
		"{\n  \"error\": \"invalid_client\",\n  \"error_description\": \"AADSTS%s: Something is wrong. Trace ID: x\",\n}\n"
	for code := range fixes {
		got := explain(fmt.Errorf(response, code), "").Error()
		if !strings.HasPrefix(got, "AADSTS"+code+": Something is wrong.") || !strings.Contains(got, "; fix: ") || strings.ContainsAny(got, "\n\"") {
			t.Errorf("%s: %q", code, got)
		}
	}
}

func TestFailedExchangesAreCounted(t *testing.T) {
	tokens := New(Settings{}, nil, tracing.Provider{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if _, err := tokens.Fetch(t.Context()); err == nil || testutil.ToFloat64(tokens.acquired.WithLabelValues("error")) != 1 {
		t.Errorf("%v, and the metric is %v", err, testutil.ToFloat64(tokens.acquired.WithLabelValues("error")))
	}
}

func TestLongErrorsAreCut(t *testing.T) {
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
