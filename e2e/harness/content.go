package harness

import (
	"bytes"
	"cmp"
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
)

// OtherPicture is a small picture, not Cat.
var OtherPicture = []byte("\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00\x00\x00\x01\x00\x00\x00\x01\x08\x00\x00\x00\x00:~\x9bU")

// MD5 returns the digest of b as the header Content-MD5 has it.
func MD5(b []byte) string {
	sum := md5.Sum(b)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// LargeSize is the size of a picture that the signer stores as two blocks.
const LargeSize = 6 << 20

// Picture returns a picture of n bytes, filled with fill behind its header.
func Picture(n int, fill byte) []byte {
	return append(bytes.Clone(Cat[:4<<10]), bytes.Repeat([]byte{fill}, n-(4<<10))...)
}

// Box returns a box of an ISO base media file.
func Box(name string, content ...[]byte) []byte {
	all := slices.Concat(content...)
	return slices.Concat(binary.BigEndian.AppendUint32(nil, uint32(8+len(all))), []byte(name), all)
}

// Branded returns content with another ftyp box.
func Branded(content []byte, major string, compatible ...string) []byte {
	ftyp := Box("ftyp", []byte(major), make([]byte, 4), []byte(strings.Join(compatible, "")))
	return slices.Concat(ftyp, content[binary.BigEndian.Uint32(content):])
}

// PNG returns the header of a PNG with the given dimensions.
func PNG(width, height uint32) []byte {
	ihdr := append(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32([]byte("IHDR"), width), height), 8, 6, 0, 0, 0)
	return binary.BigEndian.AppendUint32(append([]byte("\x89PNG\r\n\x1a\n\x00\x00\x00\r"), ihdr...), crc32.ChecksumIEEE(ihdr))
}

// Pixel returns a picture of one pixel. mediaType is one of the default ACCEPTED_TYPES.
func Pixel(t *testing.T, mediaType string) []byte {
	t.Helper()
	names := map[string]string{"jpeg": "jpg", "png": "png", "gif": "gif", "webp": "webp", "avif": "avif"}
	name := cmp.Or(names[strings.TrimPrefix(mediaType, "image/")], "heic")
	content, err := os.ReadFile(Root("shared", "picture", "testdata", "pixel."+name))
	if err != nil {
		t.Fatal(err)
	}
	majors := map[string]string{"image/heif": "mif1", "image/heic-sequence": "hevc", "image/heif-sequence": "msf1"}
	if major := majors[mediaType]; major != "" {
		content = Branded(content, major, major)
	}
	return content
}

// OneBlob is the size of the largest picture that the signer stores with one request.
const OneBlob = 4 << 20

// Random returns a picture of n pseudo-random bytes, which depend on seed alone.
func Random(n int, seed uint64) []byte {
	b := make([]byte, n)
	source := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)})
	_, _ = source.Read(b) // never fails
	copy(b, Cat[:64])
	return b
}
