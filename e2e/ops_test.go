package e2e

import (
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"cats.example/local/stack"
)

// sum adds up the series of one metric, which must parse.
func sum(t *testing.T, base, name string) float64 {
	t.Helper()
	text := string(do(t, "GET", base+"/metrics", "", nil).want(t, 200).body)
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	total := 0.0
	for _, m := range families[name].GetMetric() {
		total += m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetUntyped().GetValue()
	}
	return total
}

func TestMetricsParseAreCleanAndMove(t *testing.T) {
	t.Parallel()
	sys := start(t, stack.SystemOptions{})
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
		before[name] = sum(t, base, name)
	}
	put(t, sys, "Secretname", cat)
	link(t, sys, "Secretname", "?download=Secretfile.png")
	do(t, "PUT", sys.URL+"/cat/Secretname", "", []byte("text")).want(t, 415)
	for name, base := range moving {
		if after := sum(t, base, name); after <= before[name] {
			t.Errorf("%s went from %v to %v", name, before[name], after)
		}
	}
	for _, name := range []string{"cats_signer_user_delegation_key_expiry_timestamp_seconds", "cats_signer_token_last_success_timestamp_seconds", "cats_signer_token_requests_total"} {
		if sum(t, sys.SignerOps, name) == 0 {
			t.Errorf("%s is zero", name)
		}
	}
	for _, base := range []string{sys.FrontendOps, sys.SignerOps} {
		text := string(do(t, "GET", base+"/metrics", "", nil).body)
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
		do(t, "GET", base+"/livez", "", nil).want(t, 200)
		do(t, "GET", base+"/readyz", "", nil).want(t, 200)
	}
}

func TestOneRequestHasOneIDInBothLogs(t *testing.T) {
	t.Parallel()
	sys := start(t, stack.SystemOptions{})
	put(t, sys, "Secretname", cat)
	frontend, signer := sys.Frontend.Log.Mark(), sys.Signer.Log.Mark()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, sys.URL+"/cat/Secretname", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Request-Id", "my-request-1")
	req.Header.Set("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	resp, err := client().Do(req)
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
		logged(t, l.log, l.mark, `"request_id":"my-request-1"`, `"trace_id":"0af7651916cd43dd8448eb211c80319c"`, `"msg":"request"`)
		lines, err := l.log.Since(0)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range lines {
			for _, secret := range []string{"sig=", "Bearer", jwtHeader, "Secretname"} {
				if strings.Contains(line, secret) {
					t.Errorf("%q is in the log: %s", secret, line)
				}
			}
		}
	}
}
