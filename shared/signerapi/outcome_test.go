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
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"cats.example/shared/apierror"
)

// writes are the calls that change a stored picture, with what a lost answer adds to the detail.
var writes = []struct {
	name, may string
	call      func(context.Context, *Client, User) error
}{
	{"PUT", apierror.MayBeStored, func(ctx context.Context, c *Client, u User) error {
		_, err := c.Put(ctx, u, strings.NewReader("picture"), PutOptions{Size: 7})
		return err
	}},
	{"PUT of unknown size", apierror.MayBeStored, func(ctx context.Context, c *Client, u User) error {
		_, err := c.Put(ctx, u, iotest.OneByteReader(strings.NewReader("picture")), unknown)
		return err
	}},
	{"DELETE", apierror.MayBeDeleted, func(ctx context.Context, c *Client, u User) error { return c.Delete(ctx, u, Preconditions{}) }},
	{"commit", apierror.MayBeStored, func(ctx context.Context, c *Client, u User) error {
		_, err := c.CommitUpload(ctx, u, "1-1-A", CommitOptions{})
		return err
	}},
}

// peer is a client whose signer plays each connection as told.
func peer(t *testing.T, play func(net.Conn)) *Client {
	t.Helper()
	c := clientOf(t, "http://signer.test:1")
	dialWith(c, func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			play(theirs)
		}()
		return ours, nil
	})
	return c
}

// answering reads a whole request, its body included, and then writes answer.
func answering(answer string) func(net.Conn) {
	return func(conn net.Conn) {
		if readWhole(conn) {
			_, _ = io.WriteString(conn, answer)
		}
	}
}

// readWhole asks for the body of a request and reads all of it.
func readWhole(conn net.Conn) bool {
	req, err := http.ReadRequest(bufio.NewReader(conn))
	return err == nil && readBody(conn, req)
}

func answerOf(status int, content string) string {
	return fmt.Sprintf("HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s", status, len(content), content)
}

func checkOutcome(t *testing.T, err error, code string, want apierror.Outcome, may string) {
	t.Helper()
	e := apierror.AsError(err)
	if err == nil || e.Code != code || e.Outcome != want || strings.HasSuffix(e.Detail, may) != (want == apierror.OutcomeUnknown) {
		t.Errorf("%v, outcome %q, detail %q; want %s with outcome %q", err, e.Outcome, e.Detail, code, want)
	}
}

func TestLostAnswersOfWritesAreUnknown(t *testing.T) {
	for name, c := range map[string]struct{ answer, code string }{
		"no answer":                 {"", "signer_unavailable"},
		"half a status line":        {"HTTP/1.1 20", "signer_unavailable"},
		"half a header":             {"HTTP/1.1 200 OK\r\nContent-Le", "signer_unavailable"},
		"half an answer":            {"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{", "signer_unavailable"},
		"half a refusal":            {"HTTP/1.1 503 X\r\nContent-Length: 60\r\n\r\n" + `{"code":"overloaded",`, "signer_unavailable"},
		"no HTTP":                   {"SSH-2.0-OpenSSH_9.2\r\n", "signer_unavailable"},
		"larger than any answer":    {answerOf(200, "{"+strings.Repeat(" ", maxAnswer)+"}"), "internal"},
		"a page":                    {answerOf(200, "<html>"), "internal"},
		"half of the JSON":          {answerOf(200, `{"etag":`), "internal"},
		"JSON of another type":      {answerOf(200, `["etag"]`), "internal"},
		"a page of a proxy":         {answerOf(502, "<html>"), "internal"},
		"a refusal of a stranger":   {answerOf(403, "no"), "internal"},
		"a redirect":                {answerOf(307, ""), "internal"},
		"a code that is not a code": {answerOf(404, `{"code":"made_up","detail":"x"}`), "internal"},
		"an outcome without a code": {answerOf(503, `{"outcome":"stored"}`), "internal"},
	} {
		for _, w := range writes {
			t.Run(w.name+", "+name, func(t *testing.T) {
				err := w.call(t.Context(), peer(t, answering(c.answer)), user(t, "x"))
				checkOutcome(t, err, c.code, apierror.OutcomeUnknown, w.may)
			})
		}
	}
}

// Another program may answer a write with a 2xx that the signer does not use for it.
func TestSuccessOfAnotherKindIsUnknown(t *testing.T) {
	for _, w := range writes {
		answer := answerOf(200, `{"etag":"1"}`)
		if w.may == apierror.MayBeStored {
			answer = answerOf(204, "")
		}
		err := w.call(t.Context(), peer(t, answering(answer)), user(t, "x"))
		checkOutcome(t, err, "internal", apierror.OutcomeUnknown, w.may)
	}
}

