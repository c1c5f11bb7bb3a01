// Package gunzip decompresses gzip: RFC 1952 around DEFLATE, RFC 1951. A lazy
// start is bound by it where bytes come from a neighbour, so it does what a
// reader of known, whole files can do and a general one does not: symbols are
// decoded from a register of 64 bits refilled without branches, through tables
// that hold base and extra bits of lengths and distances, into one buffer that is
// window and answer at once and handed out without a copy.
package gunzip

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// ErrCorrupt is what data that is no gzip, or damaged, fails with.
var ErrCorrupt = errors.New("not valid gzip")

const (
	window = 32 << 10 // how far back a match may reach

	inSize = 64 << 10 // how many compressed bytes are read at a time
	// inBack is how many bytes before the next stay in the buffer: as many as the
	// register holds may be given back.
	inBack = 8
	// inAhead is how many bytes one turn of the loop may look ahead, and inPad how
	// many zeros stand behind the end of the data for that.
	inAhead = 32
	inPad   = 2 * inAhead

	outSize = 256 << 10 // how many bytes are handed out at a time, about
	// outSlack is how much one turn of the loop may write: six literals, the
	// longest match, and the rest of a store of eight bytes.
	outSlack = 6 + maxMatch + 8
	maxMatch = 258
)

// state is what comes next in the data.
type state int

const (
	inHeader state = iota // of a member
	inBlockHeader
	inStored
	inCodes
	inTrailer
)

// Reader decompresses one source after the other. It takes some 380 KiB and is
// meant to be used again. It is not safe for concurrent use.
type Reader struct {
	src io.Reader
	err error // what Next returns from now on

	// in[pos:end] was read and is not in the register. Behind end are zeros once
	// the source has no more; then ended is what who needs more fails with.
	in       []byte
	pos, end int
	ended    error
	bits     uint64 // the register, the next bit lowest; behind n bits it is undefined
	n        uint

	// out[base:w] is what matches may refer to.
	out     []byte
	base, w int

	state  state
	final  bool // the block is the member's last
	stored int  // how much of a stored block is to come
	crc    uint32
	size   uint32 // of the member so far
	from   int    // out[from:w] is not in crc yet

	codes tables
}

// Reset has r read gzip from src: members one after the other, as RFC 1952, 2.2
// has them. It reads nothing yet.
func (r *Reader) Reset(src io.Reader) {
	if r.in == nil {
		r.in = make([]byte, inBack+inSize+inPad)
		r.out = make([]byte, window+outSize+outSlack)
	}
	r.src, r.err = src, nil
	r.pos, r.end, r.ended = inBack, inBack, nil
	r.bits, r.n = 0, 0
	r.base, r.w, r.from, r.final = 0, 0, 0, false
	r.state = inHeader
}

// Next returns what follows, at least a byte and 256 KiB at most, about. It is valid until
// the next call, and may be read only. At the end of a member it returns what there is, and
// looks at neither its trailer nor the next one before it is called again.
//
// Errors: io.EOF at the end of the source behind a whole member,
// io.ErrUnexpectedEOF at any other; ErrCorrupt; the source's own.
func (r *Reader) Next() ([]byte, error) {
	if r.err != nil {
		return nil, r.err
	}
	r.slide()
	start := r.w
	err := r.advance()
	if r.overran() {
		err = r.ended // what was made of the zeros is nothing
		r.w = start
	}
	r.sum()
	r.err = err
	if r.w > start {
		return r.out[start:r.w], nil
	}
	return nil, r.err
}

// Slack is how much longer than the content Unpack wants its buffer, in bytes.
const Slack = outSlack + 1

// Unpack decompresses the one member at the start of src into dst and returns
// how many bytes that made. What comes behind the member does not matter. A
// member that is empty, or does not fit into all of dst but Slack bytes is an ErrCorrupt; other
// errors are those of Next.
func (r *Reader) Unpack(dst, src []byte) (n int, err error) {
	r.Reset(bytes.NewReader(src))
	own := r.out
	r.out = dst
	defer func() { r.src, r.out, r.err = nil, own, io.EOF }()
	err = r.advance()
	switch {
	case r.overran():
		return 0, r.ended
	case err != nil:
		return 0, err
	case r.state != inTrailer:
		return 0, ErrCorrupt // it is too long
	}
	r.sum()
	return r.w, r.trailer()
}

// slide makes room in out.
func (r *Reader) slide() {
	keep := min(window, r.w-r.base)
	copy(r.out, r.out[r.w-keep:r.w])
	r.base, r.w, r.from = 0, keep, keep
}

// sum counts what was decompressed.
func (r *Reader) sum() {
	r.crc = crc32.Update(r.crc, crc32.IEEETable, r.out[r.from:r.w])
	r.size += uint32(r.w - r.from)
	r.from = r.w
}

