package store

import (
	"fmt"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/testkit"
)

// TestDigestDelay keeps blobs that are to be compared later: one that nobody
// asks about is not compared at once, and one that somebody does is.
func TestDigestDelay(t *testing.T) {
	s, err := Open(Config{Dir: t.TempDir(), MinFree: -1, DigestDelay: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	m := &blobtest.Memory{}
	src := s.Through(m)
	fetch := func(seed uint64) (blob.Ref, blob.Blob) {
		ref := m.Add(blobtest.Bytes(seed, 1<<20))
		b, err := src.Open(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		half := ref.Size / 2
		for _, off := range []int64{0, half} {
			if err := blob.ReadFull(t.Context(), b, make([]byte, half), off); err != nil {
				t.Fatal(err)
			}
		}
		return ref, b
	}
	ref, b := fetch(1)
	defer b.Close()
	testkit.Eventually(t, time.Minute, "what was read is kept", func() error {
		if info, err := s.Stat(ref.Digest); err != nil || info.Present != ref.Size {
			return fmt.Errorf("%+v, %w", info, err)
		}
		return nil
	})
	if info, err := s.Stat(ref.Digest); err != nil || info.Complete {
		t.Errorf("after it arrived: %+v, %v; want no verdict yet", info, err)
	}
	if err := b.(Verifier).Verify(t.Context()); err != nil {
		t.Error(err)
	}
	if info, err := s.Stat(ref.Digest); err != nil || !info.Complete {
		t.Errorf("after it was verified: %+v, %v; want it complete", info, err)
	}
}
