package estargz

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"

	stock "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/klauspost/compress/gzip"

	"skimmer/internal/blob"
)

// stockTOC returns the TOC of a layer as stock tools see it.
func stockTOC(t *testing.T, layer []byte) *stock.JTOC {
	t.Helper()
	loc, err := parseFooter(layer, int64(len(layer)))
	if err != nil {
		t.Fatal(err)
	}
	buf := &tocBuffer{tail: layer}
	p, err := buf.read(t.Context(), openBlob(t, layer), loc, "")
	if err != nil {
		t.Fatal(err)
	}
	toc := new(stock.JTOC)
	if err := json.Unmarshal(p, toc); err != nil {
		t.Fatal(err)
	}
	return toc
}

// TestBuildMatchesStock compares our table of contents, entry for entry and
// field for field, with the one stock tools make of the same layer.
func TestBuildMatchesStock(t *testing.T) {
	src := makeTar(t, stockFiles())
	prefetch := []string{"usr/bin/su2", "tail", "big"}
	for name, c := range map[string]struct {
		ours   BuildOptions
		theirs []stock.Option
	}{
		"default":  {BuildOptions{}, nil},
		"chunks":   {BuildOptions{ChunkSize: 64 << 10}, []stock.Option{stock.WithChunkSize(64 << 10)}},
		"prefetch": {BuildOptions{Prefetch: prefetch}, []stock.Option{stock.WithPrioritizedFiles(prefetch)}},
		"zstd":     {BuildOptions{Zstd: true}, []stock.Option{stockZstd()}},
	} {
		t.Run(name, func(t *testing.T) {
			layer, _ := buildBytes(t, src, c.ours)
			stockLayer, _ := stockBuild(t, src, append(c.theirs, stock.WithParallelism(1))...)
			want, got := stockTOC(t, stockLayer), stockTOC(t, layer)
			// Where a stream starts depends on the compressor.
			d := cmp.Diff(want, got, cmpopts.IgnoreFields(stock.TOCEntry{}, "Offset"), cmpopts.IgnoreUnexported(stock.TOCEntry{}), cmpopts.EquateEmpty())
			if d != "" {
				t.Errorf("table of contents (-stock +ours):\n%s", d)
			}
		})
	}
}

// TestBuildIsReproducible builds one layer with different numbers of
// processors, from each form the source may have, and from its own result.
func TestBuildIsReproducible(t *testing.T) {
	src := makeTar(t, append(manyFiles(200), richFiles()...))
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	zw.Write(src)
	zw.Close()
	for name, opts := range map[string]BuildOptions{
		"gzip":        {ChunkSize: 30_000},
		"gzip-shared": {ChunkSize: 30_000, MinChunkSize: 20_000},
		"zstd":        {ChunkSize: 30_000, Zstd: true},
	} {
		t.Run(name, func(t *testing.T) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
			runtime.GOMAXPROCS(1)
			first, want := buildBytes(t, src, opts)
			runtime.GOMAXPROCS(8)
			for _, c := range []struct {
				name string
				src  []byte
			}{{"plain", src}, {"gzip", packed.Bytes()}, {"zstd", zstdBytes(t, src)}, {"own", first}} {
				if _, got := buildBytes(t, c.src, opts); got.Digest != want.Digest || got.DiffID != want.DiffID {
					t.Errorf("from %s: digest %v, want %v", c.name, got.Digest, want.Digest)
				}
			}
		})
	}
}

