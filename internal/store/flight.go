package store

import (
	"context"
	"errors"
	"hash/crc32"
	"io"
	"sync"

	"skimmer/internal/blob"
)

// patience is how many bytes a blocked reader lets pass that come before its
// own in a fetch that is under way; beyond it a fetch of its own is quicker.
const patience = 1 << 20

// errNotKept ends a flight whose bytes cannot be kept. Its readers read on
// for themselves.
var errNotKept = errors.New("not kept")

// flight is the fetch of a run of missing pieces. Readers take bytes from it
// while they arrive; pieces that are complete go to disk.
type flight struct {
	// Constant.
	h      *handle // of the reader that started it
	first  int
	prio   blob.Priority
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{} // closed when it is over and out of the entry's table

	// mu guards what follows. buf is written only beyond filled, and so
	// without mu.
	mu      sync.Mutex
	cur     int           // the piece in buf; those before it have landed
	end     int           // the piece to stop at; it only decreases
	buf     []byte        // of the current piece; nil when over
	filled  int           // bytes of cur that have arrived
	tainted bool          // a reader rejected cur
	readers int           // who wait for it
	dying   bool          // nobody does any more
	over    bool          // nothing more comes
	err     error         // why it ended early; set when over
	wake    chan struct{} // closed at the next progress; nil when nobody waits
}

// start fetches n pieces from i on for r, which is attached. It returns nil
// once the store is closed. Caller holds e.mu.
func (r *reader) start(i, n int) *flight {
	e := r.h.e
	f := &flight{h: r.h, first: i, prio: blob.PriorityOf(r.ctx), done: make(chan struct{}), cur: i, end: i + n, readers: 1}
	// What the reader's context carries crosses this hop; its end does not:
	// others may wait by then. The store's end reaches the fetch through
	// AfterFunc.
	f.ctx, f.cancel = context.WithCancel(context.WithoutCancel(r.ctx))
	f.h.refs.Add(1)
	if !e.s.spawn(e, f.fly) {
		f.cancel()
		f.h.refs.Add(-1)
		return nil
	}
	e.s.count.fetches.Add(1)
	e.flights = append(e.flights, f)
	return f
}

// fly does the fetch.
func (f *flight) fly() {
	e := f.h.e
	unlink := context.AfterFunc(e.s.ctx, f.cancel)
	buf := getBuffer(e.geo.pieceSize)
	err := f.transfer(buf)
	unlink()
	f.cancel()

	e.mu.Lock()
	e.remove(f)
	e.mu.Unlock()
	f.mu.Lock()
	f.over, f.err, f.buf = true, err, nil
	f.signal()
	f.mu.Unlock()
	close(f.done)
	putBuffer(buf)
	f.h.unref()
}

func (f *flight) transfer(buf []byte) error {
	e := f.h.e
	next, err := f.h.source(f.ctx)
	if err != nil {
		return f.explain(err)
	}
	f.mu.Lock()
	off, end := e.geo.start(f.first), e.geo.start(f.end)
	f.mu.Unlock()
	rc, err := next.ReadRange(f.ctx, blob.Range{Off: off, Len: end - off})
	if err != nil {
		return f.explain(err)
	}
	defer rc.Close()
	for i := f.first; f.claim(i, buf[:e.geo.length(i)]); i++ {
		crc, err := f.fill(rc)
		if err != nil {
			return f.explain(err)
		}
		if err := f.land(i, crc); err != nil {
			e.s.noRoom(err)
			return errNotKept
		}
	}
	return nil
}

// explain replaces what the end of the store looks like from inside.
func (f *flight) explain(err error) error {
	if s := f.h.e.s; s.ctx.Err() != nil {
		return s.errClosed()
	}
	return err
}

// claim makes i the current piece, and reports false if the flight ends
// before it.
func (f *flight) claim(i int, buf []byte) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cur, f.buf, f.filled, f.tainted = i, buf, 0, false
	f.signal()
	return i < f.end && !f.dying
}

// fill reads the current piece and returns its CRC.
func (f *flight) fill(r io.Reader) (crc uint32, err error) {
	count := &f.h.e.s.count.fetchedBytes
	buf := f.buf
	for n := 0; n < len(buf); {
		m, err := r.Read(buf[n:])
		crc = crc32.Update(crc, castagnoli, buf[n:n+m])
		n += m
		count.Add(int64(m))
		f.mu.Lock()
		f.filled = n
		f.signal()
		f.mu.Unlock()
		if err != nil && n < len(buf) {
			if err == io.EOF {
				return 0, blob.Errorf(blob.Corrupt, "read %v: its source ended early: %w", f.h.ref, io.ErrUnexpectedEOF)
			}
			return 0, err
		}
	}
	return crc, nil
}

// land keeps the current piece, making room where there is none.
func (f *flight) land(i int, crc uint32) error {
	s := f.h.e.s
	err := f.write(i, crc)
	if err != nil && blob.KindOf(err) == blob.Full && s.evict(lookEvery) > 0 {
		err = f.write(i, crc)
	}
	return err
}

func (f *flight) write(i int, crc uint32) error {
	e := f.h.e
	e.mu.Lock()
	data, err := e.writable()
	e.mu.Unlock()
	if err != nil {
		return err
	}
	if err := data.writeAt(f.buf, e.geo.start(i)); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	f.mu.Lock()
	tainted := f.tainted
	f.mu.Unlock()
	if tainted {
		return nil
	}
	if err := e.keep(i, crc); err != nil {
		return err
	}
	e.s.kept(int64(len(f.buf)))
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

// taint makes sure that piece i, parts of which were delivered and rejected,
// is not kept.
func (f *flight) taint(i int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tainted = f.tainted || i == f.cur
}

// board attaches a reader that wants piece i. Where waiting for what comes
// before i would take longer than asking for i, the rest of the flight is
// given up instead: the caller takes over from i on. A flight that is ending
// is not boarded either; the caller waits for that.
func (f *flight) board(i int, p blob.Priority) (on, ending bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dying || f.end <= i {
		return false, f.dying
	}
	ahead := int64(i-f.cur) * f.h.e.geo.pieceSize
	if ahead > 0 && (p < f.prio || p == blob.Demand && ahead > patience) {
		f.end = i
		return false, false
	}
	f.readers++
	return true, false
}

// leave detaches a reader. When it goes without having got what it wanted
// and was the last, the flight ends.
func (f *flight) leave(satisfied bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readers--; f.readers == 0 && !satisfied {
		f.dying = true
		f.cancel()
	}
}

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
	at := int(off - f.h.e.geo.start(i))
	for {
		f.mu.Lock()
		switch {
		case i < f.cur || i >= f.end:
			f.mu.Unlock()
			return 0, nil
		case i == f.cur && at < f.filled && len(p) > 0 && !f.over:
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
