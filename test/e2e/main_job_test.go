//go:build e2e

package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"skimmer/internal/erofs"
	"skimmer/internal/lab"
)

// TestMainJob is what the product is for: a real Debian system with a
// language runtime becomes lazily mountable, is pushed to a real registry,
// mounted, run, and compared file by file with what a stock tool unpacks.
func TestMainJob(t *testing.T) {
	img := build(t, "python")
	registry := startRegistry(t)
	n := newNode(t)
	ref := registry.Host() + "/python:esgz"
	n.run("image", "convert", "oci:"+img.LayoutDir+":"+img.Tag, ref, "--quiet")
	size := lazySize(t, n, ref)

	registry.Reset()
	root := filepath.Join(t.TempDir(), "root")
	n.mount(ref, root)
	mounting := registry.Reset()
	res, err := lab.Run(t.Context(), root, img.Environ(), img.Spec.Programs[0].Args)
	if err != nil || !strings.Contains(res.Output, "Python 3") {
		t.Fatalf("run python from the mount: %q, %v", res.Output, err)
	}
	running := registry.Counts()
	t.Logf("image of %d bytes: %d bytes in %d requests to mount, %d in %d to run", size,
		mounting.TotalBytes(), mounting.TotalRequests(), running.TotalBytes(), running.TotalRequests())
	if got := mounting.TotalBytes() + running.TotalBytes(); got > size/4 {
		t.Errorf("%d bytes of a %d byte image were fetched to print a version", got, size)
	}
	if st := status(t, n); len(st.Mounts) != 1 || st.Mounts[0].Layers[0].Complete {
		t.Errorf("status while lazy: %+v", st)
	}
	compare(t, root, unpack(t, img.LayoutDir, img.Tag))
	fsck(t, n)

	// Reading all of it has made all of it local: the next mount needs neither
	// a process nor the registry's blobs.
	n.run("umount", root, "--socket", n.socket)
	registry.Reset()
	n.mount(ref, root)
	if _, err := lab.Run(t.Context(), root, img.Environ(), img.Spec.Programs[1].Args); err != nil {
		t.Error(err)
	}
	for d, bytes := range registry.Counts().BlobBytes {
		t.Errorf("mounted again: %d bytes of blob %v were fetched", bytes, d)
	}
	if st := status(t, n); !st.Mounts[0].Native {
		t.Error("a complete image was not mounted from its data files")
	}
}

// TestFormats mounts the same system made lazily mountable in every way there
// is.
func TestFormats(t *testing.T) {
	img := build(t, "perl")
	want := unpack(t, img.LayoutDir, img.Tag)
	registry := startRegistry(t)
	list := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(list, []byte("usr/bin/perl\n/usr/bin/dash\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, flags := range map[string][]string{
		"small-chunks":   {"--chunk-size", "65536"},
		"min-chunk-size": {"--min-chunk-size", "65536"},
		"prefetch":       {"--prefetch-file", list, "--compression-level", "1"},
		"zstdchunked":    {"--zstdchunked"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			ref := registry.Host() + "/perl:" + name
			n.run(append([]string{"image", "convert", "oci:" + img.LayoutDir + ":" + img.Tag, ref, "--quiet"}, flags...)...)
			lazySize(t, n, ref)
			root := t.TempDir()
			n.mount(ref, root)
			compare(t, root, want)
			fsck(t, n)
		})
	}
}

// build builds one of lab's images, or finds it in the cache.
func build(t *testing.T, name string) lab.Image {
	t.Helper()
	spec, ok := lab.SpecNamed(name)
	if !ok {
		t.Fatalf("no spec is called %s", name)
	}
	img, err := lab.Build(t.Context(), spec, lab.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// inspected is what of `skimmer image inspect --output json` is looked at.
type inspected struct {
	Images []struct {
		Layers []struct {
			Size   int64
			Lazy   bool
			Reason string
		}
	}
}

// lazySize checks that every layer of an image is lazily mountable and
// returns the size of all.
func lazySize(t *testing.T, n *node, ref string) (size int64) {
	t.Helper()
	out := n.run("image", "inspect", ref, "--output", "json")
	for _, p := range decode[inspected](t, out).Images {
		for i, l := range p.Layers {
			if !l.Lazy {
				t.Errorf("layer %d of %s cannot be mounted lazily: %s", i, ref, l.Reason)
			}
			size += l.Size
		}
	}
	if size == 0 {
		t.Fatalf("inspect shows no layers: %s", out)
	}
	return size
}

// nodeStatus is what of `skimmer status --output json` is looked at.
type nodeStatus struct {
	Mounts []struct {
		Native bool
		Layers []struct{ Complete bool }
	}
}

func status(t *testing.T, n *node) nodeStatus {
	t.Helper()
	return decode[nodeStatus](t, n.run("status", "--socket", n.socket, "--output", "json"))
}

// unpack unpacks an image of a layout with umoci and returns its root.
func unpack(t *testing.T, layout, tag string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "skimmer-e2e-umoci-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	bundle := filepath.Join(dir, "bundle")
	if _, err := output(t.Context(), "umoci", "unpack", "--image", layout+":"+tag, bundle); err != nil {
		t.Fatalf("umoci unpack (scripts/setup installs it): %v", err)
	}
	return filepath.Join(bundle, "rootfs")
}

// compare compares a mount with an unpacked tree, everything about every path.
func compare(t *testing.T, mount, unpacked string) {
	t.Helper()
	diffs, err := lab.CompareTrees(t.Context(), unpacked, mount, lab.CompareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range diffs {
		if i == 20 {
			t.Errorf("… and %d more differences", len(diffs)-i)
			break
		}
		t.Errorf("umoci and the mount differ: %v", d)
	}
}

// fsck has the stock checker look at every metadata image of the node.
func fsck(t *testing.T, n *node) {
	t.Helper()
	images, err := filepath.Glob(filepath.Join(n.dataDir, "metadata", "*.erofs"))
	if err != nil || len(images) == 0 {
		t.Fatalf("no metadata images: %v", err)
	}
	for _, image := range images {
		info, err := erofs.Inspect(image)
		if err != nil {
			t.Error(err)
			continue
		}
		// It recurses with large frames, and says nothing unless asked. What is
		// on the devices does not matter to it, only that they are there.
		args := []string{"-c", `ulimit -s unlimited && exec fsck.erofs -d3 "$@" 2>&1`, "fsck"}
		for range info.TOCs {
			args = append(args, "--device=/dev/zero")
		}
		out, err := output(context.Background(), "sh", append(args, image)...)
		if err != nil || !strings.Contains(out, "No errors found") {
			t.Errorf("fsck.erofs %s: %v %s", filepath.Base(image), err, out)
		}
	}
}
