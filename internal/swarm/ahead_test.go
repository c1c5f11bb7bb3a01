package swarm

import (
	"testing"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// asks returns how often n asked a scheduler for something.
func (n *node) asks() uint64 {
	n.swarm.mu.Lock()
	defer n.swarm.mu.Unlock()
	return n.swarm.nextWant
}

// TestSteadyReader reads a blob that a neighbour has, one small range after the other:
// most of them were granted before they are read.
func TestSteadyReader(t *testing.T) {
	const size, step = 16 << 20, 128 << 10
	for name, has := range map[string]bool{"a neighbour has it": true, "nobody has it": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, nodes := w.cluster(2, options{})
			content := blobtest.Bytes(30, size)
			ref := w.origin.add(content)
			if has {
				nodes[0].mustStream(ref, content)
				s.waitFor(1, ref)
			}
			n := nodes[1]
			b, err := n.swarm.Open(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			p := make([]byte, step)
			for off := int64(0); off < size; off += step {
				if err := blob.ReadFull(t.Context(), b, p, off); err != nil {
					t.Fatal(err)
				}
				if string(p) != string(content[off:off+step]) {
					t.Fatalf("wrong bytes at %d", off)
				}
			}
			if asked := n.asks(); asked > size/step/4 {
				t.Errorf("%d reads asked the scheduler %d times", size/step, asked)
			} else {
				t.Logf("%d reads asked the scheduler %d times", size/step, asked)
			}
			if got := w.origin.egress(ref); got > 1.001 {
				t.Errorf("%.3f of the blob left the origin", got)
			}
		})
	}
}

// TestUnsteadyReader reads here and there: nothing is fetched that is not read.
func TestUnsteadyReader(t *testing.T) {
	w := newWorld(t)
	s, nodes := w.cluster(2, options{})
	const size, step = 8 << 20, 64 << 10
	content := blobtest.Bytes(31, size)
	ref := w.origin.add(content)
	nodes[0].mustStream(ref, content)
	s.waitFor(1, ref)
	n := nodes[1]
	b, err := n.swarm.Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	p := make([]byte, step)
	read := int64(0)
	for off := int64(0); off+2*step <= size; off += 5 * step {
		for _, at := range []int64{off, off + step} { // two in a row are no course
			if err := blob.ReadFull(t.Context(), b, p, at); err != nil {
				t.Fatal(err)
			}
			read += step
		}
	}
	if got := n.swarm.Stats().PeerBytes; got != read {
		t.Errorf("%d bytes came for %d that were read", got, read)
	}
}
