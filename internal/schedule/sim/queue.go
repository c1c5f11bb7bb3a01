package sim

import "time"

// what says what is due.
type what uint8

const (
	toTracker what = iota // msg, a schedule.Event, reaches the tracker
	toPeer                // msg, a schedule.Action, reaches node
	started               // flow's request reaches its source
	sent                  // flow's pieces lo to hi have left the source
	arrived               // and have reached the receiver
	broken                // node notices that its source, msg, has died
	called                // msg, a func(), is due
	ticked                // the tracker is to look at its clock
)

// due is something that happens.
type due struct {
	what   what
	lo, hi int32
	flow   *flow
	node   *node
	msg    any
}

// key says when something happens, of two at the same time the one put in
// first, and where it is kept meanwhile.
type key struct {
	at   time.Duration
	seq  uint64
	slot int32
}

func (k *key) before(l *key) bool { return k.at < l.at || k.at == l.at && k.seq < l.seq }

// queue is a heap with four children per node: half the levels of one with
// two. Its keys are small, and what they stand for does not move.
type queue struct {
	heap  []key
	slots []due
	free  []int32
	seq   uint64
}

func (q *queue) push(at time.Duration, d due) {
	q.seq++
	k := key{at: at, seq: q.seq, slot: int32(len(q.slots))}
	if n := len(q.free); n > 0 {
		k.slot = q.free[n-1]
		q.free = q.free[:n-1]
		q.slots[k.slot] = d
	} else {
		q.slots = append(q.slots, d)
	}
	q.heap = append(q.heap, k)
	i := len(q.heap) - 1
	for i > 0 {
		up := (i - 1) / 4
		if !k.before(&q.heap[up]) {
			break
		}
		q.heap[i] = q.heap[up]
		i = up
	}
	q.heap[i] = k
}

// pop returns what is due next, and when; the queue is not empty.
func (q *queue) pop() (time.Duration, due) {
	top := q.heap[0]
	d := q.slots[top.slot]
	q.slots[top.slot] = due{} // keeps nothing alive
	q.free = append(q.free, top.slot)
	end := len(q.heap) - 1
	k := q.heap[end]
	q.heap = q.heap[:end]
	if end == 0 {
		return top.at, d
	}
	i := 0
	for {
		least := 4*i + 1
		if least >= end {
			break
		}
		for j := least + 1; j < min(4*i+5, end); j++ {
			if q.heap[j].before(&q.heap[least]) {
				least = j
			}
		}
		if !q.heap[least].before(&k) {
			break
		}
		q.heap[i] = q.heap[least]
		i = least
	}
	q.heap[i] = k
	return top.at, d
}
