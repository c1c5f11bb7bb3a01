package mirror

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
	"skimmer/internal/origin"
)

// Who pulls an image lazily reads, one after the other, its manifest, its
// configuration, and of each layer the first bytes, the footer, the table of
// contents: each a round trip to the registry, and each to be foretold. So what
// is certain is asked for here before the client does. When a manifest with lazy
// layers is served, that is the configuration and both ends of each layer: no
// more, for who asks may only look. With the first blob of the image that the
// client reads, the tables of contents follow. A client that pulls whole layers
// reads all of that too, and finds it here.

const (
	// maxPulls is how many images are read ahead at the same time.
	maxPulls = 64
	// maxForeseen is how many images are remembered as read ahead.
	maxForeseen = 8 << 10
	// layersAtOnce is how many layers of an image are.
	layersAtOnce = 16
	// wantedWithin is how long who was served a manifest has to read a blob.
	wantedWithin = 10 * time.Second
	// aheadLasts ends what takes too long to be of use.
	aheadLasts = 30 * time.Second
	// maxConfig and maxTOC bound what is read ahead of one blob, maxTOCs of one
	// image, in bytes.
	maxConfig, maxTOC, maxTOCs = 1 << 20, 16 << 20, 64 << 20
	// headBytes is what clients read to see whether ranges work; tailBytes has
	// every footer there is.
	headBytes, tailBytes = 2, 128
	// clientChunk is what the stargz snapshotter's reads begin at multiples of.
	clientChunk = 50_000
)

// pull is an image that a client has the manifest of.
type pull struct {
	// Constant.
	manifest []byte
	config   *foreseen // nil if it is not read ahead
	layers   []foreseen
	wanted   chan struct{} // closed when the client has read a blob

	once sync.Once    // for wanted
	tocs atomic.Int64 // bytes of tables of contents that are read
}

// foreseen is a blob that will be read.
type foreseen struct {
	opening
	toc int64 // where a manifest says that the table of contents begins; 0 if it does not
}

// lookAhead has what belongs to a manifest brought that the client was let read:
// of one that it only asked about, the configuration.
func (r *request) lookAhead(data []byte) {
	var doc ocispec.Manifest
	if json.Unmarshal(data, &doc) != nil {
		return
	}
	p := &pull{manifest: data, wanted: make(chan struct{})}
	for _, d := range doc.Layers {
		toc, lazy := tocIn(d.Annotations)
		if f, ok := r.foresee(d, toc); ok && lazy {
			p.layers = append(p.layers, f)
		}
	}
	if len(p.layers) == 0 || len(p.layers) > maxVouched {
		return
	}
	if f, ok := r.foresee(doc.Config, 0); ok && doc.Config.Size <= maxConfig && !r.m.brought(doc.Config.Digest) {
		p.config = &f
	}
	if r.req.Method == http.MethodHead {
		p.layers = nil
	}
	r.m.begin(p, r.authorization)
}

