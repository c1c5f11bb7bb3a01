package erofs

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"skimmer/internal/estargz"
)

// stacks are images of several layers. What merging them must give is not
// written down here: it is what umoci and the reference unpacker make of them.
func stacks() map[string][]layer {
	base := makeLayer(
		dir("", 0o755), dir("a", 0o755), reg("a/x", 10), reg("a/y", 20), dir("a/sub", 0o700), reg("a/sub/deep", 30),
		dir("b", 0o755), reg("b/one", 5000), link("b/two", "b/one"), link("b/three", "b/one"),
		dir("usr", 0o755), dir("usr/lib", 0o755), reg("usr/lib/libc", 4096), sym("lib", "usr/lib"), sym("abslib", "/usr/lib"),
		reg("plain", 7), sym("link", "plain"), dir("gone", 0o755), reg("gone/child", 3),
	)
	return map[string][]layer{
		"whiteouts": {base, makeLayer(wh("a/.wh.x"), wh(".wh.gone"), wh(".wh.never-there"), wh("b/.wh.one"))},
		"opaque directory before its new children": {base, makeLayer(dir("a", 0o711), wh("a/.wh..wh..opq"), reg("a/new", 1), dir("a/sub", 0o711), reg("a/sub/new", 2))},
		"opaque directory after its new children":  {base, makeLayer(reg("a/new", 1), dir("a/sub", 0o711), reg("a/sub/new", 2), wh("a/.wh..wh..opq"), wh("a/.wh..wh..opq"))},
		"opaque root":              {base, makeLayer(dir("", 0o700), reg("only", 1), wh(".wh..wh..opq"))},
		"whiteout after the file":  {base, makeLayer(reg("a/x", 99), wh("a/.wh.x"), dir("a/sub", 0o755), reg("a/sub/new", 1), wh("a/.wh.sub"))},
		"whiteout before the file": {base, makeLayer(wh("a/.wh.x"), reg("a/x", 99), wh("a/.wh.sub"), dir("a/sub", 0o755), reg("a/sub/new", 1))},
		"whiteout below nothing":   {base, makeLayer(wh("nowhere/.wh.x"), wh("plain/.wh.x"))},
		"bookkeeping of AUFS":      {base, makeLayer(wh(".wh..wh.plnk"), wh("a/.wh..wh.aufs"))},
		"type changes": {base, makeLayer(
			reg("a", 1), dir("plain", 0o755), reg("plain/inside", 2), sym("b", "a"), dir("link", 0o755), reg("usr/lib", 5), sym("gone", "nowhere"))},
		"new attributes of a directory":       {base, makeLayer(dir("a", 0o2750).owned(0o2750, 7, 8).with(xattrOf("user.note", "new")), dir("", 0o555))},
		"one name of a hard link overwritten": {base, makeLayer(reg("b/one", 6000))},
		"hard link to a lower layer":          {base, makeLayer(link("b/four", "b/two"), link("a/link", "plain"), link("sym", "link"))},
		"hard link replaced by itself":        {base, makeLayer(link("b/two", "b/one"), wh("b/.wh.one"))},
		"hard links in both layers": {base, makeLayer(reg("b/one", 11), link("b/two", "b/one")),
			makeLayer(wh("b/.wh.three"), link("c", "b/two"))},
		"hard link through a symlink":      {base, makeLayer(link("libc", "lib/libc"), link("usr/lib/libd", "abslib/libc"))},
		"files through symlinked parents":  {base, makeLayer(reg("lib/new", 1), reg("abslib/newer", 2), wh("lib/.wh.libc"))},
		"symlink becomes a directory":      {base, makeLayer(dir("lib", 0o755), reg("lib/new", 1))},
		"three layers":                     {base, makeLayer(wh(".wh.a"), reg("b/one", 1)), makeLayer(dir("a", 0o700), reg("a/again", 5), wh("b/.wh.two"))},
		"deleted and made again at once":   {base, makeLayer(wh(".wh.gone"), reg("gone/again", 1), dir("gone", 0o711))},
		"deleted and made again":           {base, makeLayer(wh(".wh.a")), makeLayer(dir("a", 0o755), dir("a/sub", 0o755), wh("a/.wh..wh..opq"), reg("a/sub/x", 1))},
		"everything above and below":       {everything(), base, everything()},
		"the same layer twice":             {base, base},
		"a layer of which nothing is left": {makeLayer(reg("f", 5000)), makeLayer(reg("f", 6000))},
	}
}

