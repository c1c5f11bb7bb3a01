//go:build e2e

package containerd

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
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
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/estargz"
	"skimmer/internal/image/convert"
	"skimmer/internal/testkit"
)

// imageSpec is what an image is made of: the tool, and files of random bytes
// that depend on nothing but the names, so that images share layers where they
// say the same.
type imageSpec struct {
	repo string
	mid  string // what the middle layer's content depends on
	top  string // what the top layer's content depends on
	big  int    // the size of /data/big in the middle layer, in MiB
}

// testImage is an image in a registry.
type testImage struct {
	ref      string // host/repo:v1
	repo     string
	registry *testkit.Registry
	manifest ocispec.Manifest
	config   v1.ConfigFile
	sums     map[string]string // hex SHA-256 by path of all files of random bytes
	plain    []v1.Layer        // as they were before the conversion
}

// The files of every image, largest first.
const (
	bigFile = "/data/big" // in the middle layer
	midFile = "/data/mid" // in the middle layer, 4 MiB
	topFile = "/data/top" // in the top layer, 2 MiB
	lowFile = "/base/low" // in the lowest layer, 1 MiB
)

// newImage builds an image, converts it with our converter and pushes it.
func newImage(t *testing.T, r *testkit.Registry, spec imageSpec) *testImage {
	t.Helper()
	im := &testImage{repo: spec.repo, ref: r.Repo(spec.repo) + ":v1", registry: r, sums: map[string]string{}}
	program, err := os.ReadFile(tool)
	if err != nil {
		t.Fatal(err)
	}
	low := []*entry{
		dir("base"), dir("bin"), dir("data"), dir("dev"), dir("etc"), dir("proc"), dir("run"), dir("sys"), dir("tmp"),
		{tar.Header{Name: "tool", Mode: 0o755}, program},
		text("etc/passwd", "root:x:0:0:root:/:/tool\n"), text("etc/group", "root:x:0:\n"),
		im.random(lowFile, "low", 1<<20), text("base/gone", "not for long\n"),
	}
	mid := []*entry{im.random(bigFile, spec.mid, max(1, spec.big)<<20), im.random(midFile, spec.mid, 4<<20)}
	for i := range 20 {
		mid = append(mid, im.random(fmt.Sprintf("/data/small-%02d", i), spec.mid, 5000+i))
	}
	top := []*entry{im.random(topFile, spec.top, 2<<20), text("etc/name", spec.top+"\n"), text("base/.wh.gone", "")}
	for _, entries := range [][]*entry{low, mid, top} {
		im.plain = append(im.plain, tarLayer(t, entries))
	}
	im.push(t)
	return im
}

// push converts the plain layers and reads back what came of it.
func (im *testImage) push(t *testing.T) {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Cmd: []string{"/tool", "pause"}, Env: []string{"PATH=/"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if img, err = mutate.AppendLayers(img, im.plain...); err != nil {
		t.Fatal(err)
	}
	img = mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON)
	dir := filepath.Join(t.TempDir(), "layout")
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.AppendImage(img, layout.WithAnnotations(map[string]string{ocispec.AnnotationRefName: "v1"})); err != nil {
		t.Fatal(err)
	}
	src, err1 := convert.ParseLayout(dir)
	dst, err2 := convert.ParseRegistry(im.ref)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	opts := convert.ConvertOptions{Layer: estargz.BuildOptions{Level: 1, ChunkSize: 1 << 20}}
	if _, err := convert.Convert(t.Context(), src, dst, opts); err != nil {
		t.Fatal(err)
	}
	im.load(t)
	im.registry.ResetStats()
}

// load reads manifest and configuration from the registry.
func (im *testImage) load(t *testing.T) {
	t.Helper()
	p, _ := im.registry.Manifest(im.repo, "v1")
	if err := json.Unmarshal(p, &im.manifest); err != nil {
		t.Fatalf("decode manifest of %s: %v", im.ref, err)
	}
	if err := json.Unmarshal(im.registry.Blob(im.repo, im.manifest.Config.Digest), &im.config); err != nil {
		t.Fatalf("decode config of %s: %v", im.ref, err)
	}
}

