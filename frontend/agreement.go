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

// agreement compares the frontend's shared settings with the values that the signer reports. It is safe for concurrent use.
type agreement struct {
	signer signerapi.Signer
	own    map[string]string // values by name
	log    *slog.Logger

	mu     sync.Mutex
	logged map[string]string // settings that differ, with the signer's values, or with the frontend's if the signer has none
}

// ready returns nil if the signer is ready and has the same shared settings. The error names the settings that differ. ready
// logs all of them whenever the set of differing settings or one of the signer's values changes.
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

func (a *agreement) compare(signer map[string]string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	differing := maps.Clone(a.own)
	maps.Copy(differing, signer)
	maps.DeleteFunc(differing, func(name, _ string) bool { return a.own[name] == signer[name] })
	names := slices.Sorted(maps.Keys(differing))
	if !maps.Equal(differing, a.logged) {
		for _, name := range names {
			a.log.Error("shared setting differs between the containers", "setting", name, "frontend", a.own[name], "signer", signer[name])
		}
	}
	a.logged = differing
	if len(names) > 0 {
		return fmt.Errorf("shared settings of the containers differ: %s; the log has the values", strings.Join(names, ", "))
	}
	return nil
}
