package cats

import (
	"net/http"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestCatsTellsThatThePictureIsLeased(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	harness.Put(t, sys, "mia", harness.Cat)
	lease := http.Header{"X-Ms-Lease-Action": {"acquire"}, "X-Ms-Lease-Duration": {"-1"}}
	resp, err := sys.Storage.Do(t.Context(), "PUT", "/"+sys.Container+"/mia/cat?comp=lease", lease, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	shell := newShell(t, sys.URL)
	shell.write("cat.png", harness.Cat)
	shell.cats("put", "mia", "cat.png").want(t, 1, "the stored picture is leased") // 6 would mean that another client was faster
	shell.cats("rm", "mia").want(t, 1, "the stored picture is leased")
}
