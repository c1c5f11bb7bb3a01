package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// exact is how a node is set up that reads small parts and looks ahead itself.
func exact(dir string) Config { return Config{Dir: dir, PieceSize: 16 << 10, RandomRun: -1} }

func TestConformancePieceSizes(t *testing.T) {
	for _, size := range []int64{MinPieceSize, 16 * kib, MaxPieceSize} {
		t.Run(fmt.Sprintf("%dKiB", size/kib), func(t *testing.T) {
			blobtest.Run(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
				m, refs := memory(contents)
				return openStore(t, Config{PieceSize: size, RandomRun: -1}).Through(m), refs
			})
		})
	}
	t.Run("Reopened", func(t *testing.T) {
		blobtest.Run(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
			m, refs := memory(contents)
			cfg := exact(t.TempDir())
			s := openStore(t, cfg)
			warm(t, s.Through(m), refs)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return openStore(t, cfg).Local(), refs
		})
	})
}

func TestPieceSizeIsChecked(t *testing.T) {
	for _, size := range []int64{-1, 1, 2048, 5000, 24 * kib, 8 * mib} {
		if s, err := Open(Config{Dir: t.TempDir(), PieceSize: size}); !errors.Is(err, blob.Invalid) {
			t.Errorf("piece size %d: %v, want invalid", size, err)
			if err == nil {
				s.Close()
			}
		}
	}
}

// TestRandomReadsFetchWhatTheyNeed asks a source that counts what it is asked
// for: whatever was read before, a cold read costs its length and the rest of
// the pieces at its ends.
func TestRandomReadsFetchWhatTheyNeed(t *testing.T) {
	const size, piece = int64(32 << 20), int64(16 << 10)
	content := blobtest.Bytes(1, int(size))
	m, refs := memory([][]byte{content})
	var rec recorder
	m.Before = rec.before
	s := openStore(t, exact(""))
	b := openBlob(t, s.Through(m), refs[0])
	rng := rand.New(rand.NewPCG(3, 4))
	seen := newBitmap(int(size / piece))
	last := int64(0)
	for range 300 {
		r := blob.Range{Off: rng.Int64N(size - 40*kib), Len: 40 * kib}
		if rng.IntN(3) == 0 { // one that continues the last
			r.Off = min(last, size-r.Len)
		}
		last = r.End()
		mustRead(t, b, r, content)
		settle(t, s, refs[0].Digest)
		var sum int64
		for _, got := range rec.take() {
			sum += got.Len
			for i := got.Off / piece; i < got.End()/piece; i++ {
				if seen.has(int(i)) {
					t.Errorf("piece %d was fetched twice", i)
				}
				seen.set(int(i))
			}
		}
		if limit := r.Len + 2*piece; sum > limit {
			t.Errorf("read of %v fetched %d bytes, want at most %d", r, sum, limit)
		}
	}
	if got, want := s.Stats().FetchedBytes, int64(seen.count())*piece; got != want {
		t.Errorf("fetched %d bytes, asked for %d", got, want)
	}
}

func TestSmallPiecesAreKeptInBlocks(t *testing.T) {
	content := blobtest.Bytes(1, int(4*mib))
	m, refs := memory([][]byte{content})
	var mu sync.Mutex
	writes := make(map[string]int)
	cfg := exact("")
	cfg.FS.Before = func(op Op) error {
		mu.Lock()
		defer mu.Unlock()
		if op.Name == OpWrite {
			writes[filepath.Base(op.Path)]++
		}
		return nil
	}
	s := openStore(t, cfg)
	mustRead(t, openBlob(t, s.Through(m), refs[0]), whole(content), content)
	quietly(t, s, refs[0])
	mu.Lock()
	defer mu.Unlock()
	// The journal also gets a checkpoint and the verdict, sooner or later.
	if d, j := writes[dataName], writes[journalName]; d != 16 || j < 16 || j > 18 {
		t.Errorf("4 MiB in pieces of 16 KiB: %d writes of data and %d of the journal, want 16 and at most 18", d, j)
	}
}

// quietly waits until the store knows that the blob of ref is complete.
func quietly(t *testing.T, s *Store, ref blob.Ref) {
	t.Helper()
	settle(t, s, ref.Digest)
	if i, err := s.Stat(ref.Digest); err != nil || !i.Complete {
		t.Fatalf("%+v, %v; want complete", i, err)
	}
}

