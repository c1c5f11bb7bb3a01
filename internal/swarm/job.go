package swarm

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
	"skimmer/internal/store"
)

const (
	// segmentSize is how many bytes are received, compared and handed over at
	// once at most, unless pieces are larger.
	segmentSize = schedule.Group * smallestPiece
	// window is how many bytes ahead of its reader a job has fetched at most.
	window = 8 << 20
)

// buffer is bytes that several readers may hold.
type buffer struct {
	p    []byte
	refs atomic.Int32
}

var buffers = sync.Pool{New: func() any { return &buffer{p: make([]byte, segmentSize)} }}

// newBuffer returns a buffer of n bytes with one reference.
func newBuffer(n int64) *buffer {
	var b *buffer
	if n <= segmentSize {
		b, _ = buffers.Get().(*buffer)
	}
	if b == nil {
		b = &buffer{p: make([]byte, n)}
	}
	b.refs.Store(1)
	return b
}

func (b *buffer) release() {
	if b.refs.Add(-1) == 0 && len(b.p) == segmentSize {
		buffers.Put(b)
	}
}

// chunk is consecutive pieces that are as they should be.
type chunk struct {
	first, count int
	p            []byte // of b
	b            *buffer
}

// job is pieces that somebody reads.
type job struct {
	// Constant.
	h      *remote
	c      *content
	ctx    context.Context
	prio   blob.Priority
	ranges []blob.Range
	spans  []schedule.Run // the pieces ranges are in, in order and not touching

	// Guarded by c.mu.
	need   *set  // pieces of the window that are not here yet
	open   int64 // bytes of the window
	next   int   // the span the window ends in
	border int   // the piece of it that is not in the window any more
	ready  map[int]chunk
	at     []int // the next piece of each span to be taken
	ahead  []schedule.Run
	err    error
	since  time.Time // of the last progress
	timer  *time.Timer
	moved  *sync.Cond  // of c.mu; broadcast when ready or err changed
	stop   func() bool // of what wakes the reader when ctx ends
}

func newJob(ctx context.Context, h *remote, ranges []blob.Range) *job {
	c := h.c
	j := &job{
		h: h, c: c, ctx: ctx, prio: blob.PriorityOf(ctx), ranges: ranges,
		need: newSet(c.geo.n), ready: map[int]chunk{}, since: time.Now(), moved: sync.NewCond(&c.mu),
	}
	for _, r := range ranges {
		run := c.geo.around(r)
		if n := len(j.spans); n > 0 && run.First <= j.spans[n-1].End() {
			j.spans[n-1].Count = run.End() - j.spans[n-1].First
		} else {
			j.spans = append(j.spans, run)
		}
	}
	for _, span := range j.spans {
		j.at = append(j.at, span.First)
	}
	j.border = j.spans[0].First
	j.extend()
	j.stop = context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		j.fail(ctx.Err())
	})
	return j
}

// fail makes err what the reader gets. Caller holds c.mu.
func (j *job) fail(err error) {
	if j.err == nil {
		j.err = err
		j.moved.Broadcast()
		j.c.changed.Broadcast()
	}
}

// extend makes the window as large as it may be, and reports whether that made
// a difference. Caller holds c.mu, or is the only one.
func (j *job) extend() (more bool) {
	for j.next < len(j.spans) && j.open < window {
		span := j.spans[j.next]
		n := min(span.End()-j.border, int((window-j.open+j.c.geo.piece-1)/j.c.geo.piece))
		run := schedule.Run{First: j.border, Count: n}
		j.need.add(run)
		j.open += j.c.geo.bytes(run).Len
		j.border += n
		more = true
		if j.border == span.End() {
			if j.next++; j.next < len(j.spans) {
				j.border = j.spans[j.next].First
			}
		}
	}
	return more
}

// done reports whether all pieces are here. Caller holds c.mu.
func (j *job) done() bool { return j.need.empty() && j.next == len(j.spans) }

