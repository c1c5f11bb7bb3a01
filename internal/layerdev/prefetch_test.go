package layerdev

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"skimmer/internal/blob"
)

// several is a fakeBlob that reads several ranges at once, last one first.
type several struct {
	*fakeBlob
	calls   [][]blob.Range
	failing int // ranges before it fails; 0 for never
}

func (b *several) open(context.Context) (blob.Blob, error) { return b, nil }

func (b *several) ReadRanges(_ context.Context, ranges []blob.Range, land blob.Land) error {
	if err := blob.CheckRanges(ranges, b.Size()); err != nil {
		return err
	}
	b.mu.Lock()
	b.calls = append(b.calls, ranges)
	b.reads = append(b.reads, ranges...)
	b.mu.Unlock()
	for i, r := range slices.Backward(ranges) {
		if b.failing > 0 && len(ranges)-i > b.failing {
			return blob.Errorf(blob.Unavailable, "deliberate")
		}
		for off := r.Off; off < r.End(); off += 10_000 {
			if err := land(i, off, b.p[off:min(off+10_000, r.End())]); err != nil {
				return err
			}
		}
	}
	return nil
}

func small(n, size int) shape {
	sizes := make([]int, n)
	for i := range sizes {
		sizes[i] = size
	}
	return shape{sizes: sizes, chunk: 128 << 10}
}

func span(tl *testLayer, file int) Span {
	f := tl.ix.Files[file]
	return Span{f.DataOff, f.DataOff + f.Size}
}

func TestPrefetchJoinsNeighbours(t *testing.T) {
	tl := build(t, small(200, 20<<10))
	src := &fakeBlob{p: tl.blob}
	l := newLayer(t, tl, LayerConfig{Blob: src.open})
	checkRead(t, l, tl, span(tl, 102).Off, 10)
	first := len(src.readRanges())
	// Two lots: around 100 to 112, with gaps of two files, and 10 to 14.
	must(t, l.Prefetch(t.Context(), []Span{span(tl, 112), span(tl, 10), span(tl, 14), span(tl, 112), span(tl, 115), {1 << 40, 1 << 41}, {5, 5}}, nil))
	reads := src.readRanges()[first:]
	if len(reads) != 2 || reads[0].Len+reads[1].Len > 13*21<<10 {
		t.Errorf("prefetch asked for %v, want two ranges", reads)
	}
	must(t, l.Prefetch(t.Context(), []Span{span(tl, 10), span(tl, 115)}, nil))
	if n := len(src.readRanges()); n != first+2 {
		t.Errorf("prefetch of what is there asked for %d ranges", n-first-2)
	}
	checkRead(t, l, tl, 0, l.Size())
	if s, n := src.fetchedTwice(tl.ix); n > 0 {
		t.Errorf("stream %d was fetched %d times", s, n)
	}
}

// Who reads after Begin waits for what is on its way and asks for nothing.
func TestBegin(t *testing.T) {
	tl := build(t, small(200, 20<<10))
	src := &several{fakeBlob: &fakeBlob{p: tl.blob}}
	l := newLayer(t, tl, LayerConfig{Blob: src.open})
	spans := []Span{span(tl, 10), span(tl, 100), span(tl, 190)}
	wait, err := l.Begin(t.Context(), spans)
	must(t, err)
	for _, sp := range spans {
		if _, err := l.ReadAt(blob.WithPriority(t.Context(), blob.Prefetch), make([]byte, 100), sp.Off); err != nil {
			t.Error(err)
		}
	}
	must(t, wait())
	if len(src.calls) != 1 || len(src.reads) != len(spans) {
		t.Errorf("the source was asked %d times, for %v", len(src.calls), src.reads)
	}
	wait, err = l.Begin(t.Context(), spans) // all is here
	must(t, err)
	must(t, wait())
	src.failing = 1
	wait, err = l.Begin(t.Context(), []Span{span(tl, 20), span(tl, 60)})
	must(t, err)
	if err := wait(); !errors.Is(err, blob.Unavailable) {
		t.Errorf("what did not come: error %v, want Unavailable", err)
	}
}

