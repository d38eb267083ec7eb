package e2e

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cats.example/local/stand"
)

// Whatever a client sends, in whatever pieces, and wherever it breaks off: what
// was acknowledged reads back byte for byte, and what was not has left the bytes
// before it. CATS_UPLOADS sets how many, of which some 2,000 fit into Azurite's
// memory; CATS_SEED makes them others.
func TestRandomUploadsAreWholeOrNothing(t *testing.T) {
	t.Parallel()
	number := func(name string, otherwise int) int {
		if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
			return n
		}
		return otherwise
	}
	count, seed := number("CATS_UPLOADS", 120), number("CATS_SEED", 1)
	both := map[string]string{"MAX_PICTURE_SIZE": "41MiB"}
	sys := start(t, stand.SystemOptions{FrontendEnv: both, SignerEnv: both})
	const clients = 6
	head := cat[:24] // which makes a picture of what comes behind it
	var stored, cut, total atomic.Int64
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(seed), uint64(i)))
			source := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(i)})
			user := fmt.Sprintf("random-%d", i)
			var now []byte
			for range count / clients {
				content := make([]byte, len(head)+int(math.Exp(r.Float64()*math.Log(40<<20))))
				_, _ = source.Read(content) // never fails
				copy(content, head)
				all := uploads(t, user, content)
				u := all[r.IntN(len(all))]
				sent := len(u.body)
				if r.IntN(10) < 3 {
					sent = r.IntN(len(u.body)) // what lacks its last byte is not whole
				}
				status := inPieces(t, sys, r, u, sent)
				switch {
				case sent < len(u.body):
					cut.Add(1)
				case status != 200:
					t.Errorf("%s of %d bytes: %d", u.name, len(content), status)
					return
				default:
					now = content
					stored.Add(1)
				}
				total.Add(int64(sent))
				if now == nil {
					do(t, "GET", sys.URL+"/cat/"+user, "", nil).problem(t, 404, "not_found")
					continue
				}
				if got := served(t, sys, user); !bytes.Equal(got, now) {
					t.Errorf("after a %s of %d bytes, %d of them sent: %d bytes are served, which are not the %d that were acknowledged", u.name, len(content), sent, len(got), len(now))
					return
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d stored and read back, %d broken off, %d MiB", stored.Load(), cut.Load(), total.Load()>>20)
	if !t.Failed() && stored.Load()+cut.Load() != int64(count/clients*clients) {
		t.Error("not all were made")
	}
}

// inPieces sends so much of an upload, in pieces of any size and with pauses, and
// returns the status of the answer, 0 for a part of one.
func inPieces(t *testing.T, sys *stand.System, r *rand.Rand, u upload, sent int) int {
	t.Helper()
	conn := dial(t, sys)
	defer func() { _ = conn.Close() }()
	rest := u.header + u.body[:sent]
	most := 1 << r.IntN(22)
	for pauses := 0; len(rest) > 0; {
		n := min(len(rest), 1+r.IntN(most), 1<<20)
		if len(rest) > 200*most { // not forever
			n = len(rest) / 100
		}
		if _, err := io.WriteString(conn, rest[:n]); err != nil {
			if sent == len(u.body) {
				t.Errorf("%s: %v", u.name, err)
			}
			return 0
		}
		rest = rest[n:]
		if pauses < 20 && r.IntN(4) == 0 {
			pauses++
			time.Sleep(time.Duration(r.IntN(3000)) * time.Microsecond)
		}
	}
	if sent == len(u.body) {
		return statusOf(t, conn)
	}
	if r.IntN(2) == 0 {
		_ = conn.SetLinger(0) // a reset, in place of an end
	}
	return 0
}
