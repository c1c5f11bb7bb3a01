package schedule

// queue is transfers, those with the nearest deadline in front: whoever makes
// progress goes to the back. Its links are in the transfers.
type queue struct {
	front, back *transfer
	length      int
}

func (q *queue) push(x *transfer) {
	x.ahead, x.behind = q.back, nil
	if q.back == nil {
		q.front = x
	} else {
		q.back.behind = x
	}
	q.back = x
	q.length++
}

func (q *queue) remove(x *transfer) {
	if x.ahead == nil {
		q.front = x.behind
	} else {
		x.ahead.behind = x.behind
	}
	if x.behind == nil {
		q.back = x.ahead
	} else {
		x.behind.ahead = x.ahead
	}
	x.ahead, x.behind = nil, nil
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
