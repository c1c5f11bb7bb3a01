package estargz

import (
	"archive/tar"
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	stock "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// tarFile is a tar entry of a test.
type tarFile struct {
	tar.Header
	body []byte
}

func makeTar(t testing.TB, files []tarFile) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range files {
		h := f.Header
		h.Size = int64(len(f.body))
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatalf("write header of %q: %v", h.Name, err)
		}
		if _, err := tw.Write(f.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

var testTime = time.Date(2024, 2, 29, 12, 34, 56, 0, time.UTC)

// text returns n compressible bytes that depend on seed.
func text(seed uint64, n int) []byte {
	p := blobtest.Bytes(seed, (n+1)/2)
	return hex.AppendEncode(nil, p)[:n]
}

// richFiles are one of everything a layer can hold.
func richFiles() []tarFile {
	reg := func(name string, body []byte) tarFile {
		return tarFile{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: testTime, Uid: 1000, Gid: 100, Uname: "u", Gname: "g"}, body}
	}
	other := func(typ byte, name, link string) tarFile {
		return tarFile{tar.Header{Typeflag: typ, Name: name, Linkname: link, Mode: 0o755, ModTime: testTime}, nil}
	}
	long := strings.Repeat(strings.Repeat("d", 100)+"/", 12) + "file"
	suid := reg("usr/bin/su", text(1, 70000))
	suid.Mode = 0o4755
	suid.PAXRecords = map[string]string{
		"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"SCHILY.xattr.user.empty":          "",
		"SCHILY.xattr.user.b\xffd":         "raw",
	}
	nanos := reg("etc/nanos", []byte("x"))
	nanos.ModTime, nanos.Format = testTime.Add(123456789), tar.FormatPAX
	old := reg("etc/old", []byte("1969"))
	old.ModTime, old.Format = time.Unix(-5, 250000000), tar.FormatPAX
	epoch := reg("etc/epoch", []byte("0"))
	epoch.ModTime = time.Unix(0, 0)
	owner := reg("etc/owner", []byte("owner"))
	owner.Uid, owner.Gid = 4000000000, 4294967295
	char, block := other(tar.TypeChar, "dev/char", ""), other(tar.TypeBlock, "dev/block", "")
	char.Devmajor, char.Devminor, block.Devmajor, block.Devminor = 1, 3, 8, 1<<20-1
	return []tarFile{
		other(tar.TypeDir, "./", ""),
		other(tar.TypeDir, "./usr/", ""),
		other(tar.TypeDir, "usr/bin/", ""),
		suid,
		other(tar.TypeSymlink, "bin", "usr/bin"),
		other(tar.TypeSymlink, "abs", "/../x//y/"),
		other(tar.TypeLink, "usr/bin/su2", "./usr/bin/su"),
		reg("empty", nil),
		char, block, other(tar.TypeFifo, "dev/fifo", ""),
		reg(long, []byte("long")),
		other(tar.TypeSymlink, "longlink", strings.Repeat("l", 2000)),
		reg("na\xffme<&>\u2028é", []byte("not UTF-8")),
		other(tar.TypeSymlink, "l\xfe", "t\xfd"),
		other(tar.TypeLink, "hard\xfc", "na\xffme<&>\u2028é"),
		reg("dir/.wh.gone", nil), reg("dir/.wh..wh..opq", nil),
		reg("../../etc//x/./y", []byte("climbs")),
		reg("big", text(2, 300_013)),
		reg("exact", text(3, 128<<10)),
		reg("block", text(4, 4096)),
		reg("random", blobtest.Bytes(5, 150_000)),
		nanos, old, epoch, owner,
		reg("tail", text(6, 5)),
	}
}

// manyFiles are n small files.
func manyFiles(n int) []tarFile {
	files := make([]tarFile, n)
	for i := range files {
		files[i] = tarFile{tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("dir%d/file%d", i%7, i), Mode: 0o600, ModTime: testTime}, text(uint64(i), 300+i%50)}
	}
	return files
}

