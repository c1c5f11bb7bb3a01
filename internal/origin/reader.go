package origin

import (
	"context"
	"io"
	"net/http"

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
	what := exchange.Reading{
		Host: b.c.repo.host, Range: rng, Ask: b.part,
		Explain: func(err error) error { return b.c.explain(err, "read blob %v, range %v", b.ref, rng) },
	}
	if rng.Len == b.ref.Size {
		what.Verifier = b.ref.Digest.Verifier()
	}
	return b.c.o.x.Read(ctx, what)
}

// part makes one attempt to get a body that begins with want.
func (b *openBlob) part(ctx context.Context, want blob.Range) (body io.ReadCloser, left int64, err error) {
	header := make(http.Header)
	ranged := want.Len < b.ref.Size
	if ranged {
		header.Set("Range", "bytes="+want.String())
	}
	resp, err := b.c.fetch(ctx, b.ref.Digest, header)
	if err != nil {
		return nil, 0, err
	}
	got, err := exchange.Sent(resp, want, b.ref.Size)
	if err != nil {
		resp.Body.Close()
		return nil, 0, err
	}
	if ranged && resp.StatusCode == http.StatusOK {
		b.c.o.rangesIgnored(b.c.repo.host)
	}
	if skip := want.Off - got.Off; skip > 0 {
		n, err := io.CopyN(io.Discard, resp.Body, skip)
		if err != nil {
			resp.Body.Close()
			return nil, 0, exchange.Early(err, resp.Request.URL.Host, got.Len-n)
		}
	}
	return resp.Body, got.End() - want.Off, nil
}
