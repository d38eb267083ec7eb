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

// way is a TCP proxy on the way to a server, which fails as it is told. TLS passes
// through it.
type way struct {
	t       *testing.T
	proxy   *toxiproxy.Proxy
	healthy string // where it leads by itself
}

func newWay(t *testing.T, server string) *way {
	t.Helper()
	to, err := url.Parse(server)
	if err != nil {
		t.Fatal(err)
	}
	zerolog.SetGlobalLevel(zerolog.Disabled) // some of the toxics' loggers are their own
	w := &way{t: t, healthy: net.JoinHostPort("127.0.0.1", to.Port())}
	w.proxy = toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), "way", "127.0.0.1:0", w.healthy)
	w.up()
	t.Cleanup(w.down)
	return w
}

// url is that of the server, by this way.
func (w *way) url(server string) string {
	u, err := url.Parse(server)
	if err != nil {
		w.t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(w.proxy.Listen)
	if err != nil {
		w.t.Fatal(err)
	}
	u.Host = net.JoinHostPort(u.Hostname(), port)
	return u.String()
}

func (w *way) down() { w.proxy.Stop() }

func (w *way) up() {
	if err := w.proxy.Start(); err != nil {
		w.t.Fatal(err)
	}
}

// poison adds a toxic, as toxiproxy's API has it, for what connections carry from
// now on; those that are open are closed.
func (w *way) poison(toxic string) {
	w.down()
	if _, err := w.proxy.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
		w.t.Fatal(err)
	}
	w.up()
}

// heal takes all toxics away.
func (w *way) heal() { w.proxy.Toxics.ResetToxics(context.WithoutCancel(w.t.Context())) }

// lead has the way lead to another server.
func (w *way) lead(to string) {
	if err := w.proxy.Update(&toxiproxy.Proxy{Listen: w.proxy.Listen, Upstream: to}); err != nil {
		w.t.Fatal(err)
	}
	w.up()
}

