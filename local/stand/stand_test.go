package stand

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// newStand starts Azurite, for real.
func newStand(t *testing.T) *Stand {
	t.Helper()
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("no %s, which Azurite needs", tool)
			}
			t.Skipf("no %s, which Azurite needs", tool)
		}
	}
	root, err := FindRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := Install(t.Context(), root, filepath.Join(dir, "npm.log")); err != nil {
		t.Fatal(err)
	}
	s, err := New(t.Context(), Options{Root: root, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if err := syscall.Kill(s.Storage.Process.Pid(), 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("Azurite is still there: %v", err)
		}
	})
	return s
}

func TestStand(t *testing.T) {
	s := newStand(t)
	t.Run("StorageKeepsWhatIsPut", func(t *testing.T) { storageKeeps(t, s) })
	t.Run("FrontPassesRequestsOnAsTheyAre", func(t *testing.T) { frontPasses(t, s) })
	t.Run("SystemStartsAndStops", func(t *testing.T) { systemStarts(t, s) })
	t.Run("SystemThatIsNotReadySaysWhy", func(t *testing.T) { systemNotReady(t, s) })
}

func storageKeeps(t *testing.T, s *Stand) {
	ctx := t.Context()
	for range 2 { // the second finds it there
		if err := s.Storage.CreateContainer(ctx, "kept"); err != nil {
			t.Fatal(err)
		}
	}
	name, body := "Мурчик a+b/cat", []byte("\x89PNG mew")
	if err := s.Storage.Put(ctx, "kept", name, "image/png", body); err != nil {
		t.Fatal(err)
	}
	header, got, err := s.Storage.Read(ctx, "kept", name)
	if err != nil {
		t.Fatal(err)
	}
	if !cmp.Equal(got, body) || header.Get("Content-Type") != "image/png" {
		t.Errorf("read %q as %s", got, header.Get("Content-Type"))
	}
	blobs, err := s.Storage.Blobs(ctx, "kept")
	if err != nil {
		t.Fatal(err)
	}
	if len(blobs) != 1 || blobs[0].Name != name || blobs[0].Size != int64(len(body)) || blobs[0].ContentType != "image/png" || blobs[0].ETag == "" {
		t.Errorf("listed %+v", blobs)
	}
	if err := s.Storage.Delete(ctx, "kept", name); err != nil {
		t.Fatal(err)
	}
	_, _, err = s.Storage.Read(ctx, "kept", name)
	if refused, ok := errors.AsType[*StorageError](err); !ok || refused.Code != "BlobNotFound" {
		t.Errorf("read a deleted blob: %v", err)
	}
	if list, err := s.Storage.Containers(ctx); err != nil || !slices.Contains(list, "kept") {
		t.Errorf("containers %q, %v", list, err)
	}
}

func frontPasses(t *testing.T, s *Stand) {
	ctx := t.Context()
	if err := s.Storage.CreateContainer(ctx, "front"); err != nil {
		t.Fatal(err)
	}
	if err := s.Storage.Put(ctx, "front", "a/cat", "image/png", []byte("mew")); err != nil {
		t.Fatal(err)
	}
	get := func(authorization string) (int, string) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.FrontURL+"/front/a/cat", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Ms-Version", storageVersion)
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	if status, body := get(""); status/100 != 4 {
		t.Errorf("without a credential: %d %s", status, body)
	}
	token, err := s.admin.AccessToken(time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if status, body := get("Bearer " + token); status != http.StatusOK || body != "mew" {
		t.Errorf("with a token: %d %s", status, body)
	}
	expired, err := s.admin.AccessToken(-time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if status, body := get("Bearer " + expired); status/100 != 4 {
		t.Errorf("with an expired token: %d %s", status, body)
	}
}

func systemStarts(t *testing.T, s *Stand) {
	stub := map[string]string{"STUB": "good"}
	sys, err := s.StartSystem(t.Context(), SystemOptions{
		Container: "started", Frontend: os.Args[0], Signer: os.Args[0], FrontendEnv: stub, SignerEnv: stub,
	})
	if err != nil {
		t.Fatal(err)
	}
	url := sys.URL
	sys.Frontend.Kill()
	start(t, sys.Frontend)
	if err := sys.WaitReady(t.Context()); err != nil || sys.URL != url {
		t.Errorf("after a restart at %s, was %s: %v", sys.URL, url, err)
	}
	if list, err := s.Storage.Containers(t.Context()); err != nil || !slices.Contains(list, "started") {
		t.Errorf("containers %q, %v", list, err)
	}
	if err := sys.Close(t.Context()); err != nil {
		t.Error(err)
	}
	for _, p := range []*Process{sys.Frontend, sys.Signer} {
		if err := syscall.Kill(p.Pid(), 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("%s is still there: %v", p.name, err)
		}
	}
}

func systemNotReady(t *testing.T, s *Stand) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	_, err := s.StartSystem(ctx, SystemOptions{
		Container: "unready", Frontend: os.Args[0], Signer: os.Args[0],
		FrontendEnv: map[string]string{"STUB": "good"}, SignerEnv: map[string]string{"STUB": "unready"},
	})
	if err == nil || !strings.Contains(err.Error(), "waiting for signer") || !strings.Contains(err.Error(), "no key") {
		t.Errorf("got %v, want what the signer said", err)
	}
}
