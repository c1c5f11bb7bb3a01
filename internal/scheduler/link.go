package scheduler

import (
	"sync"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
	"skimmer/internal/scheduler/wire"
)

// link is a peer that has joined, and what waits to be sent to it. Its methods
// are safe for concurrent use.
type link struct {
	// Constant after join.
	hello   wire.Hello
	remote  string // where it comes from, empty for this process
	since   time.Time
	limit   int
	holder  holder // whose certificate the ID belongs to
	foreign bool   // another certificate was refused, and that was said; guarded by Service.mu

	// ready has something in it when queue or pong does, done is closed when
	// the stream is to end.
	ready chan struct{}
	done  chan struct{}

	// mu guards what follows.
	mu    sync.Mutex
	queue []schedule.Action
	size  int  // of queue in memory, about
	pong  bool // the peer asked whether anybody is there
	err   error
}

func newLink(h wire.Hello, remote string, limit int) *link {
	return &link{hello: h, remote: remote, since: time.Now(), limit: limit, ready: make(chan struct{}, 1), done: make(chan struct{})}
}

// put queues an action. It returns false, and ends the link, if the peer is too
// far behind.
func (l *link) put(a schedule.Action) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return true // nobody will miss it
	}
	n := sizeOf(a)
	if l.size > 0 && l.size+n > l.limit {
		l.finish(blob.Errorf(blob.Busy, "serve peer: it does not take what it is sent, %d bytes wait", l.size))
		return false
	}
	l.queue, l.size = append(l.queue, a), l.size+n
	l.wake()
	return true
}

// answer has the peer told that somebody is there.
func (l *link) answer() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pong = true
	l.wake()
}

func (l *link) wake() {
	select {
	case l.ready <- struct{}{}:
	default:
	}
}

// take returns what waits.
func (l *link) take() (queue []schedule.Action, pong bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	queue, pong = l.queue, l.pong
	l.queue, l.size, l.pong = nil, 0, false
	return queue, pong
}

// end has the link end for the reason err, unless it has already.
func (l *link) end(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.finish(err)
	}
}

// finish is for callers that hold mu and know that the link has not ended.
func (l *link) finish(err error) {
	l.err, l.queue = err, nil
	close(l.done)
}

// reason returns why the link has ended, or nil.
func (l *link) reason() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// pump calls send with what is queued, in order, until the link ends or send
// fails. The list is empty where the peer only wants to know that somebody is
// there.
func (l *link) pump(send func([]schedule.Action) error) error {
	for {
		select {
		case <-l.done:
			return l.reason()
		case <-l.ready:
		}
		queue, pong := l.take()
		if len(queue) == 0 && !pong {
			continue
		}
		if err := send(queue); err != nil {
			return err
		}
	}
}

// sizeOf returns about how much memory an action takes.
func sizeOf(action schedule.Action) int {
	const fixed, perRun, perSum = 200, 16, 48
	switch a := action.(type) {
	case schedule.Grant:
		n := fixed + len(a.Origin)
		for _, p := range a.Parts {
			n += fixed + perRun*len(p.Runs) + perSum*len(p.Sums)
		}
		return n
	case schedule.Revoke:
		return fixed + perRun*len(a.Runs)
	case schedule.Forget:
		return fixed + perRun*len(a.Runs)
	case schedule.Sums:
		return fixed + perSum*len(a.Sums)
	}
	return fixed
}

// grouped returns an action with digests of whole groups in place of those of
// their pieces. It is done for each peer as it takes the action, not while
// decisions wait.
func grouped(action schedule.Action) schedule.Action {
	switch a := action.(type) {
	case schedule.Grant:
		for i := range a.Parts {
			a.Parts[i].Sums = wire.GroupSums(a.Parts[i].Sums)
		}
	case schedule.Sums:
		a.Sums = wire.GroupSums(a.Sums)
		return a
	}
	return action
}
