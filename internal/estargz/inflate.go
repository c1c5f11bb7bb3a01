package estargz

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"skimmer/internal/blob"
	"skimmer/internal/estargz/gunzip"
)

// Sink takes the chunks of one stream as they are inflated. Its methods are
// called from the goroutine that called Inflate, in the order of the chunks.
type Sink interface {
	// Write takes bytes of a chunk that start off bytes into it. They come in
	// order and without gaps, are not yet verified, and are only valid during
	// the call: nobody may be shown them before Done.
	Write(chunk int, off int64, p []byte) error

	// Done says that the chunk is complete and has the digest the table of
	// contents promises. A chunk that Done is not called for must be forgotten.
	Done(chunk int) error
}

const (
	// inflatePart is how many bytes a Sink is given at a time.
	inflatePart = 256 << 10
	// compressedPart is how many compressed bytes are read at a time.
	compressedPart = 64 << 10
	// maxZstdWindow bounds the memory a zstd frame can make its reader hold.
	maxZstdWindow = 128 << 20
)

// Inflate decompresses one stream and hands every chunk in it to sink,
// verified. compressed delivers the blob's bytes from Streams[stream].Off on,
// up to its End; it is read no further than the last chunk needs, give or
// take a buffer. Memory does not grow with the size of chunks.
//
// Inflate is safe for concurrent use, with a sink each. An error of
// compressed or sink is returned wrapped, its Kind intact. Bytes that cannot
// be decompressed or do not have the promised digest are a Corrupt error
// that names the file and the chunk; chunks already Done stay good.
func (ix *Index) Inflate(stream int, compressed io.Reader, sink Sink) error {
	if stream < 0 || stream >= len(ix.Streams) {
		return blob.Errorf(blob.Invalid, "inflate stream %d: the layer has %d", stream, len(ix.Streams))
	}
	s := ix.Streams[stream]
	first := int(s.FirstChunk)
	d, err := openInflater(ix.Compression, compressed)
	if err != nil {
		return ix.inflateError(d, first, err)
	}
	defer d.release()
	for i := first; i < first+int(s.NumChunks); i++ {
		if err := d.chunk(&ix.Chunks[i], i, sink); err != nil {
			return ix.inflateError(d, i, err)
		}
		if err := sink.Done(i); err != nil {
			return fmt.Errorf("inflate %s: %w", ix.describeChunk(i), err)
		}
	}
	return nil
}

// errDigest is what a chunk with the wrong content fails with.
var errDigest = errors.New("content does not have the promised digest")

// sinkError marks an error as the sink's own.
type sinkError struct{ error }

func (e sinkError) Unwrap() error { return e.error }

// inflateError gives err, met while inflating chunk i, its kind and place.
func (ix *Index) inflateError(d *inflater, i int, err error) error {
	where := ix.describeChunk(i)
	var se sinkError
	switch {
	case errors.As(err, &se):
		return fmt.Errorf("inflate %s: %w", where, se.error)
	case d != nil && d.src.err != nil:
		return fmt.Errorf("inflate %s: read compressed data: %w", where, d.src.err)
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		return blob.Errorf(blob.Corrupt, "inflate %s: compressed data ends early", where)
	}
	return blob.Errorf(blob.Corrupt, "inflate %s: %w", where, err)
}

// describeChunk names a chunk for people.
func (ix *Index) describeChunk(i int) string {
	c := ix.Chunks[i]
	f, ok := ix.FileAt(c.DataOff)
	if !ok {
		return fmt.Sprintf("chunk %d", i)
	}
	return fmt.Sprintf("%q bytes %d-%d (chunk %d)", f.Name, c.DataOff-f.DataOff, c.DataOff-f.DataOff+c.Size-1, i)
}

// source remembers why the compressed bytes stopped coming, which the
// decompressors do not always pass on.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// inflater is a pooled decompressor with its buffers: of gzip or of zstd.
type inflater struct {
	src  source
	gz   *gunzip.Reader
	got  []byte // by gz, and not taken yet
	zs   *zstd.Decoder
	in   *bufio.Reader // between src and zs
	buf  []byte        // what zs wrote
	pos  int64         // decompressed bytes taken
	hash hash.Hash
	pool *sync.Pool
}

var gzipInflaters, zstdInflaters sync.Pool // of *inflater

// openInflater returns an inflater over r. It is nil only when err is of the
// caller's making; the caller releases one that comes without error.
func openInflater(c Compression, r io.Reader) (*inflater, error) {
	pool := &gzipInflaters
	switch c {
	case Gzip:
	case Zstd:
		pool = &zstdInflaters
	default:
		return nil, fmt.Errorf("unknown compression %d", c)
	}
	d, _ := pool.Get().(*inflater)
	if d == nil {
		d = &inflater{hash: sha256.New(), pool: pool}
	}
	d.src, d.pos, d.got = source{r: r}, 0, nil
	return d, d.reset(c)
}

// reset starts a new compressed stream at d.src.
func (d *inflater) reset(c Compression) (err error) {
	if c == Gzip {
		if d.gz == nil {
			d.gz = &gunzip.Reader{}
		}
		d.gz.Reset(&d.src)
		return nil
	}
	if d.zs != nil {
		d.in.Reset(&d.src)
		return d.zs.Reset(d.in)
	}
	d.buf = make([]byte, inflatePart)
	d.in = bufio.NewReaderSize(&d.src, compressedPart)
	// One goroutine, ours: callers inflate streams in parallel.
	d.zs, err = zstd.NewReader(d.in, zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxZstdWindow))
	return err
}

// release returns d to its pool.
func (d *inflater) release() {
	d.src, d.got = source{}, nil
	if d.in != nil {
		d.in.Reset(nil)
	}
	d.pool.Put(d)
}

// next takes the decompressed bytes that follow, of which there are at least one
// and most at most. They are valid until the next call.
func (d *inflater) next(most int64) (p []byte, err error) {
	if d.gz == nil {
		n, err := io.ReadFull(d.zs, d.buf[:min(int64(len(d.buf)), most)])
		d.pos += int64(n)
		return d.buf[:n], err
	}
	if len(d.got) == 0 {
		if d.got, err = d.gz.Next(); err != nil {
			return nil, err
		}
	}
	p = d.got[:min(int64(len(d.got)), most)]
	d.got = d.got[len(p):]
	d.pos += int64(len(p))
	return p, nil
}

// chunk delivers chunk c, which is number i, to sink and checks its digest.
func (d *inflater) chunk(c *Chunk, i int, sink Sink) error {
	for d.pos < c.InnerOff {
		if _, err := d.next(c.InnerOff - d.pos); err != nil {
			return err
		}
	}
	d.hash.Reset()
	for off := int64(0); off < c.Size; {
		p, err := d.next(c.Size - off)
		if err != nil {
			return err
		}
		d.hash.Write(p)
		if err := sink.Write(i, off, p); err != nil {
			return sinkError{err}
		}
		off += int64(len(p))
	}
	var sum [sha256.Size]byte
	if [sha256.Size]byte(d.hash.Sum(sum[:0])) != c.Digest {
		return errDigest
	}
	return nil
}
