package layerdev

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	stock "github.com/containerd/stargz-snapshotter/estargz"
	"golang.org/x/sys/unix"

	"skimmer/internal/blob/blobtest"
	"skimmer/internal/estargz"
)

// The kernel's EROFS reads file data through the device. The data device that
// mkfs.erofs makes is packed into a layer as its one file, so that all the
// kernel sees of it has come through fetching, inflating and FUSE.
func TestErofsOverDevice(t *testing.T) {
	needRoot(t)
	mkfs, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("SKIPPED: mkfs.erofs is not installed")
	}
	dir := t.TempDir()
	tree, meta, data := filepath.Join(dir, "tree"), filepath.Join(dir, "meta"), filepath.Join(dir, "data")
	must(t, os.Mkdir(tree, 0o755))
	want := make(map[string][]byte)
	for name, size := range map[string]int{"small": 100, "page": 4096, "large": 5<<20 + 17} {
		want[name] = blobtest.Bytes(uint64(size), size)
		must(t, os.WriteFile(filepath.Join(tree, name), want[name], 0o644))
	}
	if out, err := exec.Command(mkfs, "--chunksize=4096", "--blobdev="+data, meta, tree).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v\n%s", err, out)
	}
	content, err := os.ReadFile(data)
	must(t, err)
	tl := packed(t, content)
	src := &fakeBlob{p: tl.blob}
	l := newLayer(t, tl, LayerConfig{Blob: src.open})
	d := mountDevice(t, fileSet{"layer": l}, nil)

	mnt := filepath.Join(dir, "mnt")
	must(t, os.Mkdir(mnt, 0o755))
	if err := unix.Mount(meta, mnt, "erofs", unix.MS_RDONLY, "device="+d.Path("layer")); err != nil {
		t.Fatalf("mount erofs over the device: %v", err)
	}
	defer func() { must(t, unix.Unmount(mnt, 0)) }()
	if n := len(src.readRanges()); n != 0 {
		t.Errorf("mounting fetched %d ranges, want none", n)
	}
	for name, p := range want {
		got, err := os.ReadFile(filepath.Join(mnt, name))
		if err != nil || !bytes.Equal(got, p) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(p), err)
		}
	}
	if s, n := src.fetchedTwice(tl.ix); n > 0 {
		t.Errorf("stream %d was fetched %d times", s, n)
	}
}

// packed returns a layer of one file with that content.
func packed(t *testing.T, content []byte) *testLayer {
	t.Helper()
	var archive bytes.Buffer
	tw := tar.NewWriter(&archive)
	must(t, tw.WriteHeader(&tar.Header{Name: "data", Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}))
	_, err := tw.Write(content)
	must(t, err)
	must(t, tw.Close())
	built, err := stock.Build(io.NewSectionReader(bytes.NewReader(archive.Bytes()), 0, int64(archive.Len())), stock.WithChunkSize(256<<10))
	must(t, err)
	defer built.Close()
	p, err := io.ReadAll(built)
	must(t, err)
	var mem blobtest.Memory
	b, err := mem.Open(t.Context(), mem.Add(p))
	must(t, err)
	toc, err := estargz.ReadTOC(t.Context(), b, built.TOCDigest(), estargz.ReadOptions{})
	must(t, err)
	flat := make([]byte, toc.Index.DataSize)
	copy(flat, content)
	return &testLayer{p, &toc.Index, flat}
}
