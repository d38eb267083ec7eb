package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"cats.example/local/issuer"
	"cats.example/local/stand"
)

var update = flag.Bool("update", false, "write docs/faults.md from what the faults were seen to do")

// faultRows are the rows of docs/faults.md, in their order.
var faultRows = []string{
	"storage is down: connections are refused",
	"storage is down when the signer starts",
	"storage never answers",
	"storage is slow: a second more for each answer",
	"the way to storage is narrow: 2 MB/s",
	"connections to storage break amid a body",
	"storage's certificate is not to be trusted",
	"storage throttles: 503, Retry-After 1",
	"storage throttles for long: 503, Retry-After 120",
	"storage throttles: 429",
	"storage is broken: 500",
	"storage refuses the access token: 401",
	"the identity has lost its role on the container: 403",
	"the identity has lost its role on the account: no key",
	"the delegation keys were revoked",
	"links of a new key are refused too",
	"the token issuer is down",
	"the token issuer is slow: two seconds more",
	"the token issuer's certificate is not to be trusted",
	"the federated token has expired",
	"the federated token is missing",
	"our clock is 10 minutes ahead",
	"our clock is 10 minutes behind",
	"no file descriptors are left in the signer",
	"no file descriptors are left in the frontend",
	"the disk is full: the local stand cannot keep a log",
	"the disk is full: the federated token cannot be rotated",
}

// faultRow is what a fault was seen to do: the columns of docs/faults.md, of which
// the last is as measured.
type faultRow struct{ client, log, recovered string }

var (
	faultsMu   sync.Mutex
	faultsSeen = map[string]faultRow{}
)

// faultTable reads the rows of docs/faults.md, and the text around them.
func faultTable() (rows map[string]faultRow, path, before, after string, err error) {
	root, err := stand.FindRoot()
	if err != nil {
		return nil, "", "", "", err
	}
	path = filepath.Join(root, "docs", "faults.md")
	b, err := os.ReadFile(path)
	rows = map[string]faultRow{}
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		switch {
		case !strings.HasPrefix(line, "|") && len(rows) == 0:
			before += line
		case !strings.HasPrefix(line, "|"):
			after += line
		case len(cells) == 4:
			rows[strings.TrimPrefix(cells[0], "| ")] = faultRow{cells[1], cells[2], strings.TrimSuffix(cells[3], " |")}
		}
	}
	return rows, path, before, after, err
}

// seen compares what a fault did with its row in docs/faults.md, unless that is to
// be written.
func seen(t *testing.T, name string, row faultRow) {
	t.Helper()
	if t.Failed() {
		return
	}
	faultsMu.Lock()
	faultsSeen[name] = row
	faultsMu.Unlock()
	t.Logf("%s: %+v", name, row)
	if !slices.Contains(faultRows, name) {
		t.Errorf("%q is not in faultRows", name)
	}
	if *update {
		return
	}
	rows, _, _, _, err := faultTable()
	if err != nil {
		t.Fatal(err)
	}
	if want := rows[name]; want.client != row.client || want.log != row.log {
		t.Errorf("docs/faults.md says of %q\n%s | %s\nand it was\n%s | %s\n(make faults writes it anew)", name, want.client, want.log, row.client, row.log)
	}
}

// endFaults writes docs/faults.md if that was asked for. Otherwise it returns an
// error when the table has other rows than the tests.
func endFaults() error {
	rows, path, before, after, err := faultTable()
	if err != nil {
		return err
	}
	if !*update {
		for name := range rows {
			if name != "fault" && name != "---" && !slices.Contains(faultRows, name) {
				return fmt.Errorf("no test is about the row %q of docs/faults.md", name)
			}
		}
		for _, name := range faultRows {
			if _, ok := rows[name]; !ok {
				return fmt.Errorf("docs/faults.md has no row %q; make faults writes it", name)
			}
		}
		return nil
	}
	maps.Copy(rows, faultsSeen)
	var b strings.Builder
	b.WriteString(before + "| fault | what the client sees | what the log says | recovers after |\n| --- | --- | --- | --- |\n")
	for _, name := range faultRows {
		row := rows[name]
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", name, row.client, row.log, row.recovered)
	}
	return os.WriteFile(path, []byte(b.String()+after), 0o644)
}

