package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/origin/exchange"
)

// spoolKey tells spools apart.
type spoolKey struct {
	digest digest.Digest
	url    string
}

// spool is a file that is fetched whole, from its start, and read in parts as
// it arrives. Open blobs and readers hold it; the last one to release it ends
// the fetch and frees the disk.
type spool struct {
	// Constant.
	b      *openBlob // of whoever needed it first: asks and checks
	key    spoolKey
	f      *os.File // has no name
	cancel context.CancelFunc
	fill   sync.WaitGroup

	refs int // guarded by Source.mu

	mu   sync.Mutex    // guards the rest
	n    int64         // bytes that arrived
	over bool          // nothing more comes
	err  error         // why it ended early; set when over
	wake chan struct{} // closed at the next progress; nil when nobody waits
}

// useSpool returns the blob's spool with a reference for the caller, nil if
// there is none.
func (b *openBlob) useSpool() *spool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.spooled != nil && b.name.unique == "" && b.spooled.failed() {
		b.spooled.release() // the next one may be luckier
		b.spooled = nil
	}
	if b.spooled != nil {
		b.spooled.hold()
	}
	return b.spooled
}

// spool returns the blob's spool, with a reference for the caller, starting it
// where there is none. The fetch carries what ctx does, but outlives it.
func (b *openBlob) spool(ctx context.Context) (*spool, error) {
	sp, err := b.s.spool(ctx, b)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	joined := b.edition.joins(sp.b.edition)
	b.edition = sp.b.edition
	if joined && b.spooled == nil && !b.closed {
		sp.hold()
		b.spooled = sp
	}
	b.mu.Unlock()
	if !joined {
		sp.release()
		return nil, b.changed()
	}
	return sp, nil
}

// spool finds or starts the spool for b.
func (s *Source) spool(ctx context.Context, b *openBlob) (*spool, error) {
	key := spoolKey{b.ref.Digest, b.ref.URL}
	unique := b.name.unique != ""
	b.mu.Lock()
	seen := b.edition
	b.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if sp := s.spools[key]; sp != nil && (unique || !sp.failed()) {
		sp.refs++
		return sp, nil
	}
	if unique {
		// Whatever comes now may be something else than what came then.
		if s.spent[b.ref.Digest] {
			return nil, blob.Errorf(blob.NotFound, "GET %s: it was fetched before, and the server names no version of it", b.name.url.Host)
		}
		if len(s.spent) >= maxSpent {
			clear(s.spent)
		}
		s.spent[b.ref.Digest] = true
	}
	f, err := os.CreateTemp(s.temp, "skimmer-get-")
	if err == nil {
		err = os.Remove(f.Name()) // the kernel frees it when it is closed
	}
	if err != nil {
		return nil, fmt.Errorf("make a temporary file: %w", err)
	}
	sp := &spool{b: &openBlob{s: s, ref: b.ref, name: b.name, header: b.header, edition: seen}, key: key, f: f, refs: 1}
	ctx, sp.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.spools[key] = sp
	sp.fill.Go(func() { sp.finish(sp.fetch(ctx)) })
	return sp, nil
}

func (sp *spool) failed() bool {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	return sp.err != nil
}

// hold adds a reference to those there are.
func (sp *spool) hold() {
	sp.b.s.mu.Lock()
	defer sp.b.s.mu.Unlock()
	sp.refs++
}

// release gives a reference back, and waits for the fetch if it was the last.
func (sp *spool) release() {
	s := sp.b.s
	s.mu.Lock()
	sp.refs--
	last := sp.refs == 0
	if last && s.spools[sp.key] == sp {
		delete(s.spools, sp.key)
	}
	s.mu.Unlock()
	if last {
		sp.cancel()
		sp.fill.Wait()
		_ = sp.f.Close() // what is in it is not needed any more
	}
}

// fetch gets the whole file. An answer that breaks off is continued where the
// server names a version, so that it is the same file.
func (sp *spool) fetch(ctx context.Context) error {
	tries := sp.b.s.x.Tries()
	for {
		done, err := sp.receive(ctx, tries)
		if done {
			return nil
		}
		var f *exchange.Failure
		if sp.arrived() > 0 && sp.b.name.unique != "" && errors.As(err, &f) && f.Again {
			return blob.Errorf(blob.KindOf(err), "%w; the server names no version of the file, so the rest cannot be asked for", f.Err)
		}
		if err := tries.Again(ctx, err); err != nil {
			return err
		}
	}
}

