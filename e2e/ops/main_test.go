// Package ops tests logs, metrics, traces, settings, the start of the programs, and the doctor.
package ops

import (
	"os"
	"testing"

	"cats.example/e2e/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
