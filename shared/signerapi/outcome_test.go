package signerapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"cats.example/shared/apierror"
)

// fault is a fault of the signer in a call, and its effects.
type fault struct {
	play    player
	code    string
	put     apierror.Outcome // of a Put
	repeats []kind           // what net/http repeats on a kept connection
}

// test plays f in call, on a new connection or on one that the client has kept. On other connections, the signer is healthy.
func (f fault) test(t *testing.T, call contractCall, kept bool) {
	connections, wantConnections := 0, 1
	client := peer(t, func(conn net.Conn, in *bufio.Reader) {
		switch connections++; {
		case connections > 1:
			healthy(conn, in)
		case !kept || answerOne(conn, in) == nil:
			f.play(conn, in)
		}
	})
	if kept {
		if _, err := client.About(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
	}
	err := call.do(t.Context(), client, 100_000)
	if kept && slices.Contains(f.repeats, call.kind) {
		if wantConnections++; err != nil {
			t.Errorf("%v; want success", err)
		}
	} else {
		checkError(t, err, f.code, map[kind]apierror.Outcome{put: f.put, fresh: apierror.OutcomeUnknown}[call.kind], call.suffix)
	}
	time.Sleep(2 * time.Hour) // until the signer has ended
	if connections != wantConnections {
		t.Errorf("%d connections; want %d", connections, wantConnections)
	}
}

// The outcome of a Delete and of a CommitUpload is unknown as soon as the signer may have received it. The outcome of a Put is
// unknown only if the signer may have received the whole body.
func TestOutcomesOfLostResponses(t *testing.T) {
	const unavailable, internal, all = "signer_unavailable", "internal", 1 << 40
	receives := func(n int64, then time.Duration) player {
		return func(conn net.Conn, in *bufio.Reader) { _, _ = receive(conn, in, n); time.Sleep(then) }
	}
	readHeader := func(_ net.Conn, in *bufio.Reader) { _, _ = http.ReadRequest(in) }
	for name, f := range map[string]fault{
		"closed at once":            {func(net.Conn, *bufio.Reader) {}, unavailable, "", []kind{read, put}},
		"closed after a header":     {readHeader, unavailable, "", []kind{read, put}},
		"closed within a body":      {receives(50_000, 0), unavailable, "", []kind{read}},
		"reads no byte of the body": {receives(0, time.Hour), unavailable, "", nil},
		"reads a body uninvited": {func(_ net.Conn, in *bufio.Reader) {
			if req, err := http.ReadRequest(in); err == nil {
				_, _ = io.Copy(io.Discard, req.Body)
			}
		}, unavailable, "unknown", []kind{read}},
		"no response":          {respond(""), unavailable, "unknown", []kind{read}},
		"no response in time":  {receives(all, time.Hour), unavailable, "unknown", nil},
		"half a header":        {respond("HTTP/1.1 200 OK\r\nContent-Le"), unavailable, "unknown", nil},
		"large header":         {respond(strings.Replace(response(200, "{}"), "X", strings.Repeat("X", 1<<20), 1)), unavailable, "unknown", nil},
		"half a body":          {respond("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"), unavailable, "unknown", nil},
		"too large":            {respond(response(200, "{"+strings.Repeat(" ", maxResponse)+"}")), internal, "unknown", nil},
		"HTML":                 {respond(response(200, "<html>")), internal, "unknown", nil},
		"redirect":             {respond(response(307, "")), internal, "unknown", nil},
		"unknown code":         {respond(response(404, `{"code":"made_up","detail":"x"}`)), internal, "unknown", nil},
		"outcome without code": {respond(response(503, `{"outcome":"stored"}`)), internal, "unknown", nil},
	} {
		for called, call := range everyCall {
			t.Run(called+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { f.test(t, call, false) })
				if call.kind != fresh { // it does not use the kept connection
					synctest.Test(t, func(t *testing.T) { f.test(t, call, true) })
				}
			})
		}
	}
}

func TestRejectedWritesKeepTheSignersOutcome(t *testing.T) {
	for member, want := range map[string]apierror.Outcome{
		``: "", `,"outcome":"deleted"`: "", `,"outcome":"unknown"`: apierror.OutcomeUnknown, `,"outcome":"stored"`: apierror.OutcomeStored,
	} {
		for called, call := range everyCall {
			err := call.do(t.Context(), peer(t, respond(response(503, `{"code":"throttled","detail":"why"`+member+`}`))), 7)
			if e := apierror.AsError(err); e.Code != "throttled" || e.Outcome != want || e.Detail != "why" {
				t.Errorf("%s rejected with %s: %v, outcome %q, detail %q", called, member, err, e.Outcome, e.Detail)
			}
		}
	}
}

func TestCanceledCallsAreIncomplete(t *testing.T) {
	for called, call := range everyCall {
		t.Run(called, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				c := peer(t, func(conn net.Conn, in *bufio.Reader) {
					_, _ = receive(conn, in, 7)
					cancel()
					time.Sleep(time.Hour)
				})
				checkError(t, call.do(ctx, c, 7), "incomplete", "", "")
				time.Sleep(2 * time.Hour) // until the signer has ended
			})
		})
	}
}

// Without a connection nothing was sent, so no write has an unknown outcome.
func TestCallsWithoutConnectionChangeNothing(t *testing.T) {
	for called, call := range everyCall {
		c := dialWith(t, func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
		})
		err := call.do(t.Context(), c, 7)
		checkError(t, err, "signer_unavailable", "", "")
		if strings.Contains(err.Error(), davyd.String()) {
			t.Errorf("%s: the error contains the user name: %v", called, err)
		}
	}
}

// A broken body must reach the signer as a broken request. But the signer may store a picture of a known size with its last byte,
// before the client knows that the body is broken.
func TestBrokenBodiesNeverEndAPicture(t *testing.T) {
	wrapped := fmt.Errorf("reading: %w", io.EOF)
	for _, c := range []struct {
		sent, size int64
		end        error
		want       apierror.Outcome
	}{
		{1, -1, wrapped, ""},
		{300_000, -1, wrapped, ""},
		{300_000, -1, apierror.ErrTooLarge, ""},
		{7, 8, wrapped, ""},
		{99_999, 100_000, io.EOF, ""},
		{7, 7, wrapped, apierror.OutcomeUnknown},
		{100_001, 100_000, io.EOF, apierror.OutcomeUnknown},
	} {
		whole := make(chan bool, 1)
		client := peer(t, func(conn net.Conn, in *bufio.Reader) {
			_, err := receive(conn, in, 1<<40)
			whole <- err == nil
		})
		body := io.MultiReader(io.LimitReader(zeros{}, c.sent), iotest.ErrReader(c.end))
		_, err := client.Put(t.Context(), davyd, body, PutOptions{Size: c.size})
		e := apierror.AsError(err)
		if err == nil || e.Outcome != c.want || c.end != io.EOF && (!errors.Is(err, c.end) || e.Code == "signer_unavailable") {
			t.Errorf("%d bytes of %d: %v, outcome %q; want %q", c.sent, c.size, err, e.Outcome, c.want)
		}
		if c.want == "" && <-whole {
			t.Errorf("%d bytes of %d: the signer received a whole request", c.sent, c.size)
		}
	}
}
