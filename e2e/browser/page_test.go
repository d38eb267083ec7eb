package browser

import (
	"io"
	"net/http"
	"sync"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// The scripts of testdata/TestPage.
func TestPage(t *testing.T) {
	t.Parallel()
	for name, env := range map[string]map[string]string{
		"stores and shares a picture":  nil,
		"knows what is stored":         nil, // while other clients change pictures and responses are lost
		"fits a phone":                 nil,
		"handles responses of proxies": nil, // in place of the service, and of a browser that stores nothing
		"shows the progress":           nil,
		"works by keyboard":            nil,
		"explains rejected input":      {"MAX_PICTURE_SIZE": "1MiB"},
		"renews an expired URL":        {"LINK_TTL": "10s"},
		// A confirmation is for the picture that the page showed, and a late response is for the user of its request.
		"changes only the displayed picture": nil,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sys := harness.Shared(t)
			if env != nil {
				sys = harness.Start(t, stack.SystemOptions{FrontendEnv: env, SignerEnv: env})
			}
			scripts(t, sys)
		})
	}
}

// The page does not repeat blocks that storage has acknowledged.
func TestPageResumesLargeUploads(t *testing.T) {
	t.Parallel()
	const size, blocks = 66 << 20, 9
	storage := harness.NewGate(t, harness.Stack(t).FrontURL)
	settings := map[string]string{"MAX_DIRECT_UPLOAD_SIZE": "80MiB", "LINK_BASE_URL": storage.URL}
	sys := harness.StartDirect(t, stack.SystemOptions{FrontendEnv: small, SignerEnv: harness.Merge(small, settings)})
	b := browse(t, sys.URL+"/?user=Davyd")
	b.sees("up to 80 MB")
	b.pick(onDisk(t, "huge.png", harness.Picture(80<<20+1, 0)))
	b.sees("This picture is too large")
	b.upload(file(t, "cat.png")) // with one request
	b.sees("Stored.")
	b.shown()
	harness.WantPicture(t, sys, "Davyd", harness.Cat)

	var mu sync.Mutex
	admitted, stuck, limit := map[string]int{}, map[string]bool{}, 3 // block IDs, "" for the list of blocks
	allStuck, offline := make(chan struct{}), make(chan struct{})
	lose := sync.OnceFunc(func() { close(offline) })
	t.Cleanup(lose)
	storage.SetAll(func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
		if query := r.URL.Query(); r.Method == http.MethodPut && query.Has("comp") {
			id := query.Get("blockid")
			mu.Lock()
			full := len(admitted) == limit
			if !full {
				admitted[id]++
			} else if !stuck[id] {
				stuck[id] = true
				if len(stuck) == 4 { // of those that the page sends in parallel, so all others are acknowledged
					close(allStuck)
				}
			}
			mu.Unlock()
			if full {
				_, _ = io.Copy(io.Discard, r.Body)
				<-offline
				panic(http.ErrAbortHandler)
			}
		}
		healthy.ServeHTTP(w, r)
	})
	admit := func(n int) {
		mu.Lock()
		defer mu.Unlock()
		limit = n
	}
	b.pick(onDisk(t, "large.png", harness.Picture(size, 0)))
	b.sees("Too large for a preview.")
	b.click("#upload")
	b.await(allStuck)
	b.shot("uploading-large")
	b.network(-1, false)
	lose()
	b.sees("You are offline")
	harness.WantPicture(t, sys, "Davyd", harness.Cat)
	admit(blocks)
	b.network(20<<20, true) // more would occupy the emulator for seconds
	b.click("#message-action")
	b.sees("The connection was lost") // all blocks are sent, but not committed
	admit(blocks + 1)
	b.click("#message-action")
	b.sees("Stored.", "66 MB", "not shown automatically")
	mu.Lock()
	defer mu.Unlock()
	for id, n := range admitted {
		if n != 1 || len(admitted) != blocks+1 {
			t.Errorf("block %q was stored %d times, with %d others", id, n, len(admitted)-1)
		}
	}
	link, _ := harness.Link(t, sys, "Davyd", "")
	if a := harness.Do(t, http.MethodHead, link, "", nil).Want(t, 200); a.ContentLength != size {
		t.Errorf("%d bytes are stored; want %d", a.ContentLength, size)
	}
}
