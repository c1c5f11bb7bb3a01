package profile

import (
	"slices"
	"time"
)

const (
	// rareStarts is how many starts it takes before rare reads are dropped,
	// rareShare the part of the starts, as a divisor, below which one is rare.
	rareStarts, rareShare = 4, 4
	// together is how far apart two reads of neighbours may be to be one.
	together = 10 * time.Millisecond
)

// Merge returns what the starts of both profiles read. Neither is changed;
// both should pass Validate.
//
// If they are not of the same image, or not with the same layers, the result
// is latest. If they are equal, they are the same starts, told twice, and the
// result is either. Otherwise the starts of both count: a chunk's are added,
// and its time is the mean, weighted by starts. Reads are in order of time.
//
// An image may come to read something else. So starts do not add up for ever:
// where there would be more than MaxStarts, the larger of both is halved, with
// the starts of its reads, until there are not. And once there are four starts,
// a read that less than a quarter of them made is dropped, unless the
// profile that was recorded last has it: what is new must have its chance.
//
// The order of the arguments does not matter, except for which one wins where
// the layers differ; so schedulers that merge the same two profiles agree, and
// those that merge more than two in different orders do as far as the weights
// of a few starts go. Give a scheduler what one start read, rather than
// what Merge made of that and its own: else its starts count twice.
func Merge(old, latest Profile) Profile {
	if old.Manifest != latest.Manifest || old.Platform != latest.Platform || !slices.Equal(old.Layers, latest.Layers) {
		return latest
	}
	if old.Starts == latest.Starts && old.Recorded.Equal(latest.Recorded) && slices.Equal(old.Reads, latest.Reads) {
		return latest
	}
	a, b := weigh(old, latest)
	merged := latest
	merged.Starts = a.Starts + b.Starts
	if old.Recorded.After(latest.Recorded) {
		merged.Recorded = old.Recorded
	}
	// keepA and keepB: what only this one has is not dropped.
	keepA, keepB := a.Recorded.Unix() >= b.Recorded.Unix(), b.Recorded.Unix() >= a.Recorded.Unix()
	var reads []Read
	overlay(byPlaceSorted(a), byPlaceSorted(b), func(r Read, inA, inB bool) {
		rare := merged.Starts >= rareStarts && r.Starts*rareShare < merged.Starts
		if !rare || inA && keepA || inB && keepB {
			reads = append(reads, r)
		}
	})
	merged.Reads = coalesce(reads)
	return merged.Fit()
}

// weigh halves the starts of the larger profile until both together have at
// most MaxStarts. Rounding up keeps reads from vanishing by it.
func weigh(a, b Profile) (Profile, Profile) {
	for a.Starts+b.Starts > MaxStarts {
		sa, sb := a.Starts, b.Starts
		if sa >= sb {
			a = halve(a)
		}
		if sb >= sa {
			b = halve(b)
		}
	}
	return a, b
}

func halve(p Profile) Profile {
	p.Starts = (p.Starts + 1) / 2
	p.Reads = slices.Clone(p.Reads)
	for i := range p.Reads {
		p.Reads[i].Starts = (p.Reads[i].Starts + 1) / 2
	}
	return p
}

func byPlaceSorted(p Profile) []Read {
	return slices.SortedFunc(slices.Values(p.Reads), byPlace)
}

// overlay cuts the runs of a and b, both sorted by place, where the other has
// a border, and gives each piece to add, merged if both have it.
func overlay(a, b []Read, add func(r Read, inA, inB bool)) {
	for len(a) > 0 && len(b) > 0 {
		x, y := &a[0], &b[0]
		switch {
		case x.Layer < y.Layer || x.Layer == y.Layer && x.First < y.First:
			add(cut(&a, before(*x, *y)), true, false)
		case y.Layer < x.Layer || y.First < x.First:
			add(cut(&b, before(*y, *x)), false, true)
		default:
			n := min(x.Count, y.Count)
			r, s := cut(&a, n), cut(&b, n)
			weighted := r.At.Milliseconds()*int64(r.Starts) + s.At.Milliseconds()*int64(s.Starts)
			r.Starts += s.Starts
			r.At = time.Duration(weighted/int64(r.Starts)) * time.Millisecond
			add(r, true, true)
		}
	}
	for len(a) > 0 {
		add(cut(&a, a[0].Count), true, false)
	}
	for len(b) > 0 {
		add(cut(&b, b[0].Count), false, true)
	}
}

// before returns how many chunks of r come before other begins.
func before(r, other Read) int {
	if r.Layer == other.Layer {
		return min(r.Count, other.First-r.First)
	}
	return r.Count
}

// cut takes the first n chunks off the first of reads.
func cut(reads *[]Read, n int) Read {
	r := (*reads)[0]
	r.Count = n
	rest := &(*reads)[0]
	rest.First, rest.Count = rest.First+n, rest.Count-n
	if rest.Count <= 0 {
		*reads = (*reads)[1:]
	}
	return r
}

// coalesce makes one run of neighbours with the same starts that were read
// nearly together, and returns the reads in order of time. It begins
// with the reads in order of place.
func coalesce(reads []Read) []Read {
	var runs []Read
	for _, r := range reads {
		if n := len(runs) - 1; n >= 0 && joins(runs[n], r) {
			runs[n].Count += r.Count
			continue
		}
		runs = append(runs, r)
	}
	slices.SortFunc(runs, byTime)
	return runs
}

// joins reports whether b goes on where a ended, with the same weight, and
// at most a moment later or earlier.
func joins(a, b Read) bool {
	return a.Layer == b.Layer && a.end() == b.First && a.Starts == b.Starts &&
		max(a.At-b.At, b.At-a.At) <= together
}
