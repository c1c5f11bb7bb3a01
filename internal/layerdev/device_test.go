package layerdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
	"skimmer/internal/testkit"
)

// fileSet is Files over a fixed set of files.
type fileSet map[string]File

func (s fileSet) Lookup(name string) (uint64, int64, bool) {
	f, ok := s[name]
	if !ok {
		return 0, 0, false
	}
	return NodeID(name), f.Size(), true
}

func (s fileSet) ByNode(node uint64) (File, error) {
	for name, f := range s {
		if NodeID(name) == node {
			return f, nil
		}
	}
	return nil, blob.Errorf(blob.NotFound, "no file has node %d", node)
}

func (s fileSet) Names() []string {
	var names []string
	for name := range s {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// memFile is a File in memory; wait, where set, is what Ready does.
type memFile struct {
	p    []byte
	wait func(ctx context.Context, off int64) error
}

func (f *memFile) Size() int64 { return int64(len(f.p)) }

func (f *memFile) Ready(ctx context.Context, off, n int64) error {
	if f.wait == nil {
		return nil
	}
	return f.wait(ctx, off)
}

func (f *memFile) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return bytes.NewReader(f.p).ReadAt(p, off)
}

func mountDevice(t testing.TB, files Files, logs *logBuffer) *Device {
	t.Helper()
	needRoot(t)
	return mountAt(t, t.TempDir(), files, logs)
}

func mountAt(t testing.TB, dir string, files Files, logs *logBuffer) *Device {
	t.Helper()
	cfg := DeviceConfig{Dir: dir, Files: files}
	if logs != nil {
		cfg.Logger = logs.logger()
	}
	d, err := Mount(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Who makes a mount namespace meanwhile, anywhere on the machine, has copies of
		// what was mounted over the device, and they keep its files in use.
		err := testkit.Poll(context.Background(), 30*time.Second, func() error {
			if err := d.Close(); err != nil && d.ctx.Err() == nil {
				return err
			}
			return nil
		})
		if err != nil {
			t.Errorf("close device: %v", err)
			if err := d.Abort(); err != nil {
				t.Errorf("abort device: %v", err)
			}
		}
	})
	return d
}

func TestDeviceServesLayers(t *testing.T) {
	tl := build(t, mixed)
	src := &fakeBlob{p: tl.blob}
	l := newLayer(t, tl, LayerConfig{Blob: src.open})
	var logs logBuffer
	d := mountDevice(t, fileSet{"sha256-one": l, "empty": &memFile{}, "other": &memFile{p: []byte("other file\n")}}, &logs)

	entries, err := os.ReadDir(d.dir)
	if err != nil || len(entries) != 3 || entries[2].Name() != "sha256-one" {
		t.Errorf("directory: %v, %v", entries, err)
	}
	st, err := os.Stat(d.Path("sha256-one"))
	must(t, err)
	if sys := st.Sys().(*syscall.Stat_t); st.Size() != l.Size() || sys.Ino != NodeID("sha256-one") || st.Mode() != 0o400 {
		t.Errorf("stat: size %d, inode %d, mode %v", st.Size(), sys.Ino, st.Mode())
	}
	if got, err := os.ReadFile(d.Path("other")); err != nil || string(got) != "other file\n" {
		t.Errorf("other file: %q, %v", got, err)
	}
	if got, err := os.ReadFile(d.Path("empty")); err != nil || len(got) != 0 {
		t.Errorf("empty file: %q, %v", got, err)
	}
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() {
			f, err := os.Open(d.Path("sha256-one"))
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			rng := rand.New(rand.NewPCG(uint64(g), 2))
			for range 30 {
				off := rng.Int64N(l.Size())
				p := make([]byte, 1+rng.Int64N(min(l.Size()-off, 300<<10)))
				if _, err := f.ReadAt(p, off); err != nil || !bytes.Equal(p, tl.flat[off:off+int64(len(p))]) {
					t.Errorf("read %d+%d: wrong, %v", off, len(p), err)
				}
			}
			if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, tl.flat) {
				t.Errorf("whole file: %d bytes, wrong, %v", len(got), err)
			}
		})
	}
	wg.Wait()
	if s, n := src.fetchedTwice(tl.ix); n > 0 {
		t.Errorf("stream %d was fetched %d times", s, n)
	}
	if logs.String() != "" {
		t.Errorf("log is not empty: %s", logs.String())
	}
}