// store puts manifest and configuration into the registry after a change.
func (im *testImage) store(t *testing.T) {
	t.Helper()
	config, err := json.Marshal(im.config)
	if err != nil {
		t.Fatal(err)
	}
	ref := im.registry.AddBlob(im.repo, config)
	im.manifest.Config.Digest, im.manifest.Config.Size, im.manifest.Config.Data = ref.Digest, ref.Size, nil
	p, err := json.Marshal(im.manifest)
	if err != nil {
		t.Fatal(err)
	}
	im.registry.AddManifest(im.repo, "v1", ocispec.MediaTypeImageManifest, p)
}

// copyTo puts the image into another registry without asking it.
func (im *testImage) copyTo(t *testing.T, r *testkit.Registry, repo string) *testImage {
	t.Helper()
	c := *im
	c.registry, c.repo, c.ref = r, repo, r.Repo(repo)+":v1"
	for _, d := range append([]ocispec.Descriptor{im.manifest.Config}, im.manifest.Layers...) {
		r.AddBlob(repo, im.registry.Blob(im.repo, d.Digest))
	}
	c.store(t)
	return &c
}

// usePlain puts the layer as it was before the conversion in its place.
func (im *testImage) usePlain(t *testing.T, i int) {
	t.Helper()
	rc, err := im.plain[i].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	p, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	ref := im.registry.AddBlob(im.repo, p)
	im.manifest.Layers[i] = ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerGzip, Digest: ref.Digest, Size: ref.Size,
	}
	if im.config.RootFS.DiffIDs[i], err = im.plain[i].DiffID(); err != nil {
		t.Fatal(err)
	}
	im.store(t)
}

// size returns the size of all layers.
func (im *testImage) size() (n int64) {
	for _, l := range im.manifest.Layers {
		n += l.Size
	}
	return n
}

// fetched returns how many bytes of the image's layers were sent.
func (im *testImage) fetched() (n int64) {
	stats := im.registry.Stats()
	for _, l := range im.manifest.Layers {
		n += stats.Bytes[l.Digest]
	}
	return n
}

// away makes the registry drop every connection, until ClearFaults.
func away(r *testkit.Registry) {
	for _, op := range []testkit.Op{testkit.Ping, testkit.Token, testkit.BlobGet, testkit.BlobHead,
		testkit.ManifestGet, testkit.ManifestHead, testkit.StorageGet} {
		r.Inject(testkit.Fault{On: op, Do: testkit.Reset})
	}
}

// entry is a tar entry with content.
type entry struct {
	tar.Header
	content []byte
}

func dir(name string) *entry {
	return &entry{tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}, nil}
}

func text(name, content string) *entry {
	return &entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, []byte(content)}
}

// random makes a file of random bytes and remembers its digest.
func (im *testImage) random(path, seed string, size int) *entry {
	p := make([]byte, size)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(seed + path))).Read(p) // it never fails
	sum := sha256.Sum256(p)
	im.sums[path] = hex.EncodeToString(sum[:])
	return &entry{tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(path, "/"), Mode: 0o644}, p}
}

func tarLayer(t *testing.T, entries []*entry) v1.Layer {
	t.Helper()
	var raw bytes.Buffer
	tw := tar.NewWriter(&raw)
	for _, e := range entries {
		e.Size, e.ModTime, e.Format = int64(len(e.content)), time.Unix(1234567890, 0), tar.FormatPAX
		if err := tw.WriteHeader(&e.Header); err != nil {
			t.Fatalf("%s: %v", e.Name, err)
		}
		if _, err := tw.Write(e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(raw.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer), tarball.WithCompressionLevel(1))
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// layerDigests returns the digests of the layers, the lowest first.
func (im *testImage) layerDigests() (list []digest.Digest) {
	for _, l := range im.manifest.Layers {
		list = append(list, l.Digest)
	}
	return list
}