// accept takes what j needs of k, and returns what that is. Caller holds c.mu.
func (j *job) accept(geo geometry, k chunk) []schedule.Run {
	runs := j.need.runs(schedule.Run{First: k.first, Count: k.count})
	for _, r := range runs {
		off := geo.start(r.First) - geo.start(k.first)
		n := geo.bytes(r).Len
		k.b.refs.Add(1)
		j.ready[r.First] = chunk{first: r.First, count: r.Count, p: k.p[off : off+n], b: k.b}
		j.need.remove(r)
	}
	if len(runs) > 0 {
		j.since = time.Now()
		j.arm()
		j.moved.Broadcast()
	}
	return runs
}

// take returns the next chunk, waiting for it; false at the end.
func (j *job) take() (chunk, bool, error) {
	c := j.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		left := false
		for i, span := range j.spans {
			k, ok := j.ready[j.at[i]]
			if ok {
				delete(j.ready, j.at[i])
				j.at[i] += k.count
				if j.open -= int64(len(k.p)); j.open <= window/2 && j.err == nil && j.extend() {
					c.plan(j)
					j.arm()
				}
				return k, true, nil
			}
			left = left || j.at[i] < span.End()
		}
		switch {
		case !left:
			return chunk{}, false, nil
		case j.err != nil:
			return chunk{}, false, blob.Errorf(blob.KindOf(j.err), "read %v: %w", j.h.ref, j.err)
		case c.s.ctx.Err() != nil:
			return chunk{}, false, blob.Errorf(blob.Unavailable, "read %v: this node is stopping", j.h.ref)
		}
		j.moved.Wait()
	}
}

// end ends the job.
func (j *job) end() {
	j.stop()
	c := j.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if j.err == nil {
		j.err = errEnded
		j.moved.Broadcast()
	}
	if j.timer != nil {
		j.timer.Stop()
	}
	for _, k := range j.ready {
		k.b.release()
	}
	j.ready = nil
	c.leave(j)
}

var errEnded = blob.Errorf(blob.Canceled, "the reader was closed")

// deliver hands all that was asked for to land.
func (j *job) deliver(land blob.Land) error {
	for {
		k, ok, err := j.take()
		if !ok {
			return err
		}
		err = j.land(k, land)
		k.b.release()
		if err != nil {
			return err
		}
	}
}

// land hands what ranges have of k to land.
func (j *job) land(k chunk, land blob.Land) error {
	from := j.c.geo.start(k.first)
	end := from + int64(len(k.p))
	for i, r := range j.ranges {
		lo, hi := max(from, r.Off), min(end, r.End())
		if lo >= hi {
			continue
		}
		if err := land(i, lo, k.p[lo-from:hi-from]); err != nil {
			return err
		}
	}
	return nil
}

// reader reads a job of one range.
type reader struct {
	j    *job
	k    chunk
	p    []byte // what is left of k
	err  error
	shut bool
}

// fill makes p not empty, or err not nil.
func (r *reader) fill() {
	for len(r.p) == 0 && r.err == nil {
		r.drop()
		k, ok, err := r.j.take()
		switch {
		case err != nil:
			r.err = err
		case !ok:
			r.err = io.EOF
		default:
			r.k = k
			_ = r.j.land(k, func(_ int, _ int64, p []byte) error {
				r.p = p
				return nil
			})
		}
	}
}

func (r *reader) drop() {
	if r.k.b != nil {
		r.k.b.release()
		r.k, r.p = chunk{}, nil
	}
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	r.fill()
	if len(r.p) == 0 {
		return 0, r.err
	}
	n := copy(p, r.p)
	r.p = r.p[n:]
	return n, nil
}

// View implements store.Viewer.
func (r *reader) View() ([]byte, error) {
	r.fill()
	if len(r.p) == 0 {
		return nil, r.err
	}
	p := r.p
	r.p = nil // k holds it until the next call
	return p, nil
}

var _ store.Viewer = (*reader)(nil)

// WriteTo implements io.WriterTo.
func (r *reader) WriteTo(w io.Writer) (total int64, err error) {
	for {
		r.fill()
		if len(r.p) == 0 {
			if r.err == io.EOF {
				return total, nil
			}
			return total, r.err
		}
		n, err := w.Write(r.p)
		total += int64(n)
		r.p = r.p[n:]
		if err != nil {
			return total, err
		}
	}
}

// Close implements io.Closer.
func (r *reader) Close() error {
	if r.shut {
		return nil
	}
	r.shut = true
	r.drop()
	r.err = errEnded
	r.j.end()
	return nil
}
