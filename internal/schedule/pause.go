package schedule

import (
	"slices"
	"time"
)

// A pause ends at a time, in a Tick: what was ruled out is possible again.
type pause struct {
	until time.Time
	p     *peer        // whose slots count again
	m     *member      // which may take from whom it avoided, or read the origin, again
	c     *content     // of which
	r     *reservation // ends
}

// pauseKind says what a pause is for. Those of one kind last equally long.
type pauseKind int

const (
	busyPause pauseKind = iota
	avoidPause
	originPause
	reservedPause
	kinds
)

// pause has Tick think of p.
func (t *Tracker) pause(kind pauseKind, p pause) { t.pauses[kind] = append(t.pauses[kind], p) }

// resume ends a pause.
func (t *Tracker) resume(kind pauseKind, p pause) {
	switch kind {
	case busyPause:
		if !p.p.busyUntil.After(t.now) {
			p.p.busyUntil = time.Time{}
			t.stand(p.p)
			t.wakePeer(p.p)
		}
	case avoidPause:
		a := p.m.act
		if a == nil {
			return
		}
		before := len(a.avoid)
		a.avoid = slices.DeleteFunc(a.avoid, func(v avoidance) bool { return !v.until.IsZero() && !v.until.After(t.now) })
		p.m.c.avoiders -= before - len(a.avoid)
		t.touchAll(p.m)
		t.mayIdle(p.m)
	case originPause:
		if a := p.m.act; a != nil && !a.noOrigin.After(t.now) {
			a.noOrigin = time.Time{}
			t.retry(p.m.c)
			t.mayIdle(p.m)
		}
	case reservedPause:
		p.c.reserved = slices.DeleteFunc(p.c.reserved, func(r *reservation) bool { return r == p.r })
		t.retry(p.c)
	}
}

// touchAll has all wants of m looked at again in this step.
func (t *Tracker) touchAll(m *member) {
	if m.act == nil {
		return
	}
	for _, w := range m.act.wants {
		t.touch(w)
	}
}