func TestMerge(t *testing.T) {
	for name, layers := range stacks() {
		t.Run(name, func(t *testing.T) { check(t, layers...) })
	}
}

// TestMergeImplicitParents has its own place because unpackers give
// directories nobody listed the time of unpacking, and the mount gives them 0.
func TestMergeImplicitParents(t *testing.T) {
	check(t, makeLayer(reg("a/b/c", 1)), makeLayer(reg("a/b/d", 2), reg("e/f/g", 3)), makeLayer(wh("a/.wh.b"), reg("a/b/x/y", 3)),
		makeLayer(sym("s", "a/made/../up"), reg("s/file", 1)))
}

// TestMergeLikeUmoci unpacks the same layers with umoci and compares every
// path of the mount with what is on disk then.
func TestMergeLikeUmoci(t *testing.T) {
	umoci, err := exec.LookPath("umoci")
	if err != nil {
		missing(t, "umoci is not installed (Debian package umoci)")
	}
	if os.Geteuid() != 0 {
		missing(t, "unpacking owners and devices needs root")
	}
	for name, layers := range stacks() {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			tmp := t.TempDir()
			writeLayout(t, filepath.Join(tmp, "oci"), layers)
			rootfs := filepath.Join(tmp, "rootfs")
			out, err := exec.Command(umoci, "raw", "unpack", "--image", filepath.Join(tmp, "oci")+":test", rootfs).CombinedOutput()
			if err != nil {
				t.Fatalf("umoci: %v\n%s", err, out)
			}
			want, got := see(t, rootfs), see(t, mountImage(t, build(t, Options{}, layers...)))
			// A directory umoci made up, or deleted something in, got the time
			// of doing so.
			for path, f := range want {
				if f.MTime >= start.Unix() && f.Mode&unix.S_IFMT == unix.S_IFDIR {
					f.MTime, f.MTimeNsec = got[path].MTime, got[path].MTimeNsec
					want[path] = f
				}
			}
			same(t, "mount against umoci", want, got)
		})
	}
}

