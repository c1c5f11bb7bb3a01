package schedule

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"skimmer/internal/blob"
)

// A world is peers around a Tracker that do what they are told, or not. It
// keeps what they would know and no more, and checks the Tracker after every
// step.
type world struct {
	tracker *Tracker
	now     time.Time
	peers   []*actor // by number; those that have not joined too
	shapes  map[string]Shape
	wrong   []string
	trace   []string // what happened
	tracing bool
}

// actor is a peer of a world.
type actor struct {
	id     PeerID
	joined bool
	bad    bool // has lied, and is silent as soon as everybody is to behave
	nextID uint64
	blobs  map[string]*local
}

// local is what an actor knows of a blob.
type local struct {
	have  map[int]bool // whether what it has of a piece is right
	sums  map[int]Sum
	wants map[uint64]*wish
	tasks []*task
}

// wish is a want, with what is not there of it yet.
type wish struct {
	pieces  map[int]bool
	refused bool
}

// task is pieces an actor has been granted.
type task struct {
	want   uint64
	pieces []int
	from   PeerID // empty for the origin
	waited int
}

func newWorld(opt Options, peers int, shapes map[string]Shape) *world {
	w := &world{tracker: New(opt), now: time.Unix(1000, 0), shapes: shapes}
	for i := range peers {
		w.peers = append(w.peers, &actor{id: PeerID(string(rune('a' + i)))})
	}
	return w
}

func (w *world) actor(id PeerID) *actor {
	i := slices.IndexFunc(w.peers, func(a *actor) bool { return a.id == id })
	return w.peers[i]
}

func (a *actor) local(name string) *local {
	l := a.blobs[name]
	if l == nil {
		l = &local{have: map[int]bool{}, sums: map[int]Sum{}, wants: map[uint64]*wish{}}
		a.blobs[name] = l
	}
	return l
}

// step lets an event happen, and everybody take notice of what comes of it.
func (w *world) step(e Event) {
	if w.tracing {
		w.trace = append(w.trace, fmt.Sprintf("%T%+v", e, e))
	}
	before := map[PeerID]int{}
	for id, p := range w.tracker.peers {
		before[id] = int(w.tracker.standings[p.number].used)
	}
	actions := w.tracker.Step(e, w.now)
	for _, a := range actions {
		if w.tracing {
			w.trace = append(w.trace, "    "+format(a, w.now))
		}
		w.act(a)
	}
	for id, p := range w.tracker.peers {
		if used := int(w.tracker.standings[p.number].used); used > before[id] && used+p.other > p.slots {
			w.wrong = append(w.wrong, fmt.Sprintf("%s serves %d and has %d slots", id, used, p.slots))
		}
	}
	w.wrong = append(w.wrong, check(w.tracker)...)
}

func (w *world) act(action Action) {
	a := w.actor(action.Target())
	if !a.joined {
		w.wrong = append(w.wrong, fmt.Sprintf("%s is told %T and has left", a.id, action))
		return
	}
	switch g := action.(type) {
	case Grant:
		l := a.local(g.Blob)
		if g.Want != 0 && l.wants[g.Want] == nil {
			w.wrong = append(w.wrong, fmt.Sprintf("%s is granted %d and never wanted it", a.id, g.Want))
		}
		for _, part := range g.Parts {
			t := &task{want: g.Want, pieces: piecesOf(part.Runs)}
			if len(part.Sources) > 0 {
				t.from = part.Sources[0].ID
			}
			for _, s := range part.Sums {
				l.sums[s.Piece] = s.Sum
			}
			l.tasks = append(l.tasks, t)
		}
	case Revoke:
		a.local(g.Blob).abandon(func(t *task) bool { return t.from == g.From }, piecesOf(g.Runs))
	case Forget:
		for _, p := range piecesOf(g.Runs) {
			delete(a.local(g.Blob).have, p)
			delete(a.local(g.Blob).sums, p)
		}
	case Sums:
		for _, s := range g.Sums {
			a.local(g.Blob).sums[s.Piece] = s.Sum
		}
	case Refused:
		if wish := a.local(g.Blob).wants[g.Want]; wish != nil {
			wish.refused = true
		}
	}
}

// abandon has an actor wait no longer for pieces, in the tasks that it is about.
func (l *local) abandon(about func(*task) bool, pieces []int) {
	for _, t := range l.tasks {
		if about(t) {
			t.pieces = slices.DeleteFunc(t.pieces, func(p int) bool { return slices.Contains(pieces, p) })
		}
	}
	l.tasks = slices.DeleteFunc(l.tasks, func(t *task) bool { return len(t.pieces) == 0 })
}

func piecesOf(runs []Run) []int {
	var out []int
	for _, r := range runs {
		for p := r.First; p < r.End(); p++ {
			out = append(out, p)
		}
	}
	return out
}

