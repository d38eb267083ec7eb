// Package attacks tests hostile clients, a compromised frontend, and the limits that protect against both.
package attacks

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// attacker has taken over the frontend: it sends any bytes to the signer's local API. A proxy in front of storage records what the
// signer then requests from storage.
type attacker struct {
	sys      *stack.System
	secrets  [][]string // one in each row, which no response may contain
	expected *regexp.Regexp

	mu         sync.Mutex
	unexpected []string // requests to storage
}

func newAttacker(t *testing.T, env map[string]string) *attacker {
	t.Helper()
	rows := slices.Concat(harness.Table(t, "storage.txt")...)
	a := &attacker{expected: regexp.MustCompile("^(" + strings.Join(rows, "|") + ")$")}
	storage := harness.NewStorageProxy(t)
	healthy := storage.Healthy
	storage.Healthy = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.record(r)
		healthy.ServeHTTP(w, r)
	})
	a.sys = harness.Start(t, stack.SystemOptions{
		StorageURL:  storage.URL,
		FrontendEnv: map[string]string{"MAX_PICTURE_SIZE": env["MAX_PICTURE_SIZE"]}, SignerEnv: env,
	})
	path := a.sys.Token.Path()
	token, err := os.ReadFile(path)
	if err != nil || !bytes.HasPrefix(token, []byte(harness.JWTPrefix)) {
		t.Fatalf("the federated token: %d bytes, %v", len(token), err)
	}
	const accounts = "AZURITE_ACCOUNTS=" + stack.Account + ":"
	environ := a.sys.Storage.Process.Environ()
	key := environ[slices.IndexFunc(environ, func(v string) bool { return strings.HasPrefix(v, accounts) })]
	a.secrets = harness.Table(t, "secrets.txt", "{jwt}", harness.JWTPrefix, "{token}", string(token), "{path}", path,
		"{folder}", filepath.Dir(path), "{storage}", strings.TrimPrefix(storage.URL, "https://"),
		"{key}", strings.TrimPrefix(key, accounts))
	return a
}

// record keeps requests to storage that are not expected, or have other headers.
func (a *attacker) record(r *http.Request) {
	parts := []string{r.Method + " " + r.URL.Path + "?" + r.URL.Query().Encode()}
	for name := range r.Header {
		value := r.Header.Get(name)
		if name == "X-Ms-Copy-Source" {
			value = strings.Replace(value, "https://"+r.Host, "HOST", 1) + " if " + r.Header.Get("X-Ms-Source-If-Match")
		}
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-ms-") {
			parts = append(parts, name+": "+value)
		}
	}
	for _, part := range parts {
		if !a.expected.MatchString(part) {
			a.mu.Lock()
			a.unexpected = append(a.unexpected, part)
			a.mu.Unlock()
		}
	}
}

// wantUndisturbed fails the test if the signer has restarted, has panicked, or has sent unexpected requests to storage.
func (a *attacker) wantUndisturbed(t *testing.T, pid int) {
	t.Helper()
	if a.sys.Signer.Pid() != pid || harness.Sum(t, a.sys.SignerOps, "cats_signer_http_panics_total") != 0 {
		t.Error("the signer has restarted or panicked")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, request := range a.unexpected {
		t.Errorf("the signer sent to storage: %s", request)
	}
}

// call returns a call of the local API as bytes. header is whole lines. {none} in it leaves out the contract's version, {keep} the
// request to close the connection.
func call(methodTarget, header, body string) string {
	lines := methodTarget + " HTTP/1.1\r\nHost: 127.0.0.1\r\n"
	if !strings.Contains(header, "{keep}") {
		lines += "Connection: close\r\n"
	}
	if !strings.Contains(header, "{none}") {
		lines += "Cats-Contract: 1\r\n"
	}
	if body != "" && !strings.Contains(header, "Transfer-Encoding") && !strings.Contains(header, "Content-Length") {
		lines += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	return lines + strings.NewReplacer("{keep}", "", "{none}", "").Replace(header) + "\r\n" + body
}

// send sends raw bytes and returns the first response, with status 0 if there is none.
func (a *attacker) send(t *testing.T, raw string) harness.Response {
	t.Helper()
	return append(a.exchange(t, raw, false), harness.Response{Response: &http.Response{}})[0]
}

// exchange sends raw bytes, and then the end of the stream if end is true. It returns all responses until the end of the connection,
// and fails the test unless they follow the contract. The signer may close the connection before it has read all.
func (a *attacker) exchange(t *testing.T, raw string, end bool) (responses []harness.Response) {
	t.Helper()
	address := strings.TrimPrefix(a.sys.SignerAPI, "http://")
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Error(err)
		return nil
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	go func() {
		_, _ = io.WriteString(conn, raw)
		if end {
			_ = conn.(*net.TCPConn).CloseWrite()
		}
	}()
	for in := bufio.NewReader(conn); ; {
		resp, err := http.ReadResponse(in, nil)
		if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
			t.Errorf("%.200q: neither a response nor the end of the connection", raw)
		}
		if err != nil {
			return responses
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if fault := a.fault(resp, body); fault != "" {
			t.Errorf("%.200q: %d %.200q: %s", raw, resp.StatusCode, body, fault)
		}
		responses = append(responses, harness.Response{Response: resp, Body: body})
	}
}

// responseForm matches the responses of the contract: status, Retry-After if there is one, and body. The last form is net/http's.
var responseForm = regexp.MustCompile(`(?s)^(100 |2\d\d (\{.*\}\n?)?` +
	`|(4\d\d( \d+)?|503 \d+) \{"code":"[a-z_]+","detail":"([^"\\]|\\.)+"(,"outcome":"unknown")?\}\n?` +
	`|(4\d\d|501|505) [A-Za-z0-9 :,;()/.'"-]{0,120}\n?)$`)

// fault says how a response violates the contract, "" if it does not.
func (a *attacker) fault(resp *http.Response, body []byte) string {
	var all bytes.Buffer
	_ = resp.Header.Write(&all)
	all.Write(body)
	for _, secret := range a.secrets {
		if bytes.Contains(all.Bytes(), []byte(secret[0])) {
			return fmt.Sprintf("it contains %.20q", secret)
		}
	}
	status := strings.TrimSpace(fmt.Sprint(resp.StatusCode, " ", resp.Header.Get("Retry-After")))
	if !responseForm.MatchString(status + " " + string(body)) {
		return "not in the contract"
	}
	return ""
}

// field returns a field of a JSON response, "" if there is none.
func field(r harness.Response, name string) string {
	var m map[string]any
	_ = json.Unmarshal(r.Body, &m)
	text, _ := m[name].(string)
	return text
}
