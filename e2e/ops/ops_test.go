package ops

import (
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestMetricsParseAreCleanAndMove(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	moving := map[string]string{
		"cats_frontend_http_requests_total":           sys.FrontendOps,
		"cats_frontend_http_request_body_bytes_total": sys.FrontendOps,
		"cats_frontend_upload_bytes_total":            sys.FrontendOps,
		"cats_frontend_uploads_rejected_total":        sys.FrontendOps,
		"cats_frontend_signer_requests_total":         sys.FrontendOps,
		"cats_signer_http_requests_total":             sys.SignerOps,
		"cats_signer_storage_requests_total":          sys.SignerOps,
		"cats_signer_signed_urls_total":               sys.SignerOps,
	}
	before := map[string]float64{}
	for name, base := range moving {
		before[name] = harness.Sum(t, base, name)
	}
	harness.Put(t, sys, "Secretname", harness.Cat)
	harness.Link(t, sys, "Secretname", "?download=Secretfile.png")
	harness.Do(t, "PUT", sys.URL+"/cat/Secretname", "", []byte("text")).Want(t, 415)
	for name, base := range moving {
		if after := harness.Sum(t, base, name); after <= before[name] {
			t.Errorf("%s went from %v to %v", name, before[name], after)
		}
	}
	for _, name := range []string{"cats_signer_user_delegation_key_expiry_timestamp_seconds", "cats_signer_token_last_success_timestamp_seconds", "cats_signer_token_requests_total"} {
		if harness.Sum(t, sys.SignerOps, name) == 0 {
			t.Errorf("%s is zero", name)
		}
	}
	for _, base := range []string{sys.FrontendOps, sys.SignerOps} {
		text := string(harness.Do(t, "GET", base+"/metrics", "", nil).Body)
		problems, err := promlint.New(strings.NewReader(text)).Lint()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			t.Errorf("promlint: %s: %s", p.Metric, p.Text)
		}
		for _, secret := range []string{"Secret", "sig="} {
			if strings.Contains(text, secret) {
				t.Errorf("%q is in the metrics", secret)
			}
		}
		harness.Do(t, "GET", base+"/livez", "", nil).Want(t, 200)
		harness.Do(t, "GET", base+"/readyz", "", nil).Want(t, 200)
	}
}

func TestOneRequestHasOneIDInBothLogs(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	harness.Put(t, sys, "Secretname", harness.Cat)
	frontend, signer := sys.Frontend.Log.Mark(), sys.Signer.Log.Mark()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, sys.URL+"/cat/Secretname", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Request-Id", "my-request-1")
	req.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	resp, err := harness.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("X-Request-Id") != "my-request-1" {
		t.Errorf("%d, X-Request-Id %q", resp.StatusCode, resp.Header.Get("X-Request-Id"))
	}
	for _, l := range []struct {
		log  *stack.Log
		mark int64
	}{{sys.Frontend.Log, frontend}, {sys.Signer.Log, signer}} {
		harness.WaitForLog(t, l.log, l.mark, `"request_id":"my-request-1"`, `"trace_id":"0af7651916cd43dd8448eb211c80319c"`, `"msg":"request"`)
		lines, err := l.log.Since(0)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range lines {
			for _, secret := range []string{"sig=", "Bearer", harness.JWTPrefix, "Secretname"} {
				if strings.Contains(line, secret) {
					t.Errorf("%q is in the log: %s", secret, line)
				}
			}
		}
	}
}
