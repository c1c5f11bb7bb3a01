package layerdev

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	stock "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"

	"skimmer/internal/blob/blobtest"
	"skimmer/internal/estargz"
)

// realLayer is a layer of about 64 MiB of this machine's own files.
var realLayer = sync.OnceValues(func() (*testLayer, error) {
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	err := filepath.WalkDir("/usr/lib", func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		if archive.Len() > 64<<20 {
			return fs.SkipAll
		}
		p, err := os.ReadFile(path)
		if err != nil || len(p) > 32<<20 {
			return err
		}
		if err := tw.WriteHeader(&tar.Header{Name: path[1:], Mode: 0o644, Size: int64(len(p)), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err = tw.Write(p)
		return err
	})
	if err == nil {
		err = tw.Close()
	}
	if err != nil {
		return nil, err
	}
	built, err := stock.Build(io.NewSectionReader(bytes.NewReader(archive.Bytes()), 0, int64(archive.Len())),
		stock.WithCompressionLevel(6))
	if err != nil {
		return nil, err
	}
	defer built.Close()
	p, err := io.ReadAll(built)
	if err != nil {
		return nil, err
	}
	var mem blobtest.Memory
	ref := mem.Add(p)
	b, err := mem.Open(context.Background(), ref)
	if err != nil {
		return nil, err
	}
	toc, err := estargz.ReadTOC(context.Background(), b, built.TOCDigest(), estargz.ReadOptions{})
	if err != nil {
		return nil, err
	}
	return &testLayer{blob: p, ix: &toc.Index}, nil
})

// cpuTime reports the processor time of this process from now on, as a metric
// that means something on a busy machine too.
func cpuTime(b *testing.B) {
	used := func() int64 {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	start := used()
	b.Cleanup(func() { b.ReportMetric(float64(used()-start)/float64(b.N), "cpu-ns/op") })
}

func benchLayer(b *testing.B) *testLayer {
	b.Helper()
	tl, err := realLayer()
	if err != nil {
		b.Fatal(err)
	}
	return tl
}

// BenchmarkGunzip is what the cold reads are held against: the same blob,
// decompressed from memory in one thread.
func BenchmarkGunzip(b *testing.B) {
	tl := benchLayer(b)
	b.SetBytes(tl.ix.DataSize)
	cpuTime(b)
	for b.Loop() {
		zr, err := gzip.NewReader(bytes.NewReader(tl.blob))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, zr); err != nil {
			b.Fatal(err)
		}
	}
}

func freshLayer(b *testing.B, tl *testLayer) *Layer {
	dir, err := os.MkdirTemp(b.TempDir(), "layer")
	if err != nil {
		b.Fatal(err)
	}
	if err := Create(dir, tl.ix); err != nil {
		b.Fatal(err)
	}
	l, err := OpenLayer(dir, LayerConfig{Blob: (&fakeBlob{p: tl.blob}).open})
	if err != nil {
		b.Fatal(err)
	}
	return l
}

func BenchmarkColdSequentialReadAt(b *testing.B) {
	tl := benchLayer(b)
	b.SetBytes(tl.ix.DataSize)
	cpuTime(b)
	p := make([]byte, 1<<20)
	for b.Loop() {
		b.StopTimer()
		l := freshLayer(b, tl)
		b.StartTimer()
		for off := int64(0); off < l.Size(); off += int64(len(p)) {
			if _, err := l.ReadAt(b.Context(), p, off); err != nil && err != io.EOF {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		b.ReportMetric(float64(l.Stats().Runs), "runs")
		l.Close()
		os.RemoveAll(l.dir)
		b.StartTimer()
	}
}

func BenchmarkComplete(b *testing.B) {
	tl := benchLayer(b)
	b.SetBytes(tl.ix.DataSize)
	cpuTime(b)
	for b.Loop() {
		b.StopTimer()
		l := freshLayer(b, tl)
		b.StartTimer()
		if err := l.Complete(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		l.Close()
		os.RemoveAll(l.dir)
		b.StartTimer()
	}
}

func BenchmarkOpenLayer(b *testing.B) {
	tl := benchLayer(b)
	dir := filepath.Join(b.TempDir(), "layer")
	if err := Create(dir, tl.ix); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		l, err := OpenLayer(dir, LayerConfig{})
		if err != nil {
			b.Fatal(err)
		}
		l.Close()
	}
}

// BenchmarkLoad is the first read of a layer whose chunks are all recorded.
func BenchmarkLoad(b *testing.B) {
	tl := benchLayer(b)
	l := freshLayer(b, tl)
	if err := l.Ready(b.Context(), 0, l.Size()/2); err != nil {
		b.Fatal(err)
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		l, err := OpenLayer(l.dir, LayerConfig{})
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Ready(b.Context(), 0, 4096); err != nil {
			b.Fatal(err)
		}
		l.Close()
	}
}

func BenchmarkWarmReadAt(b *testing.B) {
	tl := benchLayer(b)
	l := freshLayer(b, tl)
	defer l.Close()
	if err := l.Ready(b.Context(), 0, l.Size()/2); err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 128<<10)
	b.SetBytes(int64(len(p)))
	cpuTime(b)
	off := int64(0)
	for b.Loop() {
		if _, err := l.ReadAt(b.Context(), p, off); err != nil {
			b.Fatal(err)
		}
		if off += int64(len(p)); off > l.Size()/2-int64(len(p)) {
			off = 0
		}
	}
}

// readFile reads a file once with a small buffer, as programs do.
func readFile(b *testing.B, path string, cold bool) {
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if cold {
		b.StopTimer()
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	p := make([]byte, 128<<10)
	for {
		if _, err := f.Read(p); err == io.EOF {
			return
		} else if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDevice reads a file whose data is there: with and without the
// kernel's page cache of it, and the same bytes as a file of the disk.
func BenchmarkDevice(b *testing.B) {
	needRoot(b)
	tl := benchLayer(b)
	l := freshLayer(b, tl)
	defer l.Close()
	if err := l.Ready(b.Context(), 0, l.Size()); err != nil {
		b.Fatal(err)
	}
	d := mountAt(b, b.TempDir(), fileSet{"l": l}, nil)
	for _, c := range []struct {
		name, path string
		cold       bool
	}{
		{"cold", d.Path("l"), true},
		{"warm", d.Path("l"), false},
		{"plain-file-warm", filepath.Join(l.dir, dataName), false},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(l.Size())
			cpuTime(b)
			for b.Loop() {
				readFile(b, c.path, c.cold)
			}
		})
	}
}

// BenchmarkColdDevice is the way of a byte that was never read: source,
// inflate, verify, write, FUSE, reader.
func BenchmarkColdDevice(b *testing.B) {
	needRoot(b)
	tl := benchLayer(b)
	b.SetBytes(tl.ix.DataSize)
	cpuTime(b)
	for b.Loop() {
		b.StopTimer()
		l := freshLayer(b, tl)
		d, err := Mount(DeviceConfig{Dir: b.TempDir(), Files: fileSet{"l": l}})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		readFile(b, d.Path("l"), false)
		b.StopTimer()
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
		l.Close()
		os.RemoveAll(l.dir)
		b.StartTimer()
	}
}
