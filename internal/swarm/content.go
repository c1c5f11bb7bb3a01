package swarm

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

// content is what a Swarm knows of a blob while somebody has to do with it.
type content struct {
	// Constant.
	s      *Swarm
	digest digest.Digest
	geo    geometry

	refs int // guarded by s.mu

	// mu guards what follows; changed is broadcast when any of it changes that
	// somebody may wait for. So much happens that those do not wait for it who are
	// many, or wait for long: readers of jobs, whom job.moved wakes, who waits for
	// digests, whom summed does, and who fills, whom filled does when a filling or
	// what it goes by has come to its end. Order: mu, s.mu.
	mu        sync.Mutex
	changed   *sync.Cond
	summed    *sync.Cond
	filled    *sync.Cond
	owner     *Link     // the scheduler that knows this blob; nil if none does
	told      time.Time // since when that was there when it was told about this blob
	jobs      []*job
	wants     map[uint64]*want
	parts     []*part
	sums      map[int]schedule.Sum // of pieces, as the scheduler gave them
	groups    map[int]schedule.Sum // of groups, by their first piece
	banned    map[string]bool      // addresses that sent something else
	fills     []*filling
	have      *set // pieces that were delivered, and maybe are not kept yet
	announced bool // something of it
	report    report
}

// want is what a scheduler was asked for and did not say that all of it is
// granted.
type want struct {
	id   uint64
	prio blob.Priority
	runs []schedule.Run
	// ahead is what was asked for beside them, if that can be had at once.
	ahead []schedule.Run
	job   *job     // who asked; nil if filler did
	fill  *filling // who asked, if job is nil
}

// content returns what is known of a blob, to be released. Whoever says
// another size gets a content of its own, which no scheduler will take.
func (s *Swarm) content(d digest.Digest, size int64) *content {
	s.mu.Lock()
	c := s.contents[d]
	if c != nil && c.geo.size == size {
		c.refs++
		s.mu.Unlock()
		return c
	}
	c = &content{
		s: s, digest: d, geo: geometryOf(size), refs: 1, wants: map[uint64]*want{},
		sums: map[int]schedule.Sum{}, groups: map[int]schedule.Sum{}, banned: map[string]bool{},
		have: newSet(geometryOf(size).n),
	}
	c.changed, c.summed, c.filled = sync.NewCond(&c.mu), sync.NewCond(&c.mu), sync.NewCond(&c.mu)
	if s.contents[d] == nil {
		s.contents[d] = c
		close(s.coming)
		s.coming = make(chan struct{})
	}
	s.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.owner = s.ownerOf(d); c.owner != nil {
		s.tell(c)
	}
	return c
}

// known returns what is known of a blob, to be released, or nil.
func (s *Swarm) known(d digest.Digest) *content {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.contents[d]
	if c != nil {
		c.refs++
	}
	return c
}

func (c *content) release() {
	c.s.mu.Lock()
	c.refs--
	last := c.refs == 0
	if last && c.s.contents[c.digest] == c {
		delete(c.s.contents, c.digest)
	}
	c.s.mu.Unlock()
	if last {
		c.mu.Lock()
		c.flush()
		c.mu.Unlock()
	}
}

// start makes pieces of ranges, which are not empty, be fetched, for a reader
// that ends the job.
func (h *remote) start(ctx context.Context, ranges []blob.Range) *job {
	c := h.c
	j := newJob(ctx, h, ranges)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.jobs = append(c.jobs, j)
	j.ahead = h.note(j)
	c.plan(j)
	j.ahead = nil // it is asked for once
	j.arm()
	c.changed.Broadcast() // uploads wait for somebody to fetch what they are to send
	return j
}

// plan sees to it that what j needs is on its way. Caller holds c.mu.
func (c *content) plan(j *job) {
	missing := c.unplanned(j)
	c.wake()
	if len(missing) > 0 {
		c.ask(j, missing)
	}
}

// unplanned returns what j needs and nobody was granted. Caller holds c.mu.
func (c *content) unplanned(j *job) []schedule.Run {
	var missing []schedule.Run
	for _, span := range j.spans {
		missing = append(missing, j.need.runs(span)...)
	}
	for _, p := range c.parts {
		missing = slices.DeleteFunc(subtract(missing, p.left), func(r schedule.Run) bool { return r.Count == 0 })
	}
	return missing
}

