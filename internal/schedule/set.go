package schedule

import (
	"math/bits"
	"slices"
)

// span is the pieces from lo up to and not including hi.
type span struct{ lo, hi int32 }

// set is a set of the pieces of one blob: runs, or bits where those take less
// memory.
type set struct {
	n     int // how many pieces the blob has
	count int // how many of them are in the set
	runs  []span
	bits  []uint64 // nil: runs is valid
}

func newSet(n int) set { return set{n: n} }

func (s *set) has(p int) bool { return s.next(p) == p && p < s.n }

// next returns the first piece in the set from p on, or n.
func (s *set) next(p int) int {
	if s.bits == nil {
		i := s.search(p)
		if i == len(s.runs) {
			return s.n
		}
		return max(p, int(s.runs[i].lo))
	}
	return s.scan(p, 0)
}

// gap returns the first piece not in the set from p on, or n.
func (s *set) gap(p int) int {
	if s.bits == nil {
		i := s.search(p)
		if i == len(s.runs) || int(s.runs[i].lo) > p {
			return min(p, s.n)
		}
		return int(s.runs[i].hi)
	}
	return s.scan(p, ^uint64(0))
}

// scan returns the first piece from p on whose bit is set after flipping.
func (s *set) scan(p int, flip uint64) int {
	if p >= s.n {
		return s.n
	}
	word := (s.bits[p/64] ^ flip) &^ (1<<(p%64) - 1)
	for i := p / 64; ; {
		if word != 0 {
			return min(i*64+bits.TrailingZeros64(word), s.n)
		}
		if i++; i == len(s.bits) {
			return s.n
		}
		word = s.bits[i] ^ flip
	}
}

// search returns the index of the first run that ends after p.
func (s *set) search(p int) int { return searchRuns(s.runs, p) }

func searchRuns(runs []span, p int) int {
	// Halving without a branch to guess: much of a Tracker's time goes by here.
	at, n := 0, len(runs)
	for n > 1 {
		half := n / 2
		if int(runs[at+half-1].hi) <= p {
			at += half
		}
		n -= half
	}
	if n == 1 && int(runs[at].hi) <= p {
		at++
	}
	return at
}

// add puts the pieces from lo up to and not including hi into the set.
func (s *set) add(lo, hi int) {
	if lo >= hi {
		return
	}
	if s.bits != nil {
		s.setBits(lo, hi, true)
		return
	}
	i, j := s.search(lo-1), 0 // a run that ends at lo joins
	merged := span{int32(lo), int32(hi)}
	for j = i; j < len(s.runs) && int(s.runs[j].lo) <= hi; j++ {
		merged.lo, merged.hi = min(merged.lo, s.runs[j].lo), max(merged.hi, s.runs[j].hi)
		s.count -= int(s.runs[j].hi - s.runs[j].lo)
	}
	s.count += int(merged.hi - merged.lo)
	s.runs = slices.Replace(s.runs, i, j, merged)
	s.compact()
}

// remove takes the pieces from lo up to and not including hi out of the set.
func (s *set) remove(lo, hi int) {
	if lo >= hi {
		return
	}
	if s.bits != nil {
		s.setBits(lo, hi, false)
		return
	}
	i := s.search(lo)
	var left [2]span
	keep, j := left[:0], i
	for ; j < len(s.runs) && int(s.runs[j].lo) < hi; j++ {
		r := s.runs[j]
		s.count -= int(min(r.hi, int32(hi)) - max(r.lo, int32(lo)))
		if int(r.lo) < lo {
			keep = append(keep, span{r.lo, int32(lo)})
		}
		if int(r.hi) > hi {
			keep = append(keep, span{int32(hi), r.hi})
		}
	}
	s.runs = slices.Replace(s.runs, i, j, keep...)
	s.compact()
}

func (s *set) setBits(lo, hi int, on bool) {
	for lo < hi {
		end := min(hi, (lo/64+1)*64)
		mask := ^uint64(0) >> (64 - (end - lo)) << (lo % 64)
		word := &s.bits[lo/64]
		s.count -= bits.OnesCount64(*word)
		if on {
			*word |= mask
		} else {
			*word &^= mask
		}
		s.count += bits.OnesCount64(*word)
		lo = end
	}
	switch s.count {
	case 0:
		s.runs, s.bits = nil, nil
	case s.n:
		s.runs, s.bits = []span{{0, int32(s.n)}}, nil
	}
}

