//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"skimmer/internal/lab"
)

// capNetRaw is security.capability with cap_net_raw=ep (linux/capability.h,
// VFS_CAP_REVISION_2).
const capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// oddities is everything a root file system can hold that tools get wrong.
func oddities() []*tar.Header {
	when := time.Unix(1234567890, 123456789)
	long := strings.Repeat("long/", 300) + strings.Repeat("n", 255)
	hs := []*tar.Header{
		{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755},
		{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777},
		{Typeflag: tar.TypeReg, Name: "suid", Mode: 0o6755, Size: 3, Uid: 70000, Gid: 1 << 30},
		{Typeflag: tar.TypeReg, Name: "empty", Mode: 0},
		{Typeflag: tar.TypeReg, Name: "ping", Mode: 0o755, Size: 9, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": capNetRaw, "SCHILY.xattr.user.note": "a value"}},
		{Typeflag: tar.TypeReg, Name: "latin1-\xe9\xff", Mode: 0o644, Size: 5},
		{Typeflag: tar.TypeReg, Name: "ünïcödé and spaces \n\t\"quoted\"", Mode: 0o644, Size: 5},
		{Typeflag: tar.TypeReg, Name: long, Mode: 0o644, Size: 100},
		{Typeflag: tar.TypeReg, Name: "many-chunks", Mode: 0o644, Size: 9<<20 + 17},
		{Typeflag: tar.TypeLink, Name: "hard/link1", Linkname: "many-chunks"},
		{Typeflag: tar.TypeLink, Name: "hard/link2", Linkname: "many-chunks"},
		{Typeflag: tar.TypeSymlink, Name: "dangling", Linkname: "/no/such/\xff/file", Mode: 0o777},
		{Typeflag: tar.TypeSymlink, Name: "far", Linkname: strings.Repeat("../", 1000) + "etc", Mode: 0o777},
		{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600},
		{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3},
		{Typeflag: tar.TypeBlock, Name: "disk", Mode: 0o660, Devmajor: 259, Devminor: 70000, Gid: 6},
	}
	for i := range 50000 {
		hs = append(hs, &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("crowd/%x", i*7919), Mode: 0o644, Size: int64(i % 3)})
	}
	for _, h := range hs {
		h.ModTime, h.Format = when, tar.FormatPAX
	}
	return hs
}

// TestOddities converts an image of oddities and compares it with what umoci
// unpacks of the original.
func TestOddities(t *testing.T) {
	second := []*tar.Header{
		{Typeflag: tar.TypeReg, Name: "hard/link1", Mode: 0o600, Size: 12}, // one name of three gets other content
		{Typeflag: tar.TypeReg, Name: ".wh.suid"},
		{Typeflag: tar.TypeReg, Name: "tmp/.wh..wh..opq"},
		{Typeflag: tar.TypeDir, Name: "empty", Mode: 0o700}, // a file becomes a directory
	}
	dir := filepath.Join(t.TempDir(), "layout")
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, headers := range [][]*tar.Header{oddities(), second} {
		if img, err = mutate.AppendLayers(img, tarLayer(t, headers)); err != nil {
			t.Fatal(err)
		}
	}
	img = mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON)
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "odd"})); err != nil {
		t.Fatal(err)
	}
	registry := startRegistry(t)
	want := unpack(t, dir, "odd")
	for _, flags := range [][]string{{"--min-chunk-size", "100000"}, {"--zstdchunked"}, nil} {
		n := newNode(t)
		ref := registry.Host() + "/odd:" + strings.TrimLeft(strings.Join(append(flags, "v1"), "-"), "-")
		n.run(append([]string{"image", "convert", "oci:" + dir + ":odd", ref, "--quiet"}, flags...)...)
		root := t.TempDir()
		n.mount(ref, root)
		diffs, err := lab.CompareTrees(t.Context(), want, root, lab.CompareOptions{IgnoreField: unlisted})
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range diffs[:min(20, len(diffs))] {
			t.Errorf("umoci and the mount differ: %v", d)
		}
		fsck(t, n)
	}
}

// unlisted reports times that no layer says and umoci takes from its clock:
// those of parents that are in no tar, and of the root, which the second
// layer changes without listing it.
func unlisted(path, field string) bool {
	top, _, _ := strings.Cut(path, "/")
	return field == lab.FieldMTime && !strings.HasSuffix(path, "n") &&
		(path == "." || path == "crowd" || path == "hard" || top == "long")
}

// tarLayer is a gzip layer of the given entries with content made from their
// names.
func tarLayer(t *testing.T, headers []*tar.Header) v1.Layer {
	t.Helper()
	var raw bytes.Buffer
	tw := tar.NewWriter(&raw)
	for _, h := range headers {
		if err := tw.WriteHeader(h); err != nil {
			t.Fatalf("%q: %v", h.Name, err)
		}
		text := bytes.Repeat([]byte(h.Name+"."), int(h.Size)/(len(h.Name)+1)+1)
		if _, err := tw.Write(text[:h.Size]); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(raw.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// TestHugeFile reads a file of more than 4 GiB here and there.
func TestHugeFile(t *testing.T) {
	const size = 4<<30 + 12345
	dir := t.TempDir()
	tarPath := filepath.Join(dir, "huge.tar")
	f, err := os.Create(tarPath)
	if err != nil {
		t.Fatal(err)
	}
	tw := tar.NewWriter(f)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "huge", Mode: 0o644, Size: size}); err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	for left := int64(size - 4); left > 0; left -= int64(len(zeros)) {
		if _, err := tw.Write(zeros[:min(left, int64(len(zeros)))]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tw.Write([]byte("tail")); err != nil {
		t.Fatal(err)
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromFile(tarPath, tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(1))
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	l, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "huge"})); err != nil {
		t.Fatal(err)
	}
	registry, n := startRegistry(t), newNode(t)
	ref := registry.Host() + "/huge:v1"
	n.run("image", "convert", "oci:"+filepath.Join(dir, "layout")+":huge", ref, "--quiet", "--compression-level", "1")
	root := t.TempDir()
	n.mount(ref, root)
	huge, err := os.Open(filepath.Join(root, "huge"))
	if err != nil {
		t.Fatal(err)
	}
	defer huge.Close()
	if st, err := huge.Stat(); err != nil || st.Size() != size {
		t.Errorf("size = %d, %v", st.Size(), err)
	}
	for off, want := range map[int64]string{size - 4: "tail", 0: "\x00\x00\x00\x00", 1<<32 + 5: "\x00\x00\x00\x00"} {
		got := make([]byte, 4)
		if _, err := huge.ReadAt(got, off); err != nil || string(got) != want {
			t.Errorf("at %d: %q, %v; want %q", off, got, err, want)
		}
	}
}
