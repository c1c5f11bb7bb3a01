package trace

import (
	"cmp"
	"slices"
	"time"
)

// Kinds returns all kinds, in the order in which a start comes to them.
func Kinds() []Kind {
	return []Kind{Manifest, Index, Profile, Metadata, Mount, Prefetch, Fault}
}

// Sum is what the events of one kind have in common.
type Sum struct {
	Kind Kind `json:"kind"`
	// Count is how many there were, Errors how many of them failed.
	Count  int `json:"count"`
	Errors int `json:"errors"`
	// Total is how long they took together, Longest the longest of them, and
	// Busy how long at least one was under way: less than Total where several
	// were at a time.
	Total   time.Duration `json:"total"`
	Longest time.Duration `json:"longest"`
	Busy    time.Duration `json:"busy"`
	// Bytes, Local, Peers and Origin are the sums of those of the events.
	Bytes  int64 `json:"bytes"`
	Local  int64 `json:"local"`
	Peers  int64 `json:"peers"`
	Origin int64 `json:"origin"`
}

// Sums returns a sum for each kind that has events: those of Kinds first, then
// others, in the order in which they were first seen.
func (s Start) Sums() []Sum {
	order := Kinds()
	events := map[Kind][]Event{}
	for _, e := range s.Events {
		if !slices.Contains(order, e.Kind) {
			order = append(order, e.Kind)
		}
		events[e.Kind] = append(events[e.Kind], e)
	}
	var sums []Sum
	for _, kind := range order {
		if len(events[kind]) > 0 {
			sums = append(sums, sumOf(kind, events[kind]))
		}
	}
	return sums
}

// Sum returns the sum of one kind, of nothing if there was none.
func (s Start) Sum(kind Kind) Sum {
	for _, sum := range s.Sums() {
		if sum.Kind == kind {
			return sum
		}
	}
	return Sum{Kind: kind}
}

func sumOf(kind Kind, events []Event) Sum {
	sum := Sum{Kind: kind, Count: len(events)}
	for _, e := range events {
		sum.Total += e.Took
		sum.Longest = max(sum.Longest, e.Took)
		sum.Bytes += e.Bytes
		sum.Local += e.Local
		sum.Peers += e.Peers
		sum.Origin += e.Origin
		if e.Error != "" {
			sum.Errors++
		}
	}
	slices.SortFunc(events, func(a, b Event) int { return cmp.Compare(a.At, b.At) })
	var end time.Duration
	for i, e := range events {
		if i == 0 || e.At > end {
			end = e.At
		}
		if until := e.At + e.Took; until > end {
			sum.Busy += until - end
			end = until
		}
	}
	return sum
}

// Amplification returns the bytes of flat data that were unpacked for each that
// was read; 0 while nothing was read.
func (s Start) Amplification() float64 {
	if s.Read <= 0 {
		return 0
	}
	return float64(s.Inflated) / float64(s.Read)
}

// end returns when the last event ended or reading settled, what is later.
func (s Start) end() time.Duration {
	end := s.Settled
	for _, e := range s.Events {
		end = max(end, e.At+e.Took)
	}
	return end
}
