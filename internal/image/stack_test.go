package image_test

import (
	"archive/tar"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
	"skimmer/internal/image"
	"skimmer/internal/testkit"
)

// keeper is a Holder in this process, which outlives libraries.
type keeper struct {
	mu    sync.Mutex
	files map[string]*os.File
}

func newKeeper(t testing.TB) *keeper {
	k := &keeper{files: make(map[string]*os.File)}
	t.Cleanup(func() {
		for name := range k.files {
			if err := k.Drop(name); err != nil {
				t.Error(err)
			}
		}
	})
	return k
}

func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return os.NewFile(uintptr(fd), f.Name()), err
}

func (k *keeper) Put(name string, f *os.File) error {
	d, err := duplicate(f)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.files[name] = d
	return err
}

func (k *keeper) Get(name string) (*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if f := k.files[name]; f != nil {
		return duplicate(f)
	}
	return nil, fs.ErrNotExist
}

func (k *keeper) Drop(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.files[name]
	delete(k.files, name)
	if f == nil {
		return nil
	}
	return f.Close()
}

// pull prepares and adopts all layers of an image.
func pull(t testing.TB, w *world, l *image.Library, tag string) []image.Pulled {
	t.Helper()
	name := image.Name{Repository: repo, Tag: tag}
	var pulled []image.Pulled
	for _, d := range w.layersOf(t, tag) {
		p, err := l.PrepareLayer(t.Context(), image.LayerRequest{Name: name, Layer: d})
		if err != nil {
			t.Fatal(err)
		}
		l.Adopt(p)
		pulled = append(pulled, p)
	}
	return pulled
}

func mountStack(t testing.TB, l *image.Library, pulled []image.Pulled) string {
	t.Helper()
	path, err := l.MountStack(t.Context(), pulled, false)
	if err != nil {
		t.Fatal(err)
	}
	// Before the library is closed, whose device would be in use.
	t.Cleanup(func() { unmountStacks(t, filepath.Join(path, "..", "..", "..")) })
	return path
}

// A reader of what is missing does not notice that one library hands over to
// the next.
func TestTakeOverInTheMiddleOfARead(t *testing.T) {
	testkit.NeedMount(t)
	w, root, k := newWorld(), t.TempDir(), newKeeper(t)
	w.push(t, "v1", nil, []*tar.Header{file("big", 1<<20), file("small", 100)})
	asked := make(chan struct{}, 100)
	var hanging atomic.Bool
	w.Before = func(ctx context.Context, _ blob.Ref, _ blob.Range) error {
		if !hanging.Load() {
			return nil
		}
		asked <- struct{}{}
		<-ctx.Done() // answers only when nobody waits any more
		return context.Cause(ctx)
	}
	first := open(t, w, root, func(c *image.Config) { c.Holder = k })
	pulled := pull(t, w, first, "v1")
	path := mountStack(t, first, pulled)
	check(t, path, "small", 100)

	hanging.Store(true)
	read := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(filepath.Join(path, "big"))
		read <- err
	}()
	<-asked
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-read:
		t.Fatalf("the reader ended when the library did: %v", err)
	default:
	}
	hanging.Store(false)
	second := open(t, w, root, func(c *image.Config) { c.Holder, c.Pulled = k, pulled })
	if err := <-read; err != nil {
		t.Errorf("the reader got an error: %v", err)
	}
	check(t, path, "big", 1<<20)
	// With nothing in use, the device goes with the library.
	if err := errors.Join(second.Collect(func() (image.Kept, error) { return image.Kept{}, nil }), second.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Get(image.DeviceKey); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the device is still held: %v", err)
	}
}

// When the holder has died too, what was mounted is mounted anew, without the
// registry.
func TestMountsComeBackWithoutHolder(t *testing.T) {
	testkit.NeedMount(t)
	w, root, k := newWorld(), t.TempDir(), newKeeper(t)
	w.push(t, "v1", nil, twoLayers...)
	first := open(t, w, root, func(c *image.Config) { c.Holder = k })
	pulled := pull(t, w, first, "v1")
	path := mountStack(t, first, pulled)
	check(t, path, "etc/kept", 10)
	if err := errors.Join(first.Close(), k.Drop(image.DeviceKey)); err != nil {
		t.Fatal(err)
	}
	w.away.Store(true)
	second := open(t, w, root, func(c *image.Config) { c.Holder, c.Pulled = k, pulled })
	check(t, mountStack(t, second, pulled), "etc/kept", 10)
}

func TestStackIsNativeOnceComplete(t *testing.T) {
	testkit.NeedMount(t)
	w := newWorld()
	w.push(t, "v1", nil, twoLayers...)
	filled := make(chan map[string]bool, 100)
	l := open(t, w, t.TempDir(), func(c *image.Config) {
		c.Background, c.BackgroundDelay = true, 1
		c.OnFilled = func(missing map[string]bool) { filled <- missing }
	})
	pulled := pull(t, w, l, "v1")
	lazy := mountStack(t, l, pulled)
	native := lazy
	for native == lazy { // a complete image is not mounted over the layer device
		<-filled
		native = mountStack(t, l, pulled)
	}
	w.away.Store(true)
	check(t, lazy, "big", 1<<20)
	check(t, native, "big", 1<<20)
}

