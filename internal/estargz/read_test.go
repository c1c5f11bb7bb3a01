package estargz

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	stock "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// stockBuild makes a layer with the tools of the format's project.
func stockBuild(t testing.TB, src []byte, opts ...stock.Option) ([]byte, digest.Digest) {
	t.Helper()
	b, err := stock.Build(io.NewSectionReader(bytes.NewReader(src), 0, int64(len(src))), opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	p, err := io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	return p, b.TOCDigest()
}

// stockZstd makes stockBuild write zstd:chunked.
func stockZstd() stock.Option {
	return stock.WithCompression(struct {
		*zstdchunked.Decompressor
		*zstdchunked.Compressor
	}{&zstdchunked.Decompressor{}, &zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault}})
}

// stockFiles are richFiles without what stock tools lose or cannot take.
func stockFiles() []tarFile {
	var files []tarFile
	for _, f := range richFiles() {
		if notUTF8(f.Name) != nil || notUTF8(f.Linkname) != nil {
			continue
		}
		f.ModTime = testTime
		delete(f.PAXRecords, "SCHILY.xattr.user.b\xffd")
		files = append(files, f)
	}
	return files
}

func TestReadStockLayers(t *testing.T) {
	src := makeTar(t, stockFiles())
	want := untar(t, src)
	for name, opts := range map[string][]stock.Option{
		"default":     nil,
		"chunks":      {stock.WithChunkSize(64 << 10)},
		"shared":      {stock.WithChunkSize(64 << 10), stock.WithMinChunkSize(50_000)},
		"prefetch":    {stock.WithPrioritizedFiles([]string{"tail", "usr/bin/su2"})},
		"zstd":        {stockZstd()},
		"zstd-shared": {stockZstd(), stock.WithChunkSize(64 << 10), stock.WithMinChunkSize(50_000)},
	} {
		t.Run(name, func(t *testing.T) {
			layer, sum := stockBuild(t, src, opts...)
			toc, err := ReadTOC(t.Context(), openBlob(t, layer), sum, ReadOptions{})
			if err != nil {
				t.Fatal(err)
			}
			checkEntries(t, toc, inflateAll(t, layer, &toc.Index), want)
		})
	}
}

func TestReadTOCRequests(t *testing.T) {
	files := manyFiles(2000)
	src := makeTar(t, files)
	for name, opts := range map[string]BuildOptions{"gzip": {}, "zstd": {Zstd: true}} {
		t.Run(name, func(t *testing.T) {
			layer, built := buildBytes(t, src, opts)
			loc, err := parseFooter(layer, built.Size)
			if err != nil {
				t.Fatal(err)
			}
			var counter blob.Counter
			memory := &blobtest.Memory{}
			b, err := blob.Meter(memory, &counter).Open(t.Context(), memory.Add(layer))
			if err != nil {
				t.Fatal(err)
			}
			want, promised := Promised(built.Annotations)
			for _, c := range []struct {
				opts         ReadOptions
				reads, bytes int64
			}{
				{promised, 1, built.Size - loc.off}, // the manifest says where it is
				{ReadOptions{}, 1, defaultTail},
				{ReadOptions{TOCOff: built.Size + 5}, 1, defaultTail},
				{ReadOptions{TOCOff: -3}, 1, defaultTail},
				{ReadOptions{TOCOff: loc.off - 100}, 1, built.Size - loc.off + 100},
				{ReadOptions{TOCOff: loc.off + 100}, 2, built.Size - loc.off},
				{ReadOptions{TOCOff: built.Size - 1}, 2, built.Size - loc.off},
				{ReadOptions{TailSize: 1}, 2, built.Size - loc.off},
				{ReadOptions{TailSize: built.Size - loc.off - 1}, 2, built.Size - loc.off},
				{ReadOptions{TailSize: built.Size - loc.off}, 1, built.Size - loc.off},
				{ReadOptions{TailSize: built.Size * 2}, 1, built.Size},
			} {
				counter.Reads.Store(0)
				counter.Bytes.Store(0)
				toc, err := ReadTOC(t.Context(), b, want, c.opts)
				if err != nil {
					t.Fatalf("%+v: %v", c.opts, err)
				}
				if len(toc.Entries) != len(files) {
					t.Errorf("%d entries, want %d", len(toc.Entries), len(files))
				}
				if got := counter.Reads.Load(); got != c.reads {
					t.Errorf("%+v: %d requests, want %d", c.opts, got, c.reads)
				}
				if got := counter.Bytes.Load(); got > c.bytes {
					t.Errorf("%+v: %d bytes read, want at most %d", c.opts, got, c.bytes)
				}
			}
		})
	}
}

