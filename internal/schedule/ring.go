package schedule

import "math/bits"

// Rings have those members in them that may be asked for pieces: not busy as
// far as is known, and not dropped.
type ring struct {
	at    []listed
	marks []marks // of eight of at each
	next  int     // where the next search starts, so that load spreads
}

// listed is a member in a ring.
type listed struct {
	m    *member
	peer int32 // the number of its peer: one look less
}

// marks say of eight members, word by word, where they may have something to
// offer. Most members are passed by: what is sought is mostly in one word, and
// those of eight members are a line of the cache.
type marks [len(mask{})][8]uint64

// put notes the mark of member i.
func (r *ring) put(i int, marked mask) {
	k := &r.marks[i/8]
	for w, word := range marked {
		k[w][i%8] = word
	}
}

// push adds a member.
func (r *ring) push(m *member) {
	i := len(r.at)
	r.at = append(r.at, listed{m, m.peer.number})
	if i/8 == len(r.marks) {
		r.marks = append(r.marks, marks{})
	}
	r.put(i, m.marked)
}

// remove puts the last member in the place of member i, and returns it.
func (r *ring) remove(i int) *member {
	end := len(r.at) - 1
	last := r.at[end]
	r.at[i] = last
	from, to := &r.marks[end/8], &r.marks[i/8]
	for w := range from {
		to[w][i%8] = from[w][end%8]
	}
	r.at[end] = listed{}
	r.at = r.at[:end]
	r.marks = r.marks[:(end+7)/8]
	return last.m
}

// seek returns the first member from i on and before end that may have something
// of what is sought, or end or more.
func (r *ring) seek(i, end int, sought mask) int {
	for ; i < end; i = i/8*8 + 8 {
		k, found := &r.marks[i/8], uint64(0)
		for w, word := range sought {
			if word != 0 {
				found |= meeting(&k[w], word)
			}
		}
		if found = found >> (i % 8) << (i % 8); found != 0 {
			return i/8*8 + bits.TrailingZeros64(found)
		}
	}
	return end
}

// meeting returns a bit for each of eight words that has a bit of word.
func meeting(k *[8]uint64, word uint64) uint64 {
	a, b, c, d := k[0]&word, k[1]&word, k[2]&word, k[3]&word
	e, f, g, h := k[4]&word, k[5]&word, k[6]&word, k[7]&word
	return (a|-a)>>63 | (b|-b)>>63<<1 | (c|-c)>>63<<2 | (d|-d)>>63<<3 |
		(e|-e)>>63<<4 | (f|-f)>>63<<5 | (g|-g)>>63<<6 | (h|-h)>>63<<7
}

// ringName says which members a ring has.
type ringName struct {
	level level
	full  bool   // they have everything
	spare bool   // they may serve more that nobody is blocked on
	name  string // of the rack or zone
}

type level uint8

const (
	nowhere level = iota
	inRack
	inZone
	anywhere
	seeding   // seeds are in no other ring: peers are to be asked first
	suspected // nor are members who are said to have sent corrupt bytes: all others first
)

// ring returns the ring of that name, or nil.
func (c *content) ring(name ringName) *ring {
	if name.level < anywhere {
		return c.rings[name]
	}
	i := 0
	if name.full {
		i = 1
	}
	if name.spare {
		i += 2
	}
	return &c.wide[name.level-anywhere][i]
}

// list puts m into the rings where it belongs.
func (t *Tracker) list(m *member) {
	if m.muted || m.aside {
		return
	}
	some := m.have.count > 0 || m.act != nil && m.act.receiving.count > 0
	if m.listed {
		if some && m.asFull == m.isFull() && m.asSpare == t.spare(m) {
			m.mark(m.show())
			return
		}
		t.unlist(m)
	}
	if !some {
		return
	}
	m.listed = true
	full, spare := m.isFull(), t.spare(m)
	m.asFull, m.asSpare = full, spare
	if full && spare {
		m.c.fulls++
	}
	m.marked = m.show()
	for i := range m.pos {
		name := m.ringAt(i)
		if name.level == nowhere {
			continue
		}
		r := m.c.ring(name)
		if r == nil {
			r = &ring{}
			m.c.rings[name] = r
		}
		m.pos[i] = int32(len(r.at))
		r.push(m)
	}
}

