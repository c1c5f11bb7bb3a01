package estargz

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"

	"skimmer/internal/blob"
)

// location says where in a blob its table of contents lies.
type location struct {
	compression Compression
	// off and size bound the compressed table of contents.
	off, size int64
	// payloadEnd is where file data ends.
	payloadEnd int64
}

const (
	// gzipFooterSize is the length of an eStargz footer: an empty gzip member
	// whose extra field "SG" holds 16 hex digits and "STARGZ"
	// (stargz-snapshotter, docs/estargz.md, "Footer").
	gzipFooterSize = 51
	// legacyFooterSize is the length of a stargz footer, in which the digits
	// and the word are the whole extra field.
	legacyFooterSize = 47
	// skippableHeader is the length of a zstd skippable frame's header
	// (RFC 8878, section 3.1.2).
	skippableHeader = 8
	// A zstd:chunked footer is a skippable frame of little-endian words: offset,
	// compressed and plain length of the TOC, its type, and last a magic word.
	// stargz-snapshotter writes the short form. containers/storage writes the
	// long one, with three more words before the magic, which it spells
	// differently.
	zstdFooterSize     = 40
	zstdLongFooterSize = 64
	zstdTOCType        = 1
	zstdMagic          = "GnUlInUx"
	zstdStorageMagic   = "GNUlInUx"
	maxFooterSize      = skippableHeader + zstdLongFooterSize
)

// skippableMagic starts the skippable frames of zstd:chunked.
const skippableMagic = 0x184D2A50

var errNoFooter = errors.New("no eStargz or zstd:chunked footer at its end")

// parseFooter finds the footer at the end of a blob of size bytes, whose last
// bytes are tail, and returns what it says. Without a footer the error is
// errNoFooter; a footer that points outside the blob is another error.
func parseFooter(tail []byte, size int64) (location, error) {
	last := func(n int) []byte {
		if len(tail) < n {
			return nil
		}
		return tail[len(tail)-n:]
	}
	if off, ok := parseGzipFooter(last(gzipFooterSize), "\x1a\x00SG\x16\x00"); ok {
		return gzipLocation(off, size-gzipFooterSize)
	}
	if off, ok := parseGzipFooter(last(legacyFooterSize), "\x16\x00"); ok {
		return gzipLocation(off, size-legacyFooterSize)
	}
	for _, n := range []int{zstdFooterSize, zstdLongFooterSize} {
		if p := last(skippableHeader + n); isZstdFooter(p) {
			return zstdLocation(p[skippableHeader:], size-int64(len(p)))
		}
	}
	return location{}, errNoFooter
}

// TOCOffset returns where, as its footer says, the compressed table of contents
// begins in a layer of size bytes whose last bytes are tail: 72 are enough for
// every footer there is. Errors: Invalid where there is none, or one that points
// outside the layer.
func TOCOffset(tail []byte, size int64) (int64, error) {
	loc, err := parseFooter(tail, size)
	if err != nil {
		return 0, blob.Errorf(blob.Invalid, "find table of contents: %w", err)
	}
	return loc.off, nil
}

// parseGzipFooter returns the offset in a gzip footer p whose extra field,
// from its length on, starts with prefix.
func parseGzipFooter(p []byte, prefix string) (uint64, bool) {
	const header = 10 // RFC 1952, section 2.3
	if len(p) < header+len(prefix)+22 || p[0] != 0x1f || p[1] != 0x8b || p[2] != 8 || p[3] != 4 {
		return 0, false
	}
	p = p[header:]
	if string(p[:len(prefix)]) != prefix {
		return 0, false
	}
	p = p[len(prefix):]
	if string(p[16:22]) != "STARGZ" {
		return 0, false
	}
	off, err := strconv.ParseUint(string(p[:16]), 16, 64)
	return off, err == nil
}

// gzipLocation is a table of contents that starts at off and ends at end.
func gzipLocation(off uint64, end int64) (location, error) {
	if off >= uint64(end) {
		return location{}, fmt.Errorf("footer puts the table of contents at %d, outside the %d bytes before it", off, end)
	}
	return location{compression: Gzip, off: int64(off), size: end - int64(off), payloadEnd: int64(off)}, nil
}

func isZstdFooter(p []byte) bool {
	if len(p) == 0 {
		return false
	}
	magic := string(p[len(p)-8:])
	return binary.LittleEndian.Uint32(p) == skippableMagic &&
		int(binary.LittleEndian.Uint32(p[4:])) == len(p)-skippableHeader &&
		(magic == zstdMagic || magic == zstdStorageMagic)
}

// zstdLocation is what a zstd footer that starts at end says.
func zstdLocation(footer []byte, end int64) (location, error) {
	off, size := binary.LittleEndian.Uint64(footer), binary.LittleEndian.Uint64(footer[8:])
	if typ := binary.LittleEndian.Uint64(footer[24:]); typ != zstdTOCType {
		return location{}, fmt.Errorf("table of contents has type %d, expected %d", typ, zstdTOCType)
	}
	return zstdRange(off, size, end)
}

// zstdRange is a zstd table of contents of size bytes at off that, with the
// header of its frame, lies before end.
func zstdRange(off, size uint64, end int64) (location, error) {
	if off < skippableHeader || off > math.MaxInt64 || int64(off) >= end || size == 0 || size > uint64(end-int64(off)) {
		return location{}, fmt.Errorf("table of contents is said to be at %d+%d, outside the %d bytes before the footer", off, size, end)
	}
	return location{compression: Zstd, off: int64(off), size: int64(size), payloadEnd: int64(off) - skippableHeader}, nil
}

// appendGzipFooter appends the eStargz footer for a table of contents at off.
func appendGzipFooter(p []byte, off int64) []byte {
	p = append(p, 0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff)
	p = append(p, "\x1a\x00SG\x16\x00"...)
	p = fmt.Appendf(p, "%016xSTARGZ", off)
	// An empty stored deflate block, the CRC and the length of nothing.
	return append(p, 1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0)
}

// appendSkippable appends a skippable zstd frame with the given content.
func appendSkippable(p, content []byte) []byte {
	p = binary.LittleEndian.AppendUint32(p, skippableMagic)
	p = binary.LittleEndian.AppendUint32(p, uint32(len(content)))
	return append(p, content...)
}

// appendZstdFooter appends the zstd:chunked footer for a table of contents
// whose compressed form lies at off.
func appendZstdFooter(p []byte, off, compressed, plain int64) []byte {
	var f []byte
	for _, v := range []int64{off, compressed, plain, zstdTOCType} {
		f = binary.LittleEndian.AppendUint64(f, uint64(v))
	}
	return appendSkippable(p, append(f, zstdMagic...))
}
