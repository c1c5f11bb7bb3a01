package schedule

import "slices"

// maxHops is over how many members on the way pieces come at most that nobody
// is blocked on. Each costs the time to relay a piece; a few are enough to have
// all links at work soon after a piece has left the origin. Where a transfer is
// not much longer than what is relayed at a time (a group), waiting for a relay is
// waiting for the whole of it, and only readers of the origin relay.
const maxHops = 3

// hopsOf returns maxHops for transfers of so many pieces, or 0 if those are short.
func hopsOf(bulkRun int) int {
	if bulkRun < 8*Group {
		return 0
	}
	return maxHops
}

// parcel is what the grant of a transfer mostly takes, in one piece.
type parcel struct {
	parts   [1]Part
	runs    [1]Run
	sources [2]Source
}

// begin has pieces on their way to a member: from another, or from the origin
// if from is nil. w is the want that made it necessary.
func (t *Tracker) begin(w *want, to, from *member, pieces set) {
	c, a := to.c, to.busy()
	x := t.freeTransfers.take()
	*x = transfer{to: to, from: from, pieces: pieces, inAt: int32(len(a.in))}
	box := &parcel{}
	part := &box.parts[0]
	part.Runs = pieces.appendTo(box.runs[:0])
	a.in = append(a.in, inbound{x, pieces.hull()})
	a.receiving.addSet(&pieces)
	pieces.each(func(lo, hi int) { to.count(lo, hi, 1) })
	c.remember(to, &pieces)
	if from == nil {
		t.beginLease(w, x, part)
	} else {
		t.beginFrom(w, x, box)
	}
	near := from == nil || int(x.hops) < c.hops
	if near {
		a.near.addSet(&pieces)
	}
	for _, o := range a.wants {
		if o == w {
			o.lack(&pieces)
			o.window.removeSet(&pieces)
		} else if common(&o.need, &pieces, 0) < c.n || common(&o.window, &pieces, 0) < c.n {
			o.lack(&pieces)
			o.window.removeSet(&pieces)
			t.settleFor(o)
		}
	}
	if w.m == to {
		x.want = w
		w.active++
		if w.parts == nil {
			w.parts = box.parts[:]
		} else {
			w.parts = append(w.parts, *part)
		}
	} else {
		t.emit(Grant{To: to.peer.ID, Blob: c.name, Shape: c.shape, Origin: w.origin, Priority: w.prio, Parts: box.parts[:]})
	}
	t.list(to)
	t.wakeMember(to, pieces.hull(), !near)
}

func (t *Tracker) beginLease(w *want, x *transfer, part *Part) {
	c := x.to.c
	x.deadline = t.now.Add(t.opt.LeaseLife)
	t.leases.push(x)
	x.to.act.leased.addSet(&x.pieces)
	x.pieces.each(func(lo, hi int) { c.leased.put(lo, hi, true) })
	if w.bulk() {
		x.bulk = true
		c.bulk++
	}
	c.reserved = slices.DeleteFunc(c.reserved, func(r *reservation) bool {
		r.pieces.removeSet(&x.pieces)
		return r.pieces.count == 0
	})
	part.Lease = x.deadline
}

func (t *Tracker) beginFrom(w *want, x *transfer, box *parcel) {
	part := &box.parts[0]
	x.deadline = t.now.Add(t.opt.TransferLife)
	t.transfers.push(x)
	out := x.from.busy()
	for _, up := range out.in {
		if x.pieces.next(int(up.in.lo)) < int(up.in.hi) && up.hops >= x.hops && common(&up.pieces, &x.pieces, 0) < x.to.c.n {
			x.hops = up.hops + 1
		}
	}
	x.outAt = int32(len(out.out))
	out.out = append(out.out, x)
	t.standing(x.from).used++
	if w.bulk() {
		x.bulk = true
		x.from.bulkOut++
		if x.from.seed {
			x.to.c.feeding++
		}
	}
	part.Sources = append(box.sources[:0], Source{x.from.peer.ID, x.from.peer.Addr})
	if second := t.second(w, x); second != nil {
		x.second = second.peer.ID
		part.Sources = append(part.Sources, Source{second.peer.ID, second.peer.Addr})
	}
	part.Sums = x.to.c.sumsOf(&x.pieces)
	if x.from.listed && t.standing(x.from).free() <= 0 {
		t.setAside(x.from)
	} else {
		t.list(x.from)
	}
}

