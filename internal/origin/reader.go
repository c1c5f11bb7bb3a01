package origin

import (
	"context"
	"io"
	"io/fs"
	"net/http"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/origin/exchange"
)

// openBlob is a blob.Blob at a registry.
type openBlob struct {
	c   *client
	ref blob.Ref // Size is known
}

// Size implements blob.Blob.
func (b *openBlob) Size() int64 { return b.ref.Size }

// Close implements blob.Blob; there is nothing to release.
func (b *openBlob) Close() error { return nil }

// ReadRange implements blob.Blob. It returns when the first answer's headers
// are there, so a blob that does not exist is reported here. The reader of a
// whole blob ends with a Corrupt error in place of io.EOF where the bytes it
// delivered do not have the blob's digest.
func (b *openBlob) ReadRange(ctx context.Context, rng blob.Range) (io.ReadCloser, error) {
	if err := rng.Check(b.ref.Size); err != nil {
		return nil, err
	}
	if rng.Len == 0 {
		return http.NoBody, nil
	}
	r := &reader{ctx: ctx, b: b, rng: rng, off: rng.Off, tries: b.c.o.x.Tries()}
	if rng.Len == b.ref.Size {
		r.verifier = b.ref.Digest.Verifier()
	}
	if err := r.open(); err != nil {
		return nil, r.explain(err)
	}
	return r, nil
}

// reader delivers a range, over as many answers as it takes. It is used by
// one goroutine at a time.
type reader struct {
	ctx      context.Context
	b        *openBlob
	rng      blob.Range
	verifier digest.Verifier // nil unless rng is the whole blob

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
		err = exchange.Early(err, r.b.c.repo.host, r.left)
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
			return blob.Errorf(blob.Corrupt, "GET %s: the answer is longer than it should be", r.b.c.repo.host)
		}
	}
	if r.verifier != nil && !r.verifier.Verified() {
		return blob.Errorf(blob.Corrupt, "GET %s: the bytes do not have the blob's digest", r.b.c.repo.host)
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
	header := make(http.Header)
	ranged := want.Len < r.b.ref.Size
	if ranged {
		header.Set("Range", "bytes="+want.String())
	}
	resp, err := r.b.c.fetch(r.ctx, r.b.ref.Digest, header)
	if err != nil {
		return err
	}
	got, err := exchange.Sent(resp, want, r.b.ref.Size)
	if err != nil {
		resp.Body.Close()
		return err
	}
	if ranged && resp.StatusCode == http.StatusOK {
		r.b.c.o.rangesIgnored(r.b.c.repo.host)
	}
	if skip := want.Off - got.Off; skip > 0 {
		n, err := io.CopyN(io.Discard, resp.Body, skip)
		if err != nil {
			resp.Body.Close()
			return exchange.Early(err, resp.Request.URL.Host, got.Len-n)
		}
	}
	r.body, r.left = resp.Body, got.End()-want.Off
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
	return r.b.c.explain(err, "read blob %v, range %v", r.b.ref, r.rng)
}
