//go:build cluster

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// load sends uploads and reads to the public API until finish.
type load struct {
	ctx context.Context // of the requests

	mu       sync.Mutex
	answered int
	failures []failure

	stop   context.CancelFunc
	users  sync.WaitGroup
	stored sync.Map // user → [][]byte, one of these pictures must be stored at the end
}

// failure is a request with an unexpected outcome.
type failure struct {
	what       string
	began      time.Time
	took       time.Duration
	status     int // 0 for no response
	retryAfter string
	body       string
	err        error
}

func (f failure) String() string {
	return fmt.Sprintf("%s at %s, after %v: %d, Retry-After %q, %s %v",
		f.what, f.began.Format("15:04:05.000"), f.took.Round(time.Millisecond), f.status, f.retryAfter, f.body, f.err)
}

// startLoad starts a load of users and slow users. Half of them reuse their connection, the others open one for each request. Slow
// users take about eight seconds to send a picture.
func startLoad(t *testing.T, users, slow int) *load {
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{ctx: context.Background(), stop: cancel} // ends between requests
	for i := range users + slow {
		client := &http.Client{
			Transport: &http.Transport{DisableKeepAlives: i%2 == 1, MaxIdleConnsPerHost: 1},
			Timeout:   time.Minute,
		}
		l.users.Go(func() {
			user := fmt.Sprintf("load-%d", i)
			for n := 0; ctx.Err() == nil; n++ {
				if !l.turn(client, user, i >= users, n) {
					user = fmt.Sprintf("load-%d-%d", i, n)
				}
			}
		})
	}
	return l
}

// turn sends one upload, and some reads that must find it. It returns false if the upload has an unknown outcome: storage may apply
// it later, even after an acknowledged upload, so the user must not be used again.
func (l *load) turn(client *http.Client, user string, slow bool, n int) bool {
	size := 10_000 + rand.IntN(200_000)
	if n%20 == 19 {
		size = 5 << 20 // in blocks
	}
	content := picture(size)
	var body io.Reader = bytes.NewReader(content)
	if slow {
		body = &trickle{content: content, piece: len(content)/80 + 1, every: 100 * time.Millisecond}
	}
	put, failed := l.ask(client, http.MethodPut, user, body)
	if failed != nil {
		unknown := failed.err != nil || strings.Contains(failed.body, `"outcome":"unknown"`)
		if before, ok := l.stored.Load(user); ok && unknown {
			l.stored.Store(user, append(before.([][]byte), content))
		}
		return !unknown
	}
	l.stored.Store(user, [][]byte{content})
	for range 4 {
		got, failed := l.ask(client, http.MethodGet, user, nil)
		if failed == nil && got["etag"] != put["etag"] {
			l.fail(failure{what: "GET " + user, began: time.Now(), body: fmt.Sprintf("etag %v, but %v was stored", got["etag"], put["etag"])})
		}
	}
	return true
}

// ask sends one request for the picture of user. It returns the recorded failure, or nil.
func (l *load) ask(client *http.Client, method, user string, body io.Reader) (answer map[string]any, failed *failure) {
	f := failure{what: method + " " + user, began: time.Now()}
	req, err := http.NewRequestWithContext(l.ctx, method, api+"/cat/"+user, body)
	if err != nil {
		panic(err)
	}
	resp, err := client.Do(req)
	f.took, f.err = time.Since(f.began), err
	if err == nil {
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		f.status, f.retryAfter, f.body, f.err = resp.StatusCode, resp.Header.Get("Retry-After"), string(b), err
		if err == nil && resp.StatusCode == http.StatusOK {
			f.err = json.Unmarshal(b, &answer)
		}
	}
	if f.err != nil || f.status != http.StatusOK {
		l.fail(f)
		return nil, &f
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.answered++
	return answer, nil
}

func (l *load) fail(f failure) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, f)
}

// finish ends the load. It checks that the stored picture of each user is the last acknowledged one, or of a later upload with an
// unknown outcome.
func (l *load) finish(t *testing.T) (answered int, failures []failure) {
	t.Helper()
	l.stop()
	l.users.Wait()
	l.stored.Range(func(user, pictures any) bool {
		got, err := fetch(user.(string))
		if err != nil || !slices.ContainsFunc(pictures.([][]byte), func(p []byte) bool { return bytes.Equal(p, got) }) {
			t.Errorf("the picture of %v, of %d bytes, is neither the last acknowledged one nor one of unknown outcome: %v", user, len(got), err)
		}
		return true
	})
	t.Logf("%d requests answered, %d failed", l.answered, len(l.failures))
	return l.answered, l.failures
}

// fetch returns the picture of user from its signed URL. It uses the node's address: the URL's host may be localhost.
func fetch(user string) ([]byte, error) {
	a := load{ctx: context.Background()}
	link, failed := a.ask(http.DefaultClient, http.MethodGet, user, nil)
	if failed != nil {
		return nil, fmt.Errorf("no link: %v", failed)
	}
	u, err := url.Parse(fmt.Sprint(link["picture_url"]))
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(a.ctx, http.MethodGet, account+u.EscapedPath()+"?"+u.RawQuery, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

// picture returns n bytes: the signature of a PNG, then random bytes.
func picture(n int) []byte {
	b := make([]byte, n)
	random := rand.NewChaCha8([32]byte{byte(rand.IntN(256)), byte(rand.IntN(256)), byte(rand.IntN(256)), byte(rand.IntN(256))})
	_, _ = random.Read(b)
	copy(b, "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01")
	return b
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
