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
	var shared []string // by the help text
	for _, s := range config.Describe(&cfg) {
		if strings.HasSuffix(s.Help, "must be equal in both containers") {
			shared = append(shared, s.Name)
		}
	}
	own := config.Shared(cfg)
	if len(shared) < 6 || !slices.Equal(slices.Sorted(maps.Keys(own)), slices.Sorted(slices.Values(shared))) {
		t.Fatalf("compared are %v; the help text has %q", own, shared)
	}
	var log bytes.Buffer
	s := &fakeSigner{}
	a := &agreement{signer: s, own: own, log: slog.New(slog.NewTextHandler(&log, nil))}
	ready := func(change map[string]string, aboutErr, readyErr error) error {
		log.Reset()
		s.shared, s.aboutErr, s.readyErr = maps.Clone(own), aboutErr, readyErr
		maps.Copy(s.shared, change)
		return a.ready(t.Context())
	}
	if err := ready(nil, nil, nil); err != nil || log.Len() > 0 {
		t.Fatalf("the same settings: %v; logged: %s", err, &log)
	}
	for _, name := range append(shared, "OF_THE_SIGNER_ALONE") {
		for i, value := range []string{"another", "another", "third"} {
			err := ready(map[string]string{name: value}, nil, nil)
			logged := strings.Contains(log.String(), "level=ERROR") && strings.Contains(log.String(), "setting="+name) && strings.Contains(log.String(), "signer="+value)
			if changed := i != 1; !errors.Is(err, apierror.ErrMisconfigured) || !strings.Contains(err.Error(), name) || changed != logged || strings.Count(log.String(), "\n") > 1 {
				t.Errorf("%s is %s: %v; logged: %s", name, value, err, &log)
			}
		}
	}
	if err := ready(map[string]string{"MAX_PIXELS": "1", "OIDC_ISSUER": ""}, nil, nil); err == nil || !strings.Contains(err.Error(), "MAX_PIXELS, OIDC_ISSUER;") || strings.Count(log.String(), "\n") != 2 {
		t.Errorf("two differ: %v; logged: %s", err, &log)
	}
	if err := ready(nil, nil, apierror.ErrIdentityUnavailable); !errors.Is(err, apierror.ErrIdentityUnavailable) {
		t.Errorf("a signer that is not ready: %v", err)
	}
	if err := ready(nil, apierror.ErrSignerUnavailable, nil); !errors.Is(err, apierror.ErrSignerUnavailable) {
		t.Errorf("a signer that does not answer: %v", err)
	}
	s.shared, s.aboutErr = nil, nil
	if err := a.ready(t.Context()); err == nil || !strings.Contains(err.Error(), "OIDC_ISSUER") {
		t.Errorf("a signer that does not report its settings: %v", err)
	}
}
