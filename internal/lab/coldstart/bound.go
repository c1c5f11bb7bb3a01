package coldstart

import (
	"time"

	"skimmer/internal/image/trace"
)

// Phases is where the time of a first start went, as the node's daemon tells it.
type Phases struct {
	// Profile is where the profile came from that was fetched by; "" for none.
	Profile string `json:"profile"`
	// Read and Inflated are bytes of flat data that were read and unpacked,
	// Fetched the compressed bytes.
	Read     int64 `json:"read"`
	Inflated int64 `json:"inflated"`
	Fetched  int64 `json:"fetched"`
	// Sums are those of the trace, one for each kind of event.
	Sums []trace.Sum `json:"sums"`
}

// sum returns that of one kind, of nothing if there is none.
func (p *Phases) sum(kind trace.Kind) trace.Sum {
	for _, s := range p.Sums {
		if s.Kind == kind {
			return s
		}
	}
	return trace.Sum{Kind: kind}
}

// phasesOf returns the medians of what samples have, each of its own; nil if no
// sample has any. Profile is that of the last.
func phasesOf(g []Sample) *Phases {
	var all []*Phases
	for _, s := range g {
		if s.Phases != nil {
			all = append(all, s.Phases)
		}
	}
	if len(all) == 0 {
		return nil
	}
	p := &Phases{Profile: all[len(all)-1].Profile}
	p.Read = middle(all, func(p *Phases) int64 { return p.Read })
	p.Inflated = middle(all, func(p *Phases) int64 { return p.Inflated })
	p.Fetched = middle(all, func(p *Phases) int64 { return p.Fetched })
	for _, kind := range trace.Kinds() {
		of := func(f func(trace.Sum) int64) int64 {
			return middle(all, func(p *Phases) int64 { return f(p.sum(kind)) })
		}
		sum := trace.Sum{
			Kind:    kind,
			Count:   int(of(func(s trace.Sum) int64 { return int64(s.Count) })),
			Errors:  int(of(func(s trace.Sum) int64 { return int64(s.Errors) })),
			Total:   time.Duration(of(func(s trace.Sum) int64 { return int64(s.Total) })),
			Longest: time.Duration(of(func(s trace.Sum) int64 { return int64(s.Longest) })),
			Busy:    time.Duration(of(func(s trace.Sum) int64 { return int64(s.Busy) })),
			Bytes:   of(func(s trace.Sum) int64 { return s.Bytes }),
			Local:   of(func(s trace.Sum) int64 { return s.Local }),
			Peers:   of(func(s trace.Sum) int64 { return s.Peers }),
			Origin:  of(func(s trace.Sum) int64 { return s.Origin }),
		}
		if sum.Count > 0 {
			p.Sums = append(p.Sums, sum)
		}
	}
	return p
}

func middle(all []*Phases, f func(*Phases) int64) int64 {
	values := make([]int64, len(all))
	for i, p := range all {
		values[i] = f(p)
	}
	return statOf(values).Median
}

// boundBy fills in the bounds of first starts: cached has the cached ones of the
// same case and path, peers is the path between nodes. Starts that do not belong
// together bound nothing.
func boundBy(first, cached []Result, peers Path) {
	for i := range first {
		r := &first[i]
		for _, c := range cached {
			if r.Start != First || c.Mode != r.Mode || c.Case != r.Case || c.Conditions != r.Conditions || c.Mixed || r.Mixed || c.Runs != r.Runs {
				continue
			}
			r.Bound = c.Total.Median + transfer(r.Bytes.Median, r.Conditions.Path) + transfer(r.PeerBytes.Median, peers)
			if r.Bound > 0 {
				r.OfBound = float64(r.Total.Median) / float64(r.Bound)
			}
		}
	}
}

// transfer returns how long a path needs for n bytes.
func transfer(n int64, p Path) time.Duration {
	if p.Bits == 0 {
		return 0
	}
	return time.Duration(float64(n) * 8 / float64(p.Bits) * float64(time.Second))
}
