package testkit

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// Poll asks check every 20 ms until it returns nil, and returns its last error
// when that has not happened within limit or ctx ends.
func Poll(ctx context.Context, limit time.Duration, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %v: %w", limit, err)
		case <-again.C:
		}
	}
}

// Eventually is Poll for a test, which it fails when what does not come true
// within limit.
func Eventually(t testing.TB, limit time.Duration, what string, check func() error) {
	t.Helper()
	if err := Poll(t.Context(), limit, check); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}
