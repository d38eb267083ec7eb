package harness

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"cats.example/local/stack"
)

// UploadSession is a direct upload, as the API returns it.
type UploadSession struct {
	ID        string    `json:"id"`
	URL       string    `json:"upload_url"`
	ExpiresAt time.Time `json:"expires_at"`
	BlockSize int64     `json:"block_size"`
}

// NewUploadSession creates an upload session for a picture of size bytes.
func NewUploadSession(t *testing.T, sys *stack.System, user string, size int64) (got UploadSession) {
	t.Helper()
	a := Do(t, "POST", fmt.Sprintf("%s/cat/%s/upload?size=%d", sys.URL, user, size), "", nil).Want(t, 201)
	if err := json.Unmarshal(a.Body, &got); err != nil {
		t.Fatal(err)
	}
	return got
}

// Stage creates an upload session for user and uploads content.
func Stage(t *testing.T, sys *stack.System, user string, content []byte) UploadSession {
	t.Helper()
	k := NewUploadSession(t, sys, user, int64(len(content)))
	k.Send(t, content)
	return k
}

// Send uploads content with one request, or as blocks if the session has a block size.
func (k UploadSession) Send(t *testing.T, content []byte) {
	t.Helper()
	if k.BlockSize != 0 {
		k.SendBlocks(t, content, len(content))
		return
	}
	Send(t, "PUT", k.URL, string(content), "X-Ms-Blob-Type", "BlockBlob").Want(t, 201)
}

// SendBlocks uploads the first n blocks of content, and commits a list of all blocks, the rest of which must be in storage.
func (k UploadSession) SendBlocks(t *testing.T, content []byte, n int) {
	t.Helper()
	list, count := "", 0
	for block := range slices.Chunk(content, int(k.BlockSize)) {
		id := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%08d", count))
		if count++; count <= n {
			Send(t, "PUT", k.URL+"&comp=block&blockid="+url.QueryEscape(id), string(block)).Want(t, 201)
		}
		list += "<Latest>" + id + "</Latest>"
	}
	Send(t, "PUT", k.URL+"&comp=blocklist", "<BlockList>"+list+"</BlockList>").Want(t, 201)
}

// BlobName returns the name of the staged blob.
func (k UploadSession) BlobName(t *testing.T, sys *stack.System) string {
	t.Helper()
	u, err := url.Parse(k.URL)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(u.Path, "/"+sys.Container+"/")
}

// Commit makes the staged blob the picture of user.
func (k UploadSession) Commit(t *testing.T, sys *stack.System, user, query string) Response {
	t.Helper()
	return Do(t, "POST", sys.URL+"/cat/"+user+"/upload/"+k.ID+"/commit"+query, "", nil)
}