// end forgets a transfer of which nothing is left.
func (t *Tracker) end(x *transfer) {
	in := x.to.act
	if x.bulk && x.from != nil {
		in.warm[in.turn%len(in.warm)] = x.from
		in.turn++
	}
	last := in.in[len(in.in)-1]
	in.in[x.inAt], last.inAt = last, x.inAt
	in.in[len(in.in)-1] = inbound{}
	in.in = in.in[:len(in.in)-1]
	t.mayIdle(x.to)
	if x.from == nil {
		t.leases.remove(x)
		if x.bulk {
			x.to.c.bulk--
			t.retry(x.to.c)
		}
	} else {
		t.transfers.remove(x)
		out := x.from.act
		last := out.out[len(out.out)-1]
		out.out[x.outAt], last.outAt = last, x.outAt
		out.out[len(out.out)-1] = nil
		out.out = out.out[:len(out.out)-1]
		t.release(x)
		t.mayIdle(x.from)
	}
	if x.want != nil {
		x.want.active--
		if !x.want.queued {
			t.touch(x.want)
		} else {
			t.settleFor(x.want)
		}
		t.finishDone(x.want)
	}
	*x = transfer{pieces: newSet(x.to.c.n)}
	t.freeTransfers.give(x)
}

// release frees the slot that x had, and wakes those who could not have it.
func (t *Tracker) release(x *transfer) {
	m, stands := x.from, t.standing(x.from)
	free, spare := stands.free() > 0, t.spare(m)
	stands.used--
	if x.bulk {
		m.bulkOut--
		if m.seed {
			m.c.feeding--
		}
	}
	switch {
	case !free:
		t.list(m)
		t.wakePeer(m.peer)
	case !spare && t.spare(m):
		// Mostly it is taken again at once, and was never listed as free.
		t.wakes = append(t.wakes, wake{m: m, in: m.c.everything(), calm: true, relist: true})
	}
}

// renew says that x makes progress.
func (t *Tracker) renew(x *transfer) {
	if x.from == nil {
		x.deadline = t.now.Add(t.opt.LeaseLife)
		t.leases.remove(x)
		t.leases.push(x)
		return
	}
	x.deadline = t.now.Add(t.opt.TransferLife)
	t.transfers.remove(x)
	t.transfers.push(x)
}

// sever takes pieces out of a transfer before they have arrived, and with them
// everybody down the line who waits for them. tell says whether the receiver
// does not know yet.
func (t *Tracker) sever(x *transfer, pieces *set, tell bool) {
	gone := both(&x.pieces, pieces)
	if gone.count == 0 {
		return
	}
	m, c := x.to, x.to.c
	x.pieces.removeSet(&gone)
	m.act.receiving.removeSet(&gone)
	m.act.near.removeSet(&gone)
	gone.each(func(lo, hi int) { m.count(lo, hi, -1) })
	if x.from == nil {
		m.act.leased.removeSet(&gone)
		gone.each(func(lo, hi int) { c.leased.put(lo, hi, false) })
	}
	for _, w := range m.act.wants {
		if back := both(&w.pieces, &gone); back.count > 0 {
			w.need.addSet(&back)
			w.mark(&back)
			t.touch(w)
		}
	}
	if tell {
		r := Revoke{To: m.peer.ID, Blob: c.name, Runs: gone.list()}
		if x.from != nil {
			r.From = x.from.peer.ID
		}
		t.emit(r)
	}
	if x.pieces.count == 0 {
		t.end(x)
	}
	t.orphan(m, &gone)
	t.list(m)
	t.retry(c)
}

