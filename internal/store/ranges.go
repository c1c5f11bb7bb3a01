package store

import (
	"context"
	"io"

	"skimmer/internal/blob"
)

// ReadRanges implements blob.MultiReader. What is held is served from disk,
// what others are fetching is waited for, and the rest is asked for in one
// ReadRanges of the source behind, or in one for every SequentialRun bytes.
func (o *opened) ReadRanges(ctx context.Context, ranges []blob.Range, land blob.Land) error {
	if err := blob.CheckRanges(ranges, o.e.geo.size); err != nil {
		return err
	}
	buf := getBuffer(blockSize)
	defer putBuffer(buf)
	for done := 0; done < len(ranges); {
		b := o.batch(ctx, ranges[done:])
		first := done
		err := b.deliver(ctx, buf, func(i int, off int64, p []byte) error { return land(first+i, off, p) })
		if b.g != nil {
			b.g.leave(err == nil)
		}
		if err != nil {
			return err
		}
		done += len(b.ranges)
	}
	return nil
}

// batch is ranges that are read together.
type batch struct {
	*opened
	ranges []blob.Range
	held   []bool // which of them are on disk
	g      *group // of what is fetched for them; nil if nothing is
}

// batch starts fetching the first of ranges, as many as may be asked for at
// once.
func (o *opened) batch(ctx context.Context, ranges []blob.Range) *batch {
	e := o.e
	b := &batch{opened: o}
	g := newGroup(ctx)
	limit := e.s.cfg.SequentialRun
	e.mu.Lock()
	defer e.mu.Unlock()
	var missing, held int64 // bytes
	next := 0               // the first piece that was not looked at
	for _, r := range ranges {
		if len(b.ranges) > 0 && (missing >= limit || r.Len > limit) {
			break
		}
		b.ranges = append(b.ranges, r)
		if r.Len > limit {
			b.held = append(b.held, false)
			break // its reader looks ahead by itself
		}
		n := o.gather(g, &next, r)
		missing += n.missing
		b.held = append(b.held, n.held == r.Len)
		if n.held < r.Len {
			held += n.held
		}
	}
	fly := g.fly
	if len(g.flights) == 1 {
		fly = g.flights[0].fly
	}
	if len(g.flights) == 0 || !e.s.keeping() || !g.launch(o.handle, fly) {
		g.cancel()
		return b
	}
	e.s.count.hitBytes.Add(held) // those of the rest are counted by readers
	b.g = g
	return b
}

// found is what gather found of a range.
type found struct {
	held    int64 // bytes of the range on disk
	missing int64 // bytes of pieces to fetch
}

// gather adds to g flights for the pieces of r that nobody fetches, from next
// on, which it moves on. Caller holds e.mu.
func (o *opened) gather(g *group, next *int, r blob.Range) (n found) {
	e, geo := o.e, o.e.geo
	end := geo.pieceEnd(r.End())
	for i := geo.piece(r.Off); i < end; i++ {
		if e.present.has(i) {
			n.held += min(r.End(), geo.start(i+1)) - max(r.Off, geo.start(i))
		}
	}
	for i := max(*next, geo.piece(r.Off)); i < end; {
		k := e.available(i, end-i)
		if k == 0 {
			i++
			continue
		}
		if last := len(g.flights) - 1; last >= 0 && g.flights[last].end == i {
			g.flights[last].end += k
		} else {
			g.add(o.handle, i, k)
		}
		n.missing += geo.start(i+k) - geo.start(i)
		i += k
	}
	*next = max(*next, end)
	return n
}

// deliver hands the ranges to land, those on disk first.
func (b *batch) deliver(ctx context.Context, buf []byte, land blob.Land) error {
	for _, held := range []bool{true, false} {
		for i, r := range b.ranges {
			if b.held[i] != held {
				continue
			}
			var from blob.Blob = b.opened
			if !held {
				from = fetched{b}
			}
			err := blob.LandRange(ctx, from, r, buf, func(off int64, p []byte) error { return land(i, off, p) })
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// fetched is the blob as seen by readers for which a batch was started.
type fetched struct{ *batch }

func (f fetched) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	return f.opened.reader(ctx, r, f.g)
}

var _ blob.MultiReader = (*opened)(nil)
