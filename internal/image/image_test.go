package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/erofs"
	"skimmer/internal/estargz"
	"skimmer/internal/image"
	"skimmer/internal/testkit"
)

// world is a registry in memory: blobs and manifests, and a switch that takes
// it away.
type world struct {
	blobtest.Memory
	manifests map[string][]byte // by repository:tag and repository@digest
	away      atomic.Bool
	asked     atomic.Int64 // manifests asked for
	read      blob.Counter
	bodies    map[string][]byte // of files that do not hold what content says
}

func newWorld() *world {
	w := &world{manifests: make(map[string][]byte)}
	w.Before = func(ctx context.Context, _ blob.Ref, r blob.Range) error {
		blob.TrafficOf(ctx).Origin.Add(r.Len)
		return w.check()
	}
	return w
}

func (w *world) check() error {
	if w.away.Load() {
		return blob.Errorf(blob.Unavailable, "registry is away")
	}
	return nil
}

func (w *world) Manifest(_ context.Context, repo, reference string) ([]byte, string, digest.Digest, error) {
	w.asked.Add(1)
	if err := w.check(); err != nil {
		return nil, "", "", err
	}
	data, ok := w.manifests[repo+" "+reference]
	if !ok {
		return nil, "", "", blob.Errorf(blob.NotFound, "no manifest %s %s", repo, reference)
	}
	return data, ocispec.MediaTypeImageManifest, digest.FromBytes(data), nil
}

const repo = "memory.test/blobs"

// push builds an image of the given tar layers and tags it.
func (w *world) push(t *testing.T, tag string, edit func(*ocispec.Manifest), layers ...[]*tar.Header) image.Name {
	t.Helper()
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for i, headers := range layers {
		var raw, out bytes.Buffer
		tw := tar.NewWriter(&raw)
		for _, h := range headers {
			body, ok := w.bodies[h.Name]
			if !ok {
				body = content(h.Name, int(h.Size))
			}
			if err := errors.Join(tw.WriteHeader(h), write(tw, body)); err != nil {
				t.Fatal(err)
			}
		}
		if err := tw.Close(); err != nil {
			t.Fatal(err)
		}
		built, err := estargz.Build(t.Context(), &out, bytes.NewReader(raw.Bytes()), int64(raw.Len()), estargz.BuildOptions{ChunkSize: 64 << 10})
		if err != nil {
			t.Fatalf("build layer %d: %v", i, err)
		}
		ref := w.Add(out.Bytes())
		m.Layers = append(m.Layers, ocispec.Descriptor{
			MediaType: built.MediaType, Digest: ref.Digest, Size: ref.Size, Annotations: built.Annotations,
		})
	}
	if edit != nil {
		edit(&m)
	}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	w.manifests[repo+" "+tag] = data
	w.manifests[repo+" "+digest.FromBytes(data).String()] = data
	return image.Name{Repository: repo, Tag: tag}
}

// layersOf returns the digests of the layers of a pushed image.
func (w *world) layersOf(t testing.TB, tag string) (layers []digest.Digest) {
	t.Helper()
	var m ocispec.Manifest
	if err := json.Unmarshal(w.manifests[repo+" "+tag], &m); err != nil {
		t.Fatal(err)
	}
	for _, d := range m.Layers {
		layers = append(layers, d.Digest)
	}
	return layers
}

func write(tw *tar.Writer, p []byte) error {
	_, err := tw.Write(p)
	return err
}

// content is what the file of that name and size holds.
func content(name string, size int) []byte {
	return blobtest.Bytes(uint64(len(name))+uint64(size), size)
}

func file(name string, size int) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(size), Mode: 0o644}
}

func dir(name string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}
}

func open(t testing.TB, w *world, dir string, edit func(*image.Config)) *image.Library {
	t.Helper()
	cfg := image.Config{Dir: dir, Source: blob.Meter(w, &w.read), Resolver: w}
	if edit != nil {
		edit(&cfg)
	}
	l, err := image.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		unmountStacks(t, dir)
	})
	return l
}

