package swarm

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

const (
	// extent is the part of a blob, in bytes, that one seed reads from the
	// origin; schedulers use the same.
	extent = 64 << 20
	// seedPause is how long a seed that did not answer is left alone.
	seedPause = 5 * time.Second
	// lookDemand and lookOthers are how often is looked whether a reader that
	// waits waits too long.
	lookDemand, lookOthers = 25 * time.Millisecond, 500 * time.Millisecond
	// slowDemand and slowOthers are how long a peer may bring nothing before
	// another one is asked for instead.
	slowDemand, slowOthers = 3 * time.Second, 12 * time.Second
	// originLimit is how long a lease is held though the origin brings nothing.
	originLimit = 20 * time.Second
	// askAgain is how long a want may stay without an answer.
	askAgain = 15 * time.Second
)

// hoping reports whether a scheduler that is not there may be worth waiting
// for.
func (s *Swarm) hoping(p blob.Priority) bool {
	limit := s.cfg.BulkPatience
	if p == blob.Demand {
		limit = s.cfg.Patience
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.links, func(l *Link) bool {
		// One that is up is about to be told of the blob.
		return l.up && l.session != nil || time.Since(l.since) < limit
	})
}

// arm has the job looked at again some time after its last progress. Caller
// holds c.mu.
func (j *job) arm() {
	d := lookOthers
	if j.prio == blob.Demand {
		d = lookDemand
	}
	switch {
	case j.err != nil || j.done():
		if j.timer != nil {
			j.timer.Stop()
		}
	case j.timer == nil:
		c := j.c
		j.timer = time.AfterFunc(d, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if j.err == nil && !j.done() {
				c.overdue(j)
				j.arm()
			}
		})
	default:
		j.timer.Reset(d)
	}
}

// overdue looks for what keeps a reader waiting, and for a way around it.
// Caller holds c.mu.
func (c *content) overdue(j *job) {
	q := c.geo.n
	for i, span := range j.spans {
		if p := j.need.next(j.at[i], span.End(), true); p < span.End() {
			q = min(q, p)
		}
	}
	if q == c.geo.n {
		return // it all came, and is not taken
	}
	i := slices.IndexFunc(c.parts, func(p *part) bool { return p.left.has(q) })
	if i < 0 {
		if c.owner != nil && c.asked(q) {
			if time.Since(j.since) < askAgain {
				return
			}
			// The scheduler may know nothing of it any more; asking twice is no harm.
			j.since = time.Now()
			c.s.log.Debug("a want is not answered: asking again", "blob", c.digest, "piece", q)
			c.withdraw(j)
		}
		c.plan(j) // or who asked for it has left, and what was granted came to nothing
		return
	}
	p := c.parts[i]
	lag := time.Since(p.progress)
	switch {
	case p.workers == 0:
		c.wake()
	case p.lease:
		if !p.local && lag < originLimit && time.Since(p.told) > progressEvery {
			// The origin takes its time; it would for others too.
			p.told = time.Now()
			c.send(schedule.Progress{Blob: c.name(), Run: schedule.Run{First: q, Count: 1}})
		}
	case j.prio == blob.Demand && p.tried < len(p.sources) && !p.local && lag > c.s.pace.hedge(p.sources[0].Addr):
		c.s.count.hedges.Add(1)
		c.employ(p, p.tried)
	case lag > slowDemand && j.prio == blob.Demand, lag > slowOthers:
		c.s.count.peerFailed.Add(1)
		src := p.sources[min(p.tried, len(p.sources))-1]
		c.s.log.Debug("a source is too slow", "blob", c.digest, "peer", src.Addr, "waited", lag)
		c.giveUp(p, src.ID, schedule.Slow)
	}
}

// asked reports whether the scheduler knows that piece q is wanted. Caller holds c.mu.
func (c *content) asked(q int) bool {
	for _, w := range c.wants {
		if w.job != nil && w.job.err != nil {
			continue
		}
		for _, r := range w.runs {
			if r.First <= q && q < r.End() {
				return true
			}
		}
	}
	return false
}