func TestDeviceRefuses(t *testing.T) {
	d := mountDevice(t, fileSet{"f": &memFile{p: make([]byte, 4096)}}, nil)
	if _, err := os.Stat(d.Path("nothing")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("stat of what is not there: %v", err)
	}
	if _, err := os.OpenFile(d.Path("f"), os.O_RDWR, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("open for writing: %v", err)
	}
	if err := os.Mkdir(d.Path("dir"), 0o755); !errors.Is(err, unix.EROFS) {
		t.Errorf("mkdir: %v", err)
	}
	if _, err := unix.Getxattr(d.Path("f"), "user.x", nil); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("getxattr: %v", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(d.dir, &fs); err != nil || fs.Files != 1 || fs.Blocks != 1 {
		t.Errorf("statfs: %+v, %v", fs, err)
	}
}

func TestDeviceSettings(t *testing.T) {
	d := mountDevice(t, fileSet{"f": &memFile{p: make([]byte, 4096)}}, nil)
	var st unix.Stat_t
	must(t, unix.Stat(d.dir, &st))
	p, err := os.ReadFile(fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil || strings.TrimSpace(string(p)) != "1024" {
		t.Errorf("readahead: %q, %v, want 1024", p, err)
	}
}

// A name that appears later must be found although it was looked for before.
func TestDeviceForgetsMissingNames(t *testing.T) {
	files := &growing{files: fileSet{}}
	d := mountDevice(t, files, nil)
	if _, err := os.Stat(d.Path("new")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("stat: %v", err)
	}
	files.add("new", &memFile{p: []byte("here")})
	if got, err := os.ReadFile(d.Path("new")); err != nil || string(got) != "here" {
		t.Errorf("new file: %q, %v", got, err)
	}
}

type growing struct {
	mu    sync.Mutex
	files fileSet
}

func (g *growing) add(name string, f File) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.files[name] = f
}

func (g *growing) Lookup(name string) (uint64, int64, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.files.Lookup(name)
}

func (g *growing) ByNode(node uint64) (File, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.files.ByNode(node)
}

func (g *growing) Names() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.files.Names()
}

// Hundreds of blocked reads leave the device able to answer others.
func TestBlockedReadsBlockNobodyElse(t *testing.T) {
	release := make(chan struct{})
	blocked := make(chan struct{}, 1000)
	slow := &memFile{p: make([]byte, 4<<20), wait: func(ctx context.Context, _ int64) error {
		blocked <- struct{}{}
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	files := fileSet{"fast": &memFile{p: []byte("fast")}}
	for i := range 100 {
		files[fmt.Sprint("slow", i)] = slow
	}
	d := mountDevice(t, files, nil)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			if got, err := os.ReadFile(d.Path(fmt.Sprint("slow", i))); err != nil || len(got) != 4<<20 {
				t.Errorf("slow read: %d bytes, %v", len(got), err)
			}
		})
	}
	for range 100 {
		<-blocked
	}
	if got, err := os.ReadFile(d.Path("fast")); err != nil || string(got) != "fast" {
		t.Errorf("fast file: %q, %v", got, err)
	}
	close(release)
	wg.Wait()
}

func TestKilledReaderEnds(t *testing.T) {
	for name, ahead := range map[string]bool{"readahead": true, "one page": false} {
		t.Run(name, func(t *testing.T) {
			blocked, ended := make(chan struct{}, 10), make(chan error, 10)
			f := newSyncFile(blocked, ended)
			if ahead {
				f.reads = 1
			}
			d := mountDevice(t, fileSet{"f": f}, nil)
			cmd := exec.Command("dd", "if="+d.Path("f"), "of=/dev/null", "bs=64k", "count=1")
			must(t, cmd.Start())
			<-blocked
			must(t, cmd.Process.Kill())
			if err := cmd.Wait(); err == nil {
				t.Error("killed reader succeeded")
			}
			if !ahead {
				// The kernel asks to be let go only where a process waits for
				// the request itself.
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Errorf("read ended with %v", err)
				}
			}
			must(t, d.Abort())
		})
	}
}

func TestErrorsReachTheReader(t *testing.T) {
	var fault atomic.Uint32
	f := &memFile{p: make([]byte, 1<<20), wait: func(context.Context, int64) error {
		return blob.Errorf(blob.Kind(fault.Load()), "deliberate")
	}}
	d := mountDevice(t, fileSet{"f": f}, nil)
	fd, err := unix.Open(d.Path("f"), unix.O_RDONLY|unix.O_DIRECT, 0)
	must(t, err)
	defer unix.Close(fd)
	for _, kind := range blob.Kinds() {
		fault.Store(uint32(kind))
		want, ok := errnos[kind]
		if !ok {
			t.Errorf("no errno for kind %v", kind)
		}
		if kind == blob.Canceled {
			continue // EINTR would only be tried again.
		}
		if _, err := unix.Pread(fd, make([]byte, 4096), 0); err != want {
			t.Errorf("kind %q: reader gets %v, want %v", kind, err, want)
		}
	}
	if got := errnoOf(fmt.Errorf("wrapped: %w", unix.EROFS)); got != unix.EROFS {
		t.Errorf("errno of EROFS = %v", got)
	}
	if got := errnoOf(blob.Errorf(blob.Timeout, "wait: %w", unix.ECONNREFUSED)); got != unix.EIO {
		t.Errorf("errno of a timeout caused by ECONNREFUSED = %v, want EIO", got)
	}
}

