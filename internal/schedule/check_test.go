package schedule

import (
	"fmt"
	"maps"
	"slices"
)

// marked returns the mark of member i.
func (r *ring) marked(i int) (k mask) {
	for w := range k {
		k[w] = r.marks[i/8][w][i%8]
	}
	return k
}

// check returns what is wrong with t's state between two steps, as the package
// comment has it and as the indexes over it promise. It derives everything
// anew from the members, piece by piece.
func check(t *Tracker) []string {
	k := &checker{t: t}
	if len(t.dirty)+len(t.retries)+len(t.wakes)+t.woken+len(t.idle)+len(t.waiting)+len(t.out) > 0 {
		k.failf("work left: %d dirty, %d retries, %d wakes", len(t.dirty), len(t.retries), len(t.wakes))
	}
	pieces := 0
	for name, c := range t.blobs {
		pieces += c.n
		if c.name != name || len(c.order) == 0 {
			k.failf("%s: %d in order", name, len(c.order))
		}
		k.content(c)
	}
	if pieces != t.pieces || pieces > t.opt.MaxAllPieces {
		k.failf("%d pieces, says %d", pieces, t.pieces)
	}
	for id, p := range t.peers {
		k.peer(id, p)
	}
	k.deadlines("leases", &t.leases)
	k.deadlines("transfers", &t.transfers)
	for i, c := range t.hungry {
		if c.hungryAt != i || t.blobs[c.name] != c {
			k.failf("%s: hungry at %d, says %d", c.name, i, c.hungryAt)
		}
	}
	return k.wrong
}

type checker struct {
	t     *Tracker
	wrong []string
	seen  int // transfers
}

func (k *checker) failf(format string, args ...any) {
	k.wrong = append(k.wrong, fmt.Sprintf(format, args...))
}

func (k *checker) deadlines(what string, q *queue) {
	k.seen -= q.length
	length := 0
	var ahead *transfer
	for i, x := range q.at {
		if x == nil {
			continue
		}
		length++
		if ahead != nil && ahead.deadline.After(x.deadline) || int(x.place) != i || i < q.begin {
			k.failf("%s: deadlines out of order", what)
		}
		ahead = x
	}
	if length != q.length {
		k.failf("%s: %d, says %d", what, length, q.length)
	}
	if what == "transfers" && k.seen != 0 {
		k.failf("%d transfers that no list has", k.seen)
	}
}

func (k *checker) peer(id PeerID, p *peer) {
	used, wants, pieces := 0, 0, 0
	for i, m := range p.members {
		if pieces += m.c.n; m.number != p.number || m.seed != p.Seed {
			k.failf("%s: member %d is of another peer", id, i)
		}
		if m.index != i || m.c.of(p) != m || k.t.blobs[m.c.name] != m.c {
			k.failf("%s: member %d is not in its blob", id, i)
		}
		if m.act != nil {
			used += len(m.act.out)
			wants += len(m.act.wants)
		}
		if m.aside != slices.Contains(p.aside, m) {
			k.failf("%s: aside %v", id, m.aside)
		}
	}
	stands := k.t.standings[p.number]
	if used != int(stands.used) {
		k.failf("%s: %d slots used, says %d", id, used, stands.used)
	}
	room := p.slots - p.other
	if p.leaving || !p.busyUntil.IsZero() {
		room = 0
	}
	if int(stands.room) != room {
		k.failf("%s: stands as %v", id, stands)
	}
	if pieces != p.pieces || pieces > k.t.opt.MaxPieces || len(p.members) > k.t.opt.MaxBlobs {
		k.failf("%s: %d pieces, says %d, of %d blobs", id, pieces, p.pieces, len(p.members))
	}
	if wants != p.wants.len() || len(p.members) != p.at.len() {
		k.failf("%s: %d wants, says %d", id, wants, p.wants.len())
	}
	if len(p.aside) > 0 && stands.free() > 0 {
		k.failf("%s: has free slots and is aside", id)
	}
	if slices.Contains(k.t.seeds, string(id)) != (p.Seed && !p.leaving) {
		k.failf("%s: seed and not among seeds, or the other way", id)
	}
}

