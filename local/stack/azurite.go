package stack

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"time"
)

const azuriteTimeout = 2 * time.Minute // for Azurite to answer after its start

// startStorage starts Azurite, and the listener that serves it in plain HTTP.
func (s *Stack) startStorage(ctx context.Context) error {
	azurite, err := s.azurite()
	if err != nil {
		return err
	}
	s.onClose(func(ctx context.Context) error { return errors.Join(azurite.Stop(ctx), azurite.Log.close()) })
	ctx, cancel := context.WithTimeoutCause(ctx, azuriteTimeout, fmt.Errorf("no answer after %v", azuriteTimeout))
	defer cancel()
	if err := azurite.Start(ctx); err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(azurite.Address("blob"))
	if err != nil {
		return fmt.Errorf("reading Azurite's address: %w", err)
	}
	if s.Storage, err = NewStorage("https://"+net.JoinHostPort(accountHost, port), s.CA, s.admin.AccessToken); err != nil {
		return err
	}
	s.Storage.Process = azurite
	if err := poll(ctx, func() error {
		_, err := s.Storage.Containers(ctx)
		return err
	}); err != nil {
		return fmt.Errorf("waiting for Azurite: %w%s", err, azurite.Log.tail(10))
	}
	if err := s.Storage.AllowPages(ctx); err != nil {
		return err
	}
	front, err := s.Storage.Front()
	if err != nil {
		return err
	}
	l, err := listen(ctx, s.opts.FrontPort)
	if err != nil {
		return err
	}
	s.FrontURL = "http://" + l.Addr().String()
	s.onClose(serve(l, front))
	return nil
}

var azuriteListens = regexp.MustCompile(`successfully listens on https://(127\.0\.0\.1:\d+)`)

// azurite returns the process of Azurite. It does not start it.
func (s *Stack) azurite() (*Process, error) {
	dir := filepath.Join(s.opts.Dir, "azurite")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil { // Azurite needs an empty folder
		return nil, fmt.Errorf("creating Azurite's folder: %w", err)
	}
	nodeOptions, err := s.clock()
	if err != nil {
		return nil, err
	}
	script := filepath.Join(s.opts.Dir, "azurite.js")
	if err := WriteAzuriteScript(script); err != nil {
		return nil, err
	}
	log, err := newLog("azurite", filepath.Join(s.opts.Dir, "logs", "azurite.log"), nil)
	if err != nil {
		return nil, err
	}
	return &Process{
		Log:  log,
		name: "azurite",
		path: "node",
		args: []string{
			"--require", script, filepath.Join(s.opts.Root, "local", "node_modules", "azurite", "dist", "src", "blob", "main.js"),
			"--blobHost", "127.0.0.1", "--blobPort", "0",
			"--cert", s.CA.File, "--key", s.CA.KeyFile,
			"--oauth", "basic", "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent",
		},
		dir:       dir,
		env:       map[string]string{"PATH": os.Getenv("PATH"), "HOME": dir, "NODE_OPTIONS": nodeOptions, "AZURITE_ACCOUNTS": NewAzuriteAccount()},
		addresses: map[string]string{},
		listeners: map[string]string{"blob": ""},
		listening: listeningMatch("blob", azuriteListens),
	}, nil
}

// NewAzuriteAccount returns a value for AZURITE_ACCOUNTS: the account's name and a new random key.
func NewAzuriteAccount() string {
	var key [64]byte
	_, _ = rand.Read(key[:]) // never fails
	return Account + ":" + base64.StdEncoding.EncodeToString(key[:])
}

// azuriteScript changes three parts of Azurite:
//   - The constant from which it derives each user delegation key. A client that knows the constant could sign URLs.
//   - The method that deletes the content of a replaced blob. Azurite calls it every ten minutes for all of them and answers no request
//     meanwhile. The original sorts all content by ID in each call, which takes a minute for 6000 blobs.
//   - The time after which it closes an idle connection, 5 s; its own option for that has no effect. Node.js also closes a connection
//     5 s after a response if a later request on it is still in progress. 120 s is longer than the signer keeps idle connections.
const azuriteScript = `'use strict'
const { dirname, join } = require('path')
const blob = dirname(require('fs').realpathSync(process.argv[1]))
require(join(blob, 'utils', 'constants.js')).USERDELEGATIONKEY_SIGNING_SEED = process.env.AZURITE_ACCOUNTS
const extents = require(join(blob, '..', 'common', 'persistence', 'LokiExtentMetadataStore.js')).default.prototype
if (!extents.deleteExtent) throw new Error('this version of Azurite deletes content in another way: adapt this script')
extents.deleteExtent = async function (id) {
  const all = this.db.getCollection(this.EXTENTS_COLLECTION)
  const one = all.findOne({ id })
  if (one) all.remove(one)
}
Object.defineProperty(require('node:https').Server.prototype, 'keepAliveTimeout', { get: () => 120_000, set: () => {} })
`

// WriteAzuriteScript writes a script that Node.js must load before Azurite (node --require). User delegation keys then depend on the
// account key in AZURITE_ACCOUNTS.
func WriteAzuriteScript(path string) error {
	if err := os.WriteFile(path, []byte(azuriteScript), 0o600); err != nil {
		return fmt.Errorf("writing the script for Azurite: %w", err)
	}
	return nil
}
