package layerdev

import (
	"sort"

	"skimmer/internal/blob"
)

const (
	// maxCursors is how many sequential readers of one layer are told apart.
	maxCursors = 8
	// nearBytes is how far from where a reader was expected, in bytes of flat
	// data, it may go on: the kernel's own readahead asks out of order.
	nearBytes = 1 << 20
	// firstWindow is what is fetched ahead of a reader that has just turned
	// out to be sequential, in compressed bytes.
	firstWindow = 256 << 10
	// recentBytes is how much of the way of a reader says how it goes on.
	recentBytes = 2 << 20
	// filesInOrder is how many files, one after the other in the order of the
	// blob, make a reader one that wants the next file, too.
	filesInOrder = 3
)

// cursor follows one reader.
type cursor struct {
	next   int64 // where it will go on, if it is sequential
	window int64 // compressed bytes to have ahead of it; 0 until it is
	edge   int   // the first stream not yet fetched for it
	file   int   // the last file it read, by number in the index
	order  int   // files up to that one, read one after the other
	read   int64 // bytes of flat data it read
	// passed is how far it has come lately, and took how much of that it read,
	// in bytes of flat data.
	passed, took int64
	last         [2]int64 // the last read, which is noted twice: when it is made ready, and when it is answered
	used         uint64
}

// cursors follow the readers of a layer. Layer.mu guards it.
type cursors struct {
	all   [maxCursors]cursor
	clock uint64
}

// find returns the cursor of whoever reads at off, or nil.
func (cs *cursors) find(off int64) *cursor {
	for i := range cs.all {
		c := &cs.all[i]
		if c.used != 0 && off >= c.next-nearBytes && off <= c.next+nearBytes {
			return c
		}
	}
	return nil
}

// target returns the blob offset up to which a reader of [off, end) has a
// window; 0 for one that is not sequential.
func (cs *cursors) target(c *contents, off, end int64) int64 {
	cur := cs.find(off)
	if cur == nil || cur.window == 0 {
		return 0
	}
	return min(c.position(end)+cur.reach(), c.limit(cur))
}

// reach returns how much is fetched ahead of a reader, in compressed bytes.
func (cur *cursor) reach() int64 {
	if cur.order < filesInOrder {
		return cur.window
	}
	// Who reads many files may leave some out: as much is fetched ahead as has
	// been read, taking compression for what it usually is.
	return min(cur.window, max(firstWindow, cur.read/4))
}

// limit returns the blob offset beyond which nothing is fetched ahead for a
// reader: the end of its file, unless it goes from file to file.
func (c *contents) limit(cur *cursor) int64 {
	if cur.order >= filesInOrder || cur.file < 0 {
		return c.ix.BlobSize
	}
	f := c.ix.Files[cur.file]
	_, last := c.chunks(f.DataOff, f.DataOff+f.Size)
	if last == 0 {
		return 0
	}
	return c.ix.Streams[c.stream(last-1)].End
}

// fileNumber returns the number of the file that holds the byte at off, or
// the padding behind it; -1 in front of all.
func (c *contents) fileNumber(off int64) int {
	all := c.ix.Files
	return sort.Search(len(all), func(i int) bool { return all[i].DataOff > off }) - 1
}

// follows reports whether file next is the first one with content behind file.
func (c *contents) follows(file, next int) bool {
	if next <= file {
		return false
	}
	for file++; file < next; file++ {
		if c.ix.Files[max(0, file)].Size > 0 {
			return false
		}
	}
	return true
}

// inFiles notes which files [off, end) is in.
func (cur *cursor) inFiles(c *contents, off, end int64) {
	first, last := c.fileNumber(off), c.fileNumber(max(off, end-1))
	switch {
	case first == cur.file:
	case c.follows(cur.file, first):
		cur.order++
	default:
		cur.order = 1
	}
	for f := first; f < last; f++ {
		if c.ix.Files[f+1].Size > 0 {
			cur.order++
		}
	}
	cur.file = last
}

// leavesOut reports whether a reader leaves out a quarter or more of what it
// passes: one that jumps about in a program does. The kernel's own readahead
// asks out of order, but not for long.
func (cur *cursor) leavesOut() bool { return 4*cur.took < 3*cur.passed }

// position returns where in the blob the stream begins that holds off, or the
// next that holds anything.
func (c *contents) position(off int64) int64 {
	chunk, _ := c.chunks(off, off+1)
	if chunk == len(c.ix.Chunks) {
		return c.ix.BlobSize
	}
	return c.ix.Streams[c.stream(chunk)].Off
}

// moved notes that [off, end) is being read and returns the reader's cursor.
func (cs *cursors) moved(c *contents, off, end, maxWindow int64) *cursor {
	cs.clock++
	cur := cs.find(off)
	if cur == nil {
		cur = &cs.all[0]
		for i := range cs.all {
			if cs.all[i].used < cur.used {
				cur = &cs.all[i]
			}
		}
		*cur = cursor{next: end, passed: end - off, took: end - off, last: [2]int64{off, end}, used: cs.clock, file: c.fileNumber(off), order: 1}
		cur.inFiles(c, off, end)
		return cur
	}
	cur.used = cs.clock
	cur.inFiles(c, off, end)
	if read := [2]int64{off, end}; read != cur.last {
		cur.took += end - off
		cur.last = read
	}
	if end > cur.next {
		cur.passed += end - cur.next
		cur.next = end
		if cur.window == 0 {
			cur.window = min(firstWindow, maxWindow)
		}
	}
	if cur.passed > recentBytes {
		cur.passed /= 2
		cur.took = min(cur.took/2, cur.passed)
	}
	if cur.leavesOut() {
		cur.window = min(cur.window, firstWindow)
	}
	return cur
}

// runAhead notes a read of what is present and keeps a sequential reader's
// window full.
func (l *Layer) runAhead(c *contents, off, end int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ahead(c, off, end)
}

// ahead notes a read and begins to fetch what its reader will want, once less
// than half of its window is left; a window that was needed is doubled. What
// it begins is prefetching: it is fetched as such. l.mu is held.
func (l *Layer) ahead(c *contents, off, end int64) {
	cur := l.cursors.moved(c, off, end, l.cfg.MaxReadahead)
	cur.read += end - off
	if cur.window == 0 || c.missing.Load() == 0 || !l.outage.since.IsZero() {
		return // While a source fails, only what is needed is asked of it.
	}
	streams := c.ix.Streams
	here := c.position(cur.next)
	for cur.edge < len(streams) && streams[cur.edge].Off < here {
		cur.edge++
	}
	limit, window := c.limit(cur), cur.reach()
	if cur.edge == len(streams) || streams[cur.edge].Off >= limit || streams[cur.edge].Off-here >= (window+1)/2 {
		return
	}
	began := false
	for target := min(here+window, limit); cur.edge < len(streams) && streams[cur.edge].Off < target; {
		if !l.idle(c, cur.edge) {
			cur.edge++
			continue
		}
		r := l.newRun(c, blob.Prefetch, cur.edge, func(next int, bytes int64) bool {
			return streams[next].Off < target && bytes+streams[next].End-streams[next].Off <= maxRun
		})
		if !l.start(c, r) {
			return
		}
		began = true
		cur.edge = r.last() + 1
	}
	if began && !cur.leavesOut() {
		cur.window = min(2*cur.window, l.cfg.MaxReadahead)
	}
}
