package faults

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// change is a request that changes a picture.
type change struct {
	name    string
	kinds   string  // words that select the cutoffs
	begins  float64 // share of the body after which the signer has certainly begun a request to storage
	content []byte  // stored by it; nil for a deletion
	request newRequest
}

type newRequest func(t *testing.T, sys *stack.System, user string, content []byte) harness.RawUpload

// changes returns one change for each way in which the signer sends it to storage.
func changes() []change {
	upload := func(n int) newRequest {
		return func(t *testing.T, _ *stack.System, user string, content []byte) harness.RawUpload {
			t.Helper()
			return harness.RawUploads(t, user, content)[n]
		}
	}
	commit := func(t *testing.T, sys *stack.System, user string, content []byte) harness.RawUpload {
		t.Helper()
		k := harness.NewUploadSession(t, sys, user, int64(len(content)))
		k.Send(t, content)
		return harness.RawUpload{Header: "POST /cat/" + user + "/upload/" + k.ID + "/commit HTTP/1.1\r\nHost: localhost\r\n\r\n"}
	}
	return []change{
		{"PUT of 50 KiB", "body put sized buffered", 1, harness.Random(50<<10, 7), upload(0)},
		{"PUT of 10 MiB", "body put sized streamed single", 0.5, harness.Random(10<<20, 7), upload(0)},
		{"chunked PUT of 6 MiB", "body chunked streamed blocks", 0.9, harness.Random(6<<20, 7), upload(1)},
		{"form of 10 MiB", "body form sized streamed blocks", 0.5, harness.Random(10<<20, 7), upload(2)},
		{"DELETE", "buffered", 1, nil, func(_ *testing.T, _ *stack.System, user string, _ []byte) harness.RawUpload {
			return harness.RawUpload{Header: "DELETE /cat/" + user + " HTTP/1.1\r\nHost: localhost\r\n\r\n"}
		}},
		{"commit", "buffered", 1, harness.Random(50<<10, 7), commit},
	}
}

// edit alters a request.
type edit func(harness.RawUpload) harness.RawUpload

func line(text string) edit {
	return func(u harness.RawUpload) harness.RawUpload {
		u.Header = strings.Replace(u.Header, "\r\n", "\r\n"+text+"\r\n", 1)
		return u
	}
}

// length sets the Content-Length, if there is one, to that of the body and more.
func length(more int) edit {
	return func(u harness.RawUpload) harness.RawUpload {
		if before, _, ok := strings.Cut(u.Header, "Content-Length: "); ok {
			u.Header = before + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(u.Body)+more)
		}
		return u
	}
}

// endWith replaces the end of the body, from the last occurrence of text.
func endWith(text, end string) edit {
	return func(u harness.RawUpload) harness.RawUpload {
		u.Body = u.Body[:strings.LastIndex(u.Body, text)] + end
		return length(0)(u)
	}
}

// respond is a fault: storage responds without reading the body.
func respond(status int, code string, header ...string) harness.Fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		r.Body = http.NoBody
		harness.Reject(status, code, append(header, "Connection", "close")...)(w, r, nil)
	}
}

// reset is a fault: storage reads a share of the body and resets the connection.
func reset(share float64) harness.Fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		receiveShare(share)(w, r, nil)
		r.ContentLength = 0
		harness.Reset(w, r, nil)
	}
}

func receiveShare(share float64) harness.Fault {
	return func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
		if share > 0 { // else storage does not even send 100 Continue
			_, _ = io.CopyN(io.Discard, r.Body, int64(share*float64(r.ContentLength)))
		}
	}
}

func carryOut(w http.ResponseWriter, r *http.Request, healthy http.Handler) { healthy.ServeHTTP(w, r) }

// uninvited is no fault: storage reads the body without a 100 Continue, and stores the picture.
func uninvited(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(io.LimitReader(buffered, r.ContentLength))
	r.Header.Del("Expect")
	recorded := httptest.NewRecorder()
	healthy.ServeHTTP(recorded, r)
	recorded.Header().Set("Connection", "close")
	_ = recorded.Result().Write(conn)
	_ = conn.Close()
}

func atBlockList(r *http.Request) bool { return r.URL.Query().Get("comp") == "blocklist" }

func atData(r *http.Request) bool {
	return r.Method == http.MethodDelete || r.Method == http.MethodPut && !atBlockList(r)
}

