package faults

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// tcpProxy is a fault proxy for TCP connections to a server. TLS passes through it.
type tcpProxy struct {
	*toxiproxy.Proxy
	t      *testing.T
	server *url.URL
}

func newTCPProxy(t *testing.T, server string) *tcpProxy {
	t.Helper()
	u, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	zerolog.SetGlobalLevel(zerolog.Disabled) // some toxics log with a logger of their own
	p := &tcpProxy{t: t, server: u}
	proxies := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p.Proxy = toxiproxy.NewProxy(proxies, "", "127.0.0.1:"+harness.FreePort(t), p.address())
	p.up()
	t.Cleanup(p.Stop)
	return p
}

func (p *tcpProxy) address() string { return net.JoinHostPort("127.0.0.1", p.server.Port()) }

// url returns the URL of the server through the proxy.
func (p *tcpProxy) url() string {
	u := *p.server
	u.Host = u.Hostname() + p.Listen[strings.LastIndexByte(p.Listen, ':'):]
	return u.String()
}

func (p *tcpProxy) up() {
	if err := p.Start(); err != nil {
		p.t.Fatal(err)
	}
}

// down closes the port and all connections, and gives the other end the time to notice it. A request on a connection that has just
// been closed may have been carried out.
func (p *tcpProxy) down() {
	p.Stop()
	time.Sleep(200 * time.Millisecond)
}

// add returns a function that adds a toxic in the format of toxiproxy's API. The proxy closes open connections.
func (p *tcpProxy) add(toxic string) func() {
	return func() {
		p.down()
		if _, err := p.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
			p.t.Fatal(err)
		}
		p.up()
	}
}

// heal removes all toxics.
func (p *tcpProxy) heal() { p.Toxics.ResetToxics(context.WithoutCancel(p.t.Context())) }

// redirect returns a function that makes the proxy forward connections to another address.
func (p *tcpProxy) redirect(address string) func() {
	return func() {
		p.down()
		if err := p.Update(&toxiproxy.Proxy{Listen: p.Listen, Upstream: address}); err != nil {
			p.t.Fatal(err)
		}
		p.up()
	}
}

// untrustedServer returns the address of a TLS server whose certificate no client trusts.
func untrustedServer(t *testing.T) string {
	t.Helper()
	ca, err := stack.OpenCA(t.TempDir(), "localhost", "*.blob.localhost")
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.TLS = &tls.Config{Certificates: []tls.Certificate{ca.Leaf}}
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// incident is a fault that a test injects into a running system for a while, and a row of the table.
type incident struct {
	name           string // of the fault
	sys            *stack.System
	inject, remove func()
	check          func()        // more checks before the removal, unless nil
	before         string        // start of the cell with the responses
	log            []string      // parts of one line of the log; nil if all lines have the level INFO
	logger         *stack.Log    // the signer's by default
	limit          time.Duration // of the time to a response, 10 s by default
	since          time.Time     // start of the recovery, by default the removal
	inTurn         bool          // send one request after the other
	restarts       bool          // the incident restarts a process
}

// slug returns the fault as a user name.
func (f *incident) slug() string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(" ':,/()", r) {
			return '-'
		}
		return r
	}, f.name)
}

// request is a request during an incident, and its response.
type request struct {
	name, method, user string
	body               []byte
	success            int // status without a fault
	status             int
	response           string // as in the table
}

// run injects the fault and sends all kinds of requests. It checks the responses, the log, the stored pictures and the recovery.
func (f *incident) run(t *testing.T) {
	t.Helper()
	var got row
	defer func() { end(t, f.name, got) }()
	user := f.slug()
	requests := []*request{
		{name: "GET", method: "GET", user: user, success: 200},
		{name: "GET of a missing picture", method: "GET", user: user + "-missing", success: 404},
		{name: "PUT", method: "PUT", user: user + "-small", body: harness.Picture(50<<10, 's'), success: 200},
		{name: "PUT of 6 MiB", method: "PUT", user: user + "-large", body: harness.Picture(harness.LargeSize, 'l'), success: 200},
		{name: "DELETE", method: "DELETE", user: user + "-deleted", success: 204},
	}
	client := harness.Client() // a fault may let no new connections through
	client.Transport.(*http.Transport).IdleConnTimeout = time.Minute
	defer client.CloseIdleConnections()
	for _, r := range requests {
		if r.success != 404 {
			harness.SendWith(t, client, "PUT", f.sys.URL+"/cat/"+r.user, string(harness.Cat)).Want(t, 200)
		}
	}
	if f.logger == nil {
		f.logger = f.sys.Signer.Log
	}
	if f.limit == 0 {
		f.limit = 10 * time.Second
	}
	pids, mark := [2]int{f.sys.Frontend.Pid(), f.sys.Signer.Pid()}, f.logger.Mark()
	f.inject()
	var wg sync.WaitGroup
	for _, r := range requests {
		wg.Go(func() { f.send(t, client, r) })
		if f.inTurn {
			wg.Wait()
		}
	}
	wg.Wait()
	got = row{client: f.responses(requests), log: f.line(t, mark)}
	if f.check != nil {
		f.check()
	}
	for _, r := range requests {
		want := harness.Cat
		if r.status == r.success && r.method != "GET" {
			want = r.body
		}
		if _, content := stored(t, f.sys, r.user); r.success != 404 && !bytes.Equal(content, want) {
			t.Errorf("%s was answered with %d, and storage has %d bytes, not %d", r.name, r.status, len(content), len(want))
		}
	}
	f.remove()
	if f.since.IsZero() {
		f.since = time.Now()
	}
	harness.Eventually(t, func() error { return f.works(t) })
	got.recovered = rounded(time.Since(f.since))
	if now := [2]int{f.sys.Frontend.Pid(), f.sys.Signer.Pid()}; now != pids && !f.restarts {
		t.Errorf("processes were restarted: %v, then %v", pids, now)
	}
	harness.WantNoSecrets(t, f.sys)
}

