package swarm

import (
	"slices"
	"sync"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

// recorder is a session that keeps what is sent.
type recorder struct {
	mu   sync.Mutex
	sent []schedule.Event // mu guards
}

func (r *recorder) Send(ev schedule.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sent = append(r.sent, ev)
}

// TestArrivalsAreToldBeforeWants has pieces arrive that nobody kept, and be
// wanted again before their arrival was told: told after the want, it would look
// like its fulfilment, and the reader would wait for ever.
func TestArrivalsAreToldBeforeWants(t *testing.T) {
	w := newWorld(t)
	ref := w.origin.add(make([]byte, 1<<20))
	s := w.node("one", options{}).swarm
	r := new(recorder)
	l := s.Attach("scheduler")
	l.Bind(r)
	l.Up()
	c := s.content(ref.Digest, ref.Size)
	defer c.release()
	c.mu.Lock()
	c.owner = l
	c.report.last = time.Now() // or it would be told at once
	c.arrived(schedule.Run{First: 4, Count: 4}, nil)
	c.want(&want{prio: blob.Background}, []schedule.Run{{First: 0, Count: 8}}, ref)
	c.mu.Unlock()

	r.mu.Lock()
	defer r.mu.Unlock()
	have := slices.IndexFunc(r.sent, func(ev schedule.Event) bool { _, ok := ev.(schedule.Have); return ok })
	wants := slices.IndexFunc(r.sent, func(ev schedule.Event) bool { _, ok := ev.(schedule.Want); return ok })
	if have < 0 || wants < 0 || have > wants {
		t.Errorf("sent %v: want what arrived told before what is wanted", r.sent)
	}
}

// TestWholeGroupIsFetchedForWhoWaits has one reader wait for the middle of a group
// that can only be compared whole: fetching begins before what it waits for, and is
// for it all the same.
func TestWholeGroupIsFetchedForWhoWaits(t *testing.T) {
	w := newWorld(t)
	ref := w.origin.add(make([]byte, 2*schedule.Group*smallestPiece))
	h := &remote{s: w.node("one", options{}).swarm, ref: ref}
	h.c = h.s.content(ref.Digest, ref.Size)
	defer h.c.release()
	c := h.c
	j := newJob(t.Context(), h, []blob.Range{c.geo.bytes(schedule.Run{First: schedule.Group + 5, Count: 1})})
	defer j.end()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.jobs = append(c.jobs, j)
	p := &part{left: newSet(c.geo.n)}
	p.left.add(schedule.Run{First: 0, Count: c.geo.n})
	run, who := c.due(p)
	if want := (schedule.Run{First: schedule.Group, Count: schedule.Group}); run != want || who != j {
		t.Errorf("due(0 to %d) = %v for job %p, want %v for %p", c.geo.n, run, who, want, j)
	}
	j.need.remove(j.spans[0])
	if run, who := c.due(p); run.Count != 0 || who != nil {
		t.Errorf("due() = %v for job %p when nobody waits", run, who)
	}
}
