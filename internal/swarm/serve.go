package swarm

import (
	"context"
	"io"
	"os"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
	"skimmer/internal/transfer"
)

// expectLimit is how long an upload waits for pieces to be on their way here:
// a scheduler tells both ends of a transfer at the same time, and the other one
// may be quicker.
const expectLimit = 2 * time.Second

// Uploads returns what other peers may read from this one, for a
// transfer.Server: what the store holds, and what is arriving or was granted
// to this node, as it arrives. A seed also reads from the origin for a peer
// that has no scheduler.
func (s *Swarm) Uploads() blob.Source { return uploads{s} }

type uploads struct{ s *Swarm }

// Open implements blob.Source.
func (u uploads) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	s := u.s
	ref.Size = blob.SizeUnknown
	b, err := s.cfg.Store.Local().Open(ctx, ref)
	if blob.KindOf(err) == blob.NotFound {
		b, err = u.expected(ctx, ref)
	}
	if err != nil {
		return nil, err
	}
	return &upload{Blob: b, s: s, c: s.content(ref.Digest, b.Size()), ref: blob.Ref{Digest: ref.Digest, Size: b.Size()}}, nil
}

// expected opens a blob nothing is held of, if some is expected soon.
func (u uploads) expected(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	s := u.s
	if _, size := transfer.OriginOf(ctx); size > 0 && s.cfg.Seed {
		ref.Size = size
		return s.cfg.Store.Local().Open(ctx, ref)
	}
	timeout := time.NewTimer(expectLimit)
	defer timeout.Stop()
	for {
		s.mu.Lock()
		c, coming := s.contents[ref.Digest], s.coming
		s.mu.Unlock()
		if c != nil {
			ref.Size = c.geo.size
			return s.cfg.Store.Local().Open(ctx, ref)
		}
		select {
		case <-coming:
		case <-timeout.C:
			return nil, blob.Errorf(blob.NotFound, "open %v: nothing of it is here or expected", ref)
		case <-ctx.Done():
			return nil, blob.Errorf(blob.KindOf(ctx.Err()), "open %v: %w", ref, ctx.Err())
		case <-s.ctx.Done():
			return nil, blob.Errorf(blob.Unavailable, "open %v: this node is stopping", ref)
		}
	}
}

// upload is a blob as other peers see it.
type upload struct {
	blob.Blob // of the store, what is held or arriving
	s         *Swarm
	c         *content
	ref       blob.Ref
}

// Close implements blob.Blob.
func (u *upload) Close() error {
	u.c.release()
	return u.Blob.Close()
}

// Lend implements transfer.Lender.
func (u *upload) Lend(r blob.Range) (*os.File, int64, []uint32, bool) {
	if l, ok := u.Blob.(transfer.Lender); ok {
		return l.Lend(r)
	}
	return nil, 0, nil, false
}

// Held implements transfer.Holder.
func (u *upload) Held() []blob.Range {
	if h, ok := u.Blob.(transfer.Holder); ok {
		return h.Held()
	}
	return nil
}

// ReadRange implements blob.Blob.
func (u *upload) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	if err := r.Check(u.Size()); err != nil {
		return nil, err
	}
	if origin, size := transfer.OriginOf(ctx); origin != "" && size == u.Size() && u.s.cfg.Seed {
		return u.forOther(ctx, origin, r)
	}
	// In the background: it must not hurry what others wait for here.
	return &relay{u: u, ctx: blob.WithPriority(ctx, blob.Background), off: r.Off, end: r.End()}, nil
}

// forOther reads what is missing from the origin.
func (u *upload) forOther(ctx context.Context, origin string, r blob.Range) (io.ReadCloser, error) {
	b, err := u.s.top.Open(ctx, withOrigin(u.ref, origin))
	if err != nil {
		return nil, err
	}
	defer b.Close()
	u.s.count.forOthers.Add(1)
	return b.ReadRange(ctx, r)
}

// relay reads what is held or arriving, and waits for what is about to. A piece
// is passed on as soon as it came, though those before it, which a reader here
// waits for, may not have: whoever waits for it over there must not depend on
// what this node waits for.
type relay struct {
	u        *upload
	ctx      context.Context
	off, end int64
	rc       io.ReadCloser // of the store, up to rcEnd; nil between two
	rcEnd    int64
}