// A source that can leave gaps out is asked once for pieces far apart.
func TestPrefetchOfSeveralRanges(t *testing.T) {
	tl := build(t, small(200, 20<<10))
	src := &several{fakeBlob: &fakeBlob{p: tl.blob}}
	l := newLayer(t, tl, LayerConfig{Blob: src.open})
	var spans []Span
	for i := 0; i < 200; i += 10 {
		spans = append(spans, span(tl, i))
	}
	must(t, l.Prefetch(t.Context(), spans, nil))
	if len(src.calls) != 1 || len(src.calls[0]) != len(spans) {
		t.Errorf("source was asked %d times", len(src.calls))
	}
	if st := l.Stats(); st.Streams != int64(len(spans)) || st.Runs != 1 {
		t.Errorf("stats = %+v, want %d streams in one run", st, len(spans))
	}
	l.work.Wait() // memory is given back after chunks were
	if n := l.pool.buffered.Load(); n != 0 {
		t.Errorf("%d bytes of memory are still reserved", n)
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := l.Prefetch(t.Context(), []Span{{0, l.Size()}}, nil); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() { checkRead(t, l, tl, 0, l.Size()) })
	}
	wg.Wait()
	if s, n := src.fetchedTwice(tl.ix); n > 0 {
		t.Errorf("stream %d was fetched %d times", s, n)
	}
	<-l.Completed()
}

func TestPrefetchThatBreaksOff(t *testing.T) {
	tl := build(t, small(200, 20<<10))
	src := &several{fakeBlob: &fakeBlob{p: tl.blob}, failing: 3}
	l := newLayer(t, tl, LayerConfig{Blob: src.open, Pool: NewPool(2)})
	spans := []Span{span(tl, 0), span(tl, 50), span(tl, 100), span(tl, 150), span(tl, 199)}
	if err := l.Prefetch(t.Context(), spans, nil); !errors.Is(err, blob.Unavailable) {
		t.Errorf("prefetch: %v, want unavailable", err)
	}
	src.failing = 0
	must(t, l.Prefetch(t.Context(), spans, nil))
	if s, n := src.fetchedTwice(tl.ix); n == 0 || s > 50 {
		t.Errorf("stream %d was fetched again, want those that did not come", s)
	}
	if st := l.Stats(); st.Streams != int64(len(spans)) {
		t.Errorf("%d streams inflated, want each of %d once", st.Streams, len(spans))
	}
}

// A reader does not wait for a prefetch of something else, and shares that of
// what it wants.
func TestReadersOvertakePrefetch(t *testing.T) {
	tl := build(t, small(400, 20<<10))
	dir := filepath.Join(t.TempDir(), "layer")
	must(t, Create(dir, tl.ix))
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		src := &fakeBlob{p: tl.blob, gate: func(ctx context.Context, _ blob.Range) error {
			if blob.PriorityOf(ctx) != blob.Demand {
				<-release
			}
			return nil
		}}
		l := openLayer(t, dir, LayerConfig{Blob: src.open, Pool: NewPool(2)})
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := l.Prefetch(t.Context(), []Span{span(tl, 300), span(tl, 302)}, nil); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		checkRead(t, l, tl, span(tl, 5).Off, 100)
		wg.Go(func() { checkRead(t, l, tl, span(tl, 302).Off, 100) })
		synctest.Wait()
		close(release)
		wg.Wait()
		if s, n := src.fetchedTwice(tl.ix); n > 0 {
			t.Errorf("stream %d was fetched %d times", s, n)
		}
	})
}

// What is fetched ahead ends with the file that is read, until files are read
// one after the other.
func TestReadaheadStaysInFile(t *testing.T) {
	tl := build(t, shape{sizes: []int{2 << 20, 2 << 20, 2 << 20, 2 << 20, 2 << 20, 2 << 20}, chunk: 128 << 10})
	file := func(i int) int64 { return int64(i) * 2 << 20 }
	for name, c := range map[string]struct {
		files []int
		want  bool // that the file behind the last is begun
	}{
		"one":             {[]int{1}, false},
		"two in order":    {[]int{1, 2}, false},
		"three in order":  {[]int{1, 2, 3}, true},
		"out of order":    {[]int{3, 1, 2}, false},
		"the other way":   {[]int{3, 2, 1}, false},
		"back to the old": {[]int{0, 1, 0, 1, 0}, false},
	} {
		t.Run(name, func(t *testing.T) {
			src := &fakeBlob{p: tl.blob}
			l := newLayer(t, tl, LayerConfig{Blob: src.open})
			last := 0
			for _, i := range c.files {
				for off := file(i); off < file(i+1); off += 64 << 10 {
					checkRead(t, l, tl, off, 64<<10)
				}
				last = i
			}
			must(t, l.Ready(blob.WithPriority(t.Context(), blob.Prefetch), file(last), 1))
			ix := tl.ix
			begun := slices.ContainsFunc(src.readRanges(), func(r blob.Range) bool {
				return r.End() > ix.Streams[16*(last+1)].Off && !slices.Contains(c.files, last+1)
			})
			if begun != c.want && !slices.Contains(c.files, last+1) {
				t.Errorf("file %d begun: %v, want %v: %v", last+1, begun, c.want, fmt.Sprint(src.readRanges()))
			}
		})
	}
}

