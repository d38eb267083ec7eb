package blobstore

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

func TestAScratchBlobIsNobodysPicture(t *testing.T) {
	s, back, _ := withKey(t, nil)
	one, other := s.NewScratch(), s.NewScratch()
	if one.Name() == other.Name() || !strings.HasPrefix(one.Name(), ScratchPrefix) || strings.Contains(one.Name(), "/") {
		t.Errorf("the names are %q and %q", one.Name(), other.Name())
	}
	if err := one.Put(t.Context()); err != nil || back.blobs["/cats/"+one.Name()] != one.Name() {
		t.Errorf("%v; storage has %v", err, back.blobs)
	}
	if err := one.Read(t.Context(), s.opts.AccountURL); err != nil {
		t.Errorf("reading it: %v", err)
	}
	if err := one.Read(t.Context(), "https://cdn.invalid"); err == nil || !strings.Contains(err.Error(), "no answer from cdn.invalid") {
		t.Errorf("reading it elsewhere: %v", err)
	}
	for range 2 { // that it is gone already is no error
		if err := one.Delete(t.Context()); err != nil || len(back.blobs) > 0 {
			t.Errorf("%v; storage has %v", err, back.blobs)
		}
	}
}

func TestFetchKeyMakesTheStoreReady(t *testing.T) {
	s, back, _ := newStore(t, nil)
	if end, err := s.FetchKey(t.Context()); err != nil || s.Ready(t.Context()) != nil || !end.After(s.now()) {
		t.Errorf("%v until %v", err, end)
	}
	back.fault = func(w http.ResponseWriter, _ *http.Request) bool {
		refuse(w, 403, "AuthorizationPermissionMismatch")
		return true
	}
	_, err := s.FetchKey(t.Context())
	if r, ok := errors.AsType[*Refusal](err); !ok || r.Status != 403 || !strings.Contains(r.Fix, "Storage Blob Delegator") {
		t.Errorf("refused: %v", err)
	}
}

func TestReadyNamesAMissingTokenOnlyWithoutAKey(t *testing.T) {
	s, _, credential := newStore(t, nil)
	credential.err = errors.New("AADSTS700213")
	if err := s.Ready(t.Context()); !errors.Is(err, credential.err) {
		t.Errorf("with neither: %v", err)
	}
	s, _, credential = withKey(t, nil)
	credential.err = errors.New("AADSTS700213")
	if err := s.Ready(t.Context()); err != nil {
		t.Errorf("with a key: %v", err)
	}
}

func TestClockAheadNeedsNoToken(t *testing.T) {
	s, back, credential := newStore(t, nil)
	credential.err = errors.New("no token")
	back.fault = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Date", s.now().Add(-time.Hour).UTC().Format(http.TimeFormat))
		refuse(w, 403, "AuthorizationFailure")
		return true
	}
	if ahead, err := s.ClockAhead(t.Context()); err != nil || ahead.Round(time.Minute) != time.Hour {
		t.Errorf("%v, %v; want an hour", ahead, err)
	}
}

// The role is the wrong thing to look at when the network rules refuse.
func TestARefusalByTheNetworkRulesIsNoMissingRole(t *testing.T) {
	s, back, _ := withKey(t, nil)
	back.fault = func(w http.ResponseWriter, _ *http.Request) bool {
		refuse(w, 403, "AuthorizationFailure")
		return true
	}
	_, key := s.FetchKey(t.Context())
	for _, err := range []error{key, s.Delete(t.Context(), user(t, "x"), signerapi.Preconditions{})} {
		if err == nil || !strings.Contains(err.Error(), "; fix: the account's network rules") || strings.Contains(err.Error(), "role") {
			t.Errorf("got %v", err)
		}
	}
	if err := s.Delete(t.Context(), user(t, "x"), signerapi.Preconditions{}); !errors.Is(err, apierror.ErrIdentityUnavailable) {
		t.Errorf("got %v", err)
	}
}
