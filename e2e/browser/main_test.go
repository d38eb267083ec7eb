// Package browser tests the pages, with Chromium.
package browser

import (
	"os"
	"testing"

	"cats.example/e2e/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m, endBrowser)) }