func TestBuildPrefetch(t *testing.T) {
	layer, built := buildBytes(t, makeTar(t, richFiles()), BuildOptions{Prefetch: []string{"nowhere", "/usr/bin/su2", "tail", "./tail"}})
	if d := cmp.Diff([]string{"nowhere"}, built.PrefetchMissing); d != "" {
		t.Errorf("PrefetchMissing (-want +got):\n%s", d)
	}
	toc, err := ReadTOC(t.Context(), openBlob(t, layer), built.TOCDigest, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range toc.Entries[:6] {
		names = append(names, e.Name)
	}
	// Directories and the target of the hard link come before what needs them.
	if d := cmp.Diff([]string{"", "usr", "usr/bin", "usr/bin/su", "usr/bin/su2", "tail"}, names); d != "" {
		t.Errorf("start of the layer (-want +got):\n%s", d)
	}
	for i, s := range toc.Index.Streams {
		f, _ := toc.Index.FileAt(toc.Index.Chunks[s.FirstChunk].DataOff)
		early := f.Name == "usr/bin/su" || f.Name == "tail"
		if early != (s.End <= toc.Index.PrefetchEnd) {
			t.Errorf("stream %d of %q ends at %d, landmark at %d", i, f.Name, s.End, toc.Index.PrefetchEnd)
		}
	}

	again, built := buildBytes(t, layer, BuildOptions{Prefetch: []string{"nowhere"}})
	toc, err = ReadTOC(t.Context(), openBlob(t, again), built.TOCDigest, ReadOptions{})
	if err != nil || toc.Index.PrefetchEnd != 0 || len(built.PrefetchMissing) != 1 {
		t.Errorf("nothing to prefetch: PrefetchEnd %d, missing %q, %v", toc.Index.PrefetchEnd, built.PrefetchMissing, err)
	}
	if _, ok := untar(t, plainTar(t, again, Gzip))[prefetchLandmark]; ok {
		t.Error("landmark of the source is still there")
	}
}

func TestPickEndsOnCycles(t *testing.T) {
	link := func(name, to string) *member {
		return &member{name: name, header: &tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}}
	}
	out, _, err := arrange([]*member{link("a", "b"), link("b", "a"), link("c", "c")}, []string{"a", "c"})
	if err != nil || len(out) != 4 {
		t.Errorf("arrange = %d members, %v; want 3 and a landmark", len(out), err)
	}
}

// sparseTar is a tar with a file in the PAX 1.0 sparse format, which
// archive/tar can read but not write, and the content it stands for.
func sparseTar(t *testing.T) (layer, body []byte) {
	const size = 100_000
	data := text(1, 1024)
	payload := append([]byte("2\n512\n512\n90000\n512\n"), make([]byte, 512-20)...)
	payload = append(payload, data...)
	h := tar.Header{Typeflag: tar.TypeReg, Name: "GNUSparseFile.0/sparse", Mode: 0o600, ModTime: testTime.Add(5), Format: tar.FormatPAX, PAXRecords: map[string]string{
		"XXX.sparse.major": "1", "XXX.sparse.minor": "0", "XXX.sparse.name": "dir/sparse", "XXX.sparse.realsize": "100000", "SCHILY.xattr.user.x": "y",
	}}
	layer = makeTar(t, []tarFile{manyFiles(1)[0], {h, payload}, manyFiles(2)[1]})
	layer = bytes.ReplaceAll(layer, []byte("XXX.sparse."), []byte(paxSparse))
	body = make([]byte, size)
	copy(body[512:], data[:512])
	copy(body[90000:], data[512:])
	return layer, body
}

func TestBuildSparse(t *testing.T) {
	src, body := sparseTar(t)
	layer, built := buildBytes(t, src, BuildOptions{ChunkSize: 40_000})
	toc, err := ReadTOC(t.Context(), openBlob(t, layer), built.TOCDigest, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := untar(t, src)
	checkEntries(t, toc, inflateAll(t, layer, &toc.Index), want)
	if !bytes.Equal(want["dir/sparse"].body, body) {
		t.Fatal("the tar of this test is wrong")
	}
	got := untar(t, plainTar(t, layer, Gzip))["dir/sparse"]
	if !bytes.Equal(got.body, body) || !got.ModTime.Equal(testTime.Add(5)) || len(got.PAXRecords) != 2 {
		t.Errorf("tar inside has %d bytes, header %+v", len(got.body), got.Header)
	}
}

// TestBuildOdd packs what tars may contain without its being a file.
func TestBuildOdd(t *testing.T) {
	files := manyFiles(3)
	again := files[0]
	again.body = []byte("the last one counts")
	link := tarFile{tar.Header{Typeflag: tar.TypeLink, Name: "link", Linkname: files[1].Name}, nil}
	src := makeTar(t, append(files,
		tarFile{tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "c0ffee"}}, nil},
		tarFile{tar.Header{Typeflag: tar.TypeReg, Name: tocName}, []byte("{}")},
		tarFile{tar.Header{Typeflag: tar.TypeReg, Name: "./" + noPrefetchLandmark}, []byte("x")},
		tarFile{tar.Header{Typeflag: tar.TypeReg, Name: "sub/" + prefetchLandmark, ModTime: testTime}, []byte("x")},
		again, link))
	want := untar(t, src)
	for _, n := range []string{"pax_global_header", tocName, noPrefetchLandmark} {
		delete(want, n)
	}
	layer, built := buildBytes(t, src, BuildOptions{})
	toc, err := ReadTOC(t.Context(), openBlob(t, layer), built.TOCDigest, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	checkEntries(t, toc, inflateAll(t, layer, &toc.Index), want)
	stockOpen(t, layer)

	for _, src := range [][]byte{nil, make([]byte, tarTrailer)} {
		layer, built := buildBytes(t, src, BuildOptions{})
		toc, err := ReadTOC(t.Context(), openBlob(t, layer), built.TOCDigest, ReadOptions{})
		if err != nil || len(toc.Entries) != 0 || toc.Index.DataSize != 0 {
			t.Errorf("tar of nothing: %+v, %v", toc, err)
		}
	}
}

