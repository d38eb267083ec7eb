package stack

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
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
func newStand(t *testing.T) *Stack {
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
	t.Run("FrontAcceptsNoToken", func(t *testing.T) { frontAcceptsNoToken(t, s) })
	t.Run("SystemStartsAndStops", func(t *testing.T) { systemStarts(t, s) })
	t.Run("SystemThatIsNotReadySaysWhy", func(t *testing.T) { systemNotReady(t, s) })
}

func storageKeeps(t *testing.T, s *Stack) {
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

func frontAcceptsNoToken(t *testing.T, s *Stack) {
	ctx := t.Context()
	if err := s.Storage.CreateContainer(ctx, "front"); err != nil {
		t.Fatal(err)
	}
	if err := s.Storage.Put(ctx, "front", "a/cat", "image/png", []byte("mew")); err != nil {
		t.Fatal(err)
	}
	token, err := s.admin.AccessToken(time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	get := func(url string) int {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Ms-Version", storageVersion)
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	for _, path := range []string{"/front/a/cat", "/front?restype=container&comp=list", "/?comp=list"} {
		if status := get(s.Storage.URL + path); status != http.StatusOK {
			t.Errorf("%s of Azurite: %d", path, status)
		}
		if status := get(s.FrontURL + path); status != http.StatusForbidden {
			t.Errorf("%s of the front: %d; want 403", path, status)
		}
	}
}

func TestFrontForwardsOnlyRequestsWithASignature(t *testing.T) {
	const host = "account.blob.localhost"
	ca, err := OpenCA(t.TempDir(), host)
	if err != nil {
		t.Fatal(err)
	}
	l, err := listen(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	var got *http.Request
	stop := serve(ca.secure(l), http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r }))
	defer func() { _ = stop(t.Context()) }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	front, err := NewStorage("https://"+net.JoinHostPort(host, port), ca, nil).Front()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		method, target string
		forwarded      bool
	}{
		{"GET", "/cats/x/cat?sig=a%2Bb", true},
		{"PUT", "/cats/x/cat?a=b&%73ig=x", true},
		{"OPTIONS", "/cats/x/cat", true},
		{"GET", "/cats/x/cat", false},
		{"HEAD", "/cats/x/cat?sig=", false},
		{"PUT", "/cats/x/cat?Sig=x", false},
		{"DELETE", "/cats/x/cat?a=b;sig=x", false},
		{"POST", "/?comp=batch&sig", false},
	} {
		got = nil
		r := httptest.NewRequestWithContext(t.Context(), c.method, c.target, nil)
		r.Header.Set("Authorization", "Bearer token")
		w := httptest.NewRecorder()
		front.ServeHTTP(w, r)
		switch {
		case c.forwarded && (got == nil || got.RequestURI != c.target || got.Host != net.JoinHostPort(host, port) || got.Header.Get("Authorization") != ""):
			t.Errorf("%s %s is forwarded as %+v", c.method, c.target, got)
		case !c.forwarded && (got != nil || w.Code != http.StatusForbidden || w.Header().Get("X-Ms-Error-Code") != "AuthenticationFailed"):
			t.Errorf("%s %s: %d %s", c.method, c.target, w.Code, w.Body)
		}
	}
}

func systemStarts(t *testing.T, s *Stack) {
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

func systemNotReady(t *testing.T, s *Stack) {
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
