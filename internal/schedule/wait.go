package schedule

import "skimmer/internal/blob"

// line is wants that wait, the oldest first. Those who are looked for in it are
// many, and most of them are passed by: what has to be seen of each lies close
// together.
type line struct {
	at    []waiter // some of which have left
	some  []mask   // of so many each: what they show, at least
	live  int
	walks int // how often it is being gone through
}

// lineChunk is how many waiters are passed by at a time if none shows what is
// looked for.
const lineChunk = 64

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
		q.at, q.some = kept, q.some[:(len(kept)+lineChunk-1)/lineChunk]
		for i := range q.some {
			q.sum(i)
		}
	}
	w.pos = len(q.at)
	q.at = append(q.at, waiter{w: w})
	if w.pos%lineChunk == 0 {
		q.some = append(q.some, mask{})
	}
	q.live++
}

// show has known what w shows, which waits.
func (q *line) show(w *want, shown mask) {
	q.at[w.pos].shown = shown
	q.some[w.pos/lineChunk] = q.some[w.pos/lineChunk].or(shown)
}

// sum finds out what the waiters of a chunk show.
func (q *line) sum(chunk int) {
	var some mask
	for _, e := range q.at[chunk*lineChunk : min(len(q.at), (chunk+1)*lineChunk)] {
		some = some.or(e.shown)
	}
	q.some[chunk] = some
}

func (q *line) remove(w *want) {
	q.at[w.pos] = waiter{}
	q.live--
	if q.live == 0 && q.walks == 0 {
		q.at, q.some = q.at[:0], q.some[:0]
	}
}

// offer gives wants that wait in a line what m has within in, as long as it has
// free slots.
func (t *Tracker) offer(m *member, line int, in span) {
	c := m.c
	if m.muted || m.gone {
		return
	}
	known := line != int(blob.Demand) && c.late == 0 && !m.isFull()
	var seek mask
	if known {
		now, _ := m.offering()
		seek = now.and(c.maskWithin(in))
	}
	if known && !c.wanted.some.meets(seek) {
		return
	}
	t.each(c, line, seek, func(w *want) bool {
		if m.peer.free() <= 0 || line != int(blob.Demand) && c.late == 0 && !t.spare(m) {
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
	for from := 0; from < last; from += lineChunk {
		if !everybody && !q.some[from/lineChunk].meets(seek) {
			continue
		}
		met := false
		for i := from; i < min(last, from+lineChunk); i++ {
			if e := &q.at[i]; e.w == nil || !everybody && !e.shown.meets(seek) {
				continue
			}
			if met = true; !f(q.at[i].w) {
				return
			}
		}
		if !met {
			q.sum(from / lineChunk)
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
		c.queue[w.line].remove(w)
		w.queued = false
		if !w.bulk() && w.line > 0 {
			c.late--
		}
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