// join has an actor join, with nothing.
func (w *world) join(a *actor, e PeerJoined) {
	a.joined, a.blobs, a.bad = true, map[string]*local{}, false
	e.ID = a.id
	w.step(e)
}

// leave has an actor leave.
func (w *world) leave(a *actor) {
	a.joined, a.blobs = false, nil
	w.step(PeerLeft{a.id})
}

// want has an actor want pieces.
func (w *world) want(a *actor, name string, runs []Run, prio blob.Priority, window []Run) {
	a.nextID++
	l, wish := a.local(name), &wish{pieces: map[int]bool{}}
	for _, p := range piecesOf(runs) {
		if _, ok := l.have[p]; !ok {
			wish.pieces[p] = true
		}
	}
	if len(wish.pieces) == 0 {
		return
	}
	runs = nil
	for p := range w.shapes[name].pieces() {
		if wish.pieces[p] {
			runs = append(runs, Run{p, 1})
		}
	}
	l.wants[a.nextID] = wish
	w.step(Want{Peer: a.id, Blob: name, Shape: w.shapes[name], ID: a.nextID, Runs: runs, Priority: prio, Window: window, Origin: "o"})
}

// work has an actor go on with its first task of a blob that it can do
// something about, as an honest peer does, and reports whether there was one.
// Of a task that waits for its source it loses patience after a while.
func (w *world) work(a *actor, name string, patience int) bool {
	l := a.local(name)
	for _, t := range slices.Clone(l.tasks) {
		if t.from == "" {
			w.read(a, name, t)
			return true
		}
		src := w.actor(t.from)
		if !src.joined {
			w.fail(a, l, name, t, Gone)
			return true
		}
		p := t.pieces[0]
		right, has := src.local(name).have[p]
		sum, known := l.sums[p]
		switch {
		case has && known && sum == sumOf(p, !right):
			w.got(a, name, p, right, nil)
			return true
		case has && known:
			w.fail(a, l, name, t, Corrupt)
			return true
		}
		if t.waited++; t.waited > patience {
			w.fail(a, l, name, t, Slow)
			return true
		}
	}
	return false
}

// read has an actor read the origin.
func (w *world) read(a *actor, name string, t *task) {
	p := t.pieces[0]
	w.got(a, name, p, true, []PieceSum{{Piece: p, Sum: sumOf(p, false)}})
}

// got has an actor have a piece, and look at the whole of a want when it is
// all there: it knows what is right then.
func (w *world) got(a *actor, name string, p int, right bool, sums []PieceSum) {
	l := a.local(name)
	l.have[p] = right
	for _, s := range sums {
		l.sums[s.Piece] = s.Sum
	}
	l.abandon(func(*task) bool { return true }, []int{p})
	for _, wish := range l.wants {
		delete(wish.pieces, p)
	}
	w.step(Have{a.id, name, []Run{{p, 1}}, sums})
	if r, ok := l.have[p]; ok && !r && !a.bad {
		delete(l.have, p)
		delete(l.sums, p)
		w.step(Reject{a.id, name, []Run{{p, 1}}})
		w.want(a, name, []Run{{p, 1}}, blob.Demand, nil)
	}
}

// fail has an actor give up on a task.
func (w *world) fail(a *actor, l *local, name string, t *task, why Reason) {
	runs := make([]Run, len(t.pieces))
	for i, p := range t.pieces {
		runs[i] = Run{p, 1}
	}
	l.tasks = slices.DeleteFunc(l.tasks, func(o *task) bool { return o == t })
	w.step(Fail{a.id, name, runs, t.from, why})
}

// hungry returns who is honest and still wants something that was not refused.
func (w *world) hungry() []string {
	var out []string
	for _, a := range w.peers {
		if !a.joined || a.bad || w.tracker.peers[a.id].leaving {
			continue
		}
		for name, l := range a.blobs {
			for id, wish := range l.wants {
				if len(wish.pieces) > 0 && !wish.refused {
					out = append(out, fmt.Sprintf("%s#%d of %s wants %v, has %v, tasks %v", a.id, id, name, wish.pieces, l.have, l.tasks))
				}
			}
		}
	}
	slices.Sort(out)
	return out
}

// finish lets everybody honest work until all are content, at most so many
// rounds of half a second, and returns who is not.
func (w *world) finish(rounds int) []string {
	for _, a := range w.peers {
		if a.joined {
			w.step(Uploading{Peer: a.id, Slots: w.tracker.peers[a.id].slots})
		}
	}
	for range rounds {
		if len(w.hungry()) == 0 || len(w.wrong) > 0 {
			break
		}
		for _, a := range w.peers {
			for _, name := range slices.Sorted(maps.Keys(w.shapes)) {
				for range 200 {
					if !a.joined || a.bad || !w.work(a, name, 2) {
						break
					}
				}
			}
		}
		w.now = w.now.Add(500 * time.Millisecond)
		w.step(Tick{})
	}
	return w.hungry()
}
