// Package blobtest is the conformance suite every [blob.Source] passes. A
// package that implements a source calls Run from one of its tests; the
// suite, not the package, decides what the contract means.
package blobtest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// Open puts the given blobs where the source under test gets them from and
// returns the source with a reference to each, in the same order. References
// must carry Digest; whether they carry Size is the implementation's choice.
// Clean-up goes through t.
type Open func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref)

// Bytes returns n bytes that look random and are the same for the same seed.
func Bytes(seed uint64, n int) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	p := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(p)
	return p
}

// Run runs the suite against what open returns.
func Run(t *testing.T, open Open) {
	t.Run("ReadWhole", func(t *testing.T) { readWhole(t, open) })
	t.Run("Ranges", func(t *testing.T) { ranges(t, open) })
	t.Run("EmptyRange", func(t *testing.T) { emptyRange(t, open) })
	t.Run("OutsideIsInvalid", func(t *testing.T) { outside(t, open) })
	t.Run("UnknownIsNotFound", func(t *testing.T) { unknown(t, open) })
	t.Run("MalformedIsInvalid", func(t *testing.T) { malformed(t, open) })
	t.Run("SizeIsLearned", func(t *testing.T) { sizeLearned(t, open) })
	t.Run("Concurrent", func(t *testing.T) { concurrent(t, open) })
	t.Run("CancelEndsReader", func(t *testing.T) { cancelEnds(t, open) })
	t.Run("ReaderOutlivesBlob", func(t *testing.T) { readerOutlives(t, open) })
	t.Run("EarlyClose", func(t *testing.T) { earlyClose(t, open) })
	RunSeveral(t, open)
}

// RunSeveral runs the part of the suite that is about reading several ranges.
func RunSeveral(t *testing.T, open Open) {
	t.Run("SeveralRanges", func(t *testing.T) { severalRanges(t, open) })
	t.Run("SeveralInvalid", func(t *testing.T) { severalInvalid(t, open) })
	t.Run("SeveralUnknown", func(t *testing.T) { severalUnknown(t, open) })
	t.Run("SeveralRefused", func(t *testing.T) { severalRefused(t, open) })
	t.Run("SeveralCanceled", func(t *testing.T) { severalCanceled(t, open) })
	t.Run("SeveralConcurrent", func(t *testing.T) { severalConcurrent(t, open) })
}

// one opens a source with a single blob of n bytes.
func one(t *testing.T, open Open, n int) (blob.Blob, []byte) {
	t.Helper()
	want := Bytes(uint64(n)+1, n)
	src, refs := open(t, [][]byte{want})
	b, err := src.Open(t.Context(), refs[0])
	if err != nil {
		t.Fatalf("open %v: %v", refs[0], err)
	}
	t.Cleanup(func() { b.Close() })
	return b, want
}

func readRange(t *testing.T, b blob.Blob, r blob.Range) []byte {
	t.Helper()
	rc, err := b.ReadRange(t.Context(), r)
	if err != nil {
		t.Fatalf("read range %v: %v", r, err)
	}
	defer rc.Close()
	got, err := io.ReadAll(rc)
	if err != nil {
		t.Fatalf("read range %v: after %d bytes: %v", r, len(got), err)
	}
	return got
}

func readWhole(t *testing.T, open Open) {
	for _, n := range []int{1, 4096, 256 << 10, 256<<10 + 1, 3<<20 + 17} {
		b, want := one(t, open, n)
		if b.Size() != int64(n) {
			t.Errorf("size of a blob of %d bytes = %d", n, b.Size())
		}
		// Twice: the second read may come from a cache.
		for range 2 {
			if got := readRange(t, b, blob.Range{Len: int64(n)}); !bytes.Equal(got, want) {
				t.Errorf("whole blob of %d bytes: wrong content", n)
			}
		}
	}
}

func ranges(t *testing.T, open Open) {
	const n = 5<<20 + 123
	b, want := one(t, open, n)
	rng := rand.New(rand.NewPCG(1, 2))
	cases := []blob.Range{
		{Off: 0, Len: 1}, {Off: n - 1, Len: 1}, {Off: 256<<10 - 1, Len: 2},
		{Off: 1 << 20, Len: 1 << 20}, {Off: n - 30<<10, Len: 30 << 10},
	}
	for range 40 {
		off := rng.Int64N(n)
		cases = append(cases, blob.Range{Off: off, Len: 1 + rng.Int64N(min(n-off, 700<<10))})
	}
	for _, r := range cases {
		if got := readRange(t, b, r); !bytes.Equal(got, want[r.Off:r.End()]) {
			t.Errorf("range %v: wrong content (%d bytes)", r, len(got))
		}
	}
}

func emptyRange(t *testing.T, open Open) {
	b, want := one(t, open, 1000)
	for _, off := range []int64{0, 500, int64(len(want))} {
		if got := readRange(t, b, blob.Range{Off: off}); len(got) != 0 {
			t.Errorf("empty range at %d gave %d bytes", off, len(got))
		}
	}
}

