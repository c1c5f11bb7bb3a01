package schedule

// queue is transfers, those with the nearest deadline in front: whoever makes
// progress goes to the back. One that leaves leaves a gap, and nothing is looked at
// of its neighbours, which are far away.
type queue struct {
	at     []*transfer // nil where one has left
	begin  int         // where the first is, or later than all gaps before it
	length int
}

// front returns the one with the nearest deadline, or nil.
func (q *queue) front() *transfer {
	for ; q.begin < len(q.at); q.begin++ {
		if x := q.at[q.begin]; x != nil {
			return x
		}
	}
	return nil
}

func (q *queue) push(x *transfer) {
	if len(q.at) > 2*q.length+64 {
		kept := q.at[:0]
		for _, x := range q.at {
			if x != nil {
				x.place = int32(len(kept))
				kept = append(kept, x)
			}
		}
		clear(q.at[len(kept):])
		q.at, q.begin = kept, 0
	}
	x.place = int32(len(q.at))
	q.at = append(q.at, x)
	q.length++
}

func (q *queue) remove(x *transfer) {
	q.at[x.place] = nil
	q.length--
}

// spares are things that were used and are free, to be used again: what was
// used last is still in the processor's caches.
type spares[T any] struct {
	free []*T
}

// maxSpares is how many are kept.
const maxSpares = 4096

// take returns one that is as its zero value, but for what reset keeps.
func (s *spares[T]) take() *T {
	if last := len(s.free) - 1; last >= 0 {
		x := s.free[last]
		s.free[last] = nil
		s.free = s.free[:last]
		return x
	}
	return new(T)
}

// give takes back one that nobody uses, reset.
func (s *spares[T]) give(x *T) {
	if len(s.free) < maxSpares {
		s.free = append(s.free, x)
	}
}
