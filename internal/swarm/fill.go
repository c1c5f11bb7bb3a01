package swarm

import (
	"context"
	"slices"

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

// fail ends the filling. Caller holds c.mu, and broadcasts filled.
func (f *filling) fail(err error) {
	if f.err == nil {
		f.err = err
	}
}

// fillings notes for all fillings that the pieces of r are here. Caller holds c.mu.
func (c *content) fillings(r schedule.Run) {
	for _, f := range c.fills {
		if f.left.remove(r); f.left.empty() {
			c.filled.Broadcast()
		}
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
		c.filled.Broadcast()
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
		c.filled.Wait()
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
		c.endFill(p, err)
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

// endFill ends what fill began: what of p did not pass here is in the store
// already, or cannot be had.
func (c *content) endFill(p *part, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.over || p.job != nil {
		return // or others go on with it
	}
	held := c.held(p.left.runs(p.left.all()))
	if len(held) > 0 {
		for _, r := range held {
			p.left.remove(r)
			c.fillings(r)
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