// What a start has read is in the page cache of the mount that the next one gets,
// and nothing else is.
func TestNativeMountIsWarm(t *testing.T) {
	testkit.NeedMount(t)
	w := newWorld()
	w.push(t, "v1", nil,
		[]*tar.Header{dir("usr"), file("usr/shadowed", 5000), file("usr/read", 5000), file("usr/unread", 5000), file("usr/large", 8<<20)},
		[]*tar.Header{dir("usr"), {Typeflag: tar.TypeSymlink, Name: "usr/shadowed", Linkname: "unread"}})
	root, ready := t.TempDir(), make(chan string, 100)
	l := open(t, w, root, func(c *image.Config) {
		c.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
		c.OnFilled = func(map[string]bool) { // once all is done that is to be done
			if all, _ := filepath.Glob(filepath.Join(root, "stacks", "*", "native")); len(all) == 1 {
				ready <- all[0]
			}
		}
	})
	pulled := pull(t, w, l, "v1")
	lazy := mountStack(t, l, pulled)
	check(t, lazy, "usr/read", 5000)
	large, err := os.Open(filepath.Join(lazy, "usr/large"))
	if err != nil {
		t.Fatal(err)
	}
	defer large.Close()
	if _, err := large.ReadAt(make([]byte, 4096), 4<<20); err != nil {
		t.Fatal(err)
	}
	im, _, err := l.Prepare(t.Context(), image.Name{Repository: repo, Tag: "v1"})
	if err == nil {
		err = l.Complete(t.Context(), im)
	}
	if err != nil {
		t.Fatal(err)
	}
	native := <-ready
	if got := cached(t, filepath.Join(native, "usr/read")); got == 0 {
		t.Error("a file that was read is not cached")
	}
	if got := cached(t, filepath.Join(native, "usr/unread")); got != 0 {
		t.Errorf("%d pages of a file that nobody read are cached", got)
	}
	if got := cached(t, filepath.Join(native, "usr/large")); got == 0 || got > (8<<20)/4096/4 {
		t.Errorf("%d pages of a file of which little was read are cached", got)
	}
	w.away.Store(true)
	if path := mountStack(t, l, pulled); path != native {
		t.Errorf("the next start got %s", path)
	}
	check(t, native, "usr/large", 8<<20)
}

// cached returns how many pages of a file the kernel has.
func cached(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var stat unix.Cachestat_t
	if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &stat, 0); err != nil {
		t.Fatal(err)
	}
	return stat.Cache
}

func TestLeastRecentlyMountedIsGivenUp(t *testing.T) {
	testkit.NeedMount(t)
	w := newWorld()
	w.push(t, "mounted", nil, []*tar.Header{file("m", 1<<20)})
	w.push(t, "idle", nil, []*tar.Header{file("i", 1<<20+1)})
	filled := make(chan map[string]bool, 100)
	l := open(t, w, t.TempDir(), func(c *image.Config) {
		c.HighWater = 1 << 20
		c.Background, c.BackgroundDelay = true, 1
		c.OnFilled = func(missing map[string]bool) { filled <- missing }
	})
	mounted := pull(t, w, l, "mounted")
	path := mountStack(t, l, mounted)
	idle := pull(t, w, l, "idle")
	for l.Usage(mounted[0]) == 0 || l.Usage(idle[0]) != 0 || len(filled) == 0 {
		<-filled
		l.Adopt(idle[0]) // makes the library look again
	}
	w.away.Store(true)
	check(t, path, "m", 1<<20)
	w.away.Store(false)
	check(t, mountStack(t, l, idle), "i", 1<<20+1)
}

// Containers that start while others are cleaned up after get their mount.
func TestMountWhileCollecting(t *testing.T) {
	testkit.NeedMount(t)
	w := newWorld()
	w.push(t, "v1", nil, twoLayers...)
	l := open(t, w, t.TempDir(), nil)
	pulled := pull(t, w, l, "v1")
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				if err := l.Collect(func() (image.Kept, error) { return image.Kept{Layers: pulled}, nil }); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for range 100 {
		if _, err := l.MountStack(t.Context(), pulled, false); err != nil {
			t.Error(err)
		}
	}
	close(done)
	wg.Wait()
	if err := l.Collect(func() (image.Kept, error) { return image.Kept{Layers: pulled}, nil }); err != nil {
		t.Error(err)
	}
}

// A layer that two registries have is read from the one that is there.
func TestSecondRegistry(t *testing.T) {
	testkit.NeedMount(t)
	w := newWorld()
	var failed atomic.Int64
	w.Before = func(_ context.Context, ref blob.Ref, _ blob.Range) error {
		if ref.Repository != repo {
			failed.Add(1)
			return blob.Errorf(blob.Unavailable, "%s is away", ref.Repository)
		}
		return nil
	}
	w.push(t, "v1", nil, twoLayers...)
	l := open(t, w, t.TempDir(), nil)
	pulled := pull(t, w, l, "v1")
	for _, p := range pulled {
		p.Repository = "away.test/blobs"
		l.Adopt(p)
	}
	path := mountStack(t, l, pulled)
	check(t, path, "big", 1<<20)
	if failed.Load() == 0 {
		t.Error("the registry it was pulled from last was not asked first")
	}
}
