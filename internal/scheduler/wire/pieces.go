package wire

import (
	"cmp"
	"crypto/sha256"
	"slices"

	pb "skimmer/api/scheduler/v1"
	"skimmer/internal/schedule"
)

// GroupSums returns sums, which are in order of pieces, with every 16 of an
// aligned group made one. It returns sums itself if there is no such group.
func GroupSums(sums []schedule.PieceSum) []schedule.PieceSum {
	var out []schedule.PieceSum
	for i := 0; i < len(sums); {
		if !isGroup(sums[i:]) {
			if out != nil {
				out = append(out, sums[i])
			}
			i++
			continue
		}
		if out == nil {
			out = append(make([]schedule.PieceSum, 0, len(sums)), sums[:i]...)
		}
		h := sha256.New()
		for _, s := range sums[i : i+schedule.Group] {
			_, _ = h.Write(s.Sum[:]) // hash.Hash never fails
		}
		g := schedule.PieceSum{Piece: sums[i].Piece, Group: true}
		h.Sum(g.Sum[:0])
		out = append(out, g)
		i += schedule.Group
	}
	if out == nil {
		return sums
	}
	return out
}

// isGroup reports whether sums begins with those of a whole group.
func isGroup(sums []schedule.PieceSum) bool {
	if len(sums) < schedule.Group || sums[0].Piece%schedule.Group != 0 {
		return false
	}
	for i, s := range sums[:schedule.Group] {
		if s.Group || s.Piece != sums[0].Piece+i {
			return false
		}
	}
	return true
}

// encodeRuns returns the pieces of runs, which may be in any order and overlap.
func encodeRuns(runs []schedule.Run) *pb.Runs {
	if len(runs) == 0 {
		return nil
	}
	if !slices.IsSortedFunc(runs, byFirst) {
		runs = slices.Clone(runs)
		slices.SortFunc(runs, byFirst)
	}
	pairs := make([]uint32, 0, 2*len(runs))
	end := 0
	for _, r := range runs {
		first := max(r.First, end)
		if r.End() <= first {
			continue
		}
		if first == end && len(pairs) > 0 {
			pairs[len(pairs)-1] += uint32(r.End() - first)
		} else {
			pairs = append(pairs, uint32(first-end), uint32(r.End()-first))
		}
		end = r.End()
	}
	return &pb.Runs{Pairs: pairs}
}

func byFirst(a, b schedule.Run) int { return cmp.Compare(a.First, b.First) }

func decodeRuns(field string, m *pb.Runs) ([]schedule.Run, error) {
	pairs := m.GetPairs()
	if len(pairs)%2 != 0 {
		return nil, invalid(field, "has %d numbers: must be pairs", len(pairs))
	}
	if len(pairs) == 0 {
		return nil, nil
	}
	runs := make([]schedule.Run, 0, len(pairs)/2)
	end := int64(0)
	for i := 0; i < len(pairs); i += 2 {
		first, count := end+int64(pairs[i]), int64(pairs[i+1])
		end = first + count
		if count == 0 {
			return nil, invalid(field, "has an empty run at piece %d", first)
		}
		if end > MaxPieces {
			return nil, invalid(field, "ends at piece %d: a blob has at most %d", end, MaxPieces)
		}
		runs = append(runs, schedule.Run{First: int(first), Count: int(count)})
	}
	return runs, nil
}

// encodeSums packs sums, in any order, into one message for each stretch of
// consecutive ones.
func encodeSums(sums []schedule.PieceSum) []*pb.Sums {
	var out []*pb.Sums
	for i := 0; i < len(sums); {
		step, level := 1, uint32(0)
		if sums[i].Group {
			step, level = schedule.Group, 1
		}
		n := 1
		for i+n < len(sums) && sums[i+n].Group == sums[i].Group && sums[i+n].Piece == sums[i].Piece+n*step {
			n++
		}
		digests := make([]byte, 0, n*len(schedule.Sum{}))
		for _, s := range sums[i : i+n] {
			digests = append(digests, s.Sum[:]...)
		}
		out = append(out, &pb.Sums{First: uint32(sums[i].Piece), Level: level, Digests: digests})
		i += n
	}
	return out
}

func decodeSums(field string, all []*pb.Sums) ([]schedule.PieceSum, error) {
	n := 0
	for _, m := range all {
		n += len(m.GetDigests()) / len(schedule.Sum{})
	}
	if n > MaxPieces {
		return nil, invalid(field, "are %d digests: a blob has at most %d pieces", n, MaxPieces)
	}
	if len(all) == 0 {
		return nil, nil
	}
	sums := make([]schedule.PieceSum, 0, n)
	for _, m := range all {
		digests := m.GetDigests()
		if len(digests) == 0 || len(digests)%len(schedule.Sum{}) != 0 {
			return nil, invalid(field, "have %d bytes of digests: must be a multiple of %d", len(digests), len(schedule.Sum{}))
		}
		step := 1
		switch m.GetLevel() {
		case 0:
		case 1:
			step = schedule.Group
		default:
			return nil, invalid(field, "have level %d: must be 0 or 1", m.GetLevel())
		}
		for piece := int64(m.GetFirst()); len(digests) > 0; piece += int64(step) {
			if piece >= MaxPieces || piece%int64(step) != 0 {
				return nil, invalid(field, "have a digest of piece %d: must be below %d and a multiple of %d", piece, MaxPieces, step)
			}
			s := schedule.PieceSum{Piece: int(piece), Group: step > 1}
			digests = digests[copy(s.Sum[:], digests):]
			sums = append(sums, s)
		}
	}
	return sums, nil
}
