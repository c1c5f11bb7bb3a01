package layerdev

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"sync/atomic"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
)

// contents are what a layer consists of and what of that is there.
type contents struct {
	ix      *estargz.Index
	journal *journal
	present bitmap
	used    bitmap       // chunks that readers wanted since the layer was opened
	missing atomic.Int64 // chunks not recorded
}

// load returns the layer's contents, reading them when nobody has.
func (l *Layer) load() (*contents, error) {
	if c := l.contents.Load(); c != nil {
		return c, nil
	}
	l.loadMu.Lock()
	defer l.loadMu.Unlock()
	if c := l.contents.Load(); c != nil {
		return c, nil
	}
	c, err := l.readContents()
	if err != nil {
		return nil, fmt.Errorf("load layer %s: %w", l.cfg.Name, err)
	}
	l.contents.Store(c)
	if c.missing.Load() == 0 {
		l.complete(c)
	}
	return c, nil
}

func (l *Layer) readContents() (*contents, error) {
	ix, sum, err := readIndex(l.dir)
	if err != nil {
		return nil, err
	}
	if ix.DataSize != l.size {
		return nil, blob.Errorf(blob.Corrupt, "index is of %d bytes of data, record of %d", ix.DataSize, l.size)
	}
	record, err := os.ReadFile(filepath.Join(l.dir, presentName))
	if err != nil {
		return nil, err
	}
	h := header{size: ix.DataSize, chunks: uint32(len(ix.Chunks)), indexSum: sum}
	st, err := l.data.Stat()
	if err != nil {
		return nil, err
	}
	if got, ok := parseHeader(record); !ok || got != h || st.Size() != h.size {
		l.log.Warn("data file or record of present chunks is not of this layer: fetching it anew")
		if err := reset(l.dir, h); err != nil {
			return nil, err
		}
		record = h.bytes()
	}
	present, tail := replay(record, h, bootID())
	if int64(len(record)) > tail.end {
		l.log.Warn("record of present chunks is damaged: fetching again what came after",
			"bytes", int64(len(record))-tail.end)
		if err := l.record.Truncate(tail.end); err != nil {
			return nil, err
		}
	}
	c := &contents{ix: ix, journal: &journal{f: l.record, boot: bootID(), tail: tail}}
	c.present, c.used = make(bitmap, (len(ix.Chunks)+63)/64), make(bitmap, (len(ix.Chunks)+63)/64)
	n := int64(len(ix.Chunks))
	for _, x := range present {
		for i := x.first; i < x.first+x.count; i++ {
			if c.present.set(int(i)) {
				n--
			}
		}
	}
	c.missing.Store(n)
	return c, nil
}

// chunks returns the chunks [first, last) that have bytes in [off, end).
func (c *contents) chunks(off, end int64) (first, last int) {
	all := c.ix.Chunks
	first = sort.Search(len(all), func(i int) bool { return all[i].DataOff+all[i].Size > off })
	last = first + sort.Search(len(all)-first, func(i int) bool { return all[first+i].DataOff >= end })
	return first, last
}

// bytes returns how many bytes of flat data are in the chunks [first, last).
func (c *contents) bytes(first, last int) (n int64) {
	for _, chunk := range c.ix.Chunks[first:last] {
		n += chunk.Size
	}
	return n
}

// use notes that a reader wants the chunks [first, last).
func (l *Layer) use(c *contents, first, last int) {
	if c.used.all(first, last) {
		return
	}
	for i := first; i < last; i++ {
		if c.used.set(i) {
			l.stats.used.Add(c.ix.Chunks[i].Size)
		}
	}
}

// stream returns the stream that holds a chunk.
func (c *contents) stream(chunk int) int {
	all := c.ix.Streams
	return sort.Search(len(all), func(i int) bool { return int(all[i].FirstChunk) > chunk }) - 1
}

// streamDone reports whether all chunks of a stream are present.
func (c *contents) streamDone(i int) bool {
	s := &c.ix.Streams[i]
	return c.present.all(int(s.FirstChunk), int(s.FirstChunk+s.NumChunks))
}

// file names what lies at off of the flat data, for logs.
func (c *contents) file(off int64) string {
	f, ok := c.ix.FileAt(off)
	if !ok {
		return ""
	}
	return f.Name
}

// bitmap has one bit per chunk. Bits are only ever set.
type bitmap []atomic.Uint64

func (b bitmap) has(i int) bool { return b[i/64].Load()&(1<<(i%64)) != 0 }

// set sets a bit and reports whether that changed it.
func (b bitmap) set(i int) bool {
	bit := uint64(1) << (i % 64)
	return b[i/64].Or(bit)&bit == 0
}

// all reports whether the bits [first, last) are set.
func (b bitmap) all(first, last int) bool {
	for i := first; i < last; {
		mask := ^uint64(0) << (i % 64)
		next := (i/64 + 1) * 64
		if next > last {
			mask &= ^uint64(0) >> (next - last)
		}
		if b[i/64].Load()&mask != mask {
			return false
		}
		i = next
	}
	return true
}

// any reports whether one of the bits [first, last) is set.
func (b bitmap) any(first, last int) bool {
	for i := first; i < last; i++ {
		if b.has(i) {
			return true
		}
	}
	return false
}

// complete makes it durable that nothing is missing. It runs once the last
// chunk has been recorded.
func (l *Layer) complete(c *contents) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spawn(func() {
		if err := l.finish(c); err != nil {
			l.stats.errors.Add(1)
			l.log.Error("cannot make a complete layer durable; it is tried again when it is opened", "error", err)
			return
		}
		close(l.done)
		if l.cfg.OnComplete != nil {
			l.cfg.OnComplete()
		}
	})
}

func (l *Layer) finish(c *contents) error {
	if err := c.journal.checkpoint(l.data); err != nil {
		return err
	}
	l.unsynced.Store(0)
	err := os.Rename(filepath.Join(l.dir, presentName), filepath.Join(l.dir, completeName))
	if err != nil {
		return err
	}
	d, err := os.Open(l.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

var _ io.Closer = (*Layer)(nil)
