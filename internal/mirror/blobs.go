package mirror

import (
	"context"
	"io"
	"net/http"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/mirror/ranges"
	"skimmer/internal/origin"
)

// serveBlob answers with a blob, or parts of it, if the client may have it.
func (r *request) serveBlob() error {
	m, err := r.may(r.req.Context())
	if err != nil {
		return r.no(err)
	}
	ref := blob.Ref{Digest: r.target.digest, Size: m.size, Repository: r.to.repository}
	if r.req.Method == http.MethodGet {
		r.m.want(opening{ref, r.who})
	}
	ctx := origin.WithAuthorization(r.req.Context(), r.authorization)
	sent, size, err := r.read(ctx, ref)
	r.m.stats.BlobBytes.Add(sent.Bytes)
	switch {
	case err == nil:
		r.m.stats.Blobs.Add(1)
		ref.Size = size
		r.prefetch(ref, sent)
		return nil
	case sent.Status != 0 || r.req.Context().Err() != nil:
		return err
	}
	// The node cannot; maybe the upstream can. Whoever asks it gets its answer.
	r.m.stats.Fallbacks.Add(1)
	r.m.log.Info("a blob is read past the node", "upstream", r.to.host, "path", r.target.String(), "error", err)
	return r.passWith(r.unconditional(), r.target.digest)
}

// no answers a client that may not have what it asks for, or of whom nobody
// can tell, in the upstream's own words.
func (r *request) no(err error) error {
	f, ok := refusedWith(err)
	switch {
	case !ok:
		return err
	case r.req.Method == http.MethodGet:
		return r.pass(r.target.digest) // its answer to HEAD has no body
	}
	r.tell(f.header)
	r.w.cause = f
	r.w.WriteHeader(f.status)
	return nil
}

// tag returns the entity tag of a blob or manifest.
func tag(d digest.Digest) string { return `"` + d.String() + `"` }

// read answers with what the node reads.
func (r *request) read(ctx context.Context, ref blob.Ref) (sent ranges.Sent, size int64, err error) {
	b, done, err := r.m.open(ctx, opening{ref, r.who})
	if err != nil {
		return sent, 0, err
	}
	defer func() { done(err != nil) }()
	size = b.Size()
	if size == 0 && ref.Digest.Algorithm().FromBytes(nil) != ref.Digest {
		return sent, size, blob.Errorf(blob.Corrupt, "read blob %v: it is said to be empty, which its digest is not of", ref)
	}
	ref.Size = size
	sent, err = ranges.Serve(r.w, r.req.WithContext(ctx), ranges.Content{
		Blob: &carried{Blob: b, r: r, ref: ref}, ETag: tag(ref.Digest),
		Header: http.Header{"Docker-Content-Digest": {ref.Digest.String()}},
	})
	return sent, size, err
}

// unconditional returns the header to ask the upstream with for what is left
// to answer once the conditions have been held against our entity tag.
func (r *request) unconditional() http.Header {
	h := endToEnd(r.req.Header, notAsked)
	if v := h.Get("If-Range"); v != "" && v != tag(r.target.digest) {
		h.Del("Range")
	}
	for _, key := range conditional {
		h.Del(key)
	}
	return h
}

// carried is a blob of the node whose reads go on at the upstream where the
// node fails in the middle of an answer. What fails before can be answered in
// another way.
type carried struct {
	blob.Blob
	r   *request
	ref blob.Ref // with its size
}

// begun reports whether the client has a part of the answer.
func (c *carried) begun() bool { return c.r.w.status != 0 }

// upstream opens the blob at the upstream, for who cannot read it here.
func (c *carried) upstream(ctx context.Context, because error) (blob.Blob, error) {
	if ctx.Err() != nil || !c.begun() {
		return nil, because
	}
	b, err := c.r.m.cfg.Origin.Open(ctx, c.ref)
	if err != nil {
		return nil, because
	}
	c.r.m.stats.Resumed.Add(1)
	c.r.m.log.Info("a blob is read on past the node", "upstream", c.r.to.host, "path", c.r.target.String(), "error", because)
	return b, nil
}

