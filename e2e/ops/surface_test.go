package ops

import (
	"context"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// The collectors of this system do not answer, which affects no request.
func TestPortsServeOnlyTheirPaths(t *testing.T) {
	t.Parallel()
	silent, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	sys := harness.Start(t, stack.SystemOptions{
		FrontendEnv: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_BSP_SCHEDULE_DELAY": "10"},
		SignerEnv: map[string]string{
			"OTEL_EXPORTER_OTLP_ENDPOINT": "http://" + silent.Addr().String(),
			"OTEL_BSP_SCHEDULE_DELAY":     "10", "OTEL_BSP_EXPORT_TIMEOUT": "300",
		},
	})
	harness.Put(t, sys, "x", harness.Cat)
	for path := range strings.FieldsSeq(`/metrics /livez /readyz /healthz /debug/pprof/ /debug/vars /v1/ready /v1/link?user=x /v1/picture?user=x
		/cat /cat/ /cat// /cat/x/y /cat/x/picture/y //cat/x /cat/../cat/x /CAT/x /service/x /favicon.ico /page /page/ /page/../about //`) {
		for _, method := range []string{"GET", "PUT", "DELETE"} {
			harness.Do(t, method, sys.URL+path, "", nil).WantProblem(t, 404, "no_such_path")
		}
	}
	for _, base := range []string{sys.FrontendOps, sys.SignerOps} {
		for path := range strings.FieldsSeq("/ /service /cat/x /cat/x/picture /v1/link?user=x /v1/picture?user=x /v1/ready /debug/pprof/") {
			for _, method := range []string{"GET", "PUT", "DELETE"} {
				harness.Do(t, method, base+path, "", nil).Want(t, 404)
			}
		}
		for path := range strings.FieldsSeq("/metrics /livez /readyz") {
			harness.Do(t, http.MethodPost, base+path, "", nil).Want(t, 405)
			harness.Do(t, http.MethodHead, base+path, "", nil).Want(t, 200)
		}
	}
	harness.WantPicture(t, sys, "x", harness.Cat)
	for _, p := range []*stack.Process{sys.Frontend, sys.Signer} {
		harness.WaitForLog(t, p.Log, 0, `"level":"WARN"`, `"msg":"trace export failed; spans are lost"`)
		if err := p.Stop(t.Context()); err != nil { // within 10 s
			t.Error(err)
		}
		if lines, err := p.Log.Since(0); err != nil || strings.Count(strings.Join(lines, ""), "spans are lost") != 1 {
			t.Errorf("lost spans are not logged once in a minute: %v %q", err, lines)
		}
	}
}

// A request has one ID in both logs. The containers have the same settings in different forms.
func TestMetricsCountRequestsAndPassLint(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{
		FrontendEnv: map[string]string{"ACCEPTED_TYPES": "image/png,image/gif", "MAX_PICTURE_SIZE": "1MiB"},
		SignerEnv:   map[string]string{"ACCEPTED_TYPES": "image/gif,image/png", "MAX_PICTURE_SIZE": "1048576"},
	})
	harness.Put(t, sys, "Secretname", harness.Cat)
	harness.Do(t, "PUT", sys.URL+"/cat/Secretname", "", []byte("text")).Want(t, 415)
	a := harness.Send(t, "GET", sys.URL+"/cat/Secretname?download=Secretfile.png", "", "X-Request-Id", "my-request-1",
		"Traceparent", clientsTraceparent).Want(t, 200)
	if id, trace := a.Header.Get("X-Request-Id"), traceOf(t, sys, "my-request-1"); id != "my-request-1" || trace != clientsTrace {
		t.Errorf("X-Request-Id %q; without tracing, the logs have the trace ID %s; want the client's", id, trace)
	}
	for name := range strings.FieldsSeq(`cats_frontend_http_requests_total cats_frontend_http_request_body_bytes_total
		cats_frontend_upload_bytes_total cats_frontend_uploads_rejected_total cats_frontend_signer_requests_total
		cats_signer_http_requests_total cats_signer_storage_requests_total cats_signer_signed_urls_total cats_signer_token_requests_total
		cats_signer_user_delegation_key_expiry_timestamp_seconds cats_signer_token_last_success_timestamp_seconds`) {
		if harness.Sum(t, sys.FrontendOps, name)+harness.Sum(t, sys.SignerOps, name) == 0 {
			t.Errorf("%s is zero", name)
		}
	}
	for _, base := range []string{sys.FrontendOps, sys.SignerOps} {
		text := string(harness.Send(t, "GET", base+"/metrics", "", "Accept", openMetrics).Body)
		if problems, err := promlint.New(strings.NewReader(text)).Lint(); err != nil || len(problems) > 0 {
			t.Errorf("promlint: %v %v", problems, err)
		}
		if regexp.MustCompile(`Secret|sig=|# EOF`).MatchString(text) { // OpenMetrics, which ends with EOF, is for exemplars
			t.Errorf("the metrics have a name, a signature or the format OpenMetrics:\n%s", text)
		}
	}
}

func TestClientsCannotGrowMetricsOrLogLines(t *testing.T) {
	t.Parallel()
	debug := map[string]string{"LOG_LEVEL": "debug"}
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: debug, SignerEnv: debug})
	use := func(suffix string) (series int) {
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "X" + strings.ToUpper(suffix), "PROPFIND"} {
			for path := range strings.FieldsSeq("/cat/USER /cat/USER/picture /USER /cat/USER/ /cat/a%2FUSER /service?USER") {
				path = strings.ReplaceAll(path, "USER", suffix)
				harness.Send(t, method, sys.URL+path, "", "User-Agent", suffix, "X-Request-Id", suffix, "X-Forwarded-For", suffix)
			}
		}
		harness.Put(t, sys, suffix, harness.Cat)
		harness.Link(t, sys, suffix, "?download="+suffix)
		harness.Do(t, "DELETE", sys.URL+"/cat/"+suffix, "", nil).Want(t, 204)
		for _, base := range []string{sys.FrontendOps, sys.SignerOps} {
			series += strings.Count("\n"+string(harness.Do(t, "GET", base+"/metrics", "", nil).Want(t, 200).Body), "\ncats_")
		}
		return series
	}
	if before, after := use("first"), use("second"); after > before {
		t.Errorf("%d series became %d", before, after)
	}
	for _, n := range []int{4000, 7000, 9000} { // some are too long for a target or for a header
		for _, row := range harness.Table(t, "long-values.txt", "LONG", strings.Repeat("Z", n), "FORM", harness.FormType,
			"BOUNDARY", harness.Boundary) {
			row = append(row, "", "")
			call := harness.Call{Method: row[0], Target: row[1], Body: []byte(row[3])}
			if name, value, found := strings.Cut(row[2], ": "); found {
				call = call.With(name, value)
			}
			call.Do(t, sys)
		}
	}
	for _, line := range logLines(t, sys) {
		if len(line) > 1500 || strings.Contains(line, "ZZZZZ") {
			t.Errorf("a line of %d bytes: %.300s", len(line), line)
		}
	}
}

// logLines stops the system and returns the lines of both logs, which must have a line of a rejected request.
func logLines(t *testing.T, sys *stack.System) (lines []string) {
	t.Helper()
	if err := sys.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
	for _, log := range []*stack.Log{sys.Frontend.Log, sys.Signer.Log} {
		content, err := os.ReadFile(log.Path())
		if err != nil || !strings.Contains(string(content), `"http.response.status_code":4`) {
			t.Fatalf("%s has no line of a rejected request: %v", log.Path(), err)
		}
		lines = append(lines, strings.Split(string(content), "\n")...)
	}
	return lines
}
