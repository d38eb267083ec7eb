package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"cats.example/shared/apierror"
	"cats.example/shared/config"
	"cats.example/shared/signerapi"
)

// fakeSigner reports settings; its other calls panic.
type fakeSigner struct {
	signerapi.Signer
	shared             map[string]string
	aboutErr, readyErr error
}

func (s *fakeSigner) About(context.Context) (signerapi.About, error) {
	return signerapi.About{SharedSettings: s.shared}, s.aboutErr
}

func (s *fakeSigner) Ready(context.Context) error { return s.readyErr }

func TestReadyNamesDifferingSharedSettings(t *testing.T) {
	var cfg settings
	if err := config.Parse(&cfg, []string{"OIDC_ISSUER=https://id.example", "ACCEPTED_TYPES=image/png,image/jpeg"}); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	s, own := &fakeSigner{}, config.Shared(cfg)
	r := &readiness{signer: s, settings: own, search: func() []string { return nil }, log: slog.New(slog.NewTextHandler(&log, nil))}
	ready := func(change map[string]string, aboutErr, readyErr error) error {
		log.Reset()
		s.shared, s.aboutErr, s.readyErr = maps.Clone(own), aboutErr, readyErr
		maps.Copy(s.shared, change)
		return r.check(t.Context())
	}
	if err := ready(nil, nil, nil); err != nil || log.Len() > 0 {
		t.Fatalf("the same settings: %v; logged: %s", err, &log)
	}
	for _, name := range append(slices.Sorted(maps.Keys(own)), "OF_THE_SIGNER_ALONE") {
		for i, value := range []string{"another", "another", "third"} {
			err := ready(map[string]string{name: value}, nil, nil)
			if !errors.Is(err, apierror.ErrMisconfigured) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s is %s: %v", name, value, err)
			}
			lines := strings.Count(log.String(), "level=ERROR")
			logged := strings.Contains(log.String(), "setting="+name) && strings.Contains(log.String(), "signer="+value)
			if changed := i != 1; changed != logged || changed != (lines == 1) {
				t.Errorf("%s is %s: logged: %s", name, value, &log)
			}
		}
	}
	err := ready(map[string]string{"MAX_PIXELS": "1", "OIDC_ISSUER": ""}, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "MAX_PIXELS, OIDC_ISSUER;") || strings.Count(log.String(), "\n") != 2 {
		t.Errorf("two differ: %v; logged: %s", err, &log)
	}
	if err := ready(nil, nil, apierror.ErrIdentityUnavailable); !errors.Is(err, apierror.ErrIdentityUnavailable) {
		t.Errorf("a signer that is not ready: %v", err)
	}
	if err := ready(nil, apierror.ErrSignerUnavailable, nil); !errors.Is(err, apierror.ErrSignerUnavailable) {
		t.Errorf("a signer that does not answer: %v", err)
	}
	s.shared, s.aboutErr = nil, nil
	if err := r.check(t.Context()); err == nil || !strings.Contains(err.Error(), "OIDC_ISSUER") {
		t.Errorf("a signer that does not report its settings: %v", err)
	}
}

func TestReadyFailsWhileATokenEndpointAnswers(t *testing.T) {
	var log bytes.Buffer
	var found []string
	searches := 0
	r := &readiness{signer: &fakeSigner{}, log: slog.New(slog.NewTextHandler(&log, nil)), search: func() []string {
		searches++
		return found
	}}
	for i, c := range []struct {
		found string
		lines int
	}{
		{"", 0},
		{"127.0.0.1:8000", 1},
		{"127.0.0.1:8000", 0},
		{"127.0.0.1:8000 127.0.0.1:9000", 1},
		{"", 0},
		{"127.0.0.1:8000", 1},
	} {
		log.Reset()
		found, r.next = strings.Fields(c.found), time.Time{}
		for range 3 { // one search in searchInterval
			if err := r.check(t.Context()); (err != nil) != (c.found != "") || err != nil && !strings.Contains(err.Error(), found[0]) {
				t.Errorf("%d: found %q: %v", i, c.found, err)
			}
		}
		if lines := strings.Count(log.String(), "inject-proxy-sidecar"); lines != c.lines {
			t.Errorf("%d: found %q: logged %s", i, c.found, &log)
		}
	}
	if searches != 6 {
		t.Errorf("%d searches; want 6", searches)
	}
}

func TestRunReportsCredentialsFirstAndAllInvalidSettings(t *testing.T) {
	for environ, want := range map[string]string{
		"AZURE_FEDERATED_TOKEN_FILE=x MAX_PICTURE_SIZE=nonsense":                                              "AZURE_FEDERATED_TOKEN_FILE",
		"MAX_PICTURE_SIZE=0 STALL_TIMEOUT=0s OIDC_ISSUER=login READ_ACCESS=all SIGNER_URL=http://elsewhere:1": "MAX_PICTURE_SIZE STALL_TIMEOUT OIDC_ISSUER READ_ACCESS http://HOST:PORT",
	} {
		var log strings.Builder
		err := run(t.Context(), strings.Fields(environ), &log)
		for part := range strings.FieldsSeq(want) {
			if err == nil || !strings.Contains(err.Error(), part) || log.Len() > 0 {
				t.Errorf("%s: %v; want %s; logged %s", environ, err, part, &log)
			}
		}
	}
}
