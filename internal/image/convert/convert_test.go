package convert

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	stock "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
)

var discardLogger = log.New(io.Discard, "", 0)

// small makes several chunks of the test image's files.
func small(t testing.TB) ConvertOptions {
	return ConvertOptions{
		Options: Options{TempDir: t.TempDir()},
		Layer:   estargz.BuildOptions{ChunkSize: 64 << 10},
	}
}

// checkImage holds a converted image against the one it was made from, with
// the tools of others.
func checkImage(t *testing.T, src, img v1.Image) {
	t.Helper()
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	// Digests, sizes, config and diff IDs against each other and the content;
	// the library cannot decompress zstd.
	var opts []validate.Option
	if m.Layers[0].MediaType == types.OCILayerZStd {
		opts = append(opts, validate.Fast)
	}
	if err := validate.Image(img, opts...); err != nil {
		t.Errorf("validate: %v", err)
	}
	if m.MediaType != types.OCIManifestSchema1 || m.Config.MediaType != types.OCIConfigJSON {
		t.Errorf("media types %s, %s are not OCI's", m.MediaType, m.Config.MediaType)
	}
	conf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if raw, err := img.RawConfigFile(); err != nil || !bytes.Equal(raw, m.Config.Data) {
		t.Errorf("the manifest brings the config %q, %v, want %q", m.Config.Data, err, raw)
	}
	want, err := src.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	want.RootFS = conf.RootFS
	if diff := cmp.Diff(want, conf); diff != "" {
		t.Errorf("config besides the diff IDs changed (-want +got):\n%s", diff)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	srcLayers, err := src.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) != len(srcLayers) {
		t.Fatalf("%d layers, want %d", len(layers), len(srcLayers))
	}
	for i, l := range layers {
		checkLayer(t, l, m.Layers[i], conf.RootFS.DiffIDs[i], srcLayers[i])
	}
}

// checkLayer has the stock verifier check a layer and compares its files with
// those of the source.
func checkLayer(t *testing.T, l v1.Layer, d v1.Descriptor, diffID v1.Hash, src v1.Layer) {
	t.Helper()
	rc, err := l.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	p, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	var plain io.Reader
	switch d.MediaType {
	case types.OCILayer:
		plain, err = gzip.NewReader(bytes.NewReader(p))
	case types.OCILayerZStd:
		plain, err = zstd.NewReader(bytes.NewReader(p))
	default:
		err = fmt.Errorf("layer has media type %s", d.MediaType)
	}
	if err != nil {
		t.Fatal(err)
	}
	hash := sha256.New()
	n, err := io.Copy(hash, plain)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%x", hash.Sum(nil)); got != diffID.Hex {
		t.Errorf("layer %v: sha256 of the tar is %s, diff ID %s", d.Digest, got, diffID)
	}
	if want := fmt.Sprint(n); d.Annotations["io.containers.estargz.uncompressed-size"] != want {
		t.Errorf("layer %v: annotations %v, want uncompressed size %s", d.Digest, d.Annotations, want)
	}
	opts := []stock.OpenOption{}
	if d.MediaType == types.OCILayerZStd {
		opts = append(opts, stock.WithDecompressors(&zstdchunked.Decompressor{}))
	}
	r, err := stock.Open(io.NewSectionReader(bytes.NewReader(p), 0, int64(len(p))), opts...)
	if err != nil {
		t.Fatalf("stock reader: %v", err)
	}
	if d.MediaType != types.OCILayerZStd {
		off, _, err := stock.OpenFooter(io.NewSectionReader(bytes.NewReader(p), 0, int64(len(p))))
		if got := d.Annotations["skimmer.estargz.toc-offset"]; err != nil || got != fmt.Sprint(off) {
			t.Errorf("layer %v: table of contents is annotated to be at %q, the footer says %d, %v", d.Digest, got, off, err)
		}
	}
	if _, err := r.VerifyTOC(digest.Digest(d.Annotations["containerd.io/snapshot/stargz/toc.digest"])); err != nil {
		t.Errorf("stock verifier: %v", err)
	}
	checkFiles(t, r, src)
}

