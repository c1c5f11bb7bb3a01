package schedule

// standing is what of a peer is asked of very many, one after the other. All lie
// together: those of ten thousand peers fit a processor's cache, and the peers do
// not.
type standing struct {
	used int32 // slots that are taken by us
	room int32 // how many we may take: none while it leaves or is busy
}

// free returns how many more transfers a peer that stands so can serve now.
func (s *standing) free() int { return int(s.room - s.used) }

// standing returns how m's peer stands.
func (t *Tracker) standing(m *member) *standing { return &t.standings[m.number] }

// free returns how many more transfers p, which may have left, can serve now.
func (t *Tracker) free(p *peer) int {
	if p.number < 0 {
		return 0
	}
	return t.standings[p.number].free()
}

// number gives p a place among the standings.
func (t *Tracker) number(p *peer) {
	if last := len(t.freeNumbers) - 1; last >= 0 {
		p.number = t.freeNumbers[last]
		t.freeNumbers = t.freeNumbers[:last]
	} else {
		p.number = int32(len(t.standings))
		t.standings = append(t.standings, standing{})
	}
	t.stand(p)
}

// unnumber takes p, which has left, out of the standings.
func (t *Tracker) unnumber(p *peer) {
	t.standings[p.number] = standing{}
	t.freeNumbers = append(t.freeNumbers, p.number)
	p.number = -1
}

// stand notes how many transfers p may serve, which has changed.
func (t *Tracker) stand(p *peer) {
	if p.number < 0 {
		return
	}
	room := 0
	if !p.leaving && p.busyUntil.IsZero() {
		room = p.slots - p.other
	}
	t.standings[p.number].room = int32(room)
}
