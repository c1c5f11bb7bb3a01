package schedule

import "iter"

// search is how a source is looked for: of those that have a free slot the
// nearest that has what is looked for, or the nearest that is being sent it, or
// a seed.
type search struct {
	t      *Tracker
	w      *want
	need   *set // what of it those may have who have everything
	some   *set // and what the others
	in     span // which pieces
	single bool // in is the piece that somebody is blocked on
	wanted mask // where members of use have something, if masked
	masked bool

	relay  *member
	relays int // how many were seen
}

// fit says what m is good for. Most that are asked for one piece are being sent
// it, so that is looked at first.
func (s *search) fit(need *set, m *member) fitness {
	if !s.single {
		return s.w.fit(need, m, s.in)
	}
	p := int(s.in.lo)
	switch relayed := s.w.relayed(m); {
	case relayed != nil && relayed.has(p):
		return relays
	case m.have.has(p) && m.c.summed.has(p):
		return holds
	}
	return useless
}

// firstFits is how many members of a ring are looked at before it is thought
// about who may be of use.
const firstFits = 16

// anyFits is how many of them if any piece will do: each takes longer then.
const anyFits = 2

// sampleHints is how many are compared that were remembered for the very piece,
// and hintedFits how many of a ring are looked at then.
const (
	sampleHints = 8
	hintedFits  = 8

	// idle is how many transfers one has less under way that is taken because it
	// is remembered. If all are taken that are, however busy, those who come at
	// the same time all wait for the same few.
	idle = 2

	// sampleHolders is how many are compared that have the piece, and sampleSeconds
	// how many of a ring are looked at for a second source.
	sampleHolders = 8
	sampleSeconds = 2
)

// find returns who is to send w's peer piece p, or any of need if that is -1:
// of those that have a free slot the nearest that has the piece, or the
// nearest that is being sent it, or a seed.
func (t *Tracker) find(w *want, need *set, p int) *member {
	c := w.m.c
	s := &search{t: t, w: w, need: need, some: need, in: c.everything()}
	if p >= 0 {
		if c.full == 0 && c.avail.of(p) == 0 {
			return nil
		}
		s.single, s.in = true, span{int32(p), int32(p) + 1}
		return s.piece(p)
	}
	// Quickly now if nobody can be of use: of those who wait most are alike.
	if w.bulk() {
		s.masked = true
		if s.wanted = w.mask; need != &w.need {
			s.wanted = c.maskOf(need)
		}
		if c.fulls == 0 && !c.offered.some.meets(s.wanted) {
			return nil
		}
	}
	return s.any()
}

// piece looks for one piece.
func (s *search) piece(p int) *member {
	c := s.w.m.c
	s.wanted = mask{}
	b := p / c.grain
	s.wanted[b/64] = 1 << (b % 64)
	if m := s.holder(p); m != nil {
		return m
	}
	var room [sampleHints]*member
	if m := s.near(s.hinted(p, room[:0]), hintedFits); m != nil && s.t.standing(m).used < idle {
		return m
	}
	s.relay, s.relays = nil, 0
	some, all := s.recent(p)
	if m := s.near(some, firstFits); m != nil || all {
		return m
	}
	return s.near(nil, len(c.order)+1)
}

// holder returns one that has got p lately, and has all that is needed from there
// on, has next to nothing else to send and is as near as can be, or nil: no other is
// better, and nothing is looked at of them.
func (s *search) holder(p int) *member {
	w, c := s.w, s.w.m.c
	if c.lately == nil {
		return nil
	}
	end := min(s.need.gapBefore(p, p+c.maxRun), p+c.maxRun, c.n)
	list := &c.lately[p/c.grain].at
	for i := range list {
		r := &list[(i+int(w.seq%latelyMembers))%latelyMembers]
		if p < r.got.from() || p >= r.got.end() || r.m == nil || s.t.standings[r.peer].used >= idle {
			continue
		}
		if m := r.m; m.listed && s.t.standing(m).free() > 0 && m.have.gapBefore(p, end) >= end && c.summed.has(p) &&
			!m.suspect && !m.seed && w.m.peer.beside(m.peer) && !w.m.avoids(m.peer) {
			return m
		}
	}
	return nil
}

// beside reports whether no peer is nearer to p than o.
func (p *peer) beside(o *peer) bool {
	if p.rack != "" {
		return o.rack == p.rack
	}
	return p.zone == "" || o.zone == p.zone
}

