package schedule

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"syscall"
	"testing"
	"time"

	"skimmer/internal/blob"
)

// swarmed is a Tracker with n peers that all want all of one blob of 1 GiB,
// without a model of how fast bytes are: any transfer may end next.
type swarmed struct {
	tracker *Tracker
	now     time.Time
	shape   Shape
	chance  *rand.Rand
	going   []Have // what will arrive
	grants  int
	leased  int // pieces

	// Peers that start an image read these places; where they are.
	reads []Run
	at    map[PeerID]int
	wants uint64
}

func newSwarmed(n int, slots int) *swarmed {
	s := &swarmed{tracker: New(Options{}), now: time.Unix(0, 0), shape: Shape{1 << 30, 16 << 10},
		chance: rand.New(rand.NewPCG(1, 2))}
	s.step(PeerJoined{ID: "seed", Seed: true, UploadSlots: slots})
	for i := range n {
		s.step(PeerJoined{ID: PeerID(fmt.Sprint("p", i)), UploadSlots: slots})
	}
	for i := range n {
		s.step(Want{Peer: PeerID(fmt.Sprint("p", i)), Blob: "x", Shape: s.shape, ID: 1, Runs: []Run{{0, s.shape.pieces()}},
			Priority: blob.Background})
	}
	return s
}

func (s *swarmed) step(e Event) {
	for _, a := range s.tracker.Step(e, s.now) {
		g, ok := a.(Grant)
		if !ok {
			continue
		}
		s.grants += len(g.Parts)
		for _, p := range g.Parts {
			h := Have{Peer: g.To, Blob: g.Blob, Runs: p.Runs}
			if len(p.Sources) == 0 {
				for _, r := range p.Runs {
					s.leased += r.Count
					for q := r.First; q < r.End(); q++ {
						h.Sums = append(h.Sums, PieceSum{Piece: q, Sum: sumOf(q, false)})
					}
				}
			}
			s.going = append(s.going, h)
		}
	}
}

// arrive has a transfer end, and reports whether there was one.
func (s *swarmed) arrive() bool {
	if len(s.going) == 0 {
		return false
	}
	i, last := s.chance.IntN(len(s.going)), len(s.going)-1
	for c := s.tracker.blobs["x"]; len(s.going[i].Sums) == 0 && !c.summed.has(s.going[i].Runs[0].First); {
		i = s.chance.IntN(len(s.going)) // relayed, and not there yet
	}
	h := s.going[i]
	s.going[i] = s.going[last]
	s.going = s.going[:last]
	s.step(h)
	if p := s.tracker.peers[h.Peer]; s.reads != nil && !p.Seed && p.wants.len() == 0 {
		s.read(h.Peer)
	}
	return true
}

// BenchmarkGrant has peers fetch a blob all at once, or start one image. An
// operation is a transfer granted and ended: what a scheduler decides per
// transfer. The peers are at different places when it begins.
func BenchmarkGrant(b *testing.B) {
	for _, n := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprint("bulk/peers=", n), func(b *testing.B) {
			benchmarkGrant(b, n, min(n*256/2, 200000), func() *swarmed { return newSwarmed(n, 4) })
		})
		b.Run(fmt.Sprint("demand/peers=", n), func(b *testing.B) {
			benchmarkGrant(b, n, min(n*startReads/2, 200000), func() *swarmed { return newStarting(n) })
		})
	}
}

func benchmarkGrant(b *testing.B, peers, first int, begin func() *swarmed) {
	before := heap()
	s := begin()
	for s.grants < first && s.arrive() {
	}
	perPeer := float64(heap()-before) / float64(peers)
	b.ReportAllocs()
	b.ResetTimer()
	start := cpuTime(b)
	spent := time.Duration(0)
	for range b.N {
		if !s.arrive() {
			spent += cpuTime(b) - start
			b.StopTimer()
			s = begin()
			b.StartTimer()
			start = cpuTime(b)
		}
	}
	spent += cpuTime(b) - start
	b.ReportMetric(float64(b.N)/spent.Seconds(), "decisions/s")
	b.ReportMetric(perPeer, "B/peer")
	runtime.KeepAlive(s)
}

// startReads is how many reads a peer that starts waits for.
const startReads = 300

// newStarting returns a swarm that reads the same places of a blob, one after
// the other, and is blocked on each. Half of them begin when one of the others
// has got somewhere.
func newStarting(n int) *swarmed {
	s := &swarmed{tracker: New(Options{}), now: time.Unix(0, 0), shape: Shape{512 << 20, 16 << 10},
		chance: rand.New(rand.NewPCG(1, 2)), at: map[PeerID]int{}}
	for range startReads {
		s.reads = append(s.reads, Run{s.chance.IntN(s.shape.pieces() - 64), 1 + s.chance.IntN(64)})
	}
	s.step(PeerJoined{ID: "seed", Seed: true, UploadSlots: 64})
	for i := range n {
		s.step(PeerJoined{ID: PeerID(fmt.Sprint("p", i)), UploadSlots: 64})
	}
	for i := range n {
		s.read(PeerID(fmt.Sprint("p", i)))
		for range s.chance.IntN(4) {
			s.arrive()
		}
	}
	return s
}

// read has a peer want what it reads next and has not got.
func (s *swarmed) read(id PeerID) {
	for ; s.at[id] < len(s.reads); s.at[id]++ {
		have := newSet(s.shape.pieces())
		if c := s.tracker.blobs["x"]; c != nil && c.of(s.tracker.peers[id]) != nil {
			have = *c.of(s.tracker.peers[id]).have
		}
		r := s.reads[s.at[id]]
		lacks := newSet(have.n)
		lacks.addRuns([]Run{r})
		lacks.removeSet(&have)
		if lacks.count > 0 {
			s.wants++
			s.step(Want{Peer: id, Blob: "x", Shape: s.shape, ID: s.wants, Runs: lacks.list(), Priority: blob.Demand})
			return
		}
	}
}

// cpuTime returns how long our process has been at work: what else the machine
// does, while it measures, is not to count.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
