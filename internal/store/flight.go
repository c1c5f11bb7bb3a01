package store

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"skimmer/internal/blob"
)

// patience is how many bytes a blocked reader lets pass that come before its
// own in a fetch that is under way; beyond it a fetch of its own is quicker.
const patience = 1 << 20

// briefly is how many bytes a reader lets pass that come before its own in a
// fetch of lower priority: about what arrives while a request is made.
const briefly = 128 << 10

// errNotKept ends a flight whose bytes cannot be kept. Its readers read on
// for themselves.
var errNotKept = errors.New("not kept")

// flight is the fetch of a run of missing pieces. Readers take bytes from it
// while they arrive; they go to disk a block at a time.
type flight struct {
	// Constant.
	h     *handle // of the reader that started it
	first int
	prio  blob.Priority
	g     *group        // what it is fetched with
	done  chan struct{} // closed when it is over and out of the entry's table

	// mu guards what follows. buf is written only beyond filled, and so
	// without mu. It may be lent: see lend.
	mu      sync.Mutex
	cur     int           // the first piece in buf; those before it have landed
	end     int           // the piece to stop at; it only decreases
	buf     []byte        // of the current block; nil before the first and when over
	filled  int           // bytes of buf that have arrived; none of piece end
	tainted []int         // pieces in buf that a reader rejected
	over    bool          // nothing more comes
	err     error         // why it ended early; set when over
	wake    chan struct{} // closed at the next progress; nil when nobody waits
}

// start fetches n pieces from i on for r, which is attached. It returns nil
// once the store is closed. Caller holds e.mu.
func (r *reader) start(i, n int) *flight {
	g := newGroup(r.ctx)
	f := g.add(r.h, i, n)
	if !g.launch(r.h, f.fly) {
		return nil
	}
	return f
}

// fly does the fetch.
func (f *flight) fly() {
	f.finish(f.transfer())
}

// finish ends the flight: err, or nil, is what readers get who want more.
func (f *flight) finish(err error) {
	e := f.h.e
	e.mu.Lock()
	e.remove(f)
	e.mu.Unlock()
	f.mu.Lock()
	buf := f.buf
	f.over, f.err, f.buf = true, err, nil
	f.signal()
	f.mu.Unlock()
	close(f.done)
	if buf != nil {
		putBuffer(buf)
	}
	f.h.unref()
}

func (f *flight) transfer() error {
	next, err := f.h.source(f.g.ctx)
	if err != nil {
		return f.explain(err)
	}
	f.mu.Lock()
	off, end := f.h.e.geo.start(f.first), f.h.e.geo.start(f.end)
	f.mu.Unlock()
	rc, err := next.ReadRange(f.g.ctx, blob.Range{Off: off, Len: end - off})
	if err != nil {
		return f.explain(err)
	}
	defer rc.Close()
	if v, ok := rc.(Viewer); ok {
		return f.complete(f.receiveViews(v))
	}
	return f.complete(f.receive(rc))
}

// receive reads what the flight is to fetch.
func (f *flight) receive(r io.Reader) error {
	for p := f.room(); len(p) > 0; p = f.room() {
		n, err := r.Read(p)
		if err := f.arrived(n); err != nil {
			return err
		}
		if err == io.EOF && n < len(p) {
			return f.early()
		} else if err != nil && n < len(p) {
			return err
		}
	}
	return nil
}

// early says that a source ended before it delivered what was asked for.
func (f *flight) early() error {
	return blob.Errorf(blob.Corrupt, "read %v: its source ended early: %w", f.h.ref, io.ErrUnexpectedEOF)
}

// complete keeps the pieces in the buffer that are whole, at the end of a
// fetch that ended with err, and returns what the flight ends with.
func (f *flight) complete(err error) error {
	if err == errNotKept {
		return err
	}
	if kept := f.land(); err == nil {
		return kept
	}
	return f.explain(err)
}

// explain replaces what the end of the store looks like from inside.
func (f *flight) explain(err error) error {
	if s := f.h.e.s; s.ctx.Err() != nil {
		return s.errClosed()
	}
	return err
}

// room returns where the next bytes of the flight go; none if it wants no
// more.
func (f *flight) room() []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.wants()
	if n == 0 {
		return nil
	}
	if f.buf == nil {
		f.buf = getBuffer(f.h.e.geo.block())
	}
	return f.buf[f.filled : f.filled+n]
}

// wants returns how many bytes the current block lacks; 0 if the flight wants no
// more. Caller holds f.mu.
func (f *flight) wants() int {
	if f.g.ending() {
		return 0
	}
	return max(f.limit()-f.filled, 0)
}

// limit returns how many bytes the current block has. Caller holds f.mu.
func (f *flight) limit() int {
	geo := f.h.e.geo
	return int(min(geo.block(), geo.start(f.end)-geo.start(f.cur)))
}

