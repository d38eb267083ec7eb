package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"cats.example/shared/signerapi"
)

// agreement compares the frontend's shared settings with the values that the signer reports.
type agreement struct {
	signer signerapi.Signer
	own    map[string]string // by name
	log    *slog.Logger

	mu     sync.Mutex
	logged map[string]string // the signer's values of the settings that differ
	// unreported says that the missing report of the signer is logged.
	unreported bool
}

// ready returns nil when the signer is ready and has the same shared settings. The error
// names the settings that differ. ready logs a setting when it starts to differ, and when
// the signer's value changes.
func (a *agreement) ready(ctx context.Context) error {
	about, err := a.signer.About(ctx)
	if err != nil {
		return err
	}
	if err := a.compare(about.Shared); err != nil {
		return signerapi.ErrMisconfigured.Wrap(err)
	}
	return a.signer.Ready(ctx)
}

func (a *agreement) compare(signers map[string]string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if signers == nil {
		if !a.unreported {
			a.log.Error("the signer does not report its settings", "fix", "deploy both containers from one release")
		}
		a.unreported = true
		return errors.New("the signer does not report its settings: both containers must be of one release")
	}
	a.unreported = false
	differing := map[string]string{}
	for _, side := range []map[string]string{a.own, signers} {
		for name := range side {
			own, here := a.own[name]
			if theirs, there := signers[name]; own != theirs || here != there {
				differing[name] = theirs
			}
		}
	}
	names := slices.Sorted(maps.Keys(differing))
	for _, name := range names {
		if before, ok := a.logged[name]; !ok || before != differing[name] {
			a.log.Error("shared setting differs between the containers", "setting", name, "frontend", a.own[name], "signer", differing[name])
		}
	}
	a.logged = differing
	if len(names) > 0 {
		return fmt.Errorf("settings that must be the same in both containers differ: %s; the log has the values", strings.Join(names, ", "))
	}
	return nil
}
