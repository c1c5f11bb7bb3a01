package layerdev

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"skimmer/internal/blob"
)

const (
	// neighbourStream and neighbourBytes bound the small streams behind a
	// demanded one that are fetched with it: they cost next to nothing on the
	// way, and are what is read next as often as not.
	neighbourStream = 64 << 10
	neighbourBytes  = 128 << 10
	// maxRun is how many compressed bytes are fetched at once for a reader,
	// laterRun for nobody who waits: short enough to be overtaken.
	maxRun   = 8 << 20
	laterRun = 4 << 20
	// What the kernel reads at once it asks for in pieces, which EROFS makes of 16
	// pages: of windowBytes for a page fault (see erofs.Mount), one after the other
	// within piecesWithin. A read is taken for one if it has pieceBytes.
	windowBytes  = 256 << 10
	pieceBytes   = 48 << 10
	piecesWithin = 200 * time.Microsecond
)

// flight is the fetching of one stream. Whoever wants a chunk of it waits on
// it.
type flight struct {
	// Constant.
	stream int
	run    *run          // set when it is begun
	later  bool          // not begun for a reader
	landed chan struct{} // closed when over

	// Layer.mu guards the rest.
	wanted  map[int]chan struct{} // by chunk; closed when it can be had
	loose   map[int][]byte        // chunks that found no place on the disk
	over    bool
	err     error // once over
	refused bool  // once over: the source was told its bytes are wrong
}

// run is a sequence of streams, in the order of the blob, that are fetched at
// once: as one range, unless several is set and the source can do better.
type run struct {
	first   int // stream
	several bool
	prio    blob.Priority
	flights []*flight
	over    func() // where set, called when all flights are over
	// received, where set, is called when nothing more of it is on its way.
	received func()
	// pieces says that the next stream may be asked for in a moment; then that is
	// added to it. It is set before the run begins.
	pieces  bool
	traffic blob.Traffic
	told    atomic.Bool // a reader was told of the traffic
}

// want is a part of the data that somebody reads.
type want struct {
	off, end    int64
	first, last int // its chunks
	prio        blob.Priority
}

var errIOTimeout = errors.New("no data within the I/O timeout")

// demand fetches what is missing of w and waits until it is there.
func (l *Layer) demand(ctx context.Context, c *contents, w want) ([]looseChunk, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, l.cfg.IOTimeout, errIOTimeout)
	defer cancel()
	if w.prio == blob.Demand {
		l.stats.faults.Add(1)
		l.pool.enter()
		defer l.pool.leave()
	}
	start := time.Now()
	defer func() { l.stats.wait(time.Since(start)) }()
	// Before anything is fetched: what arrives at once was missed, too.
	var missed []int
	for i := w.first; i < w.last; i++ {
		if !c.present.has(i) {
			missed = append(missed, i)
		}
	}
	runs := l.startDemand(c, w)
	var loose []looseChunk
	var err error
	for _, i := range missed {
		var data []byte
		if data, err = l.await(ctx, c, w, i); err != nil {
			err = l.waitFailed(c, w, i, err)
			break
		}
		if data != nil {
			loose = append(loose, looseChunk{c.ix.Chunks[i].DataOff, data})
		}
	}
	if l.cfg.OnRead != nil && w.prio == blob.Demand && len(missed) > 0 {
		a := Access{
			First: w.first, Last: w.last, Bytes: c.bytes(w.first, w.last), Missed: len(missed),
			File: c.file(c.ix.Chunks[missed[0]].DataOff), At: start, Wait: time.Since(start), Err: err,
		}
		for _, r := range runs {
			if r.told.CompareAndSwap(false, true) {
				a.From.add(originsOf(&r.traffic))
			}
		}
		l.cfg.OnRead(a)
	}
	if err != nil {
		return nil, err
	}
	return loose, nil
}

// await waits for one chunk. It returns the chunk's bytes if they are not on
// the disk. A fetch that failed and was not begun for a reader is tried again
// as one that is, and so is one whose bytes the source now knows to be wrong.
// What failed in a way that may pass is tried again for a reader until ctx
// ends.
func (l *Layer) await(ctx context.Context, c *contents, w want, chunk int) ([]byte, error) {
	l.stats.waits.Add(1)
	mayRefuse := true
	p := &patience{l: l, stream: c.stream(chunk)}
	l.mu.Lock()
	defer l.mu.Unlock()
	defer p.leave()
	for {
		if c.present.has(chunk) {
			return nil, nil
		}
		if data := l.pool.heldData(l, chunk); data != nil {
			return data, nil
		}
		f := l.flights[p.stream]
		if f == nil {
			if r := l.resting(p.stream); r != nil && w.prio == blob.Demand {
				p.join(c, chunk)
				if err := l.sleep(ctx, r); err != nil {
					return nil, p.gaveUp(err)
				}
				continue
			}
			p.retried()
			one := want{off: w.off, end: w.end, first: chunk, last: chunk + 1, prio: w.prio}
			if f = l.startMissing(c, one); f == nil {
				return nil, errClosed
			}
		}
		if err := l.unlocked(ctx, f.want(chunk), nil); err != nil {
			return nil, p.gaveUp(err)
		}
		data, over, err := f.loose[chunk], f.over, f.err
		switch {
		case c.present.has(chunk):
			return nil, nil
		case data != nil:
			return data, nil
		case over && err != nil && f.refused && mayRefuse:
			mayRefuse = false
		case over && errors.Is(err, errClosed), w.prio != blob.Demand && err != nil:
			return nil, err
		case over && err != nil && !f.later && passing(err):
			p.last = err
			p.join(c, chunk)
		case over && err != nil && !f.later:
			return nil, err
		}
	}
}

