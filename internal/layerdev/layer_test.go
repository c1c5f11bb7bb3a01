package layerdev

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
)

// mixed is a layer with files of many sizes, in many chunks and streams.
var mixed = shape{
	sizes: []int{10, 5000, 300 << 10, 0, 4096, 1 << 20, 77, 2<<20 + 3, 64 << 10, 100, 200, 300, 700 << 10},
	chunk: 128 << 10,
}

func TestReadEverywhere(t *testing.T) {
	shared := mixed
	shared.minChunk = 64 << 10
	for name, s := range map[string]shape{"one chunk per stream": mixed, "several chunks per stream": shared} {
		t.Run(name, func(t *testing.T) {
			tl := build(t, s)
			src := &fakeBlob{p: tl.blob}
			l := newLayer(t, tl, LayerConfig{Blob: src.open})
			if l.Size() != tl.ix.DataSize {
				t.Errorf("size = %d, want %d", l.Size(), tl.ix.DataSize)
			}
			var wg sync.WaitGroup
			for g := range 8 {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(g), 1))
					for range 60 {
						off := rng.Int64N(l.Size())
						checkRead(t, l, tl, off, 1+rng.Int64N(min(l.Size()-off, 400<<10)))
					}
				})
			}
			wg.Wait()
			checkRead(t, l, tl, 0, l.Size())
			if s, n := src.fetchedTwice(tl.ix); n > 0 {
				t.Errorf("stream %d was fetched %d times", s, n)
			}
			if src.opens != 1 {
				t.Errorf("blob was opened %d times, want 1", src.opens)
			}
			<-l.Completed() // readers are woken before chunks are counted
			if got := l.Stats().Chunks; got != int64(len(tl.ix.Chunks)) {
				t.Errorf("%d chunks counted, layer has %d", got, len(tl.ix.Chunks))
			}
		})
	}
}

func TestReadAtEdges(t *testing.T) {
	tl := build(t, shape{sizes: []int{5000}, chunk: 4096})
	l := newLayer(t, tl, LayerConfig{Blob: (&fakeBlob{p: tl.blob}).open})
	p := make([]byte, 100)
	if n, err := l.ReadAt(t.Context(), p, l.Size()); n != 0 || err != io.EOF {
		t.Errorf("read at end: %d, %v, want EOF", n, err)
	}
	if n, err := l.ReadAt(t.Context(), p, l.Size()-10); n != 10 || err != io.EOF {
		t.Errorf("read over end: %d, %v, want 10 and EOF", n, err)
	}
	if _, err := l.ReadAt(t.Context(), p, -1); !errors.Is(err, blob.Invalid) {
		t.Errorf("read at -1: %v, want invalid", err)
	}
	if err := l.Ready(t.Context(), 0, 1<<40); err != nil {
		t.Errorf("ready beyond the end: %v", err)
	}
}

func TestPaddingNeedsNoSource(t *testing.T) {
	tl := build(t, shape{sizes: []int{10, 10}, chunk: 4096})
	l := newLayer(t, tl, LayerConfig{Blob: func(context.Context) (blob.Blob, error) {
		return nil, errors.New("must not be opened")
	}})
	checkRead(t, l, tl, 10, 4086)
}

func TestEmptyLayerIsCompleteWithoutSource(t *testing.T) {
	tl := build(t, shape{chunk: 4096})
	l := newLayer(t, tl, LayerConfig{})
	if err := l.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if path, ok := CompleteData(l.dir); !ok || filepath.Dir(path) != l.dir {
		t.Errorf("complete data = %q, %v", path, ok)
	}
}

