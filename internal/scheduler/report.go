package scheduler

import (
	"cmp"
	"slices"

	"skimmer/internal/schedule"
	"skimmer/internal/scheduler/wire"
)

// PeerReport says how a peer that has joined stands.
type PeerReport = wire.PeerReport

// BlobReport says how a blob stands.
type BlobReport = wire.BlobReport

// Peers returns who has joined, sorted by ID.
func (s *Service) Peers() []PeerReport {
	type joined struct {
		link  *link
		state schedule.PeerState
	}
	s.mu.Lock()
	all := make([]joined, 0, len(s.links))
	for id, l := range s.links {
		all = append(all, joined{l, s.tracker.Peer(id)})
	}
	s.mu.Unlock() // decisions do not wait for the rest

	out := make([]PeerReport, 0, len(all))
	for _, p := range all {
		h := p.link.hello
		out = append(out, PeerReport{
			ID: h.ID, Hostname: h.Hostname, Addr: h.Addr, Location: h.Location, Seed: h.Seed,
			Uploads: p.state.Used, Slots: p.state.Slots, Blobs: p.state.Blobs,
			Version: h.Version, Since: p.link.since, Remote: p.link.remote,
		})
	}
	slices.SortFunc(out, func(a, b PeerReport) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Blobs returns how the blobs of these names stand, in the same order. Those of
// which nobody has or wants anything are left out.
func (s *Service) Blobs(names []string) []BlobReport {
	var out []BlobReport
	for _, name := range names {
		if b, ok := s.Blob(name); ok {
			out = append(out, BlobReport{Blob: name, BlobState: b})
		}
	}
	return out
}

// Blob returns how a blob stands, and false if nobody has or wants anything of
// it.
func (s *Service) Blob(name string) (schedule.BlobState, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tracker.Blob(name)
}
