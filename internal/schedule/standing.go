package schedule

// standing is what of a peer is asked of very many, one after the other. All lie
// together: those of ten thousand peers fit a processor's cache, and the peers do
// not.
type standing struct {
	used int32 // as in peer
	free int32 // what peer.free returns
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

// stand notes how p stands, which has changed.
func (t *Tracker) stand(p *peer) {
	if p.number >= 0 {
		t.standings[p.number] = standing{int32(p.used), int32(p.free())}
	}
}
