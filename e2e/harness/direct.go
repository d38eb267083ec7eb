package harness

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
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
	k.Send(t, bytes.NewReader(content), int64(len(content)))
	return k
}

// Send uploads content with one request, or as blocks if the session has a block size.
func (k UploadSession) Send(t *testing.T, content io.Reader, size int64) {
	t.Helper()
	if k.BlockSize == 0 {
		SendStream(t, "PUT", k.URL, content, size, "X-Ms-Blob-Type", "BlockBlob").Want(t, 201)
		return
	}
	k.SendBlocks(t, content, size, size)
}

// SendBlocks uploads the first bytes of content as blocks, and commits a list of all blocks of size, the rest of which
// must be in storage.
func (k UploadSession) SendBlocks(t *testing.T, content io.Reader, first, size int64) {
	t.Helper()
	list := ""
	for sent := int64(0); sent < size; sent += k.BlockSize {
		id := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%08d", sent/k.BlockSize))
		if n := min(k.BlockSize, size-sent); sent < first {
			SendStream(t, "PUT", k.URL+"&comp=block&blockid="+url.QueryEscape(id), io.LimitReader(content, n), n).Want(t, 201)
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
