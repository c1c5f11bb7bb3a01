package layerdev

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"sync/atomic"

	"skimmer/internal/blob"
)

// maxGap is how many compressed bytes that nobody asked for are fetched to
// save a request.
const maxGap = 64 << 10

// maxLot is how many compressed bytes are asked for at once.
const maxLot = 8 << 20

// Span is the part [Off, End) of the flat data, in bytes.
type Span struct {
	Off, End int64
}

// Prefetch fetches what is missing of several pieces of the flat data, with
// priority Prefetch and few requests, and returns when all of it is present:
// pieces that lie near each other in the blob are fetched together, in the
// order in which the first piece of each lot is given. Readers are not held
// up by it, and what it fetches is fetched once, whoever wants it.
//
// arrived, where set, is called once: when nothing that it asked for is on its way
// any more, though it may still have to be inflated. Whoever has more to fetch goes
// on then.
//
// When ctx ends, no more is begun; what is under way still arrives. Errors
// are those of Ready with that priority, and Full where the disk has no room.
// After an error what arrived is kept.
func (l *Layer) Prefetch(ctx context.Context, spans []Span, arrived func()) error {
	if arrived == nil {
		arrived = func() {}
	}
	if err := l.prefetch(blob.WithPriority(ctx, blob.Prefetch), spans, arrived); err != nil {
		return blob.Errorf(blob.KindOf(err), "prefetch %d parts of layer %s: %w", len(spans), l.cfg.Name, err)
	}
	return nil
}

func (l *Layer) prefetch(ctx context.Context, spans []Span, arrived func()) error {
	coming := &arrivals{tell: sync.OnceFunc(arrived)}
	coming.n.Store(1) // this function, while it may ask for more
	defer coming.tell()
	b, err := l.beginPrefetch(ctx, spans, coming)
	if err != nil || b == nil {
		return err
	}
	coming.done()
	return b.reap(ctx, true)
}

// Begin is Prefetch in two steps: it returns when all is on its way, so that who
// reads a part of it waits for it and fetches nothing. The function it returns
// waits for the rest and is to be called once; errors of both are those of
// Prefetch.
func (l *Layer) Begin(ctx context.Context, spans []Span) (wait func() error, err error) {
	explain := func(err error) error {
		if err == nil {
			return nil
		}
		return blob.Errorf(blob.KindOf(err), "prefetch %d parts of layer %s: %w", len(spans), l.cfg.Name, err)
	}
	ctx = blob.WithPriority(ctx, blob.Prefetch)
	b, err := l.beginPrefetch(ctx, spans, nil)
	if err != nil {
		return nil, explain(err)
	}
	if b == nil {
		return func() error { return nil }, nil
	}
	return func() error { return explain(b.reap(ctx, true)) }, nil
}