// arrived notes that n bytes were put where room said, and keeps the block if
// it is full.
func (f *flight) arrived(n int) error {
	f.h.e.s.count.fetchedBytes.Add(int64(n))
	f.mu.Lock()
	f.filled = min(f.filled+n, f.limit()) // the end may have moved meanwhile
	full := int64(f.filled) == f.h.e.geo.block()
	f.signal()
	f.mu.Unlock()
	if full {
		return f.land()
	}
	return nil
}

// land keeps the pieces in the buffer that are whole, making room where there
// is none, and gives the buffer to the next. Where that fails bytes are not
// kept any more: errNotKept.
func (f *flight) land() error {
	e := f.h.e
	f.mu.Lock()
	i, n := f.cur, 0
	for i+n < f.end && e.geo.start(i+n+1)-e.geo.start(i) <= int64(f.filled) {
		n++
	}
	f.mu.Unlock()
	if n == 0 {
		return nil
	}
	err := f.write(i, n)
	if err != nil && blob.KindOf(err) == blob.Full && e.s.evict(lookEvery) > 0 {
		err = f.write(i, n)
	}
	if err != nil {
		e.s.noRoom(err)
		return errNotKept
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cur, f.filled, f.tainted = i+n, 0, nil
	f.signal()
	return nil
}

// write puts the n pieces from i on, which the buffer starts with, on disk.
func (f *flight) write(i, n int) error {
	e := f.h.e
	e.mu.Lock()
	data, err := e.writable()
	e.mu.Unlock()
	if err != nil {
		return err
	}
	start := e.geo.start(i)
	put := data.writeAt
	if f.prio == blob.Background {
		put = data.writeThrough // who waits for them has them from memory
	}
	if err := put(f.buf[:e.geo.start(i+n)-start], start); err != nil {
		return err
	}
	rs := make([]record, n)
	for k := range rs {
		p := f.buf[e.geo.start(i+k)-start : e.geo.start(i+k+1)-start]
		rs[k] = record{recPiece, uint32(i + k), checksum(p)}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	f.mu.Lock()
	rs = slices.DeleteFunc(rs, func(r record) bool { return slices.Contains(f.tainted, int(r.index)) })
	f.mu.Unlock()
	if len(rs) == 0 {
		return nil
	}
	kept, err := e.keep(rs)
	if err != nil {
		return err
	}
	e.s.kept(kept)
	return nil
}

// signal wakes who waits for progress. Caller holds f.mu.
func (f *flight) signal() {
	if f.wake != nil {
		close(f.wake)
		f.wake = nil
	}
}

// covers reports whether f still fetches piece i, now or later.
func (f *flight) covers(i int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cur <= i && i < f.end && !f.over
}

// clip returns how many of the n pieces from i on come before those that f
// still fetches.
func (f *flight) clip(i, n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over || f.cur >= f.end || f.end <= i {
		return n
	}
	return min(n, max(f.cur-i, 0))
}

// taint makes sure that piece i, parts of which were delivered and rejected,
// is not kept.
func (f *flight) taint(i int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i >= f.cur && f.ahead(i) < 0 {
		f.tainted = append(f.tainted, i)
	}
}

// ahead returns how many bytes are still to come before piece i; negative if
// some of i have arrived. Caller holds f.mu.
func (f *flight) ahead(i int) int64 {
	geo := f.h.e.geo
	return geo.start(i) - geo.start(f.cur) - int64(f.filled)
}

// board attaches a reader that wants piece i. Where waiting for what comes
// before i would take longer than asking for i, the rest of the flight is
// given up instead: the caller takes over from i on. That is not done where
// other flights share the request, which would bring the bytes all the same.
// A flight that is ending is not boarded either; the caller waits for that.
func (f *flight) board(i int, p blob.Priority) (on, ending bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.end <= i {
		return false, false
	}
	ahead := f.ahead(i)
	late := p < f.prio && ahead > briefly || p == blob.Demand && ahead > patience
	if late && !f.g.shared && !f.g.ending() {
		f.end = i
		return false, false
	}
	on = f.g.enter()
	return on, !on
}

// leave detaches a reader. When it goes without having got what it wanted
// and was the last, the fetch ends.
func (f *flight) leave(satisfied bool) { f.g.leave(satisfied) }

// stop returns the piece f stops at.
func (f *flight) stop() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.end
}

// read copies bytes at off, in piece i, into p as soon as there are some.
// When it returns 0 and no error the piece has to be looked for again: it
// landed, or the flight ended before it. With an empty p it waits for that.
func (f *flight) read(ctx context.Context, p []byte, i int, off int64) (int, error) {
	for {
		f.mu.Lock()
		at := off - f.h.e.geo.start(f.cur)
		switch {
		case i < f.cur || i >= f.end:
			f.mu.Unlock()
			return 0, nil
		case at < int64(f.filled) && len(p) > 0 && !f.over:
			n := copy(p, f.buf[at:f.filled])
			f.mu.Unlock()
			return n, nil
		case f.over:
			err := f.err
			f.mu.Unlock()
			return 0, err
		}
		if f.wake == nil {
			f.wake = make(chan struct{})
		}
		wake := f.wake
		f.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}
