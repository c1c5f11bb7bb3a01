package swarm

import (
	"math/rand/v2"
	"testing"
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