// TestBuildManyHeaders holds the memory of a run of entries without content.
func TestBuildManyHeaders(t *testing.T) {
	var files []tarFile
	for i := range 3000 {
		// With names this long the headers of an entry take three blocks or more.
		files = append(files, tarFile{tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("%0200d/%d", i%9, i), ModTime: testTime}, nil})
	}
	files = append(files, manyFiles(2)...)
	src := makeTar(t, files)
	for _, opts := range []BuildOptions{{}, {MinChunkSize: 64 << 20}} {
		layer, built := buildBytes(t, src, opts)
		toc, err := ReadTOC(t.Context(), openBlob(t, layer), built.TOCDigest, ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		checkEntries(t, toc, inflateAll(t, layer, &toc.Index), untar(t, src))
	}
}

func TestBuildProgress(t *testing.T) {
	src := makeTar(t, richFiles())
	for _, src := range [][]byte{src, zstdBytes(t, src), nil} {
		var sum, calls int64
		buildBytes(t, src, BuildOptions{ChunkSize: 50_000, Progress: func(n int64) {
			if n <= 0 {
				t.Errorf("progress of %d bytes", n)
			}
			sum += n
			calls++
		}})
		if sum != int64(len(src)) || (sum > 0 && calls < 5) {
			t.Errorf("progress of %d bytes in %d calls, source has %d", sum, calls, len(src))
		}
	}
}

// failingReaderAt fails behind its first bytes.
type failingReaderAt struct {
	p   []byte
	err error
}

