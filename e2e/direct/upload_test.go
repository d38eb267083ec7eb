package direct

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// A picture of more than 64 MiB is uploaded as blocks, whose MD5 storage does not know before it copies them. The upload URL of blocks
// can be used several times, so the client may upload another version at any time.
func TestLargeUploadIsCopiedByStorage(t *testing.T) {
	t.Parallel()
	const size = 65 << 20
	content, storage := harness.Picture(size, 'l'), harness.NewStorageProxy(t)
	sys := harness.StartDirect(t, stack.SystemOptions{StorageURL: storage.URL})
	harness.Put(t, sys, "mia", harness.Cat)
	load := func() (bytes, memory float64) {
		for name, ops := range map[string]string{"frontend": sys.FrontendOps, "signer": sys.SignerOps} {
			bytes += harness.Sum(t, ops, "cats_"+name+"_http_request_body_bytes_total")
			memory += harness.Sum(t, ops, "process_resident_memory_bytes")
		}
		return bytes, memory
	}
	bytesBefore, memoryBefore := load()
	k := harness.NewUploadSession(t, sys, "mia", size)
	k.Send(t, content)
	// before uploads the first block and the block list again, once, before storage carries out a request that is selected.
	before := func(user string, selected func(*http.Request) bool) {
		var once sync.Once
		storage.Set(user, func(w http.ResponseWriter, r *http.Request, healthy http.Handler) {
			if selected(r) {
				once.Do(func() { k.SendBlocks(t, content, 1) })
			}
			healthy.ServeHTTP(w, r)
		})
	}
	commit(t, sys, "mia", k, harness.MD5(nil)).WantProblem(t, 400, "digest_mismatch")
	before("mia", isCopy)
	k.Commit(t, sys, "mia", "").WantProblem(t, 409, "conflict")
	storage.Set("mia", nil)
	harness.WantPicture(t, sys, "mia", harness.Cat)
	before("", func(r *http.Request) bool { return r.Method == http.MethodDelete })
	a := k.Commit(t, sys, "mia", "").Want(t, 200)
	storage.Set("", nil)
	if names := harness.BlobNames(t, sys); len(names) != 2 || a.Field(t, "size") != float64(size) {
		t.Errorf("stored are %q; want the later version, too; the response is %s", names, a.Body)
	}
	k.Commit(t, sys, "mia", "").Want(t, 200)
	if names := harness.BlobNames(t, sys); len(names) != 1 {
		t.Errorf("stored are %q; want the picture alone", names)
	}
	bytesAfter, memoryAfter := load()
	if added := bytesAfter - bytesBefore; added > float64(len(harness.Cat)) || memoryAfter > memoryBefore+20<<20 {
		t.Errorf("the containers read %.0f bytes and have %.1f MiB of memory, before %.1f", added, memoryAfter/(1<<20), memoryBefore/(1<<20))
	}
	harness.WantPicture(t, sys, "mia", content)
}

func TestUploadURLAllowsOneUploadOnly(t *testing.T) {
	t.Parallel()
	sys, mia, tom := harness.Shared(t), harness.User(t), harness.User(t)
	harness.Put(t, sys, mia, harness.Cat)
	size := int64(len(harness.Cat))
	whole, blocks := harness.Stage(t, sys, mia, harness.Cat), harness.NewUploadSession(t, sys, mia, 65<<20)
	other := harness.NewUploadSession(t, sys, tom, size)
	harness.Send(t, "PUT", blocks.URL+"&comp=block&blockid=MDAwMDAwMDA%3D", string(harness.Cat)).Want(t, 201)
	to := func(k harness.UploadSession, blob string) string {
		return strings.Replace(k.URL, k.BlobName(t, sys), blob, 1)
	}
	for _, row := range harness.Table(t, "upload-urls.txt", "{whole}", whole.URL, "{blocks}", blocks.URL,
		"{whole to the picture}", to(whole, mia+"/cat"), "{blocks to another blob}", to(blocks, other.BlobName(t, sys)),
		"{blocks to the container}", strings.Replace(blocks.URL, "/"+blocks.BlobName(t, sys)+"?", "?restype=container&comp=list&", 1)) {
		if a := harness.Send(t, row[0], row[1], "x", "X-Ms-Blob-Type", "BlockBlob"); a.StatusCode != 403 {
			t.Errorf("%q: %d; want 403", row, a.StatusCode)
		}
	}
	// The name of the staged blob depends on user and size.
	whole.Commit(t, sys, tom, "").WantProblem(t, 404, "no_such_upload")
	forged := whole
	forged.ID = strings.Replace(whole.ID, fmt.Sprintf("-%d-", size), fmt.Sprintf("-%d-", size+1), 1)
	forged.Commit(t, sys, mia, "").WantProblem(t, 404, "no_such_upload")
	blocks.Commit(t, sys, mia, "").WantProblem(t, 404, "no_such_upload") // without a block list
	harness.WantPicture(t, sys, mia, harness.Cat)
}

// The signer deletes expired uploads at its start, and every ten minutes.
func TestExpiredUploadsAreDeleted(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{})
	for _, user := range []string{"cats-api", "cats-api-upload-1-x", "mia"} {
		harness.Put(t, sys, user, harness.Cat)
	}
	name := func(end time.Duration, id string) string {
		return fmt.Sprintf("cats-api/upload/%d-%s", time.Now().Add(end).Unix(), strings.Repeat(id, 32))
	}
	const foreign = "cats-api/upload/10000000000-x" // listed before the others
	ctx, leased, fresh := t.Context(), name(-3*time.Hour, "b"), name(time.Hour, "a")
	for _, blob := range []string{name(-3*time.Hour, "a"), leased, fresh, foreign} {
		if err := sys.Storage.Put(ctx, sys.Container, blob, "image/png", harness.Cat); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := sys.Storage.Lease(ctx, sys.Container, leased); err != nil {
		t.Fatal(err)
	}
	uncommitted := sys.Storage.Client.ServiceClient().NewContainerClient(sys.Container).NewBlockBlobClient(name(-3*time.Hour, "c"))
	if _, err := uncommitted.StageBlock(ctx, "MDAwMDAwMDA=", streaming.NopCloser(bytes.NewReader(harness.Cat)), nil); err != nil {
		t.Fatal(err)
	}
	sys.Signer.Kill()
	harness.Restart(t, sys.Signer)
	harness.Eventually(t, func() error {
		want := []string{"cats-api-upload-1-x/cat", "cats-api/cat", foreign, fresh, "mia/cat"}
		deleted := harness.Sum(t, sys.SignerOps, "cats_signer_staged_blobs_deleted_total")
		if diff := cmp.Diff(want, harness.BlobNames(t, sys)); diff != "" || deleted != 3 {
			return fmt.Errorf("%v blobs were deleted; left are: %s", deleted, diff)
		}
		return nil
	})
}
