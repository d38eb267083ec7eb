package signerapi

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cats.example/shared/apierror"
)

// TestOutcomesOfLostResponses plays a fault in each call of the contract. The outcome of a Delete and of a CommitUpload is
// unknown as soon as the signer may have received it. The outcome of a Put is unknown only if the signer may have received the
// whole body.
func TestOutcomesOfLostResponses(t *testing.T) {
	const unavailable, internal = "signer_unavailable", "internal"
	for name, c := range map[string]struct {
		play func(net.Conn, *bufio.Reader)
		code string
		put  apierror.Outcome
	}{
		"closed at once":         {func(net.Conn, *bufio.Reader) {}, unavailable, ""},
		"closed within a header": {func(_ net.Conn, in *bufio.Reader) { _, _ = in.ReadByte() }, unavailable, ""},
		"closed after a header":  {func(_ net.Conn, in *bufio.Reader) { _, _ = http.ReadRequest(in) }, unavailable, ""},
		"closed within a body": {func(conn net.Conn, in *bufio.Reader) {
			if req, err := http.ReadRequest(in); err == nil {
				_, _ = io.WriteString(conn, goOn)
				_, _ = io.CopyN(io.Discard, req.Body, 50_000)
			}
		}, unavailable, ""},
		"reads no byte of the body": {func(conn net.Conn, in *bufio.Reader) {
			if req, err := http.ReadRequest(in); err == nil && req.Header.Get("Expect") != "" {
				_, _ = io.WriteString(conn, goOn)
				time.Sleep(time.Hour)
			}
		}, unavailable, ""},
		"no response in time":  {func(conn net.Conn, in *bufio.Reader) { _, _ = readRequest(conn, in); time.Sleep(time.Hour) }, unavailable, "unknown"},
		"no response":          {respond(""), unavailable, "unknown"},
		"half a status line":   {respond("HTTP/1.1 20"), unavailable, "unknown"},
		"half a header":        {respond("HTTP/1.1 200 OK\r\nContent-Le"), unavailable, "unknown"},
		"endless header":       {respond("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20)), unavailable, "unknown"},
		"half a body":          {respond("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"), unavailable, "unknown"},
		"half a chunked body":  {respond("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"), unavailable, "unknown"},
		"half an error":        {respond("HTTP/1.1 503 X\r\nContent-Length: 60\r\n\r\n" + `{"code":"overloaded",`), unavailable, "unknown"},
		"not HTTP":             {respond("SSH-2.0-OpenSSH_9.2\r\n\r\n"), unavailable, "unknown"},
		"too large":            {respond(response(200, "{"+strings.Repeat(" ", maxResponse)+"}")), internal, "unknown"},
		"HTML":                 {respond(response(200, "<html>")), internal, "unknown"},
		"half of the JSON":     {respond(response(200, `{"etag":`)), internal, "unknown"},
		"JSON of another type": {respond(response(200, `["etag"]`)), internal, "unknown"},
		"error of a proxy":     {respond(response(502, "<html>")), internal, "unknown"},
		"empty error":          {respond(response(418, "")), internal, "unknown"},
		"redirect":             {respond(response(307, "")), internal, "unknown"},
		"unknown code":         {respond(response(404, `{"code":"made_up","detail":"x"}`)), internal, "unknown"},
		"outcome without code": {respond(response(503, `{"outcome":"stored"}`)), internal, "unknown"},
	} {
		for called, call := range everyCall {
			t.Run(called+", "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					want := apierror.Outcome("")
					switch call.kind {
					case put:
						want = c.put
					case fresh:
						want = apierror.OutcomeUnknown
					}
					err := call.do(t.Context(), peer(t, c.play), mustUser(t, "x"), 100_000)
					checkError(t, err, c.code, want, call.suffix)
					time.Sleep(2 * time.Hour) // until the signer has ended
				})
			})
		}
	}
}

// Another program may answer with a success that the signer does not use for this call.
func TestSuccessOfAnotherKindIsUnknown(t *testing.T) {
	for called, response := range map[string]string{"Delete": response(200, `{"etag":"1"}`), "CommitUpload": response(204, ""), "Put": response(204, "")} {
		err := everyCall[called].do(t.Context(), peer(t, respond(response)), mustUser(t, "x"), 7)
		checkError(t, err, "internal", apierror.OutcomeUnknown, everyCall[called].suffix)
	}
}

