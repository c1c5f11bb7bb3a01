package swarm

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"slices"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
	"skimmer/internal/transfer"
)

// part is pieces that this node was granted: to take them from peers, or to
// read them from the origin. Workers fetch what of it jobs wait for.
type part struct {
	// Constant.
	want    uint64 // 0: for others, or not from a scheduler
	job     *job   // for whom it was granted; nil if for many
	sources []schedule.Source
	lease   bool
	local   bool // decided here, without a scheduler: there are no digests
	prio    blob.Priority
	origin  string          // where a peer may read it, if local
	ctx     context.Context // of its workers
	cancel  context.CancelFunc

	// Guarded by c.mu.
	unfill   context.CancelFunc // ends who reads it for no reader; nil if nobody does
	left     *set               // what is not here yet
	over     bool
	stale    bool // the lease of a scheduler that is gone
	workers  int
	tried    int       // sources that were given a worker
	progress time.Time // when something came last, or a worker began
	told     time.Time // when the scheduler was told last of progress
}

// employ starts a worker that takes from the i-th source. Caller holds c.mu.
func (c *content) employ(p *part, i int) {
	p.workers++
	p.tried = max(p.tried, i+1)
	p.progress = time.Now()
	if !c.s.spawn(func() { c.work(p, i) }) {
		p.workers--
	}
}

// work fetches what jobs need of p, until there is nothing more of it.
func (c *content) work(p *part, i int) {
	for {
		c.mu.Lock()
		run, j := c.due(p)
		if p.over || run.Count == 0 {
			p.workers--
			c.mu.Unlock()
			return
		}
		var runs []schedule.Run
		if p.lease {
			runs = c.leased(p)
		}
		c.mu.Unlock()
		var err error
		if p.lease {
			err = c.fromOrigin(p, j, runs)
		} else {
			err = c.fromPeer(p, j, p.sources[i], run)
		}
		if err != nil && p.ctx.Err() == nil {
			c.failed(p, j, i, err)
			return
		}
	}
}

// due returns what is to be fetched of p next, and the most urgent of the jobs
// that wait for it, or nothing. Caller holds c.mu.
func (c *content) due(p *part) (run schedule.Run, j *job) {
	if run = c.needed(p); run.Count == 0 {
		return run, nil
	}
	for _, x := range c.jobs {
		if x.err == nil && x.need.has(run.First) && (j == nil || x.prio < j.prio) {
			j = x
		}
	}
	return c.grouped(p, run), j // a group may begin before what is waited for
}

// grouped returns run with the pieces of p before and behind it without which
// it cannot be compared, because of their group only one digest is known. Caller
// holds c.mu.
func (c *content) grouped(p *part, run schedule.Run) schedule.Run {
	if p.lease || p.local || run.Count == 0 {
		return run
	}
	single := func(q int) bool {
		_, ok := c.sums[q]
		return ok
	}
	for q := run.First - 1; q >= run.First/schedule.Group*schedule.Group && p.left.has(q) && !single(q); q-- {
		run.First, run.Count = q, run.Count+1
	}
	for q := run.End(); q%schedule.Group != 0 && q < c.geo.n && p.left.has(q) && !single(q); q++ {
		run.Count++
	}
	return run
}

// leased returns all that jobs need of p. Caller holds c.mu.
func (c *content) leased(p *part) (runs []schedule.Run) {
	for q := p.left.next(0, c.geo.n, true); q < c.geo.n; q = p.left.next(q, c.geo.n, true) {
		if !c.wanted(q) {
			q++
			continue
		}
		if n := len(runs); n > 0 && runs[n-1].End() == q {
			runs[n-1].Count++
		} else {
			runs = append(runs, schedule.Run{First: q, Count: 1})
		}
		q++
	}
	return runs
}

// segment is pieces that are received into one buffer.
type segment struct {
	run    schedule.Run
	b      *buffer
	filled int64
	sums   []schedule.Sum // of the pieces that are whole
	passed int            // how many pieces were handed over
}

// segmentAt returns the segment of the pieces from p on, up to end: it stops
// where a group does.
func (c *content) segmentAt(p, end int) *segment {
	stop := min((p/schedule.Group+1)*schedule.Group, end)
	run := schedule.Run{First: p, Count: stop - p}
	return &segment{run: run, b: newBuffer(c.geo.bytes(run).Len)}
}

