package schedule

// supplyBlock is of how many pieces a supply counts as one what is offered
// together.
const supplyBlock = 64

// supply counts, per piece of a blob, who offers it. Mostly all pieces of a block
// are offered together, and that is one number for them.
type supply struct {
	whole []int32 // per block: what all its pieces have
	extra []int32 // per piece: what it has beyond that, maybe less than 0
	odd   []uint8 // per block: of how many pieces extra is not 0
	dark  bitmap  // the pieces that nobody offers
}

func newSupply(n int) supply {
	blocks := (n-1)/supplyBlock + 1
	s := supply{whole: make([]int32, blocks), extra: make([]int32, n), odd: make([]uint8, blocks), dark: newBitmap(n)}
	s.dark.put(0, n, true)
	return s
}

// of returns how many offer p.
func (s *supply) of(p int) int { return int(s.whole[p/supplyBlock] + s.extra[p]) }

// add counts one more who offers the pieces from lo to hi, or with -1 one less.
func (s *supply) add(lo, hi int, by int32) {
	edge := int32(1) // what is changed to where it turns dark, or is no longer
	if by < 0 {
		edge = 0
	}
	for end := 0; lo < hi; lo = end {
		b := lo / supplyBlock
		end = min(hi, (b+1)*supplyBlock)
		if end-lo == min(supplyBlock, len(s.extra)-b*supplyBlock) {
			s.whole[b] += by
			if s.odd[b] == 0 {
				if s.whole[b] == edge {
					s.dark.put(lo, end, by < 0)
				}
				continue
			}
			by := s.whole[b]
			for p := lo; p < end; p++ {
				if by+s.extra[p] == edge {
					s.dark.put(p, p+1, edge == 0)
				}
			}
			continue
		}
		s.addSome(b, lo, end, by)
	}
}

// addSome is add for some of the pieces of a block.
func (s *supply) addSome(b, lo, hi int, by int32) {
	turns, odd := -s.whole[b], s.odd[b] // what extra comes to where it turns dark, or is no longer
	if by > 0 {
		turns++
	}
	extra := s.extra[lo:hi]
	for i, x := range extra {
		switch x {
		case 0:
			odd++
		case -by:
			odd--
		}
		x += by
		extra[i] = x
		if x == turns {
			s.dark.put(lo+i, lo+i+1, by < 0)
		}
	}
	s.odd[b] = odd
}
