package swarm

import (
	"math/bits"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

const (
	// smallestPiece is the size of pieces in bytes; it is doubled until a blob
	// has at most maxPieces. All peers do the same, so a piece of a blob means
	// the same everywhere.
	smallestPiece = 16 << 10
	maxPieces     = 1 << 16
)

// geometry is how a blob is cut into pieces.
type geometry struct {
	size, piece int64
	n           int
}

func geometryOf(size int64) geometry {
	g := geometry{size: size, piece: smallestPiece}
	for (size+g.piece-1)/g.piece > maxPieces {
		g.piece *= 2
	}
	g.n = int((size + g.piece - 1) / g.piece)
	return g
}

func (g geometry) shape() schedule.Shape { return schedule.Shape{Size: g.size, PieceSize: g.piece} }

// start returns the offset of piece p, or the blob's size behind the last.
func (g geometry) start(p int) int64 { return min(int64(p)*g.piece, g.size) }

// at returns the piece that has the byte at off.
func (g geometry) at(off int64) int { return int(off / g.piece) }

// bytes returns the bytes of a run.
func (g geometry) bytes(r schedule.Run) blob.Range {
	off := g.start(r.First)
	return blob.Range{Off: off, Len: g.start(r.End()) - off}
}

// around returns the pieces that bytes of r, which is not empty, are in.
func (g geometry) around(r blob.Range) schedule.Run {
	first := g.at(r.Off)
	return schedule.Run{First: first, Count: g.at(r.End()-1) + 1 - first}
}

// within returns the pieces that are in r whole; none if Count is 0.
func (g geometry) within(r blob.Range) schedule.Run {
	first := int((r.Off + g.piece - 1) / g.piece)
	end := int(r.End() / g.piece)
	if r.End() == g.size {
		end = g.n
	}
	return schedule.Run{First: first, Count: max(end-first, 0)}
}

// set is a set of the pieces of one blob. It is not copied.
type set struct {
	n     int // pieces of the blob
	count int // of them in the set
	bits  []uint64
}

func newSet(n int) *set { return &set{n: n, bits: make([]uint64, (n+63)/64)} }

func (s *set) has(p int) bool { return s.bits[p/64]>>(p%64)&1 != 0 }

// put adds the pieces from lo up to and not including hi, or takes them out.
func (s *set) put(lo, hi int, in bool) {
	for lo < hi {
		end := min(hi, (lo/64+1)*64)
		mask := ^uint64(0) >> (64 - (end - lo)) << (lo % 64)
		word := &s.bits[lo/64]
		s.count -= bits.OnesCount64(*word)
		if in {
			*word |= mask
		} else {
			*word &^= mask
		}
		s.count += bits.OnesCount64(*word)
		lo = end
	}
}

func (s *set) add(r schedule.Run)    { s.put(r.First, r.End(), true) }
func (s *set) remove(r schedule.Run) { s.put(r.First, r.End(), false) }

// next returns the first piece from p on, up to and not including end, that is
// in the set, or is not, or end.
func (s *set) next(p, end int, in bool) int {
	flip := uint64(0)
	if !in {
		flip = ^uint64(0)
	}
	for ; p < end; p = (p/64 + 1) * 64 {
		if w := (s.bits[p/64] ^ flip) >> (p % 64); w != 0 {
			return min(p+bits.TrailingZeros64(w), end)
		}
	}
	return end
}

// both returns the first piece from p on, up to and not including end, that is
// in a and in b, or end.
func both(a, b *set, p, end int) int {
	for ; p < end; p = (p/64 + 1) * 64 {
		if w := (a.bits[p/64] & b.bits[p/64]) >> (p % 64); w != 0 {
			return min(p+bits.TrailingZeros64(w), end)
		}
	}
	return end
}

// empty reports whether nothing is in the set.
func (s *set) empty() bool { return s.count == 0 }

// runs returns what of r is in the set, in order.
func (s *set) runs(r schedule.Run) (out []schedule.Run) {
	end := min(r.End(), s.n)
	for p := s.next(r.First, end, true); p < end; {
		q := s.next(p, end, false)
		out = append(out, schedule.Run{First: p, Count: q - p})
		p = s.next(q, end, true)
	}
	return out
}

// all is every piece.
func (s *set) all() schedule.Run { return schedule.Run{Count: s.n} }
