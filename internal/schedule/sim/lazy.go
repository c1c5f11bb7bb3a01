package sim

import (
	"context"
	"fmt"
	"math"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

// lazy is an experiment in which peers start one image: they read ranges of
// it, all the same ones in the same order, one after the other, and then
// fetch the rest.
type lazy struct {
	settings
	peers, seeds int
	link         link
	reads        int
	spread       time.Duration // peers start at random times within it
	think        time.Duration // between two reads, on average

	world     *world
	ranges    []schedule.Run
	remaining int
	local     int             // reads of what was there
	waits     []time.Duration // of the other reads
	starts    []time.Duration // of all reads of a peer together, thinking included
}

// runLazy runs an experiment and says what came of it.
func runLazy(ctx context.Context, l lazy) (Row, error) {
	begin := time.Now()
	w := newWorld(ctx, l.settings)
	l.world, l.remaining = w, l.peers
	w.done = func(n *node) {
		if n.whole {
			l.remaining--
		}
	}
	for range l.reads {
		// Between 16 KiB and 1 MiB, small ones as often as large ones.
		size := int64(float64(16<<10) * math.Pow(64, w.rng.Float64()))
		from := w.rng.Int64N(l.size - size)
		first := int(from / w.pieceSize)
		l.ranges = append(l.ranges, schedule.Run{First: first, Count: int((from+size-1)/w.pieceSize) + 1 - first})
	}
	for i := range l.seeds {
		w.add(schedule.PeerID(fmt.Sprintf("seed%d", i)), l.link, true)
	}
	for i := range l.peers {
		w.after(time.Duration(w.rng.Int64N(int64(l.spread)+1)), func() {
			r := &reader{lazy: &l, node: w.add(schedule.PeerID(fmt.Sprintf("peer%05d", i)), l.link, false), began: w.now}
			r.node.gained = r.gained
			r.read()
		})
	}
	err := w.run(func() bool { return l.remaining == 0 })
	if err != nil {
		err = fmt.Errorf("%w: %d of %d peers have not finished", err, l.remaining, l.peers)
	}
	r := w.row(time.Since(begin))
	r.Peers, r.Seeds, r.LocalReads, r.RemoteReads = l.peers, l.seeds, l.local, len(l.waits)
	r.Wait.set(l.waits)
	r.Completion.set(l.starts)
	return r, err
}

// reader is a peer's program.
type reader struct {
	lazy    *lazy
	node    *node
	next    int // read
	waiting bool
	since   time.Duration // it waits
	began   time.Duration
}

// read reads what is next, or has the peer fetch the rest.
func (r *reader) read() {
	l := r.lazy
	w := l.world
	for r.next < len(l.ranges) {
		at := l.ranges[r.next]
		missing := r.node.have.missing(at.First, at.End())
		if len(missing) > 0 {
			r.waiting, r.since = true, w.now
			w.want(r.node, blob.Demand, missing)
			return
		}
		l.local++
		r.next++
	}
	l.starts = append(l.starts, w.now-r.began)
	r.node.gained = nil
	w.wantAll(r.node, blob.Background)
}

// gained looks whether the read that the program is blocked on is complete.
func (r *reader) gained() {
	l := r.lazy
	at := l.ranges[min(r.next, len(l.ranges)-1)]
	if !r.waiting || !r.node.have.all(at.First, at.End()) {
		return
	}
	l.waits = append(l.waits, l.world.now-r.since)
	r.waiting = false
	r.next++
	l.world.after(time.Duration(l.world.rng.ExpFloat64()*float64(l.think)), r.read)
}
