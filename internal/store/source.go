package store

import (
	"context"
	"io"
	"sync/atomic"

	"skimmer/internal/blob"
)

// Through returns a Source that serves what the store holds from disk and
// reads the rest from next, keeping it. What several Sources and open blobs
// miss at the same time is fetched once, by the one that came first. A blob
// that is held can be opened and read while next is out of reach.
//
// Blobs implement blob.Rejecter and blob.MultiReader, whose ranges are
// delivered in order except that those held come first. Their readers
// implement io.WriterTo. A
// reader of a whole blob that was not complete when it began delivers the
// last byte after the digest was compared, and a Corrupt error in its place
// if that failed; where not all of the blob could be kept there is nothing to
// compare.
func (s *Store) Through(next blob.Source) blob.Source { return &through{s, next} }

// Local returns a Source of what the store holds or is receiving. What is
// missing is NotFound.
func (s *Store) Local() blob.Source { return s.Through(nowhere{}) }

// nowhere is a Source without blobs.
type nowhere struct{}

func (nowhere) Open(_ context.Context, ref blob.Ref) (blob.Blob, error) {
	return nil, blob.Errorf(blob.NotFound, "open %v: not held here", ref)
}

type through struct {
	s    *Store
	next blob.Source
}

func (t *through) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	if err := ref.Validate(); err != nil {
		return nil, err
	}
	e, err := t.s.acquire(ref.Digest)
	if err != nil {
		return nil, blob.Errorf(blob.KindOf(err), "open %v: %w", ref, err)
	}
	e.opened()
	h := &handle{e: e, from: t, ref: ref, opening: make(chan struct{}, 1)}
	h.refs.Store(1)
	if err := h.size(ctx); err != nil {
		h.unref()
		return nil, err
	}
	return &opened{handle: h}, nil
}

// handle is what an open blob, its readers and the fetches they started
// share. It lives until the last of them is done.
type handle struct {
	// Constant.
	e    *entry
	from *through
	ref  blob.Ref

	refs    atomic.Int32
	opening chan struct{} // holds one: who may touch next
	next    blob.Blob     // of the source behind; nil until needed

	// Guarded by e.mu.
	readEnd int64 // where the last read ended
	run     int64 // bytes the next fetch gets, if reads go on in sequence
}

// unref gives one reference up.
func (h *handle) unref() {
	if h.refs.Add(-1) > 0 {
		return
	}
	if h.next != nil {
		// Nothing was written through it: there is no failure to report.
		_ = h.next.Close()
	}
	h.e.closed()
	h.e.s.release(h.e)
}

// size makes e know its geometry, asking the source behind only when neither
// the disk nor the reference knows the blob's size.
func (h *handle) size(ctx context.Context) error {
	h.e.mu.Lock()
	h.e.load()
	size, known := h.ref.Size, h.e.sized
	h.e.mu.Unlock()
	if size == blob.SizeUnknown && known {
		return nil
	}
	if size == blob.SizeUnknown {
		next, err := h.source(ctx)
		if err != nil {
			return err
		}
		size = next.Size()
	}
	return h.e.agree(h.ref, size)
}

