package exchange

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"skimmer/internal/blob"
)

// Tries counts the attempts of one operation; Client.Tries makes one. It is
// used by one goroutine at a time.
type Tries struct {
	c      *Client
	failed int   // attempts that failed since the last progress
	bytes  int64 // since the last failure
}

// MinProgress is how many bytes forgive the failures before them: enough that
// a server which breaks off every answer cannot keep a read busy for ever.
const MinProgress = 256 << 10

// Tries returns the count for a new operation.
func (c *Client) Tries() *Tries { return &Tries{c: c} }

// Progress notes that n more bytes arrived.
func (t *Tries) Progress(n int64) {
	if t.bytes += n; t.bytes >= MinProgress {
		t.failed = 0
	}
}

// Again waits until the next attempt may be made after one failed with err,
// and returns nil; or it returns the error the operation fails with, because
// another attempt is pointless, the tries are used up, or ctx is over.
func (t *Tries) Again(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return Ended(ctx)
	}
	var f *Failure
	if !errors.As(err, &f) || !f.Again {
		return err
	}
	c := &t.c.cfg
	t.bytes = 0
	t.failed++
	// What is returned holds no failure: nobody above is to try again.
	if t.failed > c.Retries {
		return blob.Errorf(blob.KindOf(f.Err), "%w (after %d attempts)", f.Err, t.failed)
	}
	if f.After > c.MaxRetryAfter {
		return blob.Errorf(blob.KindOf(f.Err), "%w (the server asks to wait %v, at most %v is waited)", f.Err, f.After.Round(time.Second), c.MaxRetryAfter)
	}
	wait := max(f.After, backoff(t.failed, c.Backoff, c.MaxBackoff))
	t.c.stats.Retries.Add(1)
	c.Logger.Debug("retrying a request", "error", err, "wait", wait, "attempt", t.failed+1)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return Ended(ctx)
	}
}

// Retry calls op until it succeeds or its error is final.
func (c *Client) Retry(ctx context.Context, op func() error) error {
	t := c.Tries()
	for {
		err := op()
		if err == nil {
			return nil
		}
		if err = t.Again(ctx, err); err != nil {
			return err
		}
	}
}

// backoff returns how long to wait after the n-th failure: it doubles from
// base up to limit, and half of it is random, so that nodes which failed
// together do not come back together.
func backoff(n int, base, limit time.Duration) time.Duration {
	d := limit
	if shift := n - 1; shift < 30 && base < limit>>shift {
		d = base << shift
	}
	return d/2 + rand.N(d/2+1)
}

// MaxWait is the longest Retry-After that is told apart; it keeps durations
// from overflowing.
const MaxWait = 365 * 24 * time.Hour

// parseRetryAfter reads a Retry-After header (RFC 9110, section 10.2.3): a
// number of seconds or an HTTP date. Anything else is no wait.
func parseRetryAfter(s string, now time.Time) time.Duration {
	s = strings.TrimSpace(s)
	if n, err := strconv.ParseUint(s, 10, 64); err == nil {
		return time.Duration(min(n, uint64(MaxWait/time.Second))) * time.Second
	} else if errors.Is(err, strconv.ErrRange) {
		return MaxWait
	}
	t, err := http.ParseTime(s)
	if err != nil {
		return 0
	}
	return min(max(t.Sub(now), 0), MaxWait)
}
