package direct

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob"
	"github.com/docker/go-units"
	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

func TestAPictureGoesStraightToStorage(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{})
	harness.Put(t, sys, "mia", append(bytes.Clone(harness.Cat), "the old one"...))
	before := harness.Sum(t, sys.SignerOps, "cats_signer_http_request_body_bytes_total")
	k := harness.NewUploadSession(t, sys, "mia", int64(len(harness.Cat)))
	if left := time.Until(k.ExpiresAt); left > time.Hour || left < 59*time.Minute || k.BlockSize != 0 {
		t.Errorf("the ticket is for %v, in blocks of %d", left, k.BlockSize)
	}
	k.Commit(t, sys, "mia", "").WantProblem(t, 404, "no_such_upload") // nothing is there
	k.Send(t, bytes.NewReader(harness.Cat), int64(len(harness.Cat)))
	if got := harness.Served(t, sys, "mia"); bytes.Equal(got, harness.Cat) {
		t.Error("the picture was replaced before it was committed")
	}
	a := k.Commit(t, sys, "mia", "?content_md5="+url.QueryEscape(harness.MD5(harness.Cat))).Want(t, 200)
	if a.Field(t, "content_type") != "image/png" || a.Field(t, "size") != float64(len(harness.Cat)) || a.Field(t, "content_md5") != harness.MD5(harness.Cat) {
		t.Errorf("the answer is %s", a.Body)
	}
	if got := harness.Do(t, "GET", sys.URL+"/cat/mia", "", nil).Want(t, 200); got.Field(t, "etag") != a.Field(t, "etag") || got.Field(t, "content_md5") != harness.MD5(harness.Cat) {
		t.Errorf("the picture is %s, the commit was told %s", got.Body, a.Body)
	}
	if !bytes.Equal(harness.Served(t, sys, "mia"), harness.Cat) {
		t.Error("another picture is there")
	}
	if again := k.Commit(t, sys, "mia", "").Want(t, 200); again.Field(t, "etag") != a.Field(t, "etag") {
		t.Errorf("asked again: %s; the first time %s", again.Body, a.Body)
	}
	if diff := cmp.Diff([]string{"mia/cat"}, harness.BlobNames(t, sys)); diff != "" {
		t.Error(diff)
	}
	if after := harness.Sum(t, sys.SignerOps, "cats_signer_http_request_body_bytes_total"); after != before {
		t.Errorf("%v bytes of it went through the signer", after-before)
	}
}

// 130 MiB, which storage copies in three blocks, or what CATS_DIRECT_SIZE says, such as 2GiB.
func TestALargePictureMovesNothingInThePods(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{})
	harness.Put(t, sys, "mia", harness.Cat)
	size := int64(130 << 20)
	if s := os.Getenv("CATS_DIRECT_SIZE"); s != "" {
		n, err := units.RAMInBytes(s)
		if err != nil {
			t.Fatal(err)
		}
		size = n
	}
	held := func() (bytes, memory float64) {
		for name, ops := range map[string]string{"frontend": sys.FrontendOps, "signer": sys.SignerOps} {
			bytes += harness.Sum(t, ops, "cats_"+name+"_http_request_body_bytes_total")
			memory += harness.Sum(t, ops, "process_resident_memory_bytes")
		}
		return bytes, memory
	}
	bytesBefore, memoryBefore := held()
	began := time.Now()
	k := harness.NewUploadSession(t, sys, "mia", size)
	if k.BlockSize == 0 {
		t.Fatal("a large picture is to be sent in one piece")
	}
	k.Send(t, harness.Large(size), size)
	sent := time.Now()
	a := k.Commit(t, sys, "mia", "").Want(t, 200)
	bytesAfter, memoryAfter := held()
	t.Logf("%s sent in %v, committed in %v; bodies read by both containers: %.0f bytes, resident memory %.1f MiB before and %.1f MiB after",
		units.BytesSize(float64(size)), sent.Sub(began).Round(time.Millisecond), time.Since(sent).Round(time.Millisecond), bytesAfter-bytesBefore, memoryBefore/(1<<20), memoryAfter/(1<<20))
	if bytesAfter != bytesBefore || memoryAfter > memoryBefore+20<<20 {
		t.Errorf("the containers read %.0f bytes of it, and hold %.1f MiB, before %.1f", bytesAfter-bytesBefore, memoryAfter/(1<<20), memoryBefore/(1<<20))
	}
	if a.Field(t, "size") != float64(size) {
		t.Errorf("the answer is %s", a.Body)
	}
	location := harness.Do(t, "GET", sys.URL+"/cat/mia/picture", "", nil).Want(t, 307).Header.Get("Location")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, location, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := harness.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if diff := harness.SameContent(resp.Body, harness.Large(size)); diff != nil {
		t.Error(diff)
	}

	// One of a wrong type, and as large where a size was asked for.
	if os.Getenv("CATS_DIRECT_SIZE") == "" {
		size = 1 << 20
	}
	wrong := harness.NewUploadSession(t, sys, "mia", size)
	wrong.Send(t, io.LimitReader(harness.Zeros{}, size), size)
	wrong.Commit(t, sys, "mia", "").WantProblem(t, 415, "unsupported_media_type")
	if got := harness.Do(t, "GET", sys.URL+"/cat/mia", "", nil); got.Field(t, "etag") != a.Field(t, "etag") {
		t.Errorf("after a wrong one: %s", got.Body)
	}
	if diff := cmp.Diff([]string{"mia/cat"}, harness.BlobNames(t, sys)); diff != "" {
		t.Error(diff)
	}
}

