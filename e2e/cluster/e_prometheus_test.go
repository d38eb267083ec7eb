//go:build cluster

package cluster

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"

	"cats.example/e2e/harness"
)

// The test runs a Prometheus in the cluster with scrape_configs.yaml, changed to the namespace of the tests.
func TestPrometheusScrapesBothContainers(t *testing.T) {
	settled(t)
	shipped, err := os.ReadFile(harness.Root("k8s", "components", "monitoring", "scrape_configs.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	image := os.Getenv("PROMETHEUS_IMAGE")
	if image == "" {
		image = "docker.io/prom/prometheus:v3.5.0"
	}
	const names = "names: [cats-api]"
	if strings.Count(string(shipped), names) != 1 {
		t.Fatalf("the scrape configuration does not have %q once", names)
	}
	config := "global: {scrape_interval: 2s}\n" + strings.Replace(string(shipped), names, "names: ["+namespace+"]", 1)
	manifest, err := os.ReadFile("testdata/prometheus.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("IMAGE", image, "CONFIG", strings.ReplaceAll(config, "\n", "\n    ")).Replace(string(manifest))
	if _, err := kubectl(t.Context(), strings.NewReader(text), "apply", "--namespace=", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if err := rolledOut(t.Context(), monitoring, "prometheus"); err != nil && strings.Contains(err.Error(), "ImagePullBackOff") && os.Getenv("CI") == "" {
		t.Skipf("the image of Prometheus is missing; set PROMETHEUS_IMAGE: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}

	var up []string
	eventually(t, func() error {
		up = nil
		for _, series := range query(t, `up{namespace="`+namespace+`"} == 1`) {
			up = append(up, series["pod"]+" "+series["container"])
		}
		if len(up) != 4 {
			return fmt.Errorf("%d targets are up: %q; want both containers of two pods", len(up), up)
		}
		return nil
	})
	t.Logf("up: %q", up)
	for _, p := range ourPods(t) {
		for _, container := range []string{"frontend", "signer"} {
			q := fmt.Sprintf(`cats_%s_build_info{namespace=%q,pod=%q,container=%q}`, container, namespace, p.Metadata.Name, container)
			eventually(t, func() error {
				if n := len(query(t, q)); n != 1 {
					return fmt.Errorf("%s: %d series", q, n)
				}
				return nil
			})
		}
	}
}

// query runs a query on the Prometheus in the cluster and returns the labels of each series.
func query(t *testing.T, promql string) []map[string]string {
	t.Helper()
	said, err := kubectl(t.Context(), nil, "get", "--raw",
		"/api/v1/namespaces/"+monitoring+"/services/prometheus:9090/proxy/api/v1/query?query="+url.QueryEscape(promql))
	if err != nil {
		return nil // it has just started
	}
	var answer struct {
		Data struct {
			Result []struct{ Metric map[string]string }
		}
	}
	if err := json.Unmarshal([]byte(said), &answer); err != nil {
		t.Fatal(err)
	}
	var series []map[string]string
	for _, r := range answer.Data.Result {
		series = append(series, r.Metric)
	}
	return series
}
