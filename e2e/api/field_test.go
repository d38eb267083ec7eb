package api

import (
	"bytes"
	"encoding/binary"
	"net/http"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cats.example/e2e/harness"
	"cats.example/local/stack"
)

// small returns one of the small pictures of a cat.
func small(t *testing.T, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(harness.Root("shared", "picture", "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// lateMeta returns a file of boxes whose meta box stands behind padding bytes of mdat, as some phones write it.
func lateMeta(content []byte, padding int) []byte {
	found := map[string][]byte{}
	for rest := content; len(rest) >= 8; {
		size := binary.BigEndian.Uint32(rest)
		found[string(rest[4:8])], rest = rest[:size], rest[size:]
	}
	return slices.Concat(found["ftyp"], harness.Box("mdat", found["mdat"][8:], make([]byte, padding)), found["meta"])
}

func TestPicturesOfCamerasAreAccepted(t *testing.T) {
	t.Parallel()
	sys := harness.StartDirect(t, stack.SystemOptions{})
	avif, heic, sequence, jpeg := small(t, "small.avif"), small(t, "small.heic"), small(t, "small-sequence.avif"), small(t, "small.jpg")
	late := func(n int) []byte { return slices.Concat(jpeg[:2], segments(n), jpeg[2:]) }
	for what, c := range map[string]struct {
		content   []byte
		mediaType string
	}{
		"mif1.avif":                    {harness.Branded(avif, "mif1", "mif1", "avif", "miaf"), "image/avif"},
		"miaf.avif":                    {harness.Branded(avif, "miaf", "avif", "mif1", "miaf"), "image/avif"},
		"msf1.avif":                    {harness.Branded(sequence, "msf1", "avif", "avis", "msf1", "iso8", "mif1", "miaf"), "image/avif"},
		"miaf.heic":                    {harness.Branded(heic, "miaf", "heic", "mif1", "miaf"), "image/heic"},
		"camera of Sony":               {harness.Branded(heic, "heix", "mif1", "heix", "miaf"), "image/heic"},
		"foreign major brand":          {harness.Branded(heic, "mp42", "isom", "mif1", "heic"), "image/heic"},
		"burst of HEIC":                {harness.Branded(heic, "msf1", "hevc", "heic", "mif1", "msf1", "iso8"), "image/heic-sequence"},
		"burst of any coding":          {harness.Branded(heic, "msf1", "msf1", "iso8"), "image/heif-sequence"},
		"late-meta.heic":               {lateMeta(heic, 9<<20), "image/heic"},
		"late-meta.avif":               {lateMeta(avif, 9<<20), "image/avif"},
		"late-sof.jpg":                 {late(1_300_000), "image/jpeg"},
		"late-sof-icc.jpg":             {late(2_600_000), "image/jpeg"},
		"broken box behind the last":   {append(bytes.Clone(heic), "\x00\x00\x00\x03free"...), "image/heic"},
		"box larger than the file":     {append(bytes.Clone(avif), "\x7f\xff\xff\xffmdat"...), "image/avif"},
		"half a box behind the last":   {append(bytes.Clone(avif), 0, 0, 0), "image/avif"},
		"text behind the last box":     {append(bytes.Clone(heic), "<html>"...), "image/heic"},
		"HEIC without boxes but ftyp":  {heic[:28], "image/heic"},
		"JPEG that ends in its header": {late(200_000)[:90_000], "image/jpeg"},
	} {
		k := harness.NewUploadSession(t, sys, "mia", int64(len(c.content)))
		k.Send(t, bytes.NewReader(c.content), int64(len(c.content)))
		for _, a := range append(sent(t, sys.URL+"/cat/mia", c.content), k.Commit(t, sys, "mia", "")) {
			if a.StatusCode != http.StatusOK || a.Field(t, "content_type") != c.mediaType {
				t.Errorf("%s: %d %s; want %s", what, a.StatusCode, a.Body, c.mediaType)
			}
		}
		at, _ := harness.Link(t, sys, "mia", "")
		if !bytes.Equal(wantServed(t, what, at, c.mediaType, "inline", "cat"+extensions[c.mediaType]), c.content) {
			t.Errorf("%s comes back as other bytes", what)
		}
	}

	content := lateMeta(heic, 34<<20) // above MAX_PICTURE_SIZE
	harness.Do(t, "PUT", sys.URL+"/cat/mia", "", content).WantProblem(t, 413, "too_large")
	k := harness.NewUploadSession(t, sys, "mia", int64(len(content)))
	k.Send(t, bytes.NewReader(content), int64(len(content)))
	if a := k.Commit(t, sys, "mia", "").Want(t, 200); a.Field(t, "content_type") != "image/heic" || !bytes.Equal(harness.Served(t, sys, "mia"), content) {
		t.Errorf("late-meta-34MiB.heic: %s", a.Body)
	}
	if diff := cmp.Diff([]string{"mia/cat"}, harness.BlobNames(t, sys)); diff != "" {
		t.Error(diff)
	}
}
