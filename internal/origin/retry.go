package origin

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"skimmer/internal/blob"
)

// tries counts the attempts of one operation. It is used by one goroutine.
type tries struct {
	o      *Origin
	failed int // attempts that failed since the last progress
}

// again waits until the next attempt may be made after one failed with err,
// and returns nil; or it returns the error the operation fails with, because
// another attempt is pointless, the tries are used up, or ctx is over.
func (t *tries) again(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ended(ctx)
	}
	var f *failure
	if !errors.As(err, &f) || !f.again {
		return err
	}
	c := &t.o.cfg
	t.failed++
	// What is returned holds no failure: nobody above is to try again.
	if t.failed > c.Retries {
		return blob.Errorf(blob.KindOf(f.err), "%w (after %d attempts)", f.err, t.failed)
	}
	if f.after > c.MaxRetryAfter {
		return blob.Errorf(blob.KindOf(f.err), "%w (the server asks to wait %v, at most %v is waited)", f.err, f.after.Round(time.Second), c.MaxRetryAfter)
	}
	wait := max(f.after, backoff(t.failed, c.Backoff, c.MaxBackoff))
	t.o.stats.Retries.Add(1)
	t.o.cfg.Logger.Debug("retrying a request to a registry", "error", err, "wait", wait, "attempt", t.failed+1)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ended(ctx)
	}
}

// retry calls op until it succeeds or its error is final.
func (o *Origin) retry(ctx context.Context, op func() error) error {
	t := tries{o: o}
	for {
		err := op()
		if err == nil {
			return nil
		}
		if err = t.again(ctx, err); err != nil {
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

// maxWait is the longest Retry-After that is told apart; it keeps durations
// from overflowing.
const maxWait = 365 * 24 * time.Hour

// parseRetryAfter reads a Retry-After header (RFC 9110, section 10.2.3): a
// number of seconds or an HTTP date. Anything else is no wait.
func parseRetryAfter(s string, now time.Time) time.Duration {
	s = strings.TrimSpace(s)
	if n, err := strconv.ParseUint(s, 10, 64); err == nil {
		return time.Duration(min(n, uint64(maxWait/time.Second))) * time.Second
	} else if errors.Is(err, strconv.ErrRange) {
		return maxWait
	}
	t, err := http.ParseTime(s)
	if err != nil {
		return 0
	}
	return min(max(t.Sub(now), 0), maxWait)
}

// contentRange is a parsed Content-Range header.
type contentRange struct {
	// r is the part that is sent; for an unsatisfied range ("bytes */N") it
	// has Len 0.
	r blob.Range
	// total is the length of the whole, or blob.SizeUnknown.
	total int64
}

// parseContentRange reads a Content-Range header (RFC 9110, section 14.4) of
// unit bytes and checks that its figures make sense.
func parseContentRange(s string) (contentRange, error) {
	bad := func() (contentRange, error) {
		return contentRange{}, fmt.Errorf("%.100q is not a content range in bytes", s)
	}
	unit, rest, ok := strings.Cut(strings.TrimSpace(s), " ")
	part, whole, ok2 := strings.Cut(strings.TrimSpace(rest), "/")
	if !ok || !ok2 || !strings.EqualFold(unit, "bytes") {
		return bad()
	}
	c := contentRange{total: blob.SizeUnknown}
	if whole != "*" {
		if c.total, ok = digits(whole); !ok {
			return bad()
		}
	}
	if part == "*" {
		if c.total == blob.SizeUnknown {
			return bad()
		}
		return c, nil
	}
	first, last, ok := strings.Cut(part, "-")
	if !ok {
		return bad()
	}
	from, ok := digits(first)
	to, ok2 := digits(last)
	if !ok || !ok2 || from > to || to == math.MaxInt64 || c.total != blob.SizeUnknown && to >= c.total {
		return bad()
	}
	c.r = blob.Range{Off: from, Len: to - from + 1}
	return c, nil
}

// digits reads a number that consists of digits alone.
func digits(s string) (int64, bool) {
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && s[0] >= '0' && s[0] <= '9'
}
