// Package api tests the HTTP API: pictures, forms, preconditions, signed URLs, openapi.json.
package api

import (
	"os"
	"testing"

	"cats.example/e2e/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
