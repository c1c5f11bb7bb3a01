// Package schedule decides who fetches which piece of a blob from whom. It is
// the scheduler's core: events go in, actions come out, and nothing else
// happens. It has no clock, no I/O, no goroutines and no chance in it, so the
// same events give the same actions, a scenario is a text file (testdata), and
// ten thousand peers can be simulated in one process.
//
// A [Tracker] knows, per blob, who holds and who is receiving which pieces. A
// peer says what it wants and is granted it: runs of pieces with the peer to
// take them from, or a lease to read them from the origin. What cannot be
// granted yet is parked and granted in the very step in which it becomes
// possible; nobody polls.
//
// After every step these hold, and the tests check them after every step:
//
//   - A piece is leased to one peer at a time: one origin reader per byte.
//   - Whoever is a source of a piece has it, or is itself being sent it. A
//     peer that loses its source loses, in the same step, those who wait for
//     it. So what one waits for is always on the move somewhere, a peer that
//     is granted a piece has nobody waiting for that piece, and no circle of
//     waiting can be closed.
//   - A peer is given no more transfers to serve than it has upload slots, and
//     of one blob no more that nobody is blocked on than a want has under way.
//     (The second source of a part is an offer, not a transfer: who is asked on
//     it may answer that it is busy.)
//   - What a peer is sent by another has a digest that is known, or comes down
//     the line from who reads it from the origin now.
//   - A piece is never granted to who has it or is being sent it.
//   - A source that sent a peer bytes which fail their digest is not used for
//     that peer and blob again, and for others last; once two peers, on different hosts where that is
//     known, have said so it is used for nobody.
//   - A want that waits has no source: whoever could serve it has no free
//     slot, or the origin has just failed, or, where nobody is blocked,
//     Options.BulkWidth runs are being read from the origin, or seeds that are
//     passing pieces on have twice as many runs read that nobody else has.
//
// Every want is answered in the end, as long as somebody can read the origin
// and peers that hold what others want send it, say that they do not, or let
// transfers expire: the tests see to that too. It is each peer's own business
// not to wait longer than it likes.
//
// Peers are believed what they say about themselves. One that lies about
// others, or reports wrong digests, costs time and origin reads; wrong bytes
// are found by who can judge them (see Reject) and by digests.
//
// All state is soft. A new Tracker learns it from the peers' announcements.
package schedule

import "time"

// PeerID names a peer. The scheduler's service gives it out.
type PeerID string

// Location says where a peer stands. Empty fields are unknown and match
// nothing.
type Location struct {
	// Rack is compared together with Zone: two zones may both have a rack 1.
	Rack string
	// Zone is a data centre (IDC) or an availability zone.
	Zone string
}

// Run is Count consecutive pieces of a blob, from piece First on.
type Run struct {
	First, Count int
}

// End returns the piece after the last of r.
func (r Run) End() int { return r.First + r.Count }

// Sum is the SHA-256 of a piece.
type Sum [32]byte

// Group is how many pieces the digest of a group is of.
const Group = 16

// PieceSum says which bytes a piece has, or the pieces of a group.
type PieceSum struct {
	// Piece is the piece; of a group it is the first, a multiple of Group.
	Piece int
	// Group says that Sum is the SHA-256 of the Sums of Group pieces, one after
	// the other: it costs less to send. A Tracker neither takes nor gives them;
	// its service makes them.
	Group bool
	Sum   Sum
}

