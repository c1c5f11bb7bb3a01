package layerdev

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"skimmer/internal/blob/blobtest"
)

// bdis are what the kernel keeps for EROFS mounts.
const bdis = "/sys/class/bdi/erofs-*"

// countingFile notes what is read of it.
type countingFile struct {
	memFile
	mu    sync.Mutex
	bytes int
	sizes []int
	end   int64
}

func (f *countingFile) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	f.mu.Lock()
	f.sizes = append(f.sizes, len(p))
	f.bytes += len(p)
	f.end = max(f.end, off+int64(len(p)))
	f.mu.Unlock()
	return f.memFile.ReadAt(ctx, p, off)
}

func (f *countingFile) take() (sizes []int, n int, end int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	sizes, n, end = f.sizes, f.bytes, f.end
	f.sizes, f.bytes, f.end = nil, 0, 0
	return sizes, n, end
}

// With directio EROFS reads no further in the device than the file goes, and
// still in long requests.
func TestDirectErofsReads(t *testing.T) {
	needRoot(t)
	mkfs, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("SKIPPED: mkfs.erofs is not installed")
	}
	for _, option := range []string{"", ",directio"} {
		t.Run(fmt.Sprint("direct=", option != ""), func(t *testing.T) {
			dir := t.TempDir()
			tree, meta, data, mnt := filepath.Join(dir, "tree"), filepath.Join(dir, "meta"), filepath.Join(dir, "data"), filepath.Join(dir, "mnt")
			must(t, os.Mkdir(tree, 0o755))
			must(t, os.Mkdir(mnt, 0o755))
			want := make(map[string][]byte)
			for name, size := range map[string]int{"a-large": 8 << 20, "b-small": 20 << 10, "c-large": 8 << 20} {
				want[name] = blobtest.Bytes(uint64(name[0]), size)
				must(t, os.WriteFile(filepath.Join(tree, name), want[name], 0o644))
			}
			if out, err := exec.Command(mkfs, "--chunksize=4096", "--blobdev="+data, meta, tree).CombinedOutput(); err != nil {
				t.Fatalf("mkfs.erofs: %v\n%s", err, out)
			}
			content, err := os.ReadFile(data)
			must(t, err)
			f := &countingFile{memFile: memFile{p: content}}
			d := mountDevice(t, fileSet{"layer": f}, nil)
			before, err := filepath.Glob(bdis)
			must(t, err)
			if err := unix.Mount(meta, mnt, "erofs", unix.MS_RDONLY, "device="+d.Path("layer")+option); err != nil {
				t.Fatalf("mount erofs over the device: %v", err)
			}
			defer func() { must(t, unix.Unmount(mnt, 0)) }()
			if option != "" {
				// Then it is EROFS that decides how far ahead is read.
				after, err := filepath.Glob(bdis)
				must(t, err)
				for _, path := range after {
					if !slices.Contains(before, path) {
						must(t, os.WriteFile(filepath.Join(path, "read_ahead_kb"), []byte("1024"), 0))
					}
				}
			}
			read := func(name string, off, n int64) (sizes []int, total int) {
				g, err := os.Open(filepath.Join(mnt, name))
				must(t, err)
				defer g.Close()
				p := make([]byte, n)
				if _, err := g.ReadAt(p, off); err != nil || !bytes.Equal(p, want[name][off:off+n]) {
					t.Errorf("%s: wrong content, %v", name, err)
				}
				sizes, total, _ = f.take()
				return sizes, total
			}
			sizes, total := read("b-small", 0, 20<<10)
			t.Logf("20 KiB file: %d bytes in %d requests %v", total, len(sizes), sizes)
			if option != "" && total > 20<<10 {
				t.Errorf("reading a file of 20 KiB read %d bytes of the device", total)
			}
			sizes, total = read("c-large", 4<<20, 4096)
			t.Logf("random 4 KiB: %d bytes in %d requests %v", total, len(sizes), sizes)
			g, err := os.Open(filepath.Join(mnt, "a-large"))
			must(t, err)
			defer g.Close()
			p := make([]byte, 64<<10)
			for off := 0; off < 8<<20; off += len(p) {
				if _, err := g.Read(p); err != nil || !bytes.Equal(p, want["a-large"][off:off+len(p)]) {
					t.Fatalf("a-large at %d: wrong content, %v", off, err)
				}
			}
			sizes, total, _ = f.take()
			t.Logf("sequential 8 MiB: %d bytes in %d requests %v", total, len(sizes), sizes)
			if len(sizes) > 20 {
				t.Errorf("sequential read of 8 MiB took %d requests", len(sizes))
			}
		})
	}
}
