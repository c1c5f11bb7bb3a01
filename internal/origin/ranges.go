package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"skimmer/internal/blob"
	"skimmer/internal/origin/exchange"
)

const (
	// maxRanges and maxRangeHeader bound the ranges of one request by number
	// and by the length of the header; servers refuse what they find long.
	maxRanges      = 60
	maxRangeHeader = 4 << 10
	// maxSkip is how many bytes that nobody wants are read past; for more a new
	// request is quicker.
	maxSkip = 1 << 20
	// singly is how many ranges are asked for at the same time where a server
	// does not take several in one request.
	singly = 6
)

// several is one call of ReadRanges.
type several struct {
	ctx   context.Context
	b     *openBlob
	wants []want

	mu       sync.Mutex // held for land, and guards what follows
	land     blob.Land
	landed   int64 // bytes
	landFail error // what land returned
}

// want is what is still to come of one range. Its next is changed by whoever
// reads the range; there is one at a time.
type want struct {
	next, end int64
}

func (w want) left() blob.Range { return blob.Range{Off: w.next, Len: w.end - w.next} }

// ReadRanges implements blob.MultiReader with one request for up to 60
// ranges. A registry that was seen not to take several ranges is asked for
// each, a few at a time.
func (b *openBlob) ReadRanges(ctx context.Context, ranges []blob.Range, land blob.Land) error {
	if err := blob.CheckRanges(ranges, b.ref.Size); err != nil {
		return err
	}
	s := &several{ctx: ctx, b: b, land: land}
	for _, r := range ranges {
		s.wants = append(s.wants, want{r.Off, r.End()})
	}
	err := s.read()
	if err == nil || s.landFail != nil {
		return s.landFail
	}
	return b.c.explain(err, "read blob %v, %d ranges", b.ref, len(ranges))
}

func (s *several) read() error {
	t := s.b.c.o.x.Tries()
	for {
		batch, header := s.batch()
		if len(batch) == 0 {
			return nil
		}
		if len(batch) == 1 || s.b.c.o.refusesSeveral(s.b.c.repo.host) {
			return s.readSingly()
		}
		before := s.landed
		err := s.ask(batch, header)
		t.Progress(s.landed - before)
		switch {
		case s.landFail != nil:
			return s.landFail
		case err == nil && s.landed == before && !s.b.c.o.refusesSeveral(s.b.c.repo.host):
			return blob.Errorf(blob.Corrupt, "GET %s: the answer brings nothing of what was asked for", s.b.c.repo.host)
		case err == nil:
			continue
		}
		if err := t.Again(s.ctx, err); err != nil {
			return err
		}
	}
}

// batch returns the next wants to ask for, by index, and the header to do it.
func (s *several) batch() (batch []int, header string) {
	for i, w := range s.wants {
		if w.next == w.end {
			continue
		}
		part := w.left().String()
		if len(batch) == maxRanges || len(header)+len(part)+1 > maxRangeHeader {
			break
		}
		if len(batch) == 0 {
			header = "bytes=" + part
		} else {
			header += "," + part
		}
		batch = append(batch, i)
	}
	return batch, header
}

// readSingly asks for each range that is left.
func (s *several) readSingly() error {
	g, ctx := errgroup.WithContext(s.ctx)
	g.SetLimit(singly)
	for i := range s.wants {
		w := &s.wants[i]
		if w.next == w.end {
			continue
		}
		g.Go(func() error {
			if ctx.Err() != nil {
				return exchange.Ended(ctx)
			}
			return blob.LandRange(ctx, s.b, w.left(), make([]byte, 32<<10), func(off int64, p []byte) error {
				return s.deliver(i, p)
			})
		})
	}
	err := g.Wait()
	if err != nil && s.ctx.Err() != nil {
		return exchange.Ended(s.ctx)
	}
	return err
}

// deliver lands the next bytes of range i.
func (s *several) deliver(i int, p []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.landFail != nil {
		return s.landFail
	}
	w := &s.wants[i]
	if err := s.land(i, w.next, p); err != nil {
		s.landFail = err
		return err
	}
	w.next += int64(len(p))
	s.landed += int64(len(p))
	return nil
}

