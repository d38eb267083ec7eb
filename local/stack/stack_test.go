package stack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// serveTLS serves h at https://davydscats.blob.localhost until the test ends. It returns the URL.
func serveTLS(t *testing.T, h http.HandlerFunc) (*CA, string) {
	t.Helper()
	ca, err := OpenCA(t.TempDir(), "localhost", "*.blob.localhost", accountHost)
	if err != nil {
		t.Fatal(err)
	}
	l, err := listen(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	stop := serve(ca.Secure(l), h)
	t.Cleanup(func() { _ = stop(context.Background()) })
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return ca, "https://" + net.JoinHostPort(accountHost, port)
}

func TestStorageRequestsUseNewTokens(t *testing.T) {
	var requests []string
	ca, url := serveTLS(t, func(w http.ResponseWriter, r *http.Request) {
		requests = append(requests, r.Method+" "+r.RequestURI+" "+r.Header.Get("Authorization"))
		w.Header().Set("X-Ms-Error-Code", "ContainerAlreadyExists")
		w.WriteHeader(http.StatusConflict)
	})
	issued := 0
	storage, err := NewStorage(url, ca, func(time.Duration) (string, error) {
		issued++
		return fmt.Sprint("token-", issued), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := storage.CreateContainer(t.Context(), "cats"); err != nil { // it exists
			t.Fatal(err)
		}
	}
	want := []string{"PUT /cats?restype=container Bearer token-1", "PUT /cats?restype=container Bearer token-2"}
	if diff := cmp.Diff(want, requests); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	if err := storage.DeleteContainer(t.Context(), "cats"); err == nil {
		t.Error("no error for a response with 409")
	}
}

// newStack returns a stack whose storage accepts every request.
func newStack(t *testing.T) *Stack {
	t.Helper()
	ca, url := serveTLS(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusCreated) })
	storage, err := NewStorage(url, ca, func(time.Duration) (string, error) { return "token", nil })
	if err != nil {
		t.Fatal(err)
	}
	s := &Stack{opts: Options{Dir: t.TempDir()}, CA: ca, Storage: storage}
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := s.startCluster(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// systemOptions returns the options of a system whose frontend and signer are scripts. signer answers the signer's readiness probes.
func systemOptions(t *testing.T, signer http.HandlerFunc) SystemOptions {
	t.Helper()
	program := t.TempDir() + "/program"
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"+serverScript), 0o700); err != nil {
		t.Fatal(err)
	}
	probed := func(h http.HandlerFunc) map[string]string {
		ops := httptest.NewServer(h)
		t.Cleanup(ops.Close)
		return map[string]string{"LISTENERS": "public api ops", "OPS_ADDRESS": ops.Listener.Addr().String()}
	}
	return SystemOptions{
		Frontend: program, Signer: program,
		FrontendEnv: probed(func(http.ResponseWriter, *http.Request) {}), SignerEnv: probed(signer),
	}
}

func TestSystemRestartsAndStops(t *testing.T) {
	s := newStack(t)
	var unready atomic.Bool
	sys, err := s.StartSystem(t.Context(), systemOptions(t, func(w http.ResponseWriter, _ *http.Request) {
		if unready.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	url := sys.SignerOps
	unready.Store(true)
	sys.Signer.Kill()
	if err := sys.WaitReady(t.Context()); err == nil || !strings.Contains(err.Error(), "signer ended: signal: killed") {
		t.Errorf("waiting for a killed signer: %v", err)
	}
	unready.Store(false)
	start(t, sys.Signer)
	if err := sys.WaitReady(t.Context()); err != nil || url != "http://"+sys.Signer.Address("ops") {
		t.Errorf("after a restart at %s, was %s: %v", sys.Signer.Address("ops"), url, err)
	}
	if err := sys.Close(t.Context()); err != nil {
		t.Error(err)
	}
	for _, p := range []*Process{sys.Frontend, sys.Signer} {
		if !gone(p.Pid()) {
			t.Errorf("%s has not ended", p.name)
		}
	}
}

func TestSystemStartReportsReadiness(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var probes atomic.Int32
	_, err := newStack(t).StartSystem(ctx, systemOptions(t, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no key", http.StatusServiceUnavailable)
		if probes.Add(1) == 2 {
			cancel()
		}
	}))
	if err == nil || !strings.Contains(err.Error(), "waiting for signer") || !strings.Contains(err.Error(), "no key") {
		t.Errorf("got %v; want the signer's response", err)
	}
}

func TestSystemStartReportsAFullDisk(t *testing.T) {
	opts := systemOptions(t, func(http.ResponseWriter, *http.Request) {})
	opts.Dir = t.TempDir()
	log := opts.Dir + "/logs/signer.log"
	if err := errors.Join(os.Mkdir(opts.Dir+"/logs", 0o700), os.Symlink("/dev/full", log)); err != nil {
		t.Fatal(err)
	}
	_, err := newStack(t).StartSystem(t.Context(), opts)
	if err == nil || !strings.Contains(err.Error(), "writing the log of signer: write "+log+": no space left on device") {
		t.Errorf("got %v; want the error of the log", err)
	}
}