// layerOf makes a gzip layer around a tar entry that should hold the TOC.
func layerOf(t *testing.T, name string, toc []byte) []byte {
	t.Helper()
	head, err := encodeHeader(reservedHeader(name, int64(len(toc))))
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	buf.WriteString("payload")
	zw := gzip.NewWriter(&buf)
	zw.Write(head)
	zw.Write(toc)
	zw.Write(make([]byte, padding(int64(len(toc)))+tarTrailer))
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return appendGzipFooter(buf.Bytes(), int64(len("payload")))
}

func TestReadTOCRefuses(t *testing.T) {
	const empty = `{"version":1,"entries":[]}`
	good := layerOf(t, tocName, []byte(empty))
	sum := digest.FromString(empty)
	ztoc := zstdBytes(t, []byte(empty))
	zgood := appendZstdFooter(appendSkippable([]byte("payload"), ztoc), 15, int64(len(ztoc)), int64(len(empty)))
	change := func(p []byte, at int, b byte) []byte {
		p = bytes.Clone(p)
		if at < 0 {
			at += len(p)
		}
		p[at] ^= b
		return p
	}
	bomb := layerOf(t, tocName, make([]byte, freeTOC+1))
	zbomb := zstdBytes(t, make([]byte, freeTOC+1))
	zbombLayer := appendZstdFooter(appendSkippable(nil, zbomb), 8, int64(len(zbomb)), 5)
	for _, c := range []struct {
		name  string
		layer []byte
		want  digest.Digest
		opts  ReadOptions
		kind  blob.Kind
		lazy  bool
		words string
	}{
		{name: "no promise", layer: good, words: "promises no digest", kind: blob.Invalid},
		{name: "promise of the other kind", layer: good, opts: ReadOptions{CompressedDigest: sum}, words: "promises no digest", kind: blob.Invalid},
		{name: "malformed promise", layer: good, want: "sha256:x", lazy: true, words: "not a SHA-256", kind: blob.Invalid},
		{name: "other algorithm", layer: good, want: digest.Digest("sha512:" + strings.Repeat("0", 128)), lazy: true, words: "not a SHA-256", kind: blob.Invalid},
		{name: "empty blob", want: sum, words: "no eStargz", kind: blob.Invalid},
		{name: "short blob", layer: []byte("GnUlInUx"), want: sum, words: "no eStargz", kind: blob.Invalid},
		{name: "plain gzip", layer: good[:len(good)-gzipFooterSize], want: sum, words: "no eStargz", kind: blob.Invalid},
		{name: "changed footer", layer: change(good, -20, 0x20), want: sum, words: "no eStargz", kind: blob.Invalid},
		{name: "footer far away", layer: appendGzipFooter([]byte("payload"), 1<<60), want: sum, lazy: true, words: "outside", kind: blob.Invalid},
		{name: "footer of nothing", layer: appendGzipFooter(nil, 0), want: sum, lazy: true, words: "outside", kind: blob.Invalid},
		{name: "other digest", layer: good, want: digest.FromString("x"), lazy: true, words: "manifest promises", kind: blob.Corrupt},
		{name: "damaged", layer: change(good, 30, 0xff), want: sum, lazy: true, kind: blob.Corrupt},
		{name: "not gzip", layer: change(good, 7, 1), want: sum, lazy: true, words: "decompress", kind: blob.Corrupt},
		{name: "other file", layer: layerOf(t, "other", []byte(empty)), want: sum, lazy: true, words: `"other"`, kind: blob.Corrupt},
		{name: "not JSON", layer: layerOf(t, tocName, []byte("{")), want: digest.FromString("{"), lazy: true, words: "decode", kind: blob.Invalid},
		{name: "bomb", layer: bomb, want: sum, lazy: true, words: "larger than", kind: blob.Invalid},
		{name: "zstd bomb", layer: zbombLayer, want: sum, lazy: true, words: "larger than", kind: blob.Invalid},
		{name: "zstd table outside", layer: appendZstdFooter(nil, 1<<62, 5, 5), want: sum, lazy: true, words: "outside", kind: blob.Invalid},
		{name: "zstd table too long", layer: appendZstdFooter(make([]byte, 20), 10, 11, 5), want: sum, lazy: true, words: "outside", kind: blob.Invalid},
		{name: "zstd table of other type", layer: change(zgood, -16, 3), want: sum, lazy: true, words: "type 2", kind: blob.Invalid},
		{name: "zstd damaged", layer: change(zgood, 16, 1), want: sum, lazy: true, words: "decompress", kind: blob.Corrupt},
		{name: "zstd other digest", layer: zgood, want: digest.FromString("x"), lazy: true, words: "manifest promises", kind: blob.Corrupt},
		{name: "zstd other compressed digest", layer: zgood, want: sum, opts: ReadOptions{CompressedDigest: sum}, lazy: true, words: "compressed bytes", kind: blob.Corrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := ReadTOC(t.Context(), openBlob(t, c.layer), c.want, c.opts)
			if err == nil {
				t.Fatal("accepted")
			}
			if !errors.Is(err, c.kind) || errors.Is(err, ErrNotLazy) == c.lazy || !strings.Contains(err.Error(), c.words) {
				t.Errorf("error %q (%v, not lazy %v), want %v with %q", err, blob.KindOf(err), errors.Is(err, ErrNotLazy), c.kind, c.words)
			}
		})
	}
	for _, p := range [][]byte{good, zgood} {
		if _, err := ReadTOC(t.Context(), openBlob(t, p), sum, ReadOptions{}); err != nil {
			t.Errorf("good layer: %v", err)
		}
	}
	if _, err := ReadTOC(t.Context(), openBlob(t, zgood), "", ReadOptions{CompressedDigest: digest.FromBytes(ztoc)}); err != nil {
		t.Errorf("only the compressed digest promised: %v", err)
	}
}

