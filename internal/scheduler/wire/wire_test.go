package wire

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

const me = schedule.PeerID("me")

var (
	blobA = "sha256:" + strings.Repeat("a", 64)
	blobU = "url:" + strings.Repeat("0", 64)
	shape = schedule.Shape{Size: 64<<20 - 1, PieceSize: 16 << 10} // 4096 pieces
)

// sums returns made-up digests of n pieces from first on.
func sums(first, n int) []schedule.PieceSum {
	var out []schedule.PieceSum
	for i := range n {
		out = append(out, schedule.PieceSum{Piece: first + i, Sum: sha256.Sum256([]byte{byte(first + i), byte((first + i) >> 8)})})
	}
	return out
}

func runs(pairs ...int) []schedule.Run {
	var out []schedule.Run
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, schedule.Run{First: pairs[i], Count: pairs[i+1]})
	}
	return out
}

// events are good ones, of each type, and each value of their enumerations.
func events() []schedule.Event {
	all := []schedule.Event{
		schedule.Announce{Peer: me, Blob: blobA, Shape: shape, Have: runs(0, 4096), Sums: sums(0, 4096)},
		schedule.Announce{Peer: me, Blob: blobU, Shape: schedule.Shape{Size: 1, PieceSize: 16 << 10}},
		schedule.Announce{Peer: me, Blob: "sha512:" + strings.Repeat("b", 128), Shape: shape, Have: runs(0, 1, 2, 3, 4095, 1), Sums: append(sums(2, 1), sums(4, 1)...)},
		schedule.Have{Peer: me, Blob: blobA, Runs: runs(7, 1), Sums: sums(7, 1)},
		schedule.Have{Peer: me, Blob: blobA, Runs: runs(0, MaxPieces)},
		schedule.Progress{Peer: me, Blob: blobA, Run: schedule.Run{First: 3, Count: 5}},
		schedule.Cancel{Peer: me, Blob: blobA, Want: math.MaxUint64},
		schedule.Reject{Peer: me, Blob: blobA, Runs: runs(1, 1)},
		schedule.Uploading{Peer: me, Slots: 64, Other: 3},
		schedule.PeerLeaving{ID: me},
		schedule.Fail{Peer: me, Blob: blobA, Reason: schedule.Gone},
	}
	for _, p := range []blob.Priority{blob.Demand, blob.Prefetch, blob.Background} {
		all = append(all, schedule.Want{Peer: me, Blob: blobA, Shape: shape, ID: 9, Runs: runs(1, 2), Priority: p, Origin: "registry.test/a", Window: runs(3, 9)})
	}
	for _, r := range []schedule.Reason{schedule.Busy, schedule.Slow, schedule.Gone, schedule.Corrupt, schedule.Origin} {
		all = append(all, schedule.Fail{Peer: me, Blob: blobA, Runs: runs(1, 2), Source: "other", Reason: r})
	}
	return all
}

func TestEventsRoundTrip(t *testing.T) {
	for _, want := range events() {
		m, err := EncodeEvent(From(want, "somebody"))
		if err != nil {
			t.Errorf("%+v: %v", want, err)
			continue
		}
		p, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var back pb.Event
		if err := proto.Unmarshal(p, &back); err != nil {
			t.Fatal(err)
		}
		got, err := DecodeEvent(&back, me)
		if err != nil {
			t.Errorf("%+v: %v", want, err)
		} else if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%T changed (-sent +read):\n%s", want, d)
		}
	}
	for _, e := range []schedule.Event{schedule.PeerJoined{ID: me}, schedule.PeerLeft{ID: me}, schedule.Tick{}} {
		if _, err := EncodeEvent(e); !errors.Is(err, blob.Invalid) {
			t.Errorf("encode %T: error %v, want Invalid", e, err)
		}
	}
}