// hinted adds to some those that were remembered for having, or being about to
// have, p, have next to nothing else to send and may be asked, as many as there is
// room for. Of the others nothing is looked at.
func (s *search) hinted(p int, some []*member) []*member {
	c := s.w.m.c
	if c.recent == nil {
		return nil
	}
	list := c.recent[p/c.grain]
	for i := range list {
		r := &list[(i+int(s.w.seq%recentMembers))%len(list)]
		if p < r.last.from() || p >= r.last.end() || s.t.standings[r.peer].used >= idle {
			continue
		}
		if m := r.m; m.listed && s.t.standing(m).free() > 0 && !m.isFull() && !s.w.m.avoids(m.peer) {
			if some = append(some, m); len(some) == cap(some) {
				break
			}
		}
	}
	return some
}

// recent returns some of those that were remembered, offer p and may be asked,
// and whether nobody else who has not everything offers it. Different wants get
// different ones.
func (s *search) recent(p int) (some []*member, all bool) {
	offer := 0
	list := s.w.m.c.recently(p)
	for i := range list {
		if len(some) == sampleMembers {
			return some, false
		}
		m := list[(i+int(s.w.seq%recentMembers))%len(list)].m
		if m.muted || m.isFull() || !m.offers(p) {
			continue
		}
		offer++
		if m.listed && s.t.standing(m).free() > 0 && !s.w.m.avoids(m.peer) {
			some = append(some, m)
		}
	}
	return some, offer == s.w.m.c.avail.of(p)
}

// any looks for any piece.
func (s *search) any() *member {
	c := s.w.m.c
	if m := s.again(); m != nil {
		return m
	}
	if m := s.near(nil, anyFits); m != nil {
		return m
	}
	// What nobody offers who has not everything makes looking long and in vain.
	useful := &s.t.useful
	c.lit(s.need, useful)
	if useful.count == 0 && c.full == 0 {
		return nil
	}
	s.some = useful
	if s.masked {
		s.wanted = c.maskOf(useful)
		if c.fulls == 0 && !c.offered.some.meets(s.wanted) {
			return nil
		}
	}
	blocks := 0
	for p := useful.next(0); p < c.n && blocks < recentBlocks; blocks++ {
		end := int(c.block(p, c.grain).hi)
		some := make([]*member, 0, recentMembers)
		for _, r := range c.recently(p) {
			m := r.m
			if m.listed && s.t.standing(m).free() > 0 && !m.isFull() && !s.w.m.avoids(m.peer) && (!s.w.bulk() || s.t.spare(m)) {
				some = append(some, m)
			}
		}
		if m := s.near(some, 0); m != nil {
			return m
		}
		p = useful.next(end)
	}
	return s.near(nil, len(c.order)+1)
}

// again returns one that has just sent this peer something, and has more of it, if
// no other is nearer: the connection between them is at full speed, where one that
// was idle has to find out anew how fast it may be (RFC 5681, section 4.1). Of a blob
// of which transfers are short that makes peers have less to offer each other, which
// costs more.
func (s *search) again() *member {
	w := s.w
	if !w.bulk() || w.m.act == nil || w.m.c.hops == 0 {
		return nil
	}
	a := w.m.act
	for i := range a.warm {
		m := a.warm[(a.turn+len(a.warm)-1-i)%len(a.warm)]
		if m != nil && m.listed && s.t.mayServe(m, w) && !m.suspect && !m.seed &&
			w.m.peer.beside(m.peer) && !w.m.avoids(m.peer) && s.fit(s.need, m) == holds {
			return m
		}
	}
	return nil
}

// recentBlocks is in how many blocks those are asked that were remembered.
const recentBlocks = 4

// near returns the nearest of some and of those in rings, of each of which fits
// members are looked at. A relay is returned only if none of them has what is
// looked for.
func (s *search) near(some []*member, fits int) *member {
	for name := range s.w.m.peer.nearest(s.w.bulk()) {
		if name.level >= seeding && s.relay != nil {
			break
		}
		if best := s.look(name, some, fits); best != nil {
			return best
		}
	}
	return s.relay
}