// divert gets runs for j without a scheduler: from the seeds that hashing
// picks, in that order, and last from the origin. Caller holds c.mu.
func (c *content) divert(j *job, runs []schedule.Run) {
	c.s.degraded()
	per := int(extent / c.geo.piece)
	for _, r := range runs {
		for r.Count > 0 {
			n := min(r.Count, (r.First/per+1)*per-r.First)
			c.detourTo(j, c.s.seedsFor(c, r.First/per), schedule.Run{First: r.First, Count: n})
			r.First, r.Count = r.First+n, r.Count-n
		}
	}
	c.wake()
}

// detourTo makes a part of run that is had from the first of seeds, or from the
// origin if there are none. Caller holds c.mu.
func (c *content) detourTo(j *job, seeds []string, run schedule.Run) {
	p := &part{
		job: j, local: true, prio: j.prio, lease: len(seeds) == 0, origin: originOf(j.h.ref),
		left: newSet(c.geo.n), progress: time.Now(),
	}
	for _, addr := range seeds {
		p.sources = append(p.sources, schedule.Source{Addr: addr})
	}
	p.left.add(run)
	p.ctx, p.cancel = context.WithCancel(c.s.ctx)
	c.parts = append(c.parts, p)
}

// detour replaces a part that was had without a scheduler and failed. Caller
// holds c.mu.
func (c *content) detour(p *part, reason schedule.Reason) {
	if p.lease || p.job.err != nil {
		return
	}
	if reason != schedule.Busy {
		c.s.seedFailed(p.sources[0].Addr)
	}
	rest := make([]string, 0, len(p.sources))
	for _, s := range p.sources[1:] {
		rest = append(rest, s.Addr)
	}
	if len(rest) == 0 {
		c.s.withoutSeeds()
	}
	for _, r := range p.left.runs(p.left.all()) {
		c.detourTo(p.job, rest, r)
	}
	c.wake()
}

// seedsFor returns the seeds to ask for an extent of c, best first, up to this
// node itself. Caller holds c.mu.
func (s *Swarm) seedsFor(c *content, n int) (seeds []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, addr := range schedule.Rank(c.name()+"#"+strconv.Itoa(n), s.seeds) {
		if slices.Contains(s.cfg.Self, addr) {
			break // it is for us to read it
		}
		if !c.banned[addr] && time.Now().After(s.seedsDown[addr]) {
			seeds = append(seeds, addr)
		}
	}
	return seeds
}

func (s *Swarm) seedFailed(addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seedsDown[addr] = time.Now().Add(seedPause)
}

// degraded notes that there is no scheduler.
func (s *Swarm) degraded() {
	s.count.withoutScheduler.Add(1)
	s.mu.Lock()
	said, seeds := s.alone, len(s.seeds)
	s.alone = true
	s.mu.Unlock()
	if said {
		return
	}
	if seeds > 0 {
		s.log.Warn("no scheduler can be reached: asking seed peers")
	} else {
		s.log.Warn("no scheduler can be reached, and no seed peers are configured: reading from origins")
	}
}

// withoutSeeds notes that no seed answers.
func (s *Swarm) withoutSeeds() {
	s.count.withoutSeeds.Add(1)
	s.mu.Lock()
	said := s.seedless
	s.seedless = true
	s.mu.Unlock()
	if !said {
		s.log.Warn("no seed peer answers: reading from origins")
	}
}

// withSeeds notes that a seed answered.
func (s *Swarm) withSeeds() {
	s.mu.Lock()
	said := s.seedless
	s.seedless = false
	s.mu.Unlock()
	if said {
		s.log.Info("a seed peer answers again")
	}
}

// pace knows how quick sources are.
type pace struct {
	mu   sync.Mutex               // guards took
	took map[string]time.Duration // by address: moving average of the time a segment takes
}

// maxPaces is how many sources are remembered.
const maxPaces = 4096

// note notes how long a segment took.
func (p *pace) note(addr string, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.took == nil || len(p.took) > maxPaces {
		p.took = map[string]time.Duration{}
	}
	if old, ok := p.took[addr]; ok {
		d = (7*old + d) / 8
	}
	p.took[addr] = d
}

// hedge returns how long a blocked reader waits for a source before another
// one is asked too.
func (p *pace) hedge(addr string) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	d, ok := p.took[addr]
	if !ok {
		return 100 * time.Millisecond
	}
	return min(max(4*d, 20*time.Millisecond), time.Second)
}