// checkFiles compares the files a stock reader sees with a source layer.
func checkFiles(t *testing.T, r *stock.Reader, src v1.Layer) {
	t.Helper()
	rc, err := src.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	seen := 0
	for e := range tarEntries(t, rc) {
		seen++
		got, ok := r.Lookup(strings.TrimSuffix(e.Name, "/"))
		if !ok {
			t.Errorf("%s is gone", e.Name)
			continue
		}
		if e.Typeflag != '0' || len(e.content) == 0 {
			continue
		}
		sr, err := r.OpenFile(got.Name)
		if err != nil {
			t.Errorf("open %s: %v", e.Name, err)
			continue
		}
		content := make([]byte, sr.Size())
		if _, err := sr.ReadAt(content, 0); err != nil && err != io.EOF {
			t.Errorf("read %s: %v", e.Name, err)
		}
		if !bytes.Equal(content, e.content) {
			t.Errorf("%s: content differs", e.Name)
		}
	}
	if seen == 0 {
		t.Error("source layer is empty")
	}
}

func TestConvertIndex(t *testing.T) {
	src := testIndex(t)
	for _, dst := range []string{"layout", "memory registry", "docker-registry"} {
		t.Run(dst, func(t *testing.T) {
			from := writeLayout(t, "v1", src)
			to := Name{Transport: Layout, Path: filepath.Join(t.TempDir(), "out")}
			switch dst {
			case "memory registry":
				to = parse(t, memoryRegistry(t)+"/some/app:esgz")
			case "docker-registry":
				to = parse(t, dockerRegistry(t, "")+"/some/app:esgz")
			}
			r, err := Convert(t.Context(), from, to, small(t))
			if err != nil {
				t.Fatal(err)
			}
			if r.MediaType != ocispec.MediaTypeImageIndex || len(r.Images) != 2 || len(r.Warnings) != 0 {
				t.Errorf("result %+v", r)
			}
			idx := resultIndex(t, to)
			if d, err := idx.Digest(); err != nil || d.String() != r.Digest.String() {
				t.Errorf("index has digest %v, result says %v (%v)", d, r.Digest, err)
			}
			checkIndex(t, src, idx)
		})
	}
}

// checkIndex compares a converted index with its source.
func checkIndex(t *testing.T, src, idx v1.ImageIndex) {
	t.Helper()
	m, err := idx.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	srcM, err := src.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Manifests) != 4 || m.MediaType != types.OCIImageIndex {
		t.Fatalf("index %+v", m)
	}
	for i := range 2 {
		if diff := cmp.Diff(srcM.Manifests[i].Platform, m.Manifests[i].Platform); diff != "" {
			t.Errorf("platform changed: %s", diff)
		}
		img, err := idx.Image(m.Manifests[i].Digest)
		if err != nil {
			t.Fatal(err)
		}
		srcImg, err := src.Image(srcM.Manifests[i].Digest)
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, srcImg, img)
		att := m.Manifests[i+2]
		if att.Digest != srcM.Manifests[i+2].Digest {
			t.Errorf("attestation %d was changed", i)
		}
		if got := att.Annotations[annotationReference]; got != m.Manifests[i].Digest.String() {
			t.Errorf("attestation %d is about %s, the image is %v", i, got, m.Manifests[i].Digest)
		}
		if _, err := idx.Image(att.Digest); err != nil {
			t.Errorf("attestation %d: %v", i, err)
		}
	}
	a, _ := idx.Image(m.Manifests[0].Digest)
	b, _ := idx.Image(m.Manifests[1].Digest)
	la, _ := a.Layers()
	lb, _ := b.Layers()
	if da, _ := la[0].Digest(); len(lb) > 0 {
		if db, _ := lb[0].Digest(); da != db {
			t.Errorf("the shared layer became two: %v, %v", da, db)
		}
	}
}

