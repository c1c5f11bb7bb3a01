package store

import (
	"context"
	"io"
	"os"

	"skimmer/internal/blob"
)

// Exposer is a blob of a Store whose bytes others may read from its file.
type Exposer interface {
	// Expose opens the file that has the blob's bytes, each where the blob has
	// it, for reading alone; the caller closes it. It stays as it is when the
	// blob is removed. Which of its bytes mean something says Follow.
	//
	// Errors: Full where no file can be made, Unavailable after Close, and those
	// of the file system.
	Expose() (*os.File, error)
	// Follow has a range fetched as ReadRange does and says how much of it is on
	// disk. The caller closes the Follower. Errors: Invalid for a range that is
	// not inside the blob.
	Follow(ctx context.Context, r blob.Range) (Follower, error)
}

// Follower tells how a range of a blob gets on. It is used by one goroutine.
type Follower interface {
	// Next waits until more of the range is on disk and compared with its CRC32C,
	// and returns the offset in the blob up to which all of it is; io.EOF when
	// that had been said of the whole. A whole blob is said to be there after its
	// digest was compared.
	//
	// Errors: Full if the store keeps nothing more, Corrupt if the digest is
	// wrong, and those of ReadRange. What was said before stays true.
	Next() (int64, error)
	// Close ends the fetching, if nobody else needs it.
	Close() error
}

// followStep is how many bytes a Follower waits for at most before it tells.
const followStep = 1 << 20

// Expose implements Exposer.
func (o *opened) Expose() (*os.File, error) {
	e := o.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.s.ctx.Err() != nil {
		return nil, e.s.errClosed()
	}
	if _, err := e.writable(); err != nil {
		return nil, blob.Errorf(blob.Full, "expose %v: %w", o.ref, err)
	}
	path := e.path(dataName)
	if err := e.s.fs.before(Op{Name: OpOpen, Path: path}); err != nil {
		return nil, err
	}
	return os.Open(path)
}

// Follow implements Exposer.
func (o *opened) Follow(ctx context.Context, r blob.Range) (Follower, error) {
	rc, err := o.reader(ctx, r, nil)
	if err != nil {
		return nil, err
	}
	held := r.Len
	o.e.mu.Lock()
	for _, m := range o.e.lacking(r) {
		held -= m.Len
	}
	o.e.mu.Unlock()
	o.e.s.count.hitBytes.Add(held)
	blob.TrafficOf(ctx).Local.Add(held)
	return &follower{rc.(*reader)}, nil
}

// follower is a reader that leaves the bytes where they are.
type follower struct{ r *reader }

// Close implements Follower.
func (f *follower) Close() error { return f.r.Close() }

// Next implements Follower.
func (f *follower) Next() (int64, error) {
	r := f.r
	from := r.off
	for r.err == nil {
		if r.off == r.end {
			r.detach(true)
			return r.off, io.EOF
		}
		err := f.step(from)
		if err != nil {
			r.fail(err)
		} else if r.off > from {
			return r.off, nil
		}
	}
	return from, r.err
}

// step moves from an offset on to where all is on disk and right. It may move to
// where it was, if a piece turned out to be damaged.
func (f *follower) step(from int64) error {
	r, e := f.r, f.r.h.e
	stop := min(from+followStep, r.end)
	for r.off < stop {
		if err := r.keepNext(stop); err != nil {
			return err
		}
	}
	good, err := e.check(blob.Range{Off: from, Len: stop - from})
	if err != nil {
		return r.explain(err)
	}
	if r.off = good; !r.whole {
		return nil
	}
	e.mu.Lock()
	reset := e.resets != r.resets
	e.mu.Unlock()
	if reset {
		return r.explain(e.errWrong())
	}
	if r.off == r.end {
		if err := e.verdict(r.ctx, r.resets); err != nil {
			return r.explain(err)
		}
		r.whole = false
	}
	return nil
}

// check compares the CRCs of the pieces r is in that were not compared since
// they were read from disk, and returns the end of what is right from the
// beginning of r. What is damaged is dropped. Caller holds e, not e.mu.
func (e *entry) check(r blob.Range) (int64, error) {
	first, end := e.geo.piece(r.Off), e.geo.pieceEnd(r.End())
	for i := first; i < end; {
		e.mu.Lock()
		for i < end && e.present.has(i) && e.checked.has(i) {
			i++
		}
		e.mu.Unlock()
		if i == end {
			break
		}
		n, err := e.checkFrom(i, end)
		if err == errDropped {
			return max(r.Off, e.geo.start(i)), nil
		} else if err != nil {
			return r.Off, err
		}
		i += n
	}
	return r.End(), nil
}

// checkFrom compares the CRCs of some pieces from i on, and returns of how many.
func (e *entry) checkFrom(i, end int) (int, error) {
	buf := getBuffer(e.geo.block())
	defer putBuffer(buf)
	n := 1
	for i+n < end && e.geo.start(i+n+1)-e.geo.start(i) <= int64(len(buf)) {
		n++
	}
	good, err := e.readPieces(i, n, buf)
	if err != nil {
		return 0, err
	}
	return e.geo.pieceEnd(e.geo.start(i)+good) - i, nil
}
