package swarm

import "sync/atomic"

type counters struct {
	fromPeers, fromOrigin                         atomic.Int64
	corrupt, rejected, forgotten, revoked, parked atomic.Int64
	peerFailed, originFailed, hedges              atomic.Int64
	withoutScheduler, withoutSeeds, forOthers     atomic.Int64
}

// Stats counts what a Swarm did; the numbers only grow, but for Fetching and
// Schedulers, which are as of now.
type Stats struct {
	// PeerBytes were taken from peers and were right, OriginBytes read from
	// origins.
	PeerBytes, OriginBytes int64
	// Corrupt counts sources that sent wrong bytes, PeerFailures those that
	// failed otherwise, OriginFailures leases the origin failed.
	Corrupt, PeerFailures, OriginFailures int64
	// Hedges counts second sources that were asked because the first took long.
	Hedges int64
	// Revoked counts grants, or parts of them, that were taken back, Parked
	// wants that had to wait.
	Revoked, Parked int64
	// Rejected counts what readers found wrong though its digest was right,
	// Forgotten what others did.
	Rejected, Forgotten int64
	// WithoutScheduler counts reads that had to do without a scheduler,
	// WithoutSeeds those that had to do without seeds too.
	WithoutScheduler, WithoutSeeds int64
	// ForOthers counts ranges read from origins for peers without a scheduler.
	ForOthers int64
	// Fetching is how many blobs are in use, Schedulers how many are connected.
	Fetching, Schedulers int64
}

// Stats returns the counters.
func (s *Swarm) Stats() Stats {
	n := &s.count
	out := Stats{
		PeerBytes: n.fromPeers.Load(), OriginBytes: n.fromOrigin.Load(),
		Corrupt: n.corrupt.Load(), PeerFailures: n.peerFailed.Load(), OriginFailures: n.originFailed.Load(),
		Hedges: n.hedges.Load(), Revoked: n.revoked.Load(), Parked: n.parked.Load(),
		Rejected: n.rejected.Load(), Forgotten: n.forgotten.Load(),
		WithoutScheduler: n.withoutScheduler.Load(), WithoutSeeds: n.withoutSeeds.Load(), ForOthers: n.forOthers.Load(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out.Fetching = int64(len(s.contents))
	for _, l := range s.links {
		if l.up {
			out.Schedulers++
		}
	}
	return out
}

// LinkStatus says how a scheduler is reached.
type LinkStatus struct {
	Scheduler string `json:"scheduler"`
	Up        bool   `json:"up"`
}

// Links returns the schedulers, in the order they were attached.
func (s *Swarm) Links() []LinkStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []LinkStatus
	for _, l := range s.links {
		out = append(out, LinkStatus{Scheduler: l.name, Up: l.up})
	}
	return out
}
