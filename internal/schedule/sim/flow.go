package sim

import (
	"time"

	"skimmer/internal/schedule"
)

// delay is how long something is on its way between a flow's ends.
func (w *world) delay(f *flow) time.Duration {
	if f.lease {
		return w.originLatency
	}
	return w.latency
}

// start gives a flow a slot of its source.
func (w *world) start(f *flow) {
	switch {
	case f.ended:
		return
	case !f.from.alive:
		w.queue.push(w.now+w.latency, due{what: broken, node: f.to, msg: f.from.id})
		return
	case !f.lease && len(f.from.out) >= f.from.slots:
		w.tally.Busy++
		w.detach(f, true)
		w.after(w.latency, func() {
			if f.to.alive {
				w.tell(schedule.Fail{Peer: f.to.id, Blob: blobName, Runs: f.runs, Source: f.from.id, Reason: schedule.Busy})
			}
		})
		return
	}
	f.began = true
	f.from.out = append(f.from.out, f)
	w.pump(f.from)
}

// pump has n's uplink send the next group of pieces, if it is free and a flow
// can be given some: flows take turns.
func (w *world) pump(n *node) {
	if n.sending || !n.alive {
		return
	}
	for i := range n.out {
		turn := (n.turn + i) % len(n.out)
		if f := n.out[turn]; f.flying < w.window && w.send(f) {
			n.turn = turn + 1
			return
		}
	}
}

// send has the next pieces of a flow that its source has leave it.
func (w *world) send(f *flow) bool {
	for i := range f.runs {
		r := &f.runs[i]
		lo, hi := r.First, min(r.End(), (r.First/w.perSend+1)*w.perSend)
		if !f.lease && !f.from.have.all(lo, hi) {
			continue
		}
		r.Count -= hi - lo
		r.First = hi
		if r.Count == 0 {
			f.runs = append(f.runs[:i], f.runs[i+1:]...)
		}
		f.flying++
		f.from.sending = true
		n := w.length(lo, hi)
		if f.lease {
			w.tally.OriginBytes += n
		} else {
			w.tally.PeerBytes += n
		}
		w.queue.push(w.now+takes(n, f.from.up), due{what: sent, flow: f, lo: int32(lo), hi: int32(hi)})
		return true
	}
	return false
}

// sent queues pieces that have left their source at the receiver's downlink.
// That they leave and arrive overlaps: what is idle adds nothing.
func (w *world) sent(f *flow, lo, hi int) {
	f.from.sending = false
	to := f.to
	to.downFree = max(w.now, to.downFree+takes(w.length(lo, hi), to.down))
	w.queue.push(to.downFree+w.delay(f), due{what: arrived, flow: f, lo: int32(lo), hi: int32(hi)})
	w.pump(f.from)
}

// arrived hands pieces to the receiver.
func (w *world) arrived(f *flow, lo, hi int) {
	f.flying--
	if f.ended || !f.to.alive {
		w.tally.WasteBytes += w.length(lo, hi)
		return
	}
	w.pump(f.from)
	got := []schedule.Run{{First: lo, Count: hi - lo}}
	if len(f.gone) > 0 {
		got = without(got, f.gone)
		w.tally.WasteBytes += w.length(lo, hi) - int64(count(got))*w.pieceSize
	}
	for _, r := range got {
		w.take(f, r)
	}
	w.maybeEnd(f)
}

// take checks pieces and keeps them, those without digests for later.
func (w *world) take(f *flow, r schedule.Run) {
	if len(f.unsummed) == 0 {
		w.verified(f, r.First, r.End())
		return
	}
	one := []schedule.Run{r}
	good := without(one, f.unsummed)
	for _, p := range without(one, good) {
		f.waiting = join(f.waiting, p)
	}
	for _, p := range good {
		w.verified(f, p.First, p.End())
	}
	if w.now-f.reported >= reportEvery {
		f.reported = w.now
		w.tell(schedule.Progress{Peer: f.to.id, Blob: blobName, Run: r})
	}
}
