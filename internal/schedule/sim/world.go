package sim

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

// blobName and originName are what the one blob of a world is called.
const (
	blobName   = "sha256:0123456789abcdef"
	originName = "registry.test/library/image"
)

// link is what a node's connection carries per second, and what it serves at
// a time.
type link struct {
	up, down float64 // bytes per second
	slots    int
}

// settings are what a world is made of.
type settings struct {
	seed      uint64
	size      int64
	pieceSize int64 // 0: as peers choose it
	group     int64 // bytes that are sent, received and relayed at a time
	schedule  schedule.Options

	latency, originLatency time.Duration // one way
	originRate             float64
	limit                  time.Duration // of virtual time: then something is wrong
}

// world is a simulated network with one blob, one origin and one tracker.
type world struct {
	settings
	ctx     context.Context
	rng     *rand.Rand
	now     time.Duration
	queue   queue
	tracker *schedule.Tracker
	origin  *node
	nodes   []*node
	byID    map[schedule.PeerID]*node
	shape   schedule.Shape
	pieces  int
	perSend int // pieces
	window  int // how many sends of a flow are under way at most

	// done is called when a node has the whole blob.
	done  func(n *node)
	tally tally
}

// tally counts what happened in a world.
type tally struct {
	OriginBytes int64 // that left the origin
	PeerBytes   int64 // that left peers
	WasteBytes  int64 // that arrived where nobody wanted them any more
	Twice       int   // pieces that arrived although they were there
	Busy        int   // transfers that met a source without a free slot
	Refused     int   // wants
	Parked      int   // wants, each time it is told
	Grants      int   // transfers granted, leases among them
	Leases      int
	Revoked     int // transfers taken back, in part or whole
	Steps       int // of the tracker
	InStep      time.Duration
	Slowest     time.Duration // step
}

// epoch is when virtual time begins for the tracker.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// pieceSizeOf returns the size of a blob's pieces as peers choose it.
func pieceSizeOf(size int64) int64 {
	piece := int64(16 << 10)
	for (size-1)/piece+1 > 1<<16 {
		piece *= 2
	}
	return piece
}

func newWorld(ctx context.Context, s settings) *world {
	if s.pieceSize == 0 {
		s.pieceSize = pieceSizeOf(s.size)
	}
	w := &world{settings: s, ctx: ctx, rng: rand.New(rand.NewPCG(s.seed, 1)), tracker: schedule.New(s.schedule),
		byID: map[schedule.PeerID]*node{}, shape: schedule.Shape{Size: s.size, PieceSize: s.pieceSize},
		pieces: int((s.size-1)/s.pieceSize + 1), perSend: max(1, int(s.group/s.pieceSize)), done: func(*node) {}}
	w.window = int(max(2, (1<<20)/(int64(w.perSend)*s.pieceSize)))
	w.origin = &node{id: "origin", link: link{up: s.originRate}, alive: true}
	w.queue.push(tickEvery, due{what: ticked})
	return w
}

// tickEvery is how often the tracker looks at its clock.
const tickEvery = 100 * time.Millisecond

// length returns how many bytes the pieces from lo to hi have.
func (w *world) length(lo, hi int) int64 {
	return min(int64(hi)*w.pieceSize, w.size) - int64(lo)*w.pieceSize
}

// takes returns how long n bytes take at a rate.
func takes(n int64, rate float64) time.Duration {
	return time.Duration(float64(n) / rate * float64(time.Second))
}

// after has f called when d has passed.
func (w *world) after(d time.Duration, f func()) {
	w.queue.push(w.now+d, due{what: called, msg: f})
}

// tell sends an event to the tracker.
func (w *world) tell(ev schedule.Event) {
	w.queue.push(w.now+w.latency, due{what: toTracker, msg: ev})
}

// run lets time pass until finished says so.
func (w *world) run(finished func() bool) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for i := 0; !finished(); i++ {
		if i%4096 == 0 && w.ctx.Err() != nil {
			return fmt.Errorf("simulate: %w", context.Cause(w.ctx))
		}
		at, d := w.queue.pop() // a tick is always due
		if at > w.limit {
			return blob.Errorf(blob.Internal, "simulate: not finished after %v of virtual time", w.limit)
		}
		w.now = at
		w.handle(&d)
	}
	return nil
}

func (w *world) handle(d *due) {
	switch d.what {
	case toTracker:
		if ev, ok := d.msg.(schedule.Event); ok {
			w.step(ev)
		}
	case toPeer:
		if a, ok := d.msg.(schedule.Action); ok && d.node.alive {
			w.act(d.node, a)
		}
	case started:
		w.start(d.flow)
	case sent:
		w.sent(d.flow, int(d.lo), int(d.hi))
	case arrived:
		w.arrived(d.flow, int(d.lo), int(d.hi))
	case broken:
		if id, ok := d.msg.(schedule.PeerID); ok && d.node.alive {
			w.broken(d.node, id)
		}
	case called:
		if f, ok := d.msg.(func()); ok {
			f()
		}
	case ticked:
		w.step(schedule.Tick{})
		w.queue.push(w.now+tickEvery, due{what: ticked})
	}
}

// step gives an event to the tracker and sends its actions.
func (w *world) step(ev schedule.Event) {
	begin := processor()
	actions := w.tracker.Step(ev, epoch.Add(w.now))
	took := processor() - begin
	w.tally.InStep += took
	w.tally.Slowest = max(w.tally.Slowest, took)
	w.tally.Steps++
	for _, a := range actions {
		if n := w.byID[a.Target()]; n != nil {
			w.queue.push(w.now+w.latency, due{what: toPeer, node: n, msg: a})
		}
	}
}

// sumOf returns the digest of a piece. The tracker compares digests and knows
// nothing else of them.
func sumOf(piece int) schedule.PieceSum {
	s := schedule.PieceSum{Piece: piece}
	binary.LittleEndian.PutUint64(s.Sum[:], uint64(piece)+1)
	return s
}