func outside(t *testing.T, open Open) {
	b, _ := one(t, open, 1000)
	for _, r := range []blob.Range{
		{Off: -1, Len: 1}, {Off: 0, Len: -1}, {Off: 0, Len: 1001},
		{Off: 1001, Len: 0}, {Off: 999, Len: 2}, {Off: 1 << 62, Len: 1 << 62},
	} {
		rc, err := b.ReadRange(t.Context(), r)
		if err == nil {
			rc.Close()
			t.Errorf("range %+v of 1000 bytes was accepted", r)
		} else if !errors.Is(err, blob.Invalid) {
			t.Errorf("range %+v: kind %v, want invalid: %v", r, blob.KindOf(err), err)
		}
	}
}

func unknown(t *testing.T, open Open) {
	src, refs := open(t, [][]byte{Bytes(1, 100)})
	for _, size := range []int64{blob.SizeUnknown, 100} {
		ref := refs[0]
		ref.Digest = digest.FromString("nobody has this")
		ref.Size = size
		b, err := src.Open(t.Context(), ref)
		if err == nil {
			// A source that was told the size need not look before reading.
			err = blob.ReadFull(t.Context(), b, make([]byte, 10), 0)
			b.Close()
		}
		if !errors.Is(err, blob.NotFound) {
			t.Errorf("unknown blob (size %d): got %v, want kind not found", size, err)
		}
	}
}

func malformed(t *testing.T, open Open) {
	src, refs := open(t, [][]byte{Bytes(1, 100)})
	for _, bad := range []digest.Digest{"", "sha256:", "sha256:12", "nonsense", "sha256:../../etc/passwd"} {
		ref := refs[0]
		ref.Digest = bad
		if b, err := src.Open(t.Context(), ref); err == nil {
			b.Close()
			t.Errorf("digest %q was accepted", bad)
		} else if !errors.Is(err, blob.Invalid) {
			t.Errorf("digest %q: kind %v, want invalid: %v", bad, blob.KindOf(err), err)
		}
	}
}

func sizeLearned(t *testing.T, open Open) {
	want := Bytes(9, 12345)
	src, refs := open(t, [][]byte{want})
	ref := refs[0]
	ref.Size = blob.SizeUnknown
	b, err := src.Open(t.Context(), ref)
	if err != nil {
		t.Fatalf("open without a size: %v", err)
	}
	defer b.Close()
	if b.Size() != int64(len(want)) {
		t.Errorf("size = %d, want %d", b.Size(), len(want))
	}
}

func concurrent(t *testing.T, open Open) {
	const n = 4 << 20
	contents := [][]byte{Bytes(1, n), Bytes(2, n)}
	src, refs := open(t, contents)
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 7))
			i := g % 2
			b, err := src.Open(t.Context(), refs[i])
			if err != nil {
				t.Errorf("open: %v", err)
				return
			}
			defer b.Close()
			for range 10 {
				off := rng.Int64N(n)
				p := make([]byte, 1+rng.Int64N(min(n-off, 512<<10)))
				if err := blob.ReadFull(t.Context(), b, p, off); err != nil {
					t.Errorf("read %d+%d: %v", off, len(p), err)
				} else if !bytes.Equal(p, contents[i][off:off+int64(len(p))]) {
					t.Errorf("read %d+%d: wrong content", off, len(p))
				}
			}
		})
	}
	wg.Wait()
}

func cancelEnds(t *testing.T, open Open) {
	b, _ := one(t, open, 1<<20)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	rc, err := b.ReadRange(ctx, blob.Range{Len: 1 << 20})
	if err == nil {
		_, err = io.Copy(io.Discard, rc)
		rc.Close()
	}
	// A source that has every byte at hand may still answer; one that does
	// not must say why it stopped.
	if err != nil && blob.KindOf(err) != blob.Canceled {
		t.Errorf("cancelled read: kind %v, want canceled: %v", blob.KindOf(err), err)
	}
	// Cancelling one reader must not poison the blob for the next.
	if got := readRange(t, b, blob.Range{Len: 1 << 20}); len(got) != 1<<20 {
		t.Errorf("read after a cancelled one gave %d bytes", len(got))
	}
}

func readerOutlives(t *testing.T, open Open) {
	want := Bytes(3, 2<<20)
	src, refs := open(t, [][]byte{want})
	b, err := src.Open(t.Context(), refs[0])
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	rc, err := b.ReadRange(t.Context(), blob.Range{Len: 2 << 20})
	if err != nil {
		t.Fatalf("read range: %v", err)
	}
	defer rc.Close()
	if err := b.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if got, err := io.ReadAll(rc); err != nil || !bytes.Equal(got, want) {
		t.Errorf("reader after its blob was closed: %d bytes, %v", len(got), err)
	}
}

func earlyClose(t *testing.T, open Open) {
	b, want := one(t, open, 8<<20)
	for i := range 8 {
		rc, err := b.ReadRange(t.Context(), blob.Range{Len: 8 << 20})
		if err != nil {
			t.Fatalf("read range: %v", err)
		}
		p := make([]byte, 1+i*1000)
		if _, err := io.ReadFull(rc, p); err != nil || !bytes.Equal(p, want[:len(p)]) {
			t.Errorf("first %d bytes: %v", len(p), err)
		}
		if err := rc.Close(); err != nil {
			t.Errorf("close early: %v", err)
		}
	}
	if got := readRange(t, b, blob.Range{Len: 8 << 20}); !bytes.Equal(got, want) {
		t.Errorf("whole blob after early closes: wrong content")
	}
}
