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

// signer is one that reports settings; its other calls panic.
type signer struct {
	signerapi.Signer
	shared         map[string]string
	down, notReady error
}

func (s *signer) About(context.Context) (signerapi.About, error) {
	return signerapi.About{SharedSettings: s.shared}, s.down
}

func (s *signer) Ready(context.Context) error { return s.notReady }

func TestReadyNamesSharedSettingsThatDiffer(t *testing.T) {
	var cfg settings
	if err := config.Parse(&cfg, []string{"OIDC_ISSUER=https://id.example", "ACCEPTED_TYPES=image/png,image/jpeg"}); err != nil {
		t.Fatal(err)
	}
	own := config.Shared(cfg)
	var want []string // a new one is compared by its tag alone
	for _, s := range config.Describe(&cfg) {
		if strings.HasSuffix(s.Help, "the same in both containers") {
			want = append(want, s.Name)
		}
	}
	if names := slices.Sorted(maps.Keys(own)); len(names) < 6 || !slices.Equal(names, slices.Sorted(slices.Values(want))) {
		t.Fatalf("compared are %q; the help has %q", names, want)
	}
	var log bytes.Buffer
	s := &signer{shared: maps.Clone(own)}
	a := &agreement{signer: s, own: own, log: slog.New(slog.NewJSONHandler(&log, nil))}
	if err := a.ready(t.Context()); err != nil || log.Len() > 0 {
		t.Fatalf("the same settings: %v; logged: %s", err, &log)
	}
	for _, name := range append(want, "OF_THE_SIGNER_ALONE") {
		for i, value := range []string{"another", "another", "a third"} {
			log.Reset()
			s.shared = maps.Clone(own)
			s.shared[name] = value
			err := a.ready(t.Context())
			if !errors.Is(err, apierror.ErrMisconfigured) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s differs: %v", name, err)
			}
			lines := map[int]int{0: 1, 1: 0, 2: 1}[i] // for each change
			if n := strings.Count(log.String(), `"level":"ERROR"`); n != lines || n > 0 && (!strings.Contains(log.String(), `"setting":"`+name+`"`) || !strings.Contains(log.String(), `"signer":"`+value+`"`)) {
				t.Errorf("%s differs, look %d: logged: %s; want %d lines", name, i, &log, lines)
			}
		}
	}
	log.Reset()
	s.shared = maps.Clone(own)
	delete(s.shared, "OIDC_ISSUER")
	s.shared["MAX_PIXELS"] = "1"
	if err := a.ready(t.Context()); err == nil || !strings.Contains(err.Error(), "MAX_PIXELS, OIDC_ISSUER;") || strings.Count(log.String(), "\n") != 2 {
		t.Errorf("two differ: %v; logged: %s", err, &log)
	}
	s.shared = nil
	if err := a.ready(t.Context()); err == nil || !strings.Contains(err.Error(), "OIDC_ISSUER") {
		t.Errorf("a signer that does not report its settings: %v", err)
	}
	s.shared, s.notReady = own, apierror.ErrIdentityUnavailable
	if err := a.ready(t.Context()); !errors.Is(err, apierror.ErrIdentityUnavailable) {
		t.Errorf("a signer that is not ready: %v", err)
	}
	s.down = apierror.ErrSignerUnavailable
	if err := a.ready(t.Context()); !errors.Is(err, apierror.ErrSignerUnavailable) {
		t.Errorf("a signer that does not answer: %v", err)
	}
}
