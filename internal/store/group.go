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
