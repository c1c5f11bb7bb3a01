package scheduler_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/blob"
	"skimmer/internal/schedule"
	"skimmer/internal/scheduler"
	"skimmer/internal/scheduler/remote"
)

// start starts a scheduler on connections that need no kernel, and so work in
// virtual time.
func start(t *testing.T) (*scheduler.Service, *bufconn.Listener) {
	s, ln := scheduler.New(scheduler.Config{}), bufconn.Listen(64<<10)
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.Close(context.Background())
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return s, ln
}

// dial joins a scheduler of a bubble, over connections of its listener that
// wrap may change.
func dial(t *testing.T, ln *bufconn.Listener, id string, wrap func(net.Conn) net.Conn) (*remote.Session, *recorder) {
	t.Helper()
	r := newRecorder()
	s, err := remote.Dial(remote.Config{Addr: "scheduler.test:8002", Hello: hello(id), Handler: r,
		Dial: func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := ln.DialContext(ctx)
			if err == nil && wrap != nil {
				conn = wrap(conn)
			}
			return conn, err
		}})
	if err != nil {
		t.Fatal(err)
	}
	return s, r
}

// fragile is a connection that can die without anybody being told: what is
// written disappears, and nothing comes.
type fragile struct {
	net.Conn
	dead, closed chan struct{}
	once         sync.Once
}

func newFragile(conn net.Conn, dead chan struct{}) *fragile {
	return &fragile{Conn: conn, dead: dead, closed: make(chan struct{})}
}

func (f *fragile) isDead() bool {
	select {
	case <-f.dead:
		return true
	default:
		return false
	}
}

func (f *fragile) Read(p []byte) (int, error) {
	n, err := f.Conn.Read(p)
	if f.isDead() {
		<-f.closed
		return 0, net.ErrClosed
	}
	return n, err
}

func (f *fragile) Write(p []byte) (int, error) {
	if f.isDead() {
		return len(p), nil
	}
	return f.Conn.Write(p)
}

// Close leaves the other end alone if the connection is dead.
func (f *fragile) Close() error {
	f.once.Do(func() { close(f.closed) })
	if f.isDead() {
		return nil
	}
	return f.Conn.Close()
}

// A connection that dies silently is noticed within 5 seconds by both ends, and
// one that is only quiet lives.
func TestDeadConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ln := start(t)
		dead := make(chan struct{})
		session, r := dial(t, ln, "a", func(conn net.Conn) net.Conn { return newFragile(conn, dead) })
		defer session.Close()
		next[up](t, r)
		time.Sleep(time.Hour)
		if got := s.Stats(); got.Joins != 1 || got.Peers != 1 || len(r.heard) > 0 {
			t.Fatalf("after a quiet hour %d joins, %d peers", got.Joins, got.Peers)
		}
		died := time.Now()
		close(dead)
		for s.Stats().Peers > 0 {
			time.Sleep(10 * time.Millisecond)
		}
		if took := time.Since(died); took > 5*time.Second {
			t.Errorf("scheduler noticed after %v", took)
		}
		if d := next[down](t, r); !errors.Is(d.err, blob.Timeout) {
			t.Errorf("peer lost the scheduler with %v, want Timeout", d.err)
		}
		if took := time.Since(died); took > 5*time.Second {
			t.Errorf("peer noticed after %v", took)
		}
	})
}

// A peer that holds up its handler for long is not taken for cut off.
func TestHandlerTakesItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ln := start(t)
		free := make(chan struct{})
		r := newRecorder()
		session, err := remote.Dial(remote.Config{Addr: "scheduler.test:8002", Hello: hello("a"), Handler: stuck{r, free},
			Dial: func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }})
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		next[up](t, r)
		session.Send(want(blobA, 1, 0, 1))
		time.Sleep(time.Minute)
		close(free)
		next[schedule.Grant](t, r)
		if n := s.Stats().Joins; n != 1 {
			t.Errorf("%d joins, want 1", n)
		}
	})
}