// beginPrefetch begins to fetch what is missing of spans; it returns nil where
// nothing is.
func (l *Layer) beginPrefetch(ctx context.Context, spans []Span, coming *arrivals) (*bulk, error) {
	if l.IsComplete() {
		return nil, nil
	}
	c, err := l.load()
	if err != nil {
		return nil, err
	}
	streams := c.missingStreams(spans, l.size)
	if len(streams) == 0 {
		return nil, nil
	}
	source, err := l.openBlob(ctx)
	if err != nil {
		return nil, err
	}
	_, several := source.(blob.MultiReader)
	b := &bulk{l: l, c: c, prio: blob.Prefetch, slots: make(chan struct{}, bulkRuns), coming: coming}
	for _, lot := range c.lots(streams, several) {
		if err := b.gather(ctx, lot, several); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// arrivals tells, once, when nothing is on its way any more.
type arrivals struct {
	n    atomic.Int64 // what is
	tell func()
}

func (a *arrivals) done() {
	if a.n.Add(-1) == 0 {
		a.tell()
	}
}

// wantedStream is a stream to prefetch and the first piece that wants it.
type wantedStream struct {
	stream, piece int
}

// missingStreams returns the streams that have something missing of spans,
// each once and in the order of the blob.
func (c *contents) missingStreams(spans []Span, size int64) []wantedStream {
	var all []wantedStream
	for piece, sp := range spans {
		off, end := max(0, sp.Off), min(sp.End, size)
		if off >= end {
			continue
		}
		first, last := c.chunks(off, end)
		if first >= last {
			continue // padding
		}
		for s := c.stream(first); s <= c.stream(last-1); s++ {
			if !c.streamDone(s) {
				all = append(all, wantedStream{s, piece})
			}
		}
	}
	slices.SortFunc(all, func(a, b wantedStream) int {
		return cmp.Or(cmp.Compare(a.stream, b.stream), cmp.Compare(a.piece, b.piece))
	})
	return slices.CompactFunc(all, func(a, b wantedStream) bool { return a.stream == b.stream })
}

// lots cuts streams into what to fetch at once: at most maxLot bytes, and
// without a gap longer than maxGap unless the source can leave gaps out.
func (c *contents) lots(all []wantedStream, gaps bool) [][]int {
	type lot struct {
		streams []int
		piece   int
		bytes   int64 // to be transferred
	}
	var lots []lot
	for i, w := range all {
		st := c.ix.Streams[w.stream]
		size := st.End - st.Off
		if i > 0 {
			last := &lots[len(lots)-1]
			gap := st.Off - c.ix.Streams[all[i-1].stream].End
			if !gaps {
				size += gap
			}
			if (gaps || gap <= maxGap) && last.bytes+size <= maxLot {
				if !gaps {
					for s := all[i-1].stream + 1; s < w.stream; s++ {
						last.streams = append(last.streams, s) // It comes anyway.
					}
				}
				last.streams = append(last.streams, w.stream)
				last.piece = min(last.piece, w.piece)
				last.bytes += size
				continue
			}
		}
		lots = append(lots, lot{[]int{w.stream}, w.piece, st.End - st.Off})
	}
	slices.SortStableFunc(lots, func(a, b lot) int { return cmp.Compare(a.piece, b.piece) })
	out := make([][]int, len(lots))
	for i := range lots {
		out[i] = lots[i].streams
	}
	return out
}

// gather begins to fetch what nobody fetches of some streams, in one run.
func (b *bulk) gather(ctx context.Context, streams []int, several bool) error {
	if err := b.reap(ctx, false); err != nil {
		return err
	}
	select {
	case b.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-b.l.ctx.Done():
		return errClosed
	}
	free := func() { <-b.slots }
	b.l.mu.Lock()
	defer b.l.mu.Unlock()
	r := &run{prio: b.prio, several: several, over: free}
	if b.coming != nil {
		r.received = b.coming.done
	}
	for _, s := range streams {
		if f := b.l.flights[s]; f != nil {
			b.flights = append(b.flights, f)
		} else if b.l.idle(b.c, s) {
			r.flights = append(r.flights, newFlight(s, b.prio))
		}
	}
	if len(r.flights) == 0 {
		free()
		return nil
	}
	r.first = r.flights[0].stream
	if b.coming != nil {
		b.coming.n.Add(1)
	}
	if !b.l.start(b.c, r) {
		free()
		return errClosed
	}
	b.flights = append(b.flights, r.flights...)
	return nil
}

// receiveSeveral reads the run's streams in one go from a source that leaves
// out what lies between them.
func (in *inflow) receiveSeveral(ctx context.Context, source blob.MultiReader) error {
	flights := in.r.flights
	ranges, parts := make([]blob.Range, len(flights)), make([][]byte, len(flights))
	for i, f := range flights {
		s := in.c.ix.Streams[f.stream]
		ranges[i] = blob.Range{Off: s.Off, Len: s.End - s.Off}
	}
	arrived := &gathered{in: in}
	in.handed = make([]bool, len(flights))
	defer func() {
		for _, p := range parts {
			in.l.pool.unreserve(int64(len(p)))
		}
	}()
	err := source.ReadRanges(ctx, ranges, func(i int, off int64, p []byte) error {
		in.l.stats.fetched.Add(int64(len(p)))
		in.watchdog.Reset(in.l.cfg.IOTimeout)
		if parts[i] == nil {
			// A run is short, so it counts and is not refused.
			in.l.pool.buffered.Add(ranges[i].Len)
			parts[i] = make([]byte, ranges[i].Len)
		}
		copy(parts[i][off-ranges[i].Off:], p)
		if off+int64(len(p)) < ranges[i].End() {
			return nil
		}
		in.handed[i] = true
		arrived.add(part{flights[i], parts[i]})
		parts[i] = nil
		return nil
	})
	return err
}

// gathered are streams that arrived and wait to be inflated. While a processor is
// free they wait for nothing, since somebody may wait for them; else several
// small ones are inflated in one go.
type gathered struct {
	in *inflow // constant

	// mu guards what follows.
	mu    sync.Mutex
	parts []part
	bytes int64 // in parts
	tasks int   // how many inflate them
}

// add has one more stream inflated, whose bytes have been reserved.
func (g *gathered) add(p part) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.parts = append(g.parts, p)
	g.bytes += int64(len(p.p))
	if g.bytes > int64(g.tasks)*batchBytes {
		g.tasks++
		g.in.tasks.Go(g.inflate)
	}
}

// inflate inflates what is there until nothing is.
func (g *gathered) inflate() {
	for g.inflateSome() {
	}
}

func (g *gathered) inflateSome() bool {
	g.in.l.pool.acquire(g.in.r.prio)
	defer g.in.l.pool.release()
	parts, bytes := g.take()
	g.in.inflateParts(parts)
	g.in.l.pool.unreserve(bytes)
	return len(parts) > 0
}

// take returns the next streams, with their size in bytes. Whoever gets none is
// no longer counted.
func (g *gathered) take() (parts []part, bytes int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for ; n < len(g.parts) && bytes < batchBytes; n++ {
		bytes += int64(len(g.parts[n].p))
	}
	parts, g.parts = g.parts[:n], g.parts[n:]
	g.bytes -= bytes
	if n == 0 {
		g.tasks--
	}
	return parts, bytes
}
