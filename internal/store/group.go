package store

import (
	"context"
	"sync"

	"skimmer/internal/blob"
)

// group is the flights that one request to the source behind serves, most
// often one. It goes on as long as somebody waits for any of them.
type group struct {
	// Constant once it is launched.
	ctx     context.Context
	cancel  context.CancelFunc
	flights []*flight
	shared  bool // by several flights

	// mu guards what follows. Order: flight.mu, mu.
	mu      sync.Mutex
	readers int  // who wait for it
	dying   bool // nobody does any more
}

// newGroup returns a group that one reader, with ctx, waits for. What ctx
// carries crosses this hop; its end does not: others may wait by then.
func newGroup(ctx context.Context) *group {
	g := &group{readers: 1}
	g.ctx, g.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return g
}

// add makes a flight of n pieces from i on. It is found by others once the
// group is launched.
func (g *group) add(h *handle, i, n int) *flight {
	f := &flight{h: h, first: i, prio: blob.PriorityOf(g.ctx), g: g, done: make(chan struct{}), cur: i, end: i + n}
	g.flights = append(g.flights, f)
	g.shared = len(g.flights) > 1
	return f
}

// launch runs fly, which finishes all flights, for h. It returns false once
// the store is closed. Caller holds e.mu.
func (g *group) launch(h *handle, fly func()) bool {
	e := h.e
	n := len(g.flights)
	h.refs.Add(int32(n))
	ok := e.s.spawn(e, func() {
		// The store's end reaches the fetch through AfterFunc.
		unlink := context.AfterFunc(e.s.ctx, g.cancel)
		fly()
		unlink()
		g.cancel()
	})
	if !ok {
		g.cancel()
		h.refs.Add(int32(-n))
		return false
	}
	e.s.count.fetches.Add(1)
	e.flights = append(e.flights, g.flights...)
	return true
}

// enter attaches a reader, and returns false if it is too late.
func (g *group) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.dying {
		g.readers++
	}
	return !g.dying
}

// leave detaches a reader. When it goes without having got what it wanted
// and was the last, the fetch ends.
func (g *group) leave(satisfied bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.readers--; g.readers == 0 && !satisfied {
		g.dying = true
		g.cancel()
	}
}

// ending reports whether nobody waits any more.
func (g *group) ending() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.dying
}

// fly does the fetch of several flights.
func (g *group) fly() {
	err := g.transfer()
	for _, f := range g.flights {
		switch {
		case f.ended():
		case err == nil:
			f.finish(f.complete(f.early()))
		default:
			f.finish(f.complete(err))
		}
	}
}

func (g *group) transfer() error {
	next, err := g.flights[0].h.source(g.ctx)
	if err != nil {
		return err
	}
	geo := g.flights[0].h.e.geo
	var ranges []blob.Range
	for _, f := range g.flights {
		off := geo.start(f.first)
		ranges = append(ranges, blob.Range{Off: off, Len: geo.start(f.stop()) - off})
	}
	var taken error
	err = blob.ReadRanges(g.ctx, next, ranges, func(i int, off int64, p []byte) error {
		taken = g.flights[i].take(off, p)
		return taken
	})
	if taken != nil {
		return taken
	}
	return err
}

// take puts bytes of the flight where they belong, and finishes it when it has
// all.
func (f *flight) take(off int64, p []byte) error {
	for len(p) > 0 {
		n := 0
		if off == f.position() {
			var err error
			if n, err = f.put(p); err != nil {
				return err
			}
		}
		switch {
		case f.g.ending():
			return context.Canceled
		case n == 0:
			return blob.Errorf(blob.Corrupt, "read %v: its source sent bytes at %d that were not asked for", f.h.ref, off)
		}
		p, off = p[n:], off+int64(n)
	}
	if f.position() < f.h.e.geo.start(f.stop()) {
		return nil
	}
	err := f.complete(nil)
	f.finish(err)
	return err
}

// position returns the offset of the next byte to arrive.
func (f *flight) position() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.h.e.geo.start(f.cur) + int64(f.filled)
}

// ended reports whether the flight was finished.
func (f *flight) ended() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.over
}