// rounded is a measured time as the table has it.
func rounded(d time.Duration) string {
	if d < 100*time.Millisecond {
		return "at once"
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

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
	ca, err := stand.OpenCA(t.TempDir(), "localhost", "*.blob.localhost")
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
	sys        *stand.System
	begin, end func()
	log        *stand.Log   // the signer's unless set
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
	answer             answer
	link               string // how storage answered to the link, where there is one
}

func (f incident) ask(t *testing.T, a *asked) {
	t.Helper()
	began := time.Now()
	c := f.asker
	if c == nil {
		c = client()
	}
	got, err := tryWith(t.Context(), c, a.method, f.sys.URL+"/cat/"+a.user, "", bytes.NewReader(a.content))
	if err != nil {
		t.Errorf("%s %s: %v", a.method, a.user, err)
		return
	}
	if took := time.Since(began); took > f.told {
		t.Errorf("%s %s was answered after %v; want within %v", a.method, a.user, took, f.told)
	}
	a.answer = got
	if a.method == http.MethodGet && got.StatusCode == http.StatusOK {
		link, _ := got.field(t, "picture_url").(string)
		if at := do(t, http.MethodGet, link, "", nil); at.StatusCode != http.StatusOK {
			a.link = fmt.Sprintf(" with a link that gets a %d of storage", at.StatusCode)
		} else if !bytes.Equal(at.body, cat) {
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
	code, _ := a.answer.field(t, "code").(string)
	a.answer.problem(t, status, code)
	s := fmt.Sprintf("%d `%s`", status, code)
	if after := a.answer.Header.Get("Retry-After"); after != "" {
		s += ", Retry-After " + after
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
		{method: http.MethodPut, what: "PUT", user: slug + "-s", content: picture(100<<10, 's')},
		{method: http.MethodPut, what: "PUT of 6 MiB", user: slug + "-l", content: picture(largeSize, 'l')},
	}
	if f.lone {
		requests = requests[:3]
	}
	if f.deletes {
		requests = append(requests, &asked{method: http.MethodDelete, what: "DELETE", user: slug + "-d"})
	}
	for _, r := range requests {
		if r.what != requests[1].what {
			put(t, f.sys, r.user, cat)
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
	keepsSecrets(t, f.sys)
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
	return cell(t, logged(t, f.log, mark, f.says...), f.says)
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
		want := cat
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
	a, err := try(t.Context(), http.MethodGet, f.sys.URL+"/cat/"+f.slug(), "", nil)
	if err != nil || a.StatusCode != http.StatusOK {
		return fmt.Errorf("GET: %w %s", err, a.body)
	}
	link, _ := a.field(t, "picture_url").(string)
	if at := do(t, http.MethodGet, link, "", nil); at.StatusCode != http.StatusOK || !bytes.Equal(at.body, cat) {
		return fmt.Errorf("the link gets a %d", at.StatusCode)
	}
	if a, err = try(t.Context(), http.MethodPut, f.sys.URL+"/cat/"+f.slug()+"-new", "", bytes.NewReader(cat)); err != nil || a.StatusCode != http.StatusOK {
		return fmt.Errorf("PUT: %w %s", err, a.body)
	}
	return nil
}

func TestFaultsOfTheWayToStorage(t *testing.T) {
	needStand(t)
	t.Parallel()
	w := newWay(t, st.Storage.URL)
	w.down()
	sys := start(t, stand.SystemOptions{StorageURL: w.url(st.Storage.URL), NotReady: true})
	const down = "storage is down when the signer starts"
	says := []string{"connection refused", "retry_in"}
	line := cell(t, logged(t, sys.Signer.Log, 0, append([]string{`"level":"ERROR"`}, says...)...), says)
	notReady(t, sys)
	get := &asked{method: http.MethodGet, what: "GET", user: "x"}
	incident{sys: sys, told: 10 * time.Second}.ask(t, get)
	told := get.told(t)
	w.up()
	began := time.Now()
	recovers(t, sys)
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("it recovered after %v", took)
	}
	seen(t, down, faultRow{"not ready; who asks all the same: " + told, line, rounded(time.Since(began))})

	for _, f := range []incident{
		{
			name:  "storage is slow: a second more for each answer",
			begin: func() { w.poison(`{"type":"latency","attributes":{"latency":1000}}`) }, end: w.heal,
			told: 20 * time.Second, within: 20 * time.Second,
		},
		{
			name:  "the way to storage is narrow: 2 MB/s",
			begin: func() { w.poison(`{"type":"bandwidth","stream":"upstream","attributes":{"rate":2000}}`) }, end: w.heal,
			told: 30 * time.Second, within: 20 * time.Second,
		},
		{
			name:  "connections to storage break amid a body",
			begin: func() { w.poison(`{"type":"limit_data","stream":"upstream","attributes":{"bytes":60000}}`) }, end: w.heal,
			says: []string{"storage_unavailable", "storing the picture"},
			told: 15 * time.Second, within: 20 * time.Second,
		},
		{
			name:  "storage is down: connections are refused",
			begin: w.down, end: w.up,
			says: []string{"storage_unavailable", "connection refused"},
			told: 10 * time.Second, within: 20 * time.Second,
			meanwhile: func() {
				if ready, says := readyz(t, sys.SignerOps); !ready {
					t.Errorf("a key is at hand, but not ready: %s", says)
				}
			},
		},
	} {
		f.sys = sys
		f.run(t)
	}
}

func TestFaultsOfTheWayToStorageThatTakeLong(t *testing.T) {
	needStand(t)
	t.Parallel()
	w := newWay(t, st.Storage.URL)
	sys := start(t, stand.SystemOptions{StorageURL: w.url(st.Storage.URL)})
	other := impostor(t)
	incident{
		name: "storage's certificate is not to be trusted", sys: sys,
		begin: func() { w.lead(other) }, end: func() { w.lead(w.healthy) },
		says: []string{"storage_unavailable", "x509: certificate signed by unknown authority"},
		told: 10 * time.Second, within: 20 * time.Second,
	}.run(t)
	incident{
		name: "storage never answers", sys: sys, end: w.heal,
		begin: func() {
			w.poison(`{"type":"timeout","attributes":{"timeout":0}}`)
			var wg sync.WaitGroup
			for i := range 10 { // until nobody is asked any more
				wg.Go(func() {
					began := time.Now()
					do(t, http.MethodGet, fmt.Sprintf("%s/cat/%d", sys.URL, i), "", nil).problem(t, 503, "storage_unavailable")
					if took := time.Since(began); took > 12*time.Second {
						t.Errorf("it took %v to say so", took)
					}
				})
			}
			wg.Wait()
		},
		first: "the first ten are told after 10 s; then, while it is not asked: ",
		says:  []string{"asking it nothing for a while"}, lone: true,
		told: 10 * time.Second, within: 20 * time.Second,
	}.run(t)
}

func TestFaultsOfTheIssuer(t *testing.T) {
	t.Parallel()
	sys := start(t, stand.SystemOptions{AccessTokenLifetime: 6 * time.Second}) // renewed after about half of it
	authority := ""
	for _, v := range sys.Signer.Environ() {
		if u, ok := strings.CutPrefix(v, "AZURE_AUTHORITY_HOST="); ok {
			authority = u
		}
	}
	w, other := newWay(t, authority), impostor(t)
	if err := sys.Signer.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	sys.Signer.SetEnv("AZURE_AUTHORITY_HOST", w.url(authority))
	again(t, sys.Signer)
	recovers(t, sys)
	incident{
		name: "the token issuer is slow: two seconds more", sys: sys,
		begin: func() {
			w.poison(`{"type":"latency","attributes":{"latency":1000}}`) // of TLS, and of the answer
			mark := sys.Signer.Log.Mark()
			logged(t, sys.Signer.Log, mark, "token obtained")
		},
		end: w.heal, told: 10 * time.Second, within: 20 * time.Second,
	}.run(t)
	for _, f := range []incident{
		{
			name:  "the token issuer is down",
			begin: w.down, end: w.up,
			says: []string{"connection refused", "retry_in"},
		},
		{
			name:  "the token issuer's certificate is not to be trusted",
			begin: func() { w.lead(other) }, end: func() { w.lead(w.healthy) },
			says: []string{"x509: certificate signed by unknown authority"},
		},
	} {
		runOut(t, sys, f)
	}
}

// runOut runs an incident that keeps the signer from new tokens: the clients see
// nothing of it until the one at hand has expired.
func runOut(t *testing.T, sys *stand.System, f incident) {
	t.Helper()
	begin, mark := f.begin, int64(0)
	f.sys, f.told, f.within = sys, 5*time.Second, 20*time.Second
	f.first = "nothing while the token at hand lives; then "
	f.says = append([]string{"no token"}, f.says...)
	f.begin = func() {
		mark = sys.Signer.Log.Mark()
		begin()
		logged(t, sys.Signer.Log, mark, `"level":"ERROR"`, "no token")
		if a := do(t, http.MethodGet, sys.URL+"/cat/"+f.slug(), "", nil); a.StatusCode != http.StatusOK {
			t.Errorf("a token is at hand, and GET is %d %s", a.StatusCode, a.body)
		}
		eventually(t, func() error {
			if a := do(t, http.MethodGet, sys.URL+"/cat/"+f.slug(), "", nil); a.StatusCode != http.StatusBadGateway {
				return fmt.Errorf("without a token, GET is %d", a.StatusCode)
			}
			return nil
		})
	}
	f.run(t)
}

func TestFaultsOfTheFederatedToken(t *testing.T) {
	t.Parallel()
	sys := start(t, stand.SystemOptions{AccessTokenLifetime: 6 * time.Second})
	right := func() {
		if err := sys.Token.Reset(); err != nil {
			t.Error(err)
		}
	}
	runOut(t, sys, incident{
		name: "the federated token has expired", end: right,
		begin: func() {
			expired := sys.Token.Right()
			expired.IssuedAt = time.Now().Add(-time.Hour)
			if err := sys.Token.Set(expired); err != nil {
				t.Error(err)
			}
		},
		says: []string{"AADSTS700024", "fix: the federated token is outside its time"},
	})
	runOut(t, sys, incident{
		name: "the federated token is missing", end: right,
		begin: func() { _ = os.Remove(sys.Token.Path()) },
		says:  []string{"no such file", "fix: is the token's volume mounted"},
	})
}

func TestFaultsOfKeysAndRoles(t *testing.T) {
	t.Parallel()
	storage := newAccount(t)
	sys := start(t, stand.SystemOptions{StorageURL: storage.URL, SignerEnv: map[string]string{"LINK_BASE_URL": storage.URL}})
	var began time.Time
	// refuseLinks has storage refuse links that are refused by which.
	refuseLinks := func(code string, which func(url.Values) bool) {
		f := refuse(http.StatusForbidden, code)
		storage.setAll(func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			if q := r.URL.Query(); q.Get("sig") != "" && which(q) {
				f(w, r, healthy)
				return
			}
			healthy.ServeHTTP(w, r)
		})
		began = time.Now()
	}
	restart := func() {
		if err := sys.Signer.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		again(t, sys.Signer)
	}
	time.Sleep(time.Second) // keys go by seconds: the one at hand is not the next one
	incident{
		name: "the delegation keys were revoked", sys: sys, inTurn: true,
		first: "until the next trial (the first link after a quiet minute, or within 75 s): ",
		begin: func() {
			revoked := time.Now().Add(-15 * time.Minute)
			refuseLinks("AuthenticationFailed", func(q url.Values) bool {
				start, err := time.Parse(time.RFC3339, q.Get("skt"))
				return err != nil || start.Before(revoked.Truncate(time.Second))
			})
		},
		says: []string{"the user delegation key is refused", "AuthenticationFailed", "fix: nothing, if the keys were revoked on purpose"},
		told: 10 * time.Second, within: 15 * time.Second,
		end: func() {}, since: func() time.Time { return began },
	}.run(t)
	storage.setAll(nil)

	restart()
	recovers(t, sys)
	restart() // the first link after a start is tried
	incident{
		name: "links of a new key are refused too", sys: sys, inTurn: true,
		first: "the first has a link that gets a 403 of storage; then not ready, and ",
		begin: func() {
			mark := sys.Signer.Log.Mark()
			refuseLinks("AuthorizationPermissionMismatch", func(url.Values) bool { return true })
			do(t, http.MethodGet, sys.URL+"/cat/recovered", "", nil).want(t, http.StatusOK)
			logged(t, sys.Signer.Log, mark, "retry_in")
		},
		says: []string{"storage refuses a link of the user delegation key", "AuthorizationPermissionMismatch", "fix: give the identity the role Storage Blob Data Contributor on the container", "retry_in"},
		told: 10 * time.Second, within: 20 * time.Second,
		meanwhile: func() {
			notReady(t, sys)
			if _, says := readyz(t, sys.SignerOps); !strings.Contains(says, "AuthorizationPermissionMismatch") {
				t.Errorf("/readyz says %s", says)
			}
		},
		end: func() { storage.setAll(nil) },
	}.run(t)
	if n := metric(t, sys.SignerOps, `cats_signer_link_trials_total{outcome="refused"}`); n < 2 {
		t.Errorf("%v trials are counted as refused", n)
	}

	incident{
		name: "the identity has lost its role on the account: no key", sys: sys,
		first: "nothing while the key at hand lives; a signer that starts is not ready, and ", restarts: true,
		begin: func() {
			storage.set("", refuse(403, "AuthorizationPermissionMismatch"))
			mark := sys.Signer.Log.Mark()
			restart()
			logged(t, sys.Signer.Log, mark, "retry_in")
		},
		says: []string{"AuthorizationPermissionMismatch", "Storage Blob Delegator", "retry_in"},
		told: 10 * time.Second, within: 20 * time.Second,
		meanwhile: func() { notReady(t, sys) },
		end:       func() { storage.set("", nil) },
	}.run(t)
}

// TestFaultsOfStoragesAnswers injects all at once, each for users of its own.
func TestFaultsOfStoragesAnswers(t *testing.T) {
	t.Parallel()
	storage := newAccount(t)
	sys := start(t, stand.SystemOptions{StorageURL: storage.URL})
	issued := sys.Issuer.Issued()
	t.Run("faults", func(t *testing.T) {
		for _, c := range []struct {
			name  string
			fault fault
			says  []string
			tries int64 // at most, of two HEADs, the small PUT, the two blocks and a look at what became of it
		}{
			{"storage throttles: 503, Retry-After 1", refuse(503, "ServerBusy", "Retry-After", "1"), []string{"throttled", "ServerBusy"}, 20},
			{"storage throttles for long: 503, Retry-After 120", refuse(503, "ServerBusy", "Retry-After", "120"), []string{"throttled", "ServerBusy"}, 5},
			{"storage throttles: 429", refuse(429, "TooManyRequests"), []string{"throttled", "TooManyRequests"}, 20},
			{"storage is broken: 500", refuse(500, "InternalError"), []string{"storage_unavailable", "500 InternalError", "the-request-id"}, 24},
			{"the identity has lost its role on the container: 403", refuse(403, "AuthorizationPermissionMismatch"), []string{"identity_unavailable", "AuthorizationPermissionMismatch", "fix: give the identity the role Storage Blob Data Contributor"}, 5},
			{"storage refuses the access token: 401", refuse(401, "InvalidAuthenticationInfo", "WWW-Authenticate", challenge), []string{"identity_unavailable", "InvalidAuthenticationInfo", "fix: storage does not take the identity's token"}, 5},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				var tries atomic.Int64
				f := incident{
					name: c.name, sys: sys, says: c.says, told: 15 * time.Second, within: 20 * time.Second,
				}
				f.begin = func() {
					for _, user := range []string{"", "-none", "-s", "-l"} {
						storage.set(f.slug()+user, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
							tries.Add(1)
							c.fault(w, r, healthy)
						})
					}
				}
				f.end = func() {
					if n := tries.Load(); n < c.tries*3/5 || n > c.tries {
						t.Errorf("storage was asked %d times, want at most %d", n, c.tries)
					}
					for _, user := range []string{"", "-none", "-s", "-l"} {
						storage.set(f.slug()+user, nil)
					}
				}
				f.run(t)
			})
		}
	})
	// A key is at hand, so the replica is not taken out because storage hiccups.
	if ready, says := readyz(t, sys.FrontendOps); !ready {
		t.Errorf("not ready: %s", says)
	}
	eventually(t, func() error {
		if sys.Issuer.Issued() == issued {
			return errors.New("storage refused the token, and no other was asked for")
		}
		return nil
	})
}