// A miss brings exactly what it needs and small neighbours; sequential reading
// makes runs grow, so that requests are few.
func TestRunsGrow(t *testing.T) {
	sizes := []int{32 << 20}
	tl := build(t, shape{sizes: sizes, chunk: 128 << 10, level: 1})
	src := &fakeBlob{p: tl.blob}
	l := newLayer(t, tl, LayerConfig{Blob: src.open})
	checkRead(t, l, tl, 20<<20, 4096)
	reads := src.readRanges()
	if len(reads) != 1 || reads[0].Len > 140<<10 {
		t.Fatalf("a random read asked for %v, want one chunk of 128 KiB", reads)
	}
	for off := int64(0); off < l.Size(); off += 64 << 10 {
		checkRead(t, l, tl, off, 64<<10)
	}
	reads = src.readRanges()
	if len(reads) > 20 {
		t.Errorf("sequential read of 32 MiB took %d requests, want at most 20: %v", len(reads), reads)
	}
	if s, n := src.fetchedTwice(tl.ix); n > 0 {
		t.Errorf("stream %d was fetched %d times", s, n)
	}
}

func TestSmallNeighboursComeAlong(t *testing.T) {
	sizes := make([]int, 100)
	for i := range sizes {
		sizes[i] = 4000
	}
	tl := build(t, shape{sizes: sizes, chunk: 128 << 10})
	src := &fakeBlob{p: tl.blob}
	l := newLayer(t, tl, LayerConfig{Blob: src.open})
	checkRead(t, l, tl, 0, 4096)
	reads := src.readRanges()
	if len(reads) != 1 || reads[0].End() < tl.ix.Streams[20].End || reads[0].Len > neighbourBytes+8<<10 {
		t.Errorf("reading the first of many small files asked for %v, want it and about 128 KiB that follow", reads)
	}
	checkRead(t, l, tl, 20*4096, 4096)
	if s, n := src.fetchedTwice(tl.ix); n > 0 {
		t.Errorf("stream %d was fetched %d times", s, n)
	}
}