// room returns where the next bytes go.
func (g *segment) room(geo geometry) []byte { return g.b.p[g.filled:geo.bytes(g.run).Len] }

// add notes that n bytes were put where room said.
func (g *segment) add(geo geometry, n int) {
	g.filled += int64(n)
	base := geo.start(g.run.First)
	for p := g.run.First + len(g.sums); p < g.run.End() && geo.start(p+1)-base <= g.filled; p++ {
		g.sums = append(g.sums, sha256.Sum256(g.b.p[geo.start(p)-base:geo.start(p+1)-base]))
	}
}

// pass returns the pieces up to and not including the k-th that were not
// handed over yet.
func (g *segment) pass(geo geometry, k int) chunk {
	first := g.run.First + g.passed
	base := geo.start(g.run.First)
	out := chunk{first: first, count: k - g.passed, b: g.b,
		p: g.b.p[geo.start(first)-base : geo.start(g.run.First+k)-base]}
	g.passed = k
	return out
}

// fromPeer fetches run from a peer, for j.
func (c *content) fromPeer(p *part, j *job, src schedule.Source, run schedule.Run) error {
	ctx := transfer.WithoutChecksums(p.ctx)
	if p.local {
		ctx = transfer.WithOrigin(p.ctx, p.origin, c.geo.size)
	}
	b, err := c.s.cfg.Client.Source(src.Addr).Open(ctx, blob.Ref{Digest: c.digest, Size: c.geo.size})
	if err != nil {
		return err
	}
	defer b.Close()
	rc, err := b.ReadRange(ctx, c.geo.bytes(run))
	if err != nil {
		return err
	}
	defer rc.Close()
	began := time.Now()
	for at := run.First; at < run.End(); {
		g := c.segmentAt(at, run.End())
		wanted, err := c.receive(p, j, g, rc)
		g.b.release()
		if err != nil || !wanted {
			return err
		}
		if p.local {
			c.s.withSeeds()
		}
		c.s.pace.note(src.Addr, time.Since(began))
		began = time.Now()
		at = g.run.End()
	}
	return nil
}

