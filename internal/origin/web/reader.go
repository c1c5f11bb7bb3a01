package web

import (
	"context"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"sync"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/origin/exchange"
)

// openBlob is a version of a file at a server.
type openBlob struct {
	// Constant after Open.
	s      *Source
	ref    blob.Ref // Size is known
	name   name
	header http.Header

	mu      sync.Mutex // guards the rest
	closed  bool
	edition *edition
	target  *url.URL // where the server redirected to; nil if it did not
	spooled *spool   // nil as long as ranges come from the server
}

// edition is which version the answers were of so far, for those who put bytes
// of several together.
type edition struct {
	mu      sync.Mutex // guards version
	version *string    // nil before the first answer
}

// is reports whether version is that of the answers before, if there were any.
func (e *edition) is(version string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.version == nil {
		e.version = &version
	}
	return *e.version == version
}

// joins makes e and other one, as far as they do not differ.
func (e *edition) joins(other *edition) bool {
	if e == other {
		return true
	}
	e.mu.Lock()
	version := e.version
	e.mu.Unlock()
	return version == nil || other.is(*version)
}

// Size implements blob.Blob.
func (b *openBlob) Size() int64 { return b.ref.Size }

// Close implements blob.Blob.
func (b *openBlob) Close() error {
	b.mu.Lock()
	sp := b.spooled
	b.closed, b.spooled = true, nil
	b.mu.Unlock()
	if sp != nil {
		sp.release()
	}
	return nil
}

// check holds the version that an answer names against the one the blob is.
func (b *openBlob) check(version string) error {
	if !blob.Verifiable(b.ref.Digest) {
		if b.name.identity(version) == b.ref.Digest {
			return nil
		}
		return b.changed()
	}
	b.mu.Lock()
	e := b.edition
	b.mu.Unlock()
	if !e.is(version) {
		return b.changed()
	}
	return nil
}

func (b *openBlob) changed() error {
	return blob.Errorf(blob.Corrupt, "GET %s: the file has changed at the origin", b.name.url.Host)
}

// ask makes one attempt to get a range, or everything where that is empty, and
// checks that the answer is of the right version.
func (b *openBlob) ask(ctx context.Context, ranges string) (*http.Response, error) {
	resp, err := b.fetch(ctx, ranges)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		exchange.Discard(resp)
		return nil, b.changed() // what is asked for was inside the file
	}
	f, err := read(resp, b.ref.Size)
	if err != nil {
		return nil, err // read has closed it
	}
	if err := b.check(f.version); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// fetch asks where the file was found the last time, or else at its URL.
func (b *openBlob) fetch(ctx context.Context, ranges string) (*http.Response, error) {
	b.mu.Lock()
	target := b.target
	b.mu.Unlock()
	if target != nil {
		header := b.header.Clone()
		keepHarmless(header)
		resp, err := b.s.get(ctx, target, header, ranges)
		if err == nil && (resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusPartialContent) {
			return resp, nil
		}
		b.mu.Lock()
		b.target = nil // it may have moved, or its signature ended; the URL knows
		b.mu.Unlock()
		if err != nil {
			return nil, err
		}
		exchange.Discard(resp)
	}
	resp, err := b.s.get(ctx, b.name.url, b.header, ranges)
	if err == nil && resp.Request.URL.Host != b.name.url.Host {
		b.mu.Lock()
		b.target = resp.Request.URL
		b.mu.Unlock()
	}
	return resp, err
}

// ReadRange implements blob.Blob. It returns when the first answer's headers
// are there. The reader of a whole blob whose digest can be compared ends with
// a Corrupt error in place of io.EOF where that fails.
func (b *openBlob) ReadRange(ctx context.Context, rng blob.Range) (io.ReadCloser, error) {
	if err := rng.Check(b.ref.Size); err != nil {
		return nil, err
	}
	if rng.Len == 0 {
		return http.NoBody, nil
	}
	r := &reader{ctx: ctx, b: b, rng: rng, off: rng.Off, tries: b.s.x.Tries()}
	if rng.Len == b.ref.Size && blob.Verifiable(b.ref.Digest) {
		r.verifier = b.ref.Digest.Verifier()
	}
	if err := r.open(); err != nil {
		return nil, r.explain(err)
	}
	return r, nil
}

