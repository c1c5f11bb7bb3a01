package scheduler_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/blob"
	"skimmer/internal/schedule"
	"skimmer/internal/scheduler"
	"skimmer/internal/scheduler/wire"
)

// Sessions behave the same, wherever they live.
func TestSessions(t *testing.T) {
	for way, by := range ways {
		t.Run(way, func(t *testing.T) {
			for name, test := range map[string]func(*testing.T, how){
				"who has it is told to who wants it": testGrant,
				"digests come later":                 testSumsLater,
				"origins reach seeds":                testOrigin,
				"nobody speaks for another":          testIdentity,
				"nonsense is not sent":               testNonsense,
				"an id has one stream":               testReplaced,
				"who leaves is forgotten":            testLeave,
				"who does not read is left behind":   testSlow,
				"the scheduler stops":                testStop,
			} {
				t.Run(name, func(t *testing.T) { test(t, by) })
			}
		})
	}
}

func testGrant(t *testing.T, by how) {
	w := newWorld(t, scheduler.Config{})
	a, b := w.join(by, hello("a")), w.join(by, hello("b"))
	a.Send(announce(blobA))
	// b's want may come before a's announcement: they are different streams.
	w.waitFor(func(s scheduler.Stats) bool { return s.Blobs == 1 })
	b.Send(want(blobA, 7, 8, 40))
	g := next[schedule.Grant](t, b.recorder)
	if g.To != "b" || g.Blob != blobA || g.Want != 7 || g.Shape != shape {
		t.Errorf("grant is %+v, want one of want 7 to b", g)
	}
	got := 0
	for _, p := range g.Parts {
		if d := cmp.Diff([]schedule.Source{{ID: "a", Addr: "a.test:4000"}}, p.Sources); d != "" {
			t.Errorf("sources (-want +got):\n%s", d)
		}
		if !p.Lease.IsZero() {
			t.Errorf("part %+v is a lease", p)
		}
		for _, r := range p.Runs {
			got += r.Count
		}
	}
	if got != 40 {
		t.Errorf("%d pieces granted, want 40", got)
	}
	if want := grouped(8, 40); len(g.Parts) == 1 {
		if d := cmp.Diff(want, g.Parts[0].Sums); d != "" {
			t.Errorf("digests (-want +got):\n%s", d)
		}
	} else {
		t.Errorf("%d parts, want 1", len(g.Parts))
	}
}

// grouped is what peers get of sums(first, n).
func grouped(first, n int) []schedule.PieceSum {
	return wire.GroupSums(sums(first, n))
}

func testSumsLater(t *testing.T, by how) {
	w := newWorld(t, scheduler.Config{})
	a, b := w.join(by, hello("a")), w.join(by, hello("b"))
	a.Send(want(blobA, 1, 0, 32))
	lease := next[schedule.Grant](t, a.recorder)
	if len(lease.Parts) != 1 || lease.Parts[0].Lease.IsZero() || time.Until(lease.Parts[0].Lease) > leaseLife {
		t.Fatalf("grant is %+v, want a lease of %v at most", lease, leaseLife)
	}
	b.Send(want(blobA, 1, 0, 32))
	relay := next[schedule.Grant](t, b.recorder)
	if len(relay.Parts) != 1 || len(relay.Parts[0].Sources) != 1 || relay.Parts[0].Sources[0].ID != "a" || len(relay.Parts[0].Sums) > 0 {
		t.Fatalf("grant is %+v, want all from a and no digests yet", relay)
	}
	a.Send(schedule.Have{Blob: blobA, Runs: run(0, 32), Sums: sums(0, 32)})
	if d := cmp.Diff(schedule.Sums{To: "b", Blob: blobA, Sums: grouped(0, 32)}, next[schedule.Sums](t, b.recorder)); d != "" {
		t.Errorf("digests (-want +got):\n%s", d)
	}
}

func testOrigin(t *testing.T, by how) {
	w := newWorld(t, scheduler.Config{})
	h := hello("seed")
	h.Seed = true
	seed, a := w.join(by, h), w.join(by, hello("a"))
	e := want(blobA, 1, 0, 4)
	e.Origin, e.Priority = "registry.test/library/python", blob.Prefetch
	a.Send(e)
	g := next[schedule.Grant](t, seed.recorder)
	if g.Want != 0 || g.Origin != e.Origin || g.Priority != e.Priority || g.Shape != shape || len(g.Parts) == 0 || g.Parts[0].Lease.IsZero() {
		t.Errorf("seed got %+v, want a lease for %s", g, e.Origin)
	}
	if g := next[schedule.Grant](t, a.recorder); len(g.Parts) == 0 || len(g.Parts[0].Sources) == 0 || g.Parts[0].Sources[0].ID != "seed" {
		t.Errorf("a got %+v, want the seed as source", g)
	}
}

