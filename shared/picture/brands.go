package picture

import (
	"encoding/binary"
	"slices"
)

// imageBrands maps the brands of ISO base media files to media types, in order of precedence.
//
// coding says that the brands determine how the images are encoded. The other brands describe the structure of the file.
//
// Sources: the IANA registrations of image/heic, image/heif and their sequences; AV1 Image File Format (AOMedia), for AVIF;
// ISO/IEC 23000-22, for miaf and the profiles MiHA, MiHB and MiHE.
var imageBrands = []struct {
	mediaType string
	coding    bool
	brands    []string
}{
	{"image/avif", true, []string{"avif", "avis", "avio", "MA1A", "MA1B"}},
	{"image/heic", true, []string{"heic", "heix", "heim", "heis"}},
	{"image/heic-sequence", true, []string{"hevc", "hevx", "hevm", "hevs"}},
	{"image/heic", true, []string{"MiHA", "MiHB", "MiHE"}},
	{"image/heif", false, []string{"mif1", "mif2"}},
	{"image/heif-sequence", false, []string{"msf1"}},
	{"image/heif", false, []string{"miaf"}},
}

// imageType returns the media type of an ISO base media file that begins with head, or "" if none of its brands is a brand of
// images.
//
// A major brand with a coding determines the type. Otherwise the compatible brands determine it: cameras and encoders write a
// structural major brand, such as mif1, and list the coding after it.
func imageType(head []byte) string {
	all := brands(head)
	if len(all) == 0 {
		return ""
	}
	var found []string
	for _, i := range imageBrands {
		switch {
		case i.coding && slices.Contains(i.brands, all[0]):
			return i.mediaType
		case slices.ContainsFunc(i.brands, func(b string) bool { return slices.Contains(all, b) }):
			found = append(found, i.mediaType)
		}
	}
	if len(found) == 0 {
		return ""
	}
	// The major brand decides between images and sequences in one file.
	if sequence := found[0] + "-sequence"; all[0] == "msf1" && slices.Contains(found, sequence) {
		return sequence
	}
	return found[0]
}

// brands returns the major brand and the compatible brands of the ftyp box at the beginning of head (ISO/IEC 14496-12 section
// 4.3), or nil if there is no such box. It ignores brands after the end of head.
func brands(head []byte) (brands []string) {
	if len(head) < 12 || string(head[4:8]) != "ftyp" || head[0] != 0 { // a text may contain "ftyp" there; an ftyp box is smaller than 16 MiB
		return nil
	}
	start, size := 8, uint64(binary.BigEndian.Uint32(head))
	switch {
	case size == 1 && len(head) >= 16:
		start, size = 16, binary.BigEndian.Uint64(head[8:])
	case size == 0: // the box ends with the file
		size = uint64(len(head))
	}
	end := min(size, uint64(len(head)))
	for at := start; uint64(at+4) <= end; at += 4 {
		if at != start+4 { // the minor version
			brands = append(brands, string(head[at:at+4]))
		}
	}
	return brands
}
