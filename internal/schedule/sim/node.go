package sim

import (
	"slices"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

// node is a peer, a seed or the origin.
type node struct {
	link
	id    schedule.PeerID
	alive bool
	have  pieces
	in    []*flow
	out   []*flow

	sending  bool          // its uplink is at work
	turn     int           // in out: who is next
	downFree time.Duration // when its downlink has nothing to do

	wants    uint64 // how many it has had
	wholeAs  blob.Priority
	whole    bool // it wants everything, with priority wholeAs
	joined   time.Duration
	finished time.Duration // when it had everything, or 0
	gained   func()        // called when it has new pieces, or nil
}

// flow is one granted transfer.
type flow struct {
	to, from *node
	lease    bool
	runs     []schedule.Run // not sent yet
	flying   int            // sends that have not arrived
	began    bool           // it has a slot of its source
	ended    bool
	unsummed []schedule.Run // pieces whose digests are not known
	waiting  []schedule.Run // pieces that have arrived before their digests
	gone     []schedule.Run // pieces that were taken back
	fresh    []schedule.Run // pieces that are here and not reported
	reported time.Duration
}

// reportEvery is how long a peer that receives something says nothing at most.
const reportEvery = 500 * time.Millisecond

// add has a new peer join.
func (w *world) add(id schedule.PeerID, l link, seed bool) *node {
	n := &node{id: id, link: l, alive: true, have: newPieces(w.pieces), joined: w.now}
	w.nodes = append(w.nodes, n)
	w.byID[id] = n
	w.tell(schedule.PeerJoined{ID: id, Addr: string(id) + ":4000", Seed: seed, UploadSlots: l.slots})
	return n
}

// want has n ask for pieces.
func (w *world) want(n *node, p blob.Priority, runs []schedule.Run) {
	n.wants++
	w.tell(schedule.Want{Peer: n.id, Blob: blobName, Shape: w.shape, ID: n.wants, Runs: runs, Priority: p, Origin: originName})
}

// wantAll has n ask for everything it has not.
func (w *world) wantAll(n *node, p blob.Priority) {
	n.whole, n.wholeAs = true, p
	w.want(n, p, n.have.missing(0, w.pieces))
}

// kill ends n's process: connections to it break, which their other ends see
// when that news has travelled.
func (w *world) kill(n *node) {
	n.alive = false
	w.tell(schedule.PeerLeft{ID: n.id})
	var told []*node
	for _, f := range slices.Clone(n.out) {
		w.detach(f, false)
		if !slices.Contains(told, f.to) {
			told = append(told, f.to)
			w.queue.push(w.now+w.latency, due{what: broken, node: f.to, msg: n.id})
		}
	}
	for _, f := range slices.Clone(n.in) {
		w.detach(f, true)
	}
}

// detach ends a flow at its source, and if so told at its receiver.
func (w *world) detach(f *flow, both bool) {
	f.ended = true
	if f.began {
		f.began = false
		f.from.out = drop(f.from.out, f)
	}
	if both {
		f.to.in = drop(f.to.in, f)
	}
}

// drop takes f out of list, whose order it keeps: turns go by it.
func drop(list []*flow, f *flow) []*flow {
	if i := slices.Index(list, f); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}

// broken has n notice that a source is dead.
func (w *world) broken(n *node, source schedule.PeerID) {
	for _, f := range slices.Clone(n.in) {
		if f.from.id == source {
			w.report(f)
			w.detach(f, true)
		}
	}
	w.tell(schedule.Fail{Peer: n.id, Blob: blobName, Source: source, Reason: schedule.Gone})
}

// act has n do what the tracker says.
func (w *world) act(n *node, a schedule.Action) {
	switch a := a.(type) {
	case schedule.Grant:
		for _, p := range a.Parts {
			w.begin(n, p)
		}
	case schedule.Revoke:
		w.revoke(n, a)
	case schedule.Sums:
		known := runsOf(a.Sums)
		for _, f := range slices.Clone(n.in) {
			w.summed(f, known)
		}
	case schedule.Drop:
		for _, f := range slices.Clone(n.in) {
			if f.from.id == a.Source {
				w.report(f)
				w.detach(f, true)
			}
		}
	case schedule.Forget:
		for _, r := range a.Runs {
			n.have.remove(r.First, r.End())
		}
		if n.whole {
			w.wantAll(n, n.wholeAs)
		}
	case schedule.Parked:
		w.tally.Parked++
	case schedule.Refused:
		w.tally.Refused++
	}
}

// runsOf returns the pieces that sums are of.
func runsOf(sums []schedule.PieceSum) []schedule.Run {
	var out []schedule.Run
	for _, s := range sums {
		out = join(out, schedule.Run{First: s.Piece, Count: 1})
	}
	return out
}

// begin starts a granted transfer. Its request reaches the source a latency
// later.
func (w *world) begin(n *node, p schedule.Part) {
	w.tally.Grants++
	f := &flow{to: n, from: w.origin, lease: !p.Lease.IsZero(), runs: slices.Clone(p.Runs), reported: w.now}
	if f.runs = w.lacking(n, f.runs); len(f.runs) == 0 {
		return
	}
	if f.lease {
		w.tally.Leases++
	} else {
		f.from = w.byID[p.Sources[0].ID]
		if n := count(p.Runs); n != len(p.Sums) {
			f.unsummed = without(p.Runs, runsOf(p.Sums))
		}
	}
	n.in = append(n.in, f)
	w.queue.push(w.now+w.delay(f), due{what: started, flow: f})
}

// lacking returns those of runs that n has not. The others, of which it was
// about to tell when their source broke off, it reports.
func (w *world) lacking(n *node, runs []schedule.Run) []schedule.Run {
	if !slices.ContainsFunc(runs, func(r schedule.Run) bool { return n.have.any(r.First, r.End()) }) {
		return runs
	}
	var missing []schedule.Run
	for _, r := range runs {
		missing = append(missing, n.have.missing(r.First, r.End())...)
	}
	w.tell(schedule.Have{Peer: n.id, Blob: blobName, Runs: without(runs, missing)})
	return missing
}

func count(runs []schedule.Run) (pieces int) {
	for _, r := range runs {
		pieces += r.Count
	}
	return pieces
}

// revoke takes pieces back that n waits for.
func (w *world) revoke(n *node, a schedule.Revoke) {
	for _, f := range slices.Clone(n.in) {
		if f.lease != (a.From == "") || !f.lease && f.from.id != a.From {
			continue
		}
		before := count(f.runs)
		f.runs = without(f.runs, a.Runs)
		f.waiting = without(f.waiting, a.Runs)
		f.gone = append(f.gone, a.Runs...)
		if count(f.runs) < before {
			w.tally.Revoked++
		}
		w.maybeEnd(f)
	}
}

// summed makes digests known to a flow.
func (w *world) summed(f *flow, known []schedule.Run) {
	if len(f.unsummed) == 0 {
		return
	}
	f.unsummed = without(f.unsummed, known)
	still := without(f.waiting, known)
	if count(still) == count(f.waiting) {
		return
	}
	good := without(f.waiting, still)
	f.waiting = still
	for _, r := range good {
		w.verified(f, r.First, r.End())
	}
	w.maybeEnd(f)
}

// verified puts pieces that match their digests into the receiver's store.
func (w *world) verified(f *flow, lo, hi int) {
	n := f.to
	fresh := n.have.add(lo, hi)
	w.tally.Twice += hi - lo - fresh
	f.fresh = join(f.fresh, schedule.Run{First: lo, Count: hi - lo})
	if f.lease || w.now-f.reported >= reportEvery {
		w.report(f)
	}
	w.pump(n) // those it relays to
	if n.gained != nil && fresh > 0 {
		n.gained()
	}
	if n.have.count == w.pieces && n.finished == 0 {
		n.finished = w.now
		w.done(n)
	}
}

// report tells the tracker what has arrived.
func (w *world) report(f *flow) {
	f.reported = w.now
	if len(f.fresh) == 0 {
		return
	}
	have := schedule.Have{Peer: f.to.id, Blob: blobName, Runs: f.fresh}
	if f.lease {
		have.Sums = make([]schedule.PieceSum, 0, count(f.fresh))
		for _, r := range f.fresh {
			for p := r.First; p < r.End(); p++ {
				have.Sums = append(have.Sums, sumOf(p))
			}
		}
	}
	f.fresh = nil
	w.tell(have)
}

// maybeEnd ends a flow that has nothing left to do.
func (w *world) maybeEnd(f *flow) {
	if f.ended || len(f.runs) > 0 || f.flying > 0 || len(f.waiting) > 0 {
		return
	}
	w.report(f)
	w.detach(f, true)
}
