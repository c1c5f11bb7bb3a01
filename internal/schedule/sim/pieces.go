package sim

import (
	"math/bits"

	"skimmer/internal/schedule"
)

// pieces is a set of pieces of the blob.
type pieces struct {
	words []uint64
	count int
}

func newPieces(n int) pieces { return pieces{words: make([]uint64, (n+63)/64)} }

// mask returns the bits of word i that stand for pieces from lo to hi.
func mask(i, lo, hi int) uint64 {
	m := ^uint64(0)
	if i == lo/64 {
		m <<= lo % 64
	}
	if i == (hi-1)/64 {
		m &= ^uint64(0) >> (63 - (hi-1)%64)
	}
	return m
}

// all reports whether the pieces from lo to hi are in the set.
func (s *pieces) all(lo, hi int) bool {
	for i := lo / 64; i <= (hi-1)/64; i++ {
		if m := mask(i, lo, hi); s.words[i]&m != m {
			return false
		}
	}
	return true
}

// any reports whether one of the pieces from lo to hi is in the set.
func (s *pieces) any(lo, hi int) bool {
	for i := lo / 64; i <= (hi-1)/64; i++ {
		if s.words[i]&mask(i, lo, hi) != 0 {
			return true
		}
	}
	return false
}

// add puts the pieces from lo to hi in and returns how many are new.
func (s *pieces) add(lo, hi int) int {
	fresh := 0
	for i := lo / 64; i <= (hi-1)/64; i++ {
		m := mask(i, lo, hi)
		fresh += bits.OnesCount64(m &^ s.words[i])
		s.words[i] |= m
	}
	s.count += fresh
	return fresh
}

// remove takes the pieces from lo to hi out.
func (s *pieces) remove(lo, hi int) {
	for i := lo / 64; i <= (hi-1)/64; i++ {
		m := mask(i, lo, hi)
		s.count -= bits.OnesCount64(m & s.words[i])
		s.words[i] &^= m
	}
}

// missing returns the runs between lo and hi that are not in the set.
func (s *pieces) missing(lo, hi int) []schedule.Run {
	var out []schedule.Run
	for p := lo; p < hi; p++ {
		if s.words[p/64]&(1<<(p%64)) != 0 {
			continue
		}
		out = join(out, schedule.Run{First: p, Count: 1})
	}
	return out
}

// join appends r to runs, to the last of them if it ends where r begins.
func join(runs []schedule.Run, r schedule.Run) []schedule.Run {
	if n := len(runs); n > 0 && runs[n-1].End() == r.First {
		runs[n-1].Count += r.Count
		return runs
	}
	return append(runs, r)
}

// without returns runs less those pieces that are in minus.
func without(runs, minus []schedule.Run) []schedule.Run {
	for _, m := range minus {
		var rest []schedule.Run
		for _, r := range runs {
			if left := min(r.End(), m.First); left > r.First {
				rest = append(rest, schedule.Run{First: r.First, Count: left - r.First})
			}
			if from := max(r.First, m.End()); from < r.End() {
				rest = append(rest, schedule.Run{First: from, Count: r.End() - from})
			}
		}
		runs = rest
	}
	return runs
}
