package remote

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

var blobA = "sha256:" + strings.Repeat("a", 64)

func TestResolve(t *testing.T) {
	names := map[string][]string{
		"one.test":    {"10.0.0.1"},
		"many.test":   {"10.0.0.3", "10.0.0.2", "10.0.0.1"},
		"both.test":   {"fd00::1", "10.0.0.9"},
		"six.test":    {"fd00::1", "fd00::2"},
		"localhost":   {"::1", "127.0.0.1"},
		"mapped.test": {"::ffff:10.0.0.1"},
	}
	look := func(_ context.Context, network, host string) ([]netip.Addr, error) {
		if names[host] == nil || network != "ip" {
			return nil, errors.New("no such host")
		}
		var out []netip.Addr
		for _, s := range names[host] {
			out = append(out, netip.MustParseAddr(s))
		}
		return out, nil
	}
	for _, c := range []struct {
		in, want string
		fails    error
	}{
		{"", "", nil},
		{"one.test", "10.0.0.1:8002", nil},
		{"one.test:9", "10.0.0.1:9", nil},
		{"many.test one.test", "10.0.0.1:8002 10.0.0.2:8002 10.0.0.3:8002", nil},
		{"both.test", "10.0.0.9:8002", nil},
		{"six.test", "[fd00::1]:8002 [fd00::2]:8002", nil},
		{"localhost:9", "127.0.0.1:9", nil},
		{"mapped.test", "10.0.0.1:8002", nil},
		{"10.1.1.1 10.1.1.1:8002 fd00::5 [fd00::6]:7", "10.1.1.1:8002 [fd00::5]:8002 [fd00::6]:7", nil},
		{"gone.test one.test", "10.0.0.1:8002", blob.Unavailable},
		{"one.test: one.test:x :8002 one.test:70000 many.test", "10.0.0.1:8002 10.0.0.2:8002 10.0.0.3:8002", blob.Invalid},
	} {
		got, err := resolve(t.Context(), strings.Fields(c.in), look)
		if s := strings.Join(got, " "); s != c.want || !errors.Is(err, c.fails) {
			t.Errorf("%q: got %q, error %v; want %q, %v", c.in, s, err, c.want, c.fails)
		}
	}
}

func TestDialRefusesNonsense(t *testing.T) {
	good := Config{Addr: "a:1", Hello: Hello{ID: "x", Addr: ":4000"}, Handler: deaf{}}
	for name, spoil := range map[string]func(*Config){
		"no handler": func(c *Config) { c.Handler = nil },
		"no port":    func(c *Config) { c.Addr = "a" },
		"no id":      func(c *Config) { c.Hello.ID = "" },
		"no address": func(c *Config) { c.Hello.Addr = "" },
	} {
		c := good
		spoil(&c)
		if _, err := Dial(c); !errors.Is(err, blob.Invalid) {
			t.Errorf("%s: error %v, want Invalid", name, err)
		}
	}
}

type deaf struct{}

func (deaf) Act(schedule.Action) {}
func (deaf) Up()                 {}
func (deaf) Down(error)          {}

// What is queued while a message is being sent goes together into the next
// ones, in order and in pieces of a sensible size.
func TestQueueBatches(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	q := newQueue(cancel)
	sent, step := make(chan *pb.ClientMessage), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- q.pump(ctx, func(m *pb.ClientMessage) error {
			sent <- m
			<-step
			return nil
		})
	}()
	put := func(want uint64) {
		if err := q.put(schedule.Cancel{Blob: blobA, Want: want}); err != nil {
			t.Fatal(err)
		}
	}
	put(1)
	if m := <-sent; len(m.GetEvents()) != 1 {
		t.Errorf("first message has %d events, want 1, at once", len(m.GetEvents()))
	}
	for i := range uint64(1000) {
		put(i + 2)
	}
	step <- struct{}{}
	m := <-sent
	if len(m.GetEvents()) != 1000 {
		t.Errorf("second message has %d events, want all 1000", len(m.GetEvents()))
	}
	for i, e := range m.GetEvents() {
		if got := e.GetCancel().GetWant(); got != uint64(i+2) {
			t.Fatalf("event %d is of want %d: out of order", i, got)
		}
	}
	big := schedule.Announce{Blob: blobA, Shape: schedule.Shape{Size: 1 << 30, PieceSize: 16 << 10}, Have: []schedule.Run{{First: 0, Count: 1 << 16}}}
	for i := range 1 << 16 {
		big.Sums = append(big.Sums, schedule.PieceSum{Piece: i, Sum: sha256.Sum256([]byte{byte(i)})})
	}
	for range 3 {
		if err := q.put(big); err != nil {
			t.Fatal(err)
		}
	}
	q.ask()
	for range 3 {
		step <- struct{}{}
		if m := <-sent; len(m.GetEvents()) != 1 || proto.Size(m) > 4<<20 {
			t.Errorf("message of %d bytes with %d events, want one with the largest event", proto.Size(m), len(m.GetEvents()))
		}
	}
	step <- struct{}{}
	if m := <-sent; len(m.GetEvents()) != 0 {
		t.Errorf("%d events, want the empty message", len(m.GetEvents()))
	}
	step <- struct{}{}
	cancel(nil)
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("pump ended with %v", err)
	}
}

// A scheduler that takes nothing does not make the peer's memory grow.
func TestQueueIsBounded(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	q := newQueue(cancel)
	sums := make([]schedule.PieceSum, 1<<16)
	for i := range sums {
		sums[i].Piece = i
	}
	for range maxQueue/(32<<16) + 1 {
		if err := q.put(schedule.Have{Blob: blobA, Sums: sums}); err != nil {
			t.Fatal(err)
		}
	}
	if err := context.Cause(ctx); !errors.Is(err, blob.Busy) {
		t.Errorf("stream ended with %v, want Busy", err)
	}
	if q.size > maxQueue || len(q.events) != len(q.sizes) || !slices.Contains(q.sizes, proto.Size(q.events[0])) {
		t.Errorf("%d bytes queued", q.size)
	}
}
