package scheduler

import (
	"sync"
	"time"

	"skimmer/internal/schedule"
	"skimmer/internal/scheduler/wire"
)

// Hello is how a peer presents itself.
type Hello = wire.Hello

// Handler is told what the scheduler says.
type Handler = wire.Handler

// Session is a peer's membership from within the scheduler's process. Its
// methods are safe for concurrent use.
type Session struct {
	// Constant after Connect.
	s       *Service
	hello   Hello
	handler Handler

	caller  caller
	loop    sync.WaitGroup
	closing sync.Once
	// closed is closed by Close.
	closed chan struct{}

	// mu guards what follows.
	mu   sync.Mutex
	link *link // nil while the peer has not joined
}

// rejoin is how long a session waits after it was thrown out.
const rejoin = 100 * time.Millisecond

// Connect joins a peer that lives in this process. handler is told that the
// peer has joined, from another goroutine, and if it is thrown out, for which
// there are the same reasons as for a remote peer; it joins again then. After
// the service's Close it is told Down and nothing more. The error is Invalid
// for a hello that makes no sense.
func (s *Service) Connect(h Hello, handler Handler) (*Session, error) {
	h.Addr = reachable(h.Addr, "127.0.0.1")
	if err := h.Check(); err != nil {
		return nil, err
	}
	x := &Session{s: s, hello: h, handler: handler, closed: make(chan struct{})}
	x.loop.Go(x.run)
	return x, nil
}

// Send reports an event of this peer; which peer it names does not matter. It
// does not block. Without a scheduler the event is dropped, and so is, with a
// line in the log, one that makes no sense.
func (x *Session) Send(event schedule.Event) {
	x.mu.Lock()
	l := x.link
	x.mu.Unlock()
	if l == nil {
		return
	}
	if err := wire.Check(event); err != nil {
		x.s.log.Error("event not sent", "peer", x.hello.ID, "error", err)
		return
	}
	x.s.report(l, wire.From(event, x.hello.ID))
}

// Close leaves the scheduler. No method of the handler runs when it returns, so
// a handler must not call it. It may be called more than once.
func (x *Session) Close() {
	x.closing.Do(func() { close(x.closed) })
	x.loop.Wait()
}

func (x *Session) run() {
	down := false
	for {
		l, err := x.s.join(x.hello, "", holder{})
		if err == nil {
			down = false
			err = x.serve(l)
		}
		if x.isClosed() {
			return
		}
		if !down {
			x.handler.Down(err)
			down = true
		}
		select {
		case <-x.closed:
			return
		case <-x.s.stopping:
			return
		case <-time.After(rejoin):
		}
	}
}

// serve hands the handler what is said on l until that ends.
func (x *Session) serve(l *link) error {
	x.set(l)
	defer x.set(nil)
	stop := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-x.closed:
			l.end(errLeft)
		case <-stop:
		}
	})
	x.handler.Up()
	err := l.pump(func(actions []schedule.Action) error {
		for _, a := range actions {
			if l.reason() != nil {
				return l.reason()
			}
			x.handler.Act(grouped(a))
		}
		return nil
	})
	close(stop)
	watch.Wait()
	x.s.leave(l, errLeft)
	return err
}

func (x *Session) set(l *link) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.link = l
}

func (x *Session) isClosed() bool {
	select {
	case <-x.closed:
		return true
	default:
		return false
	}
}