func buildBytes(t testing.TB, layer []byte, opts BuildOptions) ([]byte, Built) {
	t.Helper()
	opts.TempDir = t.TempDir()
	var buf bytes.Buffer
	b, err := Build(t.Context(), &buf, bytes.NewReader(layer), int64(len(layer)), opts)
	if err != nil {
		t.Fatalf("Build: %v", err)
	}
	if got := digest.FromBytes(buf.Bytes()); got != b.Digest || int64(buf.Len()) != b.Size {
		t.Fatalf("Built says %v of %d bytes, written were %v of %d", b.Digest, b.Size, got, buf.Len())
	}
	return buf.Bytes(), b
}

// variants are the options every kind of layer is tested with.
var variants = map[string]BuildOptions{
	"gzip":          {},
	"gzip-chunks":   {ChunkSize: 64 << 10, Level: 9},
	"gzip-shared":   {ChunkSize: 64 << 10, MinChunkSize: 100 << 10},
	"gzip-prefetch": {ChunkSize: 100_000, Prefetch: []string{"/usr/bin/su2", "tail", "nowhere", "./big"}},
	"zstd":          {Zstd: true},
	"zstd-chunks":   {Zstd: true, ChunkSize: 64 << 10, Level: 7},
	"zstd-shared":   {Zstd: true, ChunkSize: 64 << 10, MinChunkSize: 100 << 10, Prefetch: []string{"tail"}},
}