func TestFaultsOfTheClock(t *testing.T) {
	needStand(t)
	t.Parallel()
	root, err := stand.FindRoot()
	if err != nil {
		t.Fatal(err)
	}
	world, err := stand.New(t.Context(), stand.Options{Root: root, Dir: t.TempDir(), Clock: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := world.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	sys, err := world.StartSystem(t.Context(), stand.SystemOptions{
		Container: "clocks", Frontend: filepath.Join(binDir, "frontend"), Signer: filepath.Join(binDir, "signer"),
		SignerEnv: map[string]string{"EXISTENCE_TTL": "0s"},
	})
	if err != nil {
		t.Fatal(err)
	}
	// set puts our clock ahead of the world's, and has the signer start by it.
	set := func(ahead time.Duration) {
		if err := errors.Join(sys.Signer.Stop(t.Context()), world.SetClock(-ahead), sys.Token.Reset()); err != nil {
			t.Fatal(err)
		}
		again(t, sys.Signer)
		ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Second, errors.New("not ready by another clock"))
		defer cancel()
		if err := sys.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	skew := func(want time.Duration) {
		if got := metric(t, sys.SignerOps, "cats_signer_clock_skew_seconds"); got < want.Seconds()-30 || got > want.Seconds()+30 {
			t.Errorf("a skew of %v s is measured, want %v", got, want)
		}
	}
	short := func(want int) {
		a := do(t, http.MethodGet, sys.URL+"/cat/x?ttl=5m", "", nil).want(t, http.StatusOK)
		link, _ := a.field(t, "picture_url").(string)
		if at := do(t, http.MethodGet, link, "", nil); at.StatusCode != want {
			t.Errorf("a link for 5 min gets a %d, want %d", at.StatusCode, want)
		}
	}
	put(t, sys, "x", cat)
	incident{
		name: "our clock is 10 minutes ahead", sys: sys,
		begin: func() { set(10 * time.Minute) }, end: func() { set(0) },
		restarts: true, says: []string{"the clock is wrong", "ahead of storage's", "fix: time synchronisation on this node"},
		meanwhile: func() { skew(10 * time.Minute); short(200) },
		told:      10 * time.Second, within: 20 * time.Second,
	}.run(t)
	incident{
		name: "our clock is 10 minutes behind", sys: sys,
		begin: func() { set(-10 * time.Minute) }, end: func() { set(0) },
		restarts: true, first: "links end 10 min early, and those for less get a 403 of storage; else ",
		says: []string{"the clock is wrong", "behind storage's", "fix: time synchronisation on this node"},
		meanwhile: func() {
			skew(-10 * time.Minute)
			short(403)
		},
		told: 10 * time.Second, within: 20 * time.Second,
	}.run(t)
	if err := sys.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
}

// lowestFree is the number that the next file descriptor of a process gets.
func lowestFree(t *testing.T, pid int) uint64 {
	t.Helper()
	for n := uint64(0); ; n++ {
		if _, err := os.Lstat(fmt.Sprintf("/proc/%d/fd/%d", pid, n)); errors.Is(err, os.ErrNotExist) {
			return n
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// open is how many file descriptors a process has.
func open(t *testing.T, pid int) uint64 {
	t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return uint64(len(files))
}

// limitFiles has a process get no file descriptor of that number or above, until more
// is called. What it has stays.
func limitFiles(t *testing.T, pid int, number uint64) (more func()) {
	t.Helper()
	var had unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &had); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: number, Max: had.Max}, nil); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &had, nil); err != nil {
			t.Error(err)
		}
	}
}