// receive makes one attempt to get what is missing.
func (sp *spool) receive(ctx context.Context, tries *exchange.Tries) (done bool, err error) {
	off := sp.arrived()
	ranges := ""
	if off > 0 {
		ranges = fmt.Sprintf("bytes=%d-", off)
	}
	resp, err := sp.b.ask(ctx, ranges)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	size := sp.b.ref.Size
	if size == blob.SizeUnknown && resp.StatusCode == http.StatusOK {
		size = max(resp.ContentLength, blob.SizeUnknown)
	}
	if resp.StatusCode == http.StatusPartialContent {
		got, err := exchange.ParseContentRange(resp.Header.Get("Content-Range"))
		if err != nil || got.Range.Off != off {
			return false, blob.Errorf(blob.Corrupt, "GET %s: answered range from %d on with %v", resp.Request.URL.Host, off, got.Range)
		}
	} else if n, err := io.CopyN(io.Discard, resp.Body, off); err != nil {
		return false, exchange.Early(err, resp.Request.URL.Host, off-n)
	}
	if err := sp.copy(resp.Body, off, size, tries); err != nil {
		return false, err
	}
	if n := sp.arrived(); size != blob.SizeUnknown && n < size {
		return false, exchange.Early(io.EOF, resp.Request.URL.Host, size-n)
	}
	return true, nil
}

// copy puts what comes, from off on, into the file, until it ends.
func (sp *spool) copy(body io.Reader, off, size int64, tries *exchange.Tries) error {
	buf := make([]byte, 128<<10)
	for {
		n, err := body.Read(buf)
		if size != blob.SizeUnknown && off+int64(n) > size {
			return blob.Errorf(blob.Corrupt, "GET %s: the file is longer than %d bytes", sp.b.name.url.Host, size)
		}
		if n > 0 {
			if _, err := sp.f.WriteAt(buf[:n], off); err != nil {
				return fmt.Errorf("write a temporary file: %w", err)
			}
			off += int64(n)
			tries.Progress(int64(n))
			sp.mu.Lock()
			sp.n = off
			sp.signal()
			sp.mu.Unlock()
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (sp *spool) arrived() int64 {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	return sp.n
}

// finish ends the fetch: err, or nil, is what readers get who want more.
func (sp *spool) finish(err error) {
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if err != nil {
		// It was tried again as often as is good, so nothing in it may look as if
		// it could be.
		err = blob.Errorf(blob.KindOf(err), "%v", err)
	}
	sp.over, sp.err = true, err
	sp.signal()
}

// signal wakes who waits. Caller holds sp.mu.
func (sp *spool) signal() {
	if sp.wake != nil {
		close(sp.wake)
		sp.wake = nil
	}
}

// wait returns how many bytes arrived, and whether that is all, once it is
// more than off or will not be.
func (sp *spool) wait(ctx context.Context, off int64) (n int64, over bool, err error) {
	for {
		sp.mu.Lock()
		n, over, err = sp.n, sp.over, sp.err
		if n > off || over {
			sp.mu.Unlock()
			if n > off {
				err = nil
			}
			return n, over, err
		}
		if sp.wake == nil {
			sp.wake = make(chan struct{})
		}
		wake := sp.wake
		sp.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
			return 0, false, exchange.Ended(ctx)
		}
	}
}

// length waits until all has arrived and returns how much that is.
func (sp *spool) length(ctx context.Context) (int64, error) {
	for n := int64(-1); ; {
		m, over, err := sp.wait(ctx, n)
		if err != nil {
			return 0, err
		}
		if over && !sp.failed() {
			return m, nil
		}
		n = m
	}
}

// reader returns a reader of r, which has the caller's reference.
func (sp *spool) reader(ctx context.Context, r blob.Range) io.ReadCloser {
	return &spoolReader{ctx: ctx, sp: sp, off: r.Off, end: r.End()}
}

// spoolReader reads a range of a spool. It is used by one goroutine at a time.
type spoolReader struct {
	ctx      context.Context
	sp       *spool
	off, end int64
	closed   bool
}

func (r *spoolReader) Read(p []byte) (int, error) {
	if r.off == r.end {
		return 0, io.EOF
	}
	if err := r.ctx.Err(); err != nil {
		return 0, exchange.Ended(r.ctx)
	}
	n, _, err := r.sp.wait(r.ctx, r.off)
	if err != nil {
		return 0, err
	}
	if n <= r.off {
		return 0, blob.Errorf(blob.Corrupt, "GET %s: the file has %d bytes, not the expected %d", r.sp.b.name.url.Host, n, r.sp.b.ref.Size)
	}
	m, err := r.sp.f.ReadAt(p[:min(int64(len(p)), r.end-r.off, n-r.off)], r.off)
	r.off += int64(m)
	if m > 0 {
		err = nil
	}
	return m, err
}

func (r *spoolReader) Close() error {
	if !r.closed {
		r.closed = true
		r.sp.release()
	}
	return nil
}
