package faults

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
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

// incident is a fault that a test injects into a running system for a while. Its row in docs/faults.md has the expected responses
// and the expected line of the log.
type incident struct {
	name   string // of the fault
	sys    *stack.System
	inject func()
	remove func()     // nil if the system recovers while the fault is there
	check  func()     // more checks before the removal, unless nil
	logger *stack.Log // the signer's by default
	inTurn bool       // send one request after the other
}

// slug returns the fault as a user name.
func (f *incident) slug() string {
	return strings.Trim(regexp.MustCompile(`[ ':,/()]`).ReplaceAllString(f.name, "-"), "-")
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
	want := expected(t, f.name)
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
	mark, began := f.logger.Mark(), time.Now()
	f.inject()
	var wg sync.WaitGroup
	for _, r := range requests {
		wg.Go(func() { f.send(t, client, r, want.limit) })
		if f.inTurn {
			wg.Wait()
		}
	}
	wg.Wait()
	got := responses(requests)
	if before, ok := strings.CutSuffix(want.responses, got); !ok || strings.Contains(before, ": ") {
		t.Errorf("the responses are\n%s\ndocs/faults.md has\n%s", got, want.responses)
	}
	want.findLog(t, f.logger, mark)
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
	if f.remove != nil {
		began = time.Now()
		f.remove()
	}
	upload := request{name: "PUT", method: "PUT", user: user + "-new", body: harness.Cat, success: 200}
	for _, r := range []*request{requests[0], &upload} {
		harness.Eventually(t, func() error {
			if f.send(t, client, r, time.Minute); r.response != "success" {
				return fmt.Errorf("%s: %s", r.name, r.response)
			}
			return nil
		})
	}
	measure(f.name, time.Since(began))
	if err := errors.Join(f.sys.Frontend.Ended(), f.sys.Signer.Ended()); err != nil {
		t.Error(err)
	}
	harness.WantNoSecrets(t, f.sys)
}

// send sends r within a limit and records the response.
func (f *incident) send(t *testing.T, client *http.Client, r *request, limit time.Duration) {
	t.Helper()
	began := time.Now()
	a, err := harness.TryWith(t.Context(), client, r.method, f.sys.URL+"/cat/"+r.user, "", bytes.NewReader(r.body))
	if took := time.Since(began); took > limit {
		t.Errorf("%s was answered after %v; want within %v", r.name, took, limit)
	}
	r.status, r.response = a.StatusCode, "success"
	switch {
	case err != nil:
		r.response = err.Error()
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
