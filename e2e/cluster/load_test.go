//go:build cluster

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"cats.example/e2e/harness"
)

// load sends uploads and reads to the public API until finish.
type load struct {
	t   *testing.T
	ctx context.Context // of the requests

	mu       sync.Mutex
	answered int
	failures []failure
	stored   map[string]string // MD5 of the acknowledged pictures by user

	stop  context.CancelFunc
	users sync.WaitGroup
}

// failure is a request with an unexpected outcome.
type failure struct {
	what   string
	began  time.Time
	answer harness.Response // with status 0 if there is none
	err    error
}

func (f failure) String() string {
	return fmt.Sprintf("%s at %s: %d %s %v", f.what, f.began.Format("15:04:05.000"), f.answer.StatusCode, f.answer.Body, f.err)
}

// startLoad starts a load of users and slow users. Half of them reuse their connection, the others open one for each request. Slow
// users take about eight seconds to send a picture.
func startLoad(t *testing.T, users, slow int) *load {
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{t: t, ctx: context.WithoutCancel(ctx), stop: cancel, stored: map[string]string{}} // ends between requests
	for i := range users + slow {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: i%2 == 1, MaxIdleConnsPerHost: 1}, Timeout: time.Minute}
		l.users.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				l.turn(client, fmt.Sprintf("load-%d-%d", i, n), i >= users, n)
			}
		})
	}
	return l
}

// turn sends one upload, and some reads that must find it.
func (l *load) turn(client *http.Client, user string, slow bool, n int) {
	size := 10_000 + rand.IntN(200_000)
	if n%20 == 19 {
		size = 5 << 20 // in blocks
	}
	content := harness.Random(size, rand.Uint64())
	var body io.Reader = bytes.NewReader(content)
	if slow {
		body = &trickle{content: content, piece: size/80 + 1, every: 100 * time.Millisecond}
	}
	put, ok := l.ask(client, http.MethodPut, user, body)
	if !ok {
		return
	}
	l.mu.Lock()
	l.stored[user] = harness.MD5(content)
	l.mu.Unlock()
	for range 4 {
		if got, ok := l.ask(client, http.MethodGet, user, nil); ok && got.Field(l.t, "etag") != put.Field(l.t, "etag") {
			l.fail(failure{what: "GET of another picture than " + string(put.Body), began: time.Now(), answer: got})
		}
	}
}

// ask sends one request for the picture of user. ok is false if it is recorded as a failure.
func (l *load) ask(client *http.Client, method, user string, body io.Reader) (a harness.Response, ok bool) {
	began := time.Now()
	a, err := harness.TryWith(l.ctx, client, method, api+"/cat/"+user, "", body)
	if err != nil {
		a = harness.Response{Response: &http.Response{}} // incomplete
	}
	if err != nil || a.StatusCode != http.StatusOK {
		l.fail(failure{what: method + " " + user, began: began, answer: a, err: err})
		return a, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answered++
	return a, true
}

func (l *load) fail(f failure) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, f)
}

// finish ends the load. It checks that all acknowledged pictures are stored.
func (l *load) finish() (answered int, failures []failure) {
	l.t.Helper()
	l.stop()
	l.users.Wait()
	answered, failures = l.answered, slices.Clone(l.failures)
	for user, want := range l.stored {
		link, ok := l.ask(http.DefaultClient, http.MethodGet, user, nil)
		if !ok {
			l.t.Errorf("%s has no picture: %s", user, link.Body)
			continue
		}
		u, err := url.Parse(fmt.Sprint(link.Field(l.t, "picture_url")))
		if err != nil {
			l.t.Fatal(err)
		}
		// By the node's address: the URL's host may be localhost.
		got := harness.SendWith(l.t, http.DefaultClient, http.MethodGet, account+u.EscapedPath()+"?"+u.RawQuery, "").Body
		if harness.MD5(got) != want {
			l.t.Errorf("the picture of %s, of %d bytes, is not the acknowledged one", user, len(got))
		}
	}
	l.t.Logf("%d requests answered, %d failed", answered, len(failures))
	return answered, failures
}

// trickle is a reader that pauses before each piece of content.
type trickle struct {
	content []byte
	piece   int
	every   time.Duration
}

func (r *trickle) Read(p []byte) (int, error) {
	if len(r.content) == 0 {
		return 0, io.EOF
	}
	time.Sleep(r.every)
	n := copy(p[:min(len(p), r.piece)], r.content)
	r.content = r.content[n:]
	return n, nil
}
