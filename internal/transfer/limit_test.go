package transfer

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"skimmer/internal/blob"
)

func TestLimiterKeepsTheRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(1000)
		start := time.Now()
		var wg sync.WaitGroup
		for range 10 { // together they want 10,000 bytes
			wg.Go(func() {
				for range 10 {
					if err := l.wait(t.Context(), 100); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		// The first 100 are the burst.
		if took := time.Since(start).Round(time.Millisecond); took != 9900*time.Millisecond {
			t.Errorf("10,000 bytes took %v, want 9.9s", took)
		}
	})
}

func TestLimiterBacklog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(1000)
		if d := l.take(2100); d != 2*time.Second {
			t.Errorf("2100 bytes wait %v, want 2s", d)
		}
		if d := l.backlog(); d != 2*time.Second {
			t.Errorf("backlog %v, want 2s", d)
		}
		time.Sleep(1500 * time.Millisecond)
		if d := l.backlog(); d != 500*time.Millisecond {
			t.Errorf("backlog after 1.5s: %v, want 0.5s", d)
		}
		l.SetRate(500)
		if d := l.backlog(); d != time.Second {
			t.Errorf("backlog at half the rate: %v, want 1s", d)
		}
		l.SetRate(0)
		if d := l.take(1 << 40); d != 0 {
			t.Errorf("without a rate bytes wait %v", d)
		}
	})
}

func TestLimiterGivesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(1000)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := l.wait(ctx, 5100); !errors.Is(err, blob.Timeout) {
			t.Errorf("got %v, want timed out", err)
		}
		if d := l.backlog(); d != 0 {
			t.Errorf("backlog of bytes that did not pass: %v", d)
		}
	})
}

func TestNoLimiter(t *testing.T) {
	var l *Limiter
	if err := l.wait(t.Context(), 1<<40); err != nil || l.backlog() != 0 || l.quantum() != maxQuantum {
		t.Errorf("no limiter limits: %v", err)
	}
}

func TestQuantum(t *testing.T) {
	for rate, want := range map[int64]int64{0: maxQuantum, 1: minQuantum, 1 << 20: 128 << 10, 1 << 40: maxQuantum} {
		if got := NewLimiter(rate).quantum(); got != want {
			t.Errorf("quantum at %d bytes/s = %d, want %d", rate, got, want)
		}
	}
}

func TestQuota(t *testing.T) {
	q := &quota{limit: 2}
	a, b := remoteOf("10.0.0.1:1"), remoteOf("[::ffff:10.0.0.2]:1")
	if b != netip.MustParseAddr("10.0.0.2") {
		t.Errorf("remote = %v", b)
	}
	var got []bool
	for _, remote := range []netip.Addr{a, a, a, b} {
		got = append(got, q.take(remote))
	}
	if !slices.Equal(got, []bool{true, true, false, true}) {
		t.Errorf("within their share of 2: %v", got)
	}
	q.give(a)
	q.give(a)
	if !q.take(a) || q.total() != 3 {
		t.Errorf("%d taken, want 3", q.total())
	}
	q.give(a)
	q.give(a)
	q.give(b)
	if len(q.used) != 0 || q.total() != 0 {
		t.Errorf("remembers %v", q.used)
	}
}
