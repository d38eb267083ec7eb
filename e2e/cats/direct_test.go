package cats

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// storageProxy is a proxy to storage that counts the blocks of uploads.
type storageProxy struct {
	sync.Mutex
	blocks map[string]int // acknowledged, by ID; "" is an upload in one request
	open   int            // requests that are forwarded
	stopAt int            // number of blocks after which requests hang; 0 for none
	abort  bool           // the next block
}

// statusRecorder remembers the status of a response.
type statusRecorder struct {
	http.ResponseWriter
	status int
}

func (r *statusRecorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (p *storageProxy) serve(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
	p.Lock()
	defer p.Unlock()
	switch hang := p.stopAt > 0 && len(p.blocks) >= p.stopAt; {
	case r.Method != http.MethodPut || r.URL.Query().Get("comp") == "blocklist":
	case hang:
		p.Unlock()
		defer p.Lock()
		_, _ = io.Copy(io.Discard, r.Body) // until the client closes the connection
		<-r.Context().Done()
		return
	case p.abort:
		p.abort = false
		harness.Abort(w, r, healthy)
	default:
		p.open++
		response := &statusRecorder{ResponseWriter: w}
		w = response
		defer func() {
			p.open--
			if response.status == http.StatusCreated { // the client repeats a block without a response
				p.blocks[r.URL.Query().Get("blockid")]++
			}
		}()
	}
	p.Unlock()
	defer p.Lock()
	healthy.ServeHTTP(w, r)
}

// want checks that this many blocks have arrived, each once, and forgets them.
func (p *storageProxy) want(t *testing.T, blocks int) {
	t.Helper()
	p.Lock()
	defer p.Unlock()
	for id, n := range p.blocks {
		if n != 1 {
			t.Errorf("block %q has arrived %d times", id, n)
		}
	}
	if len(p.blocks) != blocks || p.abort {
		t.Errorf("%d blocks have arrived; want %d; the fault is left: %v", len(p.blocks), blocks, p.abort)
	}
	clear(p.blocks)
}

func TestCatsContinuesDirectUpload(t *testing.T) {
	t.Parallel()
	harness.NeedStack(t)
	const size, blocks = 65 << 20, 9 // of 8 MiB, but the last
	proxy := &storageProxy{blocks: map[string]int{}, stopAt: 3}
	small := map[string]string{"MAX_PICTURE_SIZE": "1MiB"}
	proxied := map[string]string{"LINK_BASE_URL": harness.FaultProxy(t, harness.Stack(t).FrontURL, proxy.serve)}
	sys := harness.StartDirect(t, stack.SystemOptions{FrontendEnv: small, SignerEnv: harness.Merge(small, proxied)})
	s := newShell(t, sys.URL)
	sparse := func() {
		s.write("large.png", harness.Cat)
		if err := os.Truncate(filepath.Join(s.dir, "large.png"), size); err != nil {
			t.Fatal(err)
		}
	}
	cats := func(code, wantBlocks, wantSaved int, args ...string) exited {
		t.Helper()
		got := s.cats(args...).want(t, code)
		proxy.want(t, wantBlocks)
		if saved := s.files(savedUploads); len(saved) != wantSaved {
			t.Errorf("%q: saved uploads: %q; want %d", args, saved, wantSaved)
		}
		return got
	}
	sparse()

	// The first command is interrupted when all blocks that have arrived are saved. The second one also meets a fault.
	s.run(s.command("put", "mia", "large.png"), func(p *os.Process) {
		harness.Eventually(t, func() error {
			proxy.Lock()
			defer proxy.Unlock()
			var document struct{ Upload struct{ Sent []int64 } }
			files := s.files(savedUploads)
			if len(files) != 1 {
				return errors.New("no upload is saved")
			}
			path := filepath.Join(s.dir, "cache", "cats", files[0])
			text, err := os.ReadFile(path)
			info, statErr := os.Stat(path)
			if err := errors.Join(err, statErr, json.Unmarshal(text, &document)); err != nil {
				return err
			}
			if n := len(document.Upload.Sent); n < 3 || n == blocks || n != len(proxy.blocks) || proxy.open > 0 || info.Mode().Perm() != 0o600 {
				return fmt.Errorf("%d blocks are saved and %d acknowledged, %d requests are open, the file's mode is %v", n, len(proxy.blocks), proxy.open, info.Mode())
			}
			return nil
		})
		_ = p.Signal(syscall.SIGINT)
	}).want(t, bySignal, "interrupted", "the same command continues the upload")
	harness.Do(t, "GET", sys.URL+"/cat/mia", "", nil).Want(t, 404)
	proxy.Lock()
	proxy.stopAt, proxy.abort = 0, true
	proxy.Unlock()
	s.cats("put", "mia", "large.png", "--quiet").want(t, 0)
	got := harness.Do(t, "GET", sys.URL+"/cat/mia", "", nil).Want(t, 200)
	if got.Field(t, "size") != float64(size) || got.Field(t, "content_md5") == nil {
		t.Errorf("the picture is %s", got.Body)
	}
	cats(0, blocks, 0, "get", "mia", "copy.png")
	want := make([]byte, size)
	copy(want, harness.Cat)
	s.holds("copy.png", want)

	// After a failed precondition the blocks are not sent again, unless the file has changed.
	cats(6, blocks, 1, "put", "mia", "large.png", "--create").want(t, 6, "does not send them again")
	cats(0, 0, 0, "put", "mia", "large.png")
	cats(6, blocks, 1, "put", "mia", "large.png", "--create")
	sparse()
	cats(0, blocks, 0, "put", "mia", "large.png")

	// In one request.
	s.write("middle.png", harness.Picture(2<<20, 'm'))
	cats(0, 1, 0, "put", "mia", "middle.png")
	cats(0, 0, 0, "get", "mia", "last.png")
	s.holds("last.png", harness.Picture(2<<20, 'm'))
}