// TestSharedLayerOnce counts how often layers are worked on.
func TestSharedLayerOnce(t *testing.T) {
	var mu sync.Mutex
	begun := make(map[digest.Digest]int)
	ends := make(map[State]int)
	opts := small(t)
	opts.Report = func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		if e.State == Converting && e.Done == 0 {
			begun[e.Blob.Digest]++
		}
		if e.State == Done || e.State == Present {
			ends[e.State]++
		}
	}
	to := Name{Transport: Layout, Path: filepath.Join(t.TempDir(), "out")}
	if _, err := Convert(t.Context(), writeLayout(t, "v1", testIndex(t)), to, opts); err != nil {
		t.Fatal(err)
	}
	if len(begun) != 4 {
		t.Errorf("%d layers were converted, want 4", len(begun))
	}
	for d, n := range begun {
		if n != 1 {
			t.Errorf("layer %v was converted %d times", d, n)
		}
	}
	// Two attestations have the same one blob.
	if ends[Done] != 5 {
		t.Errorf("blobs ended as %v, want 5 done", ends)
	}
}

func TestConvertSources(t *testing.T) {
	img := testImage(t, "amd64", types.DockerLayer)
	oci := testImage(t, "amd64", types.OCILayerZStd)
	dir := t.TempDir()
	tag, err := name.NewTag("example.test/app:v2")
	if err != nil {
		t.Fatal(err)
	}
	save := filepath.Join(dir, "save.tar")
	if err := tarball.WriteToFile(save, tag, img); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(dir, "plain.tar")
	writeDockerSave(t, plain, img)
	zipped := filepath.Join(dir, "zipped.tar.gz")
	gzipFile(t, plain, zipped)
	reg := memoryRegistry(t)
	archive := filepath.Join(dir, "oci.tar")
	if _, err := Copy(t.Context(), writeLayout(t, "v1", oci), parse(t, "oci-archive:"+archive+":v1"), Options{}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		src  Name
		img  v1.Image
	}{
		{"layout", writeLayout(t, "v1", img), img},
		{"layout zstd", writeLayout(t, "v1", oci), oci},
		{"registry", pushed(t, reg+"/app:v1", img), img},
		{"docker archive of compressed layers", parse(t, "docker-archive:"+save+":example.test/app:v2"), img},
		{"docker archive of plain layers with links", parse(t, "docker-archive:"+plain), img},
		{"detected archive", parse(t, plain), img},
		{"compressed archive", parse(t, zipped), img},
		{"oci archive", parse(t, "oci-archive:"+archive+":v1"), oci},
		{"detected oci archive", parse(t, archive), oci},
	} {
		t.Run(c.name, func(t *testing.T) {
			to := Name{Transport: Layout, Path: filepath.Join(t.TempDir(), "out"), Tag: "x"}
			r, err := Convert(t.Context(), c.src, to, small(t))
			if err != nil {
				t.Fatal(err)
			}
			if r.MediaType != ocispec.MediaTypeImageManifest {
				t.Errorf("media type %s", r.MediaType)
			}
			checkImage(t, c.img, resultImage(t, to))
		})
	}
}

// TestReproducible converts the same image from different places, again, and
// what came of it once more.
func TestReproducible(t *testing.T) {
	for _, zstdchunked := range []bool{false, true} {
		t.Run(fmt.Sprint("zstdchunked ", zstdchunked), func(t *testing.T) {
			opts := small(t)
			opts.Layer.Zstd = zstdchunked
			opts.Layer.Prefetch = []string{"app/main", "bin/tool"}
			reg := memoryRegistry(t)
			idx := testIndex(t)
			to := parse(t, reg+"/app:esgz")
			first, err := Convert(t.Context(), writeLayout(t, "v1", idx), to, opts)
			if err != nil {
				t.Fatal(err)
			}
			if first.Uploaded == 0 {
				t.Error("nothing was uploaded at first")
			}
			opts.Jobs = 1
			second, err := Convert(t.Context(), pushed(t, reg+"/app:v1", idx), to, opts)
			if err != nil {
				t.Fatal(err)
			}
			if second.Digest != first.Digest || second.Uploaded != 0 {
				t.Errorf("again: digest %v, %d bytes uploaded, want %v and none", second.Digest, second.Uploaded, first.Digest)
			}
			third, err := Convert(t.Context(), to, parse(t, reg+"/other:esgz"), opts)
			if err != nil {
				t.Fatal(err)
			}
			if third.Digest != first.Digest {
				t.Errorf("converting the result gives %v, want %v", third.Digest, first.Digest)
			}
			checkIndex(t, idx, resultIndex(t, to))
		})
	}
}

