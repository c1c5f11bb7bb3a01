package swarm

import (
	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
	"skimmer/internal/transfer"
)

// tell sees to it that the blob's scheduler knows what this node has of it.
// Caller holds c.mu.
func (s *Swarm) tell(c *content) {
	epoch := c.owner.epoch()
	s.mu.Lock()
	told := s.told[c.digest]
	s.told[c.digest] = epoch
	s.mu.Unlock()
	c.told = epoch
	if !told.Equal(epoch) {
		s.announce(c, c.owner)
	}
}

// announce tells a scheduler what this node has of c. Caller holds c.mu.
func (s *Swarm) announce(c *content, to *Link) {
	have := newSet(c.geo.n)
	for _, r := range c.have.runs(c.have.all()) {
		have.add(r)
	}
	b, err := s.cfg.Store.Local().Open(s.ctx, blob.Ref{Digest: c.digest, Size: blob.SizeUnknown})
	if err == nil {
		if h, ok := b.(transfer.Holder); ok && b.Size() == c.geo.size {
			for _, r := range h.Held() {
				if run := c.geo.within(r); run.Count > 0 {
					have.add(run)
				}
			}
		}
		_ = b.Close() // it was only looked at
	}
	runs := have.runs(have.all())
	if len(runs) == 0 && !c.announced {
		return
	}
	c.announced = len(runs) > 0
	var sums []schedule.PieceSum
	for _, sum := range s.sums.load(c.digest, c.geo.n) {
		if have.has(sum.Piece) {
			sums = append(sums, sum)
		}
	}
	to.send(schedule.Announce{Blob: c.name(), Shape: c.geo.shape(), Have: runs, Sums: sums})
}

// announceAll tells the schedulers of all blobs that nobody uses.
func (s *Swarm) announceAll() {
	infos, err := s.cfg.Store.List()
	if err != nil {
		s.log.Warn("cannot tell the scheduler what is held", "error", err)
		return
	}
	for _, info := range infos {
		if s.ctx.Err() != nil {
			return
		}
		c := s.content(info.Digest, info.Size)
		c.mu.Lock()
		if c.owner != nil {
			s.tell(c)
		}
		c.mu.Unlock()
		c.release()
	}
}

// Lost notes that the store does not hold something of d any more. It is
// quick, takes no locks of the store's, and is meant for store.Config.Lost.
func (s *Swarm) Lost(d digest.Digest) {
	s.mu.Lock()
	s.lost[d] = true
	s.mu.Unlock()
	kick(s.lostKick)
}

// kick wakes who reads from a channel that holds one wish.
func kick(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// watch does what is to be done now and then, until Close.
func (s *Swarm) watch() {
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.moveKick:
			s.moveAll()
		case <-s.lostKick:
			s.mu.Lock()
			lost := s.lost
			s.lost = map[digest.Digest]bool{}
			s.mu.Unlock()
			for d := range lost {
				s.tellLost(d)
			}
		}
	}
}

// tellLost tells the scheduler what is left of d.
func (s *Swarm) tellLost(d digest.Digest) {
	info, err := s.cfg.Store.Stat(d)
	if err != nil {
		s.sums.forget(d)
		s.mu.Lock()
		delete(s.told, d)
		s.mu.Unlock()
	}
	c := s.known(d)
	if c == nil && err == nil {
		c = s.content(d, info.Size)
	}
	if c == nil {
		if l := s.ownerOf(d); l != nil {
			// A shape is needed only where there is something.
			l.send(schedule.Announce{Blob: d.String(), Shape: geometryOf(1).shape()})
		}
		return
	}
	defer c.release()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.have = newSet(c.geo.n)
	c.announced = true
	if c.owner != nil {
		s.announce(c, c.owner)
	}
}
