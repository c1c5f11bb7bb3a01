package gunzip

import "encoding/binary"

// blockHeader reads what kind of block comes, and its codes: RFC 1951, 3.2.3.
func (r *Reader) blockHeader() error {
	if r.final {
		r.final, r.state = false, inTrailer
		return nil
	}
	if err := r.refill(); err != nil {
		return err
	}
	r.final = r.take(1) == 1
	switch r.take(2) {
	case 0:
		return r.storedHeader()
	case 1:
		r.codes.fixed()
	case 2:
		if err := r.dynamicHeader(); err != nil {
			return err
		}
	default:
		return ErrCorrupt
	}
	r.state = inCodes
	return nil
}

// storedHeader reads the length of a block that is not compressed.
func (r *Reader) storedHeader() error {
	r.align()
	var b [4]byte
	for i := range b {
		var err error
		if b[i], err = r.next(); err != nil {
			return err
		}
	}
	n := binary.LittleEndian.Uint16(b[:])
	if n != ^binary.LittleEndian.Uint16(b[2:]) {
		return ErrCorrupt
	}
	r.stored, r.state = int(n), inStored
	return nil
}

// copyStored copies of a block that is not compressed what fits and is here.
func (r *Reader) copyStored() error {
	if r.stored == 0 {
		r.state = inBlockHeader
		return nil
	}
	if r.pos >= r.end {
		return r.fill()
	}
	room := len(r.out) - outSlack - r.w
	n := copy(r.out[r.w:r.w+min(room, r.stored)], r.in[r.pos:r.end])
	r.pos, r.w, r.stored = r.pos+n, r.w+n, r.stored-n
	return nil
}

// dynamicHeader reads a block's own codes: RFC 1951, 3.2.7.
func (r *Reader) dynamicHeader() error {
	literals, distances, lengths := int(r.take(5))+257, int(r.take(5))+1, int(r.take(4))+4
	if literals > 286 || distances > 30 {
		return ErrCorrupt
	}
	t := &r.codes
	clear(t.lens[:])
	for i := range lengths {
		if i%8 == 0 {
			if err := r.refill(); err != nil {
				return err
			}
		}
		t.lens[lengthOrder[i]] = uint8(r.take(3))
	}
	if !build(t.lengths[:], t.lens[:19], lengthResults[:], lengthBits) {
		return ErrCorrupt
	}
	if err := r.codeLengths(literals + distances); err != nil {
		return err
	}
	if t.lens[256] == 0 {
		return ErrCorrupt // the block would not end
	}
	if !build(t.literals[:], t.lens[:literals], literalResults[:], literalBits) ||
		!build(t.distances[:], t.lens[literals:literals+distances], distanceResults[:], distanceBits) {
		return ErrCorrupt
	}
	pair(&t.literals)
	return nil
}

// lengthOrder is in which order the lengths of the code of lengths come.
var lengthOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// codeLengths reads count lengths of codes.
func (r *Reader) codeLengths(count int) error {
	t := &r.codes
	for i := 0; i < count; {
		if err := r.refill(); err != nil {
			return err
		}
		e := t.lengths[r.bits&(1<<lengthBits-1)]
		if e&exceptional != 0 {
			return ErrCorrupt
		}
		r.take(uint(e & 31))
		symbol := uint8(e >> valueAt)
		if symbol < 16 {
			t.lens[i] = symbol
			i++
			continue
		}
		var value uint8
		var repeat int
		switch symbol {
		case 16:
			if i == 0 {
				return ErrCorrupt
			}
			value, repeat = t.lens[i-1], 3+int(r.take(2))
		case 17:
			repeat = 3 + int(r.take(3))
		default:
			repeat = 11 + int(r.take(7))
		}
		if i+repeat > count {
			return ErrCorrupt
		}
		for range repeat {
			t.lens[i] = value
			i++
		}
	}
	return nil
}

// decode decompresses a block until it ends, out is full, or data is needed.
func (r *Reader) decode() error {
	for r.pos+inAhead > r.end && r.ended == nil {
		if err := r.fill(); err != nil {
			return err
		}
	}
	stop := r.end - inAhead
	if r.ended != nil {
		stop = r.end + inPad - inAhead
	}
	if r.pos > stop {
		return r.ended
	}
	end, err := r.loop(stop)
	if end {
		r.state = inBlockHeader
	}
	return err
}

