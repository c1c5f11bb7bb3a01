package schedule

import "slices"

// recentMembers is how many members are remembered per block.
const recentMembers = 16

// recents are, per block of a blob, those members that have got, or have begun
// to be sent, pieces of it last. They are where a piece is looked for that few
// have, because a ring has all members in it. They are a hint: what is not found
// among them may still be somewhere, and each is looked at before it is used.
type recents [][]recentMember

// recentMember is a member, which may have left meanwhile.
type recentMember struct {
	m    *member
	turn uint32 // when it was remembered
	last span   // what it has got or begun to be sent there last
}

// remember notes that m has, or will have, pieces.
func (c *content) remember(m *member, pieces *set) {
	if c.recent == nil {
		c.recent = make(recents, (c.n-1)/c.grain+1)
	}
	pieces.each(func(lo, hi int) {
		for b := lo / c.grain; b <= (hi-1)/c.grain; b++ {
			c.rememberIn(b, m, span{int32(lo), int32(hi)})
		}
	})
}

func (c *content) rememberIn(b int, m *member, last span) {
	list := c.recent[b]
	oldest := 0
	for i := range list {
		switch {
		case list[i].m == m:
			list[i].last = last
			return
		case list[i].turn < list[oldest].turn:
			oldest = i
		}
	}
	c.turn++
	now := recentMember{m, c.turn, last}
	if len(list) < recentMembers {
		c.recent[b] = append(list, now)
		return
	}
	list[oldest] = now
}

// recently returns those remembered who have pieces of the block in which p is.
// Those that have left are forgotten.
func (c *content) recently(p int) []recentMember {
	if c.recent == nil {
		return nil
	}
	b := p / c.grain
	c.recent[b] = slices.DeleteFunc(c.recent[b], func(r recentMember) bool { return r.m.gone })
	return c.recent[b]
}
