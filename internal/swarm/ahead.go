package swarm

import (
	"context"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
)

const (
	// steadyReads is how many reads that continue each other make a reader one that
	// will go on.
	steadyReads = 3
	// maxAhead is how many bytes of what it will want next are asked for along with
	// what it wants.
	maxAhead = 2 << 20
)

// course is how somebody reads a blob. It is guarded by c.mu.
type course struct {
	reads int   // that continue each other
	bytes int64 // of them, with what was asked for ahead
	end   int   // the piece behind the last of them
	until int   // the piece behind what was asked for ahead
}

// note notes that j reads from h, and returns what to ask for ahead of it: as much as
// has been read in a row by then. Caller holds c.mu.
//
// What is granted of it is fetched at once and kept: the scheduler holds slots of
// sources and the origin for it. Reads of what is kept are not seen here, so the next
// one may continue what was asked for ahead.
func (h *remote) note(j *job) []schedule.Run {
	k := &h.course
	if j.prio != blob.Demand || len(j.spans) != 1 {
		return nil
	}
	span, geo := j.spans[0], h.c.geo
	if span.First < k.end-1 || span.First > k.until {
		*k = course{}
	} else {
		k.bytes += geo.bytes(schedule.Run{First: k.end, Count: max(span.First-k.end, 0)}).Len
	}
	k.reads++
	k.bytes += geo.bytes(span).Len
	k.end, k.until = span.End(), span.End()
	if k.reads < steadyReads {
		return nil
	}
	ahead := schedule.Run{First: k.end, Count: min(int(min(k.bytes, maxAhead)/geo.piece), geo.n-k.end)}
	k.until = ahead.End()
	if ahead.Count == 0 {
		return nil
	}
	return []schedule.Run{ahead}
}

// isAhead reports whether nothing of p is what w was for in the first place: it was
// granted for what comes next.
func (w *want) isAhead(p *part) bool {
	if len(w.ahead) == 0 {
		return false
	}
	for _, r := range w.runs {
		if p.left.next(r.First, r.End(), true) < r.End() {
			return false
		}
	}
	return true
}

// fillAhead fetches p, which was granted to j for what comes next, as j would.
func (s *Swarm) fillAhead(c *content, p *part, j *job) {
	ctx := blob.WithTraffic(context.WithoutCancel(j.ctx), new(blob.Traffic))
	s.fill(c, p, &filling{ref: j.h.ref, ctx: blob.WithPriority(ctx, blob.Prefetch)})
}
