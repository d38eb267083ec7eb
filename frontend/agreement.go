package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"cats.example/shared/apierror"
	"cats.example/shared/signerapi"
)

// agreement compares the frontend's shared settings with the values that the signer reports.
type agreement struct {
	signer signerapi.Signer
	own    map[string]string // by name
	log    *slog.Logger

	mu     sync.Mutex
	logged map[string]string // the settings that differ, with the signer's values where it has them
}

// ready returns nil when the signer is ready and has the same shared settings. The error
// names the settings that differ. ready logs all of them when one starts or ceases to differ, and when a value of the
// signer changes.
func (a *agreement) ready(ctx context.Context) error {
	about, err := a.signer.About(ctx)
	if err != nil {
		return err
	}
	if err := a.compare(about.SharedSettings); err != nil {
		return apierror.ErrMisconfigured.Wrap(err)
	}
	return a.signer.Ready(ctx)
}

func (a *agreement) compare(signers map[string]string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	differing := maps.Clone(a.own)
	maps.Copy(differing, signers)
	maps.DeleteFunc(differing, func(name, _ string) bool { return a.own[name] == signers[name] })
	names := slices.Sorted(maps.Keys(differing))
	if !maps.Equal(differing, a.logged) {
		for _, name := range names {
			a.log.Error("shared setting differs between the containers", "setting", name, "frontend", a.own[name], "signer", signers[name])
		}
	}
	a.logged = differing
	if len(names) > 0 {
		return fmt.Errorf("settings that must be the same in both containers differ: %s; the log has the values", strings.Join(names, ", "))
	}
	return nil
}
