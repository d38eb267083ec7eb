//go:build cluster

package cluster

import (
	"cmp"
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
	config := "global: {scrape_interval: 2s}\n" + strings.Replace(string(shipped), "names: [cats-api]", "names: ["+namespace+"]", 1)
	manifest, err := os.ReadFile("testdata/prometheus.yaml")
	if err != nil {
		t.Fatal(err)
	}
	image := cmp.Or(os.Getenv("PROMETHEUS_IMAGE"), "docker.io/prom/prometheus:v3.5.0")
	text := strings.NewReplacer("IMAGE", image, "CONFIG", strings.ReplaceAll(config, "\n", "\n    ")).Replace(string(manifest))
	if _, err := kubectl(t.Context(), strings.NewReader(text), "apply", "--namespace=", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	if err := rolledOut(t.Context(), monitoring, "prometheus"); err != nil && strings.Contains(err.Error(), "ImagePullBackOff") && os.Getenv("CI") == "" {
		t.Skipf("the image of Prometheus is missing; set PROMETHEUS_IMAGE: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}

	// Both containers of two pods.
	for promql, want := range map[string]string{
		`count(up{namespace="` + namespace + `"} == 1)`:                                               "4",
		`count(cats_frontend_build_info{namespace="` + namespace + `",pod!="",container="frontend"})`: "2",
		`count(cats_signer_build_info{namespace="` + namespace + `",pod!="",container="signer"})`:     "2",
	} {
		const proxy = "/api/v1/namespaces/" + monitoring + "/services/prometheus:9090/proxy/api/v1/query?query="
		eventually(t, func() error {
			response, err := kubectl(t.Context(), nil, "get", "--raw", proxy+url.QueryEscape(promql))
			if err == nil && !strings.Contains(response, `,"`+want+`"]`) {
				err = fmt.Errorf("%s: %s; want %s", promql, response, want)
			}
			return err
		})
	}
}
