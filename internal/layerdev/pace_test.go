package layerdev

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"skimmer/internal/blob"
)

// TestPace has completion ask before it fetches, and end while it waits.
func TestPace(t *testing.T) {
	tl := build(t, mixed)
	src := &fakeBlob{p: tl.blob}
	var asked atomic.Int64
	l := newLayer(t, tl, LayerConfig{Blob: src.open, Pace: func(_ context.Context, n int64) error {
		asked.Add(n)
		return nil
	}})
	checkRead(t, l, tl, 0, 10)
	if n := asked.Load(); n != 0 {
		t.Errorf("a reader was held up for %d bytes", n)
	}
	if err := l.Complete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := asked.Load(); n == 0 || n > 2*int64(len(tl.blob)) {
		t.Errorf("completion of %d bytes asked for %d", len(tl.blob), n)
	}

	waits := make(chan struct{}, 1)
	block := func(ctx context.Context, _ int64) error {
		waits <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	held := newLayer(t, tl, LayerConfig{Blob: src.open, Pace: block})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- held.Complete(ctx) }()
	<-waits
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled completion: %v", err)
	}
	go func() { done <- held.Complete(t.Context()) }()
	<-waits
	if err := held.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, blob.Canceled) {
		t.Errorf("completion of a layer that was closed: %v", err)
	}
}