// subtract returns what of runs is not in s.
func subtract(runs []schedule.Run, s *set) []schedule.Run {
	var out []schedule.Run
	for _, r := range runs {
		for p := s.next(r.First, r.End(), false); p < r.End(); {
			q := s.next(p, r.End(), true)
			out = append(out, schedule.Run{First: p, Count: q - p})
			p = s.next(q, r.End(), false)
		}
	}
	return out
}

// wake starts workers for parts that have something a job needs and no
// worker. Caller holds c.mu.
func (c *content) wake() {
	for _, p := range c.parts {
		if p.workers == 0 && c.anybody(p) {
			c.employ(p, 0)
		}
	}
}

// needed returns the first run of p that jobs wait for; none if Count is 0.
// Caller holds c.mu.
func (c *content) needed(p *part) schedule.Run {
	run := schedule.Run{First: c.neededFirst(p)}
	// What follows without a gap goes with it.
	for run.End() < c.geo.n && p.left.has(run.End()) && c.wanted(run.End()) {
		run.Count++
	}
	return run
}

// neededFirst returns the first piece of p that jobs wait for, or the number of
// pieces. Caller holds c.mu.
func (c *content) neededFirst(p *part) int {
	first := c.geo.n
	for _, j := range c.jobs {
		if j.err != nil {
			continue
		}
		for _, span := range j.spans {
			end := min(span.End(), first)
			if q := both(p.left, j.need, span.First, end); q < end {
				first = q
			}
		}
	}
	return first
}

// anybody reports whether a job waits for something of p. Caller holds c.mu.
func (c *content) anybody(p *part) bool { return c.neededFirst(p) < c.geo.n }

// wanted reports whether a job waits for piece p. Caller holds c.mu.
func (c *content) wanted(p int) bool {
	for _, j := range c.jobs {
		if j.err == nil && j.need.has(p) {
			return true
		}
	}
	return false
}

// deliver hands pieces that are as they should be to all who wait for them, and
// returns those that somebody waited for: the others are in nobody's hands, and
// this node does not have them. Caller holds c.mu; k's buffer has a reference of
// the caller's.
func (c *content) deliver(k chunk) (taken []schedule.Run) {
	run := schedule.Run{First: k.first, Count: k.count}
	all := newSet(0)
	for _, j := range c.jobs {
		if j.err != nil {
			continue
		}
		switch runs := j.accept(c.geo, k); {
		case len(taken) == 0:
			taken = runs
		case taken[0] != run && len(runs) > 0: // two that have different parts of it
			if all.n == 0 {
				all = newSet(c.geo.n)
			}
			for _, r := range append(taken, runs...) {
				all.add(r)
			}
			taken = all.runs(run)
		}
	}
	for _, r := range taken {
		c.fillings(r)
		for _, p := range c.parts {
			p.left.remove(r)
		}
	}
	for _, p := range slices.Clone(c.parts) {
		if p.left.empty() {
			c.complete(p)
		}
	}
	c.changed.Broadcast()
	c.summed.Broadcast() // the rest of a group may be compared now
	return taken
}

// finish ends a part, whatever its workers do. Caller holds c.mu.
func (c *content) finish(p *part) {
	c.remove(p)
	p.cancel()
	if p.unfill != nil {
		p.unfill()
	}
}

// complete ends a part of which everything came. The origin is read to the end
// of its answer, so that the connection can be used again; a peer's answer has
// ended by now, unless it was the slower of two. Caller holds c.mu.
func (c *content) complete(p *part) {
	c.remove(p)
	if !p.lease {
		p.cancel()
	}
	c.flush() // what comes next is granted the sooner
	if p.stale && c.owner != nil {
		// A scheduler believes digests of whom it gave a lease, or who tells it of
		// times before its own.
		c.s.announce(c, c.owner)
	}
}

func (c *content) remove(p *part) {
	if i := slices.Index(c.parts, p); i >= 0 {
		c.parts = slices.Delete(c.parts, i, i+1)
	}
	p.over = true
	c.changed.Broadcast()
	c.summed.Broadcast()
}