func (f *incident) send(t *testing.T, client *http.Client, r *request) {
	t.Helper()
	began := time.Now()
	a, err := harness.TryWith(t.Context(), client, r.method, f.sys.URL+"/cat/"+r.user, "", bytes.NewReader(r.body))
	if err != nil {
		t.Errorf("%s: %v", r.name, err)
		return
	}
	if took := time.Since(began); took > f.limit {
		t.Errorf("%s was answered after %v; want within %v", r.name, took, f.limit)
	}
	r.status, r.response = a.StatusCode, "success"
	switch {
	case a.StatusCode != r.success:
		code, _ := a.Field(t, "code").(string)
		a.WantProblem(t, a.StatusCode, code)
		r.response = fmt.Sprintf("%d `%s`", a.StatusCode, code)
		if after := a.Header.Get("Retry-After"); after != "" {
			r.response += ", Retry-After " + after
		}
		if outcome, ok := a.Field(t, "outcome").(string); ok {
			r.response += ", outcome " + outcome
		}
	case r.method == "GET" && r.success == 200:
		link, _ := a.Field(t, "picture_url").(string)
		if at := harness.Do(t, "GET", link, "", nil); at.StatusCode != 200 {
			r.response = fmt.Sprintf("200, but storage answers the signed URL with %d", at.StatusCode)
		} else if !bytes.Equal(at.Body, harness.Cat) {
			t.Errorf("the signed URL of %s has another picture", r.user)
		}
	}
}

// responses returns the cell with the responses. Requests with the same response are one group.
func (f *incident) responses(requests []*request) string {
	var order, cells []string
	names, failed := map[string][]string{}, false
	for _, r := range requests {
		if names[r.response] == nil {
			order = append(order, r.response)
		}
		names[r.response] = append(names[r.response], r.name)
		failed = failed || r.status >= 500
	}
	for _, response := range order {
		cells = append(cells, strings.Join(names[response], ", ")+": "+response)
	}
	switch {
	case len(order) == 1 && order[0] == "success":
		cells = []string{"every request succeeds"}
	case len(order) == 1:
		cells = order
	}
	if failed {
		cells = append(cells, fmt.Sprintf("within %.0f s", f.limit.Seconds()))
	}
	return f.before + strings.Join(cells, "; ")
}

// line returns the cell with the line of the log.
func (f *incident) line(t *testing.T, mark int64) string {
	t.Helper()
	if f.log != nil {
		return logCell(t, harness.WaitForLog(t, f.logger, mark, f.log...), f.log)
	}
	lines, err := f.logger.Since(mark)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		if !strings.Contains(line, `"level":"INFO"`) {
			t.Errorf("unexpected line in the log: %s", line)
		}
	}
	return "–"
}

// logCell returns the level and the message of a line, and those of parts that are elsewhere in the line.
func logCell(t *testing.T, line string, parts []string) string {
	t.Helper()
	var event struct{ Level, Msg string }
	if err := json.Unmarshal([]byte(line), &event); err != nil {
		t.Fatal(err)
	}
	if event.Level == "INFO" {
		t.Errorf("a fault is logged as INFO: %s", line)
	}
	parts = slices.DeleteFunc(slices.Clone(parts), func(part string) bool { return strings.Contains(event.Msg, part) })
	return strings.TrimSuffix(event.Level+" `"+event.Msg+"`: "+strings.Join(parts, " … "), ": ")
}

// works returns an error unless the old picture can be downloaded and another one be stored.
func (f *incident) works(t *testing.T) error {
	t.Helper()
	a, err := harness.Try(t.Context(), "GET", f.sys.URL+"/cat/"+f.slug(), "", nil)
	if err != nil || a.StatusCode != 200 {
		return fmt.Errorf("GET: %w %s", err, a.Body)
	}
	link, _ := a.Field(t, "picture_url").(string)
	if at := harness.Do(t, "GET", link, "", nil); !bytes.Equal(at.Body, harness.Cat) {
		return fmt.Errorf("storage answers the signed URL with %d", at.StatusCode)
	}
	a, err = harness.Try(t.Context(), "PUT", f.sys.URL+"/cat/"+f.slug()+"-new", "", bytes.NewReader(harness.Cat))
	if err != nil || a.StatusCode != 200 {
		return fmt.Errorf("PUT: %w %s", err, a.Body)
	}
	return nil
}
