package optimize

import (
	"archive/tar"
	"bytes"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/estargz"
	"skimmer/internal/image/profile"
)

type testFile struct {
	name string
	size int
}

var testFiles = []testFile{
	{"bin/small", 10}, {"empty", 0}, {"lib/medium", 200_000}, {"lib/large", 1500 << 10}, {"etc/conf", 3000}, {"etc/other", 70_000},
}

// layerOf builds a layer and returns its table of contents.
func layerOf(t testing.TB, files []testFile, opts estargz.BuildOptions) (digest.Digest, *estargz.TOC) {
	t.Helper()
	opts.Level = 1 // quick
	var raw, out bytes.Buffer
	tw := tar.NewWriter(&raw)
	for _, f := range files {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Size: int64(f.size), Mode: 0o755}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(blobtest.Bytes(uint64(f.size), f.size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	built, err := estargz.Build(t.Context(), &out, bytes.NewReader(raw.Bytes()), int64(raw.Len()), opts)
	if err != nil {
		t.Fatal(err)
	}
	var src blobtest.Memory
	b, err := src.Open(t.Context(), src.Add(out.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	toc, err := estargz.ReadTOC(t.Context(), b, built.TOCDigest, estargz.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return built.Digest, toc
}

func profileOf(layer digest.Digest, toc *estargz.TOC, reads ...profile.Read) profile.Profile {
	for i := range reads {
		reads[i].Starts = 1
		reads[i].At = time.Duration(i) * time.Millisecond
	}
	return profile.Profile{
		Manifest: digest.FromString("old"), Platform: "linux/amd64", Recorded: time.Unix(1, 0).UTC(), Starts: 1,
		Layers: []profile.Layer{{Digest: layer, TOC: toc.Digest, Chunks: len(toc.Index.Chunks)}}, Reads: reads,
	}
}

// chunksOf returns the first chunk of a file and how many it has.
func chunksOf(t testing.TB, toc *estargz.TOC, name string) (first, count int) {
	t.Helper()
	i := slices.IndexFunc(toc.Index.Files, func(f estargz.File) bool { return f.Name == name })
	if i < 0 {
		t.Fatalf("no file %s", name)
	}
	f := toc.Index.Files[i]
	first = slices.IndexFunc(toc.Index.Chunks, func(c estargz.Chunk) bool { return c.DataOff == f.DataOff })
	for _, c := range toc.Index.Chunks[first:] {
		if c.DataOff < f.DataOff+f.Size {
			count++
		}
	}
	return first, count
}

// TestFiles names the files of chunks in the order in which they were read, and
// leaves a large file of which little was read out of what is fetched early.
func TestFiles(t *testing.T) {
	layer, toc := layerOf(t, testFiles, estargz.BuildOptions{ChunkSize: 64 << 10})
	large, _ := chunksOf(t, toc, "lib/large")
	conf, _ := chunksOf(t, toc, "etc/conf")
	small, _ := chunksOf(t, toc, "bin/small")
	medium, _ := chunksOf(t, toc, "lib/medium")
	p := profileOf(layer, toc,
		profile.Read{First: conf, Count: 1}, profile.Read{First: large + 3, Count: 1},
		profile.Read{First: small, Count: 2}, profile.Read{First: medium + 2, Count: 1})
	files, err := Files(p, []*estargz.TOC{toc})
	if err != nil {
		t.Fatal(err)
	}
	want := []File{
		{Name: "etc/conf", At: 0, Read: 3000, Size: 3000},
		{Name: "lib/large", At: time.Millisecond, Read: 64 << 10, Size: 1500 << 10},
		{Name: "bin/small", At: 2 * time.Millisecond, Read: 10, Size: 10},
		{Name: "lib/medium", At: 2 * time.Millisecond, Read: 2 * 64 << 10, Size: 200_000},
	}
	if diff := cmp.Diff(want, files); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([][]string{{"etc/conf", "bin/small", "lib/medium"}, nil}, Prefetch(files, 2)); diff != "" {
		t.Error(diff)
	}
	p.Reads[1].First, p.Reads[1].Count = large+10, 12
	if files, err = Files(p, []*estargz.TOC{toc}); err != nil || !slices.Contains(Prefetch(files, 1)[0], "lib/large") {
		t.Errorf("of the large file, 12 chunks of 24 were read, but it is not fetched early: %v, %v", files, err)
	}
}

func TestFilesOfAnotherImage(t *testing.T) {
	layer, toc := layerOf(t, testFiles, estargz.BuildOptions{ChunkSize: 64 << 10})
	_, other := layerOf(t, testFiles[1:], estargz.BuildOptions{})
	p := profileOf(layer, toc, profile.Read{First: 0, Count: 1})
	for name, tocs := range map[string][]*estargz.TOC{"more layers": {toc, toc}, "another layer": {other}} {
		if _, err := Files(p, tocs); blob.KindOf(err) != blob.Invalid {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Translate(p, tocs, Target{}); blob.KindOf(err) != blob.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Translate(p, []*estargz.TOC{toc}, Target{}); blob.KindOf(err) != blob.Invalid {
		t.Errorf("to an image with other layers: %v", err)
	}
}

// block is how finely parts looks, in bytes.
const block = 100

// parts returns which blocks of which files a profile's chunks have.
func parts(p profile.Profile, toc *estargz.TOC) map[string]map[int64]bool {
	m := make(map[string]map[int64]bool)
	for _, r := range p.Reads {
		for _, c := range toc.Index.Chunks[r.First : r.First+r.Count] {
			f, _ := toc.Index.FileAt(c.DataOff)
			if m[f.Name] == nil {
				m[f.Name] = make(map[int64]bool)
			}
			for off := c.DataOff - f.DataOff; off < c.DataOff-f.DataOff+c.Size; off += block {
				m[f.Name][off/block] = true
			}
		}
	}
	return m
}

// TestTranslate maps profiles to the same files in another order, with chunks of
// another size, and to fewer files: what is read must be covered, and no file
// that is not read.
func TestTranslate(t *testing.T) {
	layer, toc := layerOf(t, testFiles, estargz.BuildOptions{ChunkSize: 64 << 10})
	targets := []estargz.BuildOptions{
		{ChunkSize: 64 << 10, Prefetch: []string{"etc/other", "lib/large", "bin/small"}},
		{ChunkSize: 10_000}, {ChunkSize: 1 << 20, Prefetch: []string{"lib/medium"}},
	}
	for n, opts := range targets {
		to := Target{Manifest: digest.FromString("new")}
		newLayer, newTOC := layerOf(t, testFiles, opts)
		to.Layers, to.TOCs = []digest.Digest{newLayer}, []*estargz.TOC{newTOC}
		for seed := range uint64(8) {
			p := profileOf(layer, toc, randomReads(rand.New(rand.NewPCG(seed, uint64(n))), len(toc.Index.Chunks))...)
			got, err := Translate(p, []*estargz.TOC{toc}, to)
			if err != nil {
				t.Fatalf("target %d, seed %d: %v", n, seed, err)
			}
			if got.Manifest != to.Manifest || got.Layers[0].Digest != newLayer || got.Layers[0].TOC != newTOC.Digest {
				t.Fatalf("target %d, seed %d: it is of %+v", n, seed, got.Layers)
			}
			before, after := parts(p, toc), parts(got, newTOC)
			if len(before) != len(after) {
				t.Errorf("target %d, seed %d: %d files, want %d", n, seed, len(after), len(before))
			}
			for name, read := range before {
				for i := range read {
					if !after[name][i] {
						t.Fatalf("target %d, seed %d: block %d of %s is not read any more", n, seed, i, name)
					}
				}
			}
		}
	}
}

// randomReads returns runs of chunks, none twice, in any order.
func randomReads(r *rand.Rand, chunks int) []profile.Read {
	var reads []profile.Read
	for first := r.IntN(5); first < chunks; first += 2 + r.IntN(5) {
		n := min(1+r.IntN(4), chunks-first)
		reads = append(reads, profile.Read{First: first, Count: n})
		first += n
	}
	r.Shuffle(len(reads), func(i, j int) { reads[i], reads[j] = reads[j], reads[i] })
	return reads
}

// TestTranslateMissing leaves out what the other image does not have.
func TestTranslateMissing(t *testing.T) {
	layer, toc := layerOf(t, testFiles, estargz.BuildOptions{})
	newLayer, newTOC := layerOf(t, testFiles[:3], estargz.BuildOptions{})
	p := profileOf(layer, toc, profile.Read{First: 0, Count: len(toc.Index.Chunks)})
	got, err := Translate(p, []*estargz.TOC{toc}, Target{digest.FromString("new"), []digest.Digest{newLayer}, []*estargz.TOC{newTOC}})
	if err != nil {
		t.Fatal(err)
	}
	if _, large := parts(got, newTOC)["lib/large"]; large || len(parts(got, newTOC)) != 2 {
		t.Errorf("it reads %v", got.Reads)
	}
}

// TestContainerWithoutCommand finds that a workload has to be something.
func TestContainerWithoutCommand(t *testing.T) {
	c := &container{dir: t.TempDir()}
	if err := c.prepare(t.Context(), Workload{}); blob.KindOf(err) != blob.Invalid || !strings.Contains(err.Error(), "no command") {
		t.Error(err)
	}
	c.config = ocispec.ImageConfig{Entrypoint: []string{"/x"}}
	if err := c.prepare(t.Context(), Workload{}); err == nil || strings.Contains(err.Error(), "no command") {
		t.Errorf("without a bundle's directory: %v", err)
	}
}

func TestTail(t *testing.T) {
	var all bytes.Buffer
	tl := &tail{next: &all}
	for range 100 {
		if _, err := io.WriteString(tl, strings.Repeat("x", 50)+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	if s := tl.String(); len(s) > 2*tailSize || all.Len() != 5100 || !strings.Contains(s, "x; x") {
		t.Errorf("of %d bytes it keeps %q", all.Len(), s)
	}
	if s := (&tail{}).String(); s != "it wrote nothing" {
		t.Error(s)
	}
}
