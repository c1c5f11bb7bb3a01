// Package remote is a peer's side of a scheduler that runs elsewhere: a session
// that comes back by itself whenever the scheduler does.
package remote

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"sync"

	"google.golang.org/grpc"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
	"skimmer/internal/scheduler/wire"
)

// Hello is how a peer presents itself.
type Hello = wire.Hello

// Handler is told what the scheduler says.
type Handler = wire.Handler

// Config configures a Session. Addr, Hello and Handler are required.
type Config struct {
	// Addr is the scheduler's host:port.
	Addr string
	// Hello presents this peer. An empty host in its Addr stands for the
	// address the scheduler sees the peer come from.
	Hello Hello
	// Handler is told what the scheduler says.
	Handler Handler
	// TLS, where set, returns what the next connection to addr is encrypted by.
	// It is asked each time, so files that were replaced take effect.
	TLS func(addr string) (*tls.Config, error)
	// Dial makes a TCP connection. Default: net.Dialer, for at most 3 seconds.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Logger receives what a person may need to know. Default: discard.
	Logger *slog.Logger
}

// Session is a peer's membership at one scheduler. Its methods are safe for
// concurrent use.
type Session struct {
	// Constant after Dial.
	cfg    Config
	log    *slog.Logger
	cancel context.CancelFunc
	loop   sync.WaitGroup

	again bool // it was up before; of run alone

	// mu guards what follows.
	mu    sync.Mutex
	queue *queue // of the stream that is open, nil while the scheduler is gone
	conn  *grpc.ClientConn
}

// Dial returns a session at once and connects in the background, again and
// again until Close. It tells the handler Up and Down, Down also if the first
// attempt fails. The error is Invalid for a configuration that makes no sense.
func Dial(cfg Config) (*Session, error) {
	if cfg.Handler == nil {
		return nil, blob.Errorf(blob.Invalid, "dial scheduler: no handler given")
	}
	if _, _, err := net.SplitHostPort(cfg.Addr); err != nil {
		return nil, blob.Errorf(blob.Invalid, "dial scheduler: address %q is not host:port", cfg.Addr)
	}
	check := cfg.Hello
	if host, port, err := net.SplitHostPort(check.Addr); err == nil && host == "" {
		check.Addr = net.JoinHostPort("host", port)
	}
	if err := check.Check(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	// context.Background: Close ends it.
	ctx, cancel := context.WithCancel(context.Background())
	s := &Session{cfg: cfg, log: cfg.Logger.With("scheduler", cfg.Addr), cancel: cancel}
	s.loop.Go(func() { s.run(ctx) })
	return s, nil
}

// Addr returns the scheduler's address, as it was given.
func (s *Session) Addr() string { return s.cfg.Addr }

// Send queues an event of this peer; which peer it names does not matter. It
// does not block and keeps the order. Without a scheduler the event is dropped,
// and so is, with a line in the log, one that makes no sense.
func (s *Session) Send(event schedule.Event) {
	s.mu.Lock()
	q := s.queue
	s.mu.Unlock()
	if q == nil {
		return
	}
	if err := q.put(event); err != nil {
		s.log.Error("event not sent", "error", err)
	}
}

// Close leaves the scheduler, without waiting for what is queued. No method of
// the handler runs when it returns, so a handler must not call it. It may be
// called more than once.
func (s *Session) Close() {
	s.cancel()
	s.loop.Wait()
}

// open notes what the stream that is open goes through; nil once it has ended.
func (s *Session) open(q *queue, conn *grpc.ClientConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queue, s.conn = q, conn
}