// A layer's failures reach readers through the page cache, and do not stick.
func TestLayerErrorsThroughDevice(t *testing.T) {
	tl := build(t, shape{sizes: []int{100 << 10, 100 << 10}, chunk: 100 << 10})
	var mu sync.Mutex
	fault := blob.Errorf(blob.Unavailable, "deliberate")
	src := &fakeBlob{p: tl.blob, gate: func(ctx context.Context, r blob.Range) error {
		mu.Lock()
		defer mu.Unlock()
		return fault
	}}
	l := newLayer(t, tl, LayerConfig{Blob: src.open, IOTimeout: 200 * time.Millisecond})
	d := mountDevice(t, fileSet{"l": l}, nil)
	if _, err := os.ReadFile(d.Path("l")); !errors.Is(err, unix.EIO) {
		t.Errorf("read: %v, want EIO", err)
	}
	mu.Lock()
	fault = nil
	mu.Unlock()
	// A busy machine may need more than the time that one read has.
	testkit.Eventually(t, time.Minute, "read after the fault", func() error {
		got, err := os.ReadFile(d.Path("l"))
		if err == nil && !bytes.Equal(got, tl.flat) {
			t.Errorf("read after the fault: %d bytes, wrong content", len(got))
		}
		return err
	})
}

func TestDeadMountIsTakenAway(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	var logs logBuffer
	first, err := Mount(DeviceConfig{Dir: dir, Files: fileSet{}})
	must(t, err)
	if _, err := Mount(DeviceConfig{Dir: dir, Files: fileSet{}}); !errors.Is(err, blob.Busy) {
		t.Errorf("mount over a living device: %v, want busy", err)
	}
	must(t, first.Release()) // Nobody else holds the connection: it is dead.
	if _, err := os.ReadDir(dir); err == nil {
		t.Fatal("mount is still alive")
	}
	d := mountAt(t, dir, fileSet{"f": &memFile{p: []byte("again")}}, &logs)
	if got, err := os.ReadFile(d.Path("f")); err != nil || string(got) != "again" {
		t.Errorf("after a dead mount: %q, %v", got, err)
	}
	if !strings.Contains(logs.String(), "process is gone") {
		t.Errorf("log does not tell: %s", logs.String())
	}
}

func TestCloseWhileInUse(t *testing.T) {
	d := mountDevice(t, fileSet{"f": &memFile{p: []byte("in use")}}, nil)
	f, err := os.Open(d.Path("f"))
	must(t, err)
	if err := d.Close(); !errors.Is(err, blob.Busy) {
		t.Errorf("close while a file is open: %v, want busy", err)
	}
	if got, err := io.ReadAll(f); err != nil || string(got) != "in use" {
		t.Errorf("read after a refused close: %q, %v", got, err)
	}
	must(t, f.Close())
	must(t, d.Close())
	if err := d.Close(); err == nil {
		t.Error("closed twice without an error")
	}
}

func TestAbortEndsReaders(t *testing.T) {
	blocked := make(chan struct{}, 10)
	f := &memFile{p: make([]byte, 1<<20), wait: func(ctx context.Context, _ int64) error {
		blocked <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}}
	d := mountDevice(t, fileSet{"f": f}, nil)
	failed := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(d.Path("f"))
		failed <- err
	}()
	<-blocked
	must(t, d.Abort())
	if err := <-failed; err == nil {
		t.Error("read of an aborted device succeeded")
	}
}