func TestPlatforms(t *testing.T) {
	src := writeLayout(t, "v1", testIndex(t))
	to := Name{Transport: Layout, Path: filepath.Join(t.TempDir(), "out")}
	opts := small(t)
	opts.Platforms = []ocispec.Platform{{OS: "linux", Architecture: "arm64", Variant: "v8"}}
	r, err := Convert(t.Context(), src, to, opts)
	if err != nil {
		t.Fatal(err)
	}
	m, err := resultIndex(t, to).IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	// The image and the attestation that is about it.
	if len(m.Manifests) != 2 || m.Manifests[0].Platform.Architecture != "arm64" ||
		m.Manifests[1].Annotations[annotationReference] != m.Manifests[0].Digest.String() {
		t.Errorf("index of one platform: %+v", m.Manifests)
	}
	if len(r.Images) != 1 || r.Images[0].Platform != "linux/arm64/v8" {
		t.Errorf("result %+v", r.Images)
	}

	opts.Platforms = append(opts.Platforms, ocispec.Platform{OS: "linux", Architecture: "s390x"})
	_, err = Convert(t.Context(), src, to, opts)
	if blob.KindOf(err) != blob.NotFound || !strings.Contains(err.Error(), "linux/s390x, only for linux/amd64, linux/arm64/v8") {
		t.Errorf("missing platform: %v", err)
	}

	single := writeLayout(t, "v1", testImage(t, "amd64", types.DockerLayer))
	opts.Platforms = opts.Platforms[:1]
	_, err = Convert(t.Context(), single, to, opts)
	if blob.KindOf(err) != blob.NotFound || !strings.Contains(err.Error(), "only for linux/amd64") {
		t.Errorf("wrong platform of a single image: %v", err)
	}
}

func TestPrefetch(t *testing.T) {
	src := writeLayout(t, "v1", testImage(t, "amd64", types.DockerLayer))
	to := Name{Transport: Layout, Path: filepath.Join(t.TempDir(), "out")}
	opts := small(t)
	opts.Layer.Prefetch = []string{"/app/main", "usr/bin/absent"}
	r, err := Convert(t.Context(), src, to, opts)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "usr/bin/absent") {
		t.Errorf("warnings %q, want one about usr/bin/absent", r.Warnings)
	}
	in, err := Inspect(t.Context(), to, InspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var prefetch []bool
	for _, l := range in.Images[0].Layers {
		prefetch = append(prefetch, l.TOC.PrefetchSize > 0)
	}
	if diff := cmp.Diff([]bool{false, false, true}, prefetch); diff != "" {
		t.Errorf("layers with a prefetch landmark: %s", diff)
	}
	if size := in.Images[0].Layers[2].TOC.PrefetchSize; size < 20<<10 || size > 60<<10 {
		t.Errorf("prefetch of a file of 20 KiB ends at %d", size)
	}
}

func TestWindowsIsKept(t *testing.T) {
	img := testImage(t, "amd64", types.DockerLayer)
	from := writeLayout(t, "v1", withPlatforms(t, img, "linux/amd64", "windows/amd64"))
	to := Name{Transport: Layout, Path: filepath.Join(t.TempDir(), "out")}
	r, err := Convert(t.Context(), from, to, small(t))
	if err != nil {
		t.Fatal(err)
	}
	win := r.Images[1]
	if win.Platform != "windows/amd64" || win.Digest != win.SourceDigest || win.Layers[0].Converted {
		t.Errorf("windows image: %+v", win)
	}
	if r.Images[0].Digest == r.Images[0].SourceDigest {
		t.Error("linux image was not converted")
	}
	checkWhole(t, resultIndex(t, to))
}

// TestInterrupted cancels at several points and looks for what is left.
func TestInterrupted(t *testing.T) {
	src := writeLayout(t, "v1", testIndex(t))
	for _, state := range []State{Waiting, Fetching, Converting, Pushing, Done} {
		for _, archive := range []bool{false, true} {
			t.Run(fmt.Sprint(state, " archive ", archive), func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				opts := small(t)
				opts.Report = func(e Event) {
					if e.State == state {
						cancel()
					}
				}
				out := t.TempDir()
				to := Name{Transport: Layout, Path: filepath.Join(out, "image")}
				if archive {
					to.Transport = OCIArchive
				}
				_, err := Convert(ctx, src, to, opts)
				if !errors.Is(err, context.Canceled) {
					t.Fatalf("got %v, want canceled", err)
				}
				for _, dir := range []string{out, opts.TempDir} {
					for _, f := range filesBelow(t, dir) {
						// Complete blobs may stay, under their digest.
						if base := filepath.Base(f); len(base) != 64 {
							t.Errorf("left behind: %s", f)
						}
					}
				}
				opts.Report = nil
				if _, err := Convert(t.Context(), src, to, opts); err != nil {
					t.Errorf("after an interrupt: %v", err)
				}
			})
		}
	}
}

