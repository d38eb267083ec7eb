package directupload

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"cats.example/signer/internal/storagetest"
)

// expire makes n expired uploads and returns their names.
func (f *fixture) expire(n int) (names []string) {
	f.server.Change(func(blobs map[string]*storagetest.Blob) {
		clear(blobs)
		for i := range n {
			name := fmt.Sprintf("%s%010d-%032x", stagedPrefix, 900_000_000+i, i) // before the bubble's time
			names = append(names, name)
			blobs[name] = &storagetest.Blob{Content: "x", ETag: fmt.Sprintf(`"0xe%d"`, i)}
		}
	})
	return names
}

func TestSweepDeletesExpiredUploadsInParallel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 600
		f := newFixture(t)
		f.expire(n)
		kept := newSession(time.Now(), 1).blobName(f.mia)
		f.server.Put(kept, "x", "")
		f.server.Put("mia/cat", "cat", "image/png")
		f.server.SetEarly(func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodDelete {
				time.Sleep(time.Second)
			}
			return false
		})
		began := time.Now()
		if err := f.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		diff := cmp.Diff([]string{kept, "mia/cat"}, f.server.Names())
		if took := time.Since(began); diff != "" || took < n/parallelDeletes*time.Second || took > (n/parallelDeletes+9)*time.Second {
			t.Errorf("after %v; left: %s", took, diff)
		}
		if got := testutil.ToFloat64(f.deleted.WithLabelValues("expired")); got != n {
			t.Errorf("%v are counted", got)
		}
		time.Sleep(SessionTTL + sweepGrace + time.Second)
		if err := f.sweep(t.Context()); err != nil || f.server.Blob(kept).Content != "" {
			t.Errorf("after the session: %v", err)
		}
		f.expire(n)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second+time.Second/2)
		defer cancel()
		_ = f.sweep(ctx)
		time.Sleep(2 * time.Second) // until the last deletions have ended
		if len(f.server.Names()) < n-11*parallelDeletes {
			t.Errorf("a sweep whose context is done goes on: %d blobs are left", len(f.server.Names()))
		}
	})
}

func TestSweepGoesOnAfterErrors(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		names := f.expire(600)
		failing := []string{names[0], names[200], names[400], names[599]}
		f.server.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
			for i, name := range failing {
				if r.Method == http.MethodDelete && strings.HasSuffix(r.URL.Path, name) {
					storagetest.Reject(w, []int{403, 409, 404, 500}[i], "Broken")
					return true
				}
			}
			return false
		})
		if err := f.sweep(t.Context()); err == nil {
			t.Error("no error")
		}
		if diff := cmp.Diff(failing, f.server.Names()); diff != "" {
			t.Errorf("left: %s", diff)
		}
		f.server.SetFault(func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "application/xml")
			_, _ = io.WriteString(w, "<EnumerationResults/>")
			return true
		})
		_ = f.sweep(t.Context()) // an error or none, but no panic
		f.server.SetFault(nil)
		if err := f.sweep(t.Context()); err != nil || len(f.server.Names()) > 0 {
			t.Errorf("the next sweep: %v, and %v are left", err, f.server.Names())
		}
	})
}

func TestSweepKeepsLaterVersions(t *testing.T) {
	bubble(t, func(t *testing.T, f *fixture) {
		names := f.expire(4)
		f.server.Change(func(blobs map[string]*storagetest.Blob) {
			for _, i := range []int{1, 2, 3} {
				blobs[names[i]].Blocks, blobs[names[i]].ETag = true, ""
			}
		})
		later := map[string]string{names[0]: "DELETE", names[2]: "PUT", names[3]: "DELETE"} // before the first such request
		f.server.SetFault(func(_ http.ResponseWriter, r *http.Request) bool {
			if name := strings.TrimPrefix(r.URL.Path, "/cats/"); later[name] != "" && storagetest.Is(later[name])(r) {
				delete(later, name)
				f.server.Put(name, "later", "")
			}
			return false
		})
		if err := f.sweep(t.Context()); err != nil || f.server.Log.String() != "" {
			t.Errorf("%v, and the log has %s", err, f.server.Log.String())
		}
		if diff := cmp.Diff([]string{names[0], names[2], names[3]}, f.server.Names()); diff != "" {
			t.Error(diff)
		}
		if got := testutil.ToFloat64(f.deleted.WithLabelValues("expired")); got != 1 {
			t.Errorf("%v are counted", got)
		}
	})
}
