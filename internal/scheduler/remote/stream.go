package remote

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/blob"
	"skimmer/internal/scheduler/wire"
)

// A scheduler from which nothing has come for askAfter is asked whether it is
// there, and taken for dead when nothing has come for deadAfter.
const (
	askAfter  = 2 * time.Second
	deadAfter = 4500 * time.Millisecond
)

// The pauses between attempts to connect double from minPause to maxPause. A
// stream that lasted for steady makes them begin anew.
const (
	minPause = 100 * time.Millisecond
	maxPause = 5 * time.Second
	// A scheduler that is restarted is back soon, and peers do badly without:
	// for soonFor the pauses are not longer than soon.
	soon    = time.Second
	soonFor = 30 * time.Second
	steady  = 10 * time.Second
)

var errSilent = blob.Errorf(blob.Timeout, "talk to scheduler: nothing has come from it for %v", deadAfter)

// run connects until ctx ends.
func (s *Session) run(ctx context.Context) {
	pause, lost := minPause, time.Now()
	for first := true; ; first = false {
		up, err := s.attempt(ctx)
		if ctx.Err() != nil {
			return
		}
		if !up.IsZero() || first {
			s.log.Warn("scheduler is gone, trying again until it is back", "error", err)
			s.cfg.Handler.Down(err)
		} else {
			s.log.Debug("cannot reach scheduler", "error", err)
		}
		if !up.IsZero() && time.Since(up) >= steady {
			pause = minPause
		}
		if !up.IsZero() {
			lost = time.Now()
		}
		// Not all peers that lost a scheduler come back in the same moment.
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
		pause = min(2*pause, maxPause)
		if time.Since(lost) < soonFor {
			pause = min(pause, soon)
		}
	}
}

// attempt connects once, and returns when the stream has ended, and since when
// it was up; zero if it never was.
func (s *Session) attempt(ctx context.Context) (up time.Time, err error) {
	// It is not used again after a failure: gRPC would go on with a connection
	// that is dead.
	conn, err := Connect(s.cfg)
	if err != nil {
		return up, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel(nil)

	q := newQueue(cancel)
	w := &watch{queue: q}
	tasks.Go(func() { w.run(ctx, cancel) })
	w.wait()
	hello := s.cfg.Hello
	hello.Again = s.again
	stream, err := pb.NewSchedulerClient(conn).Join(ctx)
	if err != nil {
		return up, s.reason(ctx, err)
	}
	if err = stream.Send(wire.EncodeHello(hello)); err == nil || errors.Is(err, io.EOF) { // Recv says why
		err = s.welcome(stream)
	}
	if err != nil {
		return up, s.reason(ctx, err)
	}
	up, s.again = time.Now(), true
	tasks.Go(func() {
		if err := q.pump(ctx, stream.Send); !errors.Is(err, io.EOF) { // Recv says why
			cancel(err)
		}
	})
	s.log.Info("joined scheduler")
	s.open(q, conn)
	defer s.open(nil, nil)
	w.busy()
	s.cfg.Handler.Up()
	for {
		w.wait()
		m, err := stream.Recv()
		w.busy()
		if err == nil {
			err = s.act(m)
		}
		if err != nil {
			return up, s.reason(ctx, err)
		}
	}
}

// Connect returns a connection to the scheduler at cfg.Addr, with cfg.TLS and
// cfg.Dial, for whoever wants to ask it about its peers and blobs. It is made
// with the first call on it, and the caller closes it.
func Connect(cfg Config) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if cfg.TLS != nil {
		c, err := cfg.TLS(cfg.Addr)
		if err != nil {
			return nil, blob.Errorf(blob.Invalid, "dial scheduler: %w", err)
		}
		creds = credentials.NewTLS(c)
	}
	dial := cfg.Dial
	if dial == nil {
		dial = dialTCP
	}
	conn, err := grpc.NewClient("passthrough:///"+cfg.Addr,
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx, cfg.Addr) }),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(wire.MaxMessage)),
		grpc.WithReadBufferSize(16<<10), grpc.WithWriteBufferSize(16<<10))
	if err != nil {
		return nil, blob.Errorf(blob.Invalid, "dial scheduler: %w", err)
	}
	return conn, nil
}

func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	return (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, "tcp", addr)
}

// welcome reads the scheduler's first message.
func (s *Session) welcome(stream pb.Scheduler_JoinClient) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	if got := m.GetWelcome().GetProtocol(); got != wire.Protocol {
		return blob.Errorf(blob.Invalid, "read welcome: protocol is %d, this peer speaks %d", got, wire.Protocol)
	}
	return nil
}

// act hands the handler what a message says.
func (s *Session) act(m *pb.ServerMessage) error {
	now := time.Now()
	for _, a := range m.GetActions() {
		if a.GetKind() == nil {
			s.log.Debug("scheduler says what this version does not know")
			continue
		}
		action, err := wire.DecodeAction(a, s.cfg.Hello.ID, now)
		if err != nil {
			return err
		}
		s.cfg.Handler.Act(action)
	}
	return nil
}

// kinds translates gRPC's codes; those that are missing are Unavailable.
var kinds = map[codes.Code]blob.Kind{
	codes.InvalidArgument: blob.Invalid, codes.Aborted: blob.Canceled, codes.ResourceExhausted: blob.Busy,
	codes.DeadlineExceeded: blob.Timeout, codes.Unauthenticated: blob.Unauthorized, codes.PermissionDenied: blob.Forbidden,
	codes.NotFound: blob.NotFound,
}

// reason returns why a stream ended that failed with err.
func (s *Session) reason(ctx context.Context, err error) error {
	// The cause that is not gRPC's own is nearer to what happened: silence, say.
	if cause := context.Cause(ctx); cause != nil {
		if _, ok := status.FromError(cause); !ok {
			err = cause
		}
	}
	if errors.Is(err, io.EOF) {
		return blob.Errorf(blob.Unavailable, "talk to scheduler %s: it ended the stream", s.cfg.Addr)
	}
	return failure(s.cfg.Addr, err)
}

// watch ends a stream on which nothing comes any more. A handler that takes its
// time does not count as silence.
type watch struct {
	queue *queue
	since atomic.Int64 // when waiting began, as UnixNano; 0 while not waiting
}

func (w *watch) wait() { w.since.Store(time.Now().UnixNano()) }
func (w *watch) busy() { w.since.Store(0) }

func (w *watch) run(ctx context.Context, fail context.CancelCauseFunc) {
	t := time.NewTicker(askAfter / 4)
	defer t.Stop()
	asked := int64(0) // in which wait
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			since := w.since.Load()
			switch quiet := now.Sub(time.Unix(0, since)); {
			case since == 0:
			case quiet >= deadAfter:
				fail(errSilent)
			case quiet >= askAfter && asked != since:
				asked = since
				w.queue.ask()
			}
		}
	}
}
