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
