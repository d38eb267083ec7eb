// Package direct tests direct uploads to storage.
package direct

import (
	"bytes"
	"os"
	"testing"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// stage creates an upload session for user and uploads content.
func stage(t *testing.T, sys *stack.System, user string, content []byte) harness.UploadSession {
	t.Helper()
	k := harness.NewUploadSession(t, sys, user, int64(len(content)))
	k.Send(t, bytes.NewReader(content), int64(len(content)))
	return k
}

// commit commits the upload k with headers, names and values in turn.
func commit(t *testing.T, sys *stack.System, user string, k harness.UploadSession, query string, header ...string) harness.Response {
	t.Helper()
	return harness.Send(t, "POST", sys.URL+"/cat/"+user+"/upload/"+k.ID+"/commit"+query, "", header...)
}

// another returns a picture that more distinguishes from others.
func another(more string) []byte { return append(bytes.Clone(harness.Cat), more...) }
