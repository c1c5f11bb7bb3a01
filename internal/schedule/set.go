package schedule

import "slices"

// span is the pieces from lo up to and not including hi.
type span struct{ lo, hi int32 }

// fewSpans is how many runs a set has in itself. Most sets are what is on its
// way to somebody, and that is not more.
const fewSpans = 5

// set is a set of the pieces of one blob: a few runs, or bits. All that goes on has
// several, so they are small.
type set struct {
	bits  *dense
	count int32 // how many pieces are in the set
	n     int32 // how many the blob has
	runs  int32 // how many of few there are, if there are no bits
	few   [fewSpans]brief
}

// brief is a run in a set, its last piece included: a blob has no more of them than
// fit.
type brief struct{ lo, last uint16 }

func briefly(lo, hi int) brief { return brief{uint16(lo), uint16(hi - 1)} }

func (r brief) from() int { return int(r.lo) }

func (r brief) end() int { return int(r.last) + 1 }

func newSet(n int) set { return set{n: int32(n)} }

// size returns how many pieces the blob has.
func (s *set) size() int { return int(s.n) }

func (s *set) has(p int) bool {
	if s.bits != nil {
		return p < s.size() && s.bits.has(p)
	}
	for i := range s.few[:s.runs] {
		if r := s.few[i]; r.end() > p {
			return r.from() <= p
		}
	}
	return false
}

// next returns the first piece in the set from p on, or n.
func (s *set) next(p int) int {
	if s.bits != nil {
		return min(s.bits.scan(p, 0, s.size()), s.size())
	}
	for i := range s.few[:s.runs] {
		if r := s.few[i]; r.end() > p {
			return max(p, r.from())
		}
	}
	return s.size()
}

// gap returns the first piece not in the set from p on, or n.
func (s *set) gap(p int) int {
	if s.bits != nil {
		return min(s.bits.scan(p, ^uint64(0), s.size()), s.size())
	}
	for i := range s.few[:s.runs] {
		if r := s.few[i]; r.end() > p {
			if r.from() > p {
				return min(p, s.size())
			}
			return r.end()
		}
	}
	return min(p, s.size())
}

// nextBefore returns the first piece in the set from p on, or end or more if
// there is none before end. It looks at nothing beyond.
func (s *set) nextBefore(p, end int) int {
	if s.bits != nil {
		return s.bits.scan(p, 0, end)
	}
	return s.next(p)
}

// gapBefore returns the first piece not in the set from p on, or end or more if
// there is none before end. It looks at nothing beyond.
func (s *set) gapBefore(p, end int) int {
	if s.bits != nil {
		return s.bits.scan(p, ^uint64(0), end)
	}
	return s.gap(p)
}

// add puts the pieces from lo up to and not including hi into the set.
func (s *set) add(lo, hi int) {
	switch {
	case lo >= hi:
	case s.bits != nil:
		s.put(lo, hi, true)
	case s.runs == 0:
		s.few[0], s.runs, s.count = briefly(lo, hi), 1, int32(hi-lo)
	default:
		s.merge(lo, hi)
	}
}

// merge is add for a set that has no bits, and some runs.
func (s *set) merge(lo, hi int) {
	last := &s.few[s.runs-1]
	switch end := last.end(); {
	case lo < last.from():
	case hi <= end:
		return
	case lo <= end:
		s.count += int32(hi - end)
		*last = briefly(last.from(), hi)
		return
	case s.runs < fewSpans:
		s.count += int32(hi - lo)
		s.few[s.runs] = briefly(lo, hi)
		s.runs++
		return
	}
	var out [fewSpans + 1]brief
	k, placed := 0, false
	for _, r := range s.few[:s.runs] {
		from, end := r.from(), r.end()
		switch {
		case end < lo:
		case from > hi && !placed:
			out[k], placed = briefly(lo, hi), true
			s.count += int32(hi - lo)
			k++
		case !placed:
			lo, hi = min(lo, from), max(hi, end)
			s.count -= int32(end - from)
			continue
		}
		out[k] = r
		k++
	}
	if !placed {
		out[k] = briefly(lo, hi)
		s.count += int32(hi - lo)
		k++
	}
	s.become(out[:k])
}

// remove takes the pieces from lo up to and not including hi out of the set.
func (s *set) remove(lo, hi int) {
	if lo >= hi || s.count == 0 {
		return
	}
	if s.bits != nil {
		s.put(lo, hi, false)
		return
	}
	if lo <= s.few[0].from() && hi >= s.few[s.runs-1].end() {
		s.count, s.runs = 0, 0
		return
	}
	var out [fewSpans + 1]brief
	k := 0
	for _, r := range s.few[:s.runs] {
		from, end := r.from(), r.end()
		if end <= lo || from >= hi {
			out[k] = r
			k++
			continue
		}
		s.count -= int32(min(end, hi) - max(from, lo))
		if from < lo {
			out[k] = briefly(from, lo)
			k++
		}
		if end > hi {
			out[k] = briefly(hi, end)
			k++
		}
	}
	s.become(out[:k])
}

