package schedule

import (
	"slices"

	"skimmer/internal/blob"
)

func (e PeerJoined) apply(t *Tracker) {
	if t.peers[e.ID] != nil {
		PeerLeft{e.ID}.apply(t)
	}
	p := &peer{PeerJoined: e, slots: e.UploadSlots}
	if p.zone = e.Location.Zone; e.Location.Rack != "" {
		p.rack = e.Location.Zone + "\x00" + e.Location.Rack
	}
	t.peers[e.ID] = p
	t.number(p)
	if e.Seed {
		i, _ := slices.BinarySearch(t.seeds, string(e.ID))
		t.seeds = slices.Insert(t.seeds, i, string(e.ID))
		t.wakePeer(p)
	}
}

func (e PeerLeaving) apply(t *Tracker) {
	p := t.peers[e.ID]
	if p == nil || p.leaving {
		return
	}
	p.leaving = true
	t.stand(p)
	t.noSeed(p)
	for _, m := range p.members {
		t.mute(m)
		if m.act != nil {
			for _, w := range m.act.wants {
				t.enqueue(w)
			}
		}
	}
}

// noSeed has p no longer be leased what others want.
func (t *Tracker) noSeed(p *peer) {
	if i := slices.Index(t.seeds, string(p.ID)); p.Seed && i >= 0 {
		t.seeds = slices.Delete(t.seeds, i, i+1)
		for _, c := range t.hungry {
			t.retry(c)
		}
	}
}

func (e PeerLeft) apply(t *Tracker) {
	p := t.peers[e.ID]
	if p == nil {
		return
	}
	delete(t.peers, e.ID)
	p.leaving = true
	t.stand(p)
	defer t.unnumber(p)
	t.noSeed(p)
	for _, m := range slices.Clone(p.members) {
		c := m.c
		t.mute(m)
		if a := m.act; a != nil {
			for _, w := range slices.Clone(a.wants) {
				t.finish(w)
			}
			for _, x := range slices.Clone(a.in) {
				t.sever(x.transfer, &c.all, false)
			}
			t.orphan(m, &c.all)
			c.avoiders -= len(a.avoid)
			a.avoid = nil
		}
		c.reserved = slices.DeleteFunc(c.reserved, func(r *reservation) bool { return r.peer == p })
		t.retry(c)
		t.remove(m)
	}
}

func (e Announce) apply(t *Tracker) {
	p := t.peers[e.Peer]
	if p == nil {
		return
	}
	c := t.blobs[e.Blob]
	if c == nil && len(e.Have) == 0 {
		return
	}
	if !t.admits(p, e.Blob, e.Shape) {
		if len(e.Have) > 0 {
			t.emit(Refused{To: e.Peer, Blob: e.Blob, Why: WhyTooMany})
		}
		return
	}
	if c = t.open(e.Blob, e.Shape); c == nil {
		return
	}
	m := t.join(p, c)
	t.mayIdle(m)
	got := newSet(c.n)
	got.addRuns(e.Have)
	wrong := newSet(c.n)
	for _, s := range e.Sums {
		if s.Group || !got.has(s.Piece) || c.leased.has(s.Piece) || c.dropped[p.ID] {
			continue
		}
		if !t.learn(m, s, p.Seed && !c.bySeed.has(s.Piece)) {
			wrong.add(s.Piece, s.Piece+1)
		}
	}
	if wrong.count > 0 {
		got.removeSet(&wrong)
		t.emit(Forget{To: p.ID, Blob: c.name, Runs: wrong.list()})
	}
	lost := m.have.clone()
	lost.removeSet(&got)
	lost.each(func(lo, hi int) { t.lose(m, lo, hi) })
	got.removeSet(m.have)
	t.arrive(m, &got)
}

