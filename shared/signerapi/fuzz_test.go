package signerapi

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// FuzzContract has calls cross the wire: what the contract allows arrives as it was
// sent, to the byte, and what it does not is refused and reaches no signer.
func FuzzContract(f *testing.F) {
	f.Add(byte(0), "Davyd", "*", "", "", int64(0), int64(7), make([]byte, 16), make([]byte, 32))
	f.Add(byte(0), "a&user=b", `"0x1"`, `"a&b"`, "", int64(0), int64(-1), []byte{}, []byte{1})
	f.Add(byte(1), "猫%2F+ ;", "", "", `ca"t 猫&ttl_seconds=1.jpg`, int64(60), int64(0), []byte{}, []byte{})
	f.Add(byte(1), "x", "", "", "a/b", int64(-1), int64(0), []byte{}, []byte{})
	f.Add(byte(2), "x ", "", `W/"1"`, "", int64(0), int64(0), []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, call byte, name, ifMatch, ifNoneMatch, download string, seconds, size int64, md5, sha256 []byte) {
		who, err := ParseUser(name)
		if err != nil || seconds < -1<<33 || seconds > 1<<33 {
			return
		}
		type seen struct {
			User
			PutOptions
			LinkOptions
			Conditions
		}
		var got *seen
		h := served(stub{
			put: func(u User, _ io.Reader, o PutOptions) (Info, error) {
				got = &seen{User: u, PutOptions: o}
				return Info{}, nil
			},
			link: func(u User, o LinkOptions) (Link, error) {
				got = &seen{User: u, LinkOptions: o}
				return Link{}, nil
			},
			delete: func(u User, c Conditions) error {
				got = &seen{User: u, Conditions: c}
				return nil
			},
		})
		c := &Client{"signer.test:1", roundTrip(func(r *http.Request) (*http.Response, error) {
			head := r.Method + " " + r.URL.RequestURI() + " HTTP/1.1\r\nHost: x\r\n" + contractHeader + ": " + r.Header.Get(contractHeader) + "\r\n\r\n"
			arrived, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
			if err != nil {
				t.Fatalf("%q is no request: %v", head, err)
			}
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, arrived)
			return rec.Result(), nil
		}), func(context.Context, http.Header) {}}

		conditions, link := Conditions{ifMatch, ifNoneMatch}, LinkOptions{time.Duration(seconds) * time.Second, download}
		want := seen{User: who}
		allowed := conditions.Check() == nil
		switch call % 3 {
		case 0:
			put := PutOptions{Size: max(size, -1), Conditions: conditions}
			if len(md5) > 0 {
				put.MD5 = md5
			}
			if len(sha256) > 0 {
				put.SHA256 = sha256
			}
			want.PutOptions, allowed = put, allowed && put.Digests.Check() == nil
			_, err = c.Put(t.Context(), who, strings.NewReader(""), put)
		case 1:
			want.LinkOptions, allowed = link, seconds >= 0 && CheckDownloadName(download) == nil
			_, err = c.Link(t.Context(), who, link)
		case 2:
			want.Conditions = conditions
			err = c.Delete(t.Context(), who, conditions)
		}
		switch {
		case !allowed && (got != nil || !errors.Is(err, ErrInvalidArgument)):
			t.Fatalf("%+v was refused with %v, and reached the signer as %+v", want, err, got)
		case allowed && (err != nil || got == nil || !reflect.DeepEqual(*got, want)):
			t.Fatalf("%+v arrived as %+v, %v", want, got, err)
		}
	})
}

// scripted is a connection to a signer that sends the next of answers when it has got
// the header of a request, and then nothing: it stalls, or is gone.
type scripted struct {
	net.Conn // nil

	stalls bool
	piece  int // bytes to give at once

	mu      sync.Mutex
	answers [][]byte
	now     []byte
	closed  bool
}

func (s *scripted) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, net.ErrClosed
	}
	if len(s.answers) > 0 && bytes.HasSuffix(p, []byte("\r\n\r\n")) {
		s.now, s.answers = append(s.now, s.answers[0]...), s.answers[1:]
	}
	return len(p), nil
}

func (s *scripted) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, net.ErrClosed
	}
	if n := copy(p[:min(len(p), s.piece)], s.now); n > 0 {
		s.now = s.now[n:]
		return n, nil
	}
	if s.stalls {
		return 0, os.ErrDeadlineExceeded
	}
	return 0, io.EOF
}

func (s *scripted) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

func (*scripted) SetDeadline(time.Time) error      { return nil }
func (*scripted) SetReadDeadline(time.Time) error  { return nil }
func (*scripted) SetWriteDeadline(time.Time) error { return nil }