// cutoff is a fault during a change, and the expected result.
type cutoff struct {
	name string
	only string // kinds of the changes that it applies to
	edit edit
	// The client sends this share of the body (0: all). Then it leaves, or a process is killed. Without leave and kill, the client
	// waits until the fault has happened, and sends the rest.
	share float64
	leave func(*net.TCPConn)
	kill  func(*stack.System) *stack.Process
	// Storage responds with fault to the requests that at selects, by default those with data; with lookups, also to later lookups.
	// It does not respond if it hangs.
	fault          harness.Fault
	at             func(*http.Request) bool
	lookups, hangs bool

	want want
}

// want is the expected response, and whether the picture changes. A status of 200 stands for that of a successful change, 0 for
// no response.
type want struct {
	status        int
	code, outcome string
	changed       bool
}

var (
	success       = want{status: 200, changed: true}
	incomplete    = want{status: 400, code: "incomplete"}
	malformed     = want{status: 400, code: "malformed_form"}
	throttled     = want{status: 503, code: "throttled"}
	failed        = want{status: 412, code: "precondition_failed"}
	notStored     = want{status: 503, code: "storage_unavailable"}
	unknown       = want{status: 503, code: "storage_unavailable", outcome: "unknown"}
	unknownStored = want{status: 503, code: "storage_unavailable", outcome: "unknown", changed: true}
	damaged       = want{status: 502, code: "damaged", outcome: "stored", changed: true}
	killed        = want{status: 503, code: "signer_unavailable"}
	killedUnknown = want{status: 503, code: "signer_unavailable", outcome: "unknown"}
	killedStored  = want{status: 503, code: "signer_unavailable", outcome: "unknown", changed: true}
)

func halfClose(conn *net.TCPConn) { _ = conn.CloseWrite() }

func resetConn(conn *net.TCPConn) { _ = conn.SetLinger(0); _ = conn.Close() }

func signer(sys *stack.System) *stack.Process { return sys.Signer }

func frontend(sys *stack.System) *stack.Process { return sys.Frontend }

const otherDigest = "Content-Digest: sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:"

var (
	throttles   = harness.Reject(503, "ServerBusy", "Retry-After", "1")
	failsMatch  = harness.Reject(412, "ConditionNotMet")
	storesOther = harness.CRC64(base64.StdEncoding.EncodeToString(make([]byte, 8)))
)

var cutoffs = []cutoff{
	{name: "client closes its side in the body", only: "body", share: 0.5, leave: halfClose, want: incomplete},
	{name: "client closes its side before the last byte", only: "body", share: 0.9999, leave: halfClose, want: incomplete},
	{name: "client resets in the body", only: "body", share: 0.5, leave: resetConn},
	{name: "client resets before the last byte", only: "body", share: 0.9999, leave: resetConn},
	{name: "wrong digest", only: "body", edit: line(otherDigest), want: want{status: 400, code: "digest_mismatch"}},
	{name: "Content-Length too high", only: "sized", edit: length(1), leave: halfClose, want: incomplete},
	{name: "Content-Length too low", only: "form", edit: length(-100), leave: halfClose, want: malformed},
	{name: "no last boundary", only: "form", edit: endWith("\r\n--", ""), leave: halfClose, want: malformed},
	{name: "no last chunk", only: "chunked", edit: endWith("0\r\n\r\n", ""), leave: halfClose, want: incomplete},
	{name: "chunk too long", only: "chunked", edit: endWith("\r\n0", "cat\r\n0\r\n\r\n"), leave: halfClose, want: incomplete},

	{name: "precondition failed", edit: line(`If-Match: "0x0"`), want: failed},
	{name: "storage rejects", fault: harness.Reject(409, "BlobImmutableDueToPolicy"), want: want{status: 409, code: "immutable"}},
	{name: "storage throttles early", fault: respond(503, "ServerBusy", "Retry-After", "120"), want: throttled},
	{name: "storage rejects a list", only: "blocks", edit: line("If-Match: *"), at: atBlockList, fault: failsMatch, want: failed},
	{name: "storage resets early", only: "streamed", fault: reset(0), want: notStored},
	{name: "storage resets early", only: "body buffered", fault: reset(0), want: unknown},
	{name: "storage resets in the body", only: "streamed", share: 0.9, fault: reset(0.5), want: notStored},
	{name: "storage resets in the body", only: "body buffered", fault: reset(0.5), want: unknown},
	{name: "storage resets the block list", only: "blocks", at: atBlockList, fault: reset(0.5), want: unknown},

	{name: "storage sends no 100 Continue", only: "body", fault: uninvited, want: success},
	{name: "storage fails once", fault: harness.Once(respond(500, "InternalError")), want: success},
	{name: "storage throttles once", only: "buffered", fault: harness.Once(throttles), want: success},
	{name: "storage times out once", only: "buffered", fault: harness.Once(harness.Reject(408, "OperationTimedOut")), want: success},
	{name: "storage resets once", only: "buffered", fault: harness.Once(harness.Reset), want: success},
	{name: "response lost once", at: harness.Changes, fault: harness.Once(harness.LoseResponse), want: success},
	{name: "responses lost", only: "body", at: harness.Changes, fault: harness.LoseResponse, want: success},

	{name: "responses lost, also of lookups", at: harness.Changes, lookups: true, fault: harness.LoseResponse, want: unknownStored},
	{name: "requests lost, also lookups", at: harness.Changes, lookups: true, fault: reset(1), want: unknown},
	{name: "requests lost", only: "body", at: harness.Changes, fault: reset(1), want: unknown},
	{name: "storage stores other bytes", only: "put sized", at: harness.Changes, fault: storesOther, want: damaged},

	{name: "signer killed in the body", only: "streamed", kill: signer, share: 0.9, want: killed},
	{name: "signer killed, discarded", kill: signer, at: harness.Changes, fault: receiveShare(1), hangs: true, want: killedUnknown},
	{name: "signer killed, carried out", kill: signer, at: harness.Changes, fault: carryOut, hangs: true, want: killedStored},
	{name: "frontend killed in the body", only: "single", kill: frontend, share: 0.9},
	{name: "frontend killed, carried out", only: "single", kill: frontend, fault: carryOut, hangs: true, want: want{changed: true}},
	{name: "no fault", want: success},
}