func TestRefusalsOfWritesHaveTheSignersOutcome(t *testing.T) {
	for outcome, want := range map[string]apierror.Outcome{
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
		for _, code := range []string{"storage_unavailable", "precondition_failed", "internal"} {
			for _, w := range writes {
				answer := answerOf(503, fmt.Sprintf(`{"code":%q,"detail":"why"%s}`, code, outcome))
				err := w.call(t.Context(), peer(t, answering(answer)), user(t, "x"))
				if e := apierror.AsError(err); e.Code != code || e.Outcome != want || e.Detail != "why" {
					t.Errorf("%s of %s%s: %v, outcome %q, detail %q", w.name, code, outcome, err, e.Outcome, e.Detail)
				}
			}
		}
	}
}

func TestContractErrorsKeepTheirOutcome(t *testing.T) {
	for contract := range apierror.All() {
		code := contract.Code
		for _, outcome := range []apierror.Outcome{"", apierror.OutcomeUnknown, apierror.OutcomeStored} {
			e := *contract
			e.Outcome = outcome
			c := across(t, stub{delete: func(User, Preconditions) error { return fmt.Errorf("deleting: %w", &e) }})
			want := outcome
			if code == apierror.ErrDamaged.Code && outcome == "" {
				want = apierror.OutcomeStored // there is no other kind
			}
			if got := apierror.AsError(c.Delete(t.Context(), user(t, "x"), Preconditions{})); got.Code != e.Code || got.Outcome != want {
				t.Errorf("%s with outcome %q arrived as %s with %q", e.Code, outcome, got.Code, got.Outcome)
			}
		}
	}
	private := &apierror.Error{Code: "private", Outcome: apierror.OutcomeUnknown}
	c := across(t, stub{delete: func(User, Preconditions) error { return private }})
	if got := apierror.AsError(c.Delete(t.Context(), user(t, "x"), Preconditions{})); got.Code != "internal" || got.Outcome != apierror.OutcomeUnknown {
		t.Errorf("an error without a case arrived as %s with outcome %q", got.Code, got.Outcome)
	}
}

func TestWritesWithoutAConnectionAreDefinite(t *testing.T) {
	for name, cause := range map[string]error{
		"refused":     os.NewSyscallError("connect", errors.New("connection refused")),
		"unreachable": os.NewSyscallError("connect", errors.New("no route to host")),
		"timeout":     os.ErrDeadlineExceeded,
		"no address":  &net.DNSError{Err: "no such host", Name: "signer.test"},
	} {
		for _, w := range writes {
			c := clientOf(t, "http://signer.test:1")
			dialWith(c, func(context.Context, string, string) (net.Conn, error) {
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: cause}
			})
			t.Run(w.name+", "+name, func(t *testing.T) {
				checkOutcome(t, w.call(t.Context(), c, user(t, "x")), "signer_unavailable", "", w.may)
			})
		}
	}
	for _, w := range writes { // no process listens on port 1
		c := clientOf(t, "http://127.0.0.1:1")
		dialWith(c, new(net.Dialer).DialContext)
		checkOutcome(t, w.call(t.Context(), c, user(t, "x")), "signer_unavailable", "", w.may)
	}
}

// The signer may die at any time of a call.
func TestSignersDeathTellsTheOutcomeByItsTime(t *testing.T) {
	type played map[string]func(net.Conn, *bufio.Reader) bool // whether the outcome is unknown, of a PUT
	for name, play := range (played{
		"at once":       func(net.Conn, *bufio.Reader) bool { return false },
		"amid a header": func(_ net.Conn, in *bufio.Reader) bool { _, _ = in.ReadByte(); return false },
		"after a header": func(_ net.Conn, in *bufio.Reader) bool {
			_, _ = http.ReadRequest(in)
			return false
		},
		"amid a body": func(conn net.Conn, in *bufio.Reader) bool {
			if req, err := http.ReadRequest(in); err == nil {
				_, _ = io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
				_, _ = io.CopyN(io.Discard, req.Body, 50_000)
			}
			return false
		},
		"after a body": func(conn net.Conn, in *bufio.Reader) bool {
			if req, err := http.ReadRequest(in); err == nil {
				_, _ = io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
				_, _ = io.Copy(io.Discard, req.Body)
			}
			return true
		},
	}) {
		for _, size := range []int64{-1, 100_000} {
			t.Run(fmt.Sprintf("PUT of size %d, %s", size, name), func(t *testing.T) {
				var may bool
				c := peer(t, func(conn net.Conn) { may = play(conn, bufio.NewReader(conn)) })
				_, err := c.Put(t.Context(), user(t, "x"), strings.NewReader(strings.Repeat("x", 100_000)), PutOptions{Size: size})
				checkOutcome(t, err, "signer_unavailable", map[bool]apierror.Outcome{true: apierror.OutcomeUnknown}[may], apierror.MayBeStored)
			})
		}
		if strings.HasSuffix(name, "a body") {
			continue
		}
		// A call without a body may be carried out from its header on.
		for _, w := range writes[2:] {
			t.Run(w.name+", "+name, func(t *testing.T) {
				c := peer(t, func(conn net.Conn) { play(conn, bufio.NewReader(conn)) })
				err := w.call(t.Context(), c, user(t, "x"))
				checkOutcome(t, err, "signer_unavailable", apierror.OutcomeUnknown, w.may)
			})
		}
	}
}