// sleep waits until a stream that rests may be tried again. l.mu is held, but
// not meanwhile.
func (l *Layer) sleep(ctx context.Context, r *rest) error {
	t := time.NewTimer(time.Until(r.until))
	defer t.Stop()
	return l.unlocked(ctx, r.wake, t.C)
}

// unlocked gives l.mu up until a channel is ready, or ctx or the layer ends.
func (l *Layer) unlocked(ctx context.Context, ready <-chan struct{}, timer <-chan time.Time) error {
	l.mu.Unlock()
	defer l.mu.Lock()
	select {
	case <-ready:
	case <-timer:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-l.ctx.Done():
		return errClosed
	}
	return nil
}

// gaveUp adds to the error of a reader that waits no longer why it had to.
func (p *patience) gaveUp(err error) error {
	if p.last == nil || !errors.Is(err, errIOTimeout) {
		return err
	}
	return fmt.Errorf("%w: %w", err, p.last)
}

// errClosed is what readers of a layer get that is being closed.
var errClosed = blob.Errorf(blob.Canceled, "layer is closed")

// waitFailed counts, logs and describes a failed wait for a chunk. A reader
// that went away, or whose layer is being closed, is not worth a line.
func (l *Layer) waitFailed(c *contents, w want, chunk int, err error) error {
	off := c.ix.Chunks[chunk].DataOff
	name := l.fileAt(c, off)
	kind := blob.KindOf(err)
	if errors.Is(err, errIOTimeout) {
		kind = blob.Timeout
		l.stats.timeouts.Add(1)
		l.stats.errors.Add(1)
	}
	if kind != blob.Canceled && w.prio == blob.Demand {
		l.log.Error("read of missing data fails", "file", name, "chunk", chunk, "offset", off,
			"io_timeout", l.cfg.IOTimeout, "error", err)
	}
	return blob.Errorf(kind, "read %q of layer %s: %w", name, l.cfg.Name, err)
}

// startDemand begins to fetch all that is missing of w and not on its way,
// and what a sequential reader will want next. It returns the runs that what
// is missing comes with.
func (l *Layer) startDemand(c *contents, w want) (runs []*run) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.startMissing(c, w)
	for i := w.first; i < w.last; i++ {
		f := l.flights[c.stream(i)]
		if f != nil && !c.present.has(i) && (len(runs) == 0 || runs[len(runs)-1] != f.run) {
			runs = append(runs, f.run)
		}
	}
	if w.prio == blob.Demand {
		l.ahead(c, w.off, w.end)
	}
	return runs
}

// startMissing begins to fetch what is missing of w's chunks, with its small
// neighbours, and returns the first flight it began. Whatever of w is under
// way from then on counts as waited for. l.mu is held.
func (l *Layer) startMissing(c *contents, w want) *flight {
	lastStream := c.stream(w.last - 1)
	target := int64(0)
	if w.prio == blob.Demand {
		target = l.cursors.target(c, w.off, w.end)
	}
	var first *flight
	for i := w.first; i < w.last; {
		s := c.stream(i)
		i = int(c.ix.Streams[s].FirstChunk + c.ix.Streams[s].NumChunks)
		if !l.idle(c, s) || l.heldStream(c, w, s) || w.prio == blob.Demand && l.resting(s) != nil {
			continue
		}
		if f := l.grow(c, w, s); f != nil {
			if first == nil {
				first = f
			}
			continue
		}
		r := l.newRun(c, w.prio, s, func(next int, bytes int64) bool {
			st := c.ix.Streams[next]
			switch {
			case bytes+st.End-st.Off > maxRun:
				return false
			case next <= lastStream, st.End <= target:
				return true
			}
			return w.prio == blob.Demand && st.End-st.Off <= neighbourStream &&
				st.End-c.ix.Streams[max(s, lastStream)].End <= neighbourBytes
		})
		r.pieces = w.prio == blob.Demand && l.splits(c, w, r)
		if !l.start(c, r) {
			return nil
		}
		if r.pieces {
			l.growing = r
		}
		if first == nil {
			first = r.flights[0]
		}
		i = max(i, int(c.ix.Streams[r.last()].FirstChunk+c.ix.Streams[r.last()].NumChunks))
	}
	for i := w.first; i < w.last; i++ {
		if f := l.flights[c.stream(i)]; f != nil && !c.present.has(i) {
			f.want(i)
		}
	}
	return first
}