func TestRejectedWritesKeepTheSignersOutcome(t *testing.T) {
	for member, want := range map[string]apierror.Outcome{
		``:                             "",
		`,"outcome":""`:                "",
		`,"outcome":null`:              "",
		`,"outcome":"unknown"`:         apierror.OutcomeUnknown,
		`,"outcome":"stored"`:          apierror.OutcomeStored,
		`,"outcome":"Unknown"`:         "",
		`,"outcome":"deleted"`:         "",
		`,"outcome":"unknown\u0000"`:   "",
		`,"outcome":"unknown, stored"`: "",
	} {
		for called, call := range everyCall {
			err := call.do(t.Context(), peer(t, respond(response(503, `{"code":"throttled","detail":"why"`+member+`}`))), mustUser(t, "x"), 7)
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
					_, _ = readRequest(conn, in)
					cancel()
					time.Sleep(time.Hour)
				})
				began := time.Now()
				checkError(t, call.do(ctx, c, mustUser(t, "x"), 7), "incomplete", "", "")
				if took := time.Since(began); took > 0 {
					t.Errorf("the call returned %v after it was canceled", took)
				}
				time.Sleep(2 * time.Hour) // until the signer has ended
			})
		})
	}
}

// The signer may store a picture of a known size with its last byte, before the client knows that the body is broken.
func TestBodiesBrokenAfterTheirEndAreUnknown(t *testing.T) {
	cause := errors.New("cable cut")
	for _, c := range []struct {
		sent int
		size int64
		end  error
		want apierror.Outcome
	}{
		{7, 7, cause, apierror.OutcomeUnknown},
		{7, 8, cause, ""},
		{0, 7, cause, ""},
		{7, -1, cause, ""},
		{0, 100_000, nil, ""},
		{1, 100_000, nil, ""},
		{99_999, 100_000, nil, ""},
		{100_001, 100_000, nil, apierror.OutcomeUnknown},
	} {
		body := io.LimitReader(zeros{}, int64(c.sent))
		if c.end != nil {
			body = io.MultiReader(body, broken{c.end})
		}
		_, err := peer(t, respond("")).Put(t.Context(), mustUser(t, "x"), body, PutOptions{Size: c.size})
		if e := apierror.AsError(err); err == nil || e.Outcome != c.want || c.end != nil && !errors.Is(err, c.end) {
			t.Errorf("%d bytes of %d: %v, outcome %q; want %q", c.sent, c.size, err, e.Outcome, c.want)
		}
	}
}

// A broken body must reach the signer as a broken request, wherever it breaks, and Put must return its error.
func TestBrokenBodiesNeverEndAPicture(t *testing.T) {
	for name, cause := range map[string]error{
		"error of the API":  apierror.ErrTooLarge,
		"wrapped io.EOF":    fmt.Errorf("reading: %w", io.EOF),
		"unexpected EOF":    io.ErrUnexpectedEOF,
		"error of the wire": errors.New("cable cut"),
	} {
		for _, sent := range []int64{0, 1, 5_000, 300_000} {
			t.Run(fmt.Sprintf("%s after %d bytes", name, sent), func(t *testing.T) {
				seen := make(chan error, 1)
				c, _ := serve(t, storing(func(body io.Reader) error {
					_, err := io.Copy(io.Discard, body)
					seen <- err
					return err
				}))
				body := io.MultiReader(io.LimitReader(zeros{}, sent), broken{cause})
				if _, err := c.Put(t.Context(), mustUser(t, "x"), body, unknownSize); !errors.Is(err, cause) || errors.Is(err, apierror.ErrSignerUnavailable) {
					t.Errorf("Put returned %v; want %v", err, cause)
				}
				if sent == 0 { // the body may break before the request is sent
					return
				}
				if err := <-seen; !errors.Is(err, apierror.ErrIncomplete) {
					t.Errorf("the signer read %v; want ErrIncomplete", err)
				}
			})
		}
	}
}
