package convert

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/estargz"
	"skimmer/internal/origin"
)

// TestLocalBlobsConform runs the suite over a layout and over an archive.
func TestLocalBlobsConform(t *testing.T) {
	layoutOf := func(t *testing.T, contents [][]byte) (*layoutTarget, []blob.Ref) {
		dir := t.TempDir()
		target := &layoutTarget{Name{Transport: Layout, Path: dir}, dir}
		var refs []blob.Ref
		for _, p := range contents {
			d := descriptorOf("application/octet-stream", p)
			if err := target.put(t.Context(), d, bytesContent(p)); err != nil {
				t.Fatal(err)
			}
			refs = append(refs, blob.Ref{Digest: d.Digest, Size: d.Size})
		}
		return target, refs
	}
	t.Run("layout", func(t *testing.T) {
		blobtest.Run(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
			target, refs := layoutOf(t, contents)
			return localBlobs{&layoutSource{target.name, dirFiles(target.dir)}}, refs
		})
	})
	t.Run("archive", func(t *testing.T) {
		blobtest.Run(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
			target, refs := layoutOf(t, contents)
			path := filepath.Join(t.TempDir(), "a.tar")
			f, err := os.Create(path)
			if err == nil {
				err = writeTar(t.Context(), f, target.dir)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			files, err := openArchive(t.Context(), path, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { files.Close() })
			return localBlobs{&layoutSource{target.name, files}}, refs
		})
	})
}

func TestInspect(t *testing.T) {
	for _, zstdchunked := range []bool{false, true} {
		for _, where := range []string{"layout", "registry"} {
			t.Run(where, func(t *testing.T) {
				to := Name{Transport: Layout, Path: filepath.Join(t.TempDir(), "out")}
				if where == "registry" {
					to = parse(t, dockerRegistry(t, "")+"/app:esgz")
				}
				opts := small(t)
				opts.Layer.Zstd = zstdchunked
				opts.Layer.Prefetch = []string{"etc/motd"}
				r, err := Convert(t.Context(), writeLayout(t, "v1", testIndex(t)), to, opts)
				if err != nil {
					t.Fatal(err)
				}
				o, err := origin.New(origin.Config{})
				if err != nil {
					t.Fatal(err)
				}
				defer o.Close()
				in, err := Inspect(t.Context(), to, InspectOptions{Blobs: o})
				if err != nil {
					t.Fatal(err)
				}
				checkInspection(t, in, r)
			})
		}
	}
}

// checkInspection compares what Inspect found with what Convert made.
func checkInspection(t *testing.T, in *Inspection, r *Result) {
	t.Helper()
	if in.Digest != r.Digest || len(in.Images) != 2 || len(in.Others) != 2 || in.Others[0].Subject != in.Images[0].Digest {
		t.Fatalf("inspection %+v of %+v", in, r)
	}
	for i, img := range in.Images {
		made := r.Images[i]
		if img.Platform != made.Platform || img.Digest != made.Digest || !img.Lazy {
			t.Errorf("image %+v, made %+v", img, made)
		}
		for j, l := range img.Layers {
			m := made.Layers[j]
			if !l.Lazy {
				t.Errorf("layer %d: %s", j, l.Reason)
				continue
			}
			got := []any{l.Digest, l.Size, l.UncompressedSize, l.MediaType, l.TOC.Digest}
			want := []any{m.Digest, m.Size, m.UncompressedSize, m.MediaType, m.TOCDigest}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("layer %d: %s", j, diff)
			}
		}
	}
	base := in.Images[0].Layers[0].TOC
	// 11 entries; a file of 300 KiB is 5 chunks, and there are 2 small ones.
	if base.Entries != 11 || base.Chunks != 7 || base.PrefetchSize == 0 {
		t.Errorf("base layer's table of contents: %+v", base)
	}
}

// TestInspectReasons says of layers why they cannot be mounted lazily.
func TestInspectReasons(t *testing.T) {
	plain := writeLayout(t, "v1", testImage(t, "amd64", types.DockerLayer))
	in, err := Inspect(t.Context(), plain, InspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if l := in.Images[0].Layers[0]; in.Images[0].Lazy || l.Lazy || !strings.Contains(l.Reason, "skimmer image convert") {
		t.Errorf("plain layer: %+v", l)
	}
	to := Name{Transport: Layout, Path: filepath.Join(t.TempDir(), "out")}
	r, err := Convert(t.Context(), plain, to, small(t))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(to.Path, filepath.FromSlash(blobPath(r.Images[0].Layers[0].Digest)))
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p[len(p)-300] ^= 0xff // in the table of contents
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
	if in, err = Inspect(t.Context(), to, InspectOptions{}); err != nil {
		t.Fatal(err)
	}
	if l := in.Images[0].Layers[0]; l.Lazy || l.Reason == "" || in.Images[0].Lazy || !in.Images[0].Layers[1].Lazy {
		t.Errorf("damaged layer: %+v", in.Images[0])
	}
}

// TestInspectReadsOnlyTOCs counts bytes of a layer much larger than its table
// of contents.
func TestInspectReadsOnlyTOCs(t *testing.T) {
	l := makeTar(t, []entry{file_("big", blobtest.Bytes(3, 8<<20))})
	n := writeLayout(t, "v1", imageOf(t, l))
	to := parse(t, memoryRegistry(t)+"/app:v1")
	if _, err := Convert(t.Context(), n, to, ConvertOptions{Layer: estargz.BuildOptions{}}); err != nil {
		t.Fatal(err)
	}
	o, err := origin.New(origin.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	var c blob.Counter
	in, err := Inspect(t.Context(), to, InspectOptions{Blobs: blob.Meter(o, &c)})
	if err != nil || !in.Images[0].Lazy {
		t.Fatalf("%+v, %v", in, err)
	}
	if got := c.Bytes.Load(); got > 300<<10 {
		t.Errorf("%d bytes were read of a layer of %d", got, in.Images[0].Size)
	}
}
