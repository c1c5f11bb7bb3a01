package erofs

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestNameTable holds the table of names against a map, through growth and
// removals that leave gaps everywhere.
func TestNameTable(t *testing.T) {
	type child struct {
		parent nodeID
		name   string
	}
	rng := rand.New(rand.NewPCG(4, 2))
	tr := newTree(3)
	model := make(map[child]nodeID)
	for step := range 20_000 {
		c := child{nodeID(1 + rng.IntN(50)), fmt.Sprintf("name-%d", rng.IntN(40))}
		hash := tr.names.hash(c.parent, c.name)
		if got := tr.lookup(c.parent, c.name); got != model[c] {
			t.Fatalf("step %d: %v is %d, want %d", step, c, got, model[c])
		}
		if n, ok := model[c]; ok {
			tr.names.remove(hash, n)
			tr.names.remove(hash, n) // what is not there stays so
			delete(model, c)
		} else if rng.IntN(3) > 0 || step < 5000 {
			n := nodeID(len(tr.nodes))
			tr.nodes = append(tr.nodes, node{name: c.name, parent: c.parent})
			tr.names.add(hash, n)
			model[c] = n
		}
		if tr.names.used != len(model) {
			t.Fatalf("step %d: %d names, want %d", step, tr.names.used, len(model))
		}
	}
	for c, n := range model {
		if got := tr.lookup(c.parent, c.name); got != n {
			t.Errorf("%v is %d, want %d", c, got, n)
		}
	}
}
