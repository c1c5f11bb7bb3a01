// Package estargz reads and builds layers that can be used before they have
// arrived: eStargz (gzip) and zstd:chunked. Both are ordinary tar layers whose
// file contents start compressed streams of their own, with a table of
// contents (TOC) at the end that says where each stream is and what is in it.
//
// The format is that of the stargz-snapshotter project (docs/estargz.md
// there) and of containers/storage for zstd:chunked. Reading works on any
// [skimmer/internal/blob.Blob]; nothing is believed before its digest has
// been checked.
package estargz

import (
	"github.com/opencontainers/go-digest"
)

// BlockSize is the alignment, in bytes, of every file in a layer's flat data
// and the block size of the file system metadata that points into it.
const BlockSize = 4096

// TOC is a layer's decoded and checked table of contents.
type TOC struct {
	// Digest is the digest of the TOC JSON, which the image manifest promises.
	Digest digest.Digest
	// Entries are the layer's tar entries in the order of the layer. "chunk"
	// entries of the JSON are folded into the file before them; landmark files
	// and the TOC's own entry are left out. Whiteouts (.wh.*) are present.
	Entries []Entry
	// NoPrefetch says that the layer has the landmark by which it asks for
	// nothing to be fetched ahead. Where there is no landmark at all, neither
	// this nor Index.PrefetchEnd is set.
	NoPrefetch bool
	// Index says how to get at file contents.
	Index Index
}

// EntryType is what an Entry is.
type EntryType uint8

// The entry types of a TOC.
const (
	Dir EntryType = iota + 1
	Regular
	Symlink
	Hardlink
	Char
	Block
	Fifo
)

// Entry is one tar entry of a layer.
type Entry struct {
	// Name is the path inside the layer: cleaned, no leading or trailing
	// slash, no "." or ".." element; empty for the root directory. It need not
	// be UTF-8.
	Name string
	Type EntryType
	// Mode holds the permission, setuid, setgid and sticky bits (07777) as
	// chmod(2) takes them.
	Mode     uint32
	UID, GID uint32
	// MTime is the modification time in seconds since the epoch, with
	// MTimeNsec in [0, 1e9).
	MTime     int64
	MTimeNsec uint32
	// Link is a symlink's target, verbatim, or the Name (cleaned) that a hard
	// link shares its inode with.
	Link string
	// DevMajor and DevMinor number a device node.
	DevMajor, DevMinor uint32
	// Xattrs are sorted by name.
	Xattrs []Xattr
	// Size is a regular file's length in bytes.
	Size int64
	// DataOff is where a regular file's content lies in the layer's flat data,
	// a multiple of BlockSize; 0 for empty files.
	DataOff int64
}

// Xattr is one extended attribute, its name with the namespace prefix.
type Xattr struct {
	Name  string
	Value []byte
}

// Index says where each byte of a layer's flat data comes from. Flat data is
// the contents of the layer's regular files, one after another in the order
// of the blob, each starting at a multiple of BlockSize. What no chunk covers,
// between files and in holes of files, is zeros.
type Index struct {
	// Compression is what the streams are compressed with.
	Compression Compression
	// BlobSize is the size of the layer blob in bytes.
	BlobSize int64
	// DataSize is the size of the flat data in bytes, a multiple of BlockSize.
	DataSize int64
	// PrefetchEnd is the blob offset up to which the prefetch landmark asks to
	// fetch ahead; 0 where the layer has none.
	PrefetchEnd int64
	// Streams are in the order of the blob and do not overlap.
	Streams []Stream
	// Chunks are in the order of their streams and offsets, and so in the
	// order of DataOff.
	Chunks []Chunk
	// Files names the regular files with content, in order of DataOff, so that
	// an offset can be reported as a file.
	Files []File
}

// Compression is how a layer's streams are compressed. The values are stored
// on disk.
type Compression uint8

// The compressions a lazily mountable layer can have.
const (
	Gzip Compression = 1
	Zstd Compression = 2
)

// Stream is a part of the blob that can be decompressed on its own.
type Stream struct {
	// Off and End bound the stream in the blob. The part may end with streams
	// that hold only tar headers and padding.
	Off, End int64
	// FirstChunk and NumChunks select the chunks whose bytes it holds.
	FirstChunk, NumChunks uint32
}

// Chunk is a part of a file, with its own digest. At most 2^31-1 bytes.
type Chunk struct {
	// InnerOff is where the chunk starts in the decompressed stream.
	InnerOff int64
	// DataOff is where it lies in the flat data.
	DataOff int64
	// Size is its length in bytes, decompressed.
	Size int64
	// Digest is the SHA-256 of its bytes.
	Digest [32]byte
}

// File is a regular file's place in the flat data.
type File struct {
	Name          string
	DataOff, Size int64
}
