// Package direct tests direct uploads to storage.
package direct

import (
	"os"
	"testing"

	"cats.example/e2e/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