func TestReadTOCKeepsSourceError(t *testing.T) {
	layer, built := buildBytes(t, makeTar(t, richFiles()), BuildOptions{})
	for fail := range 2 {
		reads := 0
		m := &blobtest.Memory{Before: func(context.Context, blob.Ref, blob.Range) error {
			if reads++; reads > fail {
				return blob.Errorf(blob.Busy, "registry is busy")
			}
			return nil
		}}
		b, err := m.Open(t.Context(), m.Add(layer))
		if err != nil {
			t.Fatal(err)
		}
		_, err = ReadTOC(t.Context(), b, built.TOCDigest, ReadOptions{TailSize: 1})
		if !errors.Is(err, blob.Busy) || reads != fail+1 {
			t.Errorf("failure of read %d: error %v after %d reads, want Busy", fail+1, err, reads)
		}
	}
}

func zstdBytes(t testing.TB, p []byte) []byte {
	t.Helper()
	zw, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return zw.EncodeAll(p, nil)
}

// storageLayer is a zstd:chunked layer as containers/storage writes it: data,
// table of contents, tar-split data, long footer, and annotations of its own.
func storageLayer(t *testing.T, footer bool) ([]byte, map[string]string) {
	t.Helper()
	one, two := text(1, 5000), text(2, 300)
	layer := zstdBytes(t, []byte("headers"))
	off1 := len(layer)
	layer = append(layer, zstdBytes(t, one)...)
	off2 := len(layer)
	layer = append(layer, zstdBytes(t, two)...)
	toc := fmt.Sprintf(`{"version":1,"entries":[`+
		`{"type":"reg","name":"one","mode":420,"size":5000,"modtime":"2024-02-29T12:34:56.123456789+01:00","accesstime":"2024-02-29T12:34:56Z",`+
		`"xattrs":{"user.x":"eA=="},"digest":%q,"offset":%d,"endOffset":%d},`+
		`{"type":"reg","name":"two","size":10300,"digest":%q,"offset":%d,"chunkSize":10000,"chunkType":"zeros"},`+
		`{"type":"chunk","name":"two","offset":%d,"endOffset":%d,"chunkOffset":10000,"chunkSize":300,"chunkDigest":%q}`+
		`],"tarSplitDigest":"x"}`, digest.FromBytes(one), off1, off2, zeroSum, off2, off2, len(layer), digest.FromBytes(two))
	packed := zstdBytes(t, []byte(toc))
	off := len(layer) + skippableHeader
	layer = appendSkippable(layer, packed)
	split := len(layer) + skippableHeader
	layer = appendSkippable(layer, []byte("tar-split"))
	var words []byte
	for _, v := range []int{off, len(packed), len(toc), 1, split, 9, 99} {
		words = binary.LittleEndian.AppendUint64(words, uint64(v))
	}
	if footer {
		layer = appendSkippable(layer, append(words, zstdStorageMagic...))
	}
	return layer, map[string]string{
		"io.github.containers.zstd-chunked.manifest-checksum": digest.FromBytes(packed).String(),
		"io.github.containers.zstd-chunked.manifest-position": fmt.Sprintf("%d:%d:%d:1", off, len(packed), len(toc)),
	}
}

func TestReadStorageLayer(t *testing.T) {
	for _, footer := range []bool{true, false} {
		layer, annotations := storageLayer(t, footer)
		want, opts := Promised(annotations)
		toc, err := ReadTOC(t.Context(), openBlob(t, layer), want, opts)
		if err != nil {
			t.Fatalf("footer %v: %v", footer, err)
		}
		data := inflateAll(t, layer, &toc.Index)
		wantData := append(text(1, 5000), make([]byte, 3192+10000)...)
		wantData = append(wantData, text(2, 300)...)
		wantData = append(wantData, make([]byte, alignUp(int64(len(wantData)))-int64(len(wantData)))...)
		if !bytes.Equal(data, wantData) {
			t.Errorf("footer %v: flat data differs", footer)
		}
		if e := toc.Entries[0]; e.MTimeNsec != 123456789 || len(e.Xattrs) != 1 {
			t.Errorf("footer %v: entry %+v", footer, e)
		}
	}
}