// plainTar decompresses a layer.
func plainTar(t testing.TB, layer []byte, c Compression) []byte {
	t.Helper()
	var r io.Reader
	var err error
	if c == Gzip {
		r, err = gzip.NewReader(bytes.NewReader(layer))
	} else {
		r, err = zstd.NewReader(bytes.NewReader(layer))
	}
	if err != nil {
		t.Fatal(err)
	}
	p, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// untar returns the entries of a tar by cleaned name, the last one of each.
func untar(t testing.TB, p []byte) map[string]tarFile {
	t.Helper()
	m := make(map[string]tarFile)
	for tr := tar.NewReader(bytes.NewReader(p)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return m
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		name, err := cleanName([]byte(h.Name))
		if err != nil {
			t.Fatal(err)
		}
		m[name] = tarFile{*h, body}
	}
}

// flat collects what Inflate delivers.
type flat struct {
	ix   *Index
	p    []byte
	done []bool
}

func (f *flat) Write(chunk int, off int64, p []byte) error {
	copy(f.p[f.ix.Chunks[chunk].DataOff+off:], p)
	return nil
}

func (f *flat) Done(chunk int) error {
	f.done[chunk] = true
	return nil
}

// inflateAll returns the flat data of a layer.
func inflateAll(t testing.TB, layer []byte, ix *Index) []byte {
	t.Helper()
	f := &flat{ix, make([]byte, ix.DataSize), make([]bool, len(ix.Chunks))}
	for i, s := range ix.Streams {
		if err := ix.Inflate(i, bytes.NewReader(layer[s.Off:s.End]), f); err != nil {
			t.Fatalf("Inflate: %v", err)
		}
	}
	if i := slices.Index(f.done, false); i >= 0 {
		t.Fatalf("chunk %d was never delivered", i)
	}
	return f.p
}

func openBlob(t testing.TB, p []byte) blob.Blob {
	t.Helper()
	m := &blobtest.Memory{}
	b, err := m.Open(t.Context(), m.Add(p))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// checkEntries compares what we read of a layer with the tar it was made of.
func checkEntries(t *testing.T, toc *TOC, data []byte, want map[string]tarFile) {
	t.Helper()
	left := maps.Clone(want)
	for _, e := range toc.Entries {
		w, ok := left[e.Name]
		if !ok {
			t.Errorf("entry %q is not in the tar, or comes twice", e.Name)
			continue
		}
		delete(left, e.Name)
		types := map[byte]EntryType{tar.TypeDir: Dir, tar.TypeReg: Regular, tar.TypeSymlink: Symlink, tar.TypeLink: Hardlink, tar.TypeChar: Char, tar.TypeBlock: Block, tar.TypeFifo: Fifo}
		wantE := Entry{Name: e.Name, Type: types[w.Typeflag], Mode: uint32(w.Mode), UID: uint32(w.Uid), GID: uint32(w.Gid),
			MTime: w.ModTime.Unix(), MTimeNsec: uint32(w.ModTime.Nanosecond()), Link: w.Linkname,
			DevMajor: uint32(w.Devmajor), DevMinor: uint32(w.Devminor), Size: int64(len(w.body)), DataOff: e.DataOff}
		if wantE.Type == Hardlink {
			wantE.Link, _ = cleanName([]byte(w.Linkname))
		}
		for _, k := range slices.Sorted(maps.Keys(w.PAXRecords)) {
			if n, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				wantE.Xattrs = append(wantE.Xattrs, Xattr{n, []byte(w.PAXRecords[k])})
			}
		}
		if !reflect.DeepEqual(wantE, e) { // cmp takes its time
			t.Errorf("entry %q (-tar +ours):\n%s", e.Name, cmp.Diff(wantE, e))
		}
		if e.Type == Regular && !bytes.Equal(data[e.DataOff:e.DataOff+e.Size], w.body) {
			t.Errorf("content of %q differs", e.Name)
		}
	}
	for name := range left {
		t.Errorf("entry %q of the tar is missing", name)
	}
}

func TestBuildRoundTrip(t *testing.T) {
	src := makeTar(t, richFiles())
	want := untar(t, src)
	for name, opts := range variants {
		t.Run(name, func(t *testing.T) {
			layer, built := buildBytes(t, src, opts)
			promise, ropts := Promised(built.Annotations)
			toc, err := ReadTOC(t.Context(), openBlob(t, layer), promise, ropts)
			if err != nil {
				t.Fatal(err)
			}
			if toc.Digest != built.TOCDigest {
				t.Errorf("TOC digest %v, Built says %v", toc.Digest, built.TOCDigest)
			}
			checkEntries(t, toc, inflateAll(t, layer, &toc.Index), want)

			plain := plainTar(t, layer, toc.Index.Compression)
			if d := digest.FromBytes(plain); d != built.DiffID || int64(len(plain)) != built.UncompressedSize {
				t.Errorf("tar is %v of %d bytes, Built says %v of %d", d, len(plain), built.DiffID, built.UncompressedSize)
			}
			got := untar(t, plain)
			for _, n := range []string{tocName, prefetchLandmark, noPrefetchLandmark} {
				delete(got, n)
			}
			if d := cmp.Diff(want, got, cmp.AllowUnexported(tarFile{}), cmp.Comparer(bytes.Equal)); d != "" {
				t.Errorf("tar inside the layer (-source +layer):\n%s", d)
			}
			if (toc.Index.PrefetchEnd > 0) != (opts.Prefetch != nil) {
				t.Errorf("PrefetchEnd = %d with prefetch list %q", toc.Index.PrefetchEnd, opts.Prefetch)
			}
		})
	}
}

// stockOpen opens a layer with the tools of the format's project.
func stockOpen(t testing.TB, layer []byte) *stock.Reader {
	t.Helper()
	r, err := stock.Open(io.NewSectionReader(bytes.NewReader(layer), 0, int64(len(layer))),
		stock.WithDecompressors(new(zstdchunked.Decompressor)))
	if err != nil {
		t.Fatalf("stock Open: %v", err)
	}
	return r
}

func TestStockReadsOurs(t *testing.T) {
	src := makeTar(t, richFiles())
	want := untar(t, src)
	for name, opts := range variants {
		t.Run(name, func(t *testing.T) {
			layer, built := buildBytes(t, src, opts)
			r := stockOpen(t, layer)
			if r.TOCDigest() != built.TOCDigest {
				t.Errorf("stock TOC digest %v, ours %v", r.TOCDigest(), built.TOCDigest)
			}
			// The stock verifier takes no layer with shared streams, its own included.
			if opts.MinChunkSize == 0 {
				if _, err := r.VerifyTOC(built.TOCDigest); err != nil {
					t.Errorf("stock VerifyTOC: %v", err)
				}
			}
			for name, w := range want {
				if w.Typeflag != tar.TypeReg {
					continue
				}
				// Stock tools see U+FFFD for what JSON cannot hold.
				name = strings.ToValidUTF8(name, "\ufffd")
				sr, err := r.OpenFile(name)
				if err != nil {
					t.Errorf("stock OpenFile: %v", err)
					continue
				}
				got, err := io.ReadAll(sr)
				if err != nil || !bytes.Equal(got, w.body) {
					t.Errorf("stock reads %d bytes of %q, %v; want %d bytes", len(got), name, err, len(w.body))
				}
			}
		})
	}
}
