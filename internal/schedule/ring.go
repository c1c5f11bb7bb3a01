package schedule

// Rings have those members in them that may be asked for pieces: not busy as
// far as is known, and not dropped.
type ring struct {
	at   []*member
	next int // where the next search starts, so that load spreads
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
	seeding // seeds are in no other ring: peers are to be asked first
)

// list puts m into the rings where it belongs.
func (t *Tracker) list(m *member) {
	if m.muted || m.aside {
		return
	}
	some := m.have.count > 0 || m.act != nil && m.act.receiving.count > 0
	if m.listed {
		if some && m.level[0].full == m.isFull() && m.level[0].spare == t.spare(m) {
			m.show()
			return
		}
		t.unlist(m)
	}
	if !some {
		return
	}
	m.listed = true
	full, spare := m.isFull(), t.spare(m)
	m.level = [3]ringName{{level: anywhere, full: full, spare: spare}}
	switch {
	case m.peer.Seed:
		m.level[0].level = seeding
	default:
		if m.peer.rack != "" {
			m.level[1] = ringName{inRack, full, spare, m.peer.rack}
		}
		if m.peer.zone != "" {
			m.level[2] = ringName{inZone, full, spare, m.peer.zone}
		}
	}
	if full && spare {
		m.c.fulls++
	}
	m.show()
	for i, name := range m.level {
		if name.level == nowhere {
			continue
		}
		r := m.c.rings[name]
		if r == nil {
			r = &ring{}
			m.c.rings[name] = r
		}
		m.pos[i] = len(r.at)
		r.at = append(r.at, m)
	}
}

// show has what m holds or reads be known, if it has not everything and may
// serve those whom nobody is blocked on.
func (m *member) show() {
	if m.level[0].full || !m.level[0].spare {
		return
	}
	now := m.holds
	if m.act != nil && m.act.near.count > 0 {
		now = now.or(m.c.maskOf(&m.act.near))
	}
	m.c.offered.change(&m.shown, now)
}

// spare reports whether m may serve more transfers that nobody is blocked on.
// It may have as many as it takes itself: one that gives many at once, slowly,
// keeps the links of all others idle.
func (t *Tracker) spare(m *member) bool { return m.bulkOut < t.opt.BulkWidth }

// unlist takes m out of all rings.
func (t *Tracker) unlist(m *member) {
	if !m.listed {
		return
	}
	m.listed = false
	if m.level[0].full && m.level[0].spare {
		m.c.fulls--
	}
	m.c.offered.change(&m.shown, mask{})
	for i, name := range m.level {
		if name.level == nowhere {
			continue
		}
		r := m.c.rings[name]
		last := r.at[len(r.at)-1]
		r.at[m.pos[i]] = last
		last.pos[last.slot(name)] = m.pos[i]
		r.at[len(r.at)-1] = nil
		r.at = r.at[:len(r.at)-1]
		if len(r.at) == 0 {
			delete(m.c.rings, name)
		}
	}
}

// slot returns which of m's rings has that name.
func (m *member) slot(name ringName) int {
	for i := range m.level {
		if m.level[i].level == name.level {
			return i
		}
	}
	return 0
}

// scan calls f with the members of a ring that have a free slot until it
// returns true, from where the last scan ended. Those that have none are set
// aside, so that nobody comes past them again before they have.
func (t *Tracker) scan(r *ring, f func(*member) bool) {
	if r == nil {
		return
	}
	start := min(r.next, len(r.at))
	if t.scanPart(r, start, len(r.at), f) {
		return
	}
	// A member set aside is replaced by the last one: nobody is left out, some
	// may be looked at twice.
	t.scanPart(r, 0, start, f)
}

func (t *Tracker) scanPart(r *ring, from, to int, f func(*member) bool) bool {
	for i := from; i < min(to, len(r.at)); {
		m := r.at[i]
		if m.peer.free() <= 0 {
			t.setAside(m)
			continue
		}
		i++
		if f(m) {
			r.next = i
			return true
		}
	}
	return false
}

// setAside takes m out of its rings until its peer has a free slot.
func (t *Tracker) setAside(m *member) {
	t.unlist(m)
	m.aside = true
	m.peer.aside = append(m.peer.aside, m)
}
