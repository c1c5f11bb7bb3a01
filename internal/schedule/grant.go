package schedule

import (
	"math"
	"math/bits"
)

// sample is how many of several equally good members or pieces are compared.
const (
	sampleMembers = 8
	samplePieces  = 32
)

// serve grants of w what can be granted now, if there may be something.
func (t *Tracker) serve(w *want, search bool) {
	if w.finished || w.m.peer.leaving {
		return
	}
	if search {
		for w.active < t.width(w) && t.grantOne(w, &w.need) {
		}
		for w.active < t.width(w) && t.grantOne(w, &w.window) {
		}
		w.window = newSet(w.m.c.n)
	}
	t.conclude(w)
}

// conclude tells w's peer what it was granted, and has it wait for the rest.
func (t *Tracker) conclude(w *want) {
	if len(w.parts) > 0 {
		c := w.m.c
		t.emit(Grant{To: w.m.peer.ID, Blob: c.name, Shape: c.shape, Want: w.id, Priority: w.prio, Parts: w.parts})
		w.parts, w.why = nil, ""
	}
	t.enqueue(w)
	if w.active > 0 || w.need.count == 0 {
		w.why = ""
	} else {
		t.waiting = append(t.waiting, w)
	}
}

// park tells those whose wants have been granted nothing of it, once and
// whenever the reason is another.
func (t *Tracker) park() {
	for _, w := range t.waiting {
		if w.finished || w.active > 0 || w.need.count == 0 {
			continue
		}
		if why := t.reason(w); why != w.why {
			w.why = why
			t.emit(Parked{To: w.m.peer.ID, Blob: w.m.c.name, Want: w.id, Why: why})
		}
	}
	t.waiting = t.waiting[:0]
}

// reason says why w waits.
func (t *Tracker) reason(w *want) Why {
	c, p := w.m.c, w.need.next(0)
	switch {
	case c.leased.has(p) && w.usable(p) == 0:
		return WhyLeased
	case c.leased.has(p) || !t.mayRead(w, p):
		return WhyBusy
	case w.bulk() && (c.bulk >= t.opt.BulkWidth || t.hoarded(c)):
		return WhyBusy
	case c.reservedUntil(p, w.m.peer) > p:
		return WhyLeased
	}
	return WhyOrigin
}

// grantOne grants one more part of need, which is of w, and reports whether it
// could, or leased pieces for w to a seed.
func (t *Tracker) grantOne(w *want, need *set) bool {
	if need.count == 0 {
		return false
	}
	if !w.bulk() {
		p := need.next(0)
		if src := t.find(w, need, p); src != nil {
			t.grant(w, need, src, p)
			return true
		}
		if t.lease(w, need) {
			return true
		}
	} else if t.lease(w, need) || t.feed(w, need) {
		// The origin first: it is to be read all the time.
		return true
	}
	if src := t.find(w, need, -1); src != nil {
		t.grant(w, need, src, 0)
		return true
	}
	return false
}

// pair grants w what m has of it within in.
func (t *Tracker) pair(w *want, m *member, in span) {
	before := w.active
	for w.active < t.width(w) && w.need.next(int(in.lo)) < int(in.hi) && t.mayServe(m, w) && !w.m.avoids(m.peer) && w.fit(&w.need, m, in) != useless {
		t.grant(w, &w.need, m, 0)
	}
	if w.active > before {
		t.conclude(w)
	}
}

// mayServe reports whether m has a slot for w.
func (t *Tracker) mayServe(m *member, w *want) bool {
	return t.standing(m).free() > 0 && (!w.bulk() || t.spare(m))
}

// grant has src send w's peer pieces of need, from p on if somebody is blocked
// on them.
func (t *Tracker) grant(w *want, need *set, src *member, p int) {
	c := w.m.c
	if !w.bulk() {
		t.begin(w, w.m, src, w.take(need, src, span{int32(p), int32(c.n)}, c.maxRun))
		return
	}
	p = w.rarest(need, src, 0)
	t.begin(w, w.m, src, w.take(need, src, c.block(p, c.bulkRun), c.bulkRun))
}

// block returns the pieces of the stretch of that length in which p is.
func (c *content) block(p, length int) span {
	lo := p - p%length
	return span{int32(lo), int32(min(lo+length, c.n))}
}