// writeLayout writes layers as an OCI image layout with the tag "test".
func writeLayout(t *testing.T, root string, layers []layer) {
	t.Helper()
	blobs := filepath.Join(root, "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		t.Fatal(err)
	}
	put := func(mediaType string, p []byte) ocispec.Descriptor {
		d := digest.FromBytes(p)
		if err := os.WriteFile(filepath.Join(blobs, d.Encoded()), p, 0o644); err != nil {
			t.Fatal(err)
		}
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(p))}
	}
	marshal := func(v any) []byte {
		p, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	config := ocispec.Image{Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"}, RootFS: ocispec.RootFS{Type: "layers"}}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, l := range layers {
		d := put(ocispec.MediaTypeImageLayer, tarOf(t, l))
		manifest.Layers = append(manifest.Layers, d)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d.Digest)
	}
	manifest.Config = put(ocispec.MediaTypeImageConfig, marshal(config))
	m := put(ocispec.MediaTypeImageManifest, marshal(manifest))
	m.Annotations = map[string]string{ocispec.AnnotationRefName: "test"}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{m}}
	for name, v := range map[string]any{"index.json": index, "oci-layout": ocispec.ImageLayout{Version: "1.0.0"}} {
		if err := os.WriteFile(filepath.Join(root, name), marshal(v), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func tarOf(t *testing.T, l layer) []byte {
	t.Helper()
	types := map[estargz.EntryType]byte{
		estargz.Dir: tar.TypeDir, estargz.Regular: tar.TypeReg, estargz.Symlink: tar.TypeSymlink, estargz.Hardlink: tar.TypeLink,
		estargz.Char: tar.TypeChar, estargz.Block: tar.TypeBlock, estargz.Fifo: tar.TypeFifo,
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range l.files {
		h := &tar.Header{
			Name: "./" + f.Name, Typeflag: types[f.Type], Mode: int64(f.Mode), Uid: int(f.UID), Gid: int(f.GID), Linkname: f.Link,
			Size: f.Size, Devmajor: int64(f.DevMajor), Devminor: int64(f.DevMinor), ModTime: time.Unix(f.MTime, int64(f.MTimeNsec)),
			Format: tar.FormatPAX, PAXRecords: map[string]string{},
		}
		for _, x := range f.Xattrs {
			h.PAXRecords["SCHILY.xattr."+x.Name] = string(x.Value)
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("tar header of %q: %v", f.Name, err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestDevicesOfMerge(t *testing.T) {
	layers := []layer{makeLayer(reg("f", 5000)), makeLayer(dir("d", 0o755)), makeLayer(reg("g", 1)), makeLayer(reg("f", 6000))}
	im := check(t, layers...)
	if got := fmt.Sprint(im.info.Devices); got != "[2 3]" {
		t.Errorf("devices are for the layers %s, want [2 3]", got)
	}
	if im.info.TOCs[0] != layers[2].toc.Digest || im.info.TOCs[1] != layers[3].toc.Digest {
		t.Errorf("TOCs %v", im.info.TOCs)
	}
}

// TestManyLayers takes as many layers as overlayfs would, each replacing one
// file and hiding another.
func TestManyLayers(t *testing.T) {
	var layers []layer
	for i := range 128 {
		layers = append(layers, makeLayer(reg("common", 100+i), reg(fmt.Sprintf("own%d", i), i+1), wh(fmt.Sprintf(".wh.own%d", i-7))))
	}
	im := check(t, layers...)
	if len(im.devices) != 7 {
		t.Errorf("%d devices, want those of the last 7 layers", len(im.devices))
	}
	layers = nil
	for i := range 128 {
		layers = append(layers, makeLayer(reg(fmt.Sprintf("own%d", i), i+1)))
	}
	if im = check(t, layers...); len(im.devices) != 128 {
		t.Errorf("%d devices, want 128", len(im.devices))
	}
}

// TestKeepWhiteouts stacks images of single layers with overlayfs and expects
// the same as from the merged image.
func TestKeepWhiteouts(t *testing.T) {
	for name, layers := range stacks() {
		switch name {
		case "whiteout below nothing", "opaque root", "files through symlinked parents", "hard link through a symlink", "hard link to a lower layer", "hard links in both layers",
			"hard link replaced by itself", "one name of a hard link overwritten", "everything above and below", "the same layer twice":
			// overlayfs cannot know: what happens in one layer stays in it. Nor
			// does it look for the marks of a whole layer's root.
			continue
		}
		t.Run(name, func(t *testing.T) {
			lower := ""
			for _, l := range layers {
				lower = mountImage(t, build(t, Options{KeepWhiteouts: true}, l)) + ":" + lower
			}
			// Two lower directories at least, for a read-only overlay.
			target := t.TempDir()
			if err := unix.Mount("overlay", target, "overlay", unix.MS_RDONLY, "lowerdir="+lower+t.TempDir()); err != nil {
				t.Fatal(err)
			}
			defer unix.Unmount(target, 0)
			want, got := see(t, mountImage(t, build(t, Options{}, layers...))), see(t, target)
			for _, w := range []world{want, got} { // got last, it is asked
				for path, f := range w {
					f.Nlink, f.Peers = 0, "" // overlayfs counts its own way
					if got[path].MTime == 0 {
						f.MTime = 0 // a made-up parent, which covers the one below
					}
					w[path] = f
				}
			}
			same(t, "overlay", want, got)
		})
	}
}

func TestKeptWhiteouts(t *testing.T) {
	l := makeLayer(dir("", 0o755), wh(".wh.gone"), wh("d/.wh..wh..opq"), reg("d/new", 1), wh(".wh.both"), dir("both", 0o700), dir("late", 0o700), wh(".wh.late"),
		reg("f", 1), wh(".wh.f"), wh(".wh.implied"), reg("implied/x", 1))
	w := see(t, mountImage(t, build(t, Options{KeepWhiteouts: true}, l)))
	if f := w["gone"]; f.Mode != unix.S_IFCHR || f.Rdev != 0 {
		t.Errorf("whiteout has mode %o and device %d", f.Mode, f.Rdev)
	}
	for _, d := range []string{"d", "both", "late", "implied"} {
		if f := w[d]; f.Mode&unix.S_IFMT != unix.S_IFDIR || f.Xattrs != `"trusted.overlay.opaque"="y"` {
			t.Errorf("%s has mode %o and attributes %s", d, f.Mode, f.Xattrs)
		}
	}
	if len(w) != 9 {
		t.Errorf("%d paths, want 9: %v", len(w), w)
	}
	if _, err := Build(&bytes.Buffer{}, tocs([]layer{l, l}), Options{KeepWhiteouts: true}); err == nil {
		t.Error("whiteouts of two layers were kept")
	}
}
