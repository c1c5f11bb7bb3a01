package estargz

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"skimmer/internal/blob"
)

// bigIndex is an index of n chunks, ten to a file.
func bigIndex(n int) *Index {
	ix := &Index{Compression: Zstd, BlobSize: int64(n)*3000 + 99}
	for i := range n {
		if i%10 == 0 {
			ix.DataSize = alignUp(ix.DataSize)
			ix.Files = append(ix.Files, File{fmt.Sprintf("usr/lib/file%d", i), ix.DataSize, 0})
		}
		if i%3 == 0 {
			ix.Streams = append(ix.Streams, Stream{Off: int64(i) * 3000, End: int64(i)*3000 + 9000, FirstChunk: uint32(i)})
		}
		s := &ix.Streams[len(ix.Streams)-1]
		ix.Chunks = append(ix.Chunks, Chunk{InnerOff: int64(s.NumChunks) * 5000, DataOff: ix.DataSize, Size: 4567,
			Digest: [32]byte{byte(i), byte(i >> 8), byte(i >> 16)}})
		s.NumChunks++
		ix.DataSize += 4567
		ix.Files[len(ix.Files)-1].Size += 4567
	}
	ix.Streams[len(ix.Streams)-1].End = ix.BlobSize
	ix.DataSize = alignUp(ix.DataSize)
	return ix
}

func marshal(t testing.TB, ix *Index) []byte {
	t.Helper()
	p, err := ix.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestIndexRoundTrip(t *testing.T) {
	indexes := map[string]*Index{"empty": {Compression: Gzip}, "big": bigIndex(2_000)}
	src := makeTar(t, richFiles())
	for _, name := range []string{"gzip-shared", "gzip-prefetch"} {
		layer, built := buildBytes(t, src, variants[name])
		toc, err := ReadTOC(t.Context(), openBlob(t, layer), built.TOCDigest, ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		indexes[name] = &toc.Index
	}
	for name, ix := range indexes {
		p := marshal(t, ix)
		got, err := UnmarshalIndex(p)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := cmp.Diff(ix, got, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("%s (-stored +read):\n%s", name, d)
		}
	}
}

func TestUnmarshalIndexRefusesDamage(t *testing.T) {
	p := marshal(t, bigIndex(7))
	for i := range p {
		q := append([]byte(nil), p...)
		q[i] ^= 0x10
		if _, err := UnmarshalIndex(q); !errors.Is(err, blob.Corrupt) {
			t.Errorf("byte %d changed: error %v, want Corrupt", i, err)
		}
		if _, err := UnmarshalIndex(p[:i]); !errors.Is(err, blob.Corrupt) {
			t.Errorf("cut at %d: error %v, want Corrupt", i, err)
		}
	}
	newer := append([]byte(nil), p...)
	newer[len(indexMagic)]++
	if _, err := UnmarshalIndex(newer); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("newer version: error %v", err)
	}
}

func TestIndexCheck(t *testing.T) {
	for name, spoil := range map[string]func(*Index){
		"compression":        func(ix *Index) { ix.Compression = 9 },
		"blob size":          func(ix *Index) { ix.BlobSize = -1 },
		"data size":          func(ix *Index) { ix.DataSize++ },
		"prefetch end":       func(ix *Index) { ix.PrefetchEnd = ix.BlobSize + 1 },
		"stream order":       func(ix *Index) { ix.Streams[1].Off-- },
		"stream empty":       func(ix *Index) { ix.Streams[1].End = ix.Streams[1].Off },
		"stream end":         func(ix *Index) { ix.Streams[2].End = ix.BlobSize + 1 },
		"stream chunks":      func(ix *Index) { ix.Streams[1].FirstChunk++ },
		"stream chunkless":   func(ix *Index) { ix.Streams[2].NumChunks = 0 },
		"stream too many":    func(ix *Index) { ix.Streams[2].NumChunks = 1 << 31 },
		"stray chunk":        func(ix *Index) { ix.Streams = ix.Streams[:2] },
		"chunk size":         func(ix *Index) { ix.Chunks[0].Size = 0 },
		"chunk too large":    func(ix *Index) { ix.Chunks[0].Size = 1 << 31 },
		"chunk overlap":      func(ix *Index) { ix.Chunks[1].DataOff-- },
		"chunk inner":        func(ix *Index) { ix.Chunks[1].InnerOff = 4566 },
		"chunk outside file": func(ix *Index) { ix.Files[0].Size-- },
		"file unaligned":     func(ix *Index) { ix.Files[0].DataOff = 1 },
		"file outside":       func(ix *Index) { ix.Files[0].Size = ix.DataSize + 1 },
	} {
		ix := bigIndex(7)
		if err := ix.check(); err != nil {
			t.Fatal(err)
		}
		spoil(ix)
		if _, err := ix.MarshalBinary(); !errors.Is(err, blob.Invalid) {
			t.Errorf("%s: error %v, want Invalid", name, err)
		}
	}
}

// FuzzUnmarshalIndex reads damaged indexes whose checksum is right.
func FuzzUnmarshalIndex(f *testing.F) {
	for _, ix := range []*Index{{Compression: Gzip}, bigIndex(1), bigIndex(25)} {
		p := marshal(f, ix)
		f.Add(p[:len(p)-4])
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		p := binary.LittleEndian.AppendUint32(body[:len(body):len(body)], crc32.Checksum(body, castagnoli))
		ix, err := UnmarshalIndex(p)
		if err != nil {
			if !errors.Is(err, blob.Corrupt) {
				t.Fatalf("error %v is not Corrupt", err)
			}
			return
		}
		again, err := UnmarshalIndex(marshal(t, ix))
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(ix, again, cmpopts.EquateEmpty()); d != "" {
			t.Fatalf("read twice:\n%s", d)
		}
	})
}

func BenchmarkUnmarshalIndex100k(b *testing.B) {
	p := marshal(b, bigIndex(100_000))
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := UnmarshalIndex(p); err != nil {
			b.Fatal(err)
		}
	}
}