func TestActionsRoundTrip(t *testing.T) {
	now := time.Now()
	for _, want := range []schedule.Action{
		schedule.Grant{To: me, Blob: blobA, Shape: shape, Want: 7, Priority: blob.Prefetch, Parts: []schedule.Part{
			{Runs: runs(0, 16, 20, 1), Sources: []schedule.Source{{ID: "a", Addr: "a:1"}, {ID: "b", Addr: "[::1]:2"}}, Sums: sums(3, 4)},
			{Runs: runs(100, 512), Lease: now.Add(1999 * time.Millisecond)},
		}},
		schedule.Grant{To: me, Blob: blobU, Shape: shape, Origin: "https://files.test/x", Parts: []schedule.Part{
			{Runs: runs(0, 1), Lease: now.Add(time.Millisecond), Sums: GroupSums(sums(0, 40))}}},
		schedule.Revoke{To: me, Blob: blobA, From: "a", Runs: runs(1, 1)},
		schedule.Revoke{To: me, Blob: blobA, Runs: runs(0, 1, 2, 1)},
		schedule.Drop{To: me, Blob: blobA, Source: "liar"},
		schedule.Forget{To: me, Blob: blobA, Runs: runs(5, 6)},
		schedule.Sums{To: me, Blob: blobA, Sums: GroupSums(sums(5, 100))},
		schedule.Parked{To: me, Blob: blobA, Want: 1, Why: schedule.WhyBusy},
		schedule.Parked{To: me, Blob: blobA, Want: 1, Why: schedule.WhyLeased},
		schedule.Parked{To: me, Blob: blobA, Want: 1, Why: schedule.WhyOrigin},
		schedule.Refused{To: me, Blob: blobA, Want: 1, Why: schedule.WhyInvalid},
		schedule.Refused{To: me, Blob: blobA, Want: 1, Why: schedule.WhyTooMany},
	} {
		m, err := EncodeAction(want, now)
		if err != nil {
			t.Errorf("%+v: %v", want, err)
			continue
		}
		got, err := DecodeAction(m, me, now)
		if err != nil {
			t.Errorf("%+v: %v", want, err)
		} else if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%T changed (-sent +read):\n%s", want, d)
		}
	}
}

// A lease that is overdue when it is sent is still one.
func TestOverdueLease(t *testing.T) {
	now := time.Now()
	part := schedule.Part{Runs: runs(0, 1), Lease: now.Add(-time.Hour)}
	m, err := EncodeAction(schedule.Grant{To: me, Blob: blobA, Shape: shape, Parts: []schedule.Part{part}}, now)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeAction(m, me, now)
	if err != nil {
		t.Fatal(err)
	}
	if lease := got.(schedule.Grant).Parts[0].Lease; lease.Sub(now) != time.Millisecond {
		t.Errorf("lease ends %v after it came, want 1ms", lease.Sub(now))
	}
}

func TestRunsAreNormalised(t *testing.T) {
	got, err := decodeRuns("runs", encodeRuns(runs(10, 5, 0, 2, 12, 8, 2, 3, 30, 1, 30, 1)))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(runs(0, 5, 10, 10, 30, 1), got); d != "" {
		t.Errorf("runs (-want +got):\n%s", d)
	}
}

func TestGroupSums(t *testing.T) {
	group := func(first int) schedule.PieceSum {
		h := sha256.New()
		for _, s := range sums(first, schedule.Group) {
			h.Write(s.Sum[:])
		}
		return schedule.PieceSum{Piece: first, Group: true, Sum: schedule.Sum(h.Sum(nil))}
	}
	for name, c := range map[string]struct{ in, want []schedule.PieceSum }{
		"none":            {nil, nil},
		"too few":         {sums(0, 15), sums(0, 15)},
		"not aligned":     {sums(1, 30), sums(1, 30)},
		"one":             {sums(16, 16), []schedule.PieceSum{group(16)}},
		"two":             {sums(0, 32), []schedule.PieceSum{group(0), group(16)}},
		"with both ends":  {sums(15, 18), append(append(sums(15, 1), group(16)), sums(32, 1)...)},
		"a gap inside":    {append(sums(0, 8), sums(9, 8)...), append(sums(0, 8), sums(9, 8)...)},
		"a gap, then one": {append(sums(3, 1), sums(32, 16)...), append(sums(3, 1), group(32))},
		"already a group": {[]schedule.PieceSum{group(0)}, []schedule.PieceSum{group(0)}},
	} {
		in := slices.Clone(c.in)
		if d := cmp.Diff(c.want, GroupSums(in)); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
		if !slices.Equal(c.in, in) {
			t.Errorf("%s: argument changed to %v", name, in)
		}
	}
}