// A kept connection may be closed already. Its error must not look like a lost answer, nor hide one.
func TestWritesOverKeptConnectionsAreDefinite(t *testing.T) {
	for _, w := range writes {
		dials := 0
		c := clientOf(t, "http://signer.test:1")
		dialWith(c, func(context.Context, string, string) (net.Conn, error) {
			if dials++; dials > 1 {
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
			}
			ours, theirs := net.Pipe()
			go func() {
				defer theirs.Close()
				in := bufio.NewReader(theirs)
				_, _ = http.ReadRequest(in)
				_, _ = io.WriteString(theirs, answerOne)
				if req, err := http.ReadRequest(in); err == nil && req.Header.Get("Expect") == "" {
					t.Errorf("%s went over a kept connection", w.name)
				}
			}()
			return ours, nil
		})
		keepConnection(t, c)
		t.Run(w.name, func(t *testing.T) {
			checkOutcome(t, w.call(t.Context(), c, user(t, "x")), "signer_unavailable", "", w.may)
			if dials != 2 {
				t.Errorf("%d connections were tried; want 2", dials)
			}
		})
	}
}

func TestTimeoutsOfWritesAreUnknown(t *testing.T) {
	for _, w := range writes {
		t.Run(w.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				over := make(chan struct{})
				c := peer(t, func(conn net.Conn) {
					readWhole(conn)
					<-over
				})
				err := w.call(t.Context(), c, user(t, "x"))
				close(over)
				checkOutcome(t, err, "signer_unavailable", apierror.OutcomeUnknown, w.may)
			})
		})
	}
}

// The error of a canceled call goes to the log only.
func TestCallersThatLeaveGetIncomplete(t *testing.T) {
	for _, w := range writes {
		ctx, leave := context.WithCancel(t.Context())
		over := make(chan struct{})
		c := peer(t, func(conn net.Conn) {
			readWhole(conn)
			leave()
			<-over
		})
		checkOutcome(t, w.call(ctx, c, user(t, "x")), "incomplete", "", w.may)
		close(over)
	}
}

// The signer may store a picture of a known size with its last byte, before the client finds that the body is broken.
func TestBodiesThatBreakBehindTheirEndAreUnknown(t *testing.T) {
	cause := errors.New("cable cut")
	for _, c := range []struct {
		sent int
		size int64
		want apierror.Outcome
	}{{7, 7, apierror.OutcomeUnknown}, {7, 8, ""}, {0, 7, ""}, {7, -1, ""}} {
		body := io.MultiReader(strings.NewReader(strings.Repeat("x", c.sent)), failing{cause})
		_, err := peer(t, answering("")).Put(t.Context(), user(t, "x"), body, PutOptions{Size: c.size})
		if e := apierror.AsError(err); !errors.Is(err, cause) || e.Outcome != c.want {
			t.Errorf("%d bytes of %d: %v, outcome %q; want %q", c.sent, c.size, err, e.Outcome, c.want)
		}
	}
}

// A body that ends before its announced size reaches the signer as a broken one.
func TestShortBodiesAreDefinite(t *testing.T) {
	for _, sent := range []int{0, 1, 50_000, 99_999} {
		_, err := peer(t, answering("")).Put(t.Context(), user(t, "x"), strings.NewReader(strings.Repeat("x", sent)), PutOptions{Size: 100_000})
		checkOutcome(t, err, "signer_unavailable", "", apierror.MayBeStored)
	}
}

func TestReadsHaveNoOutcome(t *testing.T) {
	for _, answer := range []string{"", answerOf(200, "<html>"), answerOf(502, "<html>")} {
		c := peer(t, answering(answer))
		_, link := c.Link(t.Context(), user(t, "x"), LinkOptions{})
		_, ticket := c.StartUpload(t.Context(), user(t, "x"), 7)
		_, about := c.About(t.Context())
		for _, err := range []error{link, ticket, about, c.Ready(t.Context())} {
			if e := apierror.AsError(err); err == nil || e.Outcome != "" || strings.Contains(e.Detail, "may have been") {
				t.Errorf("%q: %v, outcome %q, detail %q", answer, err, e.Outcome, e.Detail)
			}
		}
	}
}

// A signer that accepts no more bytes cannot have stored the picture.
func TestUploadsThatNobodyAcceptsAreDefinite(t *testing.T) {
	for _, size := range []int64{-1, 100_000} {
		synctest.Test(t, func(t *testing.T) {
			over := make(chan struct{})
			c := peer(t, func(conn net.Conn) {
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					_, _ = io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
				}
				<-over
			})
			_, err := c.Put(t.Context(), user(t, "x"), strings.NewReader(strings.Repeat("x", 100_000)), PutOptions{Size: size})
			close(over)
			checkOutcome(t, err, "signer_unavailable", "", apierror.MayBeStored)
		})
	}
}
