package swarm

import (
	"bytes"
	"testing"

	"skimmer/internal/blob/blobtest"
)

// An upload has at once all that readers have in memory from its place on, across
// pieces and chunks: for each read both ends pay for system calls and wake-ups.
func TestRelayCopiesAll(t *testing.T) {
	const size = 10 * smallestPiece
	data := blobtest.Bytes(11, size)
	c := &content{geo: geometryOf(size), have: newSet(10)}
	c.jobs = []*job{
		{ready: map[int]chunk{0: {first: 0, count: 3, p: data[:3*smallestPiece]}}},
		{ready: map[int]chunk{3: {first: 3, count: 2, p: data[3*smallestPiece : 5*smallestPiece]}}},
	}
	const from = smallestPiece + 100
	y := &relay{u: &upload{c: c}, off: from, end: size}
	p := make([]byte, size)
	n, here := y.copied(1, p)
	if !here || !bytes.Equal(p[:n], data[from:5*smallestPiece]) || y.off != 5*smallestPiece {
		t.Errorf("got %d bytes, and goes on at %d; want those up to %d", n, y.off, 5*smallestPiece)
	}
	y.off, y.end = from, from+10
	if n, here := y.copied(1, p); n != 10 || !here {
		t.Errorf("got %d bytes of an upload of 10", n)
	}
}
