package stack

import (
	"context"
	"errors"
	"fmt"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// PrometheusOptions configure a Prometheus.
type PrometheusOptions struct {
	// Root is the root of the checkout, which contains the alerting rules.
	Root string
	// Dir is the folder for settings, data and log. The start creates it.
	Dir string
	// Port is the port on loopback, 0 for any.
	Port int
	// Interval is the scrape interval.
	Interval time.Duration
	// Frontend and Signer are the addresses of the ops listeners as HOST:PORT.
	Frontend, Signer string
}

var prometheusListens = regexp.MustCompile(`msg="Listening on" address=(\S+)`)

// StartPrometheus starts the prometheus in PATH, which scrapes the ops listeners of a system. Rules and labels are those of a cluster. It
// returns when Prometheus answers at the [Process.Address] "web". ctx limits the start only.
//
// Prometheus does not check the Host header. To stop pages that use DNS rebinding, it listens with TLS, and a proxy serves its pages for
// IP addresses and localhost only.
func StartPrometheus(ctx context.Context, opts PrometheusOptions) (*Process, error) {
	tlsDir := filepath.Join(opts.Dir, "prometheus-tls")
	if err := errors.Join(os.MkdirAll(filepath.Join(opts.Dir, "logs"), 0o700), os.MkdirAll(tlsDir, 0o700)); err != nil {
		return nil, fmt.Errorf("creating Prometheus's folder: %w", err)
	}
	ca, err := OpenCA(tlsDir, "localhost")
	if err != nil {
		return nil, err
	}
	if err := opts.writeSettings(ca); err != nil {
		return nil, fmt.Errorf("writing Prometheus's settings: %w", err)
	}
	log, err := newLog("prometheus", filepath.Join(opts.Dir, "logs", "prometheus.log"), nil)
	if err != nil {
		return nil, err
	}
	p := &Process{
		Log: log, name: "prometheus", path: "prometheus", dir: opts.Dir,
		args: []string{
			"--config.file=prometheus.yaml", "--storage.tsdb.path=prometheus", "--storage.tsdb.retention.time=6h",
			"--enable-feature=exemplar-storage",
			"--web.config.file=prometheus-web.yaml", "--web.listen-address=" + loopbackAddress(0),
		},
		env: map[string]string{}, addresses: map[string]string{}, listeners: map[string]string{"web": ""},
		listening: listeningMatch("web", prometheusListens),
	}
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not ready after %v", readyTimeout))
	defer cancel()
	err = p.Start(ctx)
	if err == nil {
		err = p.behindProxy(ctx, ca, opts.Port)
	}
	if err == nil {
		err = poll(ctx, func() error { return probe(ctx, "http://"+p.Address("web")+"/-/ready") })
	}
	if err != nil {
		p.Kill()
		err = fmt.Errorf("%w%s", err, log.tail(3))
		_ = log.close()
		return nil, err
	}
	go func() {
		<-p.Done()
		_ = log.close()
	}()
	return p, nil
}

// writeSettings writes Prometheus's configuration, the rules of the cluster's PrometheusRule and the TLS settings.
func (o PrometheusOptions) writeSettings(ca *CA) error {
	text, err := os.ReadFile(filepath.Join(o.Root, "k8s", "components", "monitoring", "prometheusrule.yaml"))
	if err != nil {
		return err
	}
	var resource struct {
		Spec any `json:"spec"`
	}
	if err := yaml.Unmarshal(text, &resource); err != nil {
		return err
	}
	rules, err := yaml.Marshal(resource.Spec)
	if err != nil {
		return err
	}
	var config strings.Builder
	fmt.Fprintf(&config, "global: {scrape_interval: %[1]v, evaluation_interval: %[1]v}\nrule_files: [prometheus-rules.yaml]\n"+
		"scrape_configs:\n  - job_name: cats-api/cats-api\n    static_configs:\n", o.Interval)
	for container, address := range map[string]string{"frontend": o.Frontend, "signer": o.Signer} {
		fmt.Fprintf(&config, "      - {targets: ['%s'], labels: {namespace: cats-api, pod: local, container: %s}}\n", address, container)
	}
	var errs []error
	for name, content := range map[string]string{
		"prometheus.yaml": config.String(), "prometheus-rules.yaml": string(rules),
		"prometheus-web.yaml": fmt.Sprintf("tls_server_config: {cert_file: %q, key_file: %q}\n", ca.File, ca.KeyFile),
	} {
		errs = append(errs, os.WriteFile(filepath.Join(o.Dir, name), []byte(content), 0o600))
	}
	return errors.Join(errs...)
}

// behindProxy serves the listener "web", which uses TLS with the certificate of ca, in plain HTTP on port until the process ends.
func (p *Process) behindProxy(ctx context.Context, ca *CA, port int) error {
	l, err := listen(ctx, port)
	if err != nil {
		return err
	}
	target := &url.URL{Scheme: "https", Host: p.Address("web")}
	stop := serve(l, &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }, Transport: newTransport(ca)})
	p.mu.Lock()
	p.addresses["web"] = l.Addr().String()
	p.mu.Unlock()
	done := p.Done()
	go func() {
		<-done
		_ = stop(context.WithoutCancel(ctx))
	}()
	return nil
}