// unmountStacks takes away the mounts that a library in dir has left.
func unmountStacks(t testing.TB, dir string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "stacks", "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		for {
			if here, err := erofs.Mounted(path); err != nil || !here {
				break
			}
			if err := erofs.Unmount(path, true); err != nil {
				t.Error(err)
				break
			}
		}
	}
}

func check(t *testing.T, root, name string, size int) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Errorf("read: %v", err)
	} else if !bytes.Equal(got, content(name, size)) {
		t.Errorf("%s: wrong content (%d bytes)", name, len(got))
	}
}

var twoLayers = [][]*tar.Header{
	{dir("etc"), file("etc/kept", 10), file("etc/gone", 10), file("etc/changed", 10), dir("opaque"), file("opaque/old", 5), file("big", 1<<20)},
	{dir("etc"), file("etc/.wh.gone", 0), file("etc/changed", 77777), dir("opaque"), file("opaque/.wh..wh..opq", 0), file("opaque/new", 5)},
}

func TestMountIsLazyAndMerged(t *testing.T) {
	testkit.NeedMount(t)
	w := newWorld()
	name := w.push(t, "v1", nil, twoLayers...)
	l := open(t, w, t.TempDir(), nil)
	root := filepath.Join(t.TempDir(), "not", "there", "yet")
	m, timing, err := l.Mount(t.Context(), name, root)
	if err != nil {
		t.Fatal(err)
	}
	if timing.Index == 0 || timing.Metadata == 0 || timing.Mount == 0 || m.Native {
		t.Errorf("mount = %+v, timing %+v", m, timing)
	}
	var names []string
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		names = append(names, strings.TrimPrefix(p, root))
		return err
	})
	if want := " /big /etc /etc/changed /etc/kept /opaque /opaque/new"; err != nil || strings.Join(names, " ") != want {
		t.Errorf("tree = %q, %v; want %q", strings.Join(names, " "), err, want)
	}
	for _, s := range l.LayerStates(m.Image) {
		if s.Present != 0 {
			t.Errorf("layer %v: %d bytes of file data were fetched to mount it and look around", s.Digest, s.Present)
		}
	}
	check(t, root, "etc/kept", 10)
	check(t, root, "etc/changed", 77777)
	check(t, root, "big", 1<<20)

	// Again on the same folder: nothing to do. Another image there: refused.
	before := w.read.Reads.Load()
	if _, _, err := l.Mount(t.Context(), name, root); err != nil {
		t.Errorf("mount again: %v", err)
	}
	if n := w.read.Reads.Load() - before; n != 0 {
		t.Errorf("mounting again made %d reads", n)
	}
	other := w.push(t, "v2", nil, twoLayers[0])
	if _, _, err := l.Mount(t.Context(), other, root); blob.KindOf(err) != blob.Invalid || !strings.Contains(err.Error(), "skimmer umount") {
		t.Errorf("mount another image there: %v", err)
	}
	if err := l.Unmount(root, false); err != nil {
		t.Error(err)
	}
	if err := l.Unmount(root, false); blob.KindOf(err) != blob.NotFound {
		t.Errorf("unmount twice: %v", err)
	}
}

func TestWhatIsKeptNeedsNoRegistry(t *testing.T) {
	testkit.NeedMount(t)
	w, dir := newWorld(), t.TempDir()
	name := w.push(t, "v1", nil, twoLayers...)
	root := t.TempDir()
	l := open(t, w, dir, nil)
	if _, _, err := l.Mount(t.Context(), name, root); err != nil {
		t.Fatal(err)
	}
	check(t, root, "etc/kept", 10)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	w.away.Store(true)
	l = open(t, w, dir, func(c *image.Config) { c.IOTimeout = 200 * time.Millisecond })
	if _, timing, err := l.Mount(t.Context(), name, root); err != nil || timing.Index != 0 {
		t.Fatalf("mount without a registry: %v (timing %+v)", err, timing)
	}
	check(t, root, "etc/kept", 10)
	if _, err := os.ReadFile(filepath.Join(root, "big")); err == nil {
		t.Error("a file that was never fetched could be read without a registry")
	}
	w.away.Store(false)
	// A busy machine may need more than the time that one read has.
	testkit.Eventually(t, time.Minute, "read when the registry is back", func() error {
		_, err := os.ReadFile(filepath.Join(root, "big"))
		return err
	})
	check(t, root, "big", 1<<20)
}

