package signerapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"cats.example/shared/apierror"
)

// FuzzContract sends calls through client and handler. Valid arguments arrive unchanged. Invalid ones are rejected and do not
// reach the signer.
func FuzzContract(f *testing.F) {
	f.Add(byte(0), "Davyd", "*", "", "", int64(0), int64(7), make([]byte, 16), make([]byte, 32))
	f.Add(byte(0), "a&user=b", `"0x1"`, `"a&b"`, "", int64(0), int64(-1), []byte{}, []byte{1})
	f.Add(byte(0), "empty", "", "", "", int64(0), int64(0), []byte{}, []byte{})
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
			Preconditions
		}
		var got *seen
		h := NewHandler(stub{
			put: func(_ context.Context, u User, _ io.Reader, o PutOptions) (Info, error) {
				got = &seen{User: u, PutOptions: o}
				return Info{}, nil
			},
			link: func(_ context.Context, u User, o LinkOptions) (Link, error) {
				got = &seen{User: u, LinkOptions: o}
				return Link{}, nil
			},
			delete: func(_ context.Context, u User, c Preconditions) error {
				got = &seen{User: u, Preconditions: c}
				return nil
			},
		}, HandlerOptions{})
		c := newClient(t, "http://signer.test:1")
		c.transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			head := r.Method + " " + r.URL.RequestURI() + " HTTP/1.1\r\nHost: x\r\n" + contractHeader + ": " + r.Header.Get(contractHeader) + "\r\n\r\n"
			arrived, err := http.ReadRequest(bufio.NewReader(strings.NewReader(head)))
			if err != nil {
				t.Fatalf("%q is not a request: %v", head, err)
			}
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, arrived)
			return rec.Result(), nil
		})

		conditions, link := Preconditions{ifMatch, ifNoneMatch}, LinkOptions{time.Duration(seconds) * time.Second, download}
		want := seen{User: who}
		allowed := conditions.Validate() == nil
		switch call % 3 {
		case 0:
			put := PutOptions{Size: max(size, -1), Preconditions: conditions}
			if len(md5) > 0 {
				put.MD5 = md5
			}
			if len(sha256) > 0 {
				put.SHA256 = sha256
			}
			want.PutOptions, allowed = put, allowed && put.Digests.Validate() == nil
			_, err = c.Put(t.Context(), who, strings.NewReader(""), put)
		case 1:
			want.LinkOptions, allowed = link, seconds >= 0 && ValidateDownloadName(download) == nil
			_, err = c.Link(t.Context(), who, link)
		case 2:
			want.Preconditions = conditions
			err = c.Delete(t.Context(), who, conditions)
		}
		switch {
		case !allowed && (got != nil || !errors.Is(err, apierror.ErrInvalidArgument)):
			t.Fatalf("%+v was rejected with %v, and reached the signer as %+v", want, err, got)
		case allowed && (err != nil || got == nil || !reflect.DeepEqual(*got, want)):
			t.Fatalf("%+v arrived as %+v, %v", want, got, err)
		}
	})
}

var entityTag = regexp.MustCompile(`^"[\x21\x23-\x7e]{0,126}"$`)

// FuzzPreconditions compares Validate and Evaluate with RFC 9110 in other words.
func FuzzPreconditions(f *testing.F) {
	f.Add(`"0x8D"`, "", `"0x8D"`)
	f.Add("*", `"a", "b"`, `W/"1"`)
	f.Add(`""`, "*", "")
	f.Add("\"é\"", "\"\x7f\"", "\" \"")
	f.Fuzz(func(t *testing.T, ifMatch, ifNoneMatch, stored string) {
		ok := func(v string) bool { return v == "" || v == "*" || entityTag.MatchString(v) }
		c := Preconditions{ifMatch, ifNoneMatch}
		if err := c.Validate(); (err == nil) != (ok(ifMatch) && ok(ifNoneMatch)) || err != nil && !errors.Is(err, apierror.ErrInvalidArgument) {
			t.Fatalf("%+v: %v", c, err)
		}
		if !entityTag.MatchString(stored) {
			stored = "" // no picture
		}
		holds := true
		if ifMatch == "*" {
			holds = stored != ""
		} else if ifMatch != "" {
			holds = stored == ifMatch
		}
		if ifNoneMatch == "*" {
			holds = holds && stored == ""
		} else if ifNoneMatch != "" {
			holds = holds && (stored == "" || stored != ifNoneMatch)
		}
		if err := c.Evaluate(stored); (err == nil) != holds {
			t.Fatalf("%+v with %q stored: %v", c, stored, err)
		}
	})
}

// FuzzHandler sends arbitrary queries to the handler: it never responds with 5xx, and only valid arguments reach the signer.
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
		h := NewHandler(stub{
			put: func(_ context.Context, u User, _ io.Reader, o PutOptions) (Info, error) {
				check(u)
				return Info{Size: o.Size}, nil
			},
			link: func(_ context.Context, u User, o LinkOptions) (Link, error) {
				check(u)
				if o.TTL < 0 || ValidateDownloadName(o.Download) != nil {
					t.Fatalf("options %+v reached the signer", o)
				}
				return Link{}, nil
			},
			delete: func(_ context.Context, u User, _ Preconditions) error { check(u); return nil },
			start: func(_ context.Context, u User, size int64) (UploadSession, error) {
				check(u)
				if size < 0 {
					t.Fatalf("a size of %d reached the signer", size)
				}
				return UploadSession{}, nil
			},
			commit: func(_ context.Context, u User, id string, o CommitOptions) (Info, error) {
				check(u)
				if ValidateUploadID(id) != nil || o.Validate() != nil || (Digests{MD5: o.MD5}).Validate() != nil {
					t.Fatalf("the upload ID %q with %+v reached the signer", id, o)
				}
				return Info{}, nil
			},
		}, HandlerOptions{})
		for _, path := range []string{picturePath, linkPath, uploadPath, commitPath} {
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

// FuzzDecodeResponse sends arbitrary responses to the client.
func FuzzDecodeResponse(f *testing.F) {
	f.Add(200, `{"picture_url":"https://x","expires_at":"2030-01-02T03:04:05Z"}`)
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
		c := newClient(t, "http://signer.test:1")
		c.transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(answer)), Request: r}, nil
		})
		if _, err := c.Link(t.Context(), mustUser(t, "x"), LinkOptions{}); err != nil {
			if _, ok := errors.AsType[*apierror.Error](err); !ok {
				t.Fatalf("an error outside the contract: %v", err)
			}
		} else if status/100 != 2 {
			t.Fatalf("status %d with %q is a link", status, answer)
		}
		// A deletion is a success, or an error with the outcome in the response, or else its outcome is unknown.
		err := c.Delete(t.Context(), mustUser(t, "x"), Preconditions{})
		var said struct{ Code, Detail, Outcome string }
		decoded := json.Unmarshal([]byte(answer), &said) == nil
		ofContract := decoded && apierror.ByCode(said.Code) != nil
		want := apierror.OutcomeUnknown
		switch {
		case status == http.StatusNoContent:
			want = ""
		case ofContract && status/100 != 2 && said.Outcome == "stored":
			want = apierror.OutcomeStored
		case ofContract && status/100 != 2 && said.Outcome != "unknown":
			want = ""
			if said.Code == "damaged" {
				want = apierror.OutcomeStored
			}
		}
		if (err == nil) != (status == http.StatusNoContent) || err != nil && apierror.AsError(err).Outcome != want {
			t.Fatalf("status %d with %q: %v, outcome %q; want %q", status, answer, err, apierror.AsError(err).Outcome, want)
		}
	})
}
