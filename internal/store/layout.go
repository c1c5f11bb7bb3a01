package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/bits"
	"path/filepath"
	"sync"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// A blob lives in blobs/<algorithm>/<first two>/<hex>/, in these files.
const (
	dataName     = "data"      // sparse, byte for byte the blob
	journalName  = "pieces"    // what of data can be relied on
	infoName     = "info.json" // what the blob is; without it there is no blob
	infoTempName = "info.json.new"
)

// DefaultPieceSize is Config.PieceSize where it is not given, MinPieceSize and
// MaxPieceSize what it can be, in bytes.
const (
	DefaultPieceSize = 256 << 10
	MinPieceSize     = 4 << 10
	MaxPieceSize     = 4 << 20
)

const (
	// blockSize is how many bytes are written, and read to be checked, at once
	// where pieces are smaller.
	blockSize = 256 << 10
	maxPieces = 65536
	// maxSize is the largest blob the store takes, 1 TiB; its pieces have 16
	// MiB, which is what a reader's buffer has to hold.
	maxSize      = int64(1) << 40
	hugestPieces = maxSize / maxPieces
	// infoLimit is how long an info.json may be, in bytes.
	infoLimit = 64 << 10
)

// geometry is how a blob is cut into pieces.
type geometry struct {
	size      int64 // of the blob, in bytes
	pieceSize int64
	pieces    int
}

// geometryOf returns how a blob of size bytes is cut: in pieces of pieceSize,
// doubled until there are no more than 65,536.
func geometryOf(size, pieceSize int64) geometry {
	g := geometry{size: size, pieceSize: pieceSize}
	for size > g.pieceSize*maxPieces {
		g.pieceSize *= 2
	}
	g.pieces = int((size + g.pieceSize - 1) / g.pieceSize)
	return g
}

// block returns how many bytes are kept at once, a multiple of pieces.
func (g geometry) block() int64 { return max(g.pieceSize, blockSize) }

// piece returns the piece that holds offset off.
func (g geometry) piece(off int64) int { return int(off / g.pieceSize) }

// start returns where piece i begins in the blob; for i = pieces, the end.
func (g geometry) start(i int) int64 { return min(int64(i)*g.pieceSize, g.size) }

// length returns the bytes piece i has.
func (g geometry) length(i int) int64 { return g.start(i+1) - g.start(i) }

// pieceEnd returns the first piece that begins at or after offset off.
func (g geometry) pieceEnd(off int64) int {
	return int((off + g.pieceSize - 1) / g.pieceSize)
}

// bitmap is a set of pieces.
type bitmap []uint64

func newBitmap(n int) bitmap    { return make(bitmap, (n+63)/64) }
func (b bitmap) has(i int) bool { return b[i/64]&(1<<(i%64)) != 0 }
func (b bitmap) set(i int)      { b[i/64] |= 1 << (i % 64) }
func (b bitmap) unset(i int)    { b[i/64] &^= 1 << (i % 64) }
func (b bitmap) clear()         { clear(b) }
func (b bitmap) count() (n int) {
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// infoVersion is the layout of a blob's folder that this code writes.
const infoVersion = 1

// info is the content of info.json. The rest of what is known about a blob
// changes as pieces arrive and stands in the journal.
type info struct {
	Version    int           `json:"version"`
	Digest     digest.Digest `json:"digest"`
	Size       int64         `json:"size"`
	PieceSize  int64         `json:"pieceSize"`
	MediaType  string        `json:"mediaType,omitempty"`
	Repository string        `json:"repository,omitempty"`
	URL        string        `json:"url,omitempty"` // without its query
}

func encodeInfo(i info) ([]byte, error) {
	p, err := json.MarshalIndent(i, "", "\t")
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", infoName, err)
	}
	return append(p, '\n'), nil
}

// decodeInfo parses an info.json and refuses one this code did not write.
func decodeInfo(p []byte) (info, error) {
	var i info
	d := json.NewDecoder(bytes.NewReader(p))
	d.DisallowUnknownFields()
	if err := d.Decode(&i); err != nil {
		return info{}, blob.Errorf(blob.Corrupt, "decode %s: %w", infoName, err)
	}
	if i.Version != infoVersion {
		return info{}, blob.Errorf(blob.Corrupt, "decode %s: version %d, want %d", infoName, i.Version, infoVersion)
	}
	if err := blob.CheckDigest(i.Digest); err != nil {
		return info{}, blob.Errorf(blob.Corrupt, "decode %s: %w", infoName, err)
	}
	if i.Size < 0 || i.Size > maxSize {
		return info{}, blob.Errorf(blob.Corrupt, "decode %s: size %d is not in [0, %d]", infoName, i.Size, maxSize)
	}
	if !isPieceSize(i.PieceSize, hugestPieces) {
		return info{}, blob.Errorf(blob.Corrupt, "decode %s: pieces of %d bytes are not a power of two in [%d, %d]", infoName, i.PieceSize, MinPieceSize, hugestPieces)
	}
	if want := geometryOf(i.Size, i.PieceSize).pieceSize; i.PieceSize != want {
		return info{}, blob.Errorf(blob.Corrupt, "decode %s: pieces of %d bytes, want at least %d", infoName, i.PieceSize, want)
	}
	return i, nil
}

// isPieceSize reports whether pieces can have n bytes, limit being the most.
func isPieceSize(n, limit int64) bool {
	return n >= MinPieceSize && n <= limit && n&(n-1) == 0
}

// blobDir returns the folder of blob d below root. d must be valid.
func blobDir(root string, d digest.Digest) string {
	hex := d.Encoded()
	return filepath.Join(root, d.Algorithm().String(), hex[:2], hex)
}

// buffers holds buffers of the usual size of a block; those of very large
// pieces are left to the garbage collector.
var buffers = sync.Pool{New: func() any { return new([blockSize]byte) }}

// getBuffer returns a buffer of at least n bytes, cut to n.
func getBuffer(n int64) []byte {
	if n > blockSize {
		return make([]byte, n)
	}
	return buffers.Get().(*[blockSize]byte)[:n]
}

// putBuffer gives back what getBuffer returned.
func putBuffer(p []byte) {
	if cap(p) == blockSize {
		buffers.Put((*[blockSize]byte)(p[:blockSize]))
	}
}