// Leases expire without anything else happening, and then nothing happens.
func TestTicks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, ln := start(t)
		session, r := dial(t, ln, "a", nil)
		defer session.Close()
		next[up](t, r)
		session.Send(want(blobA, 1, 0, 4))
		lease := next[schedule.Grant](t, r)
		began := time.Now()
		if d := lease.Parts[0].Lease.Sub(began); d < time.Second || d > 2*time.Second {
			t.Errorf("lease ends in %v, want 2s or a little less", d)
		}
		if a := next[schedule.Revoke](t, r); a.From != "" {
			t.Errorf("revoked from %q, want the lease", a.From)
		}
		if took := time.Since(began); took < 1900*time.Millisecond || took > 2300*time.Millisecond {
			t.Errorf("lease was taken back after %v, want about 2s", took)
		}
		session.Send(schedule.Cancel{Blob: blobA, Want: 1})
		time.Sleep(10 * time.Minute)
		quiet := s.Stats().Decisions
		time.Sleep(time.Hour)
		if n := s.Stats().Decisions - quiet; n != 0 {
			t.Errorf("%d decisions in a quiet hour, want 0", n)
		}
		for len(r.heard) > 0 {
			<-r.heard
		}
		// It wakes up again.
		session.Send(want(blobB, 1, 0, 4))
		next[schedule.Grant](t, r)
		next[schedule.Revoke](t, r)
	})
}

// The scheduler does not keep streams that never say who they are.
func TestSilentStranger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, ln := start(t)
		conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		stream, err := pb.NewSchedulerClient(conn).Join(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("stream ended with %v, want DeadlineExceeded", err)
		}
	})
}

// A scheduler that cannot be reached is tried again, ever more seldom but at
// least every 5 seconds, and is told of once.
func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder()
		var mu sync.Mutex
		var attempts []time.Time
		session, err := remote.Dial(remote.Config{Addr: "scheduler.test:8002", Hello: hello("a"), Handler: r,
			Dial: func(context.Context, string) (net.Conn, error) {
				mu.Lock()
				defer mu.Unlock()
				attempts = append(attempts, time.Now())
				return nil, errors.New("no route")
			}})
		if err != nil {
			t.Fatal(err)
		}
		session.Send(announce(blobA)) // dropped
		time.Sleep(2 * time.Minute)
		session.Close()
		if d := next[down](t, r); !errors.Is(d.err, blob.Unavailable) {
			t.Errorf("told %v, want Unavailable", d.err)
		}
		if len(r.heard) > 0 {
			t.Errorf("told %d more things", len(r.heard))
		}
		if len(attempts) < 48 || len(attempts) > 110 {
			t.Errorf("%d attempts in two minutes, want one a second for half a minute, then one in 2.5 to 5 s", len(attempts))
		}
		if first := attempts[1].Sub(attempts[0]); first > 100*time.Millisecond {
			t.Errorf("second attempt came after %v, want at most 100ms", first)
		}
		for i := 1; i < len(attempts); i++ {
			if d := attempts[i].Sub(attempts[i-1]); d > 5*time.Second {
				t.Errorf("pause %d was %v", i, d)
			}
		}
	})
}

// A scheduler that hangs before it welcomes a peer is given up.
func TestHangingScheduler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRecorder()
		session, err := remote.Dial(remote.Config{Addr: "scheduler.test:8002", Hello: hello("a"), Handler: r,
			Dial: func(context.Context, string) (net.Conn, error) {
				ours, theirs := net.Pipe()
				go func() {
					buf := make([]byte, 1024)
					for {
						if _, err := theirs.Read(buf); err != nil {
							return
						}
					}
				}()
				return ours, nil
			}})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if d := next[down](t, r); !errors.Is(d.err, blob.Timeout) {
			t.Errorf("told %v, want Timeout", d.err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("told after %v", took)
		}
		session.Close()
	})
}

// In-process members are thrown out and come back in virtual time, too, and
// leave nothing behind.
func TestInProcessRejoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := start(t)
		first, second := newRecorder(), newRecorder()
		a, err := s.Connect(hello("a"), first)
		if err != nil {
			t.Fatal(err)
		}
		next[up](t, first)
		b, err := s.Connect(hello("a"), second)
		if err != nil {
			t.Fatal(err)
		}
		next[up](t, second)
		next[down](t, first)
		next[up](t, first)
		next[down](t, second)
		a.Close()
		next[up](t, second)
		b.Close()
		if n := s.Stats().Peers; n != 0 {
			t.Errorf("%d peers left", n)
		}
	})
}