func TestBlobKeepsItsPieces(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	m, refs := memory([][]byte{content})
	dir := t.TempDir()
	for i, size := range []int64{16 * kib, 256 * kib, 4 * kib} {
		s := openStore(t, Config{Dir: dir, PieceSize: size, RandomRun: -1})
		b := openBlob(t, s.Through(m), refs[0])
		mustRead(t, b, blob.Range{Off: int64(i) * 100 * kib, Len: 1}, content)
		settle(t, s, refs[0].Digest)
		if got, err := s.Stat(refs[0].Digest); err != nil || got.Present != int64(i+1)*16*kib {
			t.Errorf("pieces of %d bytes: %+v, %v; want %d pieces of 16 KiB", size, got, err, i+1)
		}
		b.Close()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := openStore(t, Config{Dir: dir})
	mustRead(t, openBlob(t, s.Through(m), refs[0]), whole(content), content)
	quietly(t, s, refs[0])
	if got := s.Stats().FetchedBytes; got != mib-3*16*kib {
		t.Errorf("fetched %d bytes, want what was missing", got)
	}
}

func TestSmallPiecesAreServedAsTheyArrive(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	src := newTap(content)
	ref := blob.Ref{Digest: digestOf(content), Size: mib}
	s := openStore(t, exact(""))
	b := openBlob(t, s.Through(src), ref)
	rc := readRange(t, t.Context(), b, whole(content))
	var got []byte
	for _, to := range []int64{10, 16*kib + 1, 250 * kib, 300 * kib} {
		src.flow(to)
		p := make([]byte, to-int64(len(got)))
		if _, err := io.ReadFull(rc, p); err != nil {
			t.Fatalf("read up to %d: %v", to, err)
		}
		got = append(got, p...)
	}
	if !bytes.Equal(got, content[:len(got)]) {
		t.Error("wrong content")
	}
	// What a reader that gives up has received is kept, by whole pieces.
	rc.Close()
	<-src.stopped
	settle(t, s, ref.Digest)
	if i, err := s.Stat(ref.Digest); err != nil || i.Present != 288*kib {
		t.Errorf("after a fetch cancelled at 300 KiB: %+v, %v; want 18 pieces", i, err)
	}
	src.flow(mib)
	mustRead(t, b, whole(content), content)
}

func TestRejectedPieceOfABlockIsNotKept(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	src := newTap(content)
	ref := blob.Ref{Digest: digestOf(content), Size: mib}
	s := openStore(t, exact(""))
	b := openBlob(t, s.Through(src), ref)
	rc := readRange(t, t.Context(), b, blob.Range{Len: 256 * kib})
	src.flow(100 * kib)
	if _, err := io.ReadFull(rc, make([]byte, 100*kib)); err != nil {
		t.Fatal(err)
	}
	// Of these the first has arrived and the last has not.
	b.(blob.Rejecter).Reject(blob.Range{Off: 40 * kib, Len: 1})
	b.(blob.Rejecter).Reject(blob.Range{Off: 200 * kib, Len: 1})
	src.flow(mib)
	if _, err := io.Copy(io.Discard, rc); err != nil {
		t.Fatal(err)
	}
	settle(t, s, ref.Digest)
	if i, err := s.Stat(ref.Digest); err != nil || i.Present != 240*kib {
		t.Errorf("%+v, %v; want all of 256 KiB but one piece", i, err)
	}
	mustRead(t, b, whole(content), content)
	quietly(t, s, ref)
}

func TestSmallPiecesThatRotAreFetchedAlone(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	m, refs := memory([][]byte{content})
	cfg := exact(t.TempDir())
	s := openStore(t, cfg)
	warm(t, s.Through(m), refs)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(blobDir(filepath.Join(cfg.Dir, "blobs"), refs[0].Digest), dataName)
	edit(t, path, func(p []byte) []byte { return flipped(p, 100*kib) })
	s = openStore(t, cfg)
	b := openBlob(t, s.Through(m), refs[0])
	mustRead(t, b, whole(content), content)
	quietly(t, s, refs[0])
	if st := s.Stats(); st.CRCFailures != 1 || st.FetchedBytes != 16*kib {
		t.Errorf("%d damaged pieces, %d bytes fetched; want 1 and 16 KiB", st.CRCFailures, st.FetchedBytes)
	}
	if p, err := os.ReadFile(path); err != nil || !bytes.Equal(p, content) {
		t.Errorf("file after repair: %v", err)
	}
}
