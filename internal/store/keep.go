package store

import (
	"context"

	"skimmer/internal/blob"
)

// Keeper is a blob of a Store that can be kept without being read.
type Keeper interface {
	// Keep has ranges of the blob fetched that are not held, as ReadRanges does,
	// and returns when all of them are on disk; nothing is copied to anybody.
	// The ranges are as for blob.MultiReader.
	//
	// Errors: Full if the store keeps nothing more, and those of ReadRanges.
	Keep(ctx context.Context, ranges []blob.Range) error
}

// Keep implements Keeper.
func (o *opened) Keep(ctx context.Context, ranges []blob.Range) error {
	if err := blob.CheckRanges(ranges, o.e.geo.size); err != nil {
		return err
	}
	for len(ranges) > 0 {
		b := o.batch(ctx, ranges)
		err := b.keep(ctx)
		if b.g != nil {
			b.g.leave(err == nil)
		}
		if err != nil {
			return err
		}
		ranges = ranges[len(b.ranges):]
	}
	return nil
}

// keep waits until the batch is on disk.
func (b *batch) keep(ctx context.Context) error {
	for i, r := range b.ranges {
		if b.held[i] {
			continue
		}
		rc, err := b.reader(ctx, r, b.g)
		if err != nil {
			return err
		}
		rd := rc.(*reader)
		err = rd.keep()
		_ = rd.Close() // it has what it wanted, or failed
		if err != nil {
			return err
		}
	}
	return nil
}

// keep moves to the end of the range, piece by piece as they land.
func (r *reader) keep() error {
	for r.off < r.end {
		if err := r.keepNext(r.end); err != nil {
			return err
		}
	}
	r.detach(true)
	return nil
}

// keepNext moves over pieces that are on disk, up to stop, or waits for the next
// one.
func (r *reader) keepNext(stop int64) error {
	e := r.h.e
	switch {
	case e.s.ctx.Err() != nil:
		return r.explain(e.s.errClosed())
	case r.ctx.Err() != nil:
		return r.explain(r.ctx.Err())
	case r.direct != nil:
		return r.explain(blob.Errorf(blob.Full, "nothing more is kept"))
	}
	i := e.geo.piece(r.off)
	e.mu.Lock()
	if e.present.has(i) {
		r.move(i)
		for ; i < e.geo.pieces && r.off < stop && e.present.has(i); i++ {
			r.off = min(stop, e.geo.start(i+1))
		}
		e.mu.Unlock()
		return nil
	}
	if _, err := r.readFlight(nil, i, false); err != nil {
		r.fail(err)
		return err
	}
	return nil
}
