package cats

import (
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestCatsTellsThatThePictureIsLeased(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	harness.Put(t, sys, "mia", harness.Cat)
	if _, err := sys.Storage.Lease(t.Context(), sys.Container, "mia/cat"); err != nil {
		t.Fatal(err)
	}
	shell := newShell(t, sys.URL)
	shell.write("cat.png", harness.Cat)
	shell.cats("put", "mia", "cat.png").want(t, 1, "the stored picture is leased") // 6 would mean that another client was faster
	shell.cats("rm", "mia").want(t, 1, "the stored picture is leased")
}
