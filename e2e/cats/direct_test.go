package cats

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestTheCommandGoesStraightToStorageAndGoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	harness.NeedStack(t)
	const blocks = 9 // of 8 MiB each, but the last
	const size = 65 << 20
	var mu sync.Mutex
	arrived := map[string]int{} // blocks that storage has acknowledged, and "" for what was sent in one piece
	stopAt, failOnce, flying := 0, false, 0
	links := harness.FaultProxy(t, harness.Stack(t).FrontURL, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if r.Method != http.MethodPut || r.URL.Query().Get("comp") == "blocklist" {
			healthy.ServeHTTP(w, r)
			return
		}
		mu.Lock()
		stop := stopAt > 0 && len(arrived) >= stopAt
		fails := failOnce
		failOnce = false
		if !stop {
			flying++
		}
		mu.Unlock()
		switch {
		case stop:
			_, _ = io.Copy(io.Discard, r.Body) // until whoever asked has gone
			<-r.Context().Done()
			return
		case fails:
			mu.Lock()
			flying--
			mu.Unlock()
			harness.Abort(w, r, healthy)
		case r.Header.Get("Content-MD5") == "":
			t.Error("a block without its Content-MD5")
		}
		healthy.ServeHTTP(w, r)
		mu.Lock()
		defer mu.Unlock()
		flying--
		arrived[r.URL.Query().Get("blockid")]++
	})
	small := map[string]string{"MAX_PICTURE_SIZE": "1MiB"}
	sys := harness.StartDirect(t, stack.SystemOptions{FrontendEnv: small, SignerEnv: harness.Merge(small, map[string]string{"LINK_BASE_URL": links})})
	// storage has requests stop or fail from here on, and forget what has arrived.
	storage := func(stop int, fail bool) {
		mu.Lock()
		defer mu.Unlock()
		stopAt, failOnce = stop, fail
		if stop == 0 && !fail {
			clear(arrived)
		}
	}
	has := func() map[string]int {
		mu.Lock()
		defer mu.Unlock()
		return maps.Clone(arrived)
	}
	harness.Put(t, sys, "mia", harness.Cat)
	s := newShell(t, sys.URL)
	sparse := func(name string) {
		s.write(name, harness.Cat)
		if err := os.Truncate(filepath.Join(s.dir, name), size); err != nil {
			t.Fatal(err)
		}
	}
	sparse("large.png")

	// Interrupted, and again by one that has nothing to say any more.
	storage(3, false)
	under := make(chan struct{})
	go func() { // until the command has kept each that has arrived, and a line before them
		defer close(under)
		for t.Context().Err() == nil {
			text := []byte(nil)
			if kept := s.kept(); len(kept) == 1 {
				text, _ = os.ReadFile(kept[0])
			}
			mu.Lock()
			settled := len(arrived) >= stopAt && flying == 0 && bytes.Count(text, []byte("\n")) == len(arrived)+1
			mu.Unlock()
			if settled {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	s.interrupts(under, nil, "put", "mia", "large.png").want(t, bySignal, "interrupted", "the same command goes on from there until")
	if !bytes.Equal(harness.Served(t, sys, "mia"), harness.Cat) {
		t.Error("the picture was changed")
	}
	kept := s.kept()
	if len(kept) != 1 {
		t.Fatalf("kept: %q", kept)
	}
	if info, err := os.Stat(kept[0]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("what is kept is %v, %v; want 0600", info.Mode(), err)
	}
	if n := len(has()); n < 3 || n == blocks {
		t.Fatalf("%d blocks have arrived", n)
	}
	storage(0, true)
	s.cats("put", "mia", "large.png", "--quiet").want(t, 0)
	for id, n := range has() {
		if n != 1 {
			t.Errorf("the block %s has arrived %d times", id, n)
		}
	}
	if len(has()) != blocks || len(s.kept()) > 0 {
		t.Errorf("%d blocks have arrived; kept: %q", len(has()), s.kept())
	}
	got := harness.Do(t, "GET", sys.URL+"/cat/mia", "", nil).Want(t, 200)
	if got.Field(t, "size") != float64(size) || got.Field(t, "content_md5") == nil {
		t.Errorf("the picture is %s", got.Body)
	}
	s.cats("get", "mia", "copy.png").want(t, 0)
	copied, err := os.Open(filepath.Join(s.dir, "copy.png"))
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	if err := harness.SameContent(copied, harness.Large(size)); err != nil {
		t.Error(err)
	}

	// A condition that does not hold costs no second upload; another file is another upload.
	storage(0, false)
	s.cats("put", "mia", "large.png", "--create").want(t, 6, "need not send it again")
	if len(has()) != blocks || len(s.kept()) != 1 {
		t.Fatalf("%d blocks have arrived; kept: %q", len(has()), s.kept())
	}
	storage(0, false)
	s.cats("put", "mia", "large.png").want(t, 0)
	if len(has()) != 0 || len(s.kept()) > 0 {
		t.Errorf("%d blocks have arrived; kept: %q", len(has()), s.kept())
	}
	s.cats("put", "mia", "large.png", "--create").want(t, 6)
	storage(0, false)
	sparse("large.png") // at another time
	s.cats("put", "mia", "large.png").want(t, 0)
	if len(has()) != blocks || len(s.kept()) > 0 {
		t.Errorf("of a file that has changed, %d blocks have arrived; kept: %q", len(has()), s.kept())
	}

	// In one piece, and what is no picture.
	storage(0, false)
	s.write("middle.png", harness.Picture(2<<20, 'm'))
	s.cats("put", "mia", "middle.png").want(t, 0)
	s.write("text.png", bytes.Repeat([]byte("no picture"), 200<<10))
	s.cats("put", "mia", "text.png").want(t, 4)
	if diff := cmp.Diff(map[string]int{"": 2}, has()); diff != "" || len(s.kept()) > 0 {
		t.Errorf("arrived: %s; kept: %q", diff, s.kept())
	}
	if !bytes.Equal(harness.Served(t, sys, "mia"), harness.Picture(2<<20, 'm')) {
		t.Error("another picture is there")
	}
}
