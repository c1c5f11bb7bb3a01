package transfer

import (
	"context"
	"sync"
	"time"

	"skimmer/internal/blob"
)

// Limiter bounds how many bytes pass in a second, together, through all who
// use it. It is safe for concurrent use; a nil Limiter has no limit.
type Limiter struct {
	now func() time.Time // constant; tests have their own

	// mu guards what follows.
	mu    sync.Mutex
	rate  int64   // bytes per second; 0 for no limit
	level float64 // bytes that may pass at once; negative when passed ahead of time
	last  time.Time
}

// NewLimiter returns a Limiter of rate bytes per second; 0 or less means no
// limit.
func NewLimiter(rate int64) *Limiter {
	l := &Limiter{now: time.Now}
	l.SetRate(rate)
	return l
}

// SetRate changes the rate, in bytes per second; 0 or less means no limit.
// Those who wait already go on waiting as the old one demanded.
func (l *Limiter) SetRate(rate int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refill()
	fresh := l.rate == 0
	l.rate = max(rate, 0)
	if fresh {
		l.level = l.burst()
	}
	l.level = min(l.level, l.burst())
}

// burst is how many bytes may pass at once after a pause: what passes in a
// tenth of a second.
func (l *Limiter) burst() float64 { return float64(l.rate) / 10 }

// refill adds what became free since the last time. Caller holds mu.
func (l *Limiter) refill() {
	now := l.now()
	l.level = min(l.burst(), l.level+float64(l.rate)*max(0, now.Sub(l.last).Seconds()))
	l.last = now
}

// The limits of quantum.
const (
	minQuantum = 8 << 10
	maxQuantum = 512 << 10
)

// quantum returns how many bytes are best passed at a time: few enough that
// they never make a pause anybody notices.
func (l *Limiter) quantum() int64 {
	if l == nil {
		return maxQuantum
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		return maxQuantum
	}
	return min(max(l.rate/8, minQuantum), maxQuantum)
}

// take counts n bytes and returns how long to wait before they pass.
func (l *Limiter) take(n int64) time.Duration {
	if l == nil {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		return 0
	}
	l.refill()
	l.level -= float64(n)
	return l.behind()
}

// giveBack takes n bytes off that did not pass.
func (l *Limiter) giveBack(n int64) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.level = min(l.burst(), l.level+float64(n))
}

// backlog returns how long bytes would wait that came now.
func (l *Limiter) backlog() time.Duration { return l.take(0) }

// behind returns how long it takes until level is positive. Caller holds mu.
func (l *Limiter) behind() time.Duration {
	if l.level >= 0 {
		return 0
	}
	return time.Duration(-l.level / float64(l.rate) * float64(time.Second))
}

// wait returns when n bytes may pass, or when ctx ends, with its error.
func (l *Limiter) wait(ctx context.Context, n int64) error {
	d := l.take(n)
	if d == 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		l.giveBack(n)
		return blob.Errorf(blob.KindOf(ctx.Err()), "wait for %d bytes of the rate limit: %w", n, context.Cause(ctx))
	}
}
