// Package local tests the local stack of make run, and the account that it serves.
package local

import (
	"os"
	"testing"

	"cats.example/e2e/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
