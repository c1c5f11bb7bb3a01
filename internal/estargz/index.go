package estargz

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"sort"

	"skimmer/internal/blob"
)

// maxChunk is the largest chunk an Index can hold.
const maxChunk = math.MaxInt32

// FileAt returns the file that holds offset off of the flat data, or false
// where there is only padding.
func (ix *Index) FileAt(off int64) (File, bool) {
	i := sort.Search(len(ix.Files), func(i int) bool { return ix.Files[i].DataOff > off }) - 1
	if i < 0 || off >= ix.Files[i].DataOff+ix.Files[i].Size {
		return File{}, false
	}
	return ix.Files[i], true
}

// The stored form of an Index is
//
//	magic "SKIX", version, compression
//	BlobSize, DataSize, PrefetchEnd, number of streams, chunks, files (uvarint)
//	per stream: gap to the stream before it, length, number of chunks (uvarint)
//	per chunk:  gap to the chunk before it in the stream, gap to it in the
//	            flat data, size (uvarint)
//	per chunk:  digest (32 bytes)
//	per file:   gap to the file before it in blocks, size, length of name
//	            (uvarint), name
//	CRC32C of all that (4 bytes, little endian)
//
// A reader refuses versions it does not know; whoever stored the index reads
// the table of contents again.
const (
	indexMagic   = "SKIX"
	indexVersion = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// MarshalBinary returns the index in a compact form for UnmarshalIndex. It
// never fails on an index that Decode or UnmarshalIndex returned.
func (ix *Index) MarshalBinary() ([]byte, error) {
	if err := ix.check(); err != nil {
		return nil, blob.Errorf(blob.Invalid, "marshal layer index: %w", err)
	}
	// Numbers take up to five bytes each; few are that long.
	size := 64 + 10*len(ix.Streams) + (8+32)*len(ix.Chunks) + 6*len(ix.Files)
	for i := range ix.Files {
		size += len(ix.Files[i].Name)
	}
	p := make([]byte, 0, size)
	p = append(p, indexMagic...)
	p = append(p, indexVersion, byte(ix.Compression))
	put := func(vs ...int64) {
		for _, v := range vs {
			p = binary.AppendUvarint(p, uint64(v))
		}
	}
	put(ix.BlobSize, ix.DataSize, ix.PrefetchEnd)
	put(int64(len(ix.Streams)), int64(len(ix.Chunks)), int64(len(ix.Files)))
	var end int64
	for _, s := range ix.Streams {
		put(s.Off-end, s.End-s.Off, int64(s.NumChunks))
		end = s.End
	}
	end = 0
	for _, s := range ix.Streams {
		var inner int64
		for _, c := range ix.Chunks[s.FirstChunk:][:s.NumChunks] {
			put(c.InnerOff-inner, c.DataOff-end, c.Size)
			inner, end = c.InnerOff+c.Size, c.DataOff+c.Size
		}
	}
	for i := range ix.Chunks {
		p = append(p, ix.Chunks[i].Digest[:]...)
	}
	end = 0
	for _, f := range ix.Files {
		put((f.DataOff-end)/BlockSize, f.Size, int64(len(f.Name)))
		p = append(p, f.Name...)
		end = alignUp(f.DataOff + f.Size)
	}
	return binary.LittleEndian.AppendUint32(p, crc32.Checksum(p, castagnoli)), nil
}

// UnmarshalIndex reads what MarshalBinary wrote. Anything else, damage
// included, is a Corrupt error; an index it returns is consistent in itself.
// It does not keep p.
func UnmarshalIndex(p []byte) (*Index, error) {
	ix, err := unmarshalIndex(p)
	if err == nil {
		err = ix.check()
	}
	if err != nil {
		return nil, blob.Errorf(blob.Corrupt, "read stored layer index: %w", err)
	}
	return ix, nil
}

func unmarshalIndex(p []byte) (*Index, error) {
	const fixed = len(indexMagic) + 2
	if len(p) < fixed+4 || string(p[:len(indexMagic)]) != indexMagic {
		return nil, errors.New("not a layer index")
	}
	if v := p[len(indexMagic)]; v != indexVersion {
		return nil, fmt.Errorf("version %d, this program reads version %d", v, indexVersion)
	}
	body, sum := p[:len(p)-4], binary.LittleEndian.Uint32(p[len(p)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, errors.New("checksum does not match")
	}
	r := &varints{p: body[fixed:]}
	ix := &Index{Compression: Compression(p[len(indexMagic)+1])}
	ix.BlobSize, ix.DataSize, ix.PrefetchEnd = r.next(), r.next(), r.next()
	// Each element takes at least so many bytes, which bounds what is allocated.
	streams, chunks, files := r.count(3), r.count(3+32), r.count(3)
	if r.err != nil {
		return nil, r.err
	}
	ix.Streams = make([]Stream, streams)
	ix.Chunks = make([]Chunk, chunks)
	ix.Files = make([]File, files)
	r.streams(ix)
	r.chunks(ix)
	r.files(ix)
	if r.err == nil && len(r.p) > 0 {
		return nil, fmt.Errorf("%d bytes behind the end", len(r.p))
	}
	return ix, r.err
}

// varints takes an index apart. After its first error it returns zeros.
type varints struct {
	p   []byte
	err error
}

var errShortIndex = errors.New("ends early")

func (r *varints) next() int64 {
	v, n := binary.Uvarint(r.p)
	if n <= 0 || v > math.MaxInt64 {
		r.fail(errShortIndex)
		return 0
	}
	r.p = r.p[n:]
	return int64(v)
}

// count reads the number of things that take at least size bytes each.
func (r *varints) count(size int) int {
	n := r.next()
	if n > int64(len(r.p)/size) {
		r.fail(errShortIndex)
		return 0
	}
	return int(n)
}

func (r *varints) take(n int64) []byte {
	if n > int64(len(r.p)) {
		r.fail(errShortIndex)
		return nil
	}
	b := r.p[:n]
	r.p = r.p[n:]
	return b
}

func (r *varints) fail(err error) {
	if r.err == nil {
		r.err, r.p = err, nil
	}
}

// sum adds offsets; what overflows becomes negative, which check refuses.
func sum(a, b int64) int64 {
	if a < 0 || b < 0 || a > math.MaxInt64-b {
		return -1
	}
	return a + b
}

func (r *varints) streams(ix *Index) {
	var end, chunks int64
	for i := range ix.Streams {
		s := &ix.Streams[i]
		s.Off = sum(end, r.next())
		s.End = sum(s.Off, r.next())
		n := r.next()
		if chunks+min(n, math.MaxInt32) > int64(len(ix.Chunks)) {
			r.fail(errors.New("streams hold more chunks than there are"))
			return
		}
		s.FirstChunk, s.NumChunks = uint32(chunks), uint32(n)
		end, chunks = s.End, chunks+n
	}
}

func (r *varints) chunks(ix *Index) {
	var end int64
	for _, s := range ix.Streams {
		var inner int64
		part := ix.Chunks[s.FirstChunk:][:s.NumChunks]
		for i := range part {
			c := &part[i]
			c.InnerOff = sum(inner, r.next())
			c.DataOff = sum(end, r.next())
			c.Size = r.next()
			inner, end = sum(c.InnerOff, c.Size), sum(c.DataOff, c.Size)
		}
	}
	digests := r.take(int64(len(ix.Chunks)) * 32)
	if digests == nil {
		return
	}
	for i := range ix.Chunks {
		ix.Chunks[i].Digest = [32]byte(digests[i*32:])
	}
}

func (r *varints) files(ix *Index) {
	// One string for all names; what else is in it is little.
	text := string(r.p)
	var end int64
	for i := range ix.Files {
		f := &ix.Files[i]
		gap := r.next()
		if gap > math.MaxInt64/BlockSize {
			r.fail(errors.New("file offset out of range"))
			return
		}
		f.DataOff = sum(end, gap*BlockSize)
		f.Size = r.next()
		n := r.next()
		start := len(text) - len(r.p)
		if r.take(n) != nil {
			f.Name = text[start:][:n]
		}
		end = sum(f.DataOff, f.Size)
		if end >= 0 {
			end = sum(end, -end&(BlockSize-1))
		}
	}
}

// alignUp rounds n, which is far from overflowing, up to a whole block.
func alignUp(n int64) int64 { return (n + BlockSize - 1) &^ (BlockSize - 1) }

// check reports an index whose parts contradict each other. Everything that
// uses an index may rely on what it checks.
func (ix *Index) check() error {
	switch {
	case ix.Compression != Gzip && ix.Compression != Zstd:
		return fmt.Errorf("unknown compression %d", ix.Compression)
	case ix.BlobSize < 0:
		return fmt.Errorf("blob size %d is negative", ix.BlobSize)
	case ix.DataSize < 0 || ix.DataSize%BlockSize != 0 || ix.DataSize > math.MaxInt64/2:
		return fmt.Errorf("data size %d is not a size in blocks", ix.DataSize)
	case ix.PrefetchEnd < 0 || ix.PrefetchEnd > ix.BlobSize:
		return fmt.Errorf("prefetch landmark at %d is outside the blob of %d bytes", ix.PrefetchEnd, ix.BlobSize)
	case len(ix.Chunks) > math.MaxInt32:
		return fmt.Errorf("%d chunks are too many", len(ix.Chunks))
	}
	if err := ix.checkFiles(); err != nil {
		return err
	}
	return ix.checkStreams()
}

func (ix *Index) checkFiles() error {
	var end int64
	for i := range ix.Files {
		f := &ix.Files[i]
		if f.DataOff < end || f.DataOff%BlockSize != 0 || f.Size <= 0 || f.Size > ix.DataSize-f.DataOff {
			return fmt.Errorf("file %q at %d+%d is not in its place", f.Name, f.DataOff, f.Size)
		}
		end = f.DataOff + f.Size
	}
	return nil
}

func (ix *Index) checkStreams() error {
	var blobEnd, dataEnd int64
	var next uint32
	file := 0
	for i, s := range ix.Streams {
		if s.Off < blobEnd || s.End <= s.Off || s.End > ix.BlobSize {
			return fmt.Errorf("stream %d at %d to %d is not in its place", i, s.Off, s.End)
		}
		if s.FirstChunk != next || s.NumChunks == 0 || int64(s.NumChunks) > int64(len(ix.Chunks))-int64(next) {
			return fmt.Errorf("stream %d does not hold the chunks that follow", i)
		}
		var inner int64
		for j := range ix.Chunks[next:][:s.NumChunks] {
			c := &ix.Chunks[int(next)+j]
			if c.Size <= 0 || c.Size > maxChunk || c.InnerOff < inner || c.InnerOff > math.MaxInt64-c.Size || c.DataOff < dataEnd {
				return fmt.Errorf("chunk %d at %d is not in its place", int(next)+j, c.DataOff)
			}
			for file < len(ix.Files) && ix.Files[file].DataOff+ix.Files[file].Size <= c.DataOff {
				file++
			}
			if file == len(ix.Files) || c.DataOff < ix.Files[file].DataOff ||
				c.Size > ix.Files[file].DataOff+ix.Files[file].Size-c.DataOff {
				return fmt.Errorf("chunk %d at %d+%d is not inside one file", int(next)+j, c.DataOff, c.Size)
			}
			inner, dataEnd = c.InnerOff+c.Size, c.DataOff+c.Size
		}
		blobEnd, next = s.End, next+s.NumChunks
	}
	if int(next) != len(ix.Chunks) {
		return fmt.Errorf("%d chunks are in no stream", len(ix.Chunks)-int(next))
	}
	return nil
}