// Options are the figures a Tracker decides by. The zero value of each field
// stands for the default.
type Options struct {
	// LeaseLife is how long a lease lives without progress; default 2 s.
	LeaseLife time.Duration
	// TransferLife is how long a transfer between peers lives without
	// progress; default 60 s. Peers give up on a slow source much earlier and
	// say so; this is for peers that forget.
	TransferLife time.Duration
	// BusyPause is how long a source that answered "busy" is passed over, if
	// it does not say earlier that a slot is free; default 250 ms.
	BusyPause time.Duration
	// AvoidPause is how long a peer gets nothing from a source that was slow
	// or gone; default 10 s.
	AvoidPause time.Duration
	// OriginPause is how long a peer for whom the origin failed, or whose
	// lease expired, gets no lease on that blob; default 5 s.
	OriginPause time.Duration
	// MaxRun is how many bytes one transfer has at most; default 8 MiB. Of a
	// blob whose pieces are larger it is one piece.
	MaxRun int64
	// BulkRun is how many bytes a transfer has at most that nobody is blocked
	// on; default a 256th of the blob, at least 256 KiB and at most MaxRun.
	BulkRun int64
	// Width is how many transfers a want has under way at most; default 4.
	Width int
	// BulkWidth is that of wants that nobody is blocked on; default 3, at most
	// Width. A peer serves as many of one blob, and a blob has as many leases,
	// for such wants. The fewer at a time, the sooner each is through and passed
	// on: 4 instead of 3 costs 1,000 peers 2 % of their time.
	BulkWidth int
	// MaxWants is how many wants of one peer are kept; default 4096. More are
	// refused.
	MaxWants int
	// MaxBlobs is with how many blobs one peer has to do at most, and MaxPieces how
	// many pieces these have together; default 100,000, and 67,108,864, which is
	// 1 TiB where pieces are small. MaxAllPieces is how many all blobs have; default
	// 268,435,456. A piece takes some 5 bytes, or 53 if its digest is known. What is
	// beyond is refused.
	MaxBlobs, MaxPieces, MaxAllPieces int
}

func (o Options) withDefaults() Options {
	duration := func(d *time.Duration, to time.Duration) {
		if *d <= 0 {
			*d = to
		}
	}
	number := func(n *int, to int) {
		if *n <= 0 {
			*n = to
		}
	}
	duration(&o.LeaseLife, 2*time.Second)
	duration(&o.TransferLife, time.Minute)
	duration(&o.BusyPause, 250*time.Millisecond)
	duration(&o.AvoidPause, 10*time.Second)
	duration(&o.OriginPause, 5*time.Second)
	if o.MaxRun <= 0 {
		o.MaxRun = 8 << 20
	}
	number(&o.Width, 4)
	number(&o.BulkWidth, 3)
	o.BulkWidth = min(o.BulkWidth, o.Width)
	number(&o.MaxWants, 4096)
	number(&o.MaxBlobs, 100_000)
	number(&o.MaxPieces, 1<<26)
	number(&o.MaxAllPieces, 1<<28)
	return o
}

// maxPieces is how many pieces a blob has at most: peers double the size of
// the pieces of a larger one.
const maxPieces = 1 << 16

// extent is the part of a blob that one seed reads from the origin, in bytes.
const extent = 64 << 20

// Shape is what the pieces of a blob look like. Whoever names a blob first
// says it for everybody; who contradicts is refused.
type Shape struct {
	// Size is the blob's length in bytes, at least 1.
	Size int64
	// PieceSize is the length in bytes of all pieces but the last; a blob has
	// at most 65,536.
	PieceSize int64
}

// pieces returns how many pieces there are, or 0 for a shape that cannot be.
func (s Shape) pieces() int {
	if s.Size <= 0 || s.PieceSize <= 0 {
		return 0
	}
	if n := (s.Size-1)/s.PieceSize + 1; n <= maxPieces {
		return int(n)
	}
	return 0
}

// runs returns how many pieces of a blob a transfer has at most, how many if
// nobody is blocked on it, and how many one seed reads from the origin.
func (o Options) runs(s Shape) (longest, bulk, perSeed int) {
	length := o.BulkRun
	if length <= 0 {
		length = min(max(s.Size/256, 256<<10), o.MaxRun)
	}
	pieces := func(n int64) int { return int(max(1, n/s.PieceSize)) }
	return pieces(o.MaxRun), pieces(length), pieces(extent)
}
