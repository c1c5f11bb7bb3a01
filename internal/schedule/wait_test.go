package schedule

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestLine goes through lines short and long, which wants join, leave and show
// less and more in, and compares whom it meets with whom it should.
func TestLine(t *testing.T) {
	for _, size := range []int{3, 100, lineChunk * longLine, 5000} {
		chance := rand.New(rand.NewPCG(1, uint64(size)))
		tr, c := New(Options{}), &content{}
		q, waiting, met := &c.queue[2], []*want(nil), 0
		some := func() (k mask) {
			for range chance.IntN(4) {
				b := chance.IntN(blocks)
				k[b/64] |= 1 << (b % 64)
			}
			return k
		}
		for step := range 4*size + 200 {
			switch i := chance.IntN(len(waiting) + 1); {
			case len(waiting) < size && chance.IntN(3) > 0 || len(waiting) == 0:
				w := &want{}
				q.push(w)
				w.shown = some()
				q.show(w, w.shown)
				waiting = append(waiting, w)
			case i == len(waiting):
			case chance.IntN(2) == 0:
				w := waiting[i]
				w.shown = some()
				q.show(w, w.shown)
			default:
				q.remove(waiting[i])
				waiting = slices.Delete(waiting, i, i+1)
			}
			if step%(1+size/50) > 0 {
				continue
			}
			if size >= 5000 && len(waiting) > 2*lineChunk*longLine && q.index == nil {
				t.Fatalf("%d wait and there is no index", len(waiting))
			}
			seek := some()
			var got, should []*want
			tr.each(c, 2, seek, func(w *want) bool {
				got = append(got, w)
				return true
			})
			for _, w := range waiting {
				if seek == (mask{}) || w.shown.meets(seek) {
					should = append(should, w)
				}
			}
			if met += len(got); !slices.Equal(got, should) {
				t.Fatalf("of %d that wait %d were met, want %d", len(waiting), len(got), len(should))
			}
		}
		if met == 0 {
			t.Errorf("nobody of %d was ever met", size)
		}
	}
}