// begin has an image read ahead, unless it has been, or too many are.
func (m *Mirror) begin(p *pull, authorization string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.pulls >= maxPulls || !m.note(p) {
		return
	}
	m.pulls++
	m.work.Go(func() {
		ctx, cancel := context.WithTimeout(origin.WithAuthorization(m.ctx, authorization), aheadLasts)
		defer cancel()
		if err := m.readAhead(ctx, p); err != nil {
			m.log.Debug("an image is not read ahead", "error", err)
			if len(p.layers) > 0 {
				m.foreseen.remove(p.layers[0].opening) // the next may try again
			}
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.pulls--
	})
}

// note makes a pull known by its blobs, and reports whether there is something
// new about it. Caller holds m.mu.
func (m *Mirror) note(p *pull) bool {
	if len(p.layers) == 0 {
		return p.config != nil && m.foreseen.add(p.config.opening, p)
	}
	if !m.foreseen.add(p.layers[0].opening, p) {
		return false
	}
	for _, f := range p.layers[1:] {
		m.foreseen.put(f.opening, p)
	}
	if p.config != nil {
		m.foreseen.put(p.config.opening, p)
	}
	return true
}

// foresee returns what the client will ask for, if it asks for what d describes.
func (r *request) foresee(d ocispec.Descriptor, toc int64) (foreseen, bool) {
	if !blob.Verifiable(d.Digest) || d.Size <= 0 || len(d.URLs) > 0 {
		return foreseen{}, false
	}
	m, ok := r.m.access.members.get(item{r.to.repo(), aBlob, d.Digest})
	ref := blob.Ref{Digest: d.Digest, Size: m.size, Repository: r.to.repository}
	return foreseen{opening{ref, r.who}, toc}, ok && m.size > 0
}

// want notes that a blob is read: its image is being pulled.
func (m *Mirror) want(o opening) {
	if p, ok := m.foreseen.get(o); ok {
		p.once.Do(func() { close(p.wanted) })
	}
}

// readAhead brings what is certain to be read of an image. What fails of one blob
// is no reason to leave the others.
func (m *Mirror) readAhead(ctx context.Context, p *pull) error {
	var g errgroup.Group
	g.SetLimit(layersAtOnce)
	if p.config != nil {
		g.Go(func() error { return m.touch(ctx, p.config.opening, blob.Range{Len: p.config.ref.Size}, nil) })
	}
	if m.taken(ctx, p) {
		return g.Wait()
	}
	for i := range p.layers {
		g.Go(func() error { return m.readLayer(ctx, p, &p.layers[i]) })
	}
	return g.Wait()
}

// taken reports whether somebody else on this node sees to the image's layers.
func (m *Mirror) taken(ctx context.Context, p *pull) bool {
	return m.cfg.OnManifest != nil && len(p.layers) > 0 &&
		m.cfg.OnManifest(ctx, p.layers[0].ref.Repository, p.manifest)
}

// errWhole ends what would bring all of a layer.
var errWhole = blob.Errorf(blob.Unavailable, "the registry answers ranges with the whole")

// readLayer brings both ends of a layer, and, once it is wanted, its table of
// contents.
func (m *Mirror) readLayer(ctx context.Context, p *pull, f *foreseen) error {
	size := f.ref.Size
	if size <= clientChunk {
		return m.touch(ctx, f.opening, blob.Range{Len: size}, nil)
	}
	tail := make([]byte, tailBytes)
	begin := size - tailBytes
	// Two requests: to one with two ranges, storage servers answer with the whole.
	g, both := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := m.touch(both, f.opening, blob.Range{Len: headBytes}, nil)
		if err == nil && m.cfg.Origin.NoRanges(f.ref.Repository) {
			err = errWhole
		}
		return err
	})
	g.Go(func() error {
		return m.touch(both, f.opening, blob.Range{Off: begin, Len: tailBytes}, func(off int64, p []byte) { copy(tail[off-begin:], p) })
	})
	if err := g.Wait(); err != nil {
		return err
	}
	toc := f.toc
	if toc == 0 {
		var err error
		if toc, err = estargz.TOCOffset(tail, size); err != nil {
			return nil // it cannot be read lazily, whatever the manifest says
		}
	}
	if toc >= size {
		return nil
	}
	toc -= toc % clientChunk
	if n := size - toc; n > maxTOC || p.tocs.Add(n) > maxTOCs {
		return nil
	}
	timer := time.NewTimer(wantedWithin)
	defer timer.Stop()
	select {
	case <-p.wanted:
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
	return m.touch(ctx, f.opening, blob.Range{Off: toc, Len: size - toc}, nil)
}

// touch reads a range so that it is here afterwards, and shows it to see, unless
// that is nil.
func (m *Mirror) touch(ctx context.Context, o opening, r blob.Range, see func(off int64, p []byte)) error {
	b, err := m.opens.get(ctx, o)
	if err != nil {
		return err
	}
	err = blob.LandRange(ctx, b.Blob, r, make([]byte, min(r.Len, relayBuffer)), func(off int64, p []byte) error {
		if see != nil {
			see(off, p)
		}
		return nil
	})
	m.opens.put(b, err != nil)
	if err == nil {
		m.stats.Ahead.Add(1)
	}
	return err
}

// tocIn returns whether annotations say that a layer has a table of contents,
// and where, if they tell: else it is 0.
func tocIn(annotations map[string]string) (off int64, lazy bool) {
	want, opts := estargz.Promised(annotations)
	return opts.TOCOff, want != "" || opts.CompressedDigest != "" || opts.TOCOff > 0
}