// reader delivers a range, over as many answers as it takes, or from a spool.
// It is used by one goroutine at a time.
type reader struct {
	ctx      context.Context
	b        *openBlob
	rng      blob.Range
	verifier digest.Verifier // nil unless there is something to compare

	off   int64         // of the next byte to deliver
	body  io.ReadCloser // at off; nil between answers
	left  int64         // bytes body still promises
	tries *exchange.Tries
	err   error // what Read returns from now on
}

func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	n, err := r.read(p)
	if err != nil {
		r.drop()
		if err != io.EOF {
			err = r.explain(err)
		}
		r.err = err
	}
	return n, err
}

func (r *reader) read(p []byte) (int, error) {
	for {
		if r.off == r.rng.End() {
			return 0, r.finish()
		}
		if err := r.open(); err != nil {
			return 0, err
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.rng.End()-r.off, r.left)])
		if n > 0 {
			// An error that came along is met again by the next read.
			r.advance(p[:n])
			return n, nil
		}
		if err == nil {
			continue
		}
		err = exchange.Early(err, r.b.name.url.Host, r.left)
		r.drop()
		if err := r.tries.Again(r.ctx, err); err != nil {
			return 0, err
		}
	}
}

// advance takes note of bytes that are being delivered.
func (r *reader) advance(p []byte) {
	n := int64(len(p))
	r.off += n
	r.left -= n
	r.tries.Progress(n)
	if r.verifier != nil {
		_, _ = r.verifier.Write(p) // a hash does not fail
	}
	if r.left == 0 && r.off < r.rng.End() {
		r.drop() // the server chose to send the range in parts
	}
}

// finish decides how a range ends of which every byte was delivered.
func (r *reader) finish() error {
	if r.body != nil && r.left == 0 {
		// Reading on to the end also frees the connection for the next request.
		if n, _ := r.body.Read(make([]byte, 1)); n > 0 {
			return blob.Errorf(blob.Corrupt, "GET %s: the answer is longer than it should be", r.b.name.url.Host)
		}
	}
	if r.verifier != nil && !r.verifier.Verified() {
		return blob.Errorf(blob.Corrupt, "GET %s: the file does not have the digest %s", r.b.name.url.Host, r.b.ref.Digest)
	}
	return io.EOF
}

// open makes sure there is a body at off.
func (r *reader) open() error {
	for r.body == nil {
		err := r.ask()
		if err == nil {
			break
		}
		if err = r.tries.Again(r.ctx, err); err != nil {
			return err
		}
	}
	return nil
}

// ask makes one attempt to get a body at off.
func (r *reader) ask() error {
	want := blob.Range{Off: r.off, Len: r.rng.End() - r.off}
	if sp := r.b.useSpool(); sp != nil {
		r.body, r.left = sp.reader(r.ctx, want), want.Len
		return nil
	}
	ranges := ""
	if want.Len < r.b.ref.Size {
		ranges = "bytes=" + want.String()
	}
	resp, err := r.b.ask(r.ctx, ranges)
	if err != nil {
		return err
	}
	got, err := exchange.Sent(resp, want, r.b.ref.Size)
	if err != nil {
		resp.Body.Close()
		return err
	}
	if got.Len == r.b.ref.Size && want.Len < got.Len {
		resp.Body.Close()
		return r.unranged(want)
	}
	r.body, r.left = resp.Body, got.End()-want.Off
	return nil
}

// unranged goes on from a spool, because the server does not do ranges.
func (r *reader) unranged(want blob.Range) error {
	r.b.s.once(r.b.name.url.Host, "a server ignores range requests: each of its files is fetched whole to read a part")
	sp, err := r.b.spool(r.ctx)
	if err != nil {
		return err
	}
	r.body, r.left = sp.reader(r.ctx, want), want.Len
	return nil
}

// drop lets go of the body.
func (r *reader) drop() {
	if r.body != nil {
		_ = r.body.Close() // nothing more is wanted of it
		r.body = nil
	}
}

// Close implements io.Closer. It may come before the end.
func (r *reader) Close() error {
	r.drop()
	r.err = fs.ErrClosed
	return nil
}

func (r *reader) explain(err error) error {
	return explain(err, "read %v, range %v", r.b.ref, r.rng)
}
