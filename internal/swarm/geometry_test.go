package swarm

import (
	"math/rand/v2"
	"testing"

	"skimmer/internal/schedule"
)

// TestBoth compares both with looking at each piece.
func TestBoth(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		n := 1 + rng.IntN(300)
		a, b := newSet(n), newSet(n)
		for p := range n {
			a.put(p, p+1, rng.IntN(8) == 0)
			b.put(p, p+1, rng.IntN(8) == 0)
		}
		end := rng.IntN(n + 1)
		from := rng.IntN(end + 1)
		want := from
		for want < end && !(a.has(want) && b.has(want)) {
			want++
		}
		if got := both(a, b, from, end); got != want {
			t.Fatalf("from %d to %d of %d: %d, want %d", from, end, n, got, want)
		}
	}
}

// TestNext compares next and runs with looking at each piece.
func TestNext(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		n := 1 + rng.IntN(300)
		s := newSet(n)
		for p := range n {
			s.put(p, p+1, rng.IntN(64) == 0 || p > 0 && s.has(p-1) && rng.IntN(64) > 0)
		}
		end := rng.IntN(n + 1)
		from := rng.IntN(end + 1)
		for _, in := range []bool{false, true} {
			want := from
			for want < end && s.has(want) != in {
				want++
			}
			if got := s.next(from, end, in); got != want {
				t.Fatalf("from %d to %d of %d, %v: %d, want %d", from, end, n, in, got, want)
			}
		}
		again := newSet(n)
		for _, r := range s.runs(schedule.Run{First: from, Count: end - from}) {
			again.add(r)
		}
		for p := range n {
			if want := from <= p && p < end && s.has(p); again.has(p) != want {
				t.Fatalf("runs from %d to %d of %d: piece %d is in them: %v", from, end, n, p, !want)
			}
		}
	}
}
