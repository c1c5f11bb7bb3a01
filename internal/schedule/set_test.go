package schedule

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// FuzzSet compares a set and a bitmap with a map, in blobs small and large
// enough for runs and bits.
func FuzzSet(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(randomBytes(seed, 400))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := &dice{data}
		n := 1 + d.roll(200)*(1+d.roll(4))
		s, b, want := newSet(n), newBitmap(n), map[int]bool{}
		other := newSet(n)
		for len(d.left) > 0 {
			r := Run{d.roll(256) * 4, d.roll(64)}
			lo, hi := cut(r, n)
			on := d.roll(3) > 0
			if on {
				s.add(lo, hi)
			} else {
				s.remove(lo, hi)
				other.add(lo, hi)
			}
			b.put(lo, hi, on)
			for p := lo; p < hi; p++ {
				if on {
					want[p] = true
				} else {
					delete(want, p)
				}
			}
			if int(s.count) != len(want) || b.count != len(want) {
				t.Fatalf("after %v %v: counts %d and %d, want %d", r, on, s.count, b.count, len(want))
			}
		}
		shared, left := both(&s, &other), s.clone()
		left.removeSet(&other)
		for p := range n {
			if s.has(p) != want[p] || b.has(p) != want[p] {
				t.Fatalf("%d: %v and %v, want %v", p, s.has(p), b.has(p), want[p])
			}
			if shared.has(p) != (want[p] && other.has(p)) || left.has(p) != (want[p] && !other.has(p)) {
				t.Fatalf("%d: in both %v, left %v", p, shared.has(p), left.has(p))
			}
			if s.next(p) != b.next(p) || s.gap(p) != b.gap(p) {
				t.Fatalf("%d: next %d and %d, gap %d and %d", p, s.next(p), b.next(p), s.gap(p), b.gap(p))
			}
		}
		again := newSet(n)
		again.addRuns(s.list())
		if !slices.Equal(again.list(), s.list()) {
			t.Fatalf("%v became %v", s.list(), again.list())
		}
	})
}

// TestSupply compares a supply with counts, in blobs whose last block is short.
func TestSupply(t *testing.T) {
	chance := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{1, 63, 64, 200, 1000} {
		s, counts := newSupply(n), make([]int, n)
		var offered []span
		for range 2000 {
			lo := chance.IntN(n)
			hi := lo + 1 + chance.IntN(n-lo)
			if chance.IntN(2) == 0 { // whole blocks
				lo, hi = lo/supplyBlock*supplyBlock, min(n, (hi+supplyBlock-1)/supplyBlock*supplyBlock)
			}
			by := 1
			if i := len(offered) - 1; i >= 0 && chance.IntN(2) == 0 {
				lo, hi, by = int(offered[i].lo), int(offered[i].hi), -1
				offered = offered[:i]
			} else {
				offered = append(offered, span{int32(lo), int32(hi)})
			}
			s.add(lo, hi, int32(by))
			for p := lo; p < hi; p++ {
				counts[p] += by
			}
			for p := range n {
				if s.of(p) != counts[p] || s.dark.has(p) != (counts[p] == 0) {
					t.Fatalf("%d of %d: %d offer it, dark %v, want %d", p, n, s.of(p), s.dark.has(p), counts[p])
				}
			}
		}
	}
}

// TestRank: everybody gets the same order, and a name that goes moves only
// what was its own.
func TestRank(t *testing.T) {
	names := []string{"a", "b", "c", "d"}
	firsts := map[string]int{}
	for i := range 4000 {
		key := fmt.Sprint("blob", i)
		order := Rank(key, names)
		firsts[order[0]]++
		if got := Rank(key, []string{"d", "b", "a", "c"}); !slices.Equal(got, order) {
			t.Fatalf("%s: %v and %v", key, got, order)
		}
		without := slices.DeleteFunc(slices.Clone(order), func(s string) bool { return s == "c" })
		if got := Rank(key, []string{"a", "b", "d"}); !slices.Equal(got, without) {
			t.Fatalf("%s: without c %v, want %v", key, got, without)
		}
	}
	for _, name := range names {
		if n := firsts[name]; n < 800 || n > 1200 {
			t.Errorf("%s is first for %d of 4000", name, n)
		}
	}
}

// TestBulk: peers that want everything at once read each byte from the origin
// once, have different pieces in between, and end up with all of it.
func TestBulk(t *testing.T) {
	const peers = 30
	s := newSwarmed(peers, 4)
	c := s.tracker.blobs["x"]
	halfway := false
	for s.arrive() {
		if !halfway && s.grants > peers*256/2 {
			halfway = true
			different := map[string]bool{}
			for _, m := range c.order {
				different[fmt.Sprint(m.have.list())] = true
			}
			if len(different) < peers/3 { // all wait for the one seed to pass on what it reads
				t.Errorf("halfway %d peers have only %d different parts", peers, len(different))
			}
			if wrong := check(s.tracker); len(wrong) > 0 {
				t.Errorf("halfway: %s", wrong)
			}
		}
	}
	for _, m := range c.order {
		if !m.isFull() && !m.peer.Seed {
			t.Errorf("%s has %d of %d", m.peer.ID, m.have.count, c.n)
		}
	}
	if s.leased != c.n {
		t.Errorf("%d pieces were leased, want each of %d once", s.leased, c.n)
	}
}
