package schedule

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"skimmer/internal/blob"
)

// dice are the numbers that a fuzzer wants to have.
type dice struct{ left []byte }

func (d *dice) roll(n int) int {
	if len(d.left) == 0 {
		return 0
	}
	b := d.left[0]
	d.left = d.left[1:]
	return int(b) % n
}

func (d *dice) run(n int) Run {
	first := d.roll(n)
	return Run{first, 1 + d.roll(n-first)}
}

// FuzzTracker lets peers do right and wrong in any order. Whatever happens,
// the invariants hold after every step, and as soon as those that are honest
// are let work in peace all get what they want.
func FuzzTracker(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(randomBytes(seed, 600))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1500 {
			return
		}
		fuzzOnce(t, data, false)
	})
}

func randomBytes(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	return data
}

// TestRandom plays more games than FuzzTracker has as seeds.
func TestRandom(t *testing.T) {
	games := uint64(100)
	if testing.Short() {
		games = 50
	}
	for seed := range games {
		fuzzOnce(t, randomBytes(500000+seed, 400+int(seed%5)*200), false)
		if t.Failed() {
			t.Fatalf("game %d", seed)
		}
	}
}

func fuzzOnce(t *testing.T, data []byte, tracing bool) {
	d := &dice{data}
	opt := Options{Width: 1 + d.roll(4), BulkWidth: d.roll(4), MaxRun: int64(1 + d.roll(8)), BulkRun: int64(1 + d.roll(4)), MaxWants: 1 + d.roll(20), TransferLife: 5 * time.Second}
	shapes := map[string]Shape{"x": {Size: int64(1 + d.roll(24)), PieceSize: 1}}
	if d.roll(2) == 1 {
		shapes["y"] = Shape{Size: int64(1+d.roll(4)) * extent, PieceSize: extent}
	}
	peers, rounds := 2+d.roll(5), 400
	if d.roll(4) == 0 {
		// Some things go wrong among many only. The more of them let expire what
		// they are granted the longer the others wait for their turn.
		peers, rounds = peers+d.roll(11), 4000
	}
	w := newWorld(opt, peers, shapes)
	w.tracing = tracing
	for len(d.left) > 0 && len(w.wrong) == 0 {
		w.random(d)
	}
	hungry := []string{}
	if len(w.wrong) == 0 {
		hungry = w.finish(rounds)
	}
	if len(w.wrong) == 0 && len(hungry) == 0 {
		for _, a := range w.peers {
			if a.joined {
				w.leave(a)
			}
		}
		if n := len(w.tracker.blobs) + len(w.tracker.peers) + w.tracker.leases.length + w.tracker.transfers.length; n > 0 && len(w.wrong) == 0 {
			t.Errorf("%d things are remembered of nobody", n)
		}
	}
	if len(w.wrong)+len(hungry) == 0 {
		return
	}
	if !tracing {
		fuzzOnce(t, data, true)
		return
	}
	for _, line := range w.trace {
		t.Log(line)
	}
	t.Fatalf("wrong: %q, hungry: %q", w.wrong, hungry)
}

// random has something happen.
func (w *world) random(d *dice) {
	a := w.peers[d.roll(len(w.peers))]
	name := "x"
	if len(w.shapes) > 1 && d.roll(3) == 0 {
		name = "y"
	}
	n := w.shapes[name].pieces()
	op := d.roll(16)
	if !a.joined {
		if op < 10 {
			racks := []string{"", "r", "q"}
			w.join(a, PeerJoined{Addr: "-", Seed: d.roll(4) == 0, UploadSlots: d.roll(4),
				Location: Location{Zone: racks[d.roll(2)], Rack: racks[d.roll(3)]}})
		} else {
			w.lie(d, a, name, n) // nobody knows it
		}
		return
	}
	switch op {
	case 0, 1, 2:
		w.want(a, name, []Run{d.run(n)}, blob.Priority(d.roll(3)), nil)
	case 3:
		w.want(a, name, []Run{d.run(n), d.run(n)}, blob.Demand, []Run{d.run(n)})
	case 4, 5, 6, 7:
		w.work(a, name, 4)
	case 8:
		w.now = w.now.Add(time.Duration(d.roll(8)) * 300 * time.Millisecond)
		w.step(Tick{})
	case 9:
		l := a.local(name)
		if len(l.wants) > 0 {
			id := slices.Sorted(maps.Keys(l.wants))[d.roll(len(l.wants))]
			delete(l.wants, id)
			l.abandon(func(t *task) bool { return t.want == id }, piecesOf([]Run{{0, n}}))
			w.step(Cancel{a.id, name, id})
		}
	case 10:
		w.step(Uploading{a.id, d.roll(5), d.roll(3)})
	case 11:
		if d.roll(3) == 0 {
			w.leave(a)
		}
	case 12:
		w.evict(d, a, name, n)
	default:
		w.lie(d, a, name, n)
	}
}

// evict has an honest peer lose pieces and say so, or tell everything anew.
func (w *world) evict(d *dice, a *actor, name string, n int) {
	l, lost := a.local(name), d.run(n)
	e := Announce{Peer: a.id, Blob: name, Shape: w.shapes[name]}
	for p := range n {
		if p >= lost.First && p < lost.End() {
			delete(l.have, p)
		}
		if _, ok := l.have[p]; ok {
			e.Have = append(e.Have, Run{p, 1})
			if s, ok := l.sums[p]; ok && d.roll(2) == 0 {
				e.Sums = append(e.Sums, PieceSum{Piece: p, Sum: s})
			}
		}
	}
	w.step(e)
}

// lie has a peer say what is not so. It is not listened to any more when all
// are to get what they want: it gets nothing then, and does nothing.
func (w *world) lie(d *dice, a *actor, name string, n int) {
	a.bad = true
	var sums []PieceSum
	r := d.run(n)
	if d.roll(2) == 0 {
		for p := r.First; p < r.End(); p++ {
			sums = append(sums, PieceSum{Piece: p, Sum: sumOf(p, true)})
		}
	}
	other := w.peers[d.roll(len(w.peers))].id
	switch d.roll(10) {
	case 0, 1:
		if a.joined {
			for p := r.First; p < r.End(); p++ {
				a.local(name).have[p] = d.roll(2) == 0
			}
		}
		w.step(Have{a.id, name, []Run{r}, sums})
	case 2:
		w.step(Announce{a.id, name, w.shapes[name], []Run{r, d.run(n)}, sums})
	case 3:
		reasons := []Reason{Busy, Slow, Gone, Corrupt, Origin, "strange"}
		w.step(Fail{a.id, name, []Run{r}, other, reasons[d.roll(len(reasons))]})
	case 4:
		w.step(Fail{a.id, name, nil, []PeerID{"", other}[d.roll(2)], []Reason{Origin, Busy}[d.roll(2)]})
	case 5:
		w.step(Reject{a.id, name, []Run{r}})
	case 6:
		w.step(Progress{a.id, name, r})
	case 7:
		w.step(PeerLeaving{a.id})
	case 8:
		shape := w.shapes[name]
		shape.Size += int64(d.roll(3))
		a.nextID++
		if a.joined {
			a.local(name).wants[a.nextID] = &wish{pieces: map[int]bool{}}
		}
		w.step(Want{Peer: a.id, Blob: name, Shape: shape, ID: a.nextID, Runs: []Run{r, {-1, 4}, {n, 2}, {0, -1}}, Priority: blob.Priority(d.roll(5))})
	case 9:
		w.step(Cancel{a.id, name, uint64(d.roll(6))})
	}
}
