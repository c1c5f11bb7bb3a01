package peer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"skimmer/internal/blob/blobtest"
	"skimmer/internal/erofs"
	"skimmer/internal/testkit"
)

// These benchmarks report what docs/benchmarks.md shows: ratios of the product
// against a named baseline that ran in turn with it, so that a machine whose
// speed drifts distorts both alike.

// versus runs ours and theirs b.N times in turn and reports the ratio of their
// times, ours over theirs, under the given name.
func versus(b *testing.B, name string, ours, theirs func()) {
	b.Helper()
	var our, their time.Duration
	for b.Loop() {
		t0 := time.Now()
		ours()
		t1 := time.Now()
		theirs()
		our, their = our+t1.Sub(t0), their+time.Since(t1)
	}
	b.ReportMetric(float64(our)/float64(their), name)
	b.ReportMetric(float64(our.Nanoseconds())/float64(b.N), "ours-ns")
	b.ReportMetric(float64(their.Nanoseconds())/float64(b.N), "theirs-ns")
}

// textual returns n bytes that compress about as programs do.
func textual(n int) []byte {
	noise := blobtest.Bytes(7, n)
	for i, c := range noise {
		if i%3 != 0 {
			noise[i] = "etaoin shrdlu_()"[c&15]
		}
	}
	return noise
}

// BenchmarkMountLocal: mounting an image whose metadata is here, against the
// mount of a ready EROFS file and its unmount.
func BenchmarkMountLocal(b *testing.B) {
	p, _ := start(b, nil)
	image := push(b, testkit.DockerRegistry(b), "bench/image:v1", map[string][]byte{"f": textual(1 << 20)})
	root := b.TempDir()
	m, err := p.Mount(b.Context(), image, root)
	if err != nil {
		b.Fatal(err)
	}
	device := filepath.Join(b.TempDir(), "device")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		b.Fatal(err)
	}
	if err := os.Truncate(device, m.Image.Layers[0].DataSize); err != nil {
		b.Fatal(err)
	}
	byDigest := m.Image.Repository + "@" + m.Manifest.String()
	must(b, p.Unmount(b.Context(), root, false))
	versus(b, "mounts", func() {
		_, err := p.Mount(b.Context(), byDigest, root)
		must(b, err)
		must(b, p.Unmount(b.Context(), root, false))
	}, func() {
		must(b, erofs.Mount(erofs.MountOptions{Metadata: p.images.MetadataPath(m.Image), Devices: []string{device}, Target: root}))
		must(b, erofs.Unmount(root, false))
	})
}

// mountUntilEnd mounts an image on a folder until the benchmark ends.
func mountUntilEnd(b *testing.B, p *Peer, image string) string {
	b.Helper()
	root := b.TempDir()
	_, err := p.Mount(b.Context(), image, root)
	must(b, err)
	b.Cleanup(func() { must(b, p.Unmount(context.Background(), root, true)) })
	return root
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkWarmRead: reading a 256 MiB file through the mount, from the page
// cache, against the same file on the disk's file system.
func BenchmarkWarmRead(b *testing.B) {
	p, _ := start(b, nil)
	content := textual(256 << 20)
	image := push(b, testkit.DockerRegistry(b), "bench/image:v1", map[string][]byte{"f": content})
	root := mountUntilEnd(b, p, image)
	plain := filepath.Join(b.TempDir(), "f")
	must(b, os.WriteFile(plain, content, 0o600))
	buf := make([]byte, 1<<20)
	read := func(path string) {
		f, err := os.Open(path)
		must(b, err)
		defer f.Close()
		_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, buf)
		must(b, err)
	}
	read(filepath.Join(root, "f"))
	read(plain)
	versus(b, "of-disk-time", func() { read(filepath.Join(root, "f")) }, func() { read(plain) })
}

// BenchmarkStat: 10,000 stats through the mount, against the same on the
// disk's file system.
func BenchmarkStat(b *testing.B) {
	p, _ := start(b, nil)
	const files = 10000
	contents := make(map[string][]byte, files)
	plain := b.TempDir()
	for i := range files {
		name := fmt.Sprintf("d%02d/f%04d", i%100, i)
		contents[name] = []byte("x")
		must(b, os.MkdirAll(filepath.Join(plain, filepath.Dir(name)), 0o755))
		must(b, os.WriteFile(filepath.Join(plain, name), []byte("x"), 0o644))
	}
	image := push(b, testkit.DockerRegistry(b), "bench/image:v1", contents)
	root := mountUntilEnd(b, p, image)
	stat := func(root string) func() {
		var paths []string
		must(b, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				paths = append(paths, path)
			}
			return err
		}))
		return func() {
			var st syscall.Stat_t
			for _, path := range paths {
				must(b, syscall.Lstat(path, &st))
			}
		}
	}
	versus(b, "of-disk-time", stat(root), stat(plain))
}

// BenchmarkColdRead: reading all of a layer of 192 MiB through a fresh mount
// from a registry on this machine, against curl | gunzip of the same blob.
func BenchmarkColdRead(b *testing.B) {
	if _, err := exec.LookPath("curl"); err != nil {
		b.Fatal("curl is not installed: run scripts/setup")
	}
	contents := make(map[string][]byte)
	for i := range 48 {
		contents[fmt.Sprintf("f%02d", i)] = textual(4 << 20)
	}
	host := testkit.DockerRegistry(b)
	image := push(b, host, "bench/image:v1", contents)
	var blobURL string
	versus(b, "of-gunzip-time", func() {
		p, _ := start(b, nil)
		root := b.TempDir()
		_, err := p.Mount(context.Background(), image, root)
		must(b, err)
		buf := make([]byte, 1<<20)
		for i := range 48 {
			f, err := os.Open(filepath.Join(root, fmt.Sprintf("f%02d", i)))
			must(b, err)
			_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, buf)
			must(b, err)
			must(b, f.Close())
		}
		must(b, p.Unmount(context.Background(), root, true))
		must(b, p.Close())
		blobURL = fmt.Sprintf("http://%s/v2/bench/image/blobs/%s", host, p.images.Images()[0].Layers[0].Digest)
	}, func() {
		out, err := exec.Command("sh", "-c", "curl -sS "+blobURL+" | gunzip | wc -c").CombinedOutput()
		if err != nil || bytes.HasPrefix(out, []byte("0")) {
			b.Fatalf("curl | gunzip: %s, %v", out, err)
		}
	})
}
