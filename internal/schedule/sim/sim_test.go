package sim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

// small returns settings for networks that a test has time for.
func small() settings {
	return settings{seed: 1, size: 64 << 20, group: 256 << 10, latency: 500 * time.Microsecond, originLatency: 500 * time.Microsecond,
		originRate: gigabit, limit: 5 * time.Minute}
}

var lan = link{up: gigabit, down: gigabit, slots: 4}

// conserved fails the test unless every byte that was sent is held, once, and
// so much is held.
func conserved(t *testing.T, r Row, least int64) {
	t.Helper()
	if r.Twice != 0 || r.Refused != 0 {
		t.Errorf("%d pieces came twice, %d wants were refused", r.Twice, r.Refused)
	}
	sent := int64(r.Egress*float64(r.Bytes)+0.5) + r.PeerBytes
	if sent != r.HeldBytes+r.WasteBytes || r.HeldBytes < least {
		t.Errorf("%d bytes were sent, %d are held and %d were wasted; at least %d are wanted", sent, r.HeldBytes, r.WasteBytes, least)
	}
}

func TestOnePeer(t *testing.T) {
	r, err := runBulk(t.Context(), bulk{settings: small(), peers: 1, link: lan})
	if err != nil {
		t.Fatal(err)
	}
	// Width transfers hide the latencies of asking for the next one.
	if r.OverFluid < 1 || r.OverFluid > 1.02 {
		t.Errorf("took %v of the bound", r.OverFluid)
	}
	if r.PeerBytes != 0 || r.Egress != 1 {
		t.Errorf("outcome %+v", r)
	}
}

func TestSlowLinks(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(b *bulk)
		most   float64
	}{
		{"origin", func(b *bulk) { b.originRate /= 10 }, 1.15},
		{"downlink", func(b *bulk) { b.link.down /= 10 }, 1.15},
		// The bound has the origin send all the time. It sends every byte once:
		// peers have to send the other 19 copies in 19*F/(2*u_origin).
		{"uplink", func(b *bulk) { b.link.up /= 10 }, 1.15 * (19. / 2) / (20. / 3)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := bulk{settings: small(), peers: 20, link: lan}
			tc.change(&b)
			r, err := runBulk(t.Context(), b)
			if err != nil {
				t.Fatal(err)
			}
			if r.OverFluid < 1 || r.OverFluid > tc.most {
				t.Errorf("took %.3f of the bound, at most %.3f are wanted", r.OverFluid, tc.most)
			}
			conserved(t, r, 20*b.size)
		})
	}
}

func TestMakespan(t *testing.T) {
	for _, peers := range []int{2, 10, 50, 200} {
		r, err := runBulk(t.Context(), bulk{settings: small(), peers: peers, link: lan})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d peers: %.3f of the fluid bound, %.3f of the discrete one", peers, r.OverFluid, r.OverDiscrete)
		if r.OverFluid < 1 || r.OverDiscrete > 1.15 {
			t.Errorf("%d peers: %.3f of the fluid bound, %.3f of the discrete one", peers, r.OverFluid, r.OverDiscrete)
		}
		if r.Egress != 1 || r.Busy != 0 {
			t.Errorf("%d peers: origin egress %v, %d times busy", peers, r.Egress, r.Busy)
		}
		conserved(t, r, int64(peers)*r.Bytes)
	}
}

func TestSeeds(t *testing.T) {
	r, err := runBulk(t.Context(), bulk{settings: small(), peers: 50, seeds: 3, link: lan})
	if err != nil {
		t.Fatal(err)
	}
	if r.Egress != 1 || r.OverDiscrete > 1.25 {
		t.Errorf("origin egress %v, %.3f of the discrete bound", r.Egress, r.OverDiscrete)
	}
	conserved(t, r, 50*r.Bytes)
}

