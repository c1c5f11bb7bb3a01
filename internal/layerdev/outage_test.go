package layerdev

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"skimmer/internal/blob"
)

// outageWorld is a layer of 16 files of 256 KiB, one stream each, whose
// source fails for the streams down says.
type outageWorld struct {
	tl  *testLayer
	src *fakeBlob
	log logBuffer
	l   *Layer

	mu   sync.Mutex
	down func(r blob.Range) error
}

func newOutageWorld(t *testing.T, dir string, tl *testLayer) *outageWorld {
	w := &outageWorld{tl: tl}
	w.src = &fakeBlob{p: tl.blob, gate: func(_ context.Context, r blob.Range) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.down == nil {
			return nil
		}
		return w.down(r)
	}}
	w.l = openLayer(t, dir, LayerConfig{Blob: w.src.open, Pool: NewPool(2), Logger: w.log.logger(),
		FileAt: func(off int64) string { return "/usr/lib/file-" + string(rune('a'+off/(256<<10))) }})
	return w
}

func (w *outageWorld) set(down func(r blob.Range) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = down
}

func (w *outageWorld) count(text string) int { return strings.Count(w.log.String(), text) }

func outageLayer(t *testing.T) (*testLayer, string) {
	sizes := make([]int, 16)
	for i := range sizes {
		sizes[i] = 256 << 10
	}
	tl := build(t, shape{sizes: sizes, chunk: 256 << 10})
	dir := filepath.Join(t.TempDir(), "layer")
	must(t, Create(dir, tl.ix))
	return tl, dir
}

func unreachable(blob.Range) error { return blob.Errorf(blob.Unavailable, "no route to registry") }

func TestReadersWaitOutAnOutage(t *testing.T) {
	tl, dir := outageLayer(t)
	synctest.Test(t, func(t *testing.T) {
		w := newOutageWorld(t, dir, tl)
		checkRead(t, w.l, tl, 0, 4096)
		w.set(unreachable)
		before := len(w.src.readRanges())
		var wg sync.WaitGroup
		start := time.Now()
		for i := range 10 {
			wg.Go(func() { checkRead(t, w.l, tl, int64(5<<18+i*4096), 4096) }) // of one stream
		}
		wg.Go(func() { checkRead(t, w.l, tl, 9<<18, 4096) })
		time.Sleep(time.Minute)
		checkRead(t, w.l, tl, 0, 4096) // What is there is not held up.
		if tries := len(w.src.readRanges()) - before; tries < 2*10 || tries > 2*24 {
			t.Errorf("%d tries in a minute for two streams, want 0.1 s doubling to 5 s for each", tries)
		}
		w.set(nil)
		wg.Wait()
		if d := time.Since(start); d > time.Minute+6*time.Second {
			t.Errorf("readers waited %v, want a try within 5 s of the end", d)
		}
		st := w.l.Stats()
		if st.Outages != 1 || st.Retries < 20 || st.Timeouts != 0 {
			t.Errorf("stats = %+v, want one outage", st)
		}
		synctest.Wait()
		if w.count("readers wait") != 1 || w.count("fetched again") != 1 || w.count("level=ERROR") != 0 {
			t.Errorf("log: %s", w.log.String())
		}
		if !strings.Contains(w.log.String(), "/usr/lib/file-") || !strings.Contains(w.log.String(), "io_timeout=5m0s") ||
			!strings.Contains(w.log.String(), "no route to registry") || !strings.Contains(w.log.String(), "layer=test-layer") {
			t.Errorf("log does not tell: %s", w.log.String())
		}
	})
}

// A fetch that succeeds ends the pauses of all others.
func TestSuccessWakesAll(t *testing.T) {
	tl, dir := outageLayer(t)
	synctest.Test(t, func(t *testing.T) {
		w := newOutageWorld(t, dir, tl)
		w.set(unreachable)
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() { checkRead(t, w.l, tl, int64(2+4*i)<<18, 4096) })
		}
		time.Sleep(30 * time.Second)
		w.set(nil)
		start := time.Now()
		must(t, w.l.Fetch(t.Context(), []blob.Range{{Off: 0, Len: 4096}}, blob.Prefetch))
		wg.Wait()
		if d := time.Since(start); d > firstRest {
			t.Errorf("readers waited %v after another fetch succeeded, want at most %v", d, firstRest)
		}
		synctest.Wait()
		if w.count("fetched again") != 1 {
			t.Errorf("log: %s", w.log.String())
		}
	})
}

// One part of a blob that cannot be had is one outage, however much of the
// rest can; each read of it ends after the limit, with one line.
func TestOneBadPart(t *testing.T) {
	tl, dir := outageLayer(t)
	synctest.Test(t, func(t *testing.T) {
		w := newOutageWorld(t, dir, tl)
		bad := tl.ix.Streams[7]
		w.set(func(r blob.Range) error {
			if r.Off < bad.End && bad.Off < r.End() {
				return blob.Errorf(blob.Busy, "too many requests")
			}
			return nil
		})
		var wg sync.WaitGroup
		start := time.Now()
		for range 2 {
			wg.Go(func() {
				_, err := w.l.ReadAt(t.Context(), make([]byte, 10), 7<<18)
				if !errors.Is(err, blob.Timeout) || !strings.Contains(err.Error(), "too many requests") || time.Since(start) != DefaultIOTimeout {
					t.Errorf("read: %v after %v, want a timeout with the cause", err, time.Since(start))
				}
			})
		}
		for _, i := range []int64{0, 2, 4, 10, 12, 14} {
			time.Sleep(20 * time.Second)
			begin := time.Now()
			checkRead(t, w.l, tl, i<<18, 10)
			if d := time.Since(begin); d != 0 {
				t.Errorf("read of another part took %v", d)
			}
		}
		wg.Wait()
		synctest.Wait()
		if w.count("readers wait") != 1 || w.count("level=ERROR") != 2 || w.count("fetched again") != 0 {
			t.Errorf("log: %s", w.log.String())
		}
		w.set(nil)
		checkRead(t, w.l, tl, 7<<18, 10)
		synctest.Wait() // it is logged after readers were woken
		if w.count("fetched again") != 1 {
			t.Errorf("log: %s", w.log.String())
		}
	})
}

// A layer that is closed does not keep those who wait.
func TestCloseDuringOutage(t *testing.T) {
	tl, dir := outageLayer(t)
	synctest.Test(t, func(t *testing.T) {
		w := newOutageWorld(t, dir, tl)
		w.set(unreachable)
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := w.l.Ready(t.Context(), 0, 10); !errors.Is(err, blob.Canceled) {
				t.Errorf("reader of a closed layer: %v, want canceled", err)
			}
		})
		time.Sleep(10 * time.Second)
		must(t, w.l.Close())
		wg.Wait()
	})
}
