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
	peer int32  // the number of its peer
	turn uint32 // when it was remembered
	last brief  // what it has got or begun to be sent there last
}

// remember notes that m has, or will have, pieces.
func (c *content) remember(m *member, pieces *set) {
	if c.recent == nil {
		c.recent = make(recents, (c.n-1)/c.grain+1)
	}
	pieces.each(func(lo, hi int) {
		for b := lo / c.grain; b <= (hi-1)/c.grain; b++ {
			c.rememberIn(b, m, briefly(lo, hi))
		}
	})
}

func (c *content) rememberIn(b int, m *member, last brief) {
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
	now := recentMember{m, m.peer.number, c.turn, last}
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

// lately are those members that have got pieces of a block last, with which. They
// are a hint, as recents are, and found before those: who reads what others have
// read before it mostly finds one here that has all of it and nothing to do.
type lately struct {
	at   [latelyMembers]recentHolder
	next uint32 // which is replaced next
}

// latelyMembers is how many are remembered.
const latelyMembers = 16

type recentHolder struct {
	m    *member // which may have left, or nil
	peer int32   // the number of its peer
	got  brief
}

// note remembers that m has got pieces.
func (c *content) note(m *member, got *set) {
	if c.lately == nil {
		c.lately = make([]lately, (c.n-1)/c.grain+1)
	}
	got.each(func(lo, hi int) {
		for b := lo / c.grain; b <= (hi-1)/c.grain; b++ {
			l := &c.lately[b]
			l.at[l.next%latelyMembers] = recentHolder{m, m.peer.number, briefly(lo, hi)}
			l.next++
		}
	})
}
