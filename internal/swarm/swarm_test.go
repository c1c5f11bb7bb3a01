package swarm

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"testing"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

func TestConforms(t *testing.T) {
	for name, run := range map[string]func(*testing.T, blobtest.Open){"one": blobtest.Run, "several": blobtest.RunSeveral} {
		t.Run(name, func(t *testing.T) {
			run(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
				w := newWorld(t)
				_, nodes := w.cluster(1, options{})
				var refs []blob.Ref
				for _, p := range contents {
					refs = append(refs, w.origin.add(p))
				}
				return nodes[0].swarm, refs
			})
		})
	}
}

func TestConformsWithoutScheduler(t *testing.T) {
	blobtest.Run(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
		w := newWorld(t)
		var refs []blob.Ref
		for _, p := range contents {
			refs = append(refs, w.origin.add(p))
		}
		return w.node("alone", options{}).swarm, refs
	})
}

func TestConformsOverPeer(t *testing.T) {
	blobtest.Run(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
		w := newWorld(t)
		_, nodes := w.cluster(2, options{})
		var refs []blob.Ref
		for _, p := range contents {
			ref := w.origin.add(p)
			refs = append(refs, ref)
			if len(p) > 0 {
				nodes[0].mustRead(ref, p, blob.Range{Len: ref.Size})
			}
		}
		return nodes[1].swarm, refs
	})
}

// TestNeighbourServes reads on one node what another has, at any size and
// alignment: not one byte more leaves the origin.
func TestNeighbourServes(t *testing.T) {
	w := newWorld(t)
	s, nodes := w.cluster(2, options{})
	content := blobtest.Bytes(1, 3<<20+777)
	ref := w.origin.add(content)
	nodes[0].mustRead(ref, content, blob.Range{Len: ref.Size})
	s.waitFor(1, ref)
	if got := w.origin.egress(ref); got > 1.001 {
		t.Fatalf("%.3f of the blob left the origin at first", got)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 100 {
		off := rng.Int64N(ref.Size - 1)
		nodes[1].mustRead(ref, content, blob.Range{Off: off, Len: 1 + rng.Int64N(min(ref.Size-off, 100_000))})
	}
	if got := w.origin.egress(ref); got > 1.001 {
		t.Errorf("%.3f of the blob left the origin", got)
	}
	if s := nodes[1].swarm.Stats(); s.OriginBytes != 0 || s.PeerBytes == 0 {
		t.Errorf("the second node read %d bytes from the origin and %d from its neighbour", s.OriginBytes, s.PeerBytes)
	}
}

// TestManyStream has nodes download the same blob at once.
func TestManyStream(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		name  string
		seeds int
		size  int
	}{{"without seeds", 0, 24 << 20}, {"with seeds", 2, 24<<20 + 5}} {
		t.Run(c.name, func(t *testing.T) {
			w.t = t
			s, nodes := w.cluster(8, options{})
			for i := range c.seeds {
				s.join(w.node([]string{"seed0", "seed1"}[i], options{seed: true}))
			}
			content := blobtest.Bytes(uint64(c.size), c.size)
			ref := w.origin.add(content)
			var wg sync.WaitGroup
			for _, n := range nodes {
				wg.Go(func() { n.mustStream(ref, content) })
			}
			wg.Wait()
			if got := w.origin.egress(ref); got > once(ref, nodes) {
				t.Errorf("%.3f of the blob left the origin", got)
				for _, n := range nodes {
					t.Logf("%s: %+v", n.id, n.swarm.Stats())
				}
			}
			var served int64
			for _, n := range nodes {
				served += n.server.Stats().Bytes
			}
			if served == 0 {
				t.Error("no node served another")
			}
		})
	}
}

// TestConcurrentReaders has everybody read the same few ranges at once: each
// byte leaves the origin once.
func TestConcurrentReaders(t *testing.T) {
	w := newWorld(t)
	_, nodes := w.cluster(4, options{})
	content := blobtest.Bytes(7, 8<<20)
	ref := w.origin.add(content)
	var wg sync.WaitGroup
	for _, n := range nodes {
		for i := range 16 {
			wg.Go(func() {
				off := int64(i%8)*1_000_000 + int64(i)*100
				r := blob.Range{Off: off, Len: 30_000}
				if p, err := n.read(ref, r); err != nil || !bytes.Equal(p, content[r.Off:r.End()]) {
					t.Errorf("%s reads %v: %v", n.id, r, err)
				}
			})
		}
	}
	wg.Wait()
	w.origin.mu.Lock()
	defer w.origin.mu.Unlock()
	for i, n := range w.origin.left[ref.Digest.String()] {
		if n > 1 {
			t.Fatalf("block %d left the origin %d times", i, n)
		}
	}
}

// TestFifty has fifty nodes read one blob at once, whole and in parts, some of
// them leaving and others coming in the middle.
func TestFifty(t *testing.T) {
	w := newWorld(t)
	s, nodes := w.cluster(50, options{})
	content := blobtest.Bytes(50, 4<<20)
	ref := w.origin.add(content)
	var wg sync.WaitGroup
	for i, n := range nodes {
		rng := rand.New(rand.NewPCG(50, uint64(i)))
		wg.Go(func() {
			if i%2 == 0 {
				n.mustStream(ref, content)
				return
			}
			for range 8 {
				off := rng.Int64N(ref.Size - 100_000)
				r := blob.Range{Off: off, Len: 1 + rng.Int64N(100_000)}
				if p, err := n.read(ref, r); err != nil || !bytes.Equal(p, content[r.Off:r.End()]) {
					t.Errorf("%s reads %v: %v", n.id, r, err)
				}
			}
			if i%10 == 1 {
				n.close()
			}
		})
	}
	late := w.node("late", options{})
	s.join(late)
	late.mustStream(ref, content)
	wg.Wait()
	// What only a node that left had is read again.
	if got := w.origin.egress(ref); got > 1.25 {
		t.Errorf("%.3f of the blob left the origin", got)
	}
}
