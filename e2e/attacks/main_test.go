// Package attacks tests hostile clients, a compromised frontend, and the limits that protect against both.
package attacks

import (
	"os"
	"testing"

	"cats.example/e2e/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
