package web

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"sync"

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
	what := exchange.Reading{
		Host: b.name.url.Host, Range: rng, Ask: b.part,
		Explain: func(err error) error { return explain(err, "read %v, range %v", b.ref, rng) },
	}
	if rng.Len == b.ref.Size && blob.Verifiable(b.ref.Digest) {
		what.Verifier = b.ref.Digest.Verifier()
	}
	return b.s.x.Read(ctx, what)
}

// part makes one attempt to get a body that begins with want.
func (b *openBlob) part(ctx context.Context, want blob.Range) (body io.ReadCloser, left int64, err error) {
	if sp := b.useSpool(); sp != nil {
		return sp.reader(ctx, want), want.Len, nil
	}
	ranges := ""
	if want.Len < b.ref.Size {
		ranges = "bytes=" + want.String()
	}
	resp, err := b.ask(ctx, ranges)
	if err != nil {
		return nil, 0, err
	}
	got, err := exchange.Sent(resp, want, b.ref.Size)
	if err != nil {
		resp.Body.Close()
		return nil, 0, err
	}
	if got.Len == b.ref.Size && want.Len < got.Len {
		resp.Body.Close()
		return b.unranged(ctx, want)
	}
	return resp.Body, got.End() - want.Off, nil
}

// unranged goes on from a spool, because the server does not do ranges.
func (b *openBlob) unranged(ctx context.Context, want blob.Range) (io.ReadCloser, int64, error) {
	b.s.once(b.name.url.Host, "a server ignores range requests: each of its files is fetched whole to read a part")
	sp, err := b.spool(ctx)
	if err != nil {
		return nil, 0, err
	}
	return sp.reader(ctx, want), want.Len, nil
}
