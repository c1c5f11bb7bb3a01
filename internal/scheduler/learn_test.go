package scheduler

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"skimmer/internal/schedule"
)

func TestWithout(t *testing.T) {
	runs := []schedule.Run{{First: 0, Count: 10}, {First: 20, Count: 10}}
	have := []schedule.Run{{First: 3, Count: 2}, {First: 8, Count: 14}, {First: 29, Count: 5}}
	want := []schedule.Run{{First: 0, Count: 3}, {First: 5, Count: 3}, {First: 22, Count: 7}}
	if got := without(runs, have); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := without(runs, []schedule.Run{{First: 0, Count: 30}}); len(got) != 0 {
		t.Errorf("got %v, want nothing", got)
	}
}

// TestLearnsBeforeDeciding has peers come back to a new scheduler: it decides
// nothing before all have had time to say what they have.
func TestLearnsBeforeDeciding(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		defer s.Close(t.Context())
		shape := schedule.Shape{Size: 1 << 20, PieceSize: 16 << 10}
		blob := "sha256:" + strings.Repeat("a", 64)
		a, b := &told{}, &told{}
		connect := func(id schedule.PeerID, r *told) *Session {
			x, err := s.Connect(Hello{ID: id, Hostname: "h", Addr: "127.0.0.1:1", Slots: 4, Again: true}, r)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			return x
		}
		x := connect("a", a)
		defer x.Close()
		x.Send(schedule.Want{Blob: blob, Shape: shape, ID: 1, Runs: []schedule.Run{{First: 0, Count: 4}}})
		y := connect("b", b)
		defer y.Close()
		y.Send(schedule.Announce{Blob: blob, Shape: shape, Have: []schedule.Run{{First: 0, Count: 4}}, Sums: []schedule.PieceSum{{Piece: 0}, {Piece: 1}, {Piece: 2}, {Piece: 3}}})
		synctest.Wait()
		if n := len(a.all()); n != 0 {
			t.Fatalf("it decided at once: %v", a.all())
		}
		time.Sleep(learnFor + 2*tick)
		synctest.Wait()
		got := a.all()
		if len(got) != 1 {
			t.Fatalf("got %v, want one grant", got)
		}
		if g, ok := got[0].(schedule.Grant); !ok || len(g.Parts) != 1 || len(g.Parts[0].Sources) != 1 || g.Parts[0].Sources[0].ID != "b" {
			t.Errorf("got %v, want a grant from b", got[0])
		}
	})
}

// told is a handler that remembers what it was told.
type told struct {
	mu      sync.Mutex
	actions []schedule.Action
}

func (r *told) Act(a schedule.Action) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.actions = append(r.actions, a)
}

func (r *told) Up()        {}
func (r *told) Down(error) {}

func (r *told) all() []schedule.Action {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.actions)
}