// look returns the best of a ring.
func (s *search) look(name ringName, some []*member, fits int) *member {
	t, w, c := s.t, s.w, s.w.m.c
	need, p := s.some, int(s.in.lo)
	if name.full {
		need = s.need
	}
	if s.single && !name.full && c.avail.of(p) == 0 {
		return nil
	}
	ring := c.ring(name)
	if len(some) == 0 && (ring == nil || len(ring.at) == 0) {
		return nil
	}
	var best *member
	most, tries, whole := 0, 0, 0
	if s.single {
		whole = min(need.gapBefore(p, p+c.maxRun), p+c.maxRun, c.n) - p
	}
	consider := func(m *member) bool {
		switch s.fit(need, m) {
		case holds:
			if !s.single {
				best = m
				return true
			}
			run := min(whole, m.have.gapBefore(p, p+whole)-p)
			if run > most || run == most && t.standing(m).used < t.standing(best).used {
				best, most = m, run
			}
			tries++
			return most == whole && t.standing(best).used < 2 || tries == sampleHolders
		case relays:
			if s.relays++; s.relay == nil || s.relays <= sampleMembers && t.standing(m).used < t.standing(s.relay).used {
				s.relay = m
			}
		}
		return false
	}
	for _, m := range some {
		if m.isIn(name) && consider(m) {
			break
		}
	}
	if best == nil && fits > 0 {
		seek := s.wanted
		if name.full {
			seek = mask{}
		}
		wary := w.m.act != nil && len(w.m.act.avoid) > 0
		t.scan(ring, seek, func(e *listed) bool {
			if s.masked && !name.full && !e.m.shown.meets(s.wanted) || wary && w.m.avoids(e.m.peer) {
				return false
			}
			if fits--; fits < 0 {
				return true
			}
			if best != nil && most == whole && t.standings[e.peer].used >= t.standing(best).used {
				tries++ // it is no better, whatever it has
				return tries == sampleHolders
			}
			return consider(e.m)
		})
	}
	if best != nil && s.relay != nil && s.single && int(t.standing(best).used) >= t.opt.Width && t.standing(s.relay).used < t.standing(best).used {
		return nil
	}
	return best
}

// lit has out be what of pieces is offered by somebody who has not everything.
func (c *content) lit(pieces, out *set) {
	*out = newSet(c.n)
	pieces.each(func(lo, hi int) {
		for p := c.avail.dark.gapBefore(lo, hi); p < hi; p = c.avail.dark.gapBefore(p, hi) {
			end := min(hi, c.avail.dark.nextBefore(p, hi))
			out.add(p, end)
			p = end
		}
	})
}

// nearest goes through the names of the rings where p looks for a source, the
// nearest first, those of seeds late and those of the suspected last. Where nobody
// is blocked it is those that have slots to spare for that.
func (p *peer) nearest(bulk bool) iter.Seq[ringName] {
	return func(yield func(ringName) bool) {
		for level := inRack; level <= suspected; level++ {
			name := ringName{level: level}
			switch level {
			case inRack:
				name.name = p.rack
			case inZone:
				name.name = p.zone
			}
			if name.name == "" && level <= inZone {
				continue
			}
			for i := range 4 {
				name.full, name.spare = i%2 == 0, i < 2
				if (name.spare || !bulk) && !yield(name) {
					return
				}
			}
		}
	}
}

// second returns another holder of what x brings, or nil.
func (t *Tracker) second(w *want, x *transfer) *member {
	c := x.to.c
	if w.prio > 1 {
		return nil
	}
	var found *member
	b, tries := x.pieces.next(0)/c.grain, 0
	var seek mask
	seek[b/64] = 1 << (b % 64)
	for name := range w.m.peer.nearest(false) {
		if name.level == suspected {
			break
		}
		t.scan(c.ring(name), seek, func(e *listed) bool {
			m := e.m
			if m != x.from && m != x.to && !x.to.avoids(m.peer) && c.holdsAll(m, &x.pieces) {
				found = m
			}
			tries++
			return found != nil || tries%sampleSeconds == 0
		})
		if found != nil {
			return found
		}
	}
	return nil
}

// holdsAll reports whether m has pieces, and their digests are known.
func (c *content) holdsAll(m *member, pieces *set) bool {
	for lo := pieces.next(0); lo < c.n; {
		hi := pieces.gap(lo)
		if m.have.gapBefore(lo, hi) < hi || c.summed.gapBefore(lo, hi) < hi {
			return false
		}
		lo = pieces.next(hi)
	}
	return true
}
