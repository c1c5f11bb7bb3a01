package erofs

import (
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// Inspect reads back, from the image at path, the Size, Inodes and TOCs that
// Build returned; Devices and SkippedXattrs are not in an image. So an image
// that was kept says itself which devices it needs. An image Build did not
// write, one cut short or one with a damaged first block is a Corrupt error;
// what is behind that is not looked at, so images must be put in their place
// whole (written elsewhere, synced and renamed).
func Inspect(path string) (Info, error) {
	info, err := inspect(path)
	if err != nil {
		return Info{}, fmt.Errorf("inspect file system image %s: %w", path, err)
	}
	return info, nil
}

func inspect(path string) (Info, error) {
	f, err := os.Open(path)
	if err != nil {
		return Info{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Info{}, err
	}
	first := make([]byte, blockSize)
	if st.Size() < blockSize {
		return Info{}, blob.Errorf(blob.Corrupt, "%d bytes are no image", st.Size())
	}
	if _, err := f.ReadAt(first, 0); err != nil {
		return Info{}, err
	}
	super := first[superOffset:]
	switch {
	case le.Uint32(super) != superMagic:
		return Info{}, blob.Errorf(blob.Corrupt, "not an EROFS image")
	case le.Uint32(super[4:]) != checksum(first):
		return Info{}, blob.Errorf(blob.Corrupt, "checksum mismatch")
	}
	info := Info{Size: int64(le.Uint32(super[36:])) * blockSize, Inodes: int(le.Uint64(super[16:]))}
	if info.Size != st.Size() {
		return Info{}, blob.Errorf(blob.Corrupt, "%d bytes of an image of %d", st.Size(), info.Size)
	}
	slots := make([]byte, int(le.Uint16(super[86:]))*deviceSlotSize)
	if int64(deviceTable+len(slots)) > info.Size {
		return Info{}, blob.Errorf(blob.Corrupt, "device table behind the end")
	}
	if _, err := f.ReadAt(slots, deviceTable); err != nil {
		return Info{}, err
	}
	for ; len(slots) > 0; slots = slots[deviceSlotSize:] {
		d := digest.NewDigestFromEncoded(digest.SHA256, string(slots[:deviceTagSize]))
		if err := d.Validate(); err != nil {
			return Info{}, blob.Errorf(blob.Corrupt, "device %d names no TOC: %w", len(info.TOCs)+1, err)
		}
		info.TOCs = append(info.TOCs, d)
	}
	return info, nil
}