func filesBelow(t *testing.T, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestRewriteConfigKeepsUnknown(t *testing.T) {
	in := `{"rootfs":{"type":"layers","diff_ids":["sha256:a"]},"x.unknown":{"b":[1,2.50],"a":"<&>"},"os":"linux"}`
	out, err := rewriteConfig([]byte(in), []digest.Digest{"sha256:b"})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:b"]},"x.unknown":{"b":[1,2.50],"a":"<&>"}}`
	if string(out) != want {
		t.Errorf("got  %s\nwant %s", out, want)
	}
}

// TestForeignLayer keeps a layer that registries do not have.
// A config that would make the manifest large is not put into it.
func TestLargeConfig(t *testing.T) {
	img := testImage(t, "amd64", types.DockerLayer)
	conf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	conf = conf.DeepCopy()
	conf.Config.Labels = map[string]string{"large": strings.Repeat("x", maxEmbedded)}
	if img, err = mutate.ConfigFile(img, conf); err != nil {
		t.Fatal(err)
	}
	to := Name{Transport: Layout, Path: filepath.Join(t.TempDir(), "out")}
	if _, err := Convert(t.Context(), writeLayout(t, "v1", img), to, small(t)); err != nil {
		t.Fatal(err)
	}
	if m, err := resultImage(t, to).Manifest(); err != nil || m.Config.Data != nil {
		t.Errorf("the manifest brings %d bytes of the config, %v", len(m.Config.Data), err)
	}
}

func TestForeignLayer(t *testing.T) {
	img := testImage(t, "amd64", types.DockerLayer)
	src := writeLayout(t, "v1", img)
	m := edit(t, src, func(m *ocispec.Manifest) {
		m.Layers[0].MediaType = dockerForeignLayerGzip
		m.Layers[0].URLs = []string{"https://example.test/layer"}
	})
	foreign := m.Layers[0]
	if err := os.Remove(filepath.Join(src.Path, filepath.FromSlash(blobPath(foreign.Digest)))); err != nil {
		t.Fatal(err)
	}
	to := Name{Transport: Layout, Path: filepath.Join(t.TempDir(), "out")}
	if _, err := Convert(t.Context(), src, to, small(t)); err != nil {
		t.Fatal(err)
	}
	got, err := resultImage(t, to).Manifest()
	if err != nil {
		t.Fatal(err)
	}
	l := got.Layers[0]
	if l.Digest.String() != foreign.Digest.String() || l.MediaType != types.OCIRestrictedLayer || !slices.Equal(l.URLs, foreign.URLs) {
		t.Errorf("foreign layer became %+v", l)
	}
	conf, _ := img.ConfigFile()
	gotConf, err := resultImage(t, to).ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if gotConf.RootFS.DiffIDs[0] != conf.RootFS.DiffIDs[0] || gotConf.RootFS.DiffIDs[2] == conf.RootFS.DiffIDs[2] {
		t.Errorf("diff IDs %v of %v", gotConf.RootFS.DiffIDs, conf.RootFS.DiffIDs)
	}
}

// edit changes the manifest of the only image of a layout.
func edit(t *testing.T, n Name, change func(*ocispec.Manifest)) *ocispec.Manifest {
	t.Helper()
	s, err := openLayout(n)
	if err != nil {
		t.Fatal(err)
	}
	_, raw, err := s.root(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	change(&m)
	if raw, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	n.Tag = "v1"
	target, err := createLayout(n)
	if err != nil {
		t.Fatal(err)
	}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if err := target.commit(t.Context(), d, raw); err != nil {
		t.Fatal(err)
	}
	return &m
}