func TestCompleteImageOutlivesTheLibrary(t *testing.T) {
	testkit.NeedMount(t)
	w, dir := newWorld(), t.TempDir()
	name := w.push(t, "v1", nil, twoLayers...)
	l := open(t, w, dir, nil)
	im, _, err := l.Prepare(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Complete(t.Context(), im); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	m, _, err := l.Mount(t.Context(), name, root)
	if err != nil || !m.Native {
		t.Fatalf("mount of a complete image: native %v, %v", m.Native, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	check(t, root, "big", 1<<20)

	// The next library finds the mount and can take it away.
	l = open(t, w, dir, nil)
	if ms := l.Mounts(); len(ms) != 1 || ms[0].Target != root {
		t.Fatalf("mounts after a restart: %+v", ms)
	}
	if err := l.Unmount(root, false); err != nil {
		t.Error(err)
	}
	if here, err := erofs.Mounted(root); here || err != nil {
		t.Errorf("still mounted: %v, %v", here, err)
	}
}

func TestPrepareOnceForAll(t *testing.T) {
	testkit.NeedMount(t)
	w := newWorld()
	// As converters other than ours make it: no table of contents in the manifest.
	name := w.push(t, "v1", func(m *ocispec.Manifest) {
		for _, layer := range m.Layers {
			delete(layer.Annotations, estargz.TOCAnnotation)
		}
	}, twoLayers...)
	l := open(t, w, t.TempDir(), nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, _, err := l.Prepare(t.Context(), name); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// One tail read a layer holds footer and table of contents.
	if n := w.read.Reads.Load(); n != 2 {
		t.Errorf("%d reads for 2 layers prepared 8 times", n)
	}
}

func TestPrepareFailures(t *testing.T) {
	testkit.NeedMount(t)
	w := newWorld()
	plain := func(m *ocispec.Manifest) { m.Layers[0].Annotations = nil }
	wrongTOC := func(m *ocispec.Manifest) {
		m.Layers[0].Annotations = map[string]string{"containerd.io/snapshot/stargz/toc.digest": digest.FromString("x").String()}
	}
	lost := func(m *ocispec.Manifest) { m.Layers[0].Digest = digest.FromString("lost") }
	l := open(t, w, t.TempDir(), nil)
	for _, c := range []struct {
		name image.Name
		kind blob.Kind
		text string
	}{
		{w.push(t, "plain", plain, twoLayers[0]), blob.Invalid, "skimmer image convert"},
		{w.push(t, "toc", wrongTOC, twoLayers[0]), blob.Corrupt, "table of contents"},
		{w.push(t, "lost", lost, twoLayers[0]), blob.NotFound, digest.FromString("lost").String()},
		{image.Name{Repository: repo, Tag: "none"}, blob.NotFound, "none"},
	} {
		root := filepath.Join(t.TempDir(), "root")
		_, _, err := l.Mount(t.Context(), c.name, root)
		if blob.KindOf(err) != c.kind || !strings.Contains(fmt.Sprint(err), c.text) {
			t.Errorf("%v: got kind %v, %v; want %v naming %q", c.name, blob.KindOf(err), err, c.kind, c.text)
		}
		if here, _ := erofs.Mounted(root); here {
			t.Errorf("%v: mounted all the same", c.name)
		}
	}
	// A failure is not remembered.
	w.away.Store(true)
	name := w.push(t, "v1", nil, twoLayers[0])
	if _, _, err := l.Prepare(t.Context(), name); blob.KindOf(err) != blob.Unavailable {
		t.Errorf("prepare without a registry: %v", err)
	}
	w.away.Store(false)
	if _, _, err := l.Prepare(t.Context(), name); err != nil {
		t.Errorf("prepare when it is back: %v", err)
	}
}
