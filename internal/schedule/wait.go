package schedule

import (
	"math/bits"

	"skimmer/internal/blob"
)

// line is wants that wait, the oldest first. Those who are looked for in it are
// many, and most of them are passed by: what has to be seen of each lies close
// together.
type line struct {
	at    []waiter // some of which have left
	some  []mask   // of so many each, a chunk: what they show, at least
	index []chunks // the same by block, if the line is long
	live  int
	walks int // how often it is being gone through
}

// lineChunk is how many waiters are passed by at a time if none shows what is
// looked for, and longLine how many chunks are gone through one by one.
const (
	lineChunk = 64
	longLine  = 16
)

// chunks says per block which of 64 chunks show it, at least.
type chunks [blocks]uint64

type waiter struct {
	w     *want // nil if it has left
	shown mask  // of w
}

func (q *line) push(w *want) {
	if q.walks == 0 && len(q.at) > 2*q.live+16 {
		kept := q.at[:0]
		for _, e := range q.at {
			if e.w != nil {
				e.w.pos = len(kept)
				kept = append(kept, e)
			}
		}
		clear(q.at[len(kept):])
		q.at, q.some, q.index = kept, q.some[:0], nil
		for len(q.some)*lineChunk < len(q.at) {
			q.lengthen()
			q.sum(len(q.some) - 1)
		}
	}
	w.pos = len(q.at)
	q.at = append(q.at, waiter{w: w})
	if w.pos%lineChunk == 0 {
		q.lengthen()
	}
	q.live++
}

// lengthen adds a chunk, which shows nothing.
func (q *line) lengthen() {
	q.some = append(q.some, mask{})
	switch n := len(q.some); {
	case n <= longLine:
	case q.index == nil:
		q.index = make([]chunks, (n+63)/64)
		for i := range q.some {
			q.index[i/64].change(i, mask{}, q.some[i])
		}
	case n > 64*len(q.index):
		q.index = append(q.index, chunks{})
	}
}

// change has known that a chunk shows now what it shows, and not what it did.
func (k *chunks) change(chunk int, was, now mask) {
	for i := range now {
		for diff := now[i] ^ was[i]; diff != 0; diff &= diff - 1 {
			k[i*64+bits.TrailingZeros64(diff)] ^= 1 << (chunk % 64)
		}
	}
}

// show has known what w shows, which waits.
func (q *line) show(w *want, shown mask) {
	q.at[w.pos].shown = shown
	q.become(w.pos/lineChunk, q.some[w.pos/lineChunk].or(shown))
}

// become has known what a chunk shows.
func (q *line) become(chunk int, now mask) {
	if q.index != nil {
		q.index[chunk/64].change(chunk, q.some[chunk], now)
	}
	q.some[chunk] = now
}

// sum finds out what the waiters of a chunk show.
func (q *line) sum(chunk int) {
	var some mask
	for _, e := range q.at[chunk*lineChunk : min(len(q.at), (chunk+1)*lineChunk)] {
		some = some.or(e.shown)
	}
	q.become(chunk, some)
}

// meets returns which of 64 chunks, from the one numbered 64 times group on, may
// show something of seek.
func (q *line) meets(group int, seek mask) (found uint64) {
	if q.index == nil {
		for i, some := range q.some[group*64 : min(len(q.some), (group+1)*64)] {
			if some.meets(seek) {
				found |= 1 << i
			}
		}
		return found
	}
	k := &q.index[group]
	for i, word := range seek {
		for ; word != 0; word &= word - 1 {
			found |= k[i*64+bits.TrailingZeros64(word)]
		}
	}
	return found
}

func (q *line) remove(w *want) {
	q.at[w.pos] = waiter{}
	q.live--
	if q.live == 0 && q.walks == 0 {
		q.at, q.some, q.index = q.at[:0], q.some[:0], nil
	}
}

// offer gives wants that wait in a line what m has within in, as long as it has
// free slots.
func (t *Tracker) offer(m *member, line int, in span) {
	c := m.c
	if m.muted || m.gone || c.queue[line].live == 0 {
		return
	}
	known := line != int(blob.Demand) && c.late == 0 && !m.isFull()
	var seek mask
	if known {
		now, _ := m.offering()
		seek = now.and(c.maskWithin(in)).and(c.wanted.some)
	}
	if known && seek == (mask{}) {
		return
	}
	t.each(c, line, seek, func(w *want) bool {
		if t.standing(m).free() <= 0 || line != int(blob.Demand) && c.late == 0 && !t.spare(m) {
			return false
		}
		t.pair(w, m, in)
		return true
	})
}

// each calls f with the wants of c that wait in that line, the old ones first,
// until it returns false. With a mask it is those only who show that they need
// something there. f may take that want out of the line and put it back, and no
// other.
func (t *Tracker) each(c *content, line int, seek mask, f func(*want) bool) {
	q, everybody := &c.queue[line], seek == mask{}
	q.walks++
	last := len(q.at) // what f puts in is not for this time
	defer func() { q.walks-- }()
	for group := 0; group*64*lineChunk < last; group++ {
		found := ^uint64(0)
		if !everybody {
			found = q.meets(group, seek)
		}
		for ; found != 0; found &= found - 1 {
			chunk := group*64 + bits.TrailingZeros64(found)
			if chunk*lineChunk >= last {
				return
			}
			met := false
			for i := chunk * lineChunk; i < min(last, (chunk+1)*lineChunk); i++ {
				if e := &q.at[i]; e.w == nil || !everybody && !e.shown.meets(seek) {
					continue
				}
				if met = true; !f(q.at[i].w) {
					return
				}
			}
			if !met {
				q.sum(chunk)
			}
		}
	}
}

// enqueue puts w among those who wait if there is something to wait for, and
// takes it from among them if not.
func (t *Tracker) enqueue(w *want) {
	c := w.m.c
	waits := !w.finished && w.need.count > 0 && w.active < t.width(w) && !w.m.peer.leaving
	line := w.place()
	if w.queued && (!waits || w.line != line) {
		w.leave()
	}
	if waits && !w.queued {
		c.queue[line].push(w)
		w.queued, w.line = true, line
		if !w.bulk() && line > 0 {
			c.late++
		}
	}
	var shown mask
	switch {
	case w.finished || line == int(blob.Demand):
	case waits:
		shown = w.mask
	default:
		shown = w.shown // it will wait again
	}
	c.wanted.change(&w.shown, shown)
	if waits {
		c.queue[line].show(w, shown)
	}
	waiting := c.queue[0].live + c.queue[1].live + c.queue[2].live
	switch {
	case waiting > 0 && c.hungryAt < 0:
		c.hungryAt = len(t.hungry)
		t.hungry = append(t.hungry, c)
	case waiting == 0 && c.hungryAt >= 0:
		last := t.hungry[len(t.hungry)-1]
		t.hungry[c.hungryAt], last.hungryAt = last, c.hungryAt
		t.hungry = t.hungry[:len(t.hungry)-1]
		c.hungryAt = -1
	}
}

// leave takes w out of its line, until it is enqueued.
func (w *want) leave() {
	c := w.m.c
	c.queue[w.line].remove(w)
	w.queued = false
	if !w.bulk() && w.line > 0 {
		c.late--
	}
}