// What storage refuses to the holder of a ticket, and the signer for one.
func TestATicketAllowsOneUploadAndNothingElse(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{})
	harness.Put(t, sys, "mia", harness.Cat)
	size := int64(len(harness.Cat))
	blob := http.Header{"X-Ms-Blob-Type": {"BlockBlob"}}
	one, blocks := harness.NewUploadSession(t, sys, "mia", size), harness.NewUploadSession(t, sys, "mia", 65<<20)
	other := harness.NewUploadSession(t, sys, "tom", size)
	name := func(k harness.UploadSession) string {
		u, err := url.Parse(k.URL)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimPrefix(u.Path, "/"+sys.Container+"/")
	}
	one.Send(t, bytes.NewReader(harness.Cat), size)
	list := base64.StdEncoding.EncodeToString([]byte("00000000"))
	harness.SendToStorage(t, "PUT", blocks.URL+"&comp=block&blockid="+url.QueryEscape(list), nil, bytes.NewReader(harness.Cat), size).Want(t, 201)
	for what, status := range map[string]int{
		"sending it again":               harness.SendToStorage(t, "PUT", one.URL, blob.Clone(), bytes.NewReader(harness.Cat), size).StatusCode,
		"reading what was sent":          harness.Do(t, "GET", one.URL, "", nil).StatusCode,
		"reading with a ticket to write": harness.Do(t, "GET", blocks.URL, "", nil).StatusCode,
		"its block list":                 harness.Do(t, "GET", blocks.URL+"&comp=blocklist&blocklisttype=all", "", nil).StatusCode,
		"deleting it":                    harness.Do(t, "DELETE", one.URL, "", nil).StatusCode,
		"deleting what is written":       harness.Do(t, "DELETE", blocks.URL, "", nil).StatusCode,
		"the picture itself":             harness.SendToStorage(t, "PUT", strings.Replace(one.URL, name(one), "mia/cat", 1), blob.Clone(), bytes.NewReader(harness.Cat), size).StatusCode,
		"writing another's":              harness.SendToStorage(t, "PUT", strings.Replace(blocks.URL, name(blocks), name(other), 1), blob.Clone(), bytes.NewReader(harness.Cat), size).StatusCode,
		"listing":                        harness.Do(t, "GET", strings.Replace(blocks.URL, "/"+name(blocks)+"?", "?restype=container&comp=list&", 1), "", nil).StatusCode,
	} {
		if status != 403 {
			t.Errorf("%s: %d; want 403", what, status)
		}
	}
	// A ticket is for the user that it was given for, and for the size that it says.
	one.Commit(t, sys, "tom", "").WantProblem(t, 404, "no_such_upload")
	forged := one
	forged.ID = strings.Replace(one.ID, fmt.Sprintf("-%d-", size), fmt.Sprintf("-%d-", size+1), 1)
	forged.Commit(t, sys, "mia", "").WantProblem(t, 404, "no_such_upload")
	blocks.Commit(t, sys, "mia", "").WantProblem(t, 404, "no_such_upload") // its blocks are no blob yet
	if got := harness.Served(t, sys, "mia"); !bytes.Equal(got, harness.Cat) {
		t.Error("the picture was changed")
	}
	for query, want := range map[string]struct {
		status int
		code   string
	}{
		"":                 {422, "invalid_argument"},
		"?size=x":          {422, "invalid_argument"},
		"?size=-1":         {422, "invalid_argument"},
		"?size=1&size=1":   {422, "invalid_argument"},
		"?size=0":          {422, "empty"},
		"?size=5368709121": {413, "too_large"},
	} {
		harness.Do(t, "POST", sys.URL+"/cat/mia/upload"+query, "", nil).WantProblem(t, want.status, want.code)
	}
	harness.Do(t, "POST", sys.URL+"/cat/..%2Fx/upload?size=1", "", nil).WantProblem(t, 422, "invalid_user")
	harness.Do(t, "POST", sys.URL+"/cat/mia/upload/..%2Fx/commit", "", nil).WantProblem(t, 404, "no_such_upload")
	harness.Do(t, "GET", sys.URL+"/cat/mia/upload", "", nil).WantProblem(t, 405, "method_not_allowed")
}