func testIdentity(t *testing.T, by how) {
	w := newWorld(t, scheduler.Config{})
	a, b := w.join(by, hello("a")), w.join(by, hello("b"))
	e := want(blobA, 1, 0, 1)
	e.Peer = "b"
	a.Send(e)
	if g := next[schedule.Grant](t, a.recorder); g.To != "a" {
		t.Errorf("a was sent %+v", g)
	}
	a.Send(schedule.PeerLeft{ID: "b"})
	b.Send(want(blobB, 1, 0, 1))
	next[schedule.Grant](t, b.recorder) // it is still there, and got nothing of a's
}

func testNonsense(t *testing.T, by how) {
	w := newWorld(t, scheduler.Config{})
	a := w.join(by, hello("a"))
	a.Send(schedule.Tick{})
	a.Send(schedule.Have{Blob: "nothing", Runs: run(0, 1)})
	a.Send(want(blobA, 1, 64, 1))
	a.Send(want(blobA, 2, 0, 1))
	if g := next[schedule.Grant](t, a.recorder); g.Want != 2 {
		t.Errorf("first answer is to want %d, want 2", g.Want)
	}
	if n := w.service.Stats().Invalid; n != 0 {
		t.Errorf("scheduler got %d pieces of nonsense", n)
	}
}

func testReplaced(t *testing.T, by how) {
	w := newWorld(t, scheduler.Config{})
	first := w.join(by, hello("a"))
	first.Send(announce(blobA))
	w.waitFor(func(s scheduler.Stats) bool { return s.Blobs == 1 })
	second := w.join(by, hello("a"))
	if d := next[down](t, first.recorder); !errors.Is(d.err, blob.Canceled) {
		t.Errorf("first stream ended with %v, want Canceled", d.err)
	}
	first.Close()
	// What the older stream said is not known of the newer one. (The first may
	// have joined again before it was closed, and thrown out the second.)
	b := w.join(by, hello("b"))
	b.Send(want(blobA, 1, 0, 1))
	if g := next[schedule.Grant](t, b.recorder); g.Parts[0].Lease.IsZero() {
		t.Errorf("b got %+v, want a lease: nobody has it", g)
	}
	second.Close()
	w.waitFor(func(s scheduler.Stats) bool { return s.Peers == 1 })
}

func testLeave(t *testing.T, by how) {
	w := newWorld(t, scheduler.Config{})
	a, b := w.join(by, hello("a")), w.join(by, hello("b"))
	a.Send(announce(blobA))
	w.waitFor(func(s scheduler.Stats) bool { return s.Blobs == 1 })
	p := w.peers()
	if len(p) != 2 || p["a"].GetAddr() != "a.test:4000" || p["a"].GetHostname() != "host-a" || p["a"].GetSlots() != 8 || p["a"].GetBlobs() != 1 || p["b"].GetBlobs() != 0 {
		t.Errorf("peers are %v, want a with one blob and b", p)
	}
	a.Send(schedule.PeerLeaving{})
	a.Close()
	a.Close()
	w.waitFor(func(s scheduler.Stats) bool { return s.Peers == 1 && s.Blobs == 0 })
	b.Send(want(blobA, 1, 0, 1))
	if g := next[schedule.Grant](t, b.recorder); g.Parts[0].Lease.IsZero() {
		t.Errorf("b got %+v, want a lease: nobody has it", g)
	}
}

// stuck is a handler that takes no action until it is freed.
type stuck struct {
	*recorder
	free chan struct{}
}

func (s stuck) Act(a schedule.Action) {
	<-s.free
	s.recorder.Act(a)
}

func testSlow(t *testing.T, by how) {
	w := newWorld(t, scheduler.Config{Queue: 64 << 10})
	slow := newRecorder()
	free := make(chan struct{})
	s := by(w, hello("slow"), stuck{slow, free})
	t.Cleanup(s.Close)
	next[up](t, slow)
	// Each of these is answered: the number is in use.
	e := want(blobA, 1, 0, 1)
	for sent := int64(0); w.service.Stats().SlowPeers == 0; sent++ {
		if sent > 1<<20 {
			t.Fatal("scheduler keeps all that is not read")
		}
		s.Send(e)
		// Never far ahead of the scheduler: the queue that gets full is its.
		w.waitFor(func(s scheduler.Stats) bool { return s.SlowPeers > 0 || s.Decisions > sent-1000 })
	}
	// Others are served all the while.
	b := w.join(by, hello("b"))
	b.Send(want(blobB, 1, 0, 1))
	next[schedule.Grant](t, b.recorder)
	close(free)
	for {
		select {
		case got := <-slow.heard:
			if d, ok := got.(down); ok {
				if !errors.Is(d.err, blob.Busy) {
					t.Errorf("stream ended with %v, want Busy", d.err)
				}
				next[up](t, slow) // it comes back
				return
			}
		case <-time.After(patience):
			t.Fatal("stream did not end")
		}
	}
}