func TestPromised(t *testing.T) {
	sum := digest.FromString("x")
	want, opts := Promised(map[string]string{
		TOCDigestAnnotation:        sum.String(),
		ManifestChecksumAnnotation: sum.String(),
		ManifestPositionAnnotation: "12:34:56:1",
	})
	if want != sum || opts != (ReadOptions{CompressedDigest: sum, TOCOff: 12, TOCSize: 34}) {
		t.Errorf("Promised = %v, %+v", want, opts)
	}
	for _, pos := range []string{"", "1:2", "a:2:3:1", "-1:2:3:1", "1:0:3:1", "1:2:3:1:5"} {
		if want, opts := Promised(map[string]string{ManifestPositionAnnotation: pos}); want != "" || opts != (ReadOptions{}) {
			t.Errorf("position %q: Promised = %q, %+v", pos, want, opts)
		}
	}
}

func TestPromisedOffset(t *testing.T) {
	for off, want := range map[string]int64{
		"1234": 1234, "": 0, "0": 0, "-5": 0, "x": 0, "0x10": 0, "99999999999999999999": 0,
	} {
		if _, opts := Promised(map[string]string{TOCOffsetAnnotation: off}); opts != (ReadOptions{TOCOff: want}) {
			t.Errorf("offset %q: Promised = %+v, want offset %d", off, opts, want)
		}
	}
	// A manifest that says both is one of zstd:chunked.
	_, opts := Promised(map[string]string{TOCOffsetAnnotation: "7", ManifestPositionAnnotation: "12:34:56:1"})
	if opts != (ReadOptions{TOCOff: 12, TOCSize: 34}) {
		t.Errorf("Promised = %+v", opts)
	}
}

func TestLegacyFooter(t *testing.T) {
	footer := append([]byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 22, 0}, "0000000000000007STARGZ"...)
	footer = append(footer, 1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0)
	layer := append([]byte("payloadTOC"), footer...)
	loc, err := parseFooter(layer, int64(len(layer)))
	if want := (location{Gzip, 7, 3, 7}); err != nil || loc != want {
		t.Errorf("parseFooter = %+v, %v; want %+v", loc, err, want)
	}
	if _, _, err := stock.OpenFooter(io.NewSectionReader(bytes.NewReader(layer), 0, int64(len(layer)))); err != nil {
		t.Errorf("stock OpenFooter refuses the footer of this test: %v", err)
	}
}

// FuzzFooter holds what parseFooter returns against the size of the blob, and
// against the stock parsers.
func FuzzFooter(f *testing.F) {
	f.Add(appendGzipFooter(nil, 7), int64(1000))
	f.Add(appendGzipFooter(nil, 1<<40), int64(51))
	f.Add(appendZstdFooter(nil, 15, 20, 30), int64(1000))
	f.Add(appendSkippable(nil, append(make([]byte, 56), zstdStorageMagic...)), int64(1<<40))
	f.Add(append([]byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 22, 0}, "00000000000000ffSTARGZ\x01\x00\x00\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00"...), int64(5000))
	f.Add([]byte{}, int64(0))
	f.Fuzz(func(t *testing.T, tail []byte, size int64) {
		if size < int64(len(tail)) {
			return
		}
		loc, err := parseFooter(tail, size)
		if err != nil {
			return
		}
		if loc.off < 0 || loc.size <= 0 || loc.off > size-loc.size || loc.payloadEnd < 0 || loc.payloadEnd > loc.off {
			t.Fatalf("blob of %d bytes: %+v", size, loc)
		}
		decompressors := []stock.Decompressor{new(stock.GzipDecompressor), new(stock.LegacyGzipDecompressor)}
		if loc.compression == Zstd {
			if !bytes.HasSuffix(tail, []byte(zstdMagic)) {
				return // of a kind that the stock parser does not know
			}
			decompressors = []stock.Decompressor{new(zstdchunked.Decompressor)}
		}
		var errs []error
		for _, d := range decompressors {
			if int64(len(tail)) < d.FooterSize() {
				continue
			}
			end, off, _, err := d.ParseFooter(tail[int64(len(tail))-d.FooterSize():])
			if err == nil && end == loc.payloadEnd && off == loc.off {
				return
			}
			errs = append(errs, fmt.Errorf("payload end %d, offset %d: %w", end, off, err))
		}
		if loc.compression == Gzip {
			t.Fatalf("%+v; stock parsers: %v", loc, errors.Join(errs...))
		}
	})
}
