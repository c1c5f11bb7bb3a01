package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
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
	r := &reader{ctx: ctx, b: b, rng: rng, off: rng.Off, tries: tries{o: b.c.o}}
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

	off      int64         // of the next byte to deliver
	body     io.ReadCloser // at off; nil between answers
	left     int64         // bytes body still promises
	tries    tries
	progress int64 // bytes since the last failure
	err      error // what Read returns from now on
}

// minProgress is how many bytes forgive the failures before them: enough that
// a server which breaks off every answer cannot keep a read busy for ever.
const minProgress = 256 << 10

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
		err = early(err, r.b.c.repo.host, r.left)
		r.drop()
		r.progress = 0
		if err := r.tries.again(r.ctx, err); err != nil {
			return 0, err
		}
	}
}

// advance takes note of bytes that are being delivered.
func (r *reader) advance(p []byte) {
	n := int64(len(p))
	r.off += n
	r.left -= n
	if r.progress += n; r.progress >= minProgress {
		r.tries.failed = 0
	}
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
		if err = r.tries.again(r.ctx, err); err != nil {
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
	got, err := sent(resp, want, r.b.ref.Size)
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
			return early(err, resp.Request.URL.Host, got.Len-n)
		}
	}
	r.body, r.left = resp.Body, got.End()-want.Off
	return nil
}

// early says it better where err, of reading a body, means that the body
// ended with bytes missing.
func early(err error, host string, missing int64) error {
	if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
		return &failure{again: true, err: blob.Errorf(blob.Unavailable, "GET %s: the answer ends %d bytes early", host, missing)}
	}
	return err
}

// sent returns which part of the blob an answer brings, having checked that
// it can be used for want: it starts at want.Off, or at 0 if the server does
// not do ranges. The error is Corrupt where the answer contradicts what was
// asked or what is known of the blob.
func sent(resp *http.Response, want blob.Range, size int64) (blob.Range, error) {
	corrupt := func(format string, args ...any) (blob.Range, error) {
		return blob.Range{}, blob.Errorf(blob.Corrupt, "GET %s: %w", resp.Request.URL.Host, fmt.Errorf(format, args...))
	}
	contentRange, err := parseContentRange(resp.Header.Get("Content-Range"))
	got := contentRange.r
	switch resp.StatusCode {
	case http.StatusOK:
		got = blob.Range{Len: size}
		if resp.ContentLength >= 0 && resp.ContentLength != size {
			return corrupt("the blob has %d bytes, not the expected %d", resp.ContentLength, size)
		}
		return got, nil
	case http.StatusPartialContent:
	case http.StatusRequestedRangeNotSatisfiable:
		discard(resp)
		if err == nil && contentRange.total != size {
			return corrupt("the blob has %d bytes, not the expected %d", contentRange.total, size)
		}
		return corrupt("the server has no range %v of a blob of %d bytes", want, size)
	default:
		return got, statusFailure(resp, time.Now())
	}
	if t, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type")); strings.HasPrefix(t, "multipart/") {
		return corrupt("answered range %v with %s", want, t)
	}
	switch {
	case err != nil:
		return corrupt("answered range %v with a bad header: %w", want, err)
	case contentRange.total != blob.SizeUnknown && contentRange.total != size:
		return corrupt("the blob has %d bytes, not the expected %d", contentRange.total, size)
	case got.Off != want.Off || got.Len == 0 || got.End() > want.End():
		return corrupt("answered range %v with range %v", want, got)
	case resp.ContentLength > got.Len:
		return corrupt("answered range %v with %d bytes", want, resp.ContentLength)
	}
	return got, nil
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