// refusals are messages a stranger may send, by the field that is to be named.
var refusals = []struct {
	field string
	event *pb.Event
}{
	{"event.kind", &pb.Event{}},
	{"announce.blob", &pb.Event{Kind: &pb.Event_Announce{Announce: &pb.Announce{}}}},
	{"announce.blob", announce(&pb.Announce{Blob: "md5:" + strings.Repeat("a", 32)})},
	{"announce.blob", announce(&pb.Announce{Blob: "sha256:" + strings.Repeat("a", 63)})},
	{"announce.blob", announce(&pb.Announce{Blob: "sha256:" + strings.Repeat("A", 64)})},
	{"announce.blob", announce(&pb.Announce{Blob: "sha256:" + strings.Repeat("a", 1<<20)})},
	{"announce.blob", announce(&pb.Announce{Blob: "../../" + strings.Repeat("a", 64)})},
	{"announce.shape.size", announce(&pb.Announce{Blob: blobA})},
	{"announce.shape.size", announce(&pb.Announce{Blob: blobA, Shape: &pb.Shape{Size: -1, PieceSize: 1}})},
	{"announce.shape.piece_size", announce(&pb.Announce{Blob: blobA, Shape: &pb.Shape{Size: 1}})},
	{"announce.shape.piece_size", announce(&pb.Announce{Blob: blobA, Shape: &pb.Shape{Size: math.MaxInt64, PieceSize: 1}})},
	{"announce.have", announce(&pb.Announce{Blob: blobA, Shape: encodeShape(shape), Have: &pb.Runs{Pairs: []uint32{4095, 2}}})},
	{"announce.have", announce(&pb.Announce{Blob: blobA, Shape: encodeShape(shape), Have: &pb.Runs{Pairs: []uint32{math.MaxUint32, math.MaxUint32}}})},
	{"announce.have", announce(&pb.Announce{Blob: blobA, Shape: encodeShape(shape), Have: &pb.Runs{Pairs: []uint32{1}}})},
	{"announce.have", announce(&pb.Announce{Blob: blobA, Shape: encodeShape(shape), Have: &pb.Runs{Pairs: []uint32{1, 0}}})},
	{"announce.sums", announce(&pb.Announce{Blob: blobA, Shape: encodeShape(shape), Sums: []*pb.Sums{{Digests: make([]byte, 31)}}})},
	{"announce.sums", announce(&pb.Announce{Blob: blobA, Shape: encodeShape(shape), Sums: []*pb.Sums{{}}})},
	{"announce.sums", announce(&pb.Announce{Blob: blobA, Shape: encodeShape(shape), Sums: []*pb.Sums{{Level: 1, Digests: make([]byte, 32)}}})},
	{"announce.sums", announce(&pb.Announce{Blob: blobA, Shape: encodeShape(shape), Sums: []*pb.Sums{{Level: 2, Digests: make([]byte, 32)}}})},
	{"announce.sums", announce(&pb.Announce{Blob: blobA, Shape: encodeShape(shape), Sums: []*pb.Sums{{First: 4096, Digests: make([]byte, 32)}}})},
	{"announce.sums", announce(&pb.Announce{Blob: blobA, Shape: encodeShape(shape), Sums: []*pb.Sums{{First: math.MaxUint32, Digests: make([]byte, 64)}}})},
	{"announce.sums", announce(&pb.Announce{Blob: blobA, Shape: encodeShape(shape), Sums: []*pb.Sums{{Digests: make([]byte, 32*(MaxPieces+1))}}})},
	{"want.id", want(&pb.Want{Blob: blobA, Shape: encodeShape(shape), Runs: &pb.Runs{Pairs: []uint32{0, 1}}})},
	{"want.runs", want(&pb.Want{Blob: blobA, Shape: encodeShape(shape), Id: 1})},
	{"want.runs", want(&pb.Want{Blob: blobA, Shape: encodeShape(shape), Id: 1, Runs: &pb.Runs{Pairs: []uint32{4096, 1}}})},
	{"want.window", want(&pb.Want{Blob: blobA, Shape: encodeShape(shape), Id: 1, Runs: &pb.Runs{Pairs: []uint32{0, 1}}, Window: &pb.Runs{Pairs: []uint32{0, 5000}}})},
	{"want.priority", want(&pb.Want{Blob: blobA, Shape: encodeShape(shape), Id: 1, Runs: &pb.Runs{Pairs: []uint32{0, 1}}, Priority: 3})},
	{"want.priority", want(&pb.Want{Blob: blobA, Shape: encodeShape(shape), Id: 1, Runs: &pb.Runs{Pairs: []uint32{0, 1}}, Priority: -1})},
	{"want.origin", want(&pb.Want{Blob: blobA, Shape: encodeShape(shape), Id: 1, Runs: &pb.Runs{Pairs: []uint32{0, 1}}, Origin: strings.Repeat("o", maxOrigin+1)})},
	{"have.blob", &pb.Event{Kind: &pb.Event_Have{}}},
	{"have.runs", &pb.Event{Kind: &pb.Event_Have{Have: &pb.Have{Blob: blobA, Runs: &pb.Runs{Pairs: []uint32{0, MaxPieces + 1}}}}}},
	{"have.sums", &pb.Event{Kind: &pb.Event_Have{Have: &pb.Have{Blob: blobA, Sums: []*pb.Sums{{First: MaxPieces, Digests: make([]byte, 32)}}}}}},
	{"fail.reason", &pb.Event{Kind: &pb.Event_Fail{Fail: &pb.Fail{Blob: blobA}}}},
	{"fail.reason", &pb.Event{Kind: &pb.Event_Fail{Fail: &pb.Fail{Blob: blobA, Reason: 6}}}},
	{"fail.reason", &pb.Event{Kind: &pb.Event_Fail{Fail: &pb.Fail{Blob: blobA, Reason: -1}}}},
	{"fail.blob", &pb.Event{Kind: &pb.Event_Fail{Fail: &pb.Fail{Reason: 1}}}},
	{"fail.source", &pb.Event{Kind: &pb.Event_Fail{Fail: &pb.Fail{Blob: blobA, Reason: 1, Source: "a\nb"}}}},
	{"progress.run", &pb.Event{Kind: &pb.Event_Progress{Progress: &pb.Progress{Blob: blobA, First: math.MaxUint32, Count: 1}}}},
	{"progress.run", &pb.Event{Kind: &pb.Event_Progress{Progress: &pb.Progress{Blob: blobA}}}},
	{"cancel.blob", &pb.Event{Kind: &pb.Event_Cancel{Cancel: &pb.Cancel{Want: 1}}}},
	{"reject.runs", &pb.Event{Kind: &pb.Event_Reject{Reject: &pb.Reject{Blob: blobA, Runs: &pb.Runs{Pairs: []uint32{1}}}}}},
	{"uploading.slots", &pb.Event{Kind: &pb.Event_Uploading{Uploading: &pb.Uploading{Slots: math.MaxUint32}}}},
	{"uploading.slots", &pb.Event{Kind: &pb.Event_Uploading{Uploading: &pb.Uploading{Other: MaxPieces + 1}}}},
}