// show has what m holds or reads be known, if it has not everything and may
// serve those whom nobody is blocked on. It returns where m offers anything to
// anybody.
func (m *member) show() mask {
	now, all := m.offering()
	if !m.asFull && m.asSpare && m.shown != now {
		m.c.offered.change(&m.shown, now)
	}
	return all
}

// offering returns where m offers anything to those whom nobody is blocked on,
// and to anybody.
func (m *member) offering() (now, all mask) {
	now, all = m.holds, m.holds
	if a := m.act; a != nil && a.receiving.count > 0 {
		all = now.or(m.c.maskOf(&a.receiving))
		switch a.near.count {
		case 0:
		case a.receiving.count:
			now = all
		default:
			now = now.or(m.c.maskOf(&a.near))
		}
	}
	return now, all
}

// mark has m be seen in its rings where it offers something. What it no longer
// offers is left there: a mark is a hint.
func (m *member) mark(offers mask) {
	now := m.marked.or(offers)
	if now == m.marked {
		return
	}
	m.marked = now
	for i := range m.pos {
		if name := m.ringAt(i); name.level != nowhere {
			m.c.ring(name).put(int(m.pos[i]), now)
		}
	}
}

// spare reports whether m may serve more transfers that nobody is blocked on.
// It may have as many as it takes itself: one that gives many at once, slowly,
// keeps the links of all others idle.
func (t *Tracker) spare(m *member) bool { return int(m.bulkOut) < t.opt.BulkWidth }

// unlist takes m out of all rings.
func (t *Tracker) unlist(m *member) {
	if !m.listed {
		return
	}
	m.listed = false
	if m.asFull && m.asSpare {
		m.c.fulls--
	}
	m.c.offered.change(&m.shown, mask{})
	for i := range m.pos {
		name := m.ringAt(i)
		if name.level == nowhere {
			continue
		}
		r := m.c.ring(name)
		r.remove(int(m.pos[i])).pos[i] = m.pos[i]
		if len(r.at) == 0 && name.level < anywhere {
			delete(m.c.rings, name)
		}
	}
}

// ringAt returns the name of the i-th ring in which m is, if it is listed: of
// everybody, the seeds or the suspected, of its rack, of its zone. Not all are in all three.
func (m *member) ringAt(i int) ringName {
	name := ringName{full: m.asFull, spare: m.asSpare}
	switch {
	case i == 0 && m.suspect:
		name.level = suspected
	case m.suspect:
	case i == 0 && m.seed:
		name.level = seeding
	case i == 0:
		name.level = anywhere
	case m.seed:
	case i == 1 && m.peer.rack != "":
		name.level, name.name = inRack, m.peer.rack
	case i == 2 && m.peer.zone != "":
		name.level, name.name = inZone, m.peer.zone
	}
	return name
}

// isIn reports whether m, which is listed, is in the ring of that name.
func (m *member) isIn(name ringName) bool {
	if name.full != m.asFull || name.spare != m.asSpare {
		return false
	}
	switch name.level {
	case inRack:
		return m.ringAt(1) == name
	case inZone:
		return m.ringAt(2) == name
	}
	return m.ringAt(0).level == name.level
}

// scan calls f with the members of a ring that have a free slot, and with a mask
// those only that may have something there, until it returns true, from where
// the last scan ended. Those that have no slot are set aside, so that nobody
// comes past them again before they have.
func (t *Tracker) scan(r *ring, seek mask, f func(*listed) bool) {
	if r == nil || len(r.at) == 0 {
		return
	}
	start := min(r.next, len(r.at))
	if t.scanPart(r, start, len(r.at), seek, f) {
		return
	}
	// A member set aside is replaced by the last one: nobody is left out, some
	// may be looked at twice.
	t.scanPart(r, 0, start, seek, f)
}

func (t *Tracker) scanPart(r *ring, from, to int, seek mask, f func(*listed) bool) bool {
	all := seek == mask{}
	for i := from; ; {
		if !all {
			i = r.seek(i, min(to, len(r.at)), seek)
		}
		if i >= min(to, len(r.at)) {
			return false
		}
		e := &r.at[i]
		if t.standings[e.peer].free() <= 0 {
			t.setAside(e.m)
			continue
		}
		i++
		if f(e) {
			r.next = i
			return true
		}
	}
}

// setAside takes m out of its rings until its peer has a free slot.
func (t *Tracker) setAside(m *member) {
	t.unlist(m)
	m.aside = true
	m.peer.aside = append(m.peer.aside, m)
}