// Read implements io.Reader.
func (y *relay) Read(p []byte) (int, error) {
	for len(p) > 0 {
		if y.off == y.end {
			return 0, io.EOF
		}
		if y.rc == nil {
			n, err := y.next(p)
			if n > 0 || err != nil {
				return n, err
			}
		}
		n, err := y.rc.Read(p)
		y.off += int64(n)
		if y.off == y.rcEnd || err != nil {
			_ = y.rc.Close() // it failed, or was read to its end
			y.rc = nil
		}
		switch {
		case n > 0:
			return n, nil
		case err == io.EOF:
			return 0, blob.Errorf(blob.Corrupt, "read %v: it ended early: %w", y.u.ref, io.ErrUnexpectedEOF)
		case err != nil:
			return 0, err
		}
	}
	return 0, nil
}

// next waits for the piece that comes next. It copies bytes of it into p if
// they are in memory, or opens the store's, and what it has behind them.
func (y *relay) next(p []byte) (int, error) {
	c := y.u.c
	first := c.geo.at(y.off)
	n, err := y.await(first, p)
	if n > 0 || err != nil {
		return n, err
	}
	rest := blob.Range{Off: y.off, Len: y.end - y.off}
	y.rcEnd = min(c.geo.start(first+1), y.end) // it came, and may not be on disk yet
	missing, err := c.s.cfg.Store.Missing(y.u.ref, rest)
	switch {
	case err != nil:
		return 0, err
	case len(missing) == 0:
		y.rcEnd = y.end
	default:
		y.rcEnd = max(y.rcEnd, missing[0].Off)
	}
	y.rc, err = y.u.Blob.ReadRange(y.ctx, blob.Range{Off: y.off, Len: y.rcEnd - y.off})
	return 0, err
}

// await waits until piece q is here. It copies bytes from the offset on into p
// as far as readers have them in memory.
func (y *relay) await(q int, p []byte) (int, error) {
	c := y.u.c
	c.mu.Lock()
	defer c.mu.Unlock()
	// Mostly it is here, and nothing has to be woken.
	if n, here := y.copied(q, p); here {
		return n, nil
	}
	late := false
	defer time.AfterFunc(expectLimit, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		late = true
		c.changed.Broadcast()
	}).Stop()
	defer context.AfterFunc(y.ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.changed.Broadcast()
	})()
	for {
		switch {
		case y.ctx.Err() != nil:
			return 0, blob.Errorf(blob.KindOf(y.ctx.Err()), "read %v: %w", y.u.ref, y.ctx.Err())
		case c.s.ctx.Err() != nil:
			return 0, blob.Errorf(blob.Unavailable, "read %v: this node is stopping", y.u.ref)
		}
		if n, here := y.copied(q, p); here {
			return n, nil
		}
		if late && !c.expects(q) {
			return 0, blob.Errorf(blob.NotFound, "read %v: piece %d is not here and not expected", y.u.ref, q)
		}
		c.changed.Wait()
	}
}

// copied reports whether piece q is here, and copies what follows the offset, in
// that piece and those behind it, into p as far as readers have it in memory. Caller
// holds c.mu.
func (y *relay) copied(q int, p []byte) (n int, here bool) {
	c := y.u.c
	p = p[:min(int64(len(p)), y.end-y.off)]
	for n < len(p) {
		from, ok := c.peek(y.off)
		if !ok {
			break
		}
		m := copy(p[n:], from)
		n += m
		y.off += int64(m)
	}
	return n, n > 0 || c.have.has(q) || len(c.held([]schedule.Run{{First: q, Count: 1}})) > 0
}

// peek returns the bytes from off on that a reader has in memory and did not take
// yet. Caller holds c.mu, and uses them no longer.
func (c *content) peek(off int64) ([]byte, bool) {
	q := c.geo.at(off)
	for _, j := range c.jobs {
		for _, k := range j.ready {
			if k.first <= q && q < k.first+k.count {
				return k.p[off-c.geo.start(k.first):], true
			}
		}
	}
	return nil, false
}

// Close implements io.Closer.
func (y *relay) Close() error {
	y.end = y.off
	if y.rc == nil {
		return nil
	}
	err := y.rc.Close()
	y.rc = nil
	return err
}