// agree sets the blob's size, or compares it. Of two that differ the newer is
// believed, unless the digest has proved the older or somebody reads by it.
func (e *entry) agree(ref blob.Ref, size int64) error {
	if size > maxSize {
		return blob.Errorf(blob.Invalid, "open %v: %d bytes are more than the %d a blob can have", ref, size, maxSize)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.sized && e.geo.size == size {
		return nil
	}
	if e.sized {
		e.s.mu.Lock()
		shared := e.refs > 1
		e.s.mu.Unlock()
		if e.complete || shared {
			return blob.Errorf(blob.Corrupt, "open %v: its size is given as %d bytes, but is %d", ref, size, e.geo.size)
		}
		e.s.log.Warn("dropping a blob whose size was wrong", "digest", e.digest, "was", e.geo.size, "is", size)
		if err := e.erase(); err != nil {
			return blob.Errorf(blob.KindOf(err), "open %v: %w", ref, err)
		}
	}
	e.setGeometry(info{
		Version: infoVersion, Digest: e.digest, Size: size, PieceSize: geometryOf(size, e.s.cfg.PieceSize).pieceSize,
		MediaType: ref.MediaType, Repository: ref.Repository, URL: urlOf(ref),
	})
	return nil
}

// urlOf returns what is written down of a reference's URL.
func urlOf(ref blob.Ref) string {
	if ref.URL == "" {
		return ""
	}
	return ref.Place()
}

// source returns the blob of the source behind, opened once.
func (h *handle) source(ctx context.Context) (blob.Blob, error) {
	select {
	case h.opening <- struct{}{}:
		defer func() { <-h.opening }()
	case <-ctx.Done():
		return nil, blob.Errorf(blob.KindOf(ctx.Err()), "open %v: %w", h.ref, ctx.Err())
	}
	if h.next != nil {
		return h.next, nil
	}
	next, err := h.from.next.Open(ctx, h.ref)
	if err != nil {
		return nil, err
	}
	h.e.mu.Lock()
	sized, size := h.e.sized, h.e.geo.size
	h.e.mu.Unlock()
	if sized && next.Size() != size {
		err := blob.Errorf(blob.Corrupt, "open %v: its source has %d bytes, want %d", h.ref, next.Size(), size)
		_ = next.Close()
		return nil, err
	}
	h.next = next
	return next, nil
}

// sameSource reports whether what fails for h would fail for g. What a web
// server answers may depend on headers that are not in the reference.
func (h *handle) sameSource(g *handle) bool {
	return h == g || h.from == g.from && h.ref.Repository == g.ref.Repository && h.ref.URL == "" && g.ref.URL == ""
}

// slack is how far, in bytes, a read may begin from where the last one ended
// and still continue it.
const slack = 512 << 10

// observe notes a read, to tell sequential ones from random ones. Caller
// holds e.mu.
func (h *handle) observe(r blob.Range) {
	if d := r.Off - h.readEnd; d < -slack || d > slack {
		h.run = 0
	}
	h.readEnd = r.End()
}

// plan returns how many pieces to fetch from piece i on for a reader that
// wants the blob up to end. Caller holds e.mu.
func (h *handle) plan(i int, end int64, p blob.Priority) int {
	cfg, geo := &h.e.s.cfg, h.e.geo
	want := end - geo.start(i)
	if p == blob.Demand {
		h.run = min(max(cfg.RandomRun, 2*h.run), cfg.SequentialRun)
		want = max(want, h.run)
	}
	n := geo.pieceEnd(min(want, cfg.SequentialRun))
	return h.e.available(i, min(n, geo.pieces-i))
}

// opened is the Blob a caller holds.
type opened struct {
	*handle
	closed atomic.Bool
}

func (o *opened) Size() int64 { return o.e.geo.size }

func (o *opened) Close() error {
	if !o.closed.Swap(true) {
		o.unref()
	}
	return nil
}

func (o *opened) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	return o.reader(ctx, r, nil)
}

// reader returns a reader of r, for which own, if not nil, was started.
func (o *opened) reader(ctx context.Context, r blob.Range, own *group) (io.ReadCloser, error) {
	e := o.e
	if err := r.Check(e.geo.size); err != nil {
		return nil, err
	}
	o.refs.Add(1)
	rd := &reader{h: o.handle, ctx: ctx, off: r.Off, end: r.End(), own: own}
	e.mu.Lock()
	o.observe(r)
	rd.resets = e.resets
	rd.whole = r.Len == e.geo.size && !e.complete
	e.eager = e.eager || rd.whole
	e.mu.Unlock()
	return rd, nil
}

// Reject implements blob.Rejecter. Of a blob whose digest was right only
// damage on disk can be the matter, so its pieces are checked again.
func (o *opened) Reject(r blob.Range) {
	e := o.e
	if r.Check(e.geo.size) != nil || r.Len == 0 {
		return
	}
	e.s.count.rejected.Add(1)
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := e.geo.piece(r.Off); i < e.geo.pieceEnd(r.End()); i++ {
		if e.complete {
			e.checked.unset(i)
		} else {
			e.drop(i)
		}
		if f := e.covering(i); f != nil {
			f.taint(i)
		}
	}
}