func testStop(t *testing.T, by how) {
	w := newWorld(t, scheduler.Config{})
	a := w.join(by, hello("a"))
	began := time.Now()
	w.stop()
	if d := next[down](t, a.recorder); !errors.Is(d.err, blob.Unavailable) || !strings.Contains(d.err.Error(), "stops") {
		t.Errorf("stream ended with %v, want an Unavailable one that says the scheduler stops", d.err)
	}
	if took := time.Since(began); took > patience/2 {
		t.Errorf("stopping took %v", took)
	}
	a.Send(announce(blobA)) // dropped
}

// waitFor waits until the counters are as said.
func (w *world) waitFor(ok func(scheduler.Stats) bool) {
	w.t.Helper()
	deadline := time.After(patience)
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for !ok(w.service.Stats()) {
		select {
		case <-poll.C:
		case <-deadline:
			w.t.Fatalf("counters are %+v", w.service.Stats())
		}
	}
}

// A peer outlives its scheduler, and tells the next one all it has.
func TestRestart(t *testing.T) {
	w := newWorld(t, scheduler.Config{})
	a, b := w.join(ways["remote"], hello("a")), w.join(ways["remote"], hello("b"))
	a.Send(announce(blobA))
	w.waitFor(func(s scheduler.Stats) bool { return s.Blobs == 1 })
	addr := w.addr
	w.stop()
	next[down](t, a.recorder)
	next[down](t, b.recorder)
	w.start(scheduler.Config{}, addr)
	next[up](t, a.recorder)
	next[up](t, b.recorder)
	a.Send(announce(blobA))
	w.waitFor(func(s scheduler.Stats) bool { return s.Blobs == 1 && s.Peers == 2 })
	b.Send(want(blobA, 1, 0, 64))
	g := next[schedule.Grant](t, b.recorder)
	if len(g.Parts) == 0 || len(g.Parts[0].Sources) == 0 || g.Parts[0].Sources[0].ID != "a" {
		t.Errorf("b got %+v, want a as source", g)
	}
}

// Peers inside and outside the process meet.
func TestMixed(t *testing.T) {
	w := newWorld(t, scheduler.Config{})
	a, b := w.join(ways["in process"], hello("a")), w.join(ways["remote"], hello("b"))
	b.Send(announce(blobA))
	w.waitFor(func(s scheduler.Stats) bool { return s.Blobs == 1 })
	a.Send(want(blobA, 1, 0, 16))
	g := next[schedule.Grant](t, a.recorder)
	if len(g.Parts) != 1 || g.Parts[0].Sources[0].ID != "b" {
		t.Fatalf("a got %+v, want b as source", g)
	}
	group := sha256.New()
	for _, s := range sums(0, 16) {
		group.Write(s.Sum[:])
	}
	want := []schedule.PieceSum{{Piece: 0, Group: true, Sum: schedule.Sum(group.Sum(nil))}}
	if d := cmp.Diff(want, g.Parts[0].Sums); d != "" {
		t.Errorf("digests (-want +got):\n%s", d)
	}
}

