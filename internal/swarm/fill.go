package swarm

import (
	"context"
	"io"
	"slices"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
	"skimmer/internal/store"
)

// filling is somebody who wants a blob whole and does not mind in which order.
type filling struct {
	// Constant.
	ref blob.Ref
	ctx context.Context

	// Guarded by c.mu.
	left *set // what is not here yet
	want uint64
	err  error
}

// fail ends the filling. Caller holds c.mu, and broadcasts.
func (f *filling) fail(err error) {
	if f.err == nil {
		f.err = err
	}
}

// again asks for what is left. Caller holds c.mu.
func (f *filling) again(c *content) {
	if f.err != nil || f.left.empty() {
		return
	}
	w := &want{prio: blob.PriorityOf(f.ctx), fill: f}
	c.want(w, f.left.runs(f.left.all()), f.ref)
	f.want = w.id
}

// Fetch brings all of a blob into the store, in an order in which peers that
// do the same at the same time can serve each other. Its priority is that of
// ctx; it is meant for those that nobody is blocked on.
//
// Errors: of any kind; Full if the store cannot keep it.
func (s *Swarm) Fetch(ctx context.Context, ref blob.Ref) error {
	b, err := s.top.Open(ctx, ref)
	if err != nil {
		return err
	}
	defer b.Close()
	ref.Size = b.Size()
	c := s.content(ref.Digest, ref.Size)
	defer c.release()
	f := &filling{ref: ref, ctx: ctx, left: newSet(c.geo.n)}
	for {
		missing, err := s.cfg.Store.Missing(ref, blob.Range{Len: ref.Size})
		switch {
		case err != nil:
			return err
		case len(missing) == 0:
			return nil
		case s.cfg.Store.Stats().Full:
			return blob.Errorf(blob.Full, "fetch %v: it cannot be kept", ref)
		}
		if err := c.fetch(f, missing); err != nil {
			return blob.Errorf(blob.KindOf(err), "fetch %v: %w", ref, err)
		}
		// What is on its way to the disk is waited for. Without a scheduler
		// everybody reads for themselves, in order.
		if missing, err = s.cfg.Store.Missing(ref, missing[0]); err != nil {
			return err
		} else if len(missing) > 0 {
			r := missing[0]
			r.Len = min(r.Len, fillRun)
			if err := drain(ctx, b, []blob.Range{r}); err != nil {
				return err
			}
		}
	}
}

// fillRun is how many bytes are read at once where no scheduler says.
const fillRun = 8 << 20

// fetch has what is missing granted and waits until it is here, or until there
// is no scheduler.
func (c *content) fetch(f *filling, missing []blob.Range) error {
	defer context.AfterFunc(f.ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		f.fail(f.ctx.Err())
		c.changed.Broadcast()
	})()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.owner == nil {
		return nil
	}
	for _, r := range missing {
		f.left.add(c.geo.around(r))
	}
	// What was delivered is on its way to the disk.
	for _, r := range c.have.runs(c.have.all()) {
		f.left.remove(r)
	}
	c.fills = append(c.fills, f)
	f.again(c)
	for c.owner != nil && f.err == nil && !f.left.empty() && c.s.ctx.Err() == nil {
		c.changed.Wait()
	}
	c.fills = slices.DeleteFunc(c.fills, func(x *filling) bool { return x == f })
	if _, open := c.wants[f.want]; open {
		delete(c.wants, f.want)
		if !f.left.empty() {
			c.send(schedule.Cancel{Blob: c.name(), Want: f.want})
		}
	}
	if c.s.ctx.Err() != nil {
		return blob.Errorf(blob.Unavailable, "this node is stopping")
	}
	return f.err
}

// drain has ranges of a blob of the store kept.
func drain(ctx context.Context, b blob.Blob, ranges []blob.Range) error {
	if k, ok := b.(store.Keeper); ok {
		return k.Keep(ctx, ranges)
	}
	return blob.ReadRanges(ctx, b, ranges, func(int, int64, []byte) error { return nil })
}

// fill reads what was granted though no reader asked for it: a lease for the
// sake of others, or a part of f. Caller holds c.mu.
func (s *Swarm) fill(c *content, p *part, f *filling) {
	ref := withOrigin(blob.Ref{Digest: c.digest, Size: c.geo.size}, p.origin)
	ctx := blob.WithPriority(s.ctx, p.prio)
	if f != nil {
		ref, ctx = f.ref, f.ctx
	}
	// The reading goes on when all of the part has come: it has to be kept.
	ctx, p.unfill = context.WithCancel(ctx)
	s.mu.Lock()
	c.refs++
	s.mu.Unlock()
	ok := s.spawn(func() {
		defer c.release()
		err := s.fillPart(ctx, c, p, ref)
		c.filled(p, err)
		p.unfill()
	})
	if !ok {
		c.release()
	}
}

// fillPart reads p through the store.
func (s *Swarm) fillPart(ctx context.Context, c *content, p *part, ref blob.Ref) error {
	b, err := s.top.Open(ctx, ref)
	if err != nil {
		return err
	}
	defer b.Close()
	c.mu.Lock()
	runs := p.left.runs(p.left.all())
	c.mu.Unlock()
	var missing []blob.Range
	for _, r := range runs {
		m, err := s.cfg.Store.Missing(ref, c.geo.bytes(r))
		if err != nil {
			return err
		}
		missing = append(missing, m...)
	}
	if len(missing) == 0 {
		return nil
	}
	return drain(ctx, b, missing)
}

// filled ends what fill began: what of p did not pass here is in the store
// already, or cannot be had.
func (c *content) filled(p *part, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.over {
		return
	}
	held := c.held(p.left.runs(p.left.all()))
	if len(held) > 0 {
		for _, r := range held {
			p.left.remove(r)
			for _, f := range c.fills {
				f.left.remove(r)
			}
		}
		c.send(schedule.Have{Blob: c.name(), Runs: held})
	}
	if p.left.empty() {
		c.complete(p)
		return
	}
	if blob.KindOf(err) == blob.Canceled {
		c.finish(p) // whoever asked for it takes the want back
		return
	}
	c.s.log.Debug("could not fetch what was granted", "blob", c.digest, "error", err)
	from, reason := schedule.PeerID(""), schedule.Origin
	if !p.lease {
		from, reason = p.sources[0].ID, schedule.Gone
	}
	c.giveUp(p, from, reason)
}

// stream returns all bytes of b in order, fetched as Fetch does, for the sake of
// others who read it too; what the reader is blocked on for long is asked for
// ahead of the rest.
func (s *Swarm) stream(ctx context.Context, ref blob.Ref) (io.ReadCloser, error) {
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

// stream reads a whole blob while it is fetched in any order.
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
	r := blob.Range{Off: t.off, Len: min(streamRun, t.end-t.off)}
	if v, ok := t.b.(store.Verifier); ok && r.Off == t.end-1 {
		// The last byte says that all was right.
		if err := v.Verify(t.ctx); err != nil {
			return err
		}
	} else if ok && r.End() == t.end {
		r.Len--
	}
	prio := blob.Background
	missing, err := t.s.cfg.Store.Missing(t.ref, r)
	switch {
	case err != nil:
		return err
	case len(missing) > 0 && missing[0].Off > r.Off:
		r.Len = missing[0].Off - r.Off
	case len(missing) > 0:
		if !t.await(t.c.geo.at(r.Off)) {
			prio = blob.Demand
		}
	}
	t.rcEnd = r.End()
	t.rc, err = t.b.ReadRange(blob.WithPriority(t.ctx, prio), r)
	return err
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
	t.c.release()
	return t.b.Close()
}
