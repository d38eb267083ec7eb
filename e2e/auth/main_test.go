// Package auth tests the authentication of callers, and the identity of the signer.
package auth

import (
	"os"
	"testing"

	"cats.example/e2e/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
