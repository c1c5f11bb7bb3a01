package schedule

import "skimmer/internal/blob"

// Event is something that happened, as a peer reported it. An event about a
// peer that has not joined changes nothing, and runs are cut to the blob they
// are of.
type Event interface {
	apply(t *Tracker)
}

// PeerJoined says that a peer's stream is open. A peer that joins again under
// its name has left before.
type PeerJoined struct {
	ID PeerID
	// Addr is where its data is served; it comes back in grants.
	Addr     string
	Location Location
	// Seed says that the peer is there to read from origins for others.
	Seed bool
	// UploadSlots is how many transfers it serves at a time.
	UploadSlots int
}

// PeerLeaving says that a peer is about to leave: nothing more is granted from
// it or to it, and what it is sending goes on.
type PeerLeaving struct {
	ID PeerID
}

// PeerLeft says that a peer's stream is closed, on purpose or not.
type PeerLeft struct {
	ID PeerID
}

// Announce says what a peer has of a blob: exactly Have, whatever was known
// before. Nothing at all says that it was evicted.
type Announce struct {
	Peer  PeerID
	Blob  string
	Shape Shape
	Have  []Run
	// Sums are those of pieces the peer read from the origin. They are believed
	// where none are known; of two that differ that of a seed.
	Sums []PieceSum
}

// Want asks for pieces of a blob.
type Want struct {
	Peer  PeerID
	Blob  string
	Shape Shape
	// ID names the want in its answers; the peer gives it out, never 0 and
	// never one that is in use.
	ID   uint64
	Runs []Run
	// Priority Demand has its pieces granted in order. With the others,
	// different peers get different pieces first.
	Priority blob.Priority
	// Origin says where the blob can be had, "host/path" of a repository or a
	// URL. It means nothing here: it is passed on to seeds that are leased what
	// this want needs.
	Origin string
	// Window is what will probably be wanted next. It is granted along where
	// that is possible now, and forgotten where not.
	Window []Run
}

// Have says that a peer now has pieces, which match the digests it was given.
type Have struct {
	Peer PeerID
	Blob string
	Runs []Run
	// Sums are those of pieces read from the origin; they are believed from
	// the holder of the lease on the piece only.
	Sums []PieceSum
}

// Reason says why a transfer failed.
type Reason string

// The reasons of Fail.
const (
	// Busy means that the source had no free slot.
	Busy Reason = "busy"
	// Slow means that the source sent less than it should.
	Slow Reason = "slow"
	// Gone means that the source did not answer.
	Gone Reason = "gone"
	// Corrupt means that the source sent bytes that fail their digest.
	Corrupt Reason = "corrupt"
	// Origin means that the origin failed the holder of the lease.
	Origin Reason = "origin"
)

// Fail says that a peer did not get pieces and waits for them no longer. It
// gets them granted again, from elsewhere.
type Fail struct {
	Peer PeerID
	Blob string
	// Runs are the pieces; none means all that it waits for from Source.
	Runs []Run
	// Source is who was to send them, empty for the origin.
	Source PeerID
	Reason Reason
}

// Progress says that bytes of a run arrive at a peer, and so renews leases
// and transfers that have pieces of it.
type Progress struct {
	Peer PeerID
	Blob string
	Run  Run
}

// Cancel takes a want back. The peer waits no longer for what was granted on
// it.
type Cancel struct {
	Peer PeerID
	Blob string
	Want uint64
}

// Reject says that pieces which match their digests are wrong all the same:
// whoever read them from the origin read, or reported, something else. Their
// digests are forgotten, those who hold the pieces are told to forget them, and
// the rejecting peer is the one who is leased them next.
type Reject struct {
	Peer PeerID
	Blob string
	Runs []Run
}

// Uploading says how a peer's slots are used.
type Uploading struct {
	Peer PeerID
	// Slots is how many transfers it serves at a time now.
	Slots int
	// Other is how many it serves that this scheduler did not grant.
	Other int
}

// Tick says that time has passed. The Tracker needs some per second: leases
// expire and pauses end in a Tick only.
type Tick struct{}