// ask makes one request for the ranges of batch and lands what comes. That
// not all came is no error, because it may be asked for again.
func (s *several) ask(batch []int, header string) error {
	c, size := s.b.c, s.b.ref.Size
	resp, err := c.fetch(s.ctx, s.b.ref.Digest, http.Header{"Range": {header}})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	corrupt := func(err error) error { return blob.Errorf(blob.Corrupt, "GET %s: %w", resp.Request.URL.Host, err) }
	switch resp.StatusCode {
	case http.StatusBadRequest, http.StatusRequestedRangeNotSatisfiable:
		exchange.Discard(resp)
		c.o.severalRefused(c.repo.host)
		return nil
	case http.StatusOK:
		c.o.severalRefused(c.repo.host)
		if resp.ContentLength >= 0 && resp.ContentLength != size {
			return corrupt(fmt.Errorf("the blob has %d bytes, not the expected %d", resp.ContentLength, size))
		}
		return s.part(blob.Range{Len: size}, resp.Body, resp.Request.URL.Host)
	case http.StatusPartialContent:
	default:
		return exchange.StatusFailure(resp, time.Now())
	}
	if isMultipart(resp.Header.Get("Content-Type")) {
		err := s.parts(resp)
		if errors.Is(err, errFormat) {
			err = corrupt(err)
		}
		return err
	}
	got, err := exchange.ParseContentRange(resp.Header.Get("Content-Range"))
	if err == nil {
		err = got.Check(size)
	}
	if err != nil {
		return corrupt(err)
	}
	if s.touched(batch, got.Range) < 2 {
		c.o.severalRefused(c.repo.host) // it answers the first alone
	}
	return s.part(got.Range, resp.Body, resp.Request.URL.Host)
}

// touched counts the ranges of batch of which r has bytes.
func (s *several) touched(batch []int, r blob.Range) (n int) {
	for _, i := range batch {
		if w := s.wants[i]; w.next < r.End() && w.end > r.Off {
			n++
		}
	}
	return n
}

// parts lands the parts of an answer.
func (s *several) parts(resp *http.Response) error {
	host, size := resp.Request.URL.Host, s.b.ref.Size
	p, err := newParts(resp.Header.Get("Content-Type"), resp.Body)
	if err != nil {
		return err
	}
	for {
		got, err := p.next()
		if err == io.EOF {
			// The end of the body frees the connection for the next request.
			_, _ = io.CopyN(io.Discard, p.r, exchange.MaxErrorBody)
			return nil
		}
		if err != nil {
			return exchange.Early(err, host, s.missing())
		}
		if err := got.Check(size); err != nil {
			return malformed("%w", err)
		}
		if s.touched(s.all(), got.Range) == 0 {
			return malformed("a part brings range %v, which was not asked for", got.Range)
		}
		body := io.LimitReader(p.r, got.Range.Len)
		if err := s.part(got.Range, body, host); err != nil {
			return err
		}
		if n, _ := io.CopyN(io.Discard, body, maxSkip); n == maxSkip {
			return nil // and ask for the rest again
		}
	}
}

// all returns the index of every range.
func (s *several) all() []int {
	all := make([]int, len(s.wants))
	for i := range all {
		all[i] = i
	}
	return all
}

// missing returns how many bytes are still to come.
func (s *several) missing() (n int64) {
	for _, w := range s.wants {
		n += w.left().Len
	}
	return n
}

// part lands what is wanted of r, whose bytes body has. Bytes behind the last
// wanted are left in body.
func (s *several) part(r blob.Range, body io.Reader, host string) error {
	buf := make([]byte, 32<<10)
	for i := range s.wants {
		w := &s.wants[i]
		if w.next == w.end || w.next < r.Off || w.next >= r.End() {
			continue
		}
		if skip := w.next - r.Off; skip > maxSkip {
			return nil // and ask for it again
		} else if n, err := io.CopyN(io.Discard, body, skip); err != nil {
			return exchange.Early(err, host, r.Len-n)
		}
		r = blob.Range{Off: w.next, Len: r.End() - w.next}
		for w.next < min(w.end, r.End()) {
			n, err := body.Read(buf[:min(int64(len(buf)), w.end-w.next, r.End()-w.next)])
			if n > 0 {
				if err := s.deliver(i, buf[:n]); err != nil {
					return err
				}
			}
			if err != nil && w.next < min(w.end, r.End()) {
				return exchange.Early(err, host, r.End()-w.next)
			}
		}
		r = blob.Range{Off: w.next, Len: r.End() - w.next}
	}
	return nil
}

// refusesSeveral reports whether a registry was seen not to answer several
// ranges with several.
func (o *Origin) refusesSeveral(host string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.oneRange[host] || o.noRanges[host]
}

// severalRefused notes that it did not.
func (o *Origin) severalRefused(host string) {
	o.mu.Lock()
	first := !o.oneRange[host]
	o.oneRange[host] = true
	o.mu.Unlock()
	if first {
		o.cfg.Logger.Debug("registry does not answer several ranges at once: each is asked for", "registry", host)
	}
}

var _ blob.MultiReader = (*openBlob)(nil)