// As the signer finds them when it starts, and every ten minutes: blobs, blocks that
// never became one, and a blob that somebody has leased, under the right to write.
func TestAbandonedUploadsAreRemoved(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{})
	pictures := []string{"cats-api", "cats-api-upload-1-x", "mia"}
	for _, user := range pictures {
		harness.Put(t, sys, user, harness.Cat)
	}
	old, fresh := time.Now().Add(-3*time.Hour).Unix(), time.Now().Add(time.Hour).Unix()
	name := func(end int64, id string) string {
		return fmt.Sprintf("cats-api/upload/%d-%s", end, strings.Repeat(id, 32))
	}
	const others = "cats-api/upload/10000000000-x" // before ours, and no reason to look no further
	ctx := t.Context()
	for _, blob := range []string{name(old, "a"), name(old, "b"), name(fresh, "a"), others} {
		if err := sys.Storage.Put(ctx, sys.Container, blob, "image/png", harness.Cat); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := sys.Storage.Lease(ctx, sys.Container, name(old, "b")); err != nil {
		t.Fatal(err)
	}
	container := sys.Storage.Client.ServiceClient().NewContainerClient(sys.Container)
	block := streaming.NopCloser(bytes.NewReader(harness.Cat))
	if _, err := container.NewBlockBlobClient(name(old, "c")).StageBlock(ctx, "MDAwMDAwMDA=", block, nil); err != nil {
		t.Fatal(err)
	}
	if err := sys.Signer.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	harness.Restart(t, sys.Signer)
	if err := sys.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, func() error {
		uncommitted := &azblob.ListBlobsFlatOptions{Include: azblob.ListBlobsInclude{UncommittedBlobs: true}}
		page, err := sys.Storage.Client.NewListBlobsFlatPager(sys.Container, uncommitted).NextPage(ctx)
		if err != nil {
			return err
		}
		for _, b := range page.Segment.BlobItems {
			if strings.Contains(*b.Name, fmt.Sprintf("upload/%d", old)) {
				return fmt.Errorf("%s has not been deleted", *b.Name)
			}
		}
		return nil
	})
	if diff := cmp.Diff([]string{"cats-api-upload-1-x/cat", "cats-api/cat", others, name(fresh, "a"), "mia/cat"}, harness.BlobNames(t, sys)); diff != "" {
		t.Error(diff)
	}
	if removed := harness.Sum(t, sys.SignerOps, "cats_signer_staged_blobs_deleted_total"); removed != 3 {
		t.Errorf("%v were counted", removed)
	}
}

func TestWithoutASizeForItThereAreNoTickets(t *testing.T) {
	t.Parallel()
	sys := harness.Start(t, stack.SystemOptions{})
	harness.Do(t, "POST", sys.URL+"/cat/mia/upload?size=1", "", nil).WantProblem(t, 413, "too_large")
	if a := harness.Do(t, "GET", sys.URL+"/about", "", nil).Want(t, 200); a.Field(t, "max_direct_size") != float64(0) || a.Field(t, "max_picture_size") != float64(32<<20) {
		t.Errorf("/about is %s", a.Body)
	}
}
