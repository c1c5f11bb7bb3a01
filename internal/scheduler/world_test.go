package scheduler_test

import (
	"context"
	"crypto/sha256"
	"net"
	"strings"
	"testing"
	"time"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/schedule"
	"skimmer/internal/scheduler"
	"skimmer/internal/scheduler/remote"
	"skimmer/internal/testkit"
)

// patience is how long a test waits for what must happen before it fails.
const patience = time.Minute

var (
	blobA = "sha256:" + strings.Repeat("a", 64)
	blobB = "sha256:" + strings.Repeat("b", 64)
	shape = schedule.Shape{Size: 64 << 14, PieceSize: 16 << 10} // 64 pieces
)

// session is a peer's membership, wherever it lives.
type session interface {
	Send(event schedule.Event)
	Close()
}

// ups and downs are what a recorder hears besides actions.
type (
	up   struct{}
	down struct{ err error }
)

// recorder is a handler that remembers.
type recorder struct {
	heard chan any
}

func newRecorder() *recorder { return &recorder{heard: make(chan any, 1<<16)} }

func (r *recorder) Act(a schedule.Action) { r.heard <- a }
func (r *recorder) Up()                   { r.heard <- up{} }
func (r *recorder) Down(err error)        { r.heard <- down{err} }

// next returns what the recorder heard next, which must be a T.
func next[T any](t testing.TB, r *recorder) T {
	t.Helper()
	select {
	case got := <-r.heard:
		if v, ok := got.(T); ok {
			return v
		}
		var want T
		t.Fatalf("heard %T %+v, want a %T", got, got, want)
	case <-time.After(patience):
		var want T
		t.Fatalf("heard nothing for %v, want a %T", patience, want)
	}
	panic("not reached")
}

// world is a scheduler that listens on the loopback interface.
type world struct {
	t       testing.TB
	service *scheduler.Service
	addr    string
	served  chan error
}

// leaseLife is long enough that no lease expires because the machine is busy.
const leaseLife = time.Minute

func newWorld(t testing.TB, cfg scheduler.Config) *world {
	w := &world{t: t}
	cfg.Schedule.LeaseLife = leaseLife
	w.start(cfg, "127.0.0.1:0")
	t.Cleanup(w.stop)
	return w
}

func (w *world) start(cfg scheduler.Config, addr string) {
	w.t.Helper()
	var ln net.Listener
	// One that begins anew may find that somebody got its port meanwhile, for a while.
	testkit.Eventually(w.t, patience, "listen", func() (err error) {
		ln, err = net.Listen("tcp", addr)
		return err
	})
	s, served := scheduler.New(cfg), make(chan error, 1)
	w.service, w.addr, w.served = s, ln.Addr().String(), served
	go func() { served <- s.Serve(ln) }()
}

// stop ends the scheduler, if it has not been.
func (w *world) stop() {
	if w.service == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w.service.Close(ctx)
	if ctx.Err() != nil {
		w.t.Error("scheduler did not stop in time")
	}
	if err := <-w.served; err != nil {
		w.t.Errorf("Serve returned %v after Close, want nil", err)
	}
	w.service = nil
}

func hello(id string) scheduler.Hello {
	return scheduler.Hello{ID: schedule.PeerID(id), Hostname: "host-" + id, Addr: id + ".test:4000", Slots: 8, Version: "test"}
}

// how is a way to join.
type how func(w *world, h scheduler.Hello, r scheduler.Handler) session

// ways are all of them.
var ways = map[string]how{
	"in process": func(w *world, h scheduler.Hello, r scheduler.Handler) session {
		s, err := w.service.Connect(h, r)
		if err != nil {
			w.t.Fatal(err)
		}
		return s
	},
	"remote": func(w *world, h scheduler.Hello, r scheduler.Handler) session {
		s, err := remote.Dial(remote.Config{Addr: w.addr, Hello: h, Handler: r})
		if err != nil {
			w.t.Fatal(err)
		}
		return s
	},
}

// member is a peer that has joined.
type member struct {
	session
	*recorder
	id schedule.PeerID
}

// join has a peer join and waits until it has.
func (w *world) join(by how, h scheduler.Hello) *member {
	w.t.Helper()
	r := newRecorder()
	m := &member{by(w, h, r), r, h.ID}
	w.t.Cleanup(m.Close)
	next[up](w.t, r)
	return m
}

// rpc returns a client of the scheduler that does what it likes.
func (w *world) rpc() pb.SchedulerClient {
	w.t.Helper()
	conn, err := remote.Connect(remote.Config{Addr: w.addr})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	return pb.NewSchedulerClient(conn)
}

// peers returns who has joined, by id.
func (w *world) peers() map[string]*pb.Peer {
	w.t.Helper()
	answer, err := w.rpc().Peers(w.t.Context(), &pb.PeersRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	out := make(map[string]*pb.Peer)
	for _, p := range answer.GetPeers() {
		out[p.GetId()] = p
	}
	return out
}

func sums(first, n int) []schedule.PieceSum {
	var out []schedule.PieceSum
	for i := range n {
		out = append(out, schedule.PieceSum{Piece: first + i, Sum: sha256.Sum256([]byte{byte(first + i)})})
	}
	return out
}

func run(first, count int) []schedule.Run { return []schedule.Run{{First: first, Count: count}} }

// announce says that a peer has all of a blob, which it read from the origin.
func announce(name string) schedule.Announce {
	return schedule.Announce{Blob: name, Shape: shape, Have: run(0, 64), Sums: sums(0, 64)}
}

func want(name string, id uint64, first, count int) schedule.Want {
	return schedule.Want{Blob: name, Shape: shape, ID: id, Runs: run(first, count)}
}
