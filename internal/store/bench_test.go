package store

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

const benchSize = 64 << 20

// held returns an open blob of benchSize bytes that is on disk, and the path
// of its data.
func benchBlob(b *testing.B, pieceSize int64) (blob.Blob, string) {
	content := blobtest.Bytes(1, benchSize)
	m, refs := memory([][]byte{content})
	s := openStore(b, Config{PieceSize: pieceSize})
	bl := openBlob(b, s.Through(m), refs[0])
	mustRead(b, bl, whole(content), content)
	return bl, filepath.Join(blobDir(s.root, refs[0].Digest), dataName)
}

// plain hides everything of a reader but Read.
type plain struct{ io.Reader }

func BenchmarkWarm(b *testing.B) {
	bl, path := benchBlob(b, DefaultPieceSize)
	small, _ := benchBlob(b, 16<<10)
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int64{4 << 10, 128 << 10, 1 << 20} {
		p := make([]byte, size)
		name := map[int64]string{4 << 10: "4KiB", 128 << 10: "128KiB", 1 << 20: "1MiB"}[size]
		b.Run("file/"+name, func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			var off int64
			for b.Loop() {
				if _, err := f.ReadAt(p, off); err != nil {
					b.Fatal(err)
				}
				off = (off + size) % benchSize
			}
		})
		for _, bl := range []struct {
			name string
			blob blob.Blob
		}{{"store/", bl}, {"small/", small}} {
			b.Run(bl.name+name, func(b *testing.B) {
				b.SetBytes(size)
				b.ReportAllocs()
				var off int64
				for b.Loop() {
					if err := blob.ReadFull(b.Context(), bl.blob, p, off); err != nil {
						b.Fatal(err)
					}
					off = (off + size) % benchSize
				}
			})
		}
	}
}

// BenchmarkWarmToSocket copies a blob to a TCP connection on loopback.
func BenchmarkWarmToSocket(b *testing.B) {
	bl, _ := benchBlob(b, DefaultPieceSize)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	sunk := make(chan struct{})
	go func() {
		defer close(sunk)
		if c, err := ln.Accept(); err == nil {
			_, _ = io.Copy(plainWriter{}, c)
			c.Close()
		}
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(benchSize)
	for b.Loop() {
		rc, err := bl.ReadRange(b.Context(), blob.Range{Len: benchSize})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(c, rc); err != nil {
			b.Fatal(err)
		}
		rc.Close()
	}
	c.Close()
	<-sunk
}

type plainWriter struct{}

func (plainWriter) Write(p []byte) (int, error) { return len(p), nil }

// BenchmarkCold reads a blob that is nowhere on disk, to its verified end.
func BenchmarkCold(b *testing.B) {
	m, refs := memory([][]byte{blobtest.Bytes(1, benchSize)})
	b.Run("memory", func(b *testing.B) {
		bl := openBlob(b, m, refs[0])
		b.SetBytes(benchSize)
		for b.Loop() {
			rc, err := bl.ReadRange(b.Context(), blob.Range{Len: benchSize})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, plain{rc}); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, size := range []int64{4 << 10, 16 << 10, 256 << 10} {
		b.Run(fmt.Sprintf("store/pieces=%dKiB", size>>10), func(b *testing.B) {
			s := openStore(b, Config{PieceSize: size})
			coldRead(b, s, s.Through(m), refs[0])
		})
	}
}

func coldRead(b *testing.B, s *Store, src blob.Source, ref blob.Ref) {
	b.SetBytes(benchSize)
	for b.Loop() {
		bl, err := src.Open(b.Context(), ref)
		if err != nil {
			b.Fatal(err)
		}
		rc, err := bl.ReadRange(b.Context(), blob.Range{Len: benchSize})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, rc); err != nil {
			b.Fatal(err)
		}
		rc.Close()
		bl.Close()
		b.StopTimer()
		quiet(s, ref.Digest)
		if err := s.Remove(ref.Digest); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkJournalAppend(b *testing.B) {
	s := openStore(b, Config{})
	content := blobtest.Bytes(1, 1000)
	e, err := s.acquire(digestOf(content))
	if err != nil {
		b.Fatal(err)
	}
	defer s.release(e)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.load()
	e.setGeometry(info{Version: infoVersion, Digest: e.digest, Size: 1000, PieceSize: DefaultPieceSize})
	if _, err := e.writable(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := e.append(record{recPiece, 0, 1}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkJournalDecode(b *testing.B) {
	var p []byte
	for i := range uint32(maxPieces) {
		p = append(p, journalOf(record{recPiece, i, i})...)
	}
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if s, _ := decodeJournal(p, maxPieces); s.records != maxPieces {
			b.Fatal(s.records)
		}
	}
}
