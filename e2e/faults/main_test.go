// Package faults tests faults of storage, the network, the token issuer and the machine; docs/faults.md is their table.
package faults

import (
	"os"
	"testing"

	"cats.example/e2e/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m, finishTable)) }