// impostor is the address of a server for TLS whose certificate is of an authority
// that nobody knows.
func impostor(t *testing.T) string {
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

// incident is a fault, injected for a while into a running system.
type incident struct {
	name       string // of its row
	sys        *stack.System
	begin, end func()
	log        *stack.Log   // the signer's unless set
	asker      *http.Client // that asks, when it has to be over a connection at hand
	// says are parts of one line of the log; none for no line but of level info.
	says []string
	// first is what is seen before the clients are asked, for the row.
	first string
	// told is within what time clients are told.
	told time.Duration
	// within is how long recovery may take.
	within time.Duration
	// inTurn asks one after the other, lone makes no large upload, deletes deletes a
	// picture besides, and restarts is that the incident restarts a process.
	inTurn, lone, deletes, restarts bool
	// meanwhile makes more checks while the fault lasts, after the clients were asked.
	meanwhile func()
	// since is when what recovery is counted from happened, where that is not the end.
	since func() time.Time
}

// slug is the row's name as a name of users.
func (f incident) slug() string {
	return strings.Map(func(r rune) rune {
		if r == ' ' || r == '\'' || r == ':' || r == ',' || r == '/' {
			return '-'
		}
		return r
	}, f.name)
}

// asked is one request amid an incident, and what came of it.
type asked struct {
	method, what, user string
	content            []byte // that is put
	answer             harness.Response
	link               string // how storage answered to the link, where there is one
}

func (f incident) ask(t *testing.T, a *asked) {
	t.Helper()
	began := time.Now()
	c := f.asker
	if c == nil {
		c = harness.Client()
	}
	got, err := harness.TryWith(t.Context(), c, a.method, f.sys.URL+"/cat/"+a.user, "", bytes.NewReader(a.content))
	if err != nil {
		t.Errorf("%s %s: %v", a.method, a.user, err)
		return
	}
	if took := time.Since(began); took > f.told {
		t.Errorf("%s %s was answered after %v; want within %v", a.method, a.user, took, f.told)
	}
	a.answer = got
	if a.method == http.MethodGet && got.StatusCode == http.StatusOK {
		link, _ := got.Field(t, "picture_url").(string)
		if at := harness.Do(t, http.MethodGet, link, "", nil); at.StatusCode != http.StatusOK {
			a.link = fmt.Sprintf(" with a link that gets a %d of storage", at.StatusCode)
		} else if !bytes.Equal(at.Body, harness.Cat) {
			t.Errorf("%s: another picture is served than was stored", a.user)
		}
	}
}

// told is what a client was told, as a cell has it.
func (a *asked) told(t *testing.T) string {
	t.Helper()
	if a.answer.Response == nil {
		t.FailNow()
	}
	status := a.answer.StatusCode
	if status < 400 {
		return fmt.Sprint(status) + a.link
	}
	code, _ := a.answer.Field(t, "code").(string)
	a.answer.WantProblem(t, status, code)
	s := fmt.Sprintf("%d `%s`", status, code)
	if after := a.answer.Header.Get("Retry-After"); after != "" {
		s += ", Retry-After " + after
	}
	if outcome, ok := a.answer.Field(t, "outcome").(string); ok {
		s += ", outcome " + outcome
	}
	return s
}

// run injects the fault, sees what it does and that it does no more, ends it, and
// waits for the recovery.
func (f incident) run(t *testing.T) {
	t.Helper()
	slug := f.slug()
	requests := []*asked{
		{method: http.MethodGet, what: "GET", user: slug},
		{method: http.MethodGet, what: "GET of one that is not there", user: slug + "-none"},
		{method: http.MethodPut, what: "PUT", user: slug + "-s", content: harness.Picture(50<<10, 's')},
		{method: http.MethodPut, what: "PUT of 6 MiB", user: slug + "-l", content: harness.Picture(harness.LargeSize, 'l')},
	}
	if f.lone {
		requests = requests[:3]
	}
	if f.deletes {
		requests = append(requests, &asked{method: http.MethodDelete, what: "DELETE", user: slug + "-d"})
	}
	for _, r := range requests {
		if r.what != requests[1].what {
			harness.Put(t, f.sys, r.user, harness.Cat)
		}
	}
	if f.log == nil {
		f.log = f.sys.Signer.Log
	}
	pids := [2]int{f.sys.Frontend.Pid(), f.sys.Signer.Pid()}
	mark := f.log.Mark()
	f.begin()
	var wg sync.WaitGroup
	for _, r := range requests {
		if f.inTurn {
			f.ask(t, r)
			continue
		}
		wg.Go(func() { f.ask(t, r) })
	}
	wg.Wait()
	row := faultRow{client: f.client(t, requests), log: f.line(t, mark)}
	if f.meanwhile != nil {
		f.meanwhile()
	}
	f.kept(t, requests)
	f.end()
	from := time.Now()
	if f.since != nil {
		from = f.since()
	}
	took := f.recovery(t, from)
	row.recovered = rounded(took)
	if took > f.within {
		t.Errorf("it recovered after %v; want within %v", took, f.within)
	}
	if now := [2]int{f.sys.Frontend.Pid(), f.sys.Signer.Pid()}; now != pids && !f.restarts {
		t.Errorf("processes were restarted: %v, then %v", pids, now)
	}
	harness.WantNoSecrets(t, f.sys)
	seen(t, f.name, row)
}

// client is the row's second cell: answers that are the same are told once.
func (f incident) client(t *testing.T, requests []*asked) string {
	t.Helper()
	var cells []string
	var failed bool
	for _, r := range requests {
		told := r.told(t)
		failed = failed || r.answer.StatusCode >= 500
		if r.what == "PUT of 6 MiB" && told == requests[2].told(t) {
			continue
		}
		cells = append(cells, r.what+" "+told)
	}
	if same := requests[0].told(t); !slices.ContainsFunc(requests, func(r *asked) bool { return r.told(t) != same }) {
		cells = []string{same}
	}
	s := strings.Join(cells, "; ")
	if failed && f.told < time.Minute {
		s += fmt.Sprintf("; within %v", f.told)
	}
	return f.first + s
}

// line is the row's third cell.
func (f incident) line(t *testing.T, mark int64) string {
	t.Helper()
	if len(f.says) == 0 {
		lines, err := f.log.Since(mark)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range lines {
			if !strings.Contains(line, `"level":"INFO"`) {
				t.Errorf("the log says %s", line)
			}
		}
		return "nothing"
	}
	return cell(t, harness.WaitForLog(t, f.log, mark, f.says...), f.says)
}

// cell is a line of a log as the table has it.
func cell(t *testing.T, line string, says []string) string {
	t.Helper()
	var event struct{ Level, Msg string }
	if err := json.Unmarshal([]byte(line), &event); err != nil {
		t.Fatal(err)
	}
	if event.Level == "INFO" {
		t.Errorf("what went wrong is told as no more than news: %s", line)
	}
	says = slices.DeleteFunc(slices.Clone(says), func(part string) bool { return strings.Contains(event.Msg, part) })
	if event.Msg == "request" {
		return event.Level + " of each request: " + strings.Join(says, " … ")
	}
	return strings.TrimSuffix(event.Level+" "+event.Msg+": "+strings.Join(says, " … "), ": ")
}

// kept wants of each upload that was refused that the old picture is there, and of
// each that was not the new one.
func (f incident) kept(t *testing.T, requests []*asked) {
	t.Helper()
	for _, r := range requests[2:] {
		want := harness.Cat
		if r.answer.StatusCode < 300 {
			want = r.content
		}
		if _, got, err := f.sys.Storage.Read(t.Context(), f.sys.Container, r.user+"/cat"); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s was answered %d, and other bytes are stored (%v)", r.user, r.answer.StatusCode, err)
		}
	}
}

// recovery returns how long after from a link worked and an upload was stored.
func (f incident) recovery(t *testing.T, from time.Time) time.Duration {
	t.Helper()
	deadline := time.Now().Add(f.within + 10*time.Second)
	for {
		err := f.works(t)
		if err == nil {
			return time.Since(from)
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not recover: %v", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// works returns an error unless the old picture can be had and another be stored.
func (f incident) works(t *testing.T) error {
	t.Helper()
	a, err := harness.Try(t.Context(), http.MethodGet, f.sys.URL+"/cat/"+f.slug(), "", nil)
	if err != nil || a.StatusCode != http.StatusOK {
		return fmt.Errorf("GET: %w %s", err, a.Body)
	}
	link, _ := a.Field(t, "picture_url").(string)
	if at := harness.Do(t, http.MethodGet, link, "", nil); at.StatusCode != http.StatusOK || !bytes.Equal(at.Body, harness.Cat) {
		return fmt.Errorf("the link gets a %d", at.StatusCode)
	}
	if a, err = harness.Try(t.Context(), http.MethodPut, f.sys.URL+"/cat/"+f.slug()+"-new", "", bytes.NewReader(harness.Cat)); err != nil || a.StatusCode != http.StatusOK {
		return fmt.Errorf("PUT: %w %s", err, a.Body)
	}
	return nil
}