// compact goes over to bits when the runs take more memory: 64 bits each.
func (s *set) compact() {
	if len(s.runs) <= max(8, s.n/64) {
		return
	}
	b := make([]uint64, (s.n+63)/64)
	old := s.runs
	s.runs, s.bits, s.count = nil, b, 0
	for _, r := range old {
		s.setBits(int(r.lo), int(r.hi), true)
	}
}

func (s *set) clone() set {
	c := *s
	c.runs, c.bits = slices.Clone(s.runs), slices.Clone(s.bits)
	return c
}

// addRuns puts runs into the set, cut to the blob.
func (s *set) addRuns(runs []Run) {
	for _, r := range runs {
		lo, hi := cut(r, s.n)
		s.add(lo, hi)
	}
}

// each calls f with the runs of the set in order. f must not change it.
func (s *set) each(f func(lo, hi int)) {
	if s.bits == nil {
		for _, r := range s.runs {
			f(int(r.lo), int(r.hi))
		}
		return
	}
	for lo := s.next(0); lo < s.n; {
		hi := s.gap(lo)
		f(lo, hi)
		lo = s.next(hi)
	}
}

// addSet puts what is in other into the set.
func (s *set) addSet(other *set) { other.each(s.add) }

// removeSet takes what is in other, another set, out of the set.
func (s *set) removeSet(other *set) {
	if s.count == 0 || other.count == 0 {
		return
	}
	// Mostly one of them is small and the other is not.
	for p := common(s, other, 0); p < s.n; {
		end := min(s.gap(p), other.gap(p))
		s.remove(p, end)
		p = common(s, other, end)
	}
}

// both returns what is in both sets.
func both(a, b *set) set {
	out := newSet(a.n)
	for p := common(a, b, 0); p < a.n; p = common(a, b, p) {
		end := min(a.gap(p), b.gap(p))
		out.add(p, end)
		p = end
	}
	return out
}

// list returns the set as runs in order.
func (s *set) list() []Run {
	var out []Run
	s.each(func(lo, hi int) { out = append(out, Run{lo, hi - lo}) })
	return out
}

// hull returns the shortest span that has the whole set in it.
func (s *set) hull() span {
	lo := s.next(0)
	hi := lo
	if s.bits == nil && len(s.runs) > 0 {
		hi = int(s.runs[len(s.runs)-1].hi)
	} else if s.bits != nil {
		hi = s.n
	}
	return span{int32(lo), int32(hi)}
}

// common returns the first piece from p on that is in both sets, or n.
func common(a, b *set, p int) int { return commonWithin(a, b, p, a.n) }

// commonWithin returns the first piece from p on that is in both sets, or n if
// there is none before end.
func commonWithin(a, b *set, p, end int) int {
	i, j := cursor{set: a}, cursor{set: b}
	for p < end {
		p = i.next(p)
		q := j.next(p)
		if q == p && q < end {
			return q
		}
		p = q
	}
	return a.n
}

// cursor goes through a set, from one piece to a later one.
type cursor struct {
	set *set
	at  int // all runs before this one are passed
}

// next returns the first piece in the set from p on, or n. p must not be less
// than at the last call.
func (k *cursor) next(p int) int {
	s := k.set
	if s.bits != nil {
		return s.scan(p, 0)
	}
	// Members' sets are alike, so it is mostly one of the next runs.
	step := 1
	for k.at+step < len(s.runs) && int(s.runs[k.at+step-1].hi) <= p {
		k.at += step
		step *= 2
	}
	end := min(k.at+step, len(s.runs))
	k.at += searchRuns(s.runs[k.at:end], p)
	if k.at == len(s.runs) {
		return s.n
	}
	return max(p, int(s.runs[k.at].lo))
}

// cut returns the pieces of r that a blob of n pieces has.
func cut(r Run, n int) (lo, hi int) {
	if r.Count <= 0 || r.First >= n || r.First < 0 {
		return 0, 0
	}
	return r.First, r.First + min(r.Count, n-r.First)
}
