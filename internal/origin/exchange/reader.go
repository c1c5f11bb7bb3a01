package exchange

import (
	"context"
	"io"
	"io/fs"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// Reading says what a Reader delivers. All but Verifier is required.
type Reading struct {
	// Host is who is asked, for errors.
	Host string
	// Range is what is delivered.
	Range blob.Range
	// Verifier, where set, is given all bytes, and has to be content in the end.
	Verifier digest.Verifier
	// Ask makes one attempt to get a body that begins with want, and says how
	// many bytes of want it promises, at least one.
	Ask func(ctx context.Context, want blob.Range) (body io.ReadCloser, left int64, err error)
	// Explain says in an error what was being read.
	Explain func(error) error
}

// Reader delivers a range, over as many answers as it takes. It is used by one
// goroutine at a time.
type Reader struct {
	Reading
	ctx context.Context

	off   int64         // of the next byte to deliver
	body  io.ReadCloser // at off; nil between answers
	left  int64         // bytes body still promises
	tries *Tries
	err   error // what Read returns from now on
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	if r.err != nil || len(p) == 0 {
		return 0, r.err
	}
	n, err := r.read(p)
	if err != nil {
		r.drop()
		if err != io.EOF {
			err = r.Explain(err)
		}
		r.err = err
	}
	return n, err
}

func (r *Reader) read(p []byte) (int, error) {
	for {
		if r.off == r.Range.End() {
			return 0, r.finish()
		}
		if err := r.open(); err != nil {
			return 0, err
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.Range.End()-r.off, r.left)])
		if n > 0 {
			// An error that came along is met again by the next read.
			r.advance(p[:n])
			return n, nil
		}
		if err == nil {
			continue
		}
		err = Early(err, r.Host, r.left)
		r.drop()
		if err := r.tries.Again(r.ctx, err); err != nil {
			return 0, err
		}
	}
}

// advance takes note of bytes that are being delivered.
func (r *Reader) advance(p []byte) {
	n := int64(len(p))
	r.off += n
	r.left -= n
	r.tries.Progress(n)
	if r.Verifier != nil {
		_, _ = r.Verifier.Write(p) // a hash does not fail
	}
	if r.left == 0 && r.off < r.Range.End() {
		r.drop() // the server chose to send the range in parts
	}
}

// finish decides how a range ends of which every byte was delivered.
func (r *Reader) finish() error {
	if r.body != nil && r.left == 0 {
		// Reading on to the end also frees the connection for the next request.
		if n, _ := r.body.Read(make([]byte, 1)); n > 0 {
			return blob.Errorf(blob.Corrupt, "GET %s: the answer is longer than it should be", r.Host)
		}
	}
	if r.Verifier != nil && !r.Verifier.Verified() {
		return blob.Errorf(blob.Corrupt, "GET %s: what came does not have the digest that was asked for", r.Host)
	}
	return io.EOF
}

// open makes sure there is a body at off.
func (r *Reader) open() error {
	for r.body == nil {
		var err error
		r.body, r.left, err = r.Ask(r.ctx, blob.Range{Off: r.off, Len: r.Range.End() - r.off})
		if err == nil {
			break
		}
		r.body = nil
		if err = r.tries.Again(r.ctx, err); err != nil {
			return err
		}
	}
	return nil
}

// drop lets go of the body.
func (r *Reader) drop() {
	if r.body != nil {
		_ = r.body.Close() // nothing more is wanted of it
		r.body = nil
	}
}

// Close implements io.Closer. It may come before the end.
func (r *Reader) Close() error {
	r.drop()
	r.err = fs.ErrClosed
	return nil
}

// Read returns a Reader that has its first body. The caller closes it.
//
// Errors: those of Ask, explained, once trying again is no use.
func (c *Client) Read(ctx context.Context, what Reading) (*Reader, error) {
	r := &Reader{Reading: what, ctx: ctx, off: what.Range.Off, tries: c.Tries()}
	if err := r.open(); err != nil {
		return nil, what.Explain(err)
	}
	return r, nil
}
