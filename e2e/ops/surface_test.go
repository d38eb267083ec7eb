package ops

import (
	"context"
	"net/http"
	"os"
	"strings"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// A stranger reaches the public API and nothing else; a scraper, no pictures.
func TestEachPortServesItsOwnAlone(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	harness.Put(t, sys, "x", harness.Cat)
	for _, path := range []string{
		"/metrics", "/livez", "/readyz", "/healthz", "/debug/pprof/", "/debug/vars", "/v1/ready", "/v1/link?user=x", "/v1/picture?user=x",
		"/cat", "/cat/", "/cat//", "/cat/x/y", "/cat/x/picture/y", "//cat/x", "/cat/../cat/x", "/CAT/x", "/service/x", "/favicon.ico", "/page", "/page/", "/page/../about", "//",
	} {
		for _, method := range []string{"GET", "PUT", "DELETE"} {
			if a := harness.Do(t, method, sys.URL+path, "", nil); a.StatusCode != 404 || a.Field(t, "code") != "no_such_path" {
				t.Errorf("%s %s on the public port: %d %s", method, path, a.StatusCode, a.Body)
			}
		}
	}
	for _, base := range []string{sys.FrontendOps, sys.SignerOps} {
		for _, path := range []string{"/", "/service", "/cat/x", "/cat/x/picture", "/v1/link?user=x", "/v1/picture?user=x", "/v1/ready", "/debug/pprof/"} {
			for _, method := range []string{"GET", "PUT", "DELETE"} {
				harness.Do(t, method, base+path, "", nil).Want(t, 404)
			}
		}
		for _, path := range []string{"/metrics", "/livez", "/readyz"} {
			harness.Do(t, http.MethodPost, base+path, "", nil).Want(t, 405)
			harness.Do(t, http.MethodHead, base+path, "", nil).Want(t, 200)
		}
	}
	harness.Served(t, sys, "x")
}

// Strangers choose paths, names, methods and headers; they must not be able to
// make a metric of each.
func TestStrangersCannotGrowTheMetrics(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	series := func() (n int) {
		for _, base := range []string{sys.FrontendOps, sys.SignerOps} {
			for line := range strings.Lines(string(harness.Do(t, "GET", base+"/metrics", "", nil).Want(t, 200).Body)) {
				if !strings.HasPrefix(line, "#") {
					n++
				}
			}
		}
		return n
	}
	all := func(suffix string) {
		for _, method := range []string{"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "X" + strings.ToUpper(suffix), "PROPFIND"} {
			for _, path := range []string{"/cat/" + suffix, "/cat/" + suffix + "/picture", "/" + suffix, "/cat/" + suffix + "/", "/cat/a%2F" + suffix, "/service?" + suffix} {
				harness.Send(t, method, sys.URL+path, "", "User-Agent", suffix, "X-Request-Id", suffix, "X-Forwarded-For", suffix, "Host", suffix)
			}
		}
		harness.Do(t, "PUT", sys.URL+"/cat/"+suffix, "", harness.Cat).Want(t, 200)
		harness.Do(t, "GET", sys.URL+"/cat/"+suffix+"?download="+suffix, "", nil).Want(t, 200)
		harness.Do(t, "DELETE", sys.URL+"/cat/"+suffix, "", nil).Want(t, 204)
	}
	all("first")
	before := series()
	for _, suffix := range []string{"second", "third", "fourth"} {
		all(suffix)
	}
	if after := series(); after > before {
		t.Errorf("%d series became %d", before, after)
	}
}

func TestStrangersCannotGrowLogLines(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{FrontendEnv: map[string]string{"LOG_LEVEL": "debug"}, SignerEnv: map[string]string{"LOG_LEVEL": "debug"}})
	long := strings.Repeat("Z", 9000)
	for _, method := range []string{long, "Z", "GET"} {
		harness.Send(t, method, sys.URL+"/cat/x", "")
	}
	for _, c := range []struct {
		method, target, body string
		header               []string
	}{
		{"GET", "/service", "", []string{"User-Agent", long}},
		{"GET", "/service", "", []string{"X-Request-Id", long}},
		{"GET", "/service", "", []string{"Traceparent", long}},
		{"GET", "/service", "", []string{"X-Forwarded-For", long}},
		{"PUT", "/cat/x", "", []string{"Origin", "https://" + long}},
		{"PUT", "/cat/x", "x", []string{"Content-Digest", long}},
		{"PUT", "/cat/x", "x", []string{"Content-Type", long}},
		{"GET", "/" + long[:4000], "", nil},
		{"GET", "/cat/" + long[:4000], "", nil},
		{"GET", "/cat/x?ttl=" + long[:4000], "", nil},
		{"POST", "/cat/x", "--" + harness.Boundary + "\r\n" + long + "\r\n\r\n", []string{"Content-Type", harness.FormType}},
		{"POST", "/cat/x", "--" + harness.Boundary + "\r\nContent-Disposition: form-data; name=\"" + long[:7000] + "\r\n\r\nx\r\n" + harness.LastBoundary, []string{"Content-Type", harness.FormType}},
		{"POST", "/cat/x", "x", []string{"Content-Type", "multipart/form-data; boundary=" + long}},
	} {
		harness.Send(t, c.method, sys.URL+c.target, c.body, c.header...)
	}
	harness.WaitForLog(t, sys.Frontend.Log, 0, `"http.response.status_code":400`)
	if err := sys.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
	for _, log := range []*stack.Log{sys.Frontend.Log, sys.Signer.Log} {
		content, err := os.ReadFile(log.Path())
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(content)) {
			if len(line) > 1500 || strings.Contains(line, "ZZZZZ") {
				t.Errorf("a line of %d bytes: %.300s", len(line), line)
			}
		}
	}
}
