// Package api tests the HTTP API: pictures, forms, preconditions, signed URLs, openapi.json.
package api

import (
	"bytes"
	"os"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// sizes are of pictures that the signer stores with one request and with several.
var sizes = []int{5000, harness.OneBlob + 5000}

// sendAll uploads content as the picture of user in each way and returns the responses.
func sendAll(t *testing.T, sys *stack.System, user string, content []byte) map[string]harness.Response {
	t.Helper()
	url := sys.URL + "/cat/" + user
	contentType, body := harness.Form(t, content)
	all := map[string]harness.Response{
		"PUT":         harness.Do(t, "PUT", url, "text/html", content),
		"chunked PUT": harness.SendStream(t, "PUT", url, bytes.NewReader(content), -1, "Content-Type", "text/html"),
		"POST":        harness.Do(t, "POST", url, contentType, body),
	}
	if harness.Elsewhere == nil { // which may not accept direct uploads
		all["direct upload"] = harness.Stage(t, sys, user, content).Commit(t, sys, user, "")
	}
	return all
}
