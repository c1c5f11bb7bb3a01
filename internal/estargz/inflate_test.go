package estargz

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	stdgzip "compress/gzip"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"skimmer/internal/blob"
)

// readBuilt builds a layer and reads its index.
func readBuilt(t testing.TB, files []tarFile, opts BuildOptions) ([]byte, *Index) {
	t.Helper()
	layer, built := buildBytes(t, makeTar(t, files), opts)
	toc, err := ReadTOC(t.Context(), openBlob(t, layer), built.TOCDigest, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return layer, &toc.Index
}

// sinkFuncs is a Sink of functions.
type sinkFuncs struct {
	write func(chunk int, off int64, p []byte) error
	done  func(chunk int) error
}

func (s sinkFuncs) Write(chunk int, off int64, p []byte) error { return s.write(chunk, off, p) }
func (s sinkFuncs) Done(chunk int) error                       { return s.done(chunk) }

func TestInflateFailures(t *testing.T) {
	for _, opts := range []BuildOptions{{MinChunkSize: 1 << 20}, {MinChunkSize: 1 << 20, Zstd: true}} {
		layer, ix := readBuilt(t, richFiles(), opts)
		part := layer[ix.Streams[0].Off:ix.Streams[0].End]
		// run inflates the first stream and returns which chunks were done.
		run := func(r io.Reader) (int, error) {
			done := 0
			err := ix.Inflate(0, r, sinkFuncs{
				func(int, int64, []byte) error { return nil },
				func(chunk int) error {
					if chunk != done {
						t.Errorf("chunk %d done, expected %d", chunk, done)
					}
					done++
					return nil
				},
			})
			return done, err
		}
		all := int(ix.Streams[0].NumChunks)
		if all < 3 {
			t.Fatalf("stream has %d chunks, the test needs more", all)
		}
		if n, err := run(iotest.OneByteReader(bytes.NewReader(part))); n != all || err != nil {
			t.Errorf("byte by byte: %d of %d chunks, %v", n, all, err)
		}
		if n, err := run(bytes.NewReader(part[:len(part)/2])); n == all || !errors.Is(err, blob.Corrupt) || !strings.Contains(err.Error(), "ends early") {
			t.Errorf("cut: %d chunks, %v", n, err)
		}
		if _, err := run(bytes.NewReader(nil)); !errors.Is(err, blob.Corrupt) {
			t.Errorf("nothing: %v", err)
		}
		if _, err := run(strings.NewReader("neither gzip nor zstd")); !errors.Is(err, blob.Corrupt) {
			t.Errorf("garbage: %v", err)
		}
		cut := io.MultiReader(bytes.NewReader(part[:len(part)/2]), iotest.ErrReader(blob.Errorf(blob.Unavailable, "peer went away")))
		if n, err := run(cut); n == all || !errors.Is(err, blob.Unavailable) || !strings.Contains(err.Error(), "peer went away") {
			t.Errorf("failing source: %d chunks, %v", n, err)
		}

		full := blob.Errorf(blob.Full, "disk is full")
		nop := func(int, int64, []byte) error { return nil }
		for name, s := range map[string]Sink{
			"Write": sinkFuncs{func(int, int64, []byte) error { return full }, func(int) error { return nil }},
			"Done":  sinkFuncs{nop, func(int) error { return full }},
		} {
			if err := ix.Inflate(0, bytes.NewReader(part), s); !errors.Is(err, blob.Full) {
				t.Errorf("%s fails: %v", name, err)
			}
		}

		bad := *ix
		bad.Chunks = append([]Chunk(nil), ix.Chunks...)
		bad.Chunks[1].Digest[5] ^= 1
		done := 0
		err := bad.Inflate(0, bytes.NewReader(part), sinkFuncs{nop, func(int) error { done++; return nil }})
		name, _ := ix.FileAt(ix.Chunks[1].DataOff)
		if done != 1 || !errors.Is(err, blob.Corrupt) || !strings.Contains(err.Error(), name.Name) || !strings.Contains(err.Error(), "chunk 1") {
			t.Errorf("wrong content: %d chunks done, %v", done, err)
		}
		for _, stream := range []int{-1, len(ix.Streams)} {
			if err := ix.Inflate(stream, bytes.NewReader(part), nil); !errors.Is(err, blob.Invalid) {
				t.Errorf("stream %d: %v", stream, err)
			}
		}
	}
}

// TestInflateReadsNoFurther proves that the end of a long stream is left
// alone when the last chunk needs only its start.
func TestInflateReadsNoFurther(t *testing.T) {
	for _, c := range []Compression{Gzip, Zstd} {
		layer, ix := readBuilt(t, []tarFile{richFiles()[3]}, BuildOptions{Zstd: c == Zstd})
		r := &countingReader{r: io.MultiReader(bytes.NewReader(layer[ix.Streams[0].Off:ix.Streams[0].End]), bytes.NewReader(make([]byte, 10<<20)))}
		f := &flat{ix, make([]byte, ix.DataSize), make([]bool, 1)}
		if err := ix.Inflate(0, r, f); err != nil {
			t.Fatal(err)
		}
		if limit := ix.Streams[0].End - ix.Streams[0].Off + 2*compressedPart; r.n > limit {
			t.Errorf("compression %d: %d bytes read, want at most %d", c, r.n, limit)
		}
	}
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// TestInflateParallel shares the pools among goroutines and kinds.
func TestInflateParallel(t *testing.T) {
	var wg sync.WaitGroup
	for _, opts := range []BuildOptions{{ChunkSize: 50_000}, {ChunkSize: 50_000, Zstd: true}} {
		layer, ix := readBuilt(t, richFiles(), opts)
		want := inflateAll(t, layer, ix)
		for range 4 {
			wg.Go(func() {
				f := &flat{ix, make([]byte, ix.DataSize), make([]bool, len(ix.Chunks))}
				for i, s := range ix.Streams {
					// A broken try must leave nothing in the pools.
					_ = ix.Inflate(i, bytes.NewReader(layer[s.Off:(s.Off+s.End)/2]), f)
					if err := ix.Inflate(i, bytes.NewReader(layer[s.Off:s.End]), f); err != nil {
						t.Errorf("stream %d: %v", i, err)
					}
				}
				if !bytes.Equal(f.p, want) {
					t.Error("flat data differs")
				}
			})
		}
	}
	wg.Wait()
}

func BenchmarkInflate(b *testing.B) {
	files := manyFiles(2000)
	for i := range files {
		files[i].body = text(uint64(i), 10_000)
	}
	files = append(files, tarFile{files[0].Header, text(9999, 40<<20)})
	files[2000].Name = "big"
	for name, opts := range map[string]BuildOptions{"gzip": {}, "zstd": {Zstd: true}} {
		layer, ix := readBuilt(b, files, opts)
		discard := sinkFuncs{func(int, int64, []byte) error { return nil }, func(int) error { return nil }}
		b.Run(name+"/Inflate", func(b *testing.B) {
			b.SetBytes(ix.DataSize)
			b.ReportAllocs()
			for b.Loop() {
				for i, s := range ix.Streams {
					if err := ix.Inflate(i, bytes.NewReader(layer[s.Off:s.End]), discard); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
		whole := func(open func() (io.Reader, error)) func(*testing.B) {
			return func(b *testing.B) {
				b.SetBytes(ix.DataSize)
				for b.Loop() {
					r, err := open()
					if err != nil {
						b.Fatal(err)
					}
					if _, err := io.Copy(io.Discard, r); err != nil {
						b.Fatal(err)
					}
				}
			}
		}
		if opts.Zstd {
			b.Run("zstd/whole-klauspost", whole(func() (io.Reader, error) {
				return zstd.NewReader(bytes.NewReader(layer), zstd.WithDecoderConcurrency(1))
			}))
			continue
		}
		b.Run("gzip/whole-stdlib", whole(func() (io.Reader, error) { return stdgzip.NewReader(bytes.NewReader(layer)) }))
		b.Run("gzip/whole-klauspost", whole(func() (io.Reader, error) { return gzip.NewReader(bytes.NewReader(layer)) }))
	}
}