// What the kernel reads at once in several pieces is asked for at once, too, where they
// are of two streams; what does not come at once is not waited for.
func TestPiecesComeTogether(t *testing.T) {
	const chunk, piece = 1 << 20, 64 << 10
	tl := build(t, shape{sizes: []int{4 * chunk}, chunk: chunk})
	for _, c := range []struct {
		name     string
		off, n   int64
		later    time.Duration
		next     int64
		requests int
	}{
		{"the next piece", chunk - piece, piece, 0, chunk, 1},
		{"one that comes late", chunk - piece, piece, 2 * piecesWithin, chunk, 2},
		{"one elsewhere", chunk - piece, piece, 0, 2 * chunk, 2},
		{"behind a small read", chunk - piece, 4096, 0, chunk, 2},
		{"behind one that ends before", chunk - windowBytes - piece, piece, 0, chunk, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				src := &fakeBlob{p: tl.blob}
				l := newLayer(t, tl, LayerConfig{Blob: src.open})
				var wg sync.WaitGroup
				wg.Go(func() { checkRead(t, l, tl, c.off, c.n) })
				synctest.Wait()
				time.Sleep(c.later)
				wg.Go(func() { checkRead(t, l, tl, c.next, piece) })
				wg.Wait()
				if reads := src.readRanges(); len(reads) != c.requests {
					t.Errorf("%v were asked for, want %d requests", reads, c.requests)
				}
				if s, n := src.fetchedTwice(tl.ix); n > 0 {
					t.Errorf("stream %d was fetched %d times", s, n)
				}
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// One reader that waits must not keep others from what is there, and all who
// wait for the same wait for one fetch.
func TestOneFetchHoweverManyWait(t *testing.T) {
	tl := build(t, shape{sizes: []int{1 << 20, 1 << 20}, chunk: 1 << 20})
	hold, entered := make(chan struct{}), make(chan struct{}, 10)
	second := tl.ix.Streams[1]
	src := &fakeBlob{p: tl.blob, gate: func(ctx context.Context, r blob.Range) error {
		if r.Off >= second.Off {
			entered <- struct{}{}
			<-hold
		}
		return nil
	}}
	l := newLayer(t, tl, LayerConfig{Blob: src.open})
	checkRead(t, l, tl, 0, 4096)
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() { checkRead(t, l, tl, int64(1<<20+i*100_000), 50_000) })
	}
	<-entered
	checkRead(t, l, tl, 500_000, 100_000)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Ready(ctx, 1<<20, 10); !errors.Is(err, blob.Canceled) {
		t.Errorf("cancelled wait: %v, want canceled", err)
	}
	close(hold)
	wg.Wait()
	if s, n := src.fetchedTwice(tl.ix); n > 0 {
		t.Errorf("stream %d was fetched %d times", s, n)
	}
	if st := l.Stats(); st.Runs != 2 || st.Faults < 2 || st.Longest <= 0 {
		t.Errorf("stats = %+v", st)
	}
}

// A reader is served when its own chunk is there, not when the run is.
func TestReaderWaitsOnlyForItsChunk(t *testing.T) {
	tl := build(t, shape{sizes: []int{256 << 10, 256 << 10, 256 << 10}, chunk: 256 << 10})
	src := &fakeBlob{p: tl.blob, stopAfter: tl.ix.Streams[0].End - tl.ix.Streams[0].Off + 10}
	l := newLayer(t, tl, LayerConfig{Blob: src.open})
	fetched := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { fetched <- l.Fetch(ctx, []blob.Range{{Len: l.Size()}}, blob.Prefetch) }()
	checkRead(t, l, tl, 0, 256<<10) // The rest never comes.
	cancel()
	if err := <-fetched; !errors.Is(err, blob.Canceled) {
		t.Errorf("fetch: %v, want canceled", err)
	}
}

func TestCorruptIsNeverShown(t *testing.T) {
	tl := build(t, shape{sizes: []int{100 << 10, 100 << 10, 100 << 10}, chunk: 100 << 10})
	bad := tl.ix.Streams[1]
	broken := func(r blob.Range, p []byte) {
		if i := (bad.Off+bad.End)/2 - r.Off; i >= 0 && i < r.Len {
			p[i] ^= 0x10
		}
	}
	src := &fakeBlob{p: tl.blob, mangle: broken}
	var log logBuffer
	l := newLayer(t, tl, LayerConfig{Blob: src.open, Logger: log.logger()})
	off := tl.ix.Files[1].DataOff
	for range 2 {
		if _, err := l.ReadAt(t.Context(), make([]byte, 10), off); !errors.Is(err, blob.Corrupt) {
			t.Errorf("read of corrupt chunk: %v, want corrupt", err)
		}
	}
	checkRead(t, l, tl, 0, 100<<10)
	checkRead(t, l, tl, tl.ix.Files[2].DataOff, 100<<10)
	// Once for each read; once more where the readers of its neighbours made
	// it be fetched ahead.
	if l.Stats().Corrupt < 2 || !strings.Contains(log.String(), "dir/file00001") || !strings.Contains(log.String(), "test-layer") {
		t.Errorf("corruption counted %d times, want 2 or more; log: %s", l.Stats().Corrupt, log.String())
	}
	src.mangle = nil
	checkRead(t, l, tl, off, 100<<10)
}

// A source that keeps what it reads gets the chance to read it again.
func TestCorruptIsRejectedAndRetried(t *testing.T) {
	tl := build(t, shape{sizes: []int{100 << 10}, chunk: 100 << 10})
	src := rejecter{&fakeBlob{p: tl.blob}}
	src.mangle = func(_ blob.Range, p []byte) {
		src.mu.Lock()
		defer src.mu.Unlock()
		if len(src.rejected) == 0 {
			p[len(p)/2] ^= 1
		}
	}
	l := newLayer(t, tl, LayerConfig{Blob: func(context.Context) (blob.Blob, error) { return src, nil }})
	checkRead(t, l, tl, 0, 100<<10)
	if len(src.rejected) != 1 || src.rejected[0].Off != tl.ix.Streams[0].Off {
		t.Errorf("rejected %v, want the stream once", src.rejected)
	}
}

// What may pass is waited for, for as long as a reader waits at all; other
// failures end a read at once.
func TestSourceErrors(t *testing.T) {
	tl := build(t, shape{sizes: []int{100 << 10}, chunk: 100 << 10})
	for _, kind := range blob.Kinds() {
		dir := filepath.Join(t.TempDir(), "layer")
		must(t, Create(dir, tl.ix))
		synctest.Test(t, func(t *testing.T) {
			fail := true
			src := &fakeBlob{p: tl.blob, gate: func(context.Context, blob.Range) error {
				if fail {
					return blob.Errorf(kind, "deliberate")
				}
				return nil
			}}
			var log logBuffer
			l := openLayer(t, dir, LayerConfig{Blob: src.open, IOTimeout: time.Minute, Pool: NewPool(2), Logger: log.logger()})
			want, after := kind, time.Duration(0)
			if passing(kind) {
				want, after = blob.Timeout, time.Minute
			}
			start := time.Now()
			err := l.Ready(t.Context(), 0, 10)
			if !errors.Is(err, want) || !errors.Is(err, kind) || time.Since(start) != after {
				t.Errorf("source fails with %q: reader gets %v (%v) after %v", kind, err, blob.KindOf(err), time.Since(start))
			}
			if n := strings.Count(log.String(), "level=ERROR"); n != 1 && kind != blob.Canceled {
				t.Errorf("%q: %d error lines, want 1: %s", kind, n, log.String())
			}
			fail = false
			checkRead(t, l, tl, 0, 100)
		})
	}
}

// A prefetch that fails does not fail the reader who came to wait for it.
func TestReaderSurvivesFailedPrefetch(t *testing.T) {
	tl := build(t, shape{sizes: []int{100 << 10}, chunk: 100 << 10})
	dir := filepath.Join(t.TempDir(), "layer")
	if err := Create(dir, tl.ix); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		fail := make(chan struct{})
		src := &fakeBlob{p: tl.blob, gate: func(ctx context.Context, _ blob.Range) error {
			if blob.PriorityOf(ctx) == blob.Demand {
				return nil
			}
			<-fail
			return blob.Errorf(blob.Unavailable, "deliberate")
		}}
		l := openLayer(t, dir, LayerConfig{Blob: src.open, Pool: NewPool(2)})
		var wg sync.WaitGroup
		wg.Go(func() {
			err := l.Fetch(t.Context(), []blob.Range{{Len: l.Size()}}, blob.Prefetch)
			if !errors.Is(err, blob.Unavailable) {
				t.Errorf("prefetch: %v, want unavailable", err)
			}
		})
		synctest.Wait()
		wg.Go(func() { checkRead(t, l, tl, 0, 100<<10) })
		synctest.Wait()
		close(fail)
		wg.Wait()
	})
}