func (k *checker) content(c *content) {
	avail, full, bulk, avoiders, feeding := make([]int, c.n), 0, 0, 0, 0
	leased := newSet(c.n)
	for i, m := range c.order {
		if m.rank != i || c.of(m.peer) != m {
			k.failf("%s: %s is not where it says", c.name, m.peer.ID)
		}
		k.member(m)
		if m.muted != (c.dropped[m.peer.ID] || m.peer.leaving || m.peer.slots <= 0) {
			k.failf("%s: %s muted %v", c.name, m.peer.ID, m.muted)
		}
		for p := range c.n {
			if m.act != nil && m.act.leased.has(p) {
				if leased.has(p) {
					k.failf("%s: %d leased to two", c.name, p)
				}
				leased.add(p, p+1)
			}
			if !m.muted && !m.isFull() && m.offers(p) {
				avail[p]++
			}
		}
		if !m.muted && m.isFull() {
			full++
		}
		if m.peer.Seed {
			feeding += int(m.bulkOut)
		}
		if m.act != nil {
			avoiders += len(m.act.avoid)
			for _, x := range m.act.in {
				if x.bulk && x.from == nil {
					bulk++
				}
			}
		}
	}
	counted := make([]int, c.n)
	for p := range counted {
		counted[p] = c.avail.of(p)
	}
	if full != c.full || !slices.Equal(avail, counted) || bulk != c.bulk || avoiders != c.avoiders {
		k.failf("%s: counts %d %v %d %d, are %d %v %d %d", c.name, c.full, counted, c.bulk, c.avoiders, full, avail, bulk, avoiders)
	}
	for p := range c.n {
		if c.avail.dark.has(p) != (avail[p] == 0) || c.leased.has(p) != leased.has(p) {
			k.failf("%s: %d dark %v leased %v", c.name, p, c.avail.dark.has(p), c.leased.has(p))
		}
		if c.bySeed.has(p) && !c.summed.has(p) {
			k.failf("%s: %d has no digest from a seed", c.name, p)
		}
	}
	for p := c.hoard.next(0); p < c.n; p = c.hoard.next(p + 1) {
		if avail[p] != 1 {
			k.failf("%s: %d is hoarded, and %d have it", c.name, p, avail[p])
		}
	}
	if feeding != c.feeding || c.hoarding != slices.Contains(k.t.hoards, c) {
		k.failf("%s: seeds feed %d, says %d, hoarding %v", c.name, feeding, c.feeding, c.hoarding)
	}
	for b, list := range c.recent {
		for i, r := range list {
			if r.turn > c.turn || slices.ContainsFunc(list[:i], func(o recentMember) bool { return o.m == r.m }) || !r.m.gone && c.of(r.m.peer) != r.m {
				k.failf("%s: remembers %s in block %d twice, or of the future", c.name, r.m.peer.ID, b)
			}
		}
	}
	k.tallies(c)
	k.rings(c)
}

// tallies checks what pairs of members and wants are found by.
func (k *checker) tallies(c *content) {
	var offered, wanted tally
	fulls, late := 0, 0
	var none mask
	for _, m := range c.order {
		if m.holds != c.maskOf(m.have) {
			k.failf("%s: %s holds %x", c.name, m.peer.ID, m.holds)
		}
		spare := int(m.bulkOut) < k.t.opt.BulkWidth
		if m.listed && m.asSpare != spare {
			k.failf("%s: %s spare %v", c.name, m.peer.ID, spare)
		}
		if m.listed && m.isFull() && spare {
			fulls++
		} else if m.listed && spare {
			none = mask{}
			show := m.holds
			if m.act != nil {
				show = show.or(c.maskOf(&m.act.near))
			}
			offered.change(&none, show)
		}
		if m.act == nil {
			continue
		}
		for _, w := range m.act.wants {
			if w.queued && w.line != w.place() {
				k.failf("%s: %s#%d waits in line %d", c.name, m.peer.ID, w.id, w.line)
			}
			if w.queued && c.queue[w.line].at[w.pos] != (waiter{w, w.shown}) {
				k.failf("%s: %s#%d is not where it waits", c.name, m.peer.ID, w.id)
			}
			if q := &c.queue[w.line]; w.queued && q.some[w.pos/lineChunk].and(w.shown) != w.shown {
				k.failf("%s: %s#%d waits unseen", c.name, m.peer.ID, w.id)
			}
			none = mask{}
			wanted.change(&none, w.shown)
			if w.queued && w.line > 0 {
				if w.shown != c.maskOf(&w.need) {
					k.failf("%s: %s#%d shows something else", c.name, m.peer.ID, w.id)
				}
				if w.prio == 0 {
					late++
				}
			}
		}
	}
	for i := range c.queue {
		q := &c.queue[i]
		for chunk, some := range q.some {
			alone := chunks{}
			if alone.change(chunk, mask{}, some); q.index != nil {
				for b, word := range q.index[chunk/64] {
					if (word^alone[b])>>(chunk%64)&1 != 0 {
						k.failf("%s: of line %d chunk %d shows something else in block %d", c.name, i, chunk, b)
					}
				}
			}
		}
	}
	if offered != c.offered || wanted != c.wanted || fulls != c.fulls || late != c.late {
		k.failf("%s: tallies are wrong", c.name)
	}
}

