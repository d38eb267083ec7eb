// Package soak tests random load with faults: no picture is lost, and no resource grows. make soak runs it for longer.
package soak

import (
	"os"
	"testing"

	"cats.example/e2e/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