// receive reads g from rc for j, compares it, and hands it over. It returns
// false when nobody needs more of p.
func (c *content) receive(p *part, j *job, g *segment, rc io.Reader) (wanted bool, err error) {
	if !c.wantsMore(p) {
		return false, nil
	}
	for room := g.room(c.geo); len(room) > 0; room = g.room(c.geo) {
		n, err := rc.Read(room)
		g.add(c.geo, n)
		if err != nil && len(g.room(c.geo)) > 0 {
			if err == io.EOF {
				err = blob.Errorf(blob.Corrupt, "the answer ended early: %w", io.ErrUnexpectedEOF)
			}
			return false, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	late := false
	defer time.AfterFunc(sumsLimit, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		late = true
		c.summed.Broadcast()
	}).Stop()
	for g.passed < g.run.Count {
		k, err := c.verified(p, g)
		switch {
		case err != nil:
			return false, err
		case p.over:
			return false, nil
		case k > g.passed:
			// Counted before anybody can have it, and ask how much it was.
			n := c.geo.start(g.run.First+k) - c.geo.start(g.run.First+g.passed)
			c.s.count.fromPeers.Add(n)
			blob.TrafficOf(j.ctx).Peers.Add(n)
			c.keep(p, g, k, nil)
			continue
		}
		if late || c.s.ctx.Err() != nil {
			return false, errNoSums
		}
		c.summed.Wait()
	}
	return true, nil
}

// errNoSums says that a digest did not come in time.
var errNoSums = blob.Errorf(blob.Timeout, "the scheduler did not say which bytes are right")

// errWrong says that a peer sent something else.
var errWrong = errors.New("bytes are not what the scheduler says they are")

// verified returns up to which piece of g is right, or errWrong. Caller holds
// c.mu.
func (c *content) verified(p *part, g *segment) (int, error) {
	if p.local {
		return len(g.sums), nil
	}
	k := g.passed
	for k < len(g.sums) {
		want, ok := c.sums[g.run.First+k]
		if !ok {
			break
		}
		if want != g.sums[k] {
			return 0, errWrong
		}
		k++
	}
	first := g.run.First / schedule.Group * schedule.Group
	want, ok := c.groups[first]
	if k == g.run.Count || !ok {
		return k, nil
	}
	h := sha256.New()
	for p := first; p < first+schedule.Group; p++ {
		var s schedule.Sum
		if i := p - g.run.First; i >= 0 && i < len(g.sums) {
			s = g.sums[i]
		} else if s, ok = c.sumOf(p); !ok {
			return k, nil
		}
		h.Write(s[:])
	}
	if schedule.Sum(h.Sum(nil)) != want {
		return 0, errWrong
	}
	return g.run.Count, nil
}

// sumOf returns the digest of a piece that this node has, for a group of which
// the rest is arriving. Caller holds c.mu.
func (c *content) sumOf(p int) (schedule.Sum, bool) {
	if s, ok := c.sums[p]; ok {
		return s, true
	}
	// Only from the disk: what is on its way there waits for c.mu.
	if len(c.held([]schedule.Run{{First: p, Count: 1}})) == 0 {
		return schedule.Sum{}, false
	}
	b, err := c.s.cfg.Store.Local().Open(c.s.ctx, blob.Ref{Digest: c.digest, Size: c.geo.size})
	if err != nil {
		return schedule.Sum{}, false
	}
	defer b.Close()
	r := c.geo.bytes(schedule.Run{First: p, Count: 1})
	buf := make([]byte, r.Len)
	if err := blob.ReadFull(blob.WithPriority(c.s.ctx, blob.Background), b, buf, r.Off); err != nil {
		return schedule.Sum{}, false
	}
	c.sums[p] = sha256.Sum256(buf)
	return c.sums[p], true
}

// keep hands the pieces of g over up to the k-th. Caller holds c.mu.
func (c *content) keep(p *part, g *segment, k int, sums []schedule.PieceSum) {
	out := g.pass(c.geo, k)
	p.progress = time.Now()
	if _, whole := c.groups[out.first]; !whole || out.count != schedule.Group {
		for i := range out.count { // the rest of a group may need them
			c.sums[out.first+i] = g.sums[out.first-g.run.First+i]
		}
		c.summed.Broadcast() // also where nothing is delivered
	}
	if p.over {
		return // another worker was quicker with what it had
	}
	for _, run := range c.deliver(out) {
		if p.stale {
			c.have.add(run) // told when all of it is here
			continue
		}
		c.arrived(run, slices.DeleteFunc(slices.Clone(sums), func(s schedule.PieceSum) bool {
			return s.Piece < run.First || s.Piece >= run.End()
		}))
		p.told = p.progress // that something arrived says that it goes on
	}
	if !p.local && !p.stale && !p.over && p.progress.Sub(p.told) > progressEvery {
		p.told = p.progress
		c.send(schedule.Progress{Blob: c.name(), Run: schedule.Run{First: out.first, Count: g.run.End() - out.first}})
	}
}

// progressEvery is how often the scheduler is told that a part goes on.
const progressEvery = 500 * time.Millisecond

// wantsMore reports whether somebody waits for something of p.
func (c *content) wantsMore(p *part) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !p.over && c.anybody(p)
}

// sumsLimit is how long digests are waited for that did not come with a grant:
// whoever reads the pieces from the origin reports them as they arrive.
const sumsLimit = 5 * time.Second

// fromOrigin reads runs from the origin, for j, and reports their digests.
func (c *content) fromOrigin(p *part, j *job, runs []schedule.Run) error {
	ctx, cancel := context.WithCancel(context.WithoutCancel(j.ctx))
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()
	b, err := j.h.origin(ctx)
	if err != nil {
		return err
	}
	ranges := make([]blob.Range, len(runs))
	for i, r := range runs {
		ranges[i] = c.geo.bytes(r)
	}
	at := make([]*segment, len(runs))
	defer func() {
		for _, g := range at {
			if g != nil {
				g.b.release()
			}
		}
	}()
	err = blob.ReadRanges(ctx, b, ranges, func(i int, off int64, bytes []byte) error {
		c.s.count.fromOrigin.Add(int64(len(bytes)))
		for len(bytes) > 0 {
			if at[i] == nil {
				at[i] = c.segmentAt(c.geo.at(off), runs[i].End())
				if !c.wantsMore(p) {
					return errEnded
				}
			}
			g := at[i]
			n := copy(g.room(c.geo), bytes)
			g.add(c.geo, n)
			bytes, off = bytes[n:], off+int64(n)
			if len(g.sums) > g.passed {
				c.read(p, g)
			}
			if len(g.room(c.geo)) == 0 {
				g.b.release()
				at[i] = nil
			}
		}
		return nil
	})
	if errors.Is(err, errEnded) {
		return nil // it is not the origin's fault that nobody wants it any more
	}
	return err
}

