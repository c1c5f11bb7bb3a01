package sim

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

// runCost measures the tracker alone: peers fetch a blob whose transfers take
// no time, those that were granted first end first. Memory is what the heap
// grew by, all there is here of the peers is what they are called.
func runCost(ctx context.Context, peers int, s settings) (Row, error) {
	begin := time.Now()
	if s.pieceSize == 0 {
		s.pieceSize = pieceSizeOf(s.size)
	}
	c := &cost{ctx: ctx, ids: make([]schedule.PeerID, peers), queue: make([]pending, 0, 16*peers),
		shape: schedule.Shape{Size: s.size, PieceSize: s.pieceSize}, now: epoch}
	c.pieces = int((s.size-1)/s.pieceSize + 1)
	for i := range c.ids {
		c.ids[i] = schedule.PeerID(fmt.Sprintf("peer%05d", i))
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := heap()
	c.tracker = schedule.New(s.schedule)
	for i, id := range c.ids {
		c.step(schedule.PeerJoined{ID: id, Addr: "192.0.2.1:4000", UploadSlots: 64})
		c.step(schedule.Want{Peer: c.ids[i], Blob: blobName, Shape: c.shape, ID: 1,
			Runs: []schedule.Run{{First: 0, Count: c.pieces}}, Priority: blob.Prefetch, Origin: originName})
	}
	if err := c.fetch(c.pieces * peers / 2); err != nil {
		return Row{}, err
	}
	half := heap()
	if err := c.fetch(c.pieces * peers); err != nil {
		return Row{}, err
	}
	full := heap()
	r := Row{Peers: peers, Bytes: s.size, PieceSize: s.pieceSize, Real: time.Since(begin).Seconds()}
	r.Decisions, r.Steps, r.InStep, r.SlowestStep = c.tally.Grants, c.tally.Steps, c.tally.InStep.Seconds(), c.tally.Slowest.Seconds()
	r.DecisionsPerSecond = float64(r.Decisions) / r.InStep
	r.MemoryFetching = float64(half-before) / float64(peers)
	r.MemoryHolding = float64(full-before) / float64(peers)
	runtime.KeepAlive(c)
	return r, nil
}

// heap returns how many bytes are in use that something refers to.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// cost is a tracker whose peers do at once what they are told.
type cost struct {
	ctx     context.Context
	tracker *schedule.Tracker
	shape   schedule.Shape
	pieces  int
	ids     []schedule.PeerID
	queue   []pending // a ring would save little: it is short
	got     int       // pieces, by all peers together
	now     time.Time
	tally   tally
}

// pending is a granted transfer.
type pending struct {
	to    schedule.PeerID
	first int32
	count int32
	lease bool
}

// step gives an event to the tracker and takes note of what it grants.
func (c *cost) step(ev schedule.Event) {
	begin := processor()
	actions := c.tracker.Step(ev, c.now)
	took := processor() - begin
	c.tally.InStep += took
	c.tally.Slowest = max(c.tally.Slowest, took)
	c.tally.Steps++
	for _, a := range actions {
		g, ok := a.(schedule.Grant)
		if !ok {
			continue
		}
		for _, p := range g.Parts {
			c.tally.Grants++
			for _, r := range p.Runs {
				c.queue = append(c.queue, pending{to: g.To, first: int32(r.First), count: int32(r.Count), lease: !p.Lease.IsZero()})
			}
		}
	}
}

// fetch ends transfers until the peers have that many pieces together.
func (c *cost) fetch(pieces int) error {
	for i := 0; c.got < pieces; i++ {
		if len(c.queue) == 0 {
			return blob.Errorf(blob.Internal, "measure the scheduler: nothing is granted and %d of %d pieces are missing", pieces-c.got, pieces)
		}
		if i%1024 == 0 {
			if c.ctx.Err() != nil {
				return fmt.Errorf("measure the scheduler: %w", context.Cause(c.ctx))
			}
			c.now = c.now.Add(time.Millisecond)
			c.step(schedule.Tick{})
		}
		p := c.queue[0]
		c.queue = c.queue[1:]
		run := schedule.Run{First: int(p.first), Count: int(p.count)}
		c.got += run.Count
		have := schedule.Have{Peer: p.to, Blob: blobName, Runs: []schedule.Run{run}}
		if p.lease {
			for piece := run.First; piece < run.End(); piece++ {
				have.Sums = append(have.Sums, sumOf(piece))
			}
		}
		c.step(have)
	}
	return nil
}
