package store

import (
	"context"
	"errors"
	"testing"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

func keep(ctx context.Context, t *testing.T, b blob.Blob, rs ...blob.Range) error {
	t.Helper()
	k, ok := b.(Keeper)
	if !ok {
		t.Fatal("a blob of a store cannot be kept")
	}
	return k.Keep(ctx, rs)
}

// What Keep has returned for is on disk, and was fetched once.
func TestKeep(t *testing.T) {
	content := blobtest.Bytes(7, 9<<20+17)
	src := newMany(content)
	s := openStore(t, Config{})
	b := openBlob(t, s.Through(src), src.ref())
	parts := []blob.Range{{Off: 100, Len: 5}, {Off: 1 << 20, Len: 3 << 20}, {Off: 9 << 20, Len: 17}}
	mustRead(t, b, blob.Range{Off: 2 << 20, Len: 10}, content)
	for range 2 {
		if err := keep(t.Context(), t, b, parts...); err != nil {
			t.Fatal(err)
		}
		for _, r := range parts {
			if missing, err := s.Missing(src.ref(), r); err != nil || len(missing) > 0 {
				t.Errorf("%v: %v are missing, %v", r, missing, err)
			}
		}
	}
	if err := keep(t.Context(), t, b, whole(content)); err != nil {
		t.Fatal(err)
	}
	if times, n := src.most(); times != 1 || n != int64(len(content)) {
		t.Errorf("%d bytes came, one of them %d times", n, times)
	}
	mustRead(t, openBlob(t, s.Local(), src.ref()), whole(content), content)
}

func TestKeepFails(t *testing.T) {
	content := blobtest.Bytes(8, 4<<20)
	src := newMany(content)
	failure := blob.Errorf(blob.Unavailable, "no")
	src.before = func(context.Context, blob.Range) error { return failure }
	s := openStore(t, Config{})
	b := openBlob(t, s.Through(src), src.ref())
	if err := keep(t.Context(), t, b, whole(content)); !errors.Is(err, blob.Unavailable) {
		t.Errorf("a source that fails: %v", err)
	}
	if err := keep(t.Context(), t, b, blob.Range{Off: 1, Len: 4 << 20}); blob.KindOf(err) != blob.Invalid {
		t.Errorf("outside of the blob: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	src.before = func(ctx context.Context, _ blob.Range) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}
	if err := keep(ctx, t, b, whole(content)); blob.KindOf(err) != blob.Canceled {
		t.Errorf("canceled: %v", err)
	}
}
