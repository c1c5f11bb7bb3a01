package schedule

import "slices"

// open returns the blob of that name, new if need be, or nil if it cannot
// have that shape. A new one goes when its first member does.
func (t *Tracker) open(name string, shape Shape) *content {
	if c := t.blobs[name]; c != nil {
		if c.shape != shape {
			return nil
		}
		return c
	}
	n := shape.pieces()
	if n == 0 {
		return nil
	}
	c := &content{name: name, shape: shape, n: n, dropped: map[PeerID]bool{},
		all: newSet(n), avail: newSupply(n), leased: newBitmap(n), summed: newBitmap(n),
		bySeed: newBitmap(n), hoard: newBitmap(n), silent: newBitmap(n), rings: map[ringName]*ring{}, hungryAt: -1, freeActs: &t.freeActs}
	c.maxRun, c.bulkRun, c.extent = t.opt.runs(shape)
	c.hops = hopsOf(c.bulkRun)
	c.all.add(0, n)
	c.grain = (max(n/blocks, 1) + c.bulkRun - 1) / c.bulkRun * c.bulkRun
	for n > c.grain*blocks {
		c.grain += c.bulkRun
	}
	t.blobs[name] = c
	t.pieces += n
	return c
}

// of returns what p has to do with c, or nil.
func (c *content) of(p *peer) *member { return p.at.get(c) }

// admits reports whether p may have to do with a blob: one that announces or
// wants blobs without end is not to have all memory.
func (t *Tracker) admits(p *peer, name string, shape Shape) bool {
	c, n := t.blobs[name], shape.pieces()
	if c != nil {
		if n = c.n; c.of(p) != nil {
			return true
		}
	}
	return p.at.len() < t.opt.MaxBlobs && p.pieces+n <= t.opt.MaxPieces && (c != nil || t.pieces+n <= t.opt.MaxAllPieces)
}

// join returns what p has to do with c, from now on if need be.
func (t *Tracker) join(p *peer, c *content) *member {
	if m := c.of(p); m != nil {
		return m
	}
	m := &member{peer: p, c: c, index: len(p.members), rank: len(c.order), own: newSet(c.n), seed: p.Seed, number: p.number,
		muted: c.dropped[p.ID] || p.mute()}
	m.have = &m.own
	m.start = int(weight(c.name, string(p.ID)) % uint64(c.n))
	m.start -= m.start % c.bulkRun
	p.at.put(c, m)
	p.pieces += c.n
	c.order = append(c.order, m)
	p.members = append(p.members, m)
	if len(c.accused) > 0 {
		t.remind(m)
	}
	return m
}

// busy returns m's activity, for changing it.
func (m *member) busy() *activity {
	if m.act == nil {
		m.act = m.c.freeActs.take()
		a := m.act
		*a = activity{receiving: newSet(m.c.n), leased: newSet(m.c.n), near: newSet(m.c.n),
			avoid: a.avoid[:0]}
		a.in, a.out, a.wants = a.firstIn[:0], a.firstOut[:0], a.firstWants[:0]
	}
	return m.act
}

// mayIdle has m forgotten at the end of the step if nothing keeps it.
func (t *Tracker) mayIdle(m *member) { t.idle = append(t.idle, m) }

// tidy forgets what is no longer worth remembering of m, of its blob too.
func (t *Tracker) tidy(m *member) {
	if a := m.act; a != nil {
		if len(a.in)+len(a.out)+len(a.wants) > 0 || !a.noOrigin.IsZero() {
			return
		}
		if m.have.count == 0 {
			m.trustless()
		}
		if len(a.avoid) > 0 {
			return
		}
		m.act = nil
		clear(a.warm[:]) // they, and their blob, may be forgotten before it is used again
		m.c.freeActs.give(a)
	}
	if m.have.count == 0 && !m.gone {
		t.remove(m)
	}
}

// remove forgets m, which has nothing and does nothing.
func (t *Tracker) remove(m *member) {
	c, p := m.c, m.peer
	m.gone = true
	t.unlist(m)
	t.takeBack(m)
	t.absolve(c, p)
	last := p.members[len(p.members)-1]
	p.members[m.index], last.index = last, m.index
	p.members = slices.Delete(p.members, len(p.members)-1, len(p.members))
	last = c.order[len(c.order)-1]
	c.order[m.rank], last.rank = last, m.rank
	c.order = slices.Delete(c.order, len(c.order)-1, len(c.order))
	p.at.remove(c)
	p.pieces -= c.n
	if len(c.order) == 0 && t.blobs[c.name] == c {
		delete(t.blobs, c.name)
		t.pieces -= c.n
	}
}