// loop is decode as long as there is room in out and the next byte of in is not
// behind stop: up to inAhead bytes are there then. It reports whether the block has ended. What it works
// with is in variables of its own, which stay in registers.
func (r *Reader) loop(stop int) (ended bool, err error) {
	in, out := r.in, r.out
	pos, w, base, bits, n := r.pos, r.w, r.base, r.bits, r.n
	literals, distances := &r.codes.literals, &r.codes.distances
	full := len(out) - outSlack
	for pos <= stop && w < full {
		bits |= binary.LittleEndian.Uint64(in[pos:]) << (n & 63)
		pos += int((63 - n) >> 3)
		n |= 56
		// Up to three entries for one refill: in the first table they take 11 bits.
		e := literals[bits&(1<<literalBits-1)]
		if k := e & literal; k != 0 {
			binary.LittleEndian.PutUint16(out[w:], uint16(e>>valueAt))
			w += int(k >> literalsAt)
			bits >>= e & 31
			n -= uint(e & 31)
			e = literals[bits&(1<<literalBits-1)]
			if k := e & literal; k != 0 {
				binary.LittleEndian.PutUint16(out[w:], uint16(e>>valueAt))
				w += int(k >> literalsAt)
				bits >>= e & 31
				n -= uint(e & 31)
				e = literals[bits&(1<<literalBits-1)]
				if k := e & literal; k != 0 {
					binary.LittleEndian.PutUint16(out[w:], uint16(e>>valueAt))
					w += int(k >> literalsAt)
					bits >>= e & 31
					n -= uint(e & 31)
					continue
				}
			}
		}
		if e&exceptional != 0 {
			if e&subtable != 0 {
				bits >>= literalBits
				n -= literalBits
				e = literals[(uint64(e>>valueAt)+bits&(1<<(e>>codeAt&15)-1))%uint64(len(literals))]
			}
			if e&(exceptional|endOfBlock|literal) != 0 {
				bits >>= e & 31
				n -= uint(e & 31)
				if e&literal != 0 {
					out[w] = byte(e >> valueAt)
					w++
					continue
				}
				if ended = e&endOfBlock != 0; !ended {
					err = ErrCorrupt
				}
				break
			}
		}
		length := int(e>>valueAt) + int((bits&(1<<(e&31)-1))>>(e>>codeAt&15))
		bits >>= e & 31
		n -= uint(e & 31)

		bits |= binary.LittleEndian.Uint64(in[pos:]) << (n & 63)
		pos += int((63 - n) >> 3)
		n |= 56
		d := distances[bits&(1<<distanceBits-1)]
		if d&exceptional != 0 {
			if d&subtable != 0 {
				bits >>= distanceBits
				n -= distanceBits
				d = distances[(uint64(d>>valueAt)+bits&(1<<(d>>codeAt&15)-1))%uint64(len(distances))]
			}
			if d&exceptional != 0 {
				err = ErrCorrupt
				break
			}
		}
		distance := int(d>>valueAt) + int((bits&(1<<(d&31)-1))>>(d>>codeAt&15))
		bits >>= d & 31
		n -= uint(d & 31)
		if distance > w-base {
			err = ErrCorrupt
			break
		}
		repeat(out, w, length, distance)
		w += length
	}
	r.pos, r.w, r.bits, r.n = pos, w, bits, n
	return ended, err
}

// repeat copies what is distance bytes before out[w:], to there; it may write a
// few bytes more than length.
func repeat(out []byte, w, length, distance int) {
	from, to := w-distance, w+length
	switch {
	case distance >= 8:
		for {
			binary.LittleEndian.PutUint64(out[w:], binary.LittleEndian.Uint64(out[from:]))
			w, from = w+8, from+8
			if w >= to {
				return
			}
		}
	case distance == 1:
		v := uint64(out[from]) * 0x0101010101010101
		for ; w < to; w += 8 {
			binary.LittleEndian.PutUint64(out[w:], v)
		}
	default:
		for ; w < to; w, from = w+1, from+1 {
			out[w] = out[from]
		}
	}
}