// feed grants a piece that only a seed has: as long as there are such pieces
// seeds are to have no slots free. Else they are asked last.
func (t *Tracker) feed(w *want, need *set) bool {
	for _, full := range []bool{true, false} {
		var src *member
		p := 0
		t.scan(w.m.c.ring(ringName{level: seeding, full: full, spare: true}), mask{}, func(e *listed) bool {
			m := e.m
			if !w.m.avoids(m.peer) && w.fit(need, m, w.m.c.everything()) != useless {
				src, p = m, w.rarest(need, m, 1)
			}
			return src != nil
		})
		if src != nil && p < w.m.c.n {
			c := w.m.c
			t.begin(w, w.m, src, w.take(need, src, c.block(p, c.bulkRun), c.bulkRun))
			return true
		}
	}
	return false
}

// A fitness says what a member is good for.
type fitness int

const (
	useless fitness = iota
	relays          // it is being sent a piece
	holds           // it has a piece
)

// fit says whether m has any piece of need within in.
func (w *want) fit(need *set, m *member, in span) fitness {
	c, relayed, lo, hi := m.c, w.relayed(m), int(in.lo), int(in.hi)
	for q := commonWithin(need, m.have, lo, hi); q < hi; q = commonWithin(need, m.have, c.summed.next(q), hi) {
		if c.summed.has(q) {
			return holds
		}
	}
	if relayed != nil && commonWithin(need, relayed, lo, hi) < hi {
		return relays
	}
	return useless
}

// relayed returns which of the pieces that m is being sent w may have from it,
// or nil. Where nobody is blocked lines are kept short.
func (w *want) relayed(m *member) *set {
	switch {
	case m.act == nil:
		return nil
	case w.bulk():
		return &m.act.near
	}
	return &m.act.receiving
}

// offered returns the first piece of need from p on and before end that w may have
// from m, and the end of the run of those or end, or n twice.
func (w *want) offered(need *set, m *member, p, end int) (lo, hi int) {
	c, relayed := m.c, w.relayed(m)
	held := commonWithin(need, m.have, p, end)
	for held < c.n && !c.summed.has(held) {
		held = commonWithin(need, m.have, c.summed.next(held), end)
	}
	sent := c.n
	if relayed != nil {
		sent = commonWithin(need, relayed, p, end)
	}
	switch {
	case held < sent:
		end = min(end, need.gapBefore(held, end))
		end = min(end, m.have.gapBefore(held, end))
		return held, min(end, c.summed.gapBefore(held, end))
	case sent < c.n:
		end = min(end, need.gapBefore(sent, end))
		return sent, min(end, relayed.gapBefore(sent, end))
	}
	return c.n, c.n
}

// take returns what of need within in w may have from m, most pieces at most.
func (w *want) take(need *set, m *member, in span, most int) set {
	out := newSet(m.c.n)
	for p := int(in.lo); ; {
		lo, hi := w.offered(need, m, p, int(in.hi))
		hi = min(hi, lo+most-int(out.count))
		if lo >= hi {
			return out
		}
		out.add(lo, hi)
		p = hi
	}
}

// rarest returns a piece of need that few offer and m does, or n. With a limit
// it is one that not more than so many offer. Different peers get different
// pieces.
func (w *want) rarest(need *set, m *member, limit int) int {
	c := m.c
	best, tries := c.n, 0
	rarity := math.MaxInt
	if limit > 0 {
		if c.full > limit {
			return c.n
		}
		rarity = limit - c.full + 1
	}
	if need == &w.need {
		if p, _ := w.offered(need, m, w.rareBlock(m, rarity)*c.grain, c.n); p < c.n && (limit == 0 || c.avail.of(p) < rarity) {
			return p
		}
	}
	look := func(from, to int) {
		for p, _ := w.offered(need, m, from, to); p < to && tries < samplePieces; {
			tries++
			if offer := c.avail.of(p); offer < rarity {
				best, rarity = p, offer
			}
			p, _ = w.offered(need, m, int(c.block(p, c.bulkRun).hi), to)
		}
	}
	look(w.m.start, c.n)
	look(0, w.m.start)
	return best
}

// rareBlock guesses, by the first piece of each, in which block rarest will
// find what it looks for.
func (w *want) rareBlock(m *member, rarity int) int {
	c, best := m.c, 0
	has := m.holds
	if m.act != nil && m.act.near.count > 0 {
		has = has.or(c.maskOf(&m.act.near))
	}
	first, tries := w.m.start/c.grain, 0
	for i := range len(has) + 1 {
		at := (first/64 + i) % len(has)
		word := has[at] & w.mask[at]
		switch i {
		case 0:
			word &^= 1<<(first%64) - 1
		case len(has):
			word &= 1<<(first%64) - 1
		}
		for ; word != 0 && tries < samplePieces; word &= word - 1 {
			tries++
			b := at*64 + bits.TrailingZeros64(word)
			if offer := c.avail.of(b * c.grain); offer < rarity {
				best, rarity = b, offer
			}
		}
	}
	return best
}
