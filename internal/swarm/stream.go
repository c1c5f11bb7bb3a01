package swarm

import (
	"context"
	"io"
	"os"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
	"skimmer/internal/store"
)

// stream has a whole blob fetched as Fetch does, for the sake of others who read it
// too, for a reader who wants it in order; what that is blocked on for long is asked
// for ahead of the rest.
func (s *Swarm) stream(ctx context.Context, ref blob.Ref) (*stream, error) {
	b, err := s.top.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	r := blob.Range{Len: b.Size()}
	ref.Size = r.Len
	t := &stream{s: s, b: b, ref: ref, off: r.Off, end: r.End(), c: s.content(ref.Digest, ref.Size)}
	// What is read below was counted when it came, unless it comes for the
	// reading itself.
	t.traffic = blob.TrafficOf(ctx)
	t.ctx, t.cancel = context.WithCancel(blob.WithTraffic(ctx, &t.own))
	held := ref.Size
	if missing, err := s.cfg.Store.Missing(ref, r); err == nil {
		for _, m := range missing {
			held -= m.Len
		}
	}
	t.traffic.Local.Add(held)
	fetching := blob.WithTraffic(t.ctx, t.traffic)
	if v, ok := b.(store.Verifier); ok {
		v.WillVerify()
	}
	t.fetched = make(chan struct{})
	ok := s.spawn(func() {
		defer close(t.fetched)
		defer context.AfterFunc(s.ctx, t.cancel)()
		// What fails is noticed by the reader when it gets there.
		if err := s.Fetch(blob.WithPriority(fetching, blob.Background), ref); err != nil && t.ctx.Err() == nil {
			s.log.Debug("could not fetch a blob ahead of its reader", "blob", ref.Digest, "error", err)
		}
		t.c.mu.Lock()
		t.c.changed.Broadcast()
		t.c.mu.Unlock()
	})
	if !ok {
		close(t.fetched)
	}
	return t, nil
}

const (
	// streamRun is how many bytes a stream reads at once.
	streamRun = 1 << 20
	// streamPatience is how long a stream waits for others to be served first.
	streamPatience = 500 * time.Millisecond
)

// stream goes through a whole blob while it is fetched in any order: as a reader,
// or as tail does.
type stream struct {
	// Constant.
	s       *Swarm
	b       blob.Blob
	c       *content
	ref     blob.Ref
	ctx     context.Context
	cancel  context.CancelFunc
	fetched chan struct{} // closed when the fetching is over
	traffic *blob.Traffic // of who reads
	own     blob.Traffic  // of reads below; of it, what was here is counted in traffic already

	off, end int64
	rc       io.ReadCloser // up to rcEnd; nil most of the time
	rcEnd    int64
	follow   store.Follower // in place of rc, for a tail
	err      error
	shut     bool
}

// Read implements io.Reader.
func (t *stream) Read(p []byte) (int, error) {
	for t.err == nil && t.off < t.end && len(p) > 0 {
		if t.rc == nil {
			if t.err = t.next(); t.err != nil {
				break
			}
		}
		n, err := t.rc.Read(p)
		t.off += int64(n)
		if err == io.EOF && t.off == t.rcEnd {
			err = t.rc.Close()
			t.rc = nil
		}
		t.err = err
		if n > 0 {
			return n, nil
		}
	}
	if t.err == nil && t.off == t.end {
		t.err = io.EOF
	}
	t.tally()
	return 0, t.err
}

// tally counts what was fetched for the reading itself.
func (t *stream) tally() {
	t.traffic.Peers.Add(t.own.Peers.Swap(0))
	t.traffic.Origin.Add(t.own.Origin.Swap(0))
}

// next opens what follows.
func (t *stream) next() error {
	r, prio, err := t.ahead()
	if err != nil {
		return err
	}
	t.rcEnd = r.End()
	t.rc, err = t.b.ReadRange(blob.WithPriority(t.ctx, prio), r)
	return err
}

