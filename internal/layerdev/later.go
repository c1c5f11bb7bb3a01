package layerdev

import (
	"context"

	"skimmer/internal/blob"
)

// Landmark returns the part of the flat data that the image asks to fetch
// ahead of its start; empty where it asks for nothing.
func (l *Layer) Landmark() (blob.Range, error) {
	if l.IsComplete() {
		return blob.Range{}, nil
	}
	c, err := l.load()
	if err != nil {
		return blob.Range{}, err
	}
	var end int64
	for _, s := range c.ix.Streams {
		if s.Off >= c.ix.PrefetchEnd {
			break
		}
		last := c.ix.Chunks[s.FirstChunk+s.NumChunks-1]
		end = last.DataOff + last.Size
	}
	return blob.Range{Len: end}, nil
}

// Fetch fetches what is missing of the given parts of the flat data, in that
// order, in long runs of which several are under way at once, and returns when
// all of it is present. With priority Background each run lets waiting readers
// go first; with Demand, it is fetched as a reader would.
//
// When ctx ends, no more is begun; what is under way still arrives. Errors
// are those of Ready, and Full where the disk has no room. After an error
// what arrived is kept.
func (l *Layer) Fetch(ctx context.Context, parts []blob.Range, prio blob.Priority) error {
	if l.IsComplete() {
		return nil
	}
	c, err := l.load()
	if err != nil {
		return err
	}
	b := &bulk{l: l, c: c, prio: prio, slots: make(chan struct{}, bulkRuns)}
	for _, part := range parts {
		first, last := c.chunks(max(0, part.Off), min(part.End(), l.size))
		if first >= last {
			continue
		}
		if err = b.fetch(ctx, c.stream(first), c.stream(last-1)+1); err != nil {
			break
		}
	}
	if err == nil {
		err = b.reap(ctx, true)
	}
	if err != nil {
		return blob.Errorf(blob.KindOf(err), "fetch parts of layer %s: %w", l.cfg.Name, err)
	}
	return nil
}

// Complete fetches everything that is missing, as Fetch does with priority
// Background, and returns when that is durable.
func (l *Layer) Complete(ctx context.Context) error {
	if err := l.Fetch(ctx, []blob.Range{{Len: l.size}}, blob.Background); err != nil {
		return err
	}
	select {
	case <-l.done:
		return nil
	case <-ctx.Done():
		return blob.Errorf(blob.KindOf(context.Cause(ctx)), "complete layer %s: %w", l.cfg.Name, context.Cause(ctx))
	case <-l.ctx.Done():
		return errClosed
	}
}

// bulkRuns is how many runs one Fetch has under way at once: enough to hide
// the way to the source, and to keep processors busy.
const bulkRuns = 6

// bulk is one Fetch.
type bulk struct {
	l       *Layer
	c       *contents
	prio    blob.Priority
	slots   chan struct{} // one taken for each run under way
	flights []*flight     // that it waits for, its own and others'
	coming  *arrivals     // where set, the runs of its own that are still on their way
}

// fetch begins to fetch what is missing of the streams [s, end).
func (b *bulk) fetch(ctx context.Context, s, end int) error {
	for s < end {
		if b.prio == blob.Background {
			b.l.pool.yield(ctx)
		}
		if err := b.reap(ctx, false); err != nil {
			return err
		}
		if err := b.pace(ctx, s, end); err != nil {
			return err
		}
		select {
		case b.slots <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-b.l.ctx.Done():
			return errClosed
		}
		next, err := b.begin(s, end)
		if err != nil {
			return err
		}
		s = next
	}
	return nil
}

// pace waits until the next run of the streams [s, end) may be fetched.
func (b *bulk) pace(ctx context.Context, s, end int) error {
	if b.l.cfg.Pace == nil || b.prio != blob.Background {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(b.l.ctx, cancel)()
	streams := b.c.ix.Streams
	n := min(streams[end-1].End-streams[s].Off, laterRun)
	if err := b.l.cfg.Pace(ctx, max(n, streams[s].End-streams[s].Off)); err != nil {
		if b.l.ctx.Err() != nil {
			return errClosed
		}
		return err
	}
	return nil
}

// begin begins one run of the streams [s, end), for which it has a slot,
// and returns where to go on.
func (b *bulk) begin(s, end int) (int, error) {
	free := func() { <-b.slots }
	b.l.mu.Lock()
	defer b.l.mu.Unlock()
	for ; s < end && !b.l.idle(b.c, s); s++ {
		if f := b.l.flights[s]; f != nil {
			b.flights = append(b.flights, f)
		}
	}
	if s == end {
		free()
		return end, nil
	}
	streams := b.c.ix.Streams
	r := b.l.newRun(b.c, b.prio, s, func(next int, bytes int64) bool {
		return next < end && bytes+streams[next].End-streams[next].Off <= laterRun
	})
	r.over = free
	if !b.l.start(b.c, r) {
		free()
		return end, errClosed
	}
	b.flights = append(b.flights, r.flights...)
	return r.last() + 1, nil
}

// reap takes note of flights that are over, in their order, waiting for all
// of them if told so, and returns the first failure.
func (b *bulk) reap(ctx context.Context, wait bool) error {
	for len(b.flights) > 0 {
		f := b.flights[0]
		if wait {
			select {
			case <-f.landed:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		} else {
			select {
			case <-f.landed:
			default:
				return nil
			}
		}
		b.flights = b.flights[1:]
		if f.err != nil {
			return f.err
		}
		if !b.c.streamDone(f.stream) {
			return blob.Errorf(blob.Full, "no room on the disk for %q", b.c.file(b.c.ix.Chunks[b.c.ix.Streams[f.stream].FirstChunk].DataOff))
		}
	}
	return nil
}
