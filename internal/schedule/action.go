package schedule

import (
	"time"

	"skimmer/internal/blob"
)

// Action is something to tell a peer. Actions are for sending in the order in
// which they came.
type Action interface {
	// Target is the peer to tell.
	Target() PeerID
}

// Source is a peer to take pieces from.
type Source struct {
	ID   PeerID
	Addr string
}

// Part is one transfer of a grant.
type Part struct {
	// Runs are in order and not empty.
	Runs []Run
	// Sources says who has the pieces or relays them as they arrive, the
	// preferred one first: one or two, and none if this is a lease.
	Sources []Source
	// Lease, unless zero, says that the peer is to read the pieces from the
	// origin and until when it must have made progress.
	Lease time.Time
	// Sums are the known ones, in order of pieces. Those that are not known
	// yet come in a Sums action as soon as the origin's reader reports them. A
	// lease has none: its reader reports what it finds. They are shared with
	// other actions and for reading only.
	Sums []PieceSum
}

// Grant answers a want, or part of it; more may follow.
type Grant struct {
	To   PeerID
	Blob string
	// Shape is for those who are granted a lease on a blob they never named.
	Shape Shape
	// Want is the answered want, or 0 for a lease given to a seed because
	// somebody else wants the pieces.
	Want uint64
	// Origin is that of the want that made this grant necessary; set where Want
	// is 0.
	Origin string
	// Priority is that of the want that made this grant necessary.
	Priority blob.Priority
	Parts    []Part
}

// Revoke takes granted pieces back: the peer is not to wait for them from
// that source any longer.
type Revoke struct {
	To   PeerID
	Blob string
	// From is the source, empty if a lease is taken back.
	From PeerID
	Runs []Run
}

// Drop tells a peer not to take anything of a blob from a source that sent
// corrupt bytes, to it or to others.
type Drop struct {
	To     PeerID
	Blob   string
	Source PeerID
}

// Forget tells a peer that pieces it holds are wrong.
type Forget struct {
	To   PeerID
	Blob string
	Runs []Run
}

// Sums brings digests of pieces that were granted without. The slice is for
// reading only.
type Sums struct {
	To   PeerID
	Blob string
	Sums []PieceSum
}

// Why says why a want waits or is refused.
type Why string

// The reasons of Parked and Refused.
const (
	// WhyBusy means that no source of the pieces has a free slot.
	WhyBusy Why = "busy"
	// WhyLeased means that the only one to have the pieces soon is one that
	// this peer must not take them from.
	WhyLeased Why = "leased"
	// WhyOrigin means that the origin failed everyone who may read it.
	WhyOrigin Why = "origin"
	// WhyInvalid means that the want makes no sense: a shape that cannot be
	// or that contradicts, no pieces, a number that is 0 or in use.
	WhyInvalid Why = "invalid"
	// WhyTooMany means that the peer has too many wants or blobs, or that all have
	// too many blobs.
	WhyTooMany Why = "too many"
)

// Parked says that nothing of a want can be granted now. A Grant follows when
// something can.
type Parked struct {
	To   PeerID
	Blob string
	Want uint64
	Why  Why
}

// Refused says that a want will not be answered; with Want 0, if it did not ask
// with that, that nothing is noted of what the peer says about the blob.
type Refused struct {
	To   PeerID
	Blob string
	Want uint64
	Why  Why
}

// Target implements Action.
func (a Grant) Target() PeerID { return a.To }

// Target implements Action.
func (a Revoke) Target() PeerID { return a.To }

// Target implements Action.
func (a Drop) Target() PeerID { return a.To }

// Target implements Action.
func (a Sums) Target() PeerID { return a.To }

// Target implements Action.
func (a Parked) Target() PeerID { return a.To }

// Target implements Action.
func (a Refused) Target() PeerID { return a.To }

// Target implements Action.
func (a Forget) Target() PeerID { return a.To }
