package schedule

import (
	"net"
	"net/netip"
	"slices"
	"time"
)

// maxAccusations is how many accusations are remembered per blob; then the oldest
// goes.
const maxAccusations = 4096

// accusation says that by was sent bytes by source that fail their digest, or
// says so.
type accusation struct {
	source, by PeerID
	host       string // of by, empty if that says nothing
}

// accuse has m, to whom source is said to have sent corrupt bytes, take nothing
// of the blob from it again, and all others where there is nobody else. One peer's
// word is enough for that. Where a second
// says the same, on another host as far as that is known, nobody does.
func (t *Tracker) accuse(m *member, source PeerID) {
	c := m.c
	now := accusation{source, m.peer.ID, hostOf(m.peer.Addr)}
	known := false
	for _, a := range c.accused {
		switch {
		case a.source != source:
		case a.by == now.by:
			known = true
		case a.host == "" || a.host != now.host:
			t.drop(c, source, m.peer.ID)
			return
		}
	}
	if c.dropped[source] {
		return
	}
	if !known {
		if len(c.accused) >= maxAccusations {
			c.accused = slices.Delete(c.accused, 0, 1)
		}
		c.accused = append(c.accused, now)
	}
	if p := t.peers[source]; p != nil {
		t.distrust(m, p)
		if s := c.of(p); s != nil && !s.suspect {
			t.unlist(s)
			s.suspect = true
			t.list(s)
		}
	}
	t.cutOff(m, source)
	t.emit(Drop{To: m.peer.ID, Blob: c.name, Source: source})
}

// distrust has m take nothing from p as long as both are here.
func (t *Tracker) distrust(m *member, p *peer) {
	a := m.busy()
	if i := slices.IndexFunc(a.avoid, func(v avoidance) bool { return v.peer == p }); i >= 0 {
		a.avoid[i].until = time.Time{}
		return
	}
	a.avoid = append(a.avoid, avoidance{peer: p})
	m.c.avoiders++
	t.touchAll(m)
}

// remind has a member that is new distrust, and be distrusted, as before it left.
func (t *Tracker) remind(m *member) {
	for _, a := range m.c.accused {
		if p := t.peers[a.source]; a.by == m.peer.ID && p != nil && !m.c.dropped[a.source] {
			t.distrust(m, p)
		}
		if a.source != m.peer.ID {
			continue
		}
		m.suspect = true
		if p := t.peers[a.by]; p != nil && m.c.of(p) != nil && !m.c.dropped[a.source] {
			t.distrust(m.c.of(p), m.peer)
		}
	}
}

// trustless forgets whom m distrusts, if it avoids nobody else. It is for a member
// that is forgotten then: one that stayed would not be reminded when it wants
// something again.
func (m *member) trustless() {
	a := m.act
	if slices.ContainsFunc(a.avoid, func(v avoidance) bool { return !v.until.IsZero() }) {
		return
	}
	m.c.avoiders -= len(a.avoid)
	clear(a.avoid)
	a.avoid = a.avoid[:0]
}

// absolve has nobody distrust p, which has nothing of c any more or is used by
// nobody. If it has something again those are reminded.
func (t *Tracker) absolve(c *content, p *peer) {
	for _, a := range c.accused {
		by := t.peers[a.by]
		if a.source != p.ID || by == nil {
			continue
		}
		m := c.of(by)
		if m == nil || m.act == nil {
			continue
		}
		before := len(m.act.avoid)
		m.act.avoid = slices.DeleteFunc(m.act.avoid, func(v avoidance) bool { return v.peer == p && v.until.IsZero() })
		c.avoiders -= before - len(m.act.avoid)
		t.mayIdle(m)
	}
}

// cutOff takes from m all that source sends it, and tells it. It reports whether
// there was anything.
func (t *Tracker) cutOff(m *member, source PeerID) (uses bool) {
	if m.act == nil {
		return false
	}
	for _, x := range slices.Clone(m.act.in) {
		switch {
		case x.second == source:
			uses, x.second = true, ""
		case x.from != nil && x.from.peer.ID == source:
			uses = true
			t.sever(x.transfer, &m.c.all, true)
		}
	}
	return uses
}

// blames reports whether one peer said that it was sent corrupt bytes by another.
func (c *content) blames(by, source PeerID) bool {
	return slices.ContainsFunc(c.accused, func(a accusation) bool { return a.by == by && a.source == source })
}

// hostOf returns the host of an address, or nothing if that tells no two peers
// apart.
func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return ""
	}
	if ip, err := netip.ParseAddr(host); err == nil && (ip.IsLoopback() || ip.IsUnspecified()) {
		return ""
	}
	return host
}