// ahead waits until what follows is here or on its way, and returns a run of it and
// how urgent it is.
func (t *stream) ahead() (blob.Range, blob.Priority, error) {
	r := blob.Range{Off: t.off, Len: min(streamRun, t.end-t.off)}
	if v, ok := t.b.(store.Verifier); ok && r.Off == t.end-1 {
		// The last byte says that all was right.
		if err := v.Verify(t.ctx); err != nil {
			return r, 0, err
		}
	} else if ok && r.End() == t.end {
		r.Len--
	}
	missing, err := t.s.cfg.Store.Missing(t.ref, r)
	switch {
	case err != nil:
		return r, 0, err
	case len(missing) > 0 && missing[0].Off > r.Off:
		r.Len = missing[0].Off - r.Off
	case len(missing) > 0 && !t.await(t.c.geo.at(r.Off)):
		return r, blob.Demand, nil
	}
	return r, blob.Background, nil
}

// await waits until piece p is being fetched, or long enough.
func (t *stream) await(p int) bool {
	c := t.c
	late := false
	timer := time.AfterFunc(streamPatience, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		late = true
		c.changed.Broadcast()
	})
	defer timer.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !late && !c.expects(p) {
		select {
		case <-t.fetched:
			return false
		case <-t.ctx.Done():
			return false
		default:
		}
		if len(c.held([]schedule.Run{{First: p, Count: 1}})) > 0 {
			return true
		}
		c.changed.Wait()
	}
	return !late
}

// Close implements io.Closer. Fetching that nobody else needs ends.
func (t *stream) Close() error {
	if t.shut {
		return nil
	}
	t.shut = true
	t.cancel()
	t.c.mu.Lock()
	t.c.changed.Broadcast()
	t.c.mu.Unlock()
	<-t.fetched
	t.tally()
	t.err = errEnded
	if t.rc != nil {
		_ = t.rc.Close() // nothing is read from it any more
	}
	if t.follow != nil {
		_ = t.follow.Close() // nor this
	}
	t.c.release()
	return t.b.Close()
}

// tail is a stream whose bytes stay where they are. It implements store.Follower.
type tail struct{ *stream }

// Next implements store.Follower.
func (t tail) Next() (int64, error) {
	for t.err == nil && t.off < t.end {
		if t.follow == nil {
			if t.err = t.open(); t.err != nil {
				break
			}
		}
		off, err := t.follow.Next()
		if err == nil {
			t.off = off
			return off, nil
		}
		if err == io.EOF {
			err = t.follow.Close()
			t.follow = nil
		}
		t.err = err
	}
	if t.err == nil {
		t.err = io.EOF
	}
	t.tally()
	return t.off, t.err
}

// open follows what comes next.
func (t tail) open() error {
	b, ok := t.b.(store.Exposer)
	if !ok {
		return blob.Errorf(blob.Full, "follow %v: it is not kept", t.ref)
	}
	r, prio, err := t.ahead()
	if err != nil {
		return err
	}
	t.follow, err = b.Follow(blob.WithPriority(t.ctx, prio), r)
	return err
}

// Expose implements store.Exposer.
func (o *opened) Expose() (*os.File, error) {
	if b, ok := o.Blob.(store.Exposer); ok {
		return b.Expose()
	}
	return nil, blob.Errorf(blob.Full, "expose %v: it is not kept", o.ref)
}

// Follow implements store.Exposer.
func (o *opened) Follow(ctx context.Context, r blob.Range) (store.Follower, error) {
	if ref, ok := o.streams(r); ok {
		t, err := o.s.stream(ctx, ref)
		if err != nil {
			return nil, err
		}
		return tail{t}, nil
	}
	if b, ok := o.Blob.(store.Exposer); ok {
		return b.Follow(ctx, r)
	}
	return nil, blob.Errorf(blob.Full, "follow %v: it is not kept", o.ref)
}

// streams reports whether r is had as a stream: who wants all of a large blob does
// not mind in which order it is fetched.
func (o *opened) streams(r blob.Range) (blob.Ref, bool) {
	ref := o.ref
	ref.Size = o.Size()
	if r.Off != 0 || r.Len != ref.Size || ref.Size <= streamRun {
		return ref, false
	}
	missing, err := o.s.cfg.Store.Missing(ref, r)
	return ref, err == nil && len(missing) > 0
}
