package store

import (
	"context"
	"errors"
	"io"

	"skimmer/internal/blob"
)

var errReaderClosed = blob.Errorf(blob.Invalid, "read: reader is closed")

// reader delivers one range: pieces that are there from disk, missing ones
// from a flight while they arrive, and what cannot be kept from the source
// itself.
type reader struct {
	h      *handle
	ctx    context.Context
	off    int64 // of the next byte
	end    int64
	whole  bool // of a blob whose digest nobody has compared yet
	resets int  // of the entry when the read began
	err    error
	closed bool

	own   *group  // what was started ahead for this reader; nil most of the time
	cur   *flight // attached to, as is ahead: the flight that continues cur
	ahead *flight

	direct    io.ReadCloser // open up to directEnd; nil most of the time
	directEnd int64
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	for {
		switch {
		case r.err != nil:
			return 0, r.err
		case r.off == r.end:
			r.detach(true)
			return 0, io.EOF
		case len(p) == 0:
			return 0, nil
		}
		n, err := r.step(p[:min(int64(len(p)), r.end-r.off)])
		r.off += int64(n)
		if err != nil {
			r.fail(err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// WriteTo implements io.WriterTo.
func (r *reader) WriteTo(w io.Writer) (total int64, err error) {
	buf := getBuffer(blockSize)
	defer putBuffer(buf)
	for {
		n, err := r.Read(buf)
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		m, err := w.Write(buf[:n])
		total += int64(m)
		if err != nil {
			return total, err
		}
	}
}

// Close implements io.Closer. A fetch that only this reader waited for, and
// not to its end, is cancelled.
func (r *reader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	r.fail(errReaderClosed)
	r.h.unref()
	return nil
}

// fail makes err the answer to all further reads and gives up what is held.
func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.detach(r.off == r.end)
	r.closeDirect()
}

func (r *reader) detach(satisfied bool) {
	if r.cur != nil {
		r.cur.leave(satisfied)
	}
	if r.ahead != nil {
		r.ahead.leave(satisfied)
	}
	r.cur, r.ahead = nil, nil
}

func (r *reader) closeDirect() {
	if r.direct != nil {
		_ = r.direct.Close()
		r.direct = nil
	}
}

// explain says what the reader was doing when err happened.
func (r *reader) explain(err error) error {
	rest := blob.Range{Off: r.off, Len: r.end - r.off}
	return blob.Errorf(blob.KindOf(err), "read %v bytes %v: %w", r.h.ref, rest, err)
}

// step delivers some bytes into p, or none when it has to look again.
func (r *reader) step(p []byte) (int, error) {
	e := r.h.e
	if e.s.ctx.Err() != nil {
		return 0, r.explain(e.s.errClosed())
	}
	if err := r.ctx.Err(); err != nil {
		return 0, r.explain(err)
	}
	if r.direct != nil {
		return r.readDirect(p)
	}
	// The last byte of a whole blob is held back until there is a verdict.
	last := r.whole && r.off == r.end-1
	if r.whole && !last {
		p = p[:min(int64(len(p)), r.end-1-r.off)]
	}
	i := e.geo.piece(r.off)
	e.mu.Lock()
	if r.whole && e.resets != r.resets {
		e.mu.Unlock()
		return 0, r.explain(e.errWrong())
	}
	if e.present.has(i) {
		return r.readLocal(p, i, last)
	}
	return r.readFlight(p, i, last)
}

// readLocal reads from disk. Caller holds e.mu; it does not any more after.
func (r *reader) readLocal(p []byte, i int, last bool) (int, error) {
	e := r.h.e
	// Checked pieces that follow one another are one read.
	checked := r.off
	for k := i; k < e.geo.pieces && checked < r.off+int64(len(p)) && e.present.has(k) && e.checked.has(k); k++ {
		checked = e.geo.start(k + 1)
	}
	r.move(i)
	err := e.openFiles()
	data := e.data
	e.mu.Unlock()
	if err != nil {
		// No descriptor to be had is no reason to fail, nor to drop anything.
		return 0, r.goDirect(i)
	}
	if last {
		if err := e.verdict(r.ctx, r.resets); err != nil {
			return 0, r.explain(err)
		}
		r.whole = false
	}
	if checked == r.off {
		return r.readUnchecked(p, i)
	}
	p = p[:min(int64(len(p)), checked-r.off)]
	n, err := data.readAt(p, r.off)
	if err != nil {
		if e.s.ctx.Err() != nil {
			return 0, r.explain(e.s.errClosed())
		}
		e.mu.Lock()
		e.damaged(e.geo.piece(r.off+int64(n)), err)
		e.mu.Unlock()
	}
	r.hit(n)
	return n, nil
}

// readUnchecked reads all of piece i, and of those after it that p has room
// for, to compare their CRCs.
func (r *reader) readUnchecked(p []byte, i int) (int, error) {
	e := r.h.e
	n := 1
	if end := e.geo.piece(r.off + int64(len(p))); e.geo.pieceSize < blockSize && end > i+1 {
		n = min(end-i, int(blockSize/e.geo.pieceSize))
	}
	buf := getBuffer(e.geo.block())
	defer putBuffer(buf)
	good, err := e.readPieces(i, n, buf)
	if err == errDropped {
		return 0, nil
	} else if err != nil {
		return 0, r.goDirect(i)
	}
	m := copy(p, buf[r.off-e.geo.start(i):good])
	r.hit(m)
	return m, nil
}

// hit counts bytes that were here before they were asked for.
func (r *reader) hit(n int) {
	if r.cur == nil && r.own == nil {
		r.h.e.s.count.hitBytes.Add(int64(n))
		blob.TrafficOf(r.ctx).Local.Add(int64(n))
	}
}

// readFlight reads from the flight that fetches piece i, starting one where
// there is none. Caller holds e.mu; it does not any more after.
func (r *reader) readFlight(p []byte, i int, last bool) (int, error) {
	e := r.h.e
	r.move(i)
	if r.cur != nil && !r.cur.covers(i) {
		r.detach(true) // the piece was there and was dropped
	}
	if r.cur == nil {
		ending, ok := r.board(i)
		if ending != nil {
			e.mu.Unlock()
			select {
			case <-ending.done:
				return 0, nil
			case <-r.ctx.Done():
				return 0, r.explain(r.ctx.Err())
			}
		}
		if !ok {
			e.mu.Unlock()
			return 0, r.goDirect(i)
		}
		r.move(i) // what follows a flight of somebody else is asked for now
	}
	e.mu.Unlock()
	if last {
		p = nil // wait until it landed: only then there can be a verdict
	}
	f := r.cur
	n, err := f.read(r.ctx, p, i, r.off)
	switch {
	case err == nil:
		return n, nil
	case err == errNotKept:
		r.detach(true)
		return 0, r.goDirect(i)
	case r.ctx.Err() == nil && (!f.h.sameSource(r.h) || f.h != r.h && refused(err)):
		r.detach(true) // another's source failed; this reader's may not
		return 0, nil
	}
	return 0, r.explain(err)
}

// refused reports whether err is the answer to who asked rather than to what was
// asked for: with other credentials it may be another.
func refused(err error) bool {
	return errors.Is(err, blob.Unauthorized) || errors.Is(err, blob.Forbidden) || errors.Is(err, blob.NotFound)
}

// move leaves flights that have nothing more for a reader at piece i, and has
// the next one started when the end of this one comes near. Caller holds
// e.mu.
func (r *reader) move(i int) {
	e := r.h.e
	if r.cur == nil {
		return
	}
	stop := r.cur.stop()
	if i >= stop {
		r.cur.leave(true)
		r.cur, r.ahead = r.ahead, nil
		if r.cur != nil && !(r.cur.first <= i && i < r.cur.stop()) {
			r.cur.leave(true)
			r.cur = nil
		}
		return
	}
	near := e.s.cfg.SequentialRun / 4
	if r.ahead != nil || e.geo.start(stop) >= r.end || e.geo.start(stop)-r.off > near {
		return
	}
	if n := r.h.plan(stop, r.end, blob.PriorityOf(r.ctx)); n > 0 && e.s.keeping() {
		r.ahead = r.start(stop, n)
	}
}

// board attaches the reader to a flight that has piece i, under way or new.
// It returns a flight that has to end first, if there is one, and false if
// nothing that is fetched would be kept. Caller holds e.mu.
func (r *reader) board(i int) (ending *flight, ok bool) {
	e := r.h.e
	prio := blob.PriorityOf(r.ctx)
	if f := e.covering(i); f != nil {
		on, dying := f.board(i, prio)
		if dying {
			return f, true
		}
		if on {
			r.cur = f
			if f.g != r.own {
				e.s.count.joins.Add(1)
			}
			return nil, true
		}
	}
	if !e.s.keeping() {
		return nil, false
	}
	n := r.h.plan(i, r.end, prio)
	r.cur = r.start(i, max(n, 1))
	return nil, r.cur != nil
}

// goDirect opens the source for what is missing from r.off, in piece i, on.
func (r *reader) goDirect(i int) error {
	e := r.h.e
	e.mu.Lock()
	n := e.available(i+1, min(e.geo.pieces, e.geo.pieceEnd(r.end))-i-1)
	e.mu.Unlock()
	next, err := r.h.source(r.ctx)
	if err != nil {
		return r.explain(err)
	}
	r.directEnd = min(r.end, e.geo.start(i+1+n))
	r.direct, err = next.ReadRange(r.ctx, blob.Range{Off: r.off, Len: r.directEnd - r.off})
	if err != nil {
		r.direct = nil
		return r.explain(err)
	}
	return nil
}

// readDirect passes bytes through.
func (r *reader) readDirect(p []byte) (int, error) {
	n, err := r.direct.Read(p[:min(int64(len(p)), r.directEnd-r.off)])
	r.h.e.s.count.passedBytes.Add(int64(n))
	switch {
	case r.off+int64(n) == r.directEnd:
		r.closeDirect()
	case err == io.EOF:
		return n, r.explain(blob.Errorf(blob.Corrupt, "its source ended early: %w", io.ErrUnexpectedEOF))
	case err != nil:
		return n, r.explain(err)
	}
	return n, nil
}