func announce(m *pb.Announce) *pb.Event {
	return &pb.Event{Kind: &pb.Event_Announce{Announce: m}}
}

func want(m *pb.Want) *pb.Event {
	return &pb.Event{Kind: &pb.Event_Want{Want: m}}
}

func TestNonsenseIsRefusedByName(t *testing.T) {
	for i, c := range refusals {
		e, err := DecodeEvent(c.event, me)
		if e != nil || !errors.Is(err, blob.Invalid) || !strings.HasPrefix(err.Error(), "read "+c.field+":") {
			t.Errorf("%d: got %v, error %v; want an Invalid one about %s", i, e, err, c.field)
		} else if len(err.Error()) > 500 {
			t.Errorf("%d: error has %d bytes: must not carry what was sent", i, len(err.Error()))
		}
	}
}

func TestHello(t *testing.T) {
	good := Hello{ID: "node-1", Hostname: "node", Addr: "10.0.0.1:4000", Location: schedule.Location{Zone: "z", Rack: "r"}, Seed: true, Slots: 64, Version: "1"}
	got, err := DecodeHello(EncodeHello(good))
	if err != nil || got != good {
		t.Errorf("round trip: %+v, %v; want %+v", got, err, good)
	}
	for field, spoil := range map[string]func(*pb.Hello){
		"hello.protocol":      func(h *pb.Hello) { h.Protocol = 2 },
		"hello.id":            func(h *pb.Hello) { h.Id = "" },
		"hello.id:":           func(h *pb.Hello) { h.Id = strings.Repeat("x", maxName+1) },
		"hello.hostname":      func(h *pb.Hello) { h.Hostname = "a\x1b[0m" },
		"hello.addr":          func(h *pb.Hello) { h.Addr = "host" },
		"hello.addr:":         func(h *pb.Hello) { h.Addr = "host:70000" },
		"hello.location.zone": func(h *pb.Hello) { h.Location.Zone = "\n" },
		"hello.location.rack": func(h *pb.Hello) { h.Location.Rack = "\n" },
		"hello.version":       func(h *pb.Hello) { h.Version = "\n" },
		"hello.slots":         func(h *pb.Hello) { h.Slots = math.MaxUint32 },
	} {
		m := EncodeHello(good)
		spoil(m.Hello)
		if _, err := DecodeHello(m); !errors.Is(err, blob.Invalid) || !strings.HasPrefix(err.Error(), "read "+strings.TrimSuffix(field, ":")+":") {
			t.Errorf("%s: error %v, want an Invalid one that names it", field, err)
		}
	}
	if _, err := DecodeHello(&pb.ClientMessage{}); !errors.Is(err, blob.Invalid) {
		t.Errorf("no hello: error %v, want Invalid", err)
	}
}

