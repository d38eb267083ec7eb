// Package repo tests the repository: images, workflows, dependencies, documents.
package repo

import (
	"os"
	"testing"

	"cats.example/e2e/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
