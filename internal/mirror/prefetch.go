package mirror

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/mirror/ranges"
	"skimmer/internal/origin"
)

// headerPrefetch chooses for one request.
const headerPrefetch = "X-Dragonfly-Prefetch"

const (
	// maxQueue is how many blobs can wait to be prefetched. Those that find no
	// room are asked for again with their next range.
	maxQueue = 1 << 10
	// maxBegun is how many blobs are remembered as prefetched.
	maxBegun = 8 << 10
	// prefetchRun is how many bytes are read at once where there is a rate.
	prefetchRun = 1 << 20
)

// prefetch is a blob of which the rest is to be brought, on behalf of a client
// that may read it.
type prefetch struct {
	ref           blob.Ref
	authorization string
}

// String keeps the authorization out of logs.
func (p prefetch) String() string { return p.ref.String() }

// prefetch has the rest of a blob brought of which a part was sent.
func (r *request) prefetch(ref blob.Ref, sent ranges.Sent) {
	on := r.m.cfg.Prefetch
	if v := r.req.Header.Get(headerPrefetch); v != "" {
		on = strings.EqualFold(v, "true")
	}
	if !on || sent.Status != http.StatusPartialContent || sent.Bytes == 0 {
		return
	}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	if r.m.closed || !r.m.begun.add(ref.Digest.String(), struct{}{}) {
		return
	}
	select {
	case r.m.queue <- prefetch{ref, r.authorization}:
	default:
		r.m.begun.remove(ref.Digest.String())
	}
}

// prefetches brings blobs, one after the other, until the Mirror is closed.
func (m *Mirror) prefetches() {
	for {
		select {
		case p := <-m.queue:
			m.bring(p)
		case <-m.ctx.Done():
			return
		}
	}
}

func (m *Mirror) bring(p prefetch) {
	ctx := origin.WithAuthorization(blob.WithPriority(m.ctx, blob.Background), p.authorization)
	err := m.bringAll(ctx, p.ref)
	switch {
	case err == nil:
		m.stats.Prefetched.Add(1)
	case m.ctx.Err() == nil:
		// The next range that is asked for begins it anew.
		m.begun.remove(p.ref.Digest.String())
		m.log.Info("a blob is not prefetched to its end", "blob", p.ref.String(), "error", err)
	}
}

// bringAll brings one blob, no quicker than it is to be.
func (m *Mirror) bringAll(ctx context.Context, ref blob.Ref) error {
	if m.cfg.Fetch != nil && m.cfg.PrefetchRate <= 0 {
		return m.cfg.Fetch(ctx, ref)
	}
	b, err := m.cfg.Source.Open(ctx, ref)
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }() // nothing was written through it
	for off := int64(0); off < b.Size(); off += prefetchRun {
		var traffic blob.Traffic
		begun := time.Now()
		r := blob.Range{Off: off, Len: min(prefetchRun, b.Size()-off)}
		if err := drain(blob.WithTraffic(ctx, &traffic), b, r); err != nil {
			return err
		}
		if m.cfg.PrefetchRate > 0 {
			came := max(0, r.Len-traffic.Local.Load())
			due := begun.Add(time.Duration(float64(came) / float64(m.cfg.PrefetchRate) * float64(time.Second)))
			if err := wait(ctx, time.Until(due)); err != nil {
				return err
			}
		}
	}
	return nil
}

// drain reads a range for its side effect.
func drain(ctx context.Context, b blob.Blob, r blob.Range) error {
	rc, err := b.ReadRange(ctx, r)
	if err != nil {
		return err
	}
	defer func() { _ = rc.Close() }() // how it ended is known by then
	_, err = io.Copy(io.Discard, rc)
	return err
}

// wait waits, unless ctx ends before.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