// become has the set, which has no bits, be of those runs.
func (s *set) become(runs []brief) {
	if len(runs) <= fewSpans {
		s.runs = int32(copy(s.few[:], runs))
		return
	}
	s.bits, s.runs = &dense{}, 0
	for _, r := range runs {
		s.bits.put(r.from(), r.end(), true, s.size())
	}
}

func (s *set) put(lo, hi int, on bool) {
	s.count += int32(s.bits.put(lo, hi, on, s.size()))
	switch s.count {
	case 0:
		s.bits, s.runs = nil, 0
	case s.n:
		s.bits, s.runs = nil, 1
		s.few[0] = briefly(0, s.size())
	}
}

func (s *set) clone() set {
	c := *s
	if s.bits != nil {
		own := *s.bits
		own.chunks = slices.Clone(own.chunks)
		c.bits = &own
	}
	return c
}

// addRuns puts runs into the set, cut to the blob.
func (s *set) addRuns(runs []Run) {
	for _, r := range runs {
		lo, hi := cut(r, s.size())
		s.add(lo, hi)
	}
}

// each calls f with the runs of the set in order. f must not change it.
func (s *set) each(f func(lo, hi int)) {
	if s.bits == nil {
		for i := range s.runs {
			f(s.few[i].from(), s.few[i].end())
		}
		return
	}
	for lo := s.next(0); lo < s.size(); {
		hi := s.gap(lo)
		f(lo, hi)
		lo = s.next(hi)
	}
}

// addSet puts what is in other into the set.
func (s *set) addSet(other *set) {
	if other.bits == nil {
		for _, r := range other.few[:other.runs] {
			s.add(r.from(), r.end())
		}
		return
	}
	for lo := other.next(0); lo < other.size(); {
		hi := other.gap(lo)
		s.add(lo, hi)
		lo = other.next(hi)
	}
}

// removeSet takes what is in other, another set, out of the set.
func (s *set) removeSet(other *set) {
	if s.count == 0 || other.count == 0 {
		return
	}
	if other.bits == nil {
		for _, r := range other.few[:other.runs] {
			if lo, hi := r.from(), r.end(); s.nextBefore(lo, hi) < hi {
				s.remove(lo, hi)
			}
		}
		return
	}
	// Mostly one of them is small and the other is not.
	for p := common(s, other, 0); p < s.size(); {
		end := min(s.gap(p), other.gap(p))
		s.remove(p, end)
		p = common(s, other, end)
	}
}

// both returns what is in both sets.
func both(a, b *set) set {
	out := set{n: a.n}
	for p := common(a, b, 0); p < a.size(); p = common(a, b, p) {
		end := min(a.gap(p), b.gap(p))
		out.add(p, end)
		p = end
	}
	return out
}

// list returns the set as runs in order.
func (s *set) list() []Run { return s.appendTo(nil) }

func (s *set) appendTo(out []Run) []Run {
	for lo := s.next(0); lo < s.size(); {
		hi := s.gap(lo)
		out = append(out, Run{lo, hi - lo})
		lo = s.next(hi)
	}
	return out
}

// hull returns the shortest span that has the whole set in it, or a longer one.
func (s *set) hull() span {
	lo := s.next(0)
	hi := lo
	if s.bits != nil {
		hi = s.size()
	} else if s.runs > 0 {
		hi = s.few[s.runs-1].end()
	}
	return span{int32(lo), int32(hi)}
}

// common returns the first piece from p on that is in both sets, or n.
func common(a, b *set, p int) int { return commonWithin(a, b, p, a.size()) }

// commonWithin returns the first piece from p on that is in both sets, or n if
// there is none before end.
func commonWithin(a, b *set, p, end int) int {
	if a.count == 0 || b.count == 0 {
		return a.size()
	}
	if a.bits != nil && b.bits != nil {
		if p = a.bits.common(b.bits, p, end); p < end {
			return p
		}
		return a.size()
	}
	if a.bits != nil {
		a, b = b, a
	}
	for _, r := range a.few[:a.runs] {
		if r.end() <= p {
			continue
		}
		lo, hi := max(p, r.from()), min(r.end(), end)
		if lo >= end {
			break
		}
		if q := b.nextBefore(lo, hi); q < hi {
			return q
		}
	}
	return a.size()
}

// cut returns the pieces of r that a blob of n pieces has.
func cut(r Run, n int) (lo, hi int) {
	if r.Count <= 0 || r.First >= n || r.First < 0 {
		return 0, 0
	}
	return r.First, r.First + min(r.Count, n-r.First)
}