func TestChurn(t *testing.T) {
	s := small()
	s.size = 256 << 20 // of 64 MiB, what the seed has under way when it dies would be 2 %
	s.originRate /= 5
	slow := link{up: lan.up / 5, down: lan.down / 5, slots: lan.slots}
	r, err := runBulk(t.Context(), bulk{settings: s, peers: 100, seeds: 2, link: slow, churn: 0.02, seedDies: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if r.Egress < 1 || r.Egress > 1.02 {
		t.Errorf("origin egress %v", r.Egress)
	}
	if r.Twice != 0 || r.Refused != 0 || r.WasteBytes == 0 {
		t.Errorf("outcome %+v", r)
	}
}

// TestSeedDies: what a seed has read and not passed on is read again when it
// dies. That is little of a small blob too, wherever the bottleneck is.
func TestSeedDies(t *testing.T) {
	for _, faster := range []float64{1, 5} {
		for _, dies := range []time.Duration{500 * time.Millisecond, 1250 * time.Millisecond, 2 * time.Second} {
			s := small()
			slow := link{lan.up / 5, lan.down / 5, 64}
			s.originRate = slow.up * faster
			r, err := runBulk(t.Context(), bulk{settings: s, peers: 8, seeds: 2, link: slow, seedDies: dies})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("origin %v times as fast, dies after %v: egress %.4f, %.3f of the discrete bound", faster, dies, r.Egress, r.OverDiscrete)
			if r.Egress <= 1 || r.Egress > 1.04 {
				t.Errorf("origin %v times as fast, dies after %v: egress %v", faster, dies, r.Egress)
			}
		}
	}
}

func TestLazy(t *testing.T) {
	l := lazy{settings: small(), peers: 50, seeds: 2, link: lan, reads: 40, spread: 2 * time.Second, think: 20 * time.Millisecond}
	r, err := runLazy(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	if r.Egress != 1 {
		t.Errorf("origin egress %v", r.Egress)
	}
	if got := r.LocalReads + r.RemoteReads; got != l.peers*l.reads {
		t.Errorf("%d reads, want %d", got, l.peers*l.reads)
	}
	if r.Wait.P50 < 4*l.latency.Seconds() {
		t.Errorf("a read took %v s, less than asking for it", r.Wait.P50)
	}
	conserved(t, r, 50*r.Bytes)
}

func TestCost(t *testing.T) {
	r, err := runCost(t.Context(), 50, small())
	if err != nil {
		t.Fatal(err)
	}
	if r.Decisions < 50*64/8 || r.MemoryFetching <= 0 || r.MemoryHolding <= 0 {
		t.Errorf("outcome %+v", r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := runCost(ctx, 50, small()); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

// TestSameSeed checks that nothing depends on a clock, the order of a map, or
// an address.
func TestSameSeed(t *testing.T) {
	run := func(seed uint64) Row {
		s := small()
		s.seed, s.originRate = seed, s.originRate/10
		r, err := runBulk(t.Context(), bulk{settings: s, peers: 60, seeds: 2, link: link{lan.up / 10, lan.down / 10, 4}, churn: 0.05, seedDies: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		r.InStep, r.SlowestStep, r.DecisionsPerSecond, r.Real = 0, 0, 0, 0
		return r
	}
	first := run(1)
	if second := run(1); second != first {
		t.Errorf("the same seed gave\n%+v\nand\n%+v", first, second)
	}
	if other := run(2); other == first {
		t.Errorf("another seed gave the same: %+v", other)
	}
}

// TestLinksCarryNoMore checks after every event that the model keeps its own
// rules.
func TestLinksCarryNoMore(t *testing.T) {
	s := small()
	s.size = 16 << 20
	w := newWorld(t.Context(), s)
	left := 0
	w.done = func(*node) { left-- }
	for i := range 30 {
		n := w.add(schedule.PeerID(fmt.Sprint("peer", i)), lan, false)
		left++
		w.wantAll(n, blob.Prefetch)
	}
	received := map[*node]int{}
	err := w.run(func() bool {
		for _, n := range w.nodes {
			if len(n.out) > n.slots {
				t.Fatalf("%v: %s serves %d transfers with %d slots", w.now, n.id, len(n.out), n.slots)
			}
			if n.have.count < received[n] {
				t.Fatalf("%v: %s has lost something", w.now, n.id)
			}
			received[n] = n.have.count
			if most := n.down * w.now.Seconds(); float64(int64(n.have.count)*w.pieceSize) > most {
				t.Fatalf("%v: %s has %d pieces, more than fit through its downlink", w.now, n.id, n.have.count)
			}
		}
		if most := w.originRate*w.now.Seconds() + float64(w.group); float64(w.tally.OriginBytes) > most {
			t.Fatalf("%v: %d bytes have left the origin, more than its uplink carries", w.now, w.tally.OriginBytes)
		}
		return left == 0
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPeersObey has one peer be told what a tracker tells when things go wrong.
func TestPeersObey(t *testing.T) {
	setUp := func() (w *world, source, n *node) {
		s := small()
		s.pieceSize = 256 << 10
		w = newWorld(t.Context(), s)
		source, n = w.add("source", lan, false), w.add("receiver", lan, false)
		source.have.add(0, w.pieces)
		w.act(n, schedule.Grant{To: n.id, Blob: blobName, Shape: w.shape, Want: 1, Parts: []schedule.Part{{
			Runs: []schedule.Run{{First: 0, Count: 8}}, Sources: []schedule.Source{{ID: source.id}}, Sums: []schedule.PieceSum{sumOf(0), sumOf(1)},
		}}})
		return w, source, n
	}
	// until lets events happen, without the tracker's knowledge, until only
	// ticks are left.
	until := func(w *world) (told []schedule.Event) {
		for w.now < time.Second {
			at, d := w.queue.pop()
			w.now = at
			if d.what == toTracker {
				told = append(told, d.msg.(schedule.Event))
				continue
			}
			w.handle(&d)
		}
		return told
	}
	t.Run("digests come late", func(t *testing.T) {
		w, _, n := setUp()
		until(w)
		if n.have.count != 2 || len(n.in) != 1 || count(n.in[0].waiting) != 6 {
			t.Fatalf("has %d pieces, %+v", n.have.count, n.in)
		}
		var sums []schedule.PieceSum
		for p := 2; p < 8; p++ {
			sums = append(sums, sumOf(p))
		}
		w.act(n, schedule.Sums{To: n.id, Blob: blobName, Sums: sums})
		if n.have.count != 8 || len(n.in) != 0 || len(n.out) != 0 {
			t.Errorf("has %d pieces, waits for %d transfers", n.have.count, len(n.in))
		}
	})
	t.Run("revoke", func(t *testing.T) {
		w, source, n := setUp()
		w.act(n, schedule.Revoke{To: n.id, Blob: blobName, From: source.id, Runs: []schedule.Run{{First: 1, Count: 7}}})
		told := until(w)
		if n.have.count != 1 || len(n.in) != 0 || len(source.out) != 0 {
			t.Errorf("has %d pieces, waits for %d transfers", n.have.count, len(n.in))
		}
		if have, ok := told[len(told)-1].(schedule.Have); !ok || count(have.Runs) != 1 {
			t.Errorf("told %+v", told)
		}
	})
	t.Run("drop", func(t *testing.T) {
		w, source, n := setUp()
		w.act(n, schedule.Drop{To: n.id, Blob: blobName, Source: source.id})
		until(w)
		if n.have.count != 0 || len(n.in) != 0 {
			t.Errorf("has %d pieces, waits for %d transfers", n.have.count, len(n.in))
		}
	})
	t.Run("forget", func(t *testing.T) {
		w, _, n := setUp()
		n.whole = true
		until(w)
		w.act(n, schedule.Forget{To: n.id, Blob: blobName, Runs: []schedule.Run{{First: 0, Count: 1}}})
		_, d := w.queue.pop()
		for d.what == ticked {
			_, d = w.queue.pop()
		}
		if want, ok := d.msg.(schedule.Want); !ok || n.have.count != 1 || want.Runs[0].First != 0 {
			t.Errorf("has %d pieces, told %+v", n.have.count, d.msg)
		}
	})
	t.Run("source is full", func(t *testing.T) {
		w, source, n := setUp()
		source.slots = 0
		told := until(w)
		if fail, ok := told[len(told)-1].(schedule.Fail); !ok || fail.Reason != schedule.Busy || count(fail.Runs) != 8 || len(n.in) != 0 {
			t.Errorf("told %+v", told)
		}
	})
	t.Run("source dies", func(t *testing.T) {
		for _, after := range []time.Duration{0, 5 * time.Millisecond} {
			w, source, n := setUp()
			w.after(after, func() { w.kill(source) })
			told := until(w)
			i := slices.Index(told, schedule.Event(schedule.PeerLeft{ID: source.id}))
			if i < 0 {
				t.Fatalf("told %+v", told)
			}
			if fail, ok := told[len(told)-1].(schedule.Fail); !ok || fail.Reason != schedule.Gone || len(n.in) != 0 {
				t.Errorf("told %+v", told)
			}
		}
	})
}

func TestRunEnds(t *testing.T) {
	s := small()
	s.limit = 10 * time.Millisecond
	if _, err := runBulk(t.Context(), bulk{settings: s, peers: 3, link: lan}); err == nil || blob.KindOf(err) != blob.Internal {
		t.Errorf("too late: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := runLazy(ctx, lazy{settings: small(), peers: 3, link: lan, reads: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func TestSimulate(t *testing.T) {
	var steps []string
	r, err := Simulate(t.Context(), Config{Runs: []Run{Makespan, Cost}, Peers: []int{1, 3}, Seed: 1,
		Report: func(step string) { steps = append(steps, step) }})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Rows) != 4 || len(steps) != 4 || r.Rows[3].Run != Cost || r.Rows[3].Peers != 3 {
		t.Fatalf("rows %+v, steps %q", r.Rows, steps)
	}
	var table bytes.Buffer
	if err := r.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	if text := table.String(); strings.Count(text, "\n1 ") != 2 || !strings.Contains(text, "makespan: ") || strings.Contains(text, "churn") {
		t.Errorf("table\n%s", text)
	}
	if _, err := json.Marshal(r); err != nil {
		t.Errorf("no JSON: %v", err)
	}
	if _, err := Simulate(t.Context(), Config{Runs: []Run{"nap"}}); blob.KindOf(err) != blob.Invalid {
		t.Errorf("unknown run: %v", err)
	}
}

func TestParseRuns(t *testing.T) {
	got, err := ParseRuns("lazy, makespan")
	if err != nil || !slices.Equal(got, []Run{Lazy, Makespan}) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := ParseRuns("lazy,"); blob.KindOf(err) != blob.Invalid {
		t.Errorf("empty name: %v", err)
	}
}

func TestQueue(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var q queue
	type entry struct {
		at time.Duration
		lo int32
	}
	var want []entry
	for i := range int32(2000) {
		e := entry{time.Duration(rng.IntN(50)), i}
		q.push(e.at, due{lo: e.lo})
		want = append(want, e)
	}
	slices.SortStableFunc(want, func(a, b entry) int { return int(a.at - b.at) })
	for i, e := range want {
		if at, d := q.pop(); at != e.at || d.lo != e.lo {
			t.Fatalf("entry %d: %v %d, want %+v", i, at, d.lo, e)
		}
	}
}

func TestPieces(t *testing.T) {
	const n = 200
	rng := rand.New(rand.NewPCG(3, 4))
	s, have := newPieces(n), [n]bool{}
	for range 3000 {
		lo := rng.IntN(n)
		hi := lo + 1 + rng.IntN(n-lo)
		all, fresh := true, 0
		for p := lo; p < hi; p++ {
			all = all && have[p]
			if !have[p] {
				fresh++
			}
		}
		if got := s.all(lo, hi); got != all {
			t.Fatalf("all(%d, %d) = %v, want %v", lo, hi, got, all)
		}
		if got := s.any(lo, hi); got != (fresh < hi-lo) {
			t.Fatalf("any(%d, %d) = %v of %d missing", lo, hi, got, fresh)
		}
		if got := count(s.missing(lo, hi)); got != fresh {
			t.Fatalf("%d of %d to %d are missing, want %d", got, lo, hi, fresh)
		}
		add := rng.IntN(2) == 0
		if add {
			if got := s.add(lo, hi); got != fresh {
				t.Fatalf("add(%d, %d) = %d, want %d", lo, hi, got, fresh)
			}
		} else {
			s.remove(lo, hi)
		}
		total := 0
		for p := range have {
			if p >= lo && p < hi {
				have[p] = add
			}
			if have[p] {
				total++
			}
		}
		if s.count != total {
			t.Fatalf("count %d, want %d", s.count, total)
		}
	}
}

func TestWithout(t *testing.T) {
	got := without([]schedule.Run{{First: 0, Count: 10}, {First: 20, Count: 5}},
		[]schedule.Run{{First: 2, Count: 3}, {First: 8, Count: 14}, {First: 24, Count: 9}})
	if want := []schedule.Run{{First: 0, Count: 2}, {First: 5, Count: 3}, {First: 22, Count: 2}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestSizes(t *testing.T) {
	for run, want := range map[Run][]int{Makespan: {10, 100, 1000, 10000}, Lazy: {1000}, Kraken: {0}} {
		if got := (Config{}).sizes(run); !slices.Equal(got, want) {
			t.Errorf("%s has %v by itself, want %v", run, got, want)
		}
	}
	for run, want := range map[Run][]int{Lazy: {3, 4}, Cost: {3, 4}, Churn: {0}} {
		if got := (Config{Peers: []int{3, 4}}).sizes(run); !slices.Equal(got, want) {
			t.Errorf("%s of 3 and 4 has %v, want %v", run, got, want)
		}
	}
}

func BenchmarkLazy(b *testing.B) {
	for b.Loop() {
		row, err := Config{Seed: 1, UploadSlots: 64}.one(b.Context(), Lazy, 200)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(1000*row.Wait.P99, "p99-ms")
		b.ReportMetric(row.DecisionsPerSecond, "decisions/s")
	}
}

func BenchmarkMakespan(b *testing.B) {
	for b.Loop() {
		s := small()
		s.size = 1 << 30
		row, err := runBulk(b.Context(), bulk{settings: s, peers: 500, link: lan})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(row.OverDiscrete, "over-discrete")
		b.ReportMetric(row.DecisionsPerSecond, "decisions/s")
	}
}