// leave ends j: what nobody else waits for is not fetched any more. Caller
// holds c.mu.
func (c *content) leave(j *job) {
	if i := slices.Index(c.jobs, j); i >= 0 {
		c.jobs = slices.Delete(c.jobs, i, i+1)
	}
	c.withdraw(j)
	for _, p := range slices.Clone(c.parts) {
		// A lease for others ends with who fills, a part of a filling with it.
		if p.job == j && !c.anybody(p) {
			c.finish(p)
		}
	}
	c.changed.Broadcast()
}

// withdraw takes back what the scheduler was asked for by j. Caller holds c.mu.
func (c *content) withdraw(j *job) {
	for id, w := range c.wants {
		if w.job != j {
			continue
		}
		delete(c.wants, id)
		if !j.done() {
			c.send(schedule.Cancel{Blob: c.name(), Want: id})
		}
	}
}

// wakeAll wakes all who wait for something. Caller holds c.mu.
func (c *content) wakeAll() {
	c.changed.Broadcast()
	c.summed.Broadcast()
	c.filled.Broadcast()
	for _, j := range c.jobs {
		j.moved.Broadcast()
	}
}

func (c *content) name() string { return c.digest.String() }

// expects reports whether piece p is being fetched or about to be. Caller
// holds c.mu.
func (c *content) expects(p int) bool {
	for _, x := range c.parts {
		if x.left.has(p) {
			return true
		}
	}
	return c.wanted(p)
}

// reject says that pieces are wrong though their digests match.
func (c *content) reject(runs []schedule.Run) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flush() // nobody judges what the scheduler does not know it has
	c.forget(runs)
	c.send(schedule.Reject{Blob: c.name(), Runs: runs})
}

// forget drops the digests of pieces. Caller holds c.mu.
func (c *content) forget(runs []schedule.Run) {
	for _, r := range runs {
		for p := r.First; p < min(r.End(), c.geo.n); p++ {
			c.have.put(p, p+1, false)
			delete(c.sums, p)
			delete(c.groups, p/schedule.Group*schedule.Group)
		}
	}
	c.s.sums.forget(c.digest)
}

// report is what is to be told to the scheduler about pieces that arrived.
type report struct {
	runs  []schedule.Run
	sums  []schedule.PieceSum
	last  time.Time // when something was told last
	due   time.Time // when timer fires
	timer *time.Timer
}

// Arrivals are put together until reportEvery after the last that were told, for
// which others wait with links that carry nothing: 100 ms make a blob of 256 MiB
// take 5 % longer to reach 8 nodes. Digests that come with them are told by
// reportSums, or when there are those of a group.
const (
	reportEvery = 20 * time.Millisecond
	reportSums  = 2 * time.Millisecond
)

// arrived notes that pieces arrived, to be told soon. Caller holds c.mu.
func (c *content) arrived(run schedule.Run, sums []schedule.PieceSum) {
	c.have.add(run)
	c.announced = true
	r := &c.report
	if n := len(r.runs); n > 0 && r.runs[n-1].End() == run.First {
		r.runs[n-1].Count += run.Count
	} else {
		r.runs = append(r.runs, run)
	}
	r.sums = append(r.sums, sums...)
	now := time.Now()
	due := r.last.Add(reportEvery)
	if len(sums) > 0 {
		due = r.last.Add(reportSums)
	}
	switch {
	case len(r.sums) >= schedule.Group || !due.After(now):
		c.flush()
	case r.timer == nil || due.Before(r.due):
		if r.timer != nil {
			r.timer.Stop()
		}
		r.due = due
		r.timer = time.AfterFunc(due.Sub(now), func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.flush()
		})
	}
}

// flush tells the scheduler what arrived. Caller holds c.mu.
func (c *content) flush() {
	r := &c.report
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
	if len(r.runs) == 0 {
		return
	}
	slices.SortFunc(r.runs, func(a, b schedule.Run) int { return a.First - b.First })
	c.send(schedule.Have{Blob: c.name(), Runs: r.runs, Sums: r.sums})
	r.runs, r.sums, r.last = nil, nil, time.Now()
}

// send tells the blob's scheduler, if there is one. Caller holds c.mu.
func (c *content) send(ev schedule.Event) {
	if c.owner != nil {
		c.owner.send(ev)
	}
}