// advance decompresses until out is full or a member ends.
func (r *Reader) advance() (err error) {
	start := r.w
	for r.w < len(r.out)-outSlack && err == nil {
		switch r.state {
		case inHeader:
			err = r.header()
		case inBlockHeader:
			err = r.blockHeader()
		case inStored:
			err = r.copyStored()
		case inCodes:
			err = r.decode()
		case inTrailer:
			if r.w > start {
				return nil
			}
			err = r.trailer()
		}
	}
	return err
}

// fill reads more of the source, or puts zeros behind its end.
func (r *Reader) fill() error {
	if r.ended != nil {
		return r.ended
	}
	if from := r.pos - inBack; from > 0 {
		copy(r.in, r.in[from:r.end])
		r.pos, r.end = inBack, r.end-from
	}
	n, err := io.ReadAtLeast(r.src, r.in[r.end:len(r.in)-inPad], 1)
	r.end += n
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		// Not an error yet: what is here may be enough.
		r.ended = err
		clear(r.in[r.end : r.end+inPad])
	}
	return nil
}

// overran reports whether bits were used that the source does not have.
func (r *Reader) overran() bool { return r.ended != nil && r.pos-int(r.n/8) > r.end }

// refill has at least 56 bits in the register; those behind the end are zeros.
func (r *Reader) refill() error {
	for r.pos+8 > r.end && r.ended == nil {
		if err := r.fill(); err != nil {
			return err
		}
	}
	if r.pos > r.end+inAhead {
		return r.ended
	}
	r.bits |= binary.LittleEndian.Uint64(r.in[r.pos:]) << (r.n & 63)
	r.pos += int((63 - r.n) >> 3)
	r.n |= 56
	return nil
}

// take returns the next count bits, of those that refill has provided.
func (r *Reader) take(count uint) uint32 {
	v := uint32(r.bits & (1<<count - 1))
	r.bits >>= count
	r.n -= count
	return v
}

// align gives what is left of the register back, but for the rest of a byte.
func (r *Reader) align() {
	r.pos -= int(r.n / 8)
	r.bits, r.n = 0, 0
}

// next returns the next byte. The register is empty.
func (r *Reader) next() (byte, error) {
	for r.pos >= r.end {
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	b := r.in[r.pos]
	r.pos++
	return b, nil
}

// Flags of a member's header: RFC 1952, 2.3.1.
const (
	flagHeaderCRC = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
)

// headerReader reads a member's header and sums it up.
type headerReader struct {
	r   *Reader
	crc uint32
	err error
}

func (h *headerReader) byte() byte {
	if h.err != nil {
		return 0
	}
	var b [1]byte
	b[0], h.err = h.r.next()
	h.crc = crc32.Update(h.crc, crc32.IEEETable, b[:])
	return b[0]
}

func (h *headerReader) uint16() int { return int(h.byte()) | int(h.byte())<<8 }

func (h *headerReader) skip(n int) {
	for ; n > 0 && h.err == nil; n-- {
		h.byte()
	}
}

// maxString bounds a name or comment in a header, as compress/gzip does.
const maxString = 512

func (h *headerReader) string() {
	for range maxString {
		if h.byte() == 0 {
			return
		}
	}
	if h.err == nil {
		h.err = ErrCorrupt
	}
}

// header reads a member's header.
func (r *Reader) header() error {
	switch _, err := r.next(); {
	case err == io.ErrUnexpectedEOF:
		return io.EOF
	case err != nil:
		return err
	}
	r.pos-- // to be read with the rest
	h := &headerReader{r: r}
	magic, method, flags := h.uint16(), h.byte(), h.byte()
	if h.err == nil && (magic != 0x8b1f || method != 8) {
		return ErrCorrupt
	}
	h.skip(6) // time, extra flags, system
	if flags&flagExtra != 0 {
		h.skip(h.uint16())
	}
	if flags&flagName != 0 {
		h.string()
	}
	if flags&flagComment != 0 {
		h.string()
	}
	if sum := int(h.crc & 0xffff); flags&flagHeaderCRC != 0 && h.uint16() != sum && h.err == nil {
		return ErrCorrupt
	}
	r.state, r.base, r.from = inBlockHeader, r.w, r.w
	r.crc, r.size = 0, 0
	return h.err
}

// trailer compares a member with what it says of itself.
func (r *Reader) trailer() error {
	r.align()
	var b [8]byte
	for i := range b {
		var err error
		if b[i], err = r.next(); err != nil {
			return err
		}
	}
	if binary.LittleEndian.Uint32(b[:4]) != r.crc || binary.LittleEndian.Uint32(b[4:]) != r.size {
		return ErrCorrupt
	}
	r.state = inHeader
	return nil
}