// Whatever a stranger sends is refused, or is an event that is the same after
// another trip.
func FuzzClientMessage(f *testing.F) {
	for _, e := range events() {
		if m, err := EncodeEvent(e); err == nil {
			p, _ := proto.Marshal(&pb.ClientMessage{Events: []*pb.Event{m}})
			f.Add(p)
		}
	}
	for _, r := range refusals {
		if p, err := proto.Marshal(&pb.ClientMessage{Events: []*pb.Event{r.event}}); err == nil && len(p) < 1<<16 {
			f.Add(p)
		}
	}
	hello, _ := proto.Marshal(EncodeHello(Hello{ID: "a", Addr: "b:1"}))
	f.Add(hello)
	f.Fuzz(func(t *testing.T, p []byte) {
		var m pb.ClientMessage
		if proto.Unmarshal(p, &m) != nil {
			return
		}
		if h, err := DecodeHello(&m); err == nil {
			if again, err := DecodeHello(EncodeHello(h)); err != nil || again != h {
				t.Errorf("hello %+v became %+v, %v", h, again, err)
			}
		}
		for _, e := range m.GetEvents() {
			event, err := DecodeEvent(e, me)
			if err != nil {
				if !errors.Is(err, blob.Invalid) {
					t.Errorf("error %v is not Invalid", err)
				}
				continue
			}
			first, err := EncodeEvent(event)
			if err != nil {
				t.Fatalf("%+v cannot be sent: %v", event, err)
			}
			again, err := DecodeEvent(first, me)
			if err != nil {
				t.Fatalf("%+v is refused after a trip: %v", event, err)
			}
			second, err := EncodeEvent(again)
			if err != nil || !sameMessage(first, second) {
				t.Errorf("%+v changed to %+v (%v)", event, again, err)
			}
		}
	})
}

func sameMessage(a, b proto.Message) bool {
	o := proto.MarshalOptions{Deterministic: true}
	p, errA := o.Marshal(a)
	q, errB := o.Marshal(b)
	return errA == nil && errB == nil && bytes.Equal(p, q)
}

// Whatever a scheduler sends is refused or has a blob, pieces that can be, and
// somebody to take them from.
func FuzzServerMessage(f *testing.F) {
	g, err := EncodeAction(schedule.Grant{To: me, Blob: blobA, Shape: shape, Want: 7, Parts: []schedule.Part{
		{Runs: runs(0, 16), Sources: []schedule.Source{{ID: "a", Addr: "a:1"}}, Sums: sums(3, 4)},
		{Runs: runs(100, 512), Lease: time.Unix(2, 0)}}}, time.Unix(1, 0))
	if err != nil {
		f.Fatal(err)
	}
	p, _ := proto.Marshal(&pb.ServerMessage{Actions: []*pb.Action{g}})
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		var m pb.ServerMessage
		if proto.Unmarshal(p, &m) != nil {
			return
		}
		for _, a := range m.GetActions() {
			action, err := DecodeAction(a, me, time.Unix(1, 0))
			if err != nil {
				if !errors.Is(err, blob.Invalid) {
					t.Errorf("error %v is not Invalid", err)
				}
				continue
			}
			if action.Target() != me {
				t.Errorf("%+v is not for the peer whose stream it came on", action)
			}
			if g, ok := action.(schedule.Grant); ok {
				for _, part := range g.Parts {
					if len(part.Runs) == 0 || checkRuns("", part.Runs, g.Shape) != nil || (len(part.Sources) == 0) == part.Lease.IsZero() {
						t.Errorf("grant with part %+v of a blob with %d pieces", part, pieces(g.Shape))
					}
				}
			}
			if _, err := EncodeAction(action, time.Unix(1, 0)); err != nil {
				t.Errorf("%+v cannot be sent: %v", action, err)
			}
		}
	})
}
