package gunzip

import "math/bits"

// How many bits of a code find their entry at once. Longer codes find a table
// of the rest there.
const (
	literalBits  = 11
	distanceBits = 8
	lengthBits   = 7
	maxBits      = 15
)

// An entry says what a code means. From its lowest bit on: 5 bits for how many
// bits it takes, extra bits included; 4 for how many of them are the code; 2 for
// how many literals it stands for; and flags. From bit 16 on are the literals, or
// the length or distance that the extra bits are added to.
const (
	codeAt      = 5
	literalsAt  = 9
	exceptional = 1 << 11 // one of those below, or no code at all
	subtable    = 1 << 12 // from bit 16 on: where it is; code: by how many bits
	endOfBlock  = 1 << 13
	valueAt     = 16

	oneLiteral = 1 << literalsAt
	literal    = 3 << literalsAt // any
)

// tables are the codes of a block. The sizes are powers of two that hold the
// largest there can be: 2342 and 402 entries (zlib's enough.c).
type tables struct {
	literals  [4096]uint32
	distances [512]uint32
	lengths   [1 << lengthBits]uint32
	lens      [286 + 30 + 4]uint8
}

// What symbols mean, without their codes: RFC 1951, 3.2.5.
var (
	literalResults  = makeLiterals()
	distanceResults = makeDistances()
	lengthResults   = makeLengths()
)

func makeLiterals() (out [288]uint32) {
	for i := range 256 {
		out[i] = oneLiteral | uint32(i)<<valueAt
	}
	out[256] = exceptional | endOfBlock
	base, extra := uint32(3), uint32(0)
	for i := 257; i < 285; i++ {
		if i >= 265 && (i-265)%4 == 0 {
			extra++
		}
		out[i] = base<<valueAt | extra
		base += 1 << extra
	}
	out[285] = maxMatch << valueAt
	out[286], out[287] = exceptional, exceptional
	return out
}

func makeDistances() (out [32]uint32) {
	base, extra := uint32(1), uint32(0)
	for i := range 30 {
		if i >= 4 && i%2 == 0 {
			extra++
		}
		out[i] = base<<valueAt | extra
		base += 1 << extra
	}
	out[30], out[31] = exceptional, exceptional
	return out
}

func makeLengths() (out [19]uint32) {
	for i := range out {
		out[i] = uint32(i) << valueAt
	}
	return out
}

// fixed has the codes be those of RFC 1951, 3.2.6.
func (t *tables) fixed() {
	var lens [288]uint8
	for i := range lens {
		switch {
		case i < 144:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		case i < 280:
			lens[i] = 7
		default:
			lens[i] = 8
		}
	}
	build(t.literals[:], lens[:], literalResults[:], literalBits)
	pair(&t.literals)
	for i := range 32 {
		lens[i] = 5
	}
	build(t.distances[:], lens[:32], distanceResults[:], distanceBits)
}

// build makes the table of a canonical code (RFC 1951, 3.2.2) of which the
// symbols' lengths are given; primary is by how many bits it is looked up. It
// reports whether there is such a code: with all of its space used, or with one
// symbol or none, of which other codes are exceptional then.
func build(table []uint32, lens []uint8, results []uint32, primary uint) bool {
	var count [maxBits + 1]int
	for _, l := range lens {
		count[l]++
	}
	used, longest := 0, 0
	var offsets [maxBits + 2]int
	for l := 1; l <= maxBits; l++ {
		offsets[l+1] = offsets[l] + count[l]
		used += count[l] << (maxBits - l)
		if count[l] > 0 {
			longest = l
		}
	}
	if full := 1 << maxBits; used != full && (longest > 1 || used > full) {
		return false
	} else if used != full {
		for i := range 1 << primary {
			table[i] = exceptional
		}
	}
	var sorted [288]uint16
	for s, l := range lens {
		if l > 0 {
			sorted[offsets[l]] = uint16(s)
			offsets[l]++
		}
	}
	b := builder{table: table, primary: primary, next: 1 << primary, prefix: -1}
	code, at := 0, 0
	for l := 1; l <= longest; l++ {
		for left := count[l]; left > 0; left-- {
			reversed := int(bits.Reverse16(uint16(code)) >> (16 - l))
			b.put(reversed, uint(l), results[sorted[at]], count[:], left)
			code++
			at++
		}
		code <<= 1
	}
	return true
}

// builder fills a table, shortest codes first.
type builder struct {
	table   []uint32
	primary uint
	next    int // where the next table of rests begins

	prefix int // of the table of rests that is being filled, or -1
	start  int
	bits   uint
}

// put enters a code, in the order in which it is read. left is how many of its length are
// to come, itself included.
func (b *builder) put(code int, length uint, result uint32, count []int, left int) {
	if length <= b.primary {
		e := result + uint32(length)<<codeAt + uint32(length)
		for i := code; i < 1<<b.primary; i += 1 << length {
			b.table[i] = e
		}
		return
	}
	rest := length - b.primary
	if prefix := code & (1<<b.primary - 1); prefix != b.prefix {
		// As many bits as the longest of those codes needs that begin so.
		b.prefix, b.start, b.bits = prefix, b.next, rest
		for space := left; space < 1<<b.bits; {
			b.bits++
			space = space<<1 + count[b.primary+b.bits]
		}
		b.next += 1 << b.bits
		b.table[prefix] = exceptional | subtable | uint32(b.start)<<valueAt | uint32(b.bits)<<codeAt | uint32(b.primary)
	}
	e := result + uint32(rest)<<codeAt + uint32(rest)
	for i := code >> b.primary; i < 1<<b.bits; i += 1 << rest {
		b.table[b.start+i] = e
	}
}

// pair has entries of the first table stand for two literals where two codes fit
// into its bits.
func pair(table *[4096]uint32) {
	for i := 1<<literalBits - 1; i >= 0; i-- { // what is behind a code is found further down
		first := table[i]
		if first&literal != oneLiteral {
			continue
		}
		second := table[i>>(first&31)]
		if second&literal == oneLiteral && first&31+second&31 <= literalBits {
			table[i] = 2<<literalsAt | (first>>valueAt|second>>valueAt<<8)<<valueAt | (first&31 + second&31)
		}
	}
}