// FuzzAnswers has the transport read a signer gone mad, byte by byte, over a
// connection that it may keep: it ends, its errors are of the contract, what it takes
// for an answer is one to net/http as well, and the next call on the connection gets
// what it would have got over one of its own. (What comes later than the answer that
// it belongs to, nobody can tell from the next.)
func FuzzAnswers(f *testing.F) {
	const refusal = "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 34\r\n\r\n" + `{"code":"not_found","detail":"no"}`
	for _, first := range []string{answerOne, refusal, answerOne + answerTwo, "HTTP/1.1 100 Continue\r\n\r\n" + answerOne, "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"} {
		for kind := range byte(4) {
			f.Add(kind, []byte(first), []byte(answerTwo))
		}
	}
	f.Add(byte(8), []byte(answerOne), []byte("HTTP/1.1 503 Service Unavailable\r\nRetry-After: -1\r\nContent-Length: 2\r\n\r\n{}"))
	f.Add(byte(61), []byte("HTTP/1.1 100 Continue\r\n\r\n"+answerOne), []byte("HTTP/1.1 100*1"))
	f.Add(byte(16), []byte("HTTP/1.0 200 OK\r\nContent-Length: 23\r\n\r\n"), []byte(`{"url":"https://a/one"}`))
	x := user(f, "x")
	f.Fuzz(func(t *testing.T, kind byte, first, second []byte) {
		if len(first) > 2<<10 {
			return // what is more than the answer would not be seen together with it
		}
		put, stalls, piece := kind&1 != 0, kind&2 != 0, 1+int(kind>>2)*8
		client := func(answers ...[]byte) (*Client, *transport) {
			pool := &transport{dial: func(context.Context, string, string) (net.Conn, error) {
				// The last is what comes over a further connection, too.
				s := &scripted{stalls: stalls, answers: answers, piece: 4 << 10}
				if len(answers) == 1 {
					s.piece = piece
				}
				answers = answers[len(answers)-1:]
				return s, nil
			}}
			return &Client{"signer.test:1", pool, func(context.Context, http.Header) {}}, pool
		}
		type outcome struct {
			link Link
			info Info
			code string
		}
		call := func(c *Client) (o outcome) {
			var err error
			if put {
				o.info, err = c.Put(t.Context(), x, strings.NewReader("picture"), PutOptions{Size: 7})
			} else {
				o.link, err = c.Link(t.Context(), x, LinkOptions{})
			}
			if err != nil {
				e, ok := errors.AsType[*Error](err)
				if !ok {
					t.Fatalf("an error outside the contract: %v", err)
				}
				// Whether a picture was sent whole before an answer that makes no sense
				// ended the call is a matter of time.
				o = outcome{code: e.Code + strings.TrimSuffix(e.Detail, MayBeStored)}
				if !slices.Contains([]Outcome{"", OutcomeUnknown, OutcomeStored}, e.Outcome) {
					t.Fatalf("%v has outcome %q", err, e.Outcome)
				}
			}
			return o
		}

		c, pool := client(first, second)
		one := call(c)
		if one.code == "" {
			in := bufio.NewReader(bytes.NewReader(first))
			resp, err := http.ReadResponse(in, &http.Request{Method: http.MethodGet})
			for err == nil && put && resp.StatusCode == http.StatusContinue {
				resp, err = http.ReadResponse(in, &http.Request{Method: http.MethodGet})
			}
			if err != nil {
				t.Fatalf("%q was taken for an answer; net/http says %v", first, err)
			}
			body, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			var want outcome
			if put {
				err = errors.Join(err, json.Unmarshal(body, &want.info))
			} else {
				err = errors.Join(err, json.Unmarshal(body, &want.link))
			}
			if err != nil || resp.StatusCode/100 != 2 || in.Buffered() > 0 || !reflect.DeepEqual(one, want) {
				t.Fatalf("%q became %+v; net/http has %s %q, %v", first, one, resp.Status, body, err)
			}
		}
		kept := len(pool.idle) == 1
		if kept {
			pool.idle[0].Conn.(*scripted).piece = piece
		}
		fresh, _ := client(second)
		if two, want := call(c), call(fresh); kept && !reflect.DeepEqual(two, want) {
			t.Fatalf("behind %q, %q became %+v; on a connection of its own, %+v", first, second, two, want)
		}
	})
}

var entityTag = regexp.MustCompile(`^"[\x21\x23-\x7e]{0,126}"$`)