// TestBrokenChangesKeepOldPicture breaks changes of every kind at every stage.
func TestBrokenChangesKeepOldPicture(t *testing.T) {
	t.Parallel()
	for _, c := range changes() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			storage := harness.NewStorageProxy(t)
			sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
			for i, row := range cutoffs {
				kinds := strings.Fields(c.kinds)
				if slices.ContainsFunc(strings.Fields(row.only), func(kind string) bool { return !slices.Contains(kinds, kind) }) {
					continue
				}
				t.Run(row.name, func(t *testing.T) { row.run(t, c, sys, storage, fmt.Sprint("user-", i)) })
			}
			harness.Eventually(t, func() error {
				n := harness.Sum(t, sys.FrontendOps, "cats_frontend_http_requests_in_flight")
				n += harness.Sum(t, sys.SignerOps, "cats_signer_http_requests_in_flight")
				if n += harness.Sum(t, sys.SignerOps, "cats_signer_upload_buffers_in_use"); n > 0 {
					return fmt.Errorf("%v requests and upload buffers are still in use", n)
				}
				return nil
			})
		})
	}
}

// TestSilentStorageKeepsOldPicture waits for timeouts of 30 s.
func TestSilentStorageKeepsOldPicture(t *testing.T) {
	t.Parallel()
	storage := harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
	all := changes()
	put, form, small := all[0], all[3], all[0]
	put.content, form.content = harness.Random(24<<20, 8), harness.Random(24<<20, 8) // more than the kernel buffers of a connection
	late := func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		healthy.ServeHTTP(httptest.NewRecorder(), r)
		select {
		case <-time.After(25 * time.Second):
			w.WriteHeader(http.StatusCreated)
		case <-r.Context().Done():
		}
	}
	for user, row := range map[string]struct {
		change
		cutoff
	}{
		"silent-in-a-put":             {put, cutoff{fault: receiveShare(0.1), hangs: true, want: notStored}},
		"silent-in-a-form":            {form, cutoff{fault: receiveShare(0.1), hangs: true, want: notStored}},
		"silent-after-the-last-byte":  {small, cutoff{fault: receiveShare(1), hangs: true, want: unknown}},
		"responds-to-a-put-after-25s": {small, cutoff{fault: late, want: success}},
	} {
		t.Run(user, func(t *testing.T) {
			t.Parallel()
			row.run(t, row.change, sys, storage, user)
		})
	}
}

