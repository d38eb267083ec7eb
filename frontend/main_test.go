package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"testing"

	"cats.example/shared/apierror"
	"cats.example/shared/config"
	"cats.example/shared/signerapi"
)

// fakeSigner reports settings; its other calls panic.
type fakeSigner struct {
	signerapi.Signer
	shared map[string]string
}

func (s *fakeSigner) About(context.Context) (signerapi.About, error) {
	return signerapi.About{SharedSettings: s.shared}, nil
}

func (*fakeSigner) Ready(context.Context) error { return nil }

func TestReadyNamesDifferingSharedSettings(t *testing.T) {
	var cfg settings
	if err := config.Parse(&cfg, []string{"OIDC_ISSUER=https://id.example", "ACCEPTED_TYPES=image/png,image/jpeg"}); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	s, own := &fakeSigner{}, config.Shared(cfg)
	r := &readiness{signer: s, settings: own, search: func() []string { return nil }, log: slog.New(slog.NewTextHandler(&log, nil))}
	for i, c := range []struct {
		name, value string // of a setting that the signer reports, if any
		lines       int    // in the log
	}{
		{"", "", 0},
		{"MAX_PIXELS", "1", 1},
		{"MAX_PIXELS", "1", 0},
		{"OIDC_ISSUER", "", 1},
		{"OF_THE_SIGNER_ALONE", "x", 1},
		{"", "", 0},
		{"OIDC_ISSUER", "", 1},
	} {
		log.Reset()
		if s.shared = maps.Clone(own); c.name != "" {
			s.shared[c.name] = c.value
		}
		err := r.check(t.Context())
		if c.name == "" && err != nil || c.name != "" && (!errors.Is(err, apierror.ErrMisconfigured) || !strings.Contains(err.Error(), c.name)) {
			t.Errorf("%d, %+v: %v", i, c, err)
		}
		logged := "level=ERROR msg=\"shared setting differs between the containers\" setting=" + c.name + " "
		if strings.Count(log.String(), logged) != c.lines || strings.Count(log.String(), "\n") != c.lines {
			t.Errorf("%d, %+v: logged %s", i, c, &log)
		}
	}
	s.shared = nil
	if err := r.check(t.Context()); err == nil || !strings.Contains(err.Error(), "ACCEPTED_TYPES, ") || strings.Count(log.String(), "\n") < 5 {
		t.Errorf("a signer that does not report its settings: %v; logged %s", err, &log)
	}
}