// splits reports whether w is a piece of a read that goes on in the stream behind a run
// that was made for it. l.mu is held.
func (l *Layer) splits(c *contents, w want, r *run) bool {
	next := r.last() + 1
	if w.end-w.off < pieceBytes || next >= len(c.ix.Streams) || !l.idle(c, next) {
		return false
	}
	return c.ix.Chunks[c.ix.Streams[next].FirstChunk].DataOff < w.off+windowBytes
}

// grow adds a stream to the run in front of it that waits for that, and returns its
// flight; nil if there is none. l.mu is held.
func (l *Layer) grow(c *contents, w want, stream int) *flight {
	r := l.growing
	if r == nil || w.prio != blob.Demand || r.last()+1 != stream || c.ix.Streams[stream].End-c.ix.Streams[r.first].Off > maxRun {
		return nil
	}
	f := newFlight(stream, w.prio)
	f.run = r
	l.flights[stream] = f
	r.flights = append(r.flights, f)
	return f
}

// gatherPieces waits for what may be added to a run.
func (l *Layer) gatherPieces(r *run) {
	t := time.NewTimer(piecesWithin)
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.growing == r {
		l.growing = nil
	}
}

// want returns a channel that is closed when a chunk can be had, or cannot.
// Layer.mu is held.
func (f *flight) want(chunk int) chan struct{} {
	ready := f.wanted[chunk]
	if ready == nil {
		ready = make(chan struct{})
		f.wanted[chunk] = ready
	}
	return ready
}

// heldStream reports whether what w wants of a stream is in memory, the disk
// being full. l.mu is held.
func (l *Layer) heldStream(c *contents, w want, s int) bool {
	st := c.ix.Streams[s]
	from, to := max(w.first, int(st.FirstChunk)), min(w.last, int(st.FirstChunk+st.NumChunks))
	for i := from; i < to; i++ {
		if !c.present.has(i) && l.pool.heldData(l, i) == nil {
			return false
		}
	}
	return true
}

// idle reports whether something of a stream is missing that nobody fetches.
// l.mu is held.
func (l *Layer) idle(c *contents, stream int) bool {
	return l.flights[stream] == nil && !c.streamDone(stream)
}

// last returns the run's last stream.
func (r *run) last() int { return r.flights[len(r.flights)-1].stream }

// newRun makes a run of the idle streams from first on, as long as more wants
// the next one, given how many bytes the run has without it. l.mu is held.
func (l *Layer) newRun(c *contents, prio blob.Priority, first int, more func(next int, bytes int64) bool) *run {
	r := &run{first: first, prio: prio}
	for s := first; s < len(c.ix.Streams) && l.idle(c, s); s++ {
		if s > first && l.resting(s) != nil || s > first && !more(s, c.ix.Streams[s-1].End-c.ix.Streams[first].Off) {
			break
		}
		r.flights = append(r.flights, newFlight(s, prio))
	}
	return r
}

func newFlight(stream int, prio blob.Priority) *flight {
	return &flight{
		stream: stream,
		later:  prio != blob.Demand,
		landed: make(chan struct{}),
		wanted: make(map[int]chan struct{}),
	}
}

// start enters a run and begins to fetch it, unless the layer is closed. l.mu
// is held.
func (l *Layer) start(c *contents, r *run) bool {
	ok := l.spawn(func() { l.fetch(c, r) })
	if ok {
		for _, f := range r.flights {
			f.run = r
			l.flights[f.stream] = f
		}
	}
	return ok
}

// land ends a flight and wakes whoever still waits for a chunk of it.
func (l *Layer) land(f *flight, err error, refused bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.flights, f.stream)
	f.over, f.err, f.refused = true, err, refused
	switch {
	case err == nil:
		l.succeeded(f.stream)
	case !f.later && passing(err):
		l.failed(f.stream, err)
	}
	close(f.landed)
	for chunk, ready := range f.wanted {
		close(ready)
		delete(f.wanted, chunk)
	}
}

// arrived wakes whoever waits for a chunk. data is set where it is not on the
// disk.
func (l *Layer) arrived(f *flight, chunk int, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if data != nil {
		if f.loose == nil {
			f.loose = make(map[int][]byte)
		}
		f.loose[chunk] = data
		l.pool.hold(l, chunk, data)
	}
	if ready := f.wanted[chunk]; ready != nil {
		close(ready)
		delete(f.wanted, chunk)
	}
}

// wantedNow reports whether somebody waits for a chunk of f.
func (l *Layer) wantedNow(f *flight, chunk int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return f.wanted[chunk] != nil
}
