package schedule

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"skimmer/internal/blob"
)

// swarmed is a Tracker with n peers that all want all of one blob of 1 GiB,
// without a model of how fast bytes are: any transfer may end next. What it
// notes itself is small and found by number, so that it is the Tracker that is
// measured.
type swarmed struct {
	tracker *Tracker
	now     time.Time
	shape   Shape
	chance  *rand.Rand
	ids     []PeerID // the seed's, then those of the others
	blob    *content // as soon as there is one
	going   []due    // what will arrive
	room    []Run    // of what arrives
	grants  int
	leased  int // pieces

	// Peers that start an image read these places; where they are.
	reads []Run
	at    []int
	wants uint64
}

// due is a transfer under way.
type due struct {
	peer  int32
	lease bool
	first span
	rest  []Run // after the first
}

func newSwarm(n, slots int, shape Shape) *swarmed {
	s := &swarmed{tracker: New(Options{}), now: time.Unix(0, 0), shape: shape, chance: rand.New(rand.NewPCG(1, 2))}
	for i := range n + 1 {
		s.ids = append(s.ids, PeerID(fmt.Sprint("p", i)))
		s.step(PeerJoined{ID: s.ids[i], Seed: i == 0, UploadSlots: slots})
	}
	return s
}

func newSwarmed(n int, slots int) *swarmed {
	s := newSwarm(n, slots, Shape{1 << 30, 16 << 10})
	for _, id := range s.ids[1:] {
		s.step(Want{Peer: id, Blob: "x", Shape: s.shape, ID: 1, Runs: []Run{{0, s.shape.pieces()}}, Priority: blob.Background})
	}
	return s
}

func (s *swarmed) step(e Event) {
	for _, a := range s.tracker.Step(e, s.now) {
		g, ok := a.(Grant)
		if !ok {
			continue
		}
		peer, err := strconv.Atoi(string(g.To[1:]))
		if err != nil {
			panic(err)
		}
		s.grants += len(g.Parts)
		for _, p := range g.Parts {
			d := due{peer: int32(peer), lease: len(p.Sources) == 0, first: span{int32(p.Runs[0].First), int32(p.Runs[0].End())}}
			if len(p.Runs) > 1 {
				d.rest = p.Runs[1:]
			}
			for _, r := range p.Runs {
				if d.lease {
					s.leased += r.Count
				}
			}
			s.going = append(s.going, d)
		}
	}
}

// arrive has a transfer end, and reports whether there was one.
func (s *swarmed) arrive() bool {
	if len(s.going) == 0 {
		return false
	}
	if s.blob == nil {
		s.blob = s.tracker.blobs["x"]
	}
	i, last := s.chance.IntN(len(s.going)), len(s.going)-1
	for !s.going[i].lease && !s.blob.summed.has(int(s.going[i].first.lo)) {
		i = s.chance.IntN(len(s.going)) // relayed, and not there yet
	}
	d := s.going[i]
	s.going[i] = s.going[last]
	s.going[last] = due{}
	s.going = s.going[:last]
	s.room = append(append(s.room[:0], Run{int(d.first.lo), int(d.first.hi - d.first.lo)}), d.rest...)
	h := Have{Peer: s.ids[d.peer], Blob: "x", Runs: s.room}
	if d.lease {
		for _, r := range h.Runs {
			for q := r.First; q < r.End(); q++ {
				h.Sums = append(h.Sums, PieceSum{Piece: q, Sum: sumOf(q, false)})
			}
		}
	}
	s.step(h)
	if s.reads != nil && d.peer > 0 && s.tracker.peers[h.Peer].wants.len() == 0 {
		s.read(int(d.peer))
	}
	return true
}

// BenchmarkGrant has peers fetch a blob all at once, or start one image. An
// operation is a transfer granted and ended: what a scheduler decides per
// transfer. The peers are at different places when it begins.
func BenchmarkGrant(b *testing.B) {
	for _, n := range []int{100, 1000, 10000, 100000} {
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
	s := newSwarm(n, 64, Shape{512 << 20, 16 << 10})
	s.at = make([]int, n+1)
	for range startReads {
		s.reads = append(s.reads, Run{s.chance.IntN(s.shape.pieces() - 64), 1 + s.chance.IntN(64)})
	}
	for i := 1; i <= n; i++ {
		s.read(i)
		for range s.chance.IntN(4) {
			s.arrive()
		}
	}
	return s
}

// read has a peer want what it reads next and has not got.
func (s *swarmed) read(i int) {
	for ; s.at[i] < len(s.reads); s.at[i]++ {
		lacks := newSet(s.shape.pieces())
		lacks.addRuns(s.reads[s.at[i] : s.at[i]+1])
		if s.blob != nil {
			if m := s.blob.of(s.tracker.peers[s.ids[i]]); m != nil {
				lacks.removeSet(m.have)
			}
		}
		if lacks.count > 0 {
			s.wants++
			s.step(Want{Peer: s.ids[i], Blob: "x", Shape: s.shape, ID: s.wants, Runs: lacks.list(), Priority: blob.Demand})
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