func (e Want) apply(t *Tracker) {
	p := t.peers[e.Peer]
	if p == nil {
		return
	}
	refuse := func(why Why) { t.emit(Refused{To: e.Peer, Blob: e.Blob, Want: e.ID, Why: why}) }
	pieces := newSet(e.Shape.pieces())
	pieces.addRuns(e.Runs)
	if e.ID == 0 || p.wants.get(e.ID) != nil || pieces.count == 0 {
		refuse(WhyInvalid)
		return
	}
	if p.wants.len() >= t.opt.MaxWants || !t.admits(p, e.Blob, e.Shape) {
		refuse(WhyTooMany)
		return
	}
	c := t.open(e.Blob, e.Shape)
	if c == nil {
		refuse(WhyInvalid)
		return
	}
	m := t.join(p, c)
	// Who wants what it said it has lost it.
	lost := both(&pieces, m.have)
	lost.each(func(lo, hi int) { t.lose(m, lo, hi) })
	a := m.busy()
	t.seq++
	w := t.freeWants.take()
	*w = want{id: e.ID, seq: t.seq, m: m, prio: min(e.Priority, blob.Background), origin: e.Origin,
		pieces: pieces, need: pieces.clone(), window: newSet(c.n)}
	w.need.removeSet(&a.receiving)
	w.mark(&pieces)
	w.window.addRuns(e.Window)
	for _, s := range []*set{&pieces, m.have, &a.receiving} {
		w.window.removeSet(s)
	}
	p.wants.put(w.id, w)
	a.wants = append(a.wants, w)
	t.touch(w)
}

func (e Have) apply(t *Tracker) {
	p, c := t.peers[e.Peer], t.blobs[e.Blob]
	if p == nil || c == nil {
		return
	}
	got := newSet(c.n)
	got.addRuns(e.Runs)
	if got.count == 0 {
		return
	}
	m := c.of(p)
	if m == nil {
		if !t.admits(p, e.Blob, c.shape) {
			t.emit(Refused{To: e.Peer, Blob: e.Blob, Why: WhyTooMany})
			return
		}
		m = t.join(p, c)
	}
	if len(e.Sums) > 0 && m.act != nil && !c.dropped[p.ID] {
		t.report(m, e.Sums, &got)
	}
	got.removeSet(m.have)
	t.arrive(m, &got)
}

// report takes the digests that m found while it read the origin. They are
// believed whatever was known: pieces with known digests are leased only where
// nobody is left to have them from, and there is no later evidence.
func (t *Tracker) report(m *member, sums []PieceSum, got *set) {
	news := newSet(m.c.n)
	for _, s := range sums {
		p := s.Piece
		if s.Group || !got.has(p) || !m.act.leased.has(p) {
			continue
		}
		if fresh := !m.c.summed.has(p); t.learn(m, s, true) && fresh {
			news.add(p, p+1)
		}
	}
	t.spread(m, &news)
}

func (e Fail) apply(t *Tracker) {
	p, c := t.peers[e.Peer], t.blobs[e.Blob]
	if p == nil || c == nil {
		return
	}
	m := c.of(p)
	if m == nil || m.act == nil {
		return
	}
	pieces := newSet(c.n)
	pieces.addRuns(e.Runs)
	if len(e.Runs) == 0 {
		pieces = c.all.clone()
	}
	var failed []*transfer
	for _, x := range m.act.in {
		by := e.Source == "" && x.from == nil ||
			e.Source != "" && x.from != nil && (x.from.peer.ID == e.Source || len(e.Runs) > 0 && x.second == e.Source)
		if by && common(&x.pieces, &pieces, 0) < c.n {
			failed = append(failed, x.transfer)
		}
	}
	if len(failed) == 0 {
		return
	}
	t.blame(m, e.Source, e.Reason)
	for _, x := range failed {
		t.sever(x, &pieces, false)
	}
	if e.Reason == Corrupt && e.Source != "" {
		t.accuse(m, e.Source)
	}
}

// blame draws the conclusions for the future from what failed m.
func (t *Tracker) blame(m *member, source PeerID, why Reason) {
	if source == "" {
		t.noOrigin(m)
		return
	}
	p := t.peers[source]
	if p == nil {
		return
	}
	switch why {
	case Busy:
		p.busyUntil = t.now.Add(t.opt.BusyPause)
		t.stand(p)
		t.pause(busyPause, pause{until: p.busyUntil, p: p})
	case Corrupt:
	default:
		t.avoid(m, p)
	}
}

// avoid has m take nothing from p for a while.
func (t *Tracker) avoid(m *member, p *peer) {
	a := m.busy()
	v := avoidance{p, t.now.Add(t.opt.AvoidPause)}
	if slices.Contains(a.avoid, avoidance{peer: p}) {
		return
	}
	t.pause(avoidPause, pause{until: v.until, m: m})
	if i := slices.IndexFunc(a.avoid, func(v avoidance) bool { return v.peer == p }); i >= 0 {
		a.avoid[i] = v
		return
	}
	a.avoid = append(a.avoid, v)
	m.c.avoiders++
	t.touchAll(m)
}