func (r failingReaderAt) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(len(r.p)) {
		return 0, r.err
	}
	return copy(p, r.p[off:]), nil
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestBuildFailures(t *testing.T) {
	src := makeTar(t, richFiles())
	packed := zstdBytes(t, src)
	var gz bytes.Buffer
	zw := gzip.NewWriter(&gz)
	zw.Write(src)
	zw.Close()
	door := makeTar(t, []tarFile{{tar.Header{Typeflag: tar.TypeReg, Name: "door"}, nil}})
	door[156] = 'D'
	copy(door[148:], "        ")
	var sum int
	for _, c := range door[:512] {
		sum += int(c)
	}
	copy(door[148:], fmt.Sprintf("%06o\x00 ", sum))
	longName := makeTar(t, []tarFile{{tar.Header{Typeflag: tar.TypeReg, Name: strings.Repeat("n", 256)}, nil}})
	device := makeTar(t, []tarFile{{tar.Header{Typeflag: tar.TypeChar, Name: "dev", Devmajor: 5000}, nil}})
	busy := blob.Errorf(blob.Busy, "registry is busy")
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name  string
		ctx   context.Context
		layer io.ReaderAt
		size  int
		w     io.Writer
		opts  BuildOptions
		kind  blob.Kind
		words string
	}{
		{name: "chunk size", opts: BuildOptions{ChunkSize: MaxBuildChunkSize + 1}, kind: blob.Invalid, words: "chunk size"},
		{name: "minimum chunk size", opts: BuildOptions{MinChunkSize: -1}, kind: blob.Invalid, words: "minimum chunk size"},
		{name: "level", opts: BuildOptions{Level: 10}, kind: blob.Invalid, words: "compression level"},
		{name: "zstd level", opts: BuildOptions{Zstd: true, Level: 23}, kind: blob.Invalid, words: "compression level"},
		{name: "prefetch", opts: BuildOptions{Prefetch: []string{"a\x00"}}, kind: blob.Invalid, words: "prefetch list"},
		{name: "temporary directory", layer: bytes.NewReader(packed), size: len(packed), opts: BuildOptions{TempDir: "/nonexistent"}, kind: blob.NotFound, words: "unpack source layer"},
		{name: "garbage", layer: strings.NewReader(strings.Repeat("garbage ", 200)), size: 1600, kind: blob.Invalid, words: "read tar"},
		{name: "cut tar", size: len(src) / 2, kind: blob.Invalid, words: "read tar"},
		{name: "cut gzip", layer: bytes.NewReader(gz.Bytes()), size: gz.Len() / 2, kind: blob.Corrupt, words: "decompress source"},
		{name: "cut zstd", layer: bytes.NewReader(packed), size: len(packed) / 2, kind: blob.Corrupt, words: "decompress source"},
		{name: "type", layer: bytes.NewReader(door), size: len(door), kind: blob.Invalid, words: `"door": tar type 'D'`},
		{name: "name", layer: bytes.NewReader(longName), size: len(longName), kind: blob.Invalid, words: "255 bytes"},
		{name: "device", layer: bytes.NewReader(device), size: len(device), kind: blob.Invalid, words: "device number"},
		{name: "source fails at once", layer: failingReaderAt{nil, busy}, kind: blob.Busy, words: "read source layer"},
		{name: "source fails in headers", layer: failingReaderAt{src[:60000], busy}, kind: blob.Busy, words: "read source layer"},
		{name: "source fails in zstd", layer: failingReaderAt{packed[:60000], busy}, size: len(packed), kind: blob.Busy, words: "read source layer"},
		{name: "target fails", w: failingWriter{busy}, kind: blob.Busy, words: "write layer"},
		{name: "canceled", ctx: canceled, kind: blob.Canceled},
		{name: "canceled unpacking", ctx: canceled, layer: bytes.NewReader(packed), size: len(packed), kind: blob.Canceled},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.ctx == nil {
				c.ctx = t.Context()
			}
			if c.layer == nil {
				c.layer = bytes.NewReader(src)
			}
			if c.size == 0 {
				c.size = len(src)
			}
			if c.w == nil {
				c.w = io.Discard
			}
			if c.opts.TempDir == "" {
				c.opts.TempDir = t.TempDir()
			}
			_, err := Build(c.ctx, c.w, c.layer, int64(c.size), c.opts)
			if err == nil || blob.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.words) {
				t.Errorf("error %v (%v), want %v with %q", err, blob.KindOf(err), c.kind, c.words)
			}
		})
	}
}

// TestBuildCanceledMidway stops while compressors are at work.
func TestBuildCanceledMidway(t *testing.T) {
	src := makeTar(t, manyFiles(3000))
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Build(ctx, io.Discard, bytes.NewReader(src), int64(len(src)), BuildOptions{Progress: func(int64) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want one that is Canceled", err)
	}
}

// FuzzBuild builds layers of foreign bytes: what can be built can be read, by
// us and by stock tools.
func FuzzBuild(f *testing.F) {
	files := richFiles()
	for i := range files {
		files[i].body = files[i].body[:min(len(files[i].body), 700)]
	}
	f.Add(makeTar(f, files), uint16(300), uint16(0), false)
	f.Add(makeTar(f, files), uint16(0), uint16(900), true)
	f.Add(zstdBytes(f, makeTar(f, manyFiles(3))), uint16(100), uint16(200), false)
	f.Add([]byte{0x1f, 0x8b, 8}, uint16(1), uint16(0), false)
	f.Fuzz(func(t *testing.T, src []byte, chunk, minChunk uint16, zstd bool) {
		opts := BuildOptions{ChunkSize: max(int(chunk), 64), MinChunkSize: int(minChunk), Level: 1, Zstd: zstd, Prefetch: []string{"tail"}, TempDir: t.TempDir()}
		var buf bytes.Buffer
		built, err := Build(t.Context(), &buf, bytes.NewReader(src), int64(len(src)), opts)
		if err != nil {
			if k := blob.KindOf(err); k != blob.Invalid && k != blob.Corrupt {
				t.Fatalf("error %v of kind %v", err, k)
			}
			return
		}
		toc, err := ReadTOC(t.Context(), openBlob(t, buf.Bytes()), built.TOCDigest, ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if toc.Index.DataSize < 64<<20 {
			inflateAll(t, buf.Bytes(), &toc.Index)
		}
		// Stock tools look for the targets of hard links while opening.
		if !slices.ContainsFunc(toc.Entries, func(e Entry) bool { return e.Type == Hardlink }) {
			stockOpen(t, buf.Bytes())
		}
	})
}