// orphan severs what m sends of pieces.
func (t *Tracker) orphan(m *member, pieces *set) {
	if m.act == nil {
		return
	}
	for _, x := range slices.Clone(m.act.out) {
		t.sever(x, pieces, true)
	}
}

// arrive notes that m has got pieces, sent as granted or not.
func (t *Tracker) arrive(m *member, got *set) {
	c := m.c
	moved := newSet(c.n)
	if a := m.act; a != nil {
		moved = both(&a.receiving, got)
		a.receiving.removeSet(&moved)
		a.near.removeSet(&moved)
		if own := both(&a.leased, &moved); own.count > 0 {
			a.leased.removeSet(&own)
			own.each(func(lo, hi int) { c.leased.put(lo, hi, false) })
			if m.muted || c.avoiders > 0 {
				t.retry(c) // not everybody may have them from it
			}
		}
		t.answer(m, got)
		for i := len(a.in) - 1; i >= 0; i-- {
			if moved.next(int(a.in[i].in.lo)) >= int(a.in[i].in.hi) {
				continue
			}
			x, before := a.in[i].transfer, a.in[i].pieces.count
			x.pieces.removeSet(&moved)
			if x.pieces.count == 0 {
				t.end(x) // another takes its place, which has been looked at
			} else if x.pieces.count < before {
				t.renew(x)
			}
		}
		for i := len(a.wants) - 1; i >= 0; i-- {
			t.finishDone(a.wants[i])
		}
	}
	m.gain(got, &moved)
	if moved.count < got.count && !m.isFull() {
		c.remember(m, got)
	}
	c.note(m, got)
	t.hush(m, got)
	t.list(m)
	t.wakeMember(m, got.hull(), false)
	t.mayIdle(m)
}

// answer notes in m's wants that m has got pieces.
func (t *Tracker) answer(m *member, got *set) {
	for _, w := range m.act.wants {
		if common(&w.pieces, got, 0) < m.c.n {
			w.pieces.removeSet(got)
			if w.late {
				w.late = false
				t.settleFor(w)
			}
			if common(&w.need, got, 0) < m.c.n {
				w.lack(got)
				t.settleFor(w)
			}
		}
		w.window.removeSet(got)
	}
}

// hush sees to it that nobody waits for a holder's pieces whose digests are
// not known: it was to come from a reader of the origin up the line.
func (t *Tracker) hush(m *member, got *set) {
	c := m.c
	mute := newSet(c.n)
	got.each(func(lo, hi int) {
		for p := c.summed.gapBefore(lo, hi); p < hi; p = c.summed.gapBefore(p, hi) {
			end := min(hi, c.summed.nextBefore(p, hi))
			mute.add(p, end)
			c.silent.put(p, end, true)
			p = end
		}
	})
	if mute.count > 0 {
		t.orphan(m, &mute)
		t.retry(c)
	}
}

// finishDone forgets w if it has been answered.
func (t *Tracker) finishDone(w *want) {
	if !w.finished && w.pieces.count == 0 && w.active == 0 {
		t.finish(w)
	}
}

// finish forgets w.
func (t *Tracker) finish(w *want) {
	w.finished = true
	if w.pieces.count > 0 {
		w.m.c.hoard.put(0, w.m.c.n, false) // maybe nobody wants it any more
	}
	w.m.peer.wants.remove(w.id)
	t.ended = append(t.ended, w)
	a := w.m.act
	i := slices.Index(a.wants, w)
	a.wants = slices.Delete(a.wants, i, i+1)
	t.enqueue(w)
	t.mayIdle(w.m)
}

// emit adds an action to those of the step.
func (t *Tracker) emit(a Action) { t.out = append(t.out, a) }