// What makes no sense ends the stream it came on, with the field's name, and no
// other.
func TestInvalidMessages(t *testing.T) {
	w := newWorld(t, scheduler.Config{})
	bystander := w.join(ways["remote"], hello("bystander"))
	good := wire.EncodeHello(hello("stranger"))
	for name, c := range map[string]struct {
		field string
		send  []*pb.ClientMessage
	}{
		"no hello":      {"hello", []*pb.ClientMessage{{}}},
		"other version": {"hello.protocol", []*pb.ClientMessage{{Hello: &pb.Hello{Protocol: 99, Id: "x", Addr: "x:1"}}}},
		"no id":         {"hello.id", []*pb.ClientMessage{wire.EncodeHello(scheduler.Hello{Addr: "a:1"})}},
		"second hello":  {"hello", []*pb.ClientMessage{good, good}},
		"no kind":       {"event.kind", []*pb.ClientMessage{good, {Events: []*pb.Event{{}}}}},
		"bad want": {"want.blob", []*pb.ClientMessage{good, {Events: []*pb.Event{
			{Kind: &pb.Event_Want{Want: &pb.Want{Blob: "x"}}}}}}},
	} {
		stream, err := w.rpc().Join(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range c.send {
			if err := stream.Send(m); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		for err == nil {
			_, err = stream.Recv() // a welcome, perhaps
		}
		if st := status.Convert(err); st.Code() != codes.InvalidArgument || !strings.Contains(st.Message(), "read "+c.field+":") {
			t.Errorf("%s: stream ended with %v, want InvalidArgument about %s", name, err, c.field)
		}
	}
	// Bytes that are no message at all.
	stream, err := w.rpc().Join(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.SendMsg(&emptypb.Empty{}); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("empty message: stream ended with %v, want InvalidArgument", err)
	}
	bystander.Send(want(blobA, 1, 0, 1))
	next[schedule.Grant](t, bystander.recorder)
	if got := w.service.Stats(); got.Invalid != 7 || got.Peers != 1 {
		t.Errorf("counters are %+v, want 7 invalid and 1 peer", got)
	}
}

func TestFull(t *testing.T) {
	w := newWorld(t, scheduler.Config{MaxPeers: 1})
	a := w.join(ways["remote"], hello("a"))
	for way, by := range ways {
		r := newRecorder()
		s := by(w, hello("b"), r)
		if d := next[down](t, r); !errors.Is(d.err, blob.Busy) {
			t.Errorf("%s: joined a full scheduler with %v, want Busy", way, d.err)
		}
		s.Close()
	}
	again := w.join(ways["in process"], hello("a")) // takes its own place
	a.Close()
	again.Close()
}

// A peer that does not know how it is reached is reached where it comes from.
func TestAddressIsFilledIn(t *testing.T) {
	w := newWorld(t, scheduler.Config{})
	for way, by := range ways {
		for _, addr := range []string{":4000", "0.0.0.0:4000", "[::]:4000"} {
			h := hello("a")
			h.Addr = addr
			m := w.join(by, h)
			if got := w.peers()["a"].GetAddr(); got != "127.0.0.1:4000" {
				t.Errorf("%s: address of one that says %q is %q, want 127.0.0.1:4000", way, addr, got)
			}
			m.Close()
			w.waitFor(func(s scheduler.Stats) bool { return s.Peers == 0 })
		}
	}
	h := hello("a")
	h.Addr = "nonsense"
	if _, err := w.service.Connect(h, newRecorder()); !errors.Is(err, blob.Invalid) {
		t.Errorf("connect with address %q: %v, want Invalid", h.Addr, err)
	}
}

func TestStatus(t *testing.T) {
	w := newWorld(t, scheduler.Config{Version: "1.2.3"})
	a, b := w.join(ways["remote"], hello("a")), w.join(ways["in process"], hello("b"))
	a.Send(announce(blobA))
	w.waitFor(func(s scheduler.Stats) bool { return s.Blobs == 1 })
	b.Send(want(blobA, 1, 0, 16))
	next[schedule.Grant](t, b.recorder)
	b.Send(want(blobB, 2, 0, 16))
	next[schedule.Grant](t, b.recorder)
	got, err := w.rpc().Status(t.Context(), &pb.StatusRequest{Blobs: []string{blobA, "unknown", blobB}})
	if err != nil {
		t.Fatal(err)
	}
	if c := got.GetCounters(); c.GetPeers() != 2 || c.GetBlobs() != 2 || c.GetGrants() != 2 || c.GetLeases() != 1 || c.GetJoins() != 2 || c.GetDecisions() < 5 || got.GetVersion() != "1.2.3" {
		t.Errorf("status is %v", got)
	}
	if len(got.GetBlobs()) != 2 {
		t.Fatalf("%d blobs, want 2", len(got.GetBlobs()))
	}
	x, y := got.GetBlobs()[0], got.GetBlobs()[1]
	if x.GetBlob() != blobA || x.GetShape().GetSize() != shape.Size || x.GetComplete() != 1 || x.GetReceiving() != 1 || x.GetLeased() != 0 || x.GetWants() != 1 {
		t.Errorf("status of the first is %v, want one that has it and one that is receiving it", x)
	}
	if y.GetComplete() != 0 || y.GetReceiving() != 1 || y.GetLeased() != 16 || y.GetWants() != 1 {
		t.Errorf("status of the second is %v, want 16 pieces leased", y)
	}
	all, err := w.rpc().Status(t.Context(), &pb.StatusRequest{})
	if err != nil || len(all.GetBlobs()) != 2 {
		t.Errorf("status of all blobs is %v, %v; want 2", all, err)
	}
	if p := w.peers(); p["a"].GetSlotsUsed() != 1 || p["a"].GetRemote() == "" || p["b"].GetRemote() != "" {
		t.Errorf("peers are %v, want a, from outside, with one slot used", p)
	}
}

// The end of the context given to Close ends what does not end by itself.
func TestCloseInAHurry(t *testing.T) {
	w := newWorld(t, scheduler.Config{})
	a := w.join(ways["remote"], hello("a"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.service.Close(ctx)
	next[down](t, a.recorder)
	if err := <-w.served; err != nil {
		t.Error(err)
	}
	w.service = nil
}
