package schedule

import "math/bits"

// bitmap is a dense set of the pieces of one blob. Blobs have them, of which
// there are few; what there is of for each member is a set.
type bitmap struct {
	words []uint64
	n     int
	count int
}

func newBitmap(n int) bitmap { return bitmap{words: make([]uint64, (n+63)/64), n: n} }

func (b *bitmap) has(p int) bool { return b.words[p/64]>>(p%64)&1 != 0 }

// put has the pieces from lo up to and not including hi in the set, or not.
func (b *bitmap) put(lo, hi int, on bool) {
	for lo < hi {
		end := min(hi, (lo/64+1)*64)
		mask := ^uint64(0) >> (64 - (end - lo)) << (lo % 64)
		word := &b.words[lo/64]
		b.count -= bits.OnesCount64(*word)
		if on {
			*word |= mask
		} else {
			*word &^= mask
		}
		b.count += bits.OnesCount64(*word)
		lo = end
	}
}

// next returns the first piece in the set from p on, or n.
func (b *bitmap) next(p int) int {
	return b.first(p, func(i int) uint64 { return b.words[i] })
}

// nextBefore returns the first piece in the set from p on, or end or more if
// there is none before end.
func (b *bitmap) nextBefore(p, end int) int {
	for i := p / 64; i*64 < end; i++ {
		word := b.words[i]
		if i == p/64 {
			word &^= 1<<(p%64) - 1
		}
		if word != 0 {
			return i*64 + bits.TrailingZeros64(word)
		}
	}
	return end
}

// gapBefore returns the first piece not in the set from p on, or end or more if
// there is none before end.
func (b *bitmap) gapBefore(p, end int) int {
	for i := p / 64; i*64 < end; i++ {
		word := ^b.words[i]
		if i == p/64 {
			word &^= 1<<(p%64) - 1
		}
		if word != 0 {
			return i*64 + bits.TrailingZeros64(word)
		}
	}
	return end
}

// gap returns the first piece not in the set from p on, or n.
func (b *bitmap) gap(p int) int {
	return b.first(p, func(i int) uint64 { return ^b.words[i] })
}

// first returns the first piece from p on whose bit is set in what word makes
// of the index of a word, or n.
func (b *bitmap) first(p int, word func(i int) uint64) int {
	if p >= b.n {
		return b.n
	}
	v := word(p/64) &^ (1<<(p%64) - 1)
	for i := p / 64; ; {
		if v != 0 {
			return min(i*64+bits.TrailingZeros64(v), b.n)
		}
		if i++; i == len(b.words) {
			return b.n
		}
		v = word(i)
	}
}
