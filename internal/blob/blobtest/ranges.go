package blobtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// Landing collects what blob.ReadRanges delivers and checks that it comes as
// the contract says. It is for one call.
type Landing struct {
	ranges []blob.Range
	got    [][]byte
}

// NewLanding returns a Landing for ranges.
func NewLanding(ranges []blob.Range) *Landing {
	return &Landing{ranges: ranges, got: make([][]byte, len(ranges))}
}

// Land is the blob.Land to read with.
func (l *Landing) Land(i int, off int64, p []byte) error {
	if i < 0 || i >= len(l.ranges) {
		return fmt.Errorf("bytes of range %d of %d", i, len(l.ranges))
	}
	r := l.ranges[i]
	if want := r.Off + int64(len(l.got[i])); off != want || off+int64(len(p)) > r.End() {
		return fmt.Errorf("range %v: bytes %d+%d where those from %d on are due", r, off, len(p), want)
	}
	l.got[i] = append(l.got[i], p...)
	return nil
}

// Check reports, for what was delivered, whether it is right, and if whole
// whether it is all.
func (l *Landing) Check(content []byte, whole bool) error {
	for i, r := range l.ranges {
		p := l.got[i]
		if whole && int64(len(p)) != r.Len {
			return fmt.Errorf("range %v: %d bytes were delivered", r, len(p))
		}
		if !bytes.Equal(p, content[r.Off:r.Off+int64(len(p))]) {
			return fmt.Errorf("range %v: wrong content", r)
		}
	}
	return nil
}

// Several returns about n ranges of a blob of size bytes as ReadRanges takes
// them, some of which touch. They are the same for the same seed.
func Several(seed uint64, n int, size int64) []blob.Range {
	rng := rand.New(rand.NewPCG(seed, 5))
	var rs []blob.Range
	off := int64(0)
	for range n {
		if rng.IntN(4) > 0 {
			off += rng.Int64N(max(1, 2*size/int64(n)-5000))
		}
		r := blob.Range{Off: off, Len: 1 + rng.Int64N(10_000)}
		if r.Check(size) != nil {
			break
		}
		rs = append(rs, r)
		off = r.End()
	}
	return rs
}

func severalRanges(t *testing.T, open Open) {
	const n = 4<<20 + 321
	b, want := one(t, open, n)
	for i, rs := range [][]blob.Range{
		nil,
		{{Off: 0, Len: 1}},
		{{Off: 0, Len: n}},
		{{Off: 0, Len: 1}, {Off: n - 1, Len: 1}},
		{{Off: 1000, Len: 1000}, {Off: 2000, Len: 300_000}, {Off: 1 << 20, Len: 2 << 20}},
		Several(1, 20, n), Several(2, 100, n), Several(3, 200, n), Several(1, 20, n),
	} {
		l := NewLanding(rs)
		if err := blob.ReadRanges(t.Context(), b, rs, l.Land); err != nil {
			t.Errorf("case %d: read %d ranges: %v", i, len(rs), err)
		} else if err := l.Check(want, true); err != nil {
			t.Errorf("case %d: %v", i, err)
		}
	}
}

func severalInvalid(t *testing.T, open Open) {
	b, _ := one(t, open, 1000)
	for _, rs := range [][]blob.Range{
		{{Off: 0, Len: 10}, {Off: 9, Len: 1}}, {{Off: 100, Len: 10}, {Off: 0, Len: 10}},
		{{Off: 0, Len: 10}, {Off: 990, Len: 11}}, {{Off: -1, Len: 10}, {Off: 20, Len: 10}},
		{{Off: 0, Len: 10}, {Off: 20, Len: 0}}, {{Off: 0, Len: 10}, {Off: 1 << 62, Len: 1 << 62}},
	} {
		err := blob.ReadRanges(t.Context(), b, rs, func(int, int64, []byte) error {
			t.Errorf("ranges %v: bytes were delivered", rs)
			return nil
		})
		if !errors.Is(err, blob.Invalid) {
			t.Errorf("ranges %v: %v, want invalid", rs, err)
		}
	}
}

func severalUnknown(t *testing.T, open Open) {
	src, refs := open(t, [][]byte{Bytes(1, 100)})
	ref := refs[0]
	ref.Digest, ref.Size = digest.FromString("nobody has this"), 100
	b, err := src.Open(t.Context(), ref)
	if err == nil {
		rs := []blob.Range{{Off: 0, Len: 10}, {Off: 50, Len: 10}}
		err = blob.ReadRanges(t.Context(), b, rs, NewLanding(rs).Land)
		b.Close()
	}
	if !errors.Is(err, blob.NotFound) {
		t.Errorf("unknown blob: got %v, want kind not found", err)
	}
}

// severalRefused ends a reading from land.
func severalRefused(t *testing.T, open Open) {
	const n = 1 << 20
	b, want := one(t, open, n)
	rs := Several(4, 30, n)
	enough := errors.New("enough")
	calls := 0
	err := blob.ReadRanges(t.Context(), b, rs, func(int, int64, []byte) error {
		if calls++; calls == 3 {
			return enough
		}
		return nil
	})
	if !errors.Is(err, enough) || calls != 3 {
		t.Errorf("land failed at its third call: %d calls, %v", calls, err)
	}
	l := NewLanding(rs)
	if err := blob.ReadRanges(t.Context(), b, rs, l.Land); err != nil {
		t.Error(err)
	} else if err := l.Check(want, true); err != nil {
		t.Error(err)
	}
}

func severalCanceled(t *testing.T, open Open) {
	const n = 1 << 20
	b, want := one(t, open, n)
	rs := Several(5, 30, n)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l := NewLanding(rs)
	err := blob.ReadRanges(ctx, b, rs, func(i int, off int64, p []byte) error {
		cancel()
		return l.Land(i, off, p)
	})
	// What is at hand may still be delivered.
	if err != nil && blob.KindOf(err) != blob.Canceled {
		t.Errorf("canceled: kind %v, want canceled: %v", blob.KindOf(err), err)
	}
	if err := l.Check(want, err == nil); err != nil {
		t.Error(err)
	}
	l = NewLanding(rs)
	if err := blob.ReadRanges(t.Context(), b, rs, l.Land); err != nil {
		t.Errorf("after a canceled one: %v", err)
	} else if err := l.Check(want, true); err != nil {
		t.Error(err)
	}
}

func severalConcurrent(t *testing.T, open Open) {
	const n = 4 << 20
	want := Bytes(11, n)
	src, refs := open(t, [][]byte{want})
	var wg sync.WaitGroup
	for g := range uint64(8) {
		wg.Go(func() {
			b, err := src.Open(t.Context(), refs[0])
			if err != nil {
				t.Errorf("open: %v", err)
				return
			}
			defer b.Close()
			for k := range uint64(4) {
				rs := Several(g%3*10+k, 40, n)
				l := NewLanding(rs)
				if err := blob.ReadRanges(t.Context(), b, rs, l.Land); err != nil {
					t.Errorf("read %d ranges: %v", len(rs), err)
				} else if err := l.Check(want, true); err != nil {
					t.Error(err)
				}
				off := int64(g) * n / 8
				p := make([]byte, 50_000)
				if err := blob.ReadFull(t.Context(), b, p, off); err != nil || !bytes.Equal(p, want[off:off+50_000]) {
					t.Errorf("read one range at %d: %v", off, err)
				}
			}
		})
	}
	wg.Wait()
}