func TestTimeouts(t *testing.T) {
	tl := build(t, shape{sizes: []int{100 << 10, 100 << 10}, chunk: 100 << 10})
	dir := filepath.Join(t.TempDir(), "layer")
	if err := Create(dir, tl.ix); err != nil {
		t.Fatal(err)
	}
	t.Run("nothing comes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			src := &fakeBlob{p: tl.blob, gate: func(ctx context.Context, _ blob.Range) error {
				<-ctx.Done()
				return context.Cause(ctx)
			}}
			var log logBuffer
			l := openLayer(t, dir, LayerConfig{Blob: src.open, IOTimeout: time.Minute, Logger: log.logger(), Pool: NewPool(2)})
			start := time.Now()
			if err := l.Ready(t.Context(), 0, 10); !errors.Is(err, blob.Timeout) {
				t.Errorf("read: %v, want timeout", err)
			}
			if d := time.Since(start); d != time.Minute {
				t.Errorf("timed out after %v, want a minute", d)
			}
			if st := l.Stats(); st.Errors == 0 || !strings.Contains(log.String(), "dir/file00000") {
				t.Errorf("stats %+v, log %s", st, log.String())
			}
		})
	})
	t.Run("slow but steady", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			src := &drip{fakeBlob{p: tl.blob}, 50 * time.Second}
			l := openLayer(t, dir, LayerConfig{IOTimeout: time.Minute, Pool: NewPool(2), Blob: func(context.Context) (blob.Blob, error) {
				return src, nil
			}})
			// A fetch that goes on delivering is never given up, even if every
			// reader of it was.
			if err := l.Ready(t.Context(), 0, 10); !errors.Is(err, blob.Timeout) {
				t.Errorf("read: %v, want timeout", err)
			}
			<-time.After(time.Hour)
			checkRead(t, l, tl, 0, 100<<10)
			if s, n := src.fetchedTwice(tl.ix); n > 0 {
				t.Errorf("stream %d was fetched %d times", s, n)
			}
		})
	})
}

