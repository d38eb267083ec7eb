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

// PrometheusOptions of one Prometheus.
type PrometheusOptions struct {
	// Root is that of the checkout, for the rules that are shipped.
	Root string
	// Dir, which is made, is for its settings, its data and its log.
	Dir string
	// Port on loopback, 0 for any.
	Port int
	// Interval of scrapes.
	Interval time.Duration
	// Frontend and Signer are the ops listeners, as HOST:PORT.
	Frontend, Signer string
}

var prometheusListens = regexp.MustCompile(`msg="Listening on" address=(\S+)`)

// StartPrometheus starts the prometheus in PATH on the ops listeners of a system, with
// the rules that are shipped and the labels that they have in a cluster. It returns once
// it answers, at the [Process.Address] "web"; ctx bounds the start.
//
// Prometheus itself does not look at the Host header. It listens with TLS on another port, where its certificate keeps out
// pages that use DNS rebinding, behind a proxy that serves IP addresses and localhost only.
func StartPrometheus(ctx context.Context, opts PrometheusOptions) (*Process, error) {
	text, err := os.ReadFile(filepath.Join(opts.Root, "k8s", "components", "monitoring", "prometheusrule.yaml"))
	if err != nil {
		return nil, fmt.Errorf("starting prometheus: %w", err)
	}
	var resource struct {
		Spec any `json:"spec"`
	}
	if err := yaml.Unmarshal(text, &resource); err != nil {
		return nil, fmt.Errorf("starting prometheus: its rules: %w", err)
	}
	rules, err := yaml.Marshal(resource.Spec)
	if err != nil {
		return nil, fmt.Errorf("starting prometheus: its rules: %w", err)
	}
	var config strings.Builder
	fmt.Fprintf(&config, "global: {scrape_interval: %[1]v, evaluation_interval: %[1]v}\nrule_files: [prometheus-rules.yaml]\n"+
		"scrape_configs:\n  - job_name: cats-api/cats-api\n    static_configs:\n", opts.Interval)
	for container, address := range map[string]string{"frontend": opts.Frontend, "signer": opts.Signer} {
		fmt.Fprintf(&config, "      - {targets: ['%s'], labels: {namespace: cats-api, pod: local, container: %s}}\n", address, container)
	}
	tlsDir := filepath.Join(opts.Dir, "prometheus-tls")
	if err := errors.Join(os.MkdirAll(filepath.Join(opts.Dir, "logs"), 0o700), os.MkdirAll(tlsDir, 0o700)); err != nil {
		return nil, fmt.Errorf("starting prometheus: %w", err)
	}
	ca, err := OpenCA(tlsDir, "localhost")
	if err != nil {
		return nil, fmt.Errorf("starting prometheus: %w", err)
	}
	for name, content := range map[string]string{
		"prometheus.yaml": config.String(), "prometheus-rules.yaml": string(rules),
		"prometheus-web.yaml": fmt.Sprintf("tls_server_config: {cert_file: %q, key_file: %q}\n", ca.File, ca.KeyFile),
	} {
		if err := os.WriteFile(filepath.Join(opts.Dir, name), []byte(content), 0o600); err != nil {
			return nil, fmt.Errorf("starting prometheus: %w", err)
		}
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
		listening: func(line string) (listener, address string, ok bool) {
			m := prometheusListens.FindStringSubmatch(line)
			if m == nil {
				return "", "", false
			}
			return "web", m[1], true
		},
	}
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, fmt.Errorf("not ready after %v", readyTimeout))
	defer cancel()
	err = p.Start(ctx)
	if err == nil {
		if err = p.behindProxy(ctx, ca, opts.Port); err == nil {
			err = poll(ctx, func() error { return probe(ctx, "http://"+p.Address("web")+"/-/ready") })
		}
		if err != nil {
			p.Kill()
		}
	}
	if err != nil {
		err = fmt.Errorf("%w%s", err, log.tail(3))
		_ = log.close() // what is in it was said
		return nil, err
	}
	go func() {
		<-p.Done()
		_ = log.close() // nobody reads it any more
	}()
	return p, nil
}

// behindProxy serves the process's listener "web", which has TLS with the certificate of ca, in plain HTTP on another port
// until the process has ended.
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
		_ = stop(context.WithoutCancel(ctx)) // nothing answers behind it any more
	}()
	return nil
}
