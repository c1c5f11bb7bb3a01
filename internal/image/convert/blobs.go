package convert

import (
	"context"
	"errors"
	"io"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// localBlobs is a blob.Source over the files of a layout or archive.
type localBlobs struct{ src localSource }

// Open implements blob.Source.
func (s localBlobs) Open(_ context.Context, ref blob.Ref) (blob.Blob, error) {
	if err := ref.Validate(); err != nil {
		return nil, err
	}
	f, err := s.src.openAt(ref.Digest)
	if err != nil {
		return nil, err
	}
	size := f.Size()
	if err := f.Close(); err != nil {
		return nil, blob.Errorf(blob.Internal, "open %v: %w", ref, err)
	}
	if ref.Size != blob.SizeUnknown && ref.Size != size {
		return nil, blob.Errorf(blob.Corrupt, "open %v: it has %d bytes, its descriptor says %d", ref, size, ref.Size)
	}
	return localBlob{s.src, ref.Digest, size}, nil
}

// localBlob opens its file for every reader, so that none depends on another.
type localBlob struct {
	src    localSource
	digest digest.Digest
	size   int64
}

func (b localBlob) Size() int64  { return b.size }
func (b localBlob) Close() error { return nil }

func (b localBlob) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	if err := r.Check(b.size); err != nil {
		return nil, err
	}
	f, err := b.src.openAt(b.digest)
	if err != nil {
		return nil, err
	}
	return &rangeReader{ctx, f, io.NewSectionReader(f, r.Off, r.Len), r}, nil
}

// rangeReader reads a range of a file that may have become shorter since.
type rangeReader struct {
	ctx context.Context
	io.Closer
	r    *io.SectionReader
	want blob.Range
}

func (r *rangeReader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, blob.Errorf(blob.KindOf(err), "read range %v: %w", r.want, err)
	}
	n, err := r.r.Read(p)
	if err == nil || errors.Is(err, io.EOF) && r.pos() == r.want.Len {
		return n, err
	}
	if errors.Is(err, io.EOF) {
		return n, blob.Errorf(blob.Corrupt, "read range %v: the file ends early: %w", r.want, io.ErrUnexpectedEOF)
	}
	return n, blob.Errorf(blob.KindOf(err), "read range %v: %w", r.want, err)
}

// pos returns how much of the range has been read.
func (r *rangeReader) pos() int64 {
	off, _ := r.r.Seek(0, io.SeekCurrent)
	return off
}
