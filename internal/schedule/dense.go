package schedule

import "math/bits"

// chunkBits is how many pieces a chunk is of. In a blob of 1 GiB that is what is
// sent at a time where nobody is blocked: its chunks are full or empty, and take
// no memory beyond a bit.
const chunkBits = 256

// chunk is a bit for each of its pieces.
type chunk [chunkBits / 64]uint64

// bitsOf is a bit for each chunk of a blob.
type bitsOf [maxPieces / chunkBits / 64]uint64

func (b *bitsOf) has(c int) bool { return b[c/64]>>(c%64)&1 != 0 }

func (b *bitsOf) put(c int, on bool) {
	if on {
		b[c/64] |= 1 << (c % 64)
	} else {
		b[c/64] &^= 1 << (c % 64)
	}
}

// dense is a set of pieces with a chunk for each stretch of them of which some
// are in it and some are not. What is asked about one piece is answered from two
// lines of the cache.
type dense struct {
	chunks      []chunk // of the mixed ones, in order
	mixed, full bitsOf
	_           [5]uint64 // so that it begins with a line of the cache
}

func (d *dense) has(p int) bool {
	c := p / chunkBits
	if !d.mixed.has(c) {
		return d.full.has(c)
	}
	return d.chunks[d.at(c)][p/64%len(chunk{})]>>(p%64)&1 != 0
}

// at returns the index in d.chunks of a mixed chunk.
func (d *dense) at(c int) int {
	i := bits.OnesCount64(d.mixed[c/64] & (1<<(c%64) - 1))
	for _, word := range d.mixed[:c/64] {
		i += bits.OnesCount64(word)
	}
	return i
}

// scan returns the first piece from p on whose bit is set after flipping, or n
// or more.
func (d *dense) scan(p int, flip uint64, n int) int {
	for p < n {
		c := p / chunkBits
		if d.mixed.has(c) {
			k := &d.chunks[d.at(c)]
			w := p / 64 % len(k)
			for word := (k[w] ^ flip) &^ (1<<(p%64) - 1); ; word = k[w] ^ flip {
				if word != 0 {
					return c*chunkBits + w*64 + bits.TrailingZeros64(word)
				}
				if w++; w == len(k) {
					break
				}
			}
		} else if d.full.has(c) == (flip == 0) {
			return p
		}
		p = d.nextChunk(c+1, flip) * chunkBits
	}
	return n
}

// nextChunk returns the first chunk from c on that may have a piece whose bit is
// set after flipping.
func (d *dense) nextChunk(c int, flip uint64) int {
	for i := c / 64; i < len(d.full); i++ {
		word := ^d.full[i]
		if flip == 0 {
			word = d.full[i] | d.mixed[i]
		}
		if i == c/64 {
			word &^= 1<<(c%64) - 1
		}
		if word != 0 {
			return i*64 + bits.TrailingZeros64(word)
		}
	}
	return len(d.full) * 64
}

// common returns the first piece from p on and before end that is in both sets,
// or end or more.
func (d *dense) common(o *dense, p, end int) int {
	first := p / chunkBits
	for i := first / 64; i*64*chunkBits < end; i++ {
		some := (d.full[i] | d.mixed[i]) & (o.full[i] | o.mixed[i])
		if i == first/64 {
			some &^= 1<<(first%64) - 1
		}
		for ; some != 0; some &= some - 1 {
			c := i*64 + bits.TrailingZeros64(some)
			p = max(p, c*chunkBits)
			if p >= end {
				return end
			}
			if some&-some&d.full[i]&o.full[i] != 0 {
				return p
			}
			if q := d.commonIn(o, c, p%chunkBits); q < chunkBits {
				return c*chunkBits + q
			}
		}
	}
	return end
}

// commonIn returns the place in a chunk, from p on, of the first piece that is in
// both sets, of which both have some and not both have all, or chunkBits.
func (d *dense) commonIn(o *dense, c, p int) int {
	var k chunk
	switch {
	case d.full.has(c):
		k = o.chunks[o.at(c)]
	case o.full.has(c):
		k = d.chunks[d.at(c)]
	default:
		a, b := &d.chunks[d.at(c)], &o.chunks[o.at(c)]
		for w := range k {
			k[w] = a[w] & b[w]
		}
	}
	w := p / 64
	for word := k[w] &^ (1<<(p%64) - 1); ; word = k[w] {
		if word != 0 {
			return w*64 + bits.TrailingZeros64(word)
		}
		if w++; w == len(k) {
			return chunkBits
		}
	}
}

// put has the pieces from lo up to and not including hi in the set, or not, and
// returns by how many it grew.
func (d *dense) put(lo, hi int, on bool, n int) (grown int) {
	for end := 0; lo < hi; lo = end {
		c := lo / chunkBits
		end = min(hi, (c+1)*chunkBits)
		mixed, full := d.mixed.has(c), d.full.has(c)
		if !mixed && full == on {
			continue
		}
		size := min(chunkBits, n-c*chunkBits)
		had := 0
		switch {
		case full:
			had = size
		case mixed:
			had = d.chunks[d.at(c)].count()
		}
		has := 0
		switch {
		case end-lo < size:
			if !mixed {
				d.mix(c, full, size)
			}
			k := &d.chunks[d.at(c)]
			k.put(lo%chunkBits, (end-1)%chunkBits+1, on)
			has = k.count()
		case on:
			has = size
		}
		grown += has - had
		if has == 0 || has == size {
			if d.mixed.has(c) {
				i := d.at(c)
				d.chunks = append(d.chunks[:i], d.chunks[i+1:]...)
				d.mixed.put(c, false)
			}
			d.full.put(c, has == size)
		}
	}
	return grown
}

// mix has a chunk that is full or empty be a mixed one, all the same.
func (d *dense) mix(c int, full bool, size int) {
	i := d.at(c)
	d.chunks = append(d.chunks, chunk{})
	copy(d.chunks[i+1:], d.chunks[i:])
	d.chunks[i] = chunk{}
	if full {
		d.chunks[i].put(0, size, true)
	}
	d.full.put(c, false)
	d.mixed.put(c, true)
}

func (k *chunk) count() int {
	return bits.OnesCount64(k[0]) + bits.OnesCount64(k[1]) + bits.OnesCount64(k[2]) + bits.OnesCount64(k[3])
}

func (k *chunk) put(lo, hi int, on bool) {
	for lo < hi {
		end := min(hi, (lo/64+1)*64)
		mask := ^uint64(0) >> (64 - (end - lo)) << (lo % 64)
		if on {
			k[lo/64] |= mask
		} else {
			k[lo/64] &^= mask
		}
		lo = end
	}
}