// run makes a change with a fault. It checks the response and the stored picture, and that another upload works afterwards.
func (row cutoff) run(t *testing.T, c change, sys *stack.System, storage *harness.StorageProxy, user string) {
	t.Helper()
	harness.Put(t, sys, user, harness.Cat)
	old, _ := stored(t, sys, user)
	u := c.request(t, sys, user, c.content)
	if row.edit != nil {
		u = row.edit(u)
	}
	if row.at == nil {
		row.at = atData
	}
	happened := make(chan struct{}) // the fault; without one, storage has received a request
	over := make(chan struct{})
	done := sync.OnceFunc(func() { close(happened) })
	var changing atomic.Bool
	storage.Set(user, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		at := row.at(r) || row.lookups && r.Method == http.MethodHead && changing.Load()
		if at {
			changing.Store(true)
		}
		switch {
		case row.fault == nil || !at:
			if at {
				done()
			}
			healthy.ServeHTTP(w, r)
		case row.hangs:
			row.fault(httptest.NewRecorder(), r, healthy)
			done()
			<-over
			panic(http.ErrAbortHandler)
		default:
			defer done()
			row.fault(w, r, healthy)
		}
	})
	a, answered := row.send(t, c, sys, u, happened)
	storage.Set(user, nil)
	close(over)
	if row.kill != nil {
		harness.Restart(t, row.kill(sys))
		if err := sys.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	status := row.want.status
	if status == 200 && c.content == nil {
		status = http.StatusNoContent
	}
	if answered != (status != 0) {
		t.Errorf("answered: %t; want %d", answered, status)
	}
	if answered {
		a.Want(t, status)
	}
	if answered && status >= 400 {
		a.WantProblem(t, status, row.want.code)
		a.Outcome(t, row.want.outcome)
	}
	if after := a.Header.Get("Retry-After"); row.want.code == "throttled" && after != "120" {
		t.Errorf("Retry-After: %s; want that of storage", after)
	}
	etag, content := stored(t, sys, user)
	want := harness.Cat
	if row.want.changed {
		want = c.content
	}
	if (etag == old) == row.want.changed || string(content) != string(want) {
		t.Errorf("storage has %d bytes with ETag %s; want %d, with the ETag %s before", len(content), etag, len(want), old)
	}
	if status == 200 && a.Field(t, "etag") != etag {
		t.Errorf("storage has ETag %s, the response is %s", etag, a.Body)
	}
	harness.Put(t, sys, user, harness.Cat)
}

// stored returns the ETag and the content of the picture of user in Azurite, nil if there is none.
func stored(t *testing.T, sys *stack.System, user string) (etag string, content []byte) {
	t.Helper()
	header, content, err := sys.Storage.Read(t.Context(), sys.Container, user+"/cat")
	if err != nil && !bloberror.HasCode(err, bloberror.BlobNotFound) {
		t.Fatal(err)
	}
	return header.Get("ETag"), content
}

// send sends u and returns the response; ok is false if there is none.
func (row cutoff) send(
	t *testing.T, c change, sys *stack.System, u harness.RawUpload, happened <-chan struct{},
) (a harness.Response, ok bool) {
	t.Helper()
	conn := harness.Dial(t, sys)
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if row.share == 0 {
		row.share = 1
	}
	n := int(row.share * float64(len(u.Body)))
	if row.leave == nil && row.kill == nil {
		go func() {
			_, _ = io.WriteString(conn, u.Header+u.Body[:n]) // fails if the response comes earlier
			if n < len(u.Body) {
				<-happened
				_, _ = io.WriteString(conn, u.Body[n:])
			}
		}()
		return receive(conn, u)
	}
	if _, err := io.WriteString(conn, u.Header+u.Body[:n]); err != nil {
		t.Fatal(err)
	}
	if row.share >= c.begins && (row.share < 1 || row.fault != nil) {
		harness.Eventually(t, func() error {
			select {
			case <-happened:
				return nil
			default:
				return errors.New("storage has not received the request")
			}
		})
	}
	if row.kill != nil {
		row.kill(sys).Kill()
	} else {
		row.leave(conn)
	}
	return receive(conn, u)
}

// receive reads the response to u; ok is false if there is none.
func receive(conn net.Conn, u harness.RawUpload) (a harness.Response, ok bool) {
	method, _, _ := strings.Cut(u.Header, " ")
	req := httptest.NewRequestWithContext(context.Background(), method, "/cat/user", nil)
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return harness.Response{Response: &http.Response{Request: req}}, false
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return harness.Response{Response: resp, Body: body}, err == nil
}
