package store

import (
	"encoding/binary"
	"hash/crc32"
)

// The journal of a blob ("pieces" in its folder) is a sequence of records of
// 16 bytes, only ever appended to:
//
//	byte  0      kind: 1 piece, 2 dropped, 3 checkpoint, 4 complete, 5 reset
//	bytes 1–3    zero
//	bytes 4–7    piece index; for a checkpoint, a number of records; else zero
//	bytes 8–11   CRC32C of the piece; else zero
//	bytes 12–15  CRC32C of bytes 0–11
//
// All numbers are little-endian. A piece record is written after the bytes it
// speaks of. A checkpoint with number n says that the data of the first n
// records was made durable before it; whatever follows the last checkpoint is
// believed only after its CRC was compared. A record that does not check ends
// the journal: what a torn write left behind it was never promised.
const recordSize = 16

type recordKind uint8

const (
	recPiece recordKind = iota + 1
	recDropped
	recCheckpoint
	recComplete
	recReset
)

type record struct {
	kind  recordKind
	index uint32
	crc   uint32
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// encode appends the record to p.
func (r record) encode(p []byte) []byte {
	at := len(p)
	p = append(p, byte(r.kind), 0, 0, 0)
	p = binary.LittleEndian.AppendUint32(p, r.index)
	p = binary.LittleEndian.AppendUint32(p, r.crc)
	return binary.LittleEndian.AppendUint32(p, checksum(p[at:]))
}

// decodeRecord returns the record in p, and false if p, which has recordSize
// bytes, is not one.
func decodeRecord(p []byte) (record, bool) {
	r := record{
		kind:  recordKind(p[0]),
		index: binary.LittleEndian.Uint32(p[4:]),
		crc:   binary.LittleEndian.Uint32(p[8:]),
	}
	ok := r.kind >= recPiece && r.kind <= recReset &&
		p[1]|p[2]|p[3] == 0 &&
		binary.LittleEndian.Uint32(p[12:]) == checksum(p[:12])
	return r, ok
}

// pieces is what a journal says about its blob.
type pieces struct {
	present  bitmap
	crcs     []uint32 // meaningful where present
	complete bool     // the digest was right, and no piece was dropped since
	records  uint32   // in the journal
	covered  uint32   // how many of them the last checkpoint vouches for
}

func newPieces(n int) pieces {
	return pieces{present: newBitmap(n), crcs: make([]uint32, n)}
}

// apply folds the next record in. It returns false for a record that cannot
// be, which ends the journal as a damaged one does.
func (s *pieces) apply(r record) bool {
	i := int(r.index)
	switch r.kind {
	case recPiece, recDropped:
		if r.index >= uint32(len(s.crcs)) {
			return false
		}
		s.complete = false
		if r.kind == recPiece {
			s.present.set(i)
			s.crcs[i] = r.crc
		} else {
			s.present.unset(i)
		}
	case recCheckpoint:
		if r.index > s.records {
			return false
		}
		s.covered = max(s.covered, r.index)
	case recComplete:
		if s.present.count() != len(s.crcs) {
			return false
		}
		s.complete = true
	case recReset:
		s.present.clear()
		s.complete = false
	}
	s.records++
	return true
}

// decodeJournal replays a journal of a blob of n pieces. doubtful lists, in
// order and maybe twice, pieces that no checkpoint vouches for.
func decodeJournal(p []byte, n int) (s pieces, doubtful []int) {
	s = newPieces(n)
	var seen []record
	for ; len(p) >= recordSize; p = p[recordSize:] {
		r, ok := decodeRecord(p)
		if !ok || !s.apply(r) {
			break
		}
		seen = append(seen, r)
	}
	for _, r := range seen[s.covered:] {
		if r.kind == recPiece && s.present.has(int(r.index)) {
			doubtful = append(doubtful, int(r.index))
		}
	}
	return s, doubtful
}