// roomForNone is the number of the first descriptor that is not standard input,
// output or error: whatever a process closes, it gets no other.
const roomForNone = 3

func TestFaultsOfFileDescriptors(t *testing.T) {
	needStand(t)
	t.Parallel()
	w := newWay(t, st.Storage.URL)
	sys := start(t, stand.SystemOptions{StorageURL: w.url(st.Storage.URL)})
	kept := st.Client()
	kept.Transport.(*http.Transport).IdleConnTimeout = time.Minute
	var more func()
	incident{
		name: "no file descriptors are left in the signer", sys: sys, inTurn: true, lone: true,
		begin: func() {
			w.down() // it needs new connections then
			w.up()
			more = limitFiles(t, sys.Signer.Pid(), roomForNone)
		},
		end:  func() { more() },
		says: []string{"storage_unavailable", "too many open files"},
		told: 10 * time.Second, within: 20 * time.Second,
	}.run(t)
	incident{
		name: "no file descriptors are left in the frontend", sys: sys, inTurn: true, lone: true, deletes: true,
		log: sys.Frontend.Log, asker: kept,
		begin: func() {
			if _, err := tryWith(t.Context(), kept, http.MethodGet, sys.URL+"/service", "", nil); err != nil {
				t.Error(err)
			}
			more = limitFiles(t, sys.Frontend.Pid(), roomForNone)
		},
		end:  func() { more() },
		says: []string{"signer_unavailable", "too many open files"},
		told: 10 * time.Second, within: 20 * time.Second,
		meanwhile: func() { // new connections take the place of those at rest
			more()
			time.Sleep(2500 * time.Millisecond) // until ours are closed
			// No number below the limit is free, and none of a connection is above it.
			for lowestFree(t, sys.Frontend.Pid()) != open(t, sys.Frontend.Pid()) {
				had := open(t, sys.Frontend.Pid())
				dial(t, sys)
				eventually(t, func() error {
					if now := open(t, sys.Frontend.Pid()); now <= had {
						return fmt.Errorf("%d descriptors are open", now)
					}
					return nil
				})
			}
			dial(t, sys)
			time.Sleep(100 * time.Millisecond)
			more = limitFiles(t, sys.Frontend.Pid(), open(t, sys.Frontend.Pid()))
			mark := sys.Frontend.Log.Mark()
			defer logged(t, sys.Frontend.Log, mark, `"level":"ERROR"`, "no file descriptor for a connection", "fix: raise the limit of open files")
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					a := do(t, http.MethodGet, sys.URL+"/cat/nobody", "", nil)
					if a.StatusCode != http.StatusNotFound {
						a.problem(t, http.StatusServiceUnavailable, "signer_unavailable")
					}
				})
			}
			wg.Wait()
		},
	}.run(t)
}