// rings checks what sources are found by.
func (k *checker) rings(c *content) {
	listed := 0
	rings := maps.Clone(c.rings)
	k.grudges(c)
	for _, m := range c.order {
		if m.suspect != slices.ContainsFunc(c.accused, func(a accusation) bool { return a.source == m.peer.ID }) {
			k.failf("%s: %s suspect %v", c.name, m.peer.ID, m.suspect)
		}
	}
	slot := map[level]int{inRack: 1, inZone: 2}
	for i := range c.wide {
		for m := range 4 {
			rings[ringName{level: anywhere + level(i), full: m&1 != 0, spare: m&2 != 0}] = c.ring(ringName{level: anywhere + level(i), full: m&1 != 0, spare: m&2 != 0})
		}
	}
	for name, r := range rings {
		for i, e := range r.at {
			listed++
			m := e.m
			offers := m.holds
			if m.act != nil {
				offers = offers.or(c.maskOf(&m.act.receiving))
			}
			if r.marked(i) != m.marked || offers.and(m.marked) != offers {
				k.failf("%s: %s is in a ring unseen", c.name, m.peer.ID)
			}
			if !m.listed || !m.isIn(name) || int(m.pos[slot[name.level]]) != i {
				k.failf("%s: %s in the wrong place of a ring", c.name, m.peer.ID)
			}
		}
	}
	for _, m := range c.order {
		for i := range m.pos {
			if m.listed && m.ringAt(i).level != nowhere {
				listed--
			}
		}
	}
	if listed != 0 {
		k.failf("%s: rings have %d too many", c.name, listed)
	}
	waiting := c.queue[0].live + c.queue[1].live + c.queue[2].live
	if (waiting > 0) != (c.hungryAt >= 0) {
		k.failf("%s: %d wait, hungry at %d", c.name, waiting, c.hungryAt)
	}
}

// grudges checks that who has accused a source will take nothing from it.
func (k *checker) grudges(c *content) {
	for _, a := range c.accused {
		by, source := k.t.peers[a.by], k.t.peers[a.source]
		if by == nil || source == nil || c.dropped[a.source] {
			continue
		}
		if m := c.of(by); m != nil && c.of(source) != nil && !m.avoids(source) {
			k.failf("%s: %s would take from %s again", c.name, a.by, a.source)
		}
	}
}

func (k *checker) member(m *member) {
	c, id := m.c, m.peer.ID
	some := m.have.count > 0 || m.act != nil && m.act.receiving.count > 0
	if m.listed != (some && !m.muted && !m.aside) {
		k.failf("%s: %s listed %v, has some %v", c.name, id, m.listed, some)
	}
	if m.listed && m.asFull != m.isFull() || m.isFull() != (int(m.have.count) == c.n) {
		k.failf("%s: %s full %v", c.name, id, m.isFull())
	}
	if int(c.all.count) != c.n || m.have.size() != c.n {
		k.failf("%s: everything is %d", c.name, c.all.count)
	}
	a := m.act
	if a == nil {
		if !some {
			k.failf("%s: %s is idle and not forgotten", c.name, id)
		}
		return
	}
	if len(a.in)+len(a.out)+len(a.wants)+len(a.avoid) == 0 && a.noOrigin.IsZero() {
		k.failf("%s: %s has no activity and keeps it", c.name, id)
	}
	receiving, leased, near := newSet(c.n), newSet(c.n), newSet(c.n)
	for i, x := range a.in {
		k.seen++
		if int(x.inAt) != i || x.to != m || x.pieces.count == 0 || x.pieces.next(0) < int(x.in.lo) || x.pieces.next(int(x.in.hi)) < c.n {
			k.failf("%s: %s transfer %d misplaced or empty", c.name, id, i)
		}
		if common(&receiving, &x.pieces, 0) < c.n || common(m.have, &x.pieces, 0) < c.n {
			k.failf("%s: %s is sent pieces twice or for nothing: %v", c.name, id, x.pieces.list())
		}
		receiving.addSet(&x.pieces)
		if x.from == nil || int(x.hops) < c.hops {
			near.addSet(&x.pieces)
		}
		if x.from == nil {
			leased.addSet(&x.pieces)
			continue
		}
		k.transfer(x.transfer)
	}
	if !slices.Equal(receiving.list(), a.receiving.list()) || !slices.Equal(leased.list(), a.leased.list()) ||
		!slices.Equal(near.list(), a.near.list()) {
		k.failf("%s: %s receives %v leased %v, says %v %v", c.name, id, receiving.list(), leased.list(), a.receiving.list(), a.leased.list())
	}
	bulk := 0
	for i, x := range a.out {
		if x.bulk {
			bulk++
		}
		if int(x.outAt) != i || x.from != m || x.to.act == nil || x.to.act.in[x.inAt].transfer != x {
			k.failf("%s: %s sends %d misplaced", c.name, id, i)
		}
	}
	if bulk != int(m.bulkOut) || bulk > k.t.opt.BulkWidth {
		k.failf("%s: %s serves %d without hurry, says %d", c.name, id, bulk, m.bulkOut)
	}
	for _, w := range a.wants {
		k.want(w)
	}
}

