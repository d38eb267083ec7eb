package faults

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
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

// newRequest returns a request that stores content.
type newRequest func(t *testing.T, sys *stack.System, user string, content []byte) harness.RawUpload

// changes returns one change for each way in which the signer sends it to storage.
func changes() []change {
	upload := func(n int) newRequest {
		return func(t *testing.T, _ *stack.System, user string, content []byte) harness.RawUpload {
			t.Helper()
			return harness.RawUploads(t, user, content)[n]
		}
	}
	deletion := func(_ *testing.T, _ *stack.System, user string, _ []byte) harness.RawUpload {
		return harness.RawUpload{Header: "DELETE /cat/" + user + " HTTP/1.1\r\nHost: localhost\r\n\r\n"}
	}
	commit := func(t *testing.T, sys *stack.System, user string, content []byte) harness.RawUpload {
		t.Helper()
		k := harness.NewUploadSession(t, sys, user, int64(len(content)))
		k.Send(t, content)
		return harness.RawUpload{Header: "POST /cat/" + user + "/upload/" + k.ID + "/commit HTTP/1.1\r\nHost: localhost\r\n\r\n"}
	}
	return []change{
		{"PUT of 50 KiB", "body put sized buffered", 1, harness.Random(50<<10, 7), upload(0)},
		{"PUT of 5 MiB", "body put sized streamed single", 0.5, harness.Random(5<<20, 7), upload(0)},
		{"chunked PUT of 5 MiB", "body chunked streamed blocks", 0.9, harness.Random(5<<20, 7), upload(1)},
		{"form of 5 MiB", "body form sized streamed blocks", 0.5, harness.Random(5<<20, 7), upload(2)},
		{"DELETE", "buffered", 1, nil, deletion},
		{"commit", "buffered", 1, harness.Random(50<<10, 7), commit},
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

func atBlockList(r *http.Request) bool { return r.URL.Query().Get("comp") == "blocklist" }

func atData(r *http.Request) bool {
	return r.Method == http.MethodDelete || r.Method == http.MethodPut && !atBlockList(r)
}

// cutoff is a fault during a change, and the expected result, as testdata/cutoffs.txt describes them.
type cutoff struct {
	only, name, header string
	share              float64
	leave              func(*stack.System, *net.TCPConn) // nil if the client stays
	at                 func(*http.Request) bool
	lookups, hangs     bool
	fault              harness.Fault
	want               string
}

// The words of testdata/cutoffs.txt.
var (
	leaves = map[string]func(*stack.System, *net.TCPConn){
		"closes":   func(_ *stack.System, conn *net.TCPConn) { _ = conn.CloseWrite() },
		"resets":   func(_ *stack.System, conn *net.TCPConn) { _ = errors.Join(conn.SetLinger(0), conn.Close()) },
		"signer":   func(sys *stack.System, _ *net.TCPConn) { sys.Signer.Kill() },
		"frontend": func(sys *stack.System, _ *net.TCPConn) { sys.Frontend.Kill() },
	}
	selects = map[string]func(*http.Request) bool{"data": atData, "list": atBlockList, "changes": harness.Changes}
	faults  = map[string]harness.Fault{
		"immutable":               harness.Reject(409, "BlobImmutableDueToPolicy"),
		"condition not met":       harness.Reject(412, "ConditionNotMet"),
		"throttles early":         respond(503, "ServerBusy", "Retry-After", "120"),
		"throttles once":          harness.Once(harness.Reject(503, "ServerBusy", "Retry-After", "1")),
		"times out once":          harness.Once(harness.Reject(408, "OperationTimedOut")),
		"fails once":              harness.Once(respond(500, "InternalError")),
		"resets once":             harness.Once(harness.Reset),
		"resets at 0":             reset(0),
		"resets at 0.5":           reset(0.5),
		"resets at 1":             reset(1),
		"loses the response":      harness.LoseResponse,
		"loses the response once": harness.Once(harness.LoseResponse),
		"another CRC64":           harness.CRC64("AAAAAAAAAAA="),
		"receives":                receiveShare(1),
		"receives a tenth":        receiveShare(0.1),
		"carries out":             func(w http.ResponseWriter, r *http.Request, healthy http.Handler) { healthy.ServeHTTP(w, r) },
		"responds after 25 s": harness.Done(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			select {
			case <-time.After(25 * time.Second):
				w.WriteHeader(http.StatusCreated)
			case <-r.Context().Done():
			}
		}),
	}
)

// parseCutoff parses a row of testdata/cutoffs.txt.
func parseCutoff(t *testing.T, fields []string) cutoff {
	t.Helper()
	row := cutoff{name: fields[1], share: 1, at: atData, want: fields[5]}
	row.only, row.header = strings.Trim(fields[0], "-"), strings.Trim(fields[2], "-")
	if share, who, ok := strings.Cut(fields[3], " "); ok {
		row.share, _ = strconv.ParseFloat(share, 64)
		row.leave = leaves[who]
	}
	if when, fault, ok := strings.Cut(fields[4], ": "); ok {
		at, how, _ := strings.Cut(when, " ")
		row.at, row.fault, row.lookups, row.hangs = selects[at], faults[fault], how == "lookups", how == "hangs"
		if row.at == nil || row.fault == nil {
			t.Fatalf("unknown fault %q", fields[4])
		}
	}
	return row
}

// TestBrokenChangesKeepOldPicture breaks changes of every kind at every stage.
func TestBrokenChangesKeepOldPicture(t *testing.T) {
	t.Parallel()
	for _, c := range changes() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			storage := harness.NewStorageProxy(t)
			sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
			for i, fields := range harness.Table(t, "cutoffs.txt") {
				row := parseCutoff(t, fields)
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
	small, put, form := changes()[0], changes()[1], changes()[3]
	put.content, form.content = harness.Random(24<<20, 8), harness.Random(24<<20, 8) // more than the kernel buffers of a connection
	for user, row := range map[string]struct {
		change
		storage, want string
	}{
		"silent-in-a-put":             {put, "data hangs: receives a tenth", "503 storage_unavailable"},
		"silent-in-a-form":            {form, "data hangs: receives a tenth", "503 storage_unavailable"},
		"silent-after-the-last-byte":  {small, "data hangs: receives", "503 storage_unavailable unknown"},
		"responds-to-a-put-after-25s": {small, "data: responds after 25 s", "200 stored"},
	} {
		t.Run(user, func(t *testing.T) {
			t.Parallel()
			parseCutoff(t, []string{"-", user, "-", "-", row.storage, row.want}).run(t, row.change, sys, storage, user)
		})
	}
}

// run makes a change with a fault. It checks the response and the stored picture, and that another upload works afterwards.
func (row cutoff) run(t *testing.T, c change, sys *stack.System, storage *harness.StorageProxy, user string) {
	t.Helper()
	harness.Put(t, sys, user, harness.Cat)
	old, _ := stored(t, sys, user)
	u := c.request(t, sys, user, c.content)
	if row.header != "" {
		u.Header = strings.Replace(u.Header, "\r\n", "\r\n"+row.header+"\r\n", 1)
	}
	happened := make(chan struct{}) // the fault; without one, storage has received a request
	over := make(chan struct{})
	done := sync.OnceFunc(func() { close(happened) })
	var changing atomic.Bool
	storage.Set(user, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if !row.at(r) && !(row.lookups && r.Method == http.MethodHead && changing.Load()) {
			healthy.ServeHTTP(w, r)
			return
		}
		changing.Store(true)
		switch {
		case row.fault == nil:
			done()
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
	a := row.send(t, c, sys, u, happened)
	storage.Set(user, nil)
	close(over)
	for _, p := range []*stack.Process{sys.Frontend, sys.Signer} {
		if p.Ended() != nil {
			harness.Restart(t, p)
			if err := sys.WaitReady(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	var status int
	var code, outcome string
	want, changed := strings.CutSuffix(row.want, " stored")
	_, _ = fmt.Sscan(want, &status, &code, &outcome) // ends early without an outcome
	if status == 200 && c.content == nil {
		status = http.StatusNoContent
	}
	a.Want(t, status)
	if status >= 400 {
		a.WantProblem(t, status, code)
		a.Outcome(t, outcome)
	}
	if after := a.Header.Get("Retry-After"); code == "throttled" && after != "120" {
		t.Errorf("Retry-After: %s; want that of storage", after)
	}
	etag, content := stored(t, sys, user)
	picture := harness.Cat
	if changed {
		picture = c.content
	}
	if (etag == old) == changed || !bytes.Equal(content, picture) {
		t.Errorf("storage has %d bytes with ETag %s; want %d, with the ETag %s before", len(content), etag, len(picture), old)
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

// send sends u and returns the response, with status 0 if there is none.
func (row cutoff) send(
	t *testing.T, c change, sys *stack.System, u harness.RawUpload, happened <-chan struct{},
) harness.Response {
	t.Helper()
	conn := harness.Dial(t, sys)
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	n := int(row.share * float64(len(u.Body)))
	if row.leave == nil {
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
	if row.share >= c.begins {
		harness.Eventually(t, func() error {
			select {
			case <-happened:
				return nil
			default:
				return errors.New("storage has not received the request")
			}
		})
	}
	row.leave(sys, conn)
	return receive(conn, u)
}

// receive reads the response to u. It returns one with status 0 if there is none.
func receive(conn net.Conn, u harness.RawUpload) harness.Response {
	method, _, _ := strings.Cut(u.Header, " ")
	req := httptest.NewRequestWithContext(context.Background(), method, "/cat/user", nil)
	none := harness.Response{Response: &http.Response{Request: req}}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return none
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return none
	}
	return harness.Response{Response: resp, Body: body}
}
