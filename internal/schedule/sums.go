package schedule

import "slices"

// learn notes the digest of a piece that m has read. over says whether it is
// believed where another is known; if not, and they differ, it is not ok.
func (t *Tracker) learn(m *member, s PieceSum, over bool) (ok bool) {
	c, p := m.c, s.Piece
	if c.sums == nil {
		c.sums = make([]PieceSum, c.n)
	}
	switch {
	case !c.summed.has(p):
	case c.sums[p].Sum == s.Sum:
	case !over:
		return false
	default:
		one := newSet(c.n)
		one.add(p, p+1)
		t.forget(c, &one, m)
		c.bySeed.put(p, p+1, false)
	}
	if c.sums[p].Sum != s.Sum {
		if c.sums[p].Sum != (Sum{}) {
			c.sums = slices.Clone(c.sums) // actions have the old one
		}
		c.sums[p] = PieceSum{Piece: p, Sum: s.Sum}
	}
	c.summed.put(p, p+1, true)
	if m.peer.Seed {
		c.bySeed.put(p, p+1, true)
	}
	if c.silent.has(p) {
		c.silent.put(p, p+1, false)
		for _, o := range c.order {
			if o.have.has(p) {
				t.wakeMember(o, c.everything(), false)
			}
		}
	}
	return true
}

// forget has nobody but m hold pieces whose digests were wrong, or send them:
// what is on its way was granted with those digests.
func (t *Tracker) forget(c *content, pieces *set, m *member) {
	for _, o := range c.order {
		t.orphan(o, pieces)
		if o == m {
			continue
		}
		if held := both(o.have, pieces); held.count > 0 {
			t.emit(Forget{To: o.peer.ID, Blob: c.name, Runs: held.list()})
			held.each(func(lo, hi int) { t.lose(o, lo, hi) })
		}
	}
}

// spread sends digests to those who were granted pieces without: all down the
// line from who reads the origin.
func (t *Tracker) spread(m *member, news *set) {
	if m.act == nil || news.count == 0 {
		return
	}
	for _, x := range m.act.out {
		if these := both(&x.pieces, news); these.count > 0 {
			t.emit(Sums{To: x.to.peer.ID, Blob: m.c.name, Sums: m.c.sumsOf(&these)})
			t.spread(x.to, &these)
		}
	}
}

// sumsOf returns the known digests of pieces. Those of one run are not copied:
// what has been given out is never written again.
func (c *content) sumsOf(pieces *set) []PieceSum {
	lo := pieces.next(0)
	if hi := lo + int(pieces.count); pieces.gap(lo) == hi && c.summed.gapBefore(lo, hi) >= hi {
		return c.sums[lo:hi:hi]
	}
	out := make([]PieceSum, 0, pieces.count)
	pieces.each(func(lo, hi int) {
		for p := lo; p < hi; p++ {
			if c.summed.has(p) {
				out = append(out, c.sums[p])
			}
		}
	})
	return out
}