// FuzzConditions compares what is taken for a condition, and when it holds, with
// RFC 9110 in other words.
func FuzzConditions(f *testing.F) {
	f.Add(`"0x8D"`, "", `"0x8D"`)
	f.Add("*", `"a", "b"`, `W/"1"`)
	f.Add(`""`, "*", "")
	f.Add("\"é\"", "\"\x7f\"", "\" \"")
	f.Fuzz(func(t *testing.T, ifMatch, ifNoneMatch, there string) {
		ok := func(v string) bool { return v == "" || v == "*" || entityTag.MatchString(v) }
		c := Conditions{ifMatch, ifNoneMatch}
		if err := c.Check(); (err == nil) != (ok(ifMatch) && ok(ifNoneMatch)) || err != nil && !errors.Is(err, ErrInvalidArgument) {
			t.Fatalf("%+v: %v", c, err)
		}
		if !entityTag.MatchString(there) {
			there = "" // no picture
		}
		holds := true
		if ifMatch == "*" {
			holds = there != ""
		} else if ifMatch != "" {
			holds = there == ifMatch
		}
		if ifNoneMatch == "*" {
			holds = holds && there == ""
		} else if ifNoneMatch != "" {
			holds = holds && (there == "" || there != ifNoneMatch)
		}
		if err := c.Hold(there); (err == nil) != holds {
			t.Fatalf("%+v with %q there: %v", c, there, err)
		}
	})
}

// FuzzHandler has strangers' queries answered: never a 500, and only a user name
// that ParseUser takes reaches the signer.
func FuzzHandler(f *testing.F) {
	for _, s := range []string{"user=a", "user=a&ttl_seconds=60", "user=%2e%2e", "user=a&download=x%22.png", "user=a;b", "%", "user=a&size=1"} {
		f.Add("GET", s)
		f.Add("PUT", s)
	}
	f.Fuzz(func(t *testing.T, method, query string) {
		check := func(u User) {
			if _, err := ParseUser(u.String()); err != nil {
				t.Fatalf("user %q reached the signer", u)
			}
		}
		h := served(stub{
			put: func(u User, _ io.Reader, o PutOptions) (Info, error) { check(u); return Info{Size: o.Size}, nil },
			link: func(u User, o LinkOptions) (Link, error) {
				check(u)
				if o.TTL < 0 || CheckDownloadName(o.Download) != nil {
					t.Fatalf("options %+v reached the signer", o)
				}
				return Link{}, nil
			},
			delete: func(u User, _ Conditions) error { check(u); return nil },
			ticket: func(u User, size int64) (Ticket, error) {
				check(u)
				if size < 0 {
					t.Fatalf("a size of %d reached the signer", size)
				}
				return Ticket{}, nil
			},
			commit: func(u User, id string, o CommitOptions) (Info, error) {
				check(u)
				if CheckTicket(id) != nil || o.Check() != nil || (Digests{MD5: o.MD5}).Check() != nil {
					t.Fatalf("the ticket %q with %+v reached the signer", id, o)
				}
				return Info{}, nil
			},
		})
		for _, path := range []string{picturePath, linkPath, ticketPath, commitPath} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, strings.NewReader("x"))
			r.Method, r.URL.RawQuery = method, query
			r.Header.Set(contractHeader, contractVersion)
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			if rec.Code >= 500 {
				t.Fatalf("%s %s?%s: %d %s", method, path, query, rec.Code, rec.Body)
			}
		}
	})
}

// FuzzDecodeAnswer has the client read a signer gone mad.
func FuzzDecodeAnswer(f *testing.F) {
	f.Add(200, `{"url":"https://x","expires_at":"2030-01-02T03:04:05Z"}`)
	f.Add(404, `{"code":"not_found","detail":"x"}`)
	f.Add(503, `{"code":["throttled"]}`)
	f.Add(302, "")
	f.Add(503, `{"code":"throttled","outcome":"unknown"}`)
	f.Add(502, `{"code":"damaged","outcome":"stored"}`)
	f.Add(503, `{"code":"throttled","outcome":"made up"}`)
	f.Add(503, `{"code":"throttled","outcome":5}`)
	f.Add(204, "")
	f.Fuzz(func(t *testing.T, status int, answer string) {
		if status < 200 || status > 999 {
			return
		}
		c := clientOf(t, "http://signer.test:1")
		c.transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(answer)), Request: r}, nil
		})
		if _, err := c.Link(t.Context(), user(t, "x"), LinkOptions{}); err != nil {
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Fatalf("an error outside the contract: %v", err)
			}
		} else if status/100 != 2 {
			t.Fatalf("status %d with %q passed for a link", status, answer)
		}
		// A deletion is carried out, or refused with the outcome that the signer tells, or else its outcome is unknown.
		err := c.Delete(t.Context(), user(t, "x"), Conditions{})
		var said struct{ Code, Detail, Outcome string }
		decoded := json.Unmarshal([]byte(answer), &said) == nil
		ofContract := decoded && wire[said.Code] != nil
		want := OutcomeUnknown
		switch {
		case status == http.StatusNoContent:
			want = ""
		case ofContract && status/100 != 2 && said.Outcome == "stored":
			want = OutcomeStored
		case ofContract && status/100 != 2 && said.Outcome != "unknown":
			want = ""
			if said.Code == "damaged" {
				want = OutcomeStored
			}
		}
		if (err == nil) != (status == http.StatusNoContent) || err != nil && AsError(err).Outcome != want {
			t.Fatalf("status %d with %q: %v, outcome %q; want %q", status, answer, err, AsError(err).Outcome, want)
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
