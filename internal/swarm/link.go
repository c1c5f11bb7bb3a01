package swarm

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

// Session carries events to one scheduler.
type Session interface {
	// Send queues an event; it does not block and keeps the order. What is sent
	// while there is no connection is lost.
	Send(ev schedule.Event)
}

// Link is the Swarm's end of a session with one scheduler. Its methods are
// called by the session, one after the other.
type Link struct {
	// Constant.
	s    *Swarm
	name string

	// Guarded by s.mu.
	session Session
	up      bool
	since   time.Time // of up, or of its end
}

// Attach adds a scheduler under the name by which all nodes know it: of those
// that are up, a blob's is the one that comes first in schedule.Rank.
func (s *Swarm) Attach(name string) *Link {
	l := &Link{s: s, name: name, since: time.Now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.links = append(s.links, l)
	return l
}

// Bind says how the scheduler is told something. It is called once, and may be
// called after Up.
func (l *Link) Bind(session Session) {
	l.s.mu.Lock()
	l.session = session
	up := l.up
	l.s.mu.Unlock()
	if up {
		l.s.settle()
	}
}

// Detach forgets the scheduler, for good.
func (l *Link) Detach() {
	l.s.mu.Lock()
	l.s.links = slices.DeleteFunc(l.s.links, func(x *Link) bool { return x == l })
	l.up = false
	l.s.mu.Unlock()
	l.s.settle()
}

// Up says that the scheduler is there, and knows nothing of this node.
func (l *Link) Up() {
	l.s.mu.Lock()
	l.up, l.since = true, time.Now()
	again := l.s.alone
	l.s.alone, l.s.seedless = false, false
	l.s.mu.Unlock()
	if again {
		l.s.log.Info("a scheduler is there again: peers are found by it", "scheduler", l.name)
	}
	l.s.settle()
}

// Down says that the scheduler is gone, for now.
func (l *Link) Down(error) {
	l.s.mu.Lock()
	if l.up {
		l.up, l.since = false, time.Now()
	}
	l.s.mu.Unlock()
	l.s.settle()
}

// send tells the scheduler.
func (l *Link) send(ev schedule.Event) {
	l.s.mu.Lock()
	session := l.session
	l.s.mu.Unlock()
	if session != nil {
		session.Send(ev)
	}
}

// ownerOf returns the scheduler of a blob, or nil if none is up.
func (s *Swarm) ownerOf(d digest.Digest) *Link {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, l := range s.links {
		if l.up && l.session != nil {
			names = append(names, l.name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	first := schedule.Rank(d.String(), names)[0]
	for _, l := range s.links {
		if l.name == first {
			return l
		}
	}
	return nil
}

// settle has every blob, and every profile, made known to the scheduler that it
// belongs to now.
func (s *Swarm) settle() {
	kick(s.moveKick)
	kick(s.profiles.moved)
}

// moveAll makes every blob known to the scheduler that it belongs to, those in
// use first.
func (s *Swarm) moveAll() {
	for _, c := range s.all() {
		c.move(s.ownerOf(c.digest))
		c.release()
	}
	s.announceAll()
}

// move gives the blob to another scheduler, which is told all about it.
func (c *content) move(to *Link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if to == c.owner && (to == nil || !to.fresh(c)) {
		return
	}
	if c.owner != nil && c.owner != to {
		for id := range c.wants {
			c.send(schedule.Cancel{Blob: c.name(), Want: id})
		}
	}
	c.owner = to
	c.report.runs, c.report.sums = nil, nil // the announcement has them
	clear(c.wants)
	c.changed.Broadcast()
	c.filled.Broadcast()
	if to == nil {
		return // readers notice when their patience ends
	}
	c.s.tell(c)
	for _, p := range slices.Clone(c.parts) {
		switch {
		case p.lease && !p.local:
			p.stale, p.want = true, 0 // it goes on, or the origin would be read twice
		case !p.lease && !p.local:
			c.finish(p) // its digests may never come
		}
	}
	for _, j := range c.jobs {
		if j.err == nil {
			c.plan(j)
		}
	}
	for _, f := range c.fills {
		f.again(c)
	}
}

// fresh reports whether the scheduler came back since c was told to it.
// Caller holds c.mu.
func (l *Link) fresh(c *content) bool { return !l.epoch().Equal(c.told) }

// epoch returns since when the scheduler is there.
func (l *Link) epoch() time.Time {
	l.s.mu.Lock()
	defer l.s.mu.Unlock()
	return l.since
}

// ask wants runs for j. Caller holds c.mu.
func (c *content) ask(j *job, runs []schedule.Run) {
	if c.owner == nil {
		if !c.s.hoping(j.prio) {
			c.divert(j, runs)
		}
		return // or it is looked at again before long
	}
	c.want(&want{prio: j.prio, job: j, ahead: j.ahead}, runs, j.h.ref)
}

// want sends a want. Caller holds c.mu.
func (c *content) want(w *want, runs []schedule.Run, ref blob.Ref) {
	prio := w.prio
	if prio == blob.Prefetch {
		// Somebody has said which bytes, and they are few: they are not to come in
		// an order that suits others.
		prio = blob.Demand
	}
	w.id, w.runs = c.s.newWant(), runs
	c.wants[w.id] = w
	// What came and is in nobody's hands any more may be wanted again. Told of its
	// coming after the want, the scheduler would take that for fulfilled.
	c.flush()
	c.send(schedule.Want{
		Blob: c.name(), Shape: c.geo.shape(), ID: w.id, Runs: runs, Priority: prio, Origin: originOf(ref), Window: w.ahead,
	})
}

// originOf returns where a blob can be had, for others to read it from there.
func originOf(ref blob.Ref) string {
	if ref.URL != "" {
		return ref.URL
	}
	return ref.Repository
}

// withOrigin is the reverse of originOf.
func withOrigin(ref blob.Ref, origin string) blob.Ref {
	if strings.Contains(origin, "://") {
		ref.URL = origin
	} else {
		ref.Repository = origin
	}
	return ref
}

func (s *Swarm) newWant() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextWant++
	return s.nextWant
}

// Act does what the scheduler says.
func (l *Link) Act(a schedule.Action) {
	switch a := a.(type) {
	case schedule.Grant:
		l.grant(a)
	case schedule.Revoke:
		l.with(a.Blob, func(c *content) { c.revoke(a) })
	case schedule.Drop:
		l.with(a.Blob, func(c *content) { c.drop(a.Source) })
	case schedule.Sums:
		l.with(a.Blob, func(c *content) { c.learn(a.Sums) })
	case schedule.Forget:
		l.forget(a)
	case schedule.Refused:
		l.with(a.Blob, func(c *content) { c.refused(a) })
	case schedule.Parked:
		l.with(a.Blob, func(c *content) { c.s.count.parked.Add(1) })
	}
}

// with calls f with what is known of a blob, locked, if the scheduler is the
// blob's.
func (l *Link) with(name string, f func(c *content)) {
	c := l.s.known(digest.Digest(name))
	if c == nil {
		return
	}
	defer c.release()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.owner == l {
		f(c)
	}
}

// grant takes a grant.
func (l *Link) grant(a schedule.Grant) {
	d := digest.Digest(a.Blob)
	c := l.s.known(d)
	if c == nil {
		if a.Want != 0 || blob.CheckDigest(d) != nil || a.Shape != geometryOf(a.Shape.Size).shape() {
			l.send(schedule.Cancel{Blob: a.Blob, Want: a.Want})
			return
		}
		c = l.s.content(d, a.Shape.Size)
	}
	defer c.release()
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.wants[a.Want]
	if c.owner != l || w == nil && a.Want != 0 {
		l.send(schedule.Cancel{Blob: a.Blob, Want: a.Want})
		return
	}
	for _, x := range a.Parts {
		c.learn(x.Sums)
		p := c.newPart(x, a)
		switch {
		case w == nil:
			c.s.fill(c, p, nil)
		case w.fill != nil:
			c.s.fill(c, p, w.fill)
		case w.isAhead(p):
			c.s.fillAhead(c, p, w.job)
		default:
			p.job = w.job
		}
	}
	c.wake()
	c.changed.Broadcast()
	if a.Want != 0 {
		c.idle(a.Want)
	}
}

// newPart takes part of a grant. Caller holds c.mu.
func (c *content) newPart(x schedule.Part, a schedule.Grant) *part {
	p := &part{
		want: a.Want, sources: x.Sources, lease: len(x.Sources) == 0, prio: a.Priority, origin: a.Origin,
		left: newSet(c.geo.n), progress: time.Now(),
	}
	p.ctx, p.cancel = context.WithCancel(c.s.ctx)
	for _, r := range x.Runs {
		if r.First >= 0 && r.Count > 0 && r.End() <= c.geo.n {
			p.left.add(r)
		}
	}
	c.parts = append(c.parts, p)
	return p
}

// idle gives a want's parts back of which nobody needs anything: what was
// asked for has come from elsewhere, or is not wanted any more. Caller holds
// c.mu.
func (c *content) idle(id uint64) {
	for _, p := range slices.Clone(c.parts) {
		if p.want == id && p.job != nil && !c.anybody(p) {
			runs := p.left.runs(p.left.all())
			c.finish(p)
			c.send(schedule.Have{Blob: c.name(), Runs: c.held(runs)})
		}
	}
}

// held returns what of runs the store has.
func (c *content) held(runs []schedule.Run) (held []schedule.Run) {
	have := newSet(c.geo.n)
	for _, r := range runs {
		have.add(r)
	}
	for _, r := range runs {
		missing, err := c.s.cfg.Store.Missing(blob.Ref{Digest: c.digest, Size: c.geo.size}, c.geo.bytes(r))
		if err != nil {
			return nil
		}
		for _, m := range missing {
			have.remove(c.geo.around(m))
		}
	}
	for _, r := range runs {
		held = append(held, have.runs(r)...)
	}
	return held
}

// revoke takes pieces back that were granted. Caller holds c.mu.
func (c *content) revoke(a schedule.Revoke) {
	c.s.count.revoked.Add(1)
	for _, p := range slices.Clone(c.parts) {
		if p.local || p.lease != (a.From == "") || !p.lease && !slices.ContainsFunc(p.sources, func(s schedule.Source) bool { return s.ID == a.From }) {
			continue
		}
		for _, r := range a.Runs {
			p.left.remove(schedule.Run{First: max(r.First, 0), Count: min(r.End(), c.geo.n) - max(r.First, 0)})
		}
		if p.left.empty() {
			c.finish(p)
		}
	}
	c.changed.Broadcast()
}

// drop takes nothing from a peer any more; what was granted from it is revoked
// besides. Caller holds c.mu.
func (c *content) drop(id schedule.PeerID) {
	for _, p := range c.parts {
		for _, s := range p.sources {
			if s.ID == id {
				c.banned[s.Addr] = true
			}
		}
	}
}

// learn takes digests. Caller holds c.mu.
func (c *content) learn(sums []schedule.PieceSum) {
	for _, s := range sums {
		if s.Group {
			c.groups[s.Piece] = s.Sum
		} else {
			c.sums[s.Piece] = s.Sum
		}
	}
	c.summed.Broadcast()
}

// refused fails who wanted what makes no sense. Caller holds c.mu.
func (c *content) refused(a schedule.Refused) {
	w := c.wants[a.Want]
	if w == nil {
		return
	}
	delete(c.wants, a.Want)
	err := blob.Errorf(blob.Unavailable, "the scheduler refused to look for it: %s", a.Why)
	switch {
	case w.job != nil:
		c.s.log.Warn("the scheduler refused a want; reading from elsewhere", "blob", c.digest, "why", a.Why)
		c.divert(w.job, c.unplanned(w.job))
	default:
		w.fill.fail(err)
		c.filled.Broadcast()
	}
}

// forget drops pieces that are wrong.
func (l *Link) forget(a schedule.Forget) {
	d := digest.Digest(a.Blob)
	b, err := l.s.cfg.Store.Local().Open(l.s.ctx, blob.Ref{Digest: d, Size: blob.SizeUnknown})
	if err != nil {
		return
	}
	defer b.Close()
	l.s.count.forgotten.Add(1)
	l.s.log.Warn("pieces of a blob turned out to be wrong; forgetting them", "blob", d, "runs", len(a.Runs))
	geo := geometryOf(b.Size())
	if r, ok := b.(blob.Rejecter); ok {
		for _, run := range a.Runs {
			if run.First >= 0 && run.Count > 0 && run.End() <= geo.n {
				r.Reject(geo.bytes(run))
			}
		}
	}
	l.with(a.Blob, func(c *content) { c.forget(a.Runs) })
}