func (k *checker) transfer(x *transfer) {
	c := x.to.c
	if c.blames(x.to.peer.ID, x.from.peer.ID) || c.blames(x.to.peer.ID, x.second) {
		k.failf("%s: %s takes from %s again", c.name, x.to.peer.ID, x.from.peer.ID)
	}
	if x.from == x.to || c.dropped[x.from.peer.ID] || x.second != "" && c.dropped[x.second] {
		k.failf("%s: %s takes from %s", c.name, x.to.peer.ID, x.from.peer.ID)
	}
	for p := range c.n {
		if !x.pieces.has(p) {
			continue
		}
		up := x
		for steps := 0; up != nil && up.from != nil && !up.from.have.has(p); steps++ {
			i := -1
			if up.from.act != nil {
				i = slices.IndexFunc(up.from.act.in, func(y inbound) bool { return y.pieces.has(p) })
			}
			if i < 0 || steps > len(c.order) {
				k.failf("%s: %s waits for %d, which nobody has or reads", c.name, x.to.peer.ID, p)
				return
			}
			up = up.from.act.in[i].transfer
		}
		if up.from != nil && !c.summed.has(p) {
			k.failf("%s: %s waits for %d, whose digest will not come", c.name, x.to.peer.ID, p)
		}
	}
}

func (k *checker) want(w *want) {
	m, c := w.m, w.m.c
	name := fmt.Sprintf("%s: %s#%d", c.name, m.peer.ID, w.id)
	need := w.pieces.clone()
	need.removeSet(&m.act.receiving)
	active := 0
	for _, x := range m.act.in {
		if x.want == w {
			active++
		}
	}
	if !slices.Equal(need.list(), w.need.list()) || common(&w.pieces, m.have, 0) < c.n {
		k.failf("%s needs %v, says %v", name, need.list(), w.need.list())
	}
	if w.mask != c.maskOf(&w.need) {
		k.failf("%s: mask is wrong", name)
	}
	if active != w.active || active > k.t.width(w) {
		k.failf("%s has %d transfers, says %d", name, active, w.active)
	}
	if w.finished || w.dirty || w.pieces.count == 0 && active == 0 || m.peer.wants.get(w.id) != w || len(w.parts) > 0 {
		k.failf("%s should be gone", name)
	}
	waits := need.count > 0 && active < k.t.width(w) && !m.peer.leaving
	if waits != (w.queued) {
		k.failf("%s waits %v, queued %v", name, waits, w.queued)
	}
	if waits {
		k.waits(name, w)
	}
	if (waits && active == 0) != (w.why != "") && !m.peer.leaving {
		k.failf("%s waits %v and was told %q", name, waits, w.why)
	}
}

// waits says so if there is something to grant to a want that waits.
func (k *checker) waits(name string, w *want) {
	m, c := w.m, w.m.c
	for p := range c.n {
		if !w.need.has(p) {
			continue
		}
		offered := 0
		for _, o := range c.order {
			if o.muted || m.avoids(o.peer) || !o.offers(p) {
				continue
			}
			offered++
			holds := o.have.has(p) && c.summed.has(p)
			sent := o.act != nil && (o.act.near.has(p) || !w.bulk() && o.act.receiving.has(p))
			if (holds || sent) && k.t.standing(o).free() > 0 && (!w.bulk() || int(o.bulkOut) < k.t.opt.BulkWidth) {
				k.failf("%s waits for %d, which %s has", name, p, o.peer.ID)
			}
		}
		if c.leased.has(p) || c.summed.has(p) && offered > 0 || w.bulk() && (c.bulk >= k.t.opt.BulkWidth || k.t.hoarded(c)) ||
			slices.ContainsFunc(c.reserved, func(r *reservation) bool { return r.peer != m.peer && r.pieces.has(p) }) {
			continue
		}
		if m.act.noOrigin.IsZero() {
			k.failf("%s waits for %d and could read it", name, p)
		}
		for _, id := range k.t.seeds {
			s := k.t.peers[PeerID(id)]
			o := c.of(s)
			// Who accused a seed that has nothing of the blob (it left, and is back)
			// avoids it from when it has something only, and is not to have it read
			// either.
			shunned := m.avoids(s) || o == nil && c.blames(m.peer.ID, s.ID)
			if k.t.free(s) > 0 && !shunned && !c.dropped[s.ID] && (o == nil || !o.offers(p) && (o.act == nil || o.act.noOrigin.IsZero())) {
				k.failf("%s waits for %d and %s could read it", name, p, id)
			}
		}
	}
}
