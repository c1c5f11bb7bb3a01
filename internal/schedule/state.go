package schedule

import (
	"maps"
	"slices"
)

// PeerState is how a peer stands.
type PeerState struct {
	// Slots are how many transfers it serves at a time, Used how many it does.
	Slots, Used int
	// Blobs is of how many it has something, or is to have it.
	Blobs int
}

// BlobState is how a blob stands.
type BlobState struct {
	Shape Shape
	// Complete is how many peers have all of it, Partial how many have some,
	// Receiving how many are being sent pieces, by peers or by the origin.
	Complete, Partial, Receiving int
	// Leased is how many pieces are leased.
	Leased int
	// Wants is how many wants are not answered in full.
	Wants int
}

// Blobs returns how many blobs are known.
func (t *Tracker) Blobs() int { return len(t.blobs) }

// BlobNames returns the names of all known blobs, in order.
func (t *Tracker) BlobNames() []string { return slices.Sorted(maps.Keys(t.blobs)) }

// Peer returns how a peer stands; the zero PeerState if it has not joined.
func (t *Tracker) Peer(id PeerID) PeerState {
	p := t.peers[id]
	if p == nil {
		return PeerState{}
	}
	return PeerState{Slots: p.slots, Used: int(t.standings[p.number].used) + p.other, Blobs: len(p.members)}
}

// Blob returns how a blob stands, and false if it is not known.
func (t *Tracker) Blob(name string) (BlobState, bool) {
	c := t.blobs[name]
	if c == nil {
		return BlobState{}, false
	}
	s := BlobState{Shape: c.shape}
	for _, m := range c.order {
		switch {
		case m.isFull():
			s.Complete++
		case m.have.count > 0:
			s.Partial++
		}
		if m.act == nil {
			continue
		}
		if m.act.receiving.count > 0 {
			s.Receiving++
		}
		s.Leased += int(m.act.leased.count)
		s.Wants += len(m.act.wants)
	}
	return s, true
}