// noOrigin has m not read the origin for a while.
func (t *Tracker) noOrigin(m *member) {
	m.busy().noOrigin = t.now.Add(t.opt.OriginPause)
	t.pause(originPause, pause{until: m.act.noOrigin, m: m})
}

// drop has a peer be no source of c again, and says so to those who would use
// it and to who found out.
func (t *Tracker) drop(c *content, source, finder PeerID) {
	if c.dropped[source] {
		return
	}
	c.dropped[source] = true
	told := []PeerID{finder}
	if p := t.peers[source]; p != nil && c.of(p) != nil {
		t.mute(c.of(p))
		t.absolve(c, p)
	}
	for _, m := range c.order {
		if t.cutOff(m, source) && m.peer.ID != finder {
			told = append(told, m.peer.ID)
		}
	}
	for _, id := range told {
		t.emit(Drop{To: id, Blob: c.name, Source: source})
	}
}

func (e Progress) apply(t *Tracker) {
	p, c := t.peers[e.Peer], t.blobs[e.Blob]
	if p == nil || c == nil {
		return
	}
	m := c.of(p)
	if m == nil || m.act == nil {
		return
	}
	lo, hi := cut(e.Run, c.n)
	for _, x := range m.act.in {
		if x.pieces.next(lo) < hi {
			t.renew(x.transfer)
		}
	}
}

func (e Cancel) apply(t *Tracker) {
	p := t.peers[e.Peer]
	if p == nil {
		return
	}
	w := p.wants.get(e.Want)
	if w == nil || w.m.c.name != e.Blob {
		return
	}
	t.finish(w)
	for _, x := range slices.Clone(w.m.act.in) {
		if x.want == w {
			t.sever(x.transfer, &w.m.c.all, false)
		}
	}
}

func (e Reject) apply(t *Tracker) {
	p, c := t.peers[e.Peer], t.blobs[e.Blob]
	if p == nil || c == nil {
		return
	}
	m := c.of(p)
	if m == nil {
		return
	}
	pieces := newSet(c.n)
	pieces.addRuns(e.Runs)
	pieces = both(&pieces, m.have) // nobody judges what it has not seen
	known := newSet(c.n)
	pieces.each(func(lo, hi int) {
		for q := c.summed.next(lo); q < hi; q = c.summed.next(q) {
			end := min(hi, c.summed.gap(q))
			known.add(q, end)
			q = end
		}
	})
	if known.count == 0 {
		return
	}
	t.forget(c, &known, m)
	known.each(func(lo, hi int) {
		t.lose(m, lo, hi)
		c.summed.put(lo, hi, false)
		c.bySeed.put(lo, hi, false)
	})
	r := &reservation{peer: p, pieces: known}
	c.reserved = append(c.reserved, r)
	t.pause(reservedPause, pause{until: t.now.Add(t.opt.LeaseLife), c: c, r: r})
}

func (e Uploading) apply(t *Tracker) {
	p := t.peers[e.Peer]
	if p == nil {
		return
	}
	was := p.mute()
	p.slots, p.other = e.Slots, max(0, e.Other)
	t.stand(p)
	if p.mute() != was {
		for _, m := range p.members {
			if p.mute() {
				t.mute(m)
			} else {
				t.unmute(m)
			}
		}
	}
	t.wakePeer(p)
}

func (e Tick) apply(t *Tracker) {
	for x := t.leases.front(); x != nil && !x.deadline.After(t.now); x = t.leases.front() {
		t.noOrigin(x.to)
		x.forgotten()
		t.sever(x, &x.to.c.all, true)
	}
	for x := t.transfers.front(); x != nil && !x.deadline.After(t.now); x = t.transfers.front() {
		t.avoid(x.to, x.from.peer)
		x.forgotten()
		t.sever(x, &x.to.c.all, true)
	}
	for kind := range t.pauses {
		q := t.pauses[kind]
		for len(q) > 0 && !q[0].until.After(t.now) {
			t.resume(pauseKind(kind), q[0])
			q[0] = pause{}
			q = q[1:]
		}
		t.pauses[kind] = q
	}
}

// forgotten notes that who was to take x did nothing.
func (x *transfer) forgotten() {
	for _, w := range x.to.act.wants {
		if w == x.want || common(&w.pieces, &x.pieces, 0) < x.to.c.n {
			w.late = true
			if w.queued {
				w.leave() // and is the last of those
			}
		}
	}
}
