package sim

import (
	"context"
	"fmt"
	"math/bits"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

// bulk is an experiment in which everybody fetches the whole blob.
type bulk struct {
	settings
	peers, seeds int
	link         link // of peers and seeds

	churn     float64       // share of the peers that die, and are replaced, per second
	seedDies  time.Duration // when the first seed dies, or 0
	remaining int
	times     []time.Duration // from joining to having everything
	world     *world
	alive     []*node // peers, not seeds
	originals int     // of those that were there first: how many have not finished
	names     int
}

// runBulk runs an experiment and says what came of it.
func runBulk(ctx context.Context, b bulk) (Row, error) {
	begin := time.Now()
	w := newWorld(ctx, b.settings)
	b.world = w
	w.done = b.finished
	for i := range b.seeds {
		w.add(schedule.PeerID(fmt.Sprintf("seed%d", i)), b.link, true)
	}
	for range b.peers {
		b.arrive()
	}
	b.originals = b.peers
	if b.churn > 0 {
		b.scheduleDeath()
	}
	if b.seedDies > 0 {
		w.after(b.seedDies, func() { w.kill(w.nodes[0]) })
	}
	err := w.run(func() bool { return b.remaining == 0 })
	if err != nil {
		err = fmt.Errorf("%w: %d of %d nodes have not finished", err, b.remaining, len(w.nodes))
	}
	return b.row(time.Since(begin)), err
}

// arrive has a new peer join and want everything.
func (b *bulk) arrive() {
	b.names++
	n := b.world.add(schedule.PeerID(fmt.Sprintf("peer%05d", b.names)), b.link, false)
	b.alive = append(b.alive, n)
	b.remaining++
	b.world.wantAll(n, blob.Prefetch)
}

func (b *bulk) finished(n *node) {
	if !n.whole {
		return // a seed
	}
	b.remaining--
	if n.joined == 0 {
		b.originals--
	}
	b.times = append(b.times, n.finished-n.joined)
}

// scheduleDeath has one peer die and another one come, at the pace of churn,
// until all that were there first have finished or died.
func (b *bulk) scheduleDeath() {
	b.world.after(time.Duration(float64(time.Second)/(b.churn*float64(b.peers))), func() {
		if b.originals == 0 {
			return
		}
		i := b.world.rng.IntN(len(b.alive))
		n := b.alive[i]
		b.alive[i] = b.alive[len(b.alive)-1]
		b.alive = b.alive[:len(b.alive)-1]
		if n.finished == 0 {
			b.remaining--
			if n.joined == 0 {
				b.originals--
			}
		}
		b.world.kill(n)
		b.arrive()
		b.scheduleDeath()
	})
}

// row returns the experiment's outcome.
func (b *bulk) row(real time.Duration) Row {
	r := b.world.row(real)
	r.Peers, r.Seeds = b.peers, b.seeds
	r.Completion.set(b.times)
	link := min(b.link.up, b.link.down)
	r.FluidBound = max(float64(b.size)/b.originRate, float64(b.size)/b.link.down,
		float64(b.peers)*float64(b.size)/(b.originRate+float64(b.peers+b.seeds)*b.link.up))
	run := int64(bulkRun(b.settings))
	units := (b.size + run - 1) / run
	r.DiscreteBound = float64(units+int64(bits.Len(uint(b.peers))-1)) * float64(run) / link
	r.OverFluid, r.OverDiscrete = r.Completion.Max/r.FluidBound, r.Completion.Max/r.DiscreteBound
	return r
}

// bulkRun returns how many bytes the tracker grants at a time, the unit of
// the discrete bound.
func bulkRun(s settings) int64 {
	maximum := s.schedule.MaxRun
	if maximum <= 0 {
		maximum = 8 << 20
	}
	if s.schedule.BulkRun > 0 {
		return min(s.schedule.BulkRun, maximum)
	}
	return min(max(s.size/256, 256<<10), maximum)
}