// Another server takes the connection over in the middle of a read.
func TestTakeOver(t *testing.T) {
	tl := build(t, shape{sizes: []int{1 << 20}, chunk: 128 << 10})
	dir := filepath.Join(t.TempDir(), "layer")
	must(t, Create(dir, tl.ix))
	blocked := make(chan struct{}, 100)
	stuck := &fakeBlob{p: tl.blob, gate: func(ctx context.Context, _ blob.Range) error {
		blocked <- struct{}{}
		<-ctx.Done()
		return context.Cause(ctx)
	}}
	before, err := OpenLayer(dir, LayerConfig{Name: "before", Blob: stuck.open})
	must(t, err)
	needRoot(t)
	mnt := t.TempDir()
	first, err := Mount(DeviceConfig{Dir: mnt, Files: fileSet{"l": before}})
	must(t, err)
	type result struct {
		p   []byte
		err error
	}
	read := make(chan result, 1)
	go func() {
		p, err := os.ReadFile(first.Path("l"))
		read <- result{p, err}
	}()
	<-blocked
	conn, err := first.Connection()
	must(t, err)
	must(t, first.Release())
	must(t, before.Close())
	select {
	case r := <-read:
		t.Fatalf("reader ended with nobody serving: %d bytes, %v", len(r.p), r.err)
	default:
	}
	after := openLayer(t, dir, LayerConfig{Name: "after", Blob: (&fakeBlob{p: tl.blob}).open})
	second, err := Mount(DeviceConfig{Dir: mnt, Files: fileSet{"l": after}, Connection: conn})
	must(t, err)
	if r := <-read; r.err != nil || !bytes.Equal(r.p, tl.flat) {
		t.Errorf("read across the change of servers: %d bytes, %v", len(r.p), r.err)
	}
	if _, err := os.ReadDir(mnt); err != nil {
		t.Errorf("directory of the adopted mount: %v", err)
	}
	must(t, second.Close())
}

// A server that is killed in the middle of a read is replaced without the
// reader noticing.
func TestTakeOverAfterKill(t *testing.T) {
	const env = "LAYERDEV_SERVE_DIR"
	content := bytes.Repeat([]byte("0123456789abcdef"), 8192)
	if mnt := os.Getenv(env); mnt != "" {
		stuck := &memFile{p: content, wait: func(ctx context.Context, _ int64) error {
			fmt.Println("blocked")
			<-ctx.Done()
			return ctx.Err()
		}}
		conn := os.NewFile(3, "/dev/fuse")
		_, err := Mount(DeviceConfig{Dir: mnt, Files: fileSet{"f": stuck}, Connection: conn})
		must(t, err)
		fmt.Println("serving")
		select {} // until killed
	}
	needRoot(t)
	mnt := t.TempDir()
	first, err := Mount(DeviceConfig{Dir: mnt, Files: fileSet{}})
	must(t, err)
	conn, err := first.Connection()
	must(t, err)
	must(t, first.Release())
	child := exec.Command(os.Args[0], "-test.run=^TestTakeOverAfterKill$")
	child.Env = append(os.Environ(), env+"="+mnt)
	child.ExtraFiles = []*os.File{conn}
	out, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	lines := newLines(out)
	lines.until(t, "serving")
	reader := exec.Command("cat", filepath.Join(mnt, "f"))
	var got bytes.Buffer
	reader.Stdout = &got
	must(t, reader.Start())
	lines.until(t, "blocked")
	must(t, child.Process.Kill())
	if err := child.Wait(); err == nil {
		t.Error("killed server ended well")
	}
	second, err := Mount(DeviceConfig{Dir: mnt, Files: fileSet{"f": &memFile{p: content}}, Connection: conn})
	must(t, err)
	if err := reader.Wait(); err != nil || !bytes.Equal(got.Bytes(), content) {
		t.Errorf("reader: %d bytes of %d, %v", got.Len(), len(content), err)
	}
	must(t, second.Close())
}

type lines struct{ r io.Reader }

func newLines(r io.Reader) *lines { return &lines{r} }

// until reads up to a line that says so.
func (l *lines) until(t *testing.T, want string) {
	t.Helper()
	for l.after(t, want) != "" {
	}
}

// after reads up to a line that begins so and returns the rest of it.
func (l *lines) after(t *testing.T, prefix string) string {
	t.Helper()
	var line []byte
	b := make([]byte, 1)
	for {
		if _, err := l.r.Read(b); err != nil {
			t.Fatalf("child ended before it said %q: %v", prefix, err)
		}
		if b[0] != '\n' {
			line = append(line, b[0])
			continue
		}
		if rest, ok := strings.CutPrefix(string(line), prefix); ok {
			return rest
		}
		line = line[:0]
	}
}

func TestNodeIDs(t *testing.T) {
	// What one process gives out the next must understand: this must not change.
	if got := NodeID("sha256-one"); got != 0x7c081f726d3a617 {
		t.Errorf("node = %#x", got)
	}
	seen := make(map[uint64]string)
	for i := range 100_000 {
		name := fmt.Sprint("layer", i)
		if other, ok := seen[NodeID(name)]; ok {
			t.Fatalf("%s and %s have one node", name, other)
		}
		seen[NodeID(name)] = name
	}
}
