package layerdev

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	stock "github.com/containerd/stargz-snapshotter/estargz"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/estargz"
)

// shape says what a test layer is made of.
type shape struct {
	sizes    []int // of its files, in bytes
	chunk    int   // --chunk-size
	minChunk int   // --min-chunk-size
	level    int   // of compression; 0 means 6
	text     bool  // compressible content
}

// testLayer is a layer built by the format's own tool, with its index and the
// flat data it stands for.
type testLayer struct {
	blob []byte
	ix   *estargz.Index
	flat []byte
}

// built keeps the layers tests share; nobody changes them.
var built sync.Map

func build(t testing.TB, s shape) *testLayer {
	t.Helper()
	key := fmt.Sprintf("%+v", s)
	if tl, ok := built.Load(key); ok {
		return tl.(*testLayer)
	}
	tl := buildAnew(t, s)
	built.Store(key, tl)
	return tl
}

func buildAnew(t testing.TB, s shape) *testLayer {
	t.Helper()
	contents := make(map[string][]byte)
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	for i, size := range s.sizes {
		name := fmt.Sprintf("dir/file%05d", i)
		p := blobtest.Bytes(uint64(i)+1, size)
		if s.text {
			for j := range p {
				p[j] = "the quick brown fox jumps over a lazy dog; "[p[j]%37]
			}
		}
		contents[name] = p
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(size), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if s.level == 0 {
		s.level = 6
	}
	sr := io.NewSectionReader(bytes.NewReader(archive.Bytes()), 0, int64(archive.Len()))
	opts := []stock.Option{stock.WithChunkSize(s.chunk), stock.WithMinChunkSize(s.minChunk), stock.WithCompressionLevel(s.level)}
	built, err := stock.Build(sr, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer built.Close()
	p, err := io.ReadAll(built)
	if err != nil {
		t.Fatal(err)
	}
	var mem blobtest.Memory
	b, err := mem.Open(t.Context(), mem.Add(p))
	if err != nil {
		t.Fatal(err)
	}
	toc, err := estargz.ReadTOC(t.Context(), b, built.TOCDigest(), estargz.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tl := &testLayer{blob: p, ix: &toc.Index, flat: make([]byte, toc.Index.DataSize)}
	for _, f := range toc.Index.Files {
		if copy(tl.flat[f.DataOff:f.DataOff+f.Size], contents[f.Name]) == 0 {
			t.Fatalf("index names unknown file %q", f.Name)
		}
	}
	return tl
}

// fakeBlob is the layer blob as a source delivers it. Faults are set while
// nothing reads.
type fakeBlob struct {
	p []byte

	// gate, where set, is called before a range is delivered and may wait.
	gate func(ctx context.Context, r blob.Range) error
	// mangle, where set, may change a copy of what is delivered.
	mangle func(r blob.Range, p []byte)
	// stopAfter ends delivery of a range after so many bytes; then it waits
	// for ctx.
	stopAfter int64

	mu       sync.Mutex
	opens    int
	reads    []blob.Range
	rejected []blob.Range
}

func (b *fakeBlob) open(context.Context) (blob.Blob, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opens++
	return b, nil
}

func (b *fakeBlob) Size() int64  { return int64(len(b.p)) }
func (b *fakeBlob) Close() error { return nil }

func (b *fakeBlob) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	if err := r.Check(b.Size()); err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.reads = append(b.reads, r)
	b.mu.Unlock()
	if b.gate != nil {
		if err := b.gate(ctx, r); err != nil {
			return nil, err
		}
	}
	p := b.p[r.Off:r.End()]
	if b.mangle != nil {
		p = bytes.Clone(p)
		b.mangle(r, p)
	}
	if b.stopAfter > 0 && b.stopAfter < r.Len {
		return io.NopCloser(io.MultiReader(bytes.NewReader(p[:b.stopAfter]), readerFunc(func([]byte) (int, error) {
			<-ctx.Done()
			return 0, context.Cause(ctx)
		}))), nil
	}
	return io.NopCloser(bytes.NewReader(p)), nil
}

// readRanges returns the ranges asked for so far.
func (b *fakeBlob) readRanges() []blob.Range {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]blob.Range(nil), b.reads...)
}

// fetchedTwice reports a stream that was asked for more than once.
func (b *fakeBlob) fetchedTwice(ix *estargz.Index) (stream int, times int) {
	reads := b.readRanges()
	for i, s := range ix.Streams {
		n := 0
		for _, r := range reads {
			if r.Off <= s.Off && s.End <= r.End() {
				n++
			}
		}
		if n > 1 {
			return i, n
		}
	}
	return -1, 0
}

// rejecter is a fakeBlob that can be told what is wrong.
type rejecter struct{ *fakeBlob }

func (b rejecter) Reject(r blob.Range) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rejected = append(b.rejected, r)
}

// newLayer makes and opens the folder of tl.
func newLayer(t testing.TB, tl *testLayer, cfg LayerConfig) *Layer {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layer")
	if err := Create(dir, tl.ix); err != nil {
		t.Fatal(err)
	}
	return openLayer(t, dir, cfg)
}

func openLayer(t testing.TB, dir string, cfg LayerConfig) *Layer {
	t.Helper()
	if cfg.Name == "" {
		cfg.Name = "test-layer"
	}
	l, err := OpenLayer(dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return l
}

// checkRead reads [off, off+n) and compares.
func checkRead(t testing.TB, l File, tl *testLayer, off, n int64) {
	t.Helper()
	p := make([]byte, n)
	if _, err := l.ReadAt(t.Context(), p, off); err != nil {
		t.Errorf("read %d+%d: %v", off, n, err)
	} else if !bytes.Equal(p, tl.flat[off:off+n]) {
		t.Errorf("read %d+%d: wrong content", off, n)
	}
}

// logBuffer is a logger to look into.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// needRoot skips what needs to mount; where tests must run, it fails.
func needRoot(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err == nil {
		f.Close()
	}
	if os.Geteuid() == 0 && err == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("this test needs root and /dev/fuse: uid %d, %v", os.Geteuid(), err)
	}
	t.Skipf("SKIPPED: this test needs root and /dev/fuse (uid %d, %v)", os.Geteuid(), err)
}
