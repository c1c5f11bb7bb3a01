package schedule

import (
	"fmt"
	"slices"
)

// mayRead reports whether p is to be read from the origin if w needs it.
func (t *Tracker) mayRead(w *want, p int) bool {
	c := w.m.c
	return !c.leased.has(p) && (!c.summed.has(p) || w.usable(p) == 0)
}

// reservedUntil returns the end of the run of pieces from p on that are
// reserved for somebody else than asker, or p.
func (c *content) reservedUntil(p int, asker *peer) int {
	for _, r := range c.reserved {
		if r.peer != asker && r.pieces.has(p) {
			return r.pieces.gap(p)
		}
	}
	return p
}

// lease has pieces of need read from the origin, for w, and reports whether it
// could.
func (t *Tracker) lease(w *want, need *set) bool {
	c, from := w.m.c, 0
	if w.bulk() {
		if !t.mayLeaseBulk(c) {
			return false
		}
		from = w.m.start
	}
	if need.count == 0 || !t.hasReader(w) {
		return false
	}
	return t.leaseBetween(w, need, from, c.n) || t.leaseBetween(w, need, 0, from) || t.leaseAvoided(w, need)
}

func (t *Tracker) leaseBetween(w *want, need *set, from, to int) bool {
	c := w.m.c
	for p := need.next(from); p < to; {
		if q := c.leasable(p); q > p {
			p = need.next(q)
		} else if end := c.reservedUntil(p, w.m.peer); end > p {
			p = need.next(end)
		} else if t.leaseAt(w, need, p) {
			return true
		} else {
			p = need.next(p + 1)
		}
	}
	return false
}

// leaseAvoided leases pieces which only those have that w's peer avoids.
func (t *Tracker) leaseAvoided(w *want, need *set) bool {
	c, avoided := w.m.c, 0
	if w.m.act != nil {
		avoided = len(w.m.act.avoid)
	}
	if c.full >= avoided && (c.full > avoided || avoided == 0) {
		return false
	}
	for p := need.next(0); p < c.n; p = need.next(p) {
		for end := need.gap(p); p < end; p++ {
			if c.full+c.avail.of(p) <= avoided && t.mayRead(w, p) && c.reservedUntil(p, w.m.peer) == p && t.leaseAt(w, need, p) {
				return true
			}
		}
	}
	return false
}

// leaseAt leases pieces from p on, if somebody can read them.
func (t *Tracker) leaseAt(w *want, need *set, p int) bool {
	c := w.m.c
	to := t.reader(w, p)
	if to == nil {
		return false
	}
	length := c.maxRun
	if w.bulk() {
		length = c.bulkRun
	}
	in := span{int32(p), int32(c.n)}
	if w.bulk() {
		in.hi = c.block(p, length).hi
	}
	if len(t.seeds) > 0 {
		in.hi = min(in.hi, c.block(p, c.extent).hi)
	}
	pieces := newSet(c.n)
	for q := p; q < int(in.hi) && int(pieces.count) < length; q = need.next(q + 1) {
		if t.mayRead(w, q) && c.reservedUntil(q, w.m.peer) == q && !to.offers(q) {
			pieces.add(q, q+1)
		}
	}
	t.begin(w, to, nil, pieces)
	if w.bulk() && to.peer != w.m.peer && c.full == 0 {
		pieces.each(func(lo, hi int) {
			for p := lo; p < hi; p++ {
				c.hoard.put(p, p+1, c.avail.of(p) == 1)
			}
		})
	}
	return true
}

// mayLeaseBulk reports whether more of c may be read from the origin where
// nobody is blocked. If not, those who wait are looked at again when it may.
func (t *Tracker) mayLeaseBulk(c *content) bool {
	if c.bulk >= t.opt.BulkWidth {
		return false
	}
	if !t.hoarded(c) {
		return true
	}
	if !c.hoarding {
		c.hoarding = true
		t.hoards = append(t.hoards, c)
	}
	return false
}

// hoarded reports whether seeds are to pass on what they have read for others
// before they read more: it dies with them. Those who pass on nothing read on.
func (t *Tracker) hoarded(c *content) bool {
	return c.feeding > 0 && c.hoard.count > 2*t.opt.BulkWidth*c.bulkRun
}

// spent has those looked at again who were leased nothing because too much was
// hoarded, and reports whether there are any.
func (t *Tracker) spent() bool {
	for i, c := range t.hoards {
		if c.hungryAt < 0 || !t.hoarded(c) {
			t.hoards = slices.Delete(t.hoards, i, i+1)
			c.hoarding = false
			t.retry(c)
			return true
		}
	}
	return false
}

// mayLease reports whether m may read the origin for asker.
func (t *Tracker) mayLease(s *peer, asker *member) bool {
	c := asker.c
	if s == asker.peer {
		return asker.act.noOrigin.IsZero() && !s.leaving
	}
	if t.free(s) <= 0 || c.dropped[s.ID] || asker.avoids(s) {
		return false
	}
	m := c.of(s)
	if m == nil && (c.blames(asker.peer.ID, s.ID) || !t.admits(s, c.name, c.shape)) {
		return false
	}
	return m == nil || m.act == nil || m.act.noOrigin.IsZero()
}

// hasReader reports whether anybody may read the origin for w.
func (t *Tracker) hasReader(w *want) bool {
	return t.mayLease(w.m.peer, w.m) ||
		slices.ContainsFunc(t.seeds, func(id string) bool { return t.mayLease(t.peers[PeerID(id)], w.m) })
}

// reader returns who is to read p from the origin for w, or nil.
func (t *Tracker) reader(w *want, p int) *member {
	c, asker := w.m.c, w.m
	can := t.mayLease(asker.peer, asker)
	if can && (len(t.seeds) == 0 || asker.peer.Seed ||
		slices.ContainsFunc(c.reserved, func(r *reservation) bool { return r.peer == asker.peer && r.pieces.has(p) })) {
		return asker
	}
	for _, id := range Rank(fmt.Sprintf("%s#%d", c.name, p/c.extent), t.seeds) {
		s := t.peers[PeerID(id)]
		if s == asker.peer || !t.mayLease(s, asker) {
			continue
		}
		if m := c.of(s); m == nil || !m.offers(p) {
			return t.join(s, c)
		}
	}
	if can {
		return asker
	}
	return nil
}