// TestAStandWhoseLogsHaveNoRoomSaysSo has a full disk where the signer's log should be.
func TestAStandWhoseLogsHaveNoRoomSaysSo(t *testing.T) {
	needStand(t)
	t.Parallel()
	dir := t.TempDir()
	log := filepath.Join(dir, "logs", "signer.log")
	if err := errors.Join(os.Mkdir(filepath.Dir(log), 0o700), os.Symlink("/dev/full", log)); err != nil {
		t.Fatal(err)
	}
	opts := stand.SystemOptions{Dir: dir, Container: "e2e-full-disk", Frontend: filepath.Join(binDir, "frontend"), Signer: filepath.Join(binDir, "signer")}
	_, err := st.StartSystem(t.Context(), opts)
	says := []string{"starting signer", "writing the log of signer", "no space left on device"}
	for _, part := range says {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Fatalf("it ended with %v, without %q", err, part)
		}
	}
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	sys, err := st.StartSystem(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	if err := sys.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
	seen(t, "the disk is full: the local stand cannot keep a log", faultRow{"nothing: it does not start", "its end: " + strings.Join(says, " … "), rounded(took) + ", a new start"})
}

// rotating is the variable that has the test binary keep a federated token fresh in
// the folder that it names, as the stand does.
const rotating = "CATS_ROTATE_TOKEN"