// ReadRange implements blob.Blob. Of a whole blob, the last byte is delivered
// once the digest is right.
func (c *carried) ReadRange(ctx context.Context, rng blob.Range) (io.ReadCloser, error) {
	k := &carrying{c: c, ctx: ctx, off: rng.Off, end: rng.End()}
	if rng.Len == c.ref.Size {
		k.check = c.ref.Digest.Verifier()
	}
	var err error
	if k.from, err = c.Blob.ReadRange(ctx, rng); err != nil {
		if err = k.resume(err); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// ReadRanges implements blob.MultiReader.
func (c *carried) ReadRanges(ctx context.Context, set []blob.Range, land blob.Land) error {
	left := make([]blob.Range, len(set))
	copy(left, set)
	var failed error // of land
	keep := func(i int, off int64, p []byte) error {
		if failed = land(i, off, p); failed != nil {
			return failed
		}
		left[i].Off += int64(len(p))
		left[i].Len -= int64(len(p))
		return nil
	}
	err := blob.ReadRanges(ctx, c.Blob, set, keep)
	if err == nil || failed != nil {
		return err
	}
	b, err := c.upstream(ctx, err)
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }() // nothing was written through it
	var index []int
	var missing []blob.Range
	for i, rng := range left {
		if rng.Len > 0 {
			index, missing = append(index, i), append(missing, rng)
		}
	}
	return blob.ReadRanges(ctx, b, missing, func(i int, off int64, p []byte) error { return land(index[i], off, p) })
}

// carrying reads one range.
type carrying struct {
	c        *carried
	ctx      context.Context
	from     io.ReadCloser
	off, end int64           // what is still to be read
	check    digest.Verifier // nil for a part
	resumed  bool
	err      error // what Read returns from now on
}

// Read implements io.Reader.
func (k *carrying) Read(p []byte) (int, error) {
	if len(p) == 0 || k.err != nil {
		return 0, k.err
	}
	n, err := k.read(p)
	if n > 0 && k.check != nil {
		_, _ = k.check.Write(p[:n]) // a hash does not fail
		if k.off == k.end && !k.check.Verified() {
			n--
			err = blob.Errorf(blob.Corrupt, "read blob %v: what came does not have its digest", k.c.ref)
		}
	}
	k.err = err
	return n, err
}

// read reads from the node, or on from the upstream.
func (k *carrying) read(p []byte) (int, error) {
	for {
		if k.off == k.end {
			return 0, io.EOF
		}
		n, err := k.from.Read(p[:min(int64(len(p)), k.end-k.off)])
		k.off += int64(n)
		if n > 0 {
			return n, nil // an error that came along is met again
		}
		if err == io.EOF {
			err = blob.Errorf(blob.Corrupt, "read blob %v: its source ended %d bytes early: %w", k.c.ref, k.end-k.off, io.ErrUnexpectedEOF)
		}
		if err != nil {
			if err = k.resume(err); err != nil {
				return 0, err
			}
		}
	}
}

// resume reads on at the upstream what the node failed to read.
func (k *carrying) resume(because error) error {
	// A whole blob that is wrong stays wrong, whatever its last byte is.
	if k.resumed || k.check != nil && blob.KindOf(because) == blob.Corrupt {
		return because
	}
	k.resumed = true
	b, err := k.c.upstream(k.ctx, because)
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }() // its readers stay usable
	from, err := b.ReadRange(k.ctx, blob.Range{Off: k.off, Len: k.end - k.off})
	if err != nil {
		return because
	}
	if k.from != nil {
		_ = k.from.Close() // it has failed already
	}
	k.from = from
	return nil
}

// Close implements io.Closer.
func (k *carrying) Close() error {
	if k.from == nil {
		return nil
	}
	return k.from.Close()
}