// read hands over what was read from the origin, with its digests.
func (c *content) read(p *part, g *segment) {
	sums := make([]schedule.PieceSum, 0, len(g.sums)-g.passed)
	for k := g.passed; k < len(g.sums); k++ {
		sums = append(sums, schedule.PieceSum{Piece: g.run.First + k, Sum: g.sums[k]})
	}
	c.s.sums.add(c.digest, sums)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range sums {
		c.sums[s.Piece] = s.Sum
	}
	c.keep(p, g, len(g.sums), sums)
}

// failed ends p, which j was reading from its i-th source, because of err.
func (c *content) failed(p *part, j *job, i int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.workers--
	if p.over {
		return
	}
	if p.workers > 0 {
		c.s.log.Debug("a source failed; another one goes on", "blob", c.digest, "error", err)
		return
	}
	reason := reasonOf(err)
	if p.lease {
		c.s.count.originFailed.Add(1)
		c.originFailed(p, j, err)
		return
	}
	src := p.sources[i]
	if reason == schedule.Corrupt {
		c.s.count.corrupt.Add(1)
		c.banned[src.Addr] = true
		c.s.log.Warn("a peer sent wrong bytes; nothing of this blob is taken from it any more",
			"blob", c.digest, "peer", src.Addr, "error", err)
	} else {
		c.s.count.peerFailed.Add(1)
		c.s.log.Debug("a source failed", "blob", c.digest, "peer", src.Addr, "reason", reason, "error", err)
	}
	c.giveUp(p, src.ID, reason)
}

// originFailed ends the lease p, which j was reading, because of what the origin
// said. Caller holds c.mu.
func (c *content) originFailed(p *part, j *job, err error) {
	if refused(err) {
		// That is about who asked. Others ask for themselves: the lease is theirs, if
		// they need something of it, and nothing is wrong with the origin.
		for _, x := range c.jobs {
			if x.h == j.h {
				x.fail(err)
			}
		}
		if c.anybody(p) {
			c.inherit(p)
			return
		}
		if w := c.wants[p.want]; w != nil && w.job == j {
			c.finish(p) // it is given back with the want, which ends with j
			return
		}
	}
	c.giveUp(p, "", schedule.Origin)
	// Whoever waits hears what the origin said, as it would without peers: it knows
	// how to wait, and what to tell its own reader.
	for _, x := range c.jobs {
		same := x.h.ref.Repository == j.h.ref.Repository && x.h.ref.URL == j.h.ref.URL
		if x.h == j.h || same && !refused(err) {
			x.fail(err)
		}
	}
}

// inherit has those who still need something of the lease p read it. Caller holds
// c.mu.
func (c *content) inherit(p *part) {
	for _, x := range c.jobs {
		if x.err == nil && both(p.left, x.need, 0, c.geo.n) < c.geo.n {
			p.job = x
			break
		}
	}
	if w := c.wants[p.want]; w != nil && w.job != nil && p.job != nil {
		w.job = p.job // it is not taken back with who asked for it
	}
	c.wake()
}

// refused reports whether err is the answer to who asked rather than to what was
// asked for.
func refused(err error) bool {
	return errors.Is(err, blob.Unauthorized) || errors.Is(err, blob.Forbidden) || errors.Is(err, blob.NotFound)
}

// giveUp ends p and has its pieces granted again. Caller holds c.mu.
func (c *content) giveUp(p *part, from schedule.PeerID, reason schedule.Reason) {
	runs := p.left.runs(p.left.all())
	c.finish(p)
	if p.local {
		c.detour(p, reason)
		return
	}
	c.flush() // what came before it counts
	c.send(schedule.Fail{Blob: c.name(), Runs: runs, Source: from, Reason: reason})
}

// reasonOf returns what the scheduler is told about a failure of a peer.
func reasonOf(err error) schedule.Reason {
	if errors.Is(err, errWrong) {
		return schedule.Corrupt
	}
	// An answer that broke off, or was damaged on its way, is no lie.
	switch blob.KindOf(err) {
	case blob.Busy:
		return schedule.Busy
	case blob.Timeout:
		return schedule.Slow
	}
	return schedule.Gone
}
