package blobstore

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"
)

// refuseContainer returns a fault that answers requests for the container, and no others.
func refuseContainer(status int, code string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("restype") != "container" {
			return false
		}
		refuse(w, status, code)
		return true
	}
}

func TestStoreIsNotReadyUntilTheContainerExists(t *testing.T) {
	var log logBuffer
	s, back, _ := newStore(t, nil)
	s.log = slog.New(slog.NewJSONHandler(&log, nil))
	back.fault = refuseContainer(404, "ContainerNotFound")
	ctx, cancel := context.WithCancel(t.Context())
	authenticated, done := make(chan struct{}), make(chan error, 1)
	close(authenticated)
	go func() { done <- s.Run(ctx, authenticated) }()
	eventually(t, "the log line", func() bool { return strings.Contains(log.String(), "ContainerNotFound") })
	err := s.Ready(ctx)
	for _, part := range []string{"create the container", "--account-name acct --name cats", "STORAGE_CONTAINER"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("Ready returned %v; want %q in it", err, part)
		}
	}
	becomesReady(ctx, t, s, back)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run returned %v", err)
	}
}

func TestStoreIsNotReadyWhileTheContainersCheckFails(t *testing.T) {
	s, back, _ := newStore(t, nil)
	s.retries = -1
	asked := make(chan struct{}, 100)
	busy := refuseContainer(503, "ServerBusy")
	back.fault = func(w http.ResponseWriter, r *http.Request) bool {
		refused := busy(w, r)
		if refused {
			asked <- struct{}{}
		}
		return refused
	}
	authenticated := make(chan struct{})
	close(authenticated)
	go func() { _ = s.Run(t.Context(), authenticated) }()
	for range 2 {
		<-asked
	}
	if err := s.Ready(t.Context()); err == nil {
		t.Error("ready before storage has answered")
	}
	becomesReady(t.Context(), t, s, back)
}

// TestStoreIsReadyWithoutTheContainersProperties uses a role that allows pictures, but not the container's properties.
func TestStoreIsReadyWithoutTheContainersProperties(t *testing.T) {
	var log logBuffer
	s, back, _ := newStore(t, nil)
	s.log = slog.New(slog.NewJSONHandler(&log, nil))
	back.fault = refuseContainer(403, "AuthorizationPermissionMismatch")
	authenticated := make(chan struct{})
	close(authenticated)
	go func() { _ = s.Run(t.Context(), authenticated) }()
	eventually(t, "a key", func() bool { return s.Ready(t.Context()) == nil })
	if got := log.String(); !strings.Contains(got, `"level":"WARN"`) || !strings.Contains(got, "AuthorizationPermissionMismatch") {
		t.Errorf("the log is %s; want a warning with the code", got)
	}
}