func rotate(dir string) int {
	signal.Ignore(unix.SIGXFSZ)
	cluster, err := issuer.NewCluster("https://cluster.example.com")
	if err != nil {
		return fatal(err)
	}
	token, err := issuer.NewTokenFile(filepath.Join(dir, "token"), cluster, issuer.Federated{Subject: stand.Subject, Audience: issuer.Audience, Lifetime: 2 * time.Second})
	if err != nil {
		return fatal(err)
	}
	token.Run(context.Background(), slog.New(slog.NewJSONHandler(os.Stdout, nil)))
	return 0
}

// TestATokenThatCannotBeRotatedStaysWhole takes away all room for files, as a full
// disk does, from the process that rotates the token.
func TestATokenThatCannotBeRotatedStaysWhole(t *testing.T) {
	own(t)
	t.Parallel()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(os.Environ(), rotating+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	lines := bufio.NewScanner(out)
	said := func(what string) string {
		for lines.Scan() {
			if strings.Contains(lines.Text(), what) {
				return lines.Text()
			}
		}
		t.Fatalf("it never said %q", what)
		return ""
	}
	read := func() string {
		b, err := os.ReadFile(filepath.Join(dir, "token"))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	said("federated token rotated")
	old := read()
	var had unix.Rlimit
	if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_FSIZE, nil, &had); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 0, Max: had.Max}, nil); err != nil {
		t.Fatal(err)
	}
	says := []string{"writing the federated token"}
	line := cell(t, said("federated token not rotated"), says)
	said("federated token not rotated") // again, a second later
	if now := read(); now != old || strings.Count(now, ".") != 2 {
		t.Errorf("the token is %d bytes, and was %d", len(now), len(old))
	}
	if err := unix.Prlimit(cmd.Process.Pid, unix.RLIMIT_FSIZE, &had, nil); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	said("federated token rotated")
	took := time.Since(began)
	if took > 5*time.Second || read() == old {
		t.Errorf("it was rotated %v after there was room, or not at all", took)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("%d files are left (%v); want the token alone", len(files), err)
	}
	seen(t, "the disk is full: the federated token cannot be rotated", faultRow{"nothing while the old token lives, which stays whole", line, rounded(took)})
}