// takeBack takes m from among those its peer set aside.
func (t *Tracker) takeBack(m *member) {
	if m.aside {
		i := slices.Index(m.peer.aside, m)
		m.peer.aside = slices.Delete(m.peer.aside, i, i+1)
		m.aside = false
	}
}

// isFull reports whether m has every piece.
func (m *member) isFull() bool { return m.have == &m.c.all }

// offers reports whether m has p or is being sent it.
func (m *member) offers(p int) bool {
	return m.have.has(p) || m.act != nil && m.act.receiving.has(p)
}

// avoids reports whether m takes nothing from p now.
func (m *member) avoids(p *peer) bool {
	return m.act != nil && slices.ContainsFunc(m.act.avoid, func(a avoidance) bool { return a.peer == p })
}

// count tells c's counters that m offers the pieces from lo to hi, or no
// longer (by -1).
func (m *member) count(lo, hi, by int) {
	if m.muted {
		return
	}
	c := m.c
	c.avail.add(lo, hi, int32(by))
	if c.hoard.count > 0 {
		for p := c.hoard.nextBefore(lo, hi); p < hi; p = c.hoard.nextBefore(p+1, hi) {
			if c.avail.of(p) != 1 {
				c.hoard.put(p, p+1, false)
			}
		}
	}
}

// countAll counts all that m offers.
func (m *member) countAll(by int) {
	if m.isFull() {
		if !m.muted {
			m.c.full += by
		}
		return
	}
	m.have.each(func(lo, hi int) { m.count(lo, hi, by) })
	if m.act != nil {
		m.act.receiving.each(func(lo, hi int) { m.count(lo, hi, by) })
	}
}

// mute has m be no source from now on. Who receives from it goes on.
func (t *Tracker) mute(m *member) {
	if m.muted {
		return
	}
	m.countAll(-1)
	m.muted = true
	t.unlist(m)
	t.takeBack(m)
	t.retry(m.c)
}

// unmute has m be a source again, unless something else is against it.
func (t *Tracker) unmute(m *member) {
	if !m.muted || m.c.dropped[m.peer.ID] || m.peer.mute() {
		return
	}
	m.muted = false
	m.countAll(1)
	t.list(m)
	t.wakeMember(m, m.c.everything(), false)
}

// gain notes that m has got, of which moved is what it was being sent. Those
// are no longer in its receiving, but still counted.
func (m *member) gain(got, moved *set) {
	if m.isFull() {
		return
	}
	if moved.count < got.count {
		fresh := got.clone()
		fresh.removeSet(moved)
		fresh.removeSet(m.have)
		fresh.each(func(lo, hi int) { m.count(lo, hi, 1) })
	}
	m.have.addSet(got)
	m.holds = m.holds.or(m.c.maskOf(got))
	if m.have.count == m.have.n {
		m.countAll(-1)
		m.have, m.own = &m.c.all, newSet(m.c.n)
		m.countAll(1)
	}
}

// lose notes that m no longer has the pieces from lo to hi, and breaks what it
// sends of them.
func (t *Tracker) lose(m *member, lo, hi int) {
	if m.have.next(lo) >= hi {
		return
	}
	if m.isFull() {
		m.countAll(-1)
		m.own = m.c.all.clone()
		m.have = &m.own
		m.countAll(1)
	}
	gone := newSet(m.c.n)
	for p := m.have.next(lo); p < hi; p = m.have.next(p) {
		end := min(hi, m.have.gap(p))
		m.have.remove(p, end)
		m.count(p, end, -1)
		gone.add(p, end)
	}
	m.holds = m.c.maskOf(m.have)
	t.orphan(m, &gone)
	t.list(m)
	t.retry(m.c)
	t.mayIdle(m)
}

// leasable returns the first piece from p on that needs a reader of the
// origin, or n: nobody is it, and nobody offers the piece or nobody knows its
// digest.
func (c *content) leasable(p int) int {
	return c.leased.first(p, func(i int) uint64 {
		missing := ^c.summed.words[i]
		if c.full == 0 {
			missing |= c.avail.dark.words[i]
		}
		return missing &^ c.leased.words[i]
	})
}

// usable returns how many offer p that w's peer may take it from.
func (w *want) usable(p int) int {
	c := w.m.c
	n := c.full + c.avail.of(p)
	if w.m.act == nil {
		return n
	}
	for _, a := range w.m.act.avoid {
		if m := c.of(a.peer); m != nil && !m.muted && m.offers(p) {
			n--
		}
	}
	return n
}
