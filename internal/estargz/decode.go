package estargz

import (
	"bytes"
	"errors"
	"fmt"
	"math"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// Names that eStargz reserves in the root directory of a layer.
const (
	tocName            = "stargz.index.json"
	prefetchLandmark   = ".prefetch.landmark"
	noPrefetchLandmark = ".no.prefetch.landmark"
)

// Words of the TOC.
const (
	typeChunk      = "chunk"
	chunkTypeZeros = "zeros"
	digestPrefix   = "sha256:"
)

// What Linux and its file systems can hold, and what we are ready to hold.
const (
	maxNameElement = 255     // NAME_MAX
	maxLink        = 4095    // PATH_MAX without its NUL
	maxXattrName   = 255     // XATTR_NAME_MAX
	maxXattrValue  = 1 << 16 // XATTR_SIZE_MAX
	maxMajor       = 1<<12 - 1
	maxMinor       = 1<<20 - 1
	maxID          = math.MaxUint32
	maxFlatData    = math.MaxInt64 / 4
	maxEntries     = 4 << 20
)

// Decode decodes and checks the table of contents of a layer of blobSize
// bytes, whose file data ends at payloadEnd. The result does not refer to
// json. Decode does not look at digests of the JSON; ReadTOC does.
//
// It takes what stargz-snapshotter and containers/storage write, and the
// extensions of Build. Names are cleaned as those tools do it, as paths
// below the root. A file may have holes (chunks of type "zeros"): no Chunk
// covers them. A table that contradicts itself, points outside the payload,
// leaves a byte of a file without a digest, or names what no file system can
// hold is an Invalid error that names the entry. Memory stays proportional
// to len(json).
func Decode(json []byte, c Compression, blobSize, payloadEnd int64) (*TOC, error) {
	toc, err := decode(json, c, blobSize, payloadEnd)
	if err != nil {
		return nil, blob.Errorf(blob.Invalid, "decode table of contents: %w", err)
	}
	toc.Digest = digest.FromBytes(json)
	return toc, nil
}

// decode is Decode without Digest.
func decode(json []byte, c Compression, blobSize, payloadEnd int64) (*TOC, error) {
	if payloadEnd < 0 || payloadEnd > blobSize {
		return nil, fmt.Errorf("payload ends at %d in a blob of %d bytes", payloadEnd, blobSize)
	}
	d := &decoder{toc: new(TOC), payloadEnd: payloadEnd, stream: Stream{Off: -1}}
	d.ix = &d.toc.Index
	// Each entry is an object, and few other things are. One array too large is
	// cheaper than many, but entries rarely take less than 100 bytes.
	n := min(bytes.Count(json, []byte{'{'}), len(json)/100)
	d.toc.Entries = make([]Entry, 0, n)
	d.ix.Chunks = make([]Chunk, 0, n)
	d.ix.Streams = make([]Stream, 0, n)
	d.names.block = min(nameBlock, len(json)/4)
	d.ix.Compression, d.ix.BlobSize = c, blobSize
	if err := scanTOC(json, d.add); err != nil {
		return nil, err
	}
	return d.toc, d.finish()
}

// decoder turns raw entries into a TOC.
type decoder struct {
	toc        *TOC
	ix         *Index
	payloadEnd int64

	// stream is the one that chunks are being added to; its End is not known
	// yet, and inner is how much of its content is.
	stream Stream
	inner  int64

	// file is the regular file whose chunks are expected. covered is how much
	// of it they have covered.
	file    File
	covered int64
	files   int  // with content
	hidden  bool // the last entry was a landmark: its chunks are of no interest

	// What the entry before had, since neighbours share it: the time as it was
	// written and as it was meant, and the directory, clean, with a slash.
	modTime []byte
	sec     int64
	nsec    uint32
	dir     []byte

	names names
}

// add takes the next entry.
func (d *decoder) add(raw *rawEntry) error {
	if string(raw.typ) == typeChunk {
		return d.chunk(raw)
	}
	if err := d.endFile(); err != nil {
		return err
	}
	n := len(d.toc.Entries)
	if n == maxEntries {
		return fmt.Errorf("more than %d entries", maxEntries)
	}
	d.toc.Entries = append(d.toc.Entries, Entry{})
	e := &d.toc.Entries[n]
	if err := d.entry(e, raw); err != nil {
		return err
	}
	switch e.Name {
	case prefetchLandmark, noPrefetchLandmark, tocName:
		d.toc.Entries = d.toc.Entries[:n]
		return d.landmark(e, raw)
	}
	d.hidden = false
	if e.Type == Regular && e.Size > 0 {
		if e.Size > maxFlatData-d.ix.DataSize {
			return fmt.Errorf("size %d %w", e.Size, errRange)
		}
		e.DataOff = d.ix.DataSize
		d.ix.DataSize = alignUp(e.DataOff + e.Size)
		d.file, d.covered = File{Name: e.Name, DataOff: e.DataOff, Size: e.Size}, 0
		d.files++
		return d.chunk(raw)
	}
	return nil
}

// landmark takes an entry that only speaks to the format. Its content takes
// room in the payload but not in the flat data.
func (d *decoder) landmark(e *Entry, raw *rawEntry) error {
	d.hidden = true
	if e.Name == noPrefetchLandmark {
		d.toc.NoPrefetch = true
	}
	if e.Type != Regular || e.Size == 0 {
		return nil
	}
	if err := d.openStream(raw.offset); err != nil {
		return err
	}
	if e.Name == prefetchLandmark {
		d.ix.PrefetchEnd = raw.offset
	}
	return nil
}

// openStream makes the stream at off the one chunks are added to.
func (d *decoder) openStream(off int64) error {
	switch {
	case off < 0 || off >= d.payloadEnd:
		return fmt.Errorf("offset %d is outside the payload of %d bytes", off, d.payloadEnd)
	case off == d.stream.Off:
		return nil
	case off < d.stream.Off:
		return fmt.Errorf("offset %d is before that of the entry before it, %d", off, d.stream.Off)
	}
	d.closeStream(off)
	d.stream = Stream{Off: off, FirstChunk: uint32(len(d.ix.Chunks))}
	d.inner = 0
	return nil
}

// closeStream says that the current stream ends at end.
func (d *decoder) closeStream(end int64) {
	if d.stream.NumChunks > 0 {
		d.stream.End = end
		d.ix.Streams = append(d.ix.Streams, d.stream)
	}
}

// chunk takes the next chunk of the current file.
func (d *decoder) chunk(raw *rawEntry) error {
	if d.hidden {
		return nil
	}
	left := d.file.Size - d.covered
	size := raw.chunkSize
	if size == 0 {
		size = left
	}
	switch {
	case left == 0:
		return errors.New("chunk does not follow a file that it could belong to")
	case raw.chunkOffset != d.covered:
		return fmt.Errorf("chunk starts at %d of its file, where %d should be", raw.chunkOffset, d.covered)
	case size < 0 || size > left:
		return fmt.Errorf("chunk of %d bytes where %d are left of the file", size, left)
	}
	off := d.file.DataOff + d.covered
	d.covered += size
	switch string(raw.chunkType) {
	case "":
	case chunkTypeZeros:
		return nil
	default:
		return fmt.Errorf("unknown chunk type %q", raw.chunkType)
	}
	if size > maxChunk {
		return fmt.Errorf("chunk of %d bytes, at most %d are supported", size, int64(maxChunk))
	}
	sum := raw.chunkDigest
	if len(sum) == 0 && size == d.file.Size {
		sum = raw.digest // the digest of the file is that of its only chunk
	}
	var content [32]byte
	if err := parseDigest(&content, sum); err != nil {
		return err
	}
	if err := d.openStream(raw.offset); err != nil {
		return err
	}
	inner := raw.innerOffset
	if inner < d.inner || inner > math.MaxInt64-size {
		return fmt.Errorf("inner offset %d, but the chunk before it ends at %d of the same stream", inner, d.inner)
	}
	d.inner = inner + size
	d.ix.Chunks = append(d.ix.Chunks, Chunk{InnerOff: inner, DataOff: off, Size: size, Digest: content})
	d.stream.NumChunks++
	return nil
}

func (d *decoder) endFile() error {
	if d.covered < d.file.Size {
		return fmt.Errorf("file %q before it: chunks cover %d of its %d bytes", d.file.Name, d.covered, d.file.Size)
	}
	return nil
}

func (d *decoder) finish() error {
	if err := d.endFile(); err != nil {
		return err
	}
	d.closeStream(d.payloadEnd)
	d.ix.Files = make([]File, 0, d.files)
	for i := range d.toc.Entries {
		if e := &d.toc.Entries[i]; e.Type == Regular && e.Size > 0 {
			d.ix.Files = append(d.ix.Files, File{Name: e.Name, DataOff: e.DataOff, Size: e.Size})
		}
	}
	return d.ix.check()
}