// Who reads on gets ever more ahead of it; who leaves most of a file out, as a
// program that jumps about in its own code, gets what it reads and a little.
func TestReadaheadLeavesOut(t *testing.T) {
	const size, chunk, read = 32 << 20, 128 << 10, 64 << 10
	tl := build(t, shape{sizes: []int{size}, chunk: chunk})
	for name, c := range map[string]struct {
		skip     int64 // behind each read
		min, max int   // streams fetched more than are read
	}{
		"reads on": {0, 8, size/chunk - size/2/chunk},
		"jumps":    {7 * chunk, 0, 2 * size / 2 / (8 * chunk)},
	} {
		t.Run(name, func(t *testing.T) {
			src := &fakeBlob{p: tl.blob}
			l := newLayer(t, tl, LayerConfig{Blob: src.open})
			wanted := make(map[int64]bool)
			for off := int64(0); off < size/2; off += read + c.skip {
				must(t, l.Ready(t.Context(), off, read))
				checkRead(t, l, tl, off, read)
				wanted[off/chunk] = true
			}
			if c.min > 0 { // what is ahead has begun when this is there
				must(t, l.Ready(blob.WithPriority(t.Context(), blob.Prefetch), size/2, 1))
			}
			fetched := 0
			for _, s := range tl.ix.Streams {
				if slices.ContainsFunc(src.readRanges(), func(r blob.Range) bool { return r.Off <= s.Off && s.End <= r.End() }) {
					fetched++
				}
			}
			if more := fetched - len(wanted); more < c.min || more > c.max {
				t.Errorf("%d streams read and %d more fetched, want %d to %d", len(wanted), more, c.min, c.max)
			}
		})
	}
}

// TestPrefetchTellsOfArrival has it told once: when all has come, before it is
// inflated; when it fails; and when there is nothing to fetch.
func TestPrefetchTellsOfArrival(t *testing.T) {
	tl := build(t, small(200, 20<<10))
	spans := []Span{span(tl, 0), span(tl, 50), span(tl, 199)}
	var told atomic.Int64
	tell := func() { told.Add(1) }

	src := &several{fakeBlob: &fakeBlob{p: tl.blob}, failing: 2}
	l := newLayer(t, tl, LayerConfig{Blob: src.open})
	if err := l.Prefetch(t.Context(), spans, tell); err == nil || told.Load() != 1 {
		t.Errorf("a prefetch that fails: %v, told %d times, want once", err, told.Load())
	}
	src.failing = 0
	must(t, l.Prefetch(t.Context(), spans, tell))
	must(t, l.Prefetch(t.Context(), spans, tell))
	must(t, l.Complete(t.Context()))
	must(t, l.Prefetch(t.Context(), spans, tell))
	if n := told.Load(); n != 4 {
		t.Errorf("four prefetches told %d times", n)
	}

	// With every processor taken, what arrives cannot be inflated yet.
	pool := NewPool(1)
	pool.acquire(blob.Demand)
	waiting := newLayer(t, tl, LayerConfig{Blob: (&fakeBlob{p: tl.blob}).open, Pool: pool})
	arrived := make(chan struct{})
	done := make(chan error, 1)
	go func() { done <- waiting.Prefetch(t.Context(), spans, func() { close(arrived) }) }()
	<-arrived
	select {
	case err := <-done:
		t.Errorf("prefetch ended before anything was inflated: %v", err)
	default:
	}
	pool.release()
	must(t, <-done)
}