// drip delivers 8 KiB at a time and rests in between.
type drip struct {
	fakeBlob
	rest time.Duration
}

func (b *drip) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	rc, err := b.fakeBlob.ReadRange(ctx, r)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(readerFunc(func(p []byte) (int, error) {
		<-time.After(b.rest)
		return rc.Read(p[:min(len(p), 8<<10)])
	})), nil
}

func TestCompleteIsDurableAndNeedsNoSource(t *testing.T) {
	tl := build(t, mixed)
	var completed, misses atomic.Int64
	src := &fakeBlob{p: tl.blob}
	l := newLayer(t, tl, LayerConfig{
		Blob:       src.open,
		OnComplete: func() { completed.Add(1) },
		OnRead: func(a Access) {
			if a.Missed > 0 {
				misses.Add(1)
			}
		},
	})
	if _, ok := CompleteData(l.dir); ok || l.IsComplete() {
		t.Error("complete before it began")
	}
	checkRead(t, l, tl, 0, 10)
	for range 2 {
		if err := l.Complete(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if s, n := src.fetchedTwice(tl.ix); n > 0 {
		t.Errorf("stream %d was fetched %d times", s, n)
	}
	if !l.IsComplete() || misses.Load() != 1 {
		t.Errorf("complete %v, %d misses told, want 1", l.IsComplete(), misses.Load())
	}
	path, ok := CompleteData(l.dir)
	if !ok {
		t.Fatal("complete data is not found")
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, tl.flat) {
		t.Errorf("data file: %d bytes, wrong content, %v", len(got), err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if completed.Load() != 1 {
		t.Errorf("completion told %d times, want 1", completed.Load())
	}
	again := openLayer(t, l.dir, LayerConfig{Blob: func(context.Context) (blob.Blob, error) {
		return nil, errors.New("must not be opened")
	}})
	checkRead(t, again, tl, 0, again.Size())
	if !again.IsComplete() {
		t.Error("not complete when opened again")
	}
}

// Background work lets waiting readers go first, but is not stopped by them.
func TestBackgroundYields(t *testing.T) {
	tl := build(t, shape{sizes: []int{100 << 10, 12 << 20}, chunk: 1 << 20})
	dir := filepath.Join(t.TempDir(), "layer")
	if err := Create(dir, tl.ix); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		src := &fakeBlob{p: tl.blob, gate: func(ctx context.Context, r blob.Range) error {
			if blob.PriorityOf(ctx) == blob.Demand {
				<-release
			}
			return nil
		}}
		l := openLayer(t, dir, LayerConfig{Blob: src.open, Pool: NewPool(2)})
		var wg sync.WaitGroup
		wg.Go(func() { checkRead(t, l, tl, 0, 10) })
		synctest.Wait()
		start := time.Now()
		wg.Go(func() {
			if err := l.Fetch(t.Context(), []blob.Range{{Off: 1 << 20, Len: 8 << 20}}, blob.Background); err != nil {
				t.Errorf("fetch: %v", err)
			}
			if d := time.Since(start); d < yieldLimit || d > 10*yieldLimit {
				t.Errorf("background fetch under a waiting reader took %v", d)
			}
			close(release)
		})
		wg.Wait()
		start = time.Now()
		if err := l.Complete(t.Context()); err != nil || time.Since(start) != 0 {
			t.Errorf("complete: %v after %v, want at once when nobody waits", err, time.Since(start))
		}
	})
}

func TestPrefetchLandmark(t *testing.T) {
	tl := build(t, mixed)
	ix := *tl.ix
	ix.PrefetchEnd = ix.Streams[3].Off
	tl = &testLayer{tl.blob, &ix, tl.flat}
	src := &fakeBlob{p: tl.blob}
	l := newLayer(t, tl, LayerConfig{Blob: src.open})
	r, err := l.Landmark()
	if err != nil {
		t.Fatal(err)
	}
	last := tl.ix.Chunks[tl.ix.Streams[3].FirstChunk-1]
	if r != (blob.Range{Len: last.DataOff + last.Size}) {
		t.Errorf("landmark = %v", r)
	}
	if err := l.Fetch(t.Context(), []blob.Range{r}, blob.Prefetch); err != nil {
		t.Fatal(err)
	}
	if st := l.Stats(); st.Runs != 1 || st.Faults != 0 || st.Streams != 3 {
		t.Errorf("stats = %+v, want the first three streams in one run", st)
	}
}

// Where the disk is full, reads still get their data, and a chunk is not
// fetched anew for each part of it.
func TestFullDiskIsPassedThrough(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	tl := build(t, shape{sizes: []int{1 << 20, 1 << 20, 1 << 20}, chunk: 512 << 10})
	folder := filepath.Join(dir, "layer")
	if err := Create(folder, tl.ix); err != nil {
		t.Fatal(err)
	}
	src := &fakeBlob{p: tl.blob}
	l := openLayer(t, folder, LayerConfig{Blob: src.open})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for off := int64(0); off < l.Size(); off += 64 << 10 {
				checkRead(t, l, tl, (off+int64(g)<<20)%l.Size(), 64<<10)
			}
		})
	}
	wg.Wait()
	st := l.Stats()
	if st.Loose == 0 || st.Streams > 40 {
		t.Errorf("stats = %+v, want some chunks in memory and few streams inflated twice", st)
	}
	if err := l.Complete(t.Context()); !errors.Is(err, blob.Full) {
		t.Errorf("complete: %v, want disk full", err)
	}
}

func TestOpenTwiceIsBusy(t *testing.T) {
	tl := build(t, mixed)
	l := newLayer(t, tl, LayerConfig{Blob: (&fakeBlob{p: tl.blob}).open})
	if _, err := OpenLayer(l.dir, LayerConfig{}); !errors.Is(err, blob.Busy) {
		t.Errorf("second open: %v, want busy", err)
	}
	if _, err := OpenLayer(t.TempDir(), LayerConfig{}); !errors.Is(err, blob.NotFound) {
		t.Errorf("open of an empty folder: %v, want not found", err)
	}
}

func TestCloseEndsReaders(t *testing.T) {
	tl := build(t, mixed)
	entered := make(chan struct{})
	src := &fakeBlob{p: tl.blob, gate: func(ctx context.Context, _ blob.Range) error {
		close(entered)
		<-ctx.Done()
		return context.Cause(ctx)
	}}
	l := newLayer(t, tl, LayerConfig{Blob: src.open})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Ready(t.Context(), 0, 10); !errors.Is(err, blob.Canceled) {
			t.Errorf("reader of a closed layer: %v, want canceled", err)
		}
	})
	<-entered
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
}
