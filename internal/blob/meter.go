package blob

import (
	"context"
	"io"
	"sync/atomic"
)

// Counter counts what was read through a Meter. The zero value is ready; all
// fields may be read at any time.
type Counter struct {
	// Opens is the number of blobs opened.
	Opens atomic.Int64
	// Reads is the number of ranges asked for.
	Reads atomic.Int64
	// Bytes is the number of bytes delivered to readers.
	Bytes atomic.Int64
	// Errors is the number of opens and reads that failed, cancellations not
	// counted.
	Errors atomic.Int64
}

// Meter returns src with everything read through it counted in c.
func Meter(src Source, c *Counter) Source { return meter{src, c} }

type meter struct {
	src Source
	c   *Counter
}

func (m meter) Open(ctx context.Context, ref Ref) (Blob, error) {
	m.c.Opens.Add(1)
	b, err := m.src.Open(ctx, ref)
	if err != nil {
		m.c.fail(err)
		return nil, err
	}
	return meteredBlob{b, m.c}, nil
}

func (c *Counter) fail(err error) {
	if err != io.EOF && KindOf(err) != Canceled {
		c.Errors.Add(1)
	}
}

type meteredBlob struct {
	Blob
	c *Counter
}

func (b meteredBlob) ReadRange(ctx context.Context, r Range) (io.ReadCloser, error) {
	b.c.Reads.Add(1)
	rc, err := b.Blob.ReadRange(ctx, r)
	if err != nil {
		b.c.fail(err)
		return nil, err
	}
	return &meteredReader{rc, b.c}, nil
}

func (b meteredBlob) ReadRanges(ctx context.Context, ranges []Range, land Land) error {
	b.c.Reads.Add(int64(len(ranges)))
	err := ReadRanges(ctx, b.Blob, ranges, func(i int, off int64, p []byte) error {
		b.c.Bytes.Add(int64(len(p)))
		return land(i, off, p)
	})
	if err != nil {
		b.c.fail(err)
	}
	return err
}

type meteredReader struct {
	io.ReadCloser
	c *Counter
}

func (r *meteredReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.c.Bytes.Add(int64(n))
	if err != nil {
		r.c.fail(err)
	}
	return n, err
}
