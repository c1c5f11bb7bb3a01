package schedule

import "math/bits"

// blocks is into how many stretches of equal length a blob is divided at most
// to see at a glance who cannot be of use to whom.
const blocks = 256

// mask says in which blocks of a blob a set has pieces.
type mask [blocks / 64]uint64

// maskOf returns the blocks of c in which s has pieces.
func (c *content) maskOf(s *set) (k mask) {
	s.each(func(lo, hi int) {
		for b := lo / c.grain; b <= (hi-1)/c.grain; b++ {
			k[b/64] |= 1 << (b % 64)
		}
	})
	return k
}

// maskWithin returns the blocks of c that have pieces of in.
func (c *content) maskWithin(in span) (k mask) {
	if in == c.everything() {
		return mask{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}
	}
	for b := int(in.lo) / c.grain; b <= (int(in.hi)-1)/c.grain; b++ {
		k[b/64] |= 1 << (b % 64)
	}
	return k
}

// update has k right again after changes of s between lo and hi.
func (c *content) update(k *mask, s *set, lo, hi int) {
	for b := lo / c.grain; b <= (hi-1)/c.grain; b++ {
		if s.next(b*c.grain) < min((b+1)*c.grain, c.n) {
			k[b/64] |= 1 << (b % 64)
		} else {
			k[b/64] &^= 1 << (b % 64)
		}
	}
}

// lack takes pieces out of what w needs.
func (w *want) lack(pieces *set) {
	w.need.removeSet(pieces)
	w.mark(pieces)
}

// mark has w.mask right again after changes of need where pieces are.
func (w *want) mark(pieces *set) {
	pieces.each(func(lo, hi int) { w.m.c.update(&w.mask, &w.need, lo, hi) })
}

func (k mask) meets(o mask) bool {
	return k[0]&o[0]|k[1]&o[1]|k[2]&o[2]|k[3]&o[3] != 0
}

func (k mask) and(o mask) mask {
	for i := range k {
		k[i] &= o[i]
	}
	return k
}

func (k mask) or(o mask) mask {
	for i := range k {
		k[i] |= o[i]
	}
	return k
}

// tally counts, per block, of how many masks it is part.
type tally struct {
	counts [blocks]uint32
	some   mask // where counts is not 0
}

// change has the tally count now in place of what it counted until now.
func (y *tally) change(was *mask, now mask) {
	for i := range now {
		for diff := now[i] ^ was[i]; diff != 0; diff &= diff - 1 {
			bit := diff & -diff
			b := i*64 + bits.TrailingZeros64(diff)
			if now[i]&bit != 0 {
				y.counts[b]++
				y.some[i] |= bit
				continue
			}
			if y.counts[b]--; y.counts[b] == 0 {
				y.some[i] &^= bit
			}
		}
	}
	*was = now
}
