package image

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
)

// Timing says where the time of a Prepare went. Parts that were not needed
// are zero.
type Timing struct {
	// Resolve is the time to learn the manifest digest a name stands for.
	Resolve time.Duration `json:"resolve"`
	// Manifest is the time to read the manifest.
	Manifest time.Duration `json:"manifest"`
	// Index is the time to read the tables of contents of all layers.
	Index time.Duration `json:"index"`
	// Metadata is the time to build the EROFS metadata.
	Metadata time.Duration `json:"metadata"`
	// Mount is the time to mount it.
	Mount time.Duration `json:"mount"`
}

// Prepare makes the named image ready to mount: it reads the manifest and the
// tables of contents of all layers and builds the metadata, or finds that an
// earlier call did. No file data is read. Concurrent calls for one image do
// the work once.
//
// Errors: those of the Resolver and the Source; Invalid for an image that
// cannot be mounted lazily, saying which layer and why; Corrupt where a table
// of contents is not what the manifest promises.
func (l *Library) Prepare(ctx context.Context, name Name) (*Image, Timing, error) {
	var t Timing
	d, known, err := l.resolve(ctx, name, &t)
	if err != nil {
		return nil, t, err
	}
	if im := l.lookup(d); im != nil {
		return im, t, nil
	}
	im, err := l.prepare(ctx, name, d, known, &t)
	if err != nil {
		return nil, Timing{}, fmt.Errorf("prepare %v: %w", name, err)
	}
	return im, t, nil
}

func (l *Library) prepare(ctx context.Context, name Name, d digest.Digest, data []byte, t *Timing) (*Image, error) {
	im := &Image{Manifest: d, Repository: name.Repository}
	for {
		ix := l.indexing(ctx, Name{Repository: name.Repository, Digest: d}, name.String(), given(d, data, nil))
		var err error
		if im.Layers, err = ix.all(ctx, t); err == nil {
			break
		}
		if !l.again(ctx, ix, err) {
			return nil, err
		}
	}
	if data != nil {
		t.Manifest = 0
	}

	start := time.Now()
	s := l.stack(im.Layers, name.Repository, false)
	if err := s.build(ctx); err != nil {
		return nil, err
	}
	im.Metadata, im.Devices = s.metadata(), s.devices
	t.Metadata = time.Since(start)
	if err := writeJSON(l.recordPath(d), record{recordVersion, *im}); err != nil {
		return nil, fmt.Errorf("keep image record: %w", err)
	}
	l.adopt(im)
	return im, nil
}

// all returns the layers, bottom first, once the whole image is indexed.
func (ix *indexing) all(ctx context.Context, t *Timing) ([]Layer, error) {
	start := time.Now()
	if err := wait(ctx, ix.parsed); err != nil {
		return nil, err
	}
	if ix.err != nil {
		return nil, ix.err
	}
	t.Manifest = time.Since(start)
	start = time.Now()
	defer func() { t.Index = time.Since(start) }()
	layers := make([]Layer, 0, len(ix.layers))
	for i, il := range ix.layers {
		if err := wait(ctx, il.done); err != nil {
			return nil, err
		}
		if il.err != nil {
			return nil, fmt.Errorf("index layer %d of %d, %v: %w", i+1, len(ix.layers), il.promise.Digest, il.err)
		}
		layers = append(layers, il.layer)
	}
	return layers, nil
}

// wait returns when done is closed, or with ctx's error before.
func wait(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// resolve returns the digest of the image manifest the name stands for, with
// the manifest's bytes where they came along.
func (l *Library) resolve(ctx context.Context, name Name, t *Timing) (digest.Digest, []byte, error) {
	if name.Digest != "" && l.lookup(name.Digest) != nil {
		return name.Digest, nil, nil
	}
	start := time.Now()
	defer func() { t.Resolve = time.Since(start) }()
	tagPath := l.path("tags", digest.FromString(name.String()+" "+l.cfg.Platform.String()).Encoded()+".json")
	d, data, err := l.follow(ctx, name)
	if err == nil {
		if err := writeJSON(tagPath, refRecord{name.String(), d, time.Now()}); err != nil {
			l.log.Warn("cannot remember what an image name stands for", "image", name.String(), "error", err)
		}
		return d, data, nil
	}
	var r refRecord
	if blob.KindOf(err).Temporary() && readJSON(tagPath, &r) == nil && l.lookup(r.Digest) != nil {
		l.log.Warn("registry is away: using the image the name stood for last", "image", name.String(),
			"manifest", r.Digest, "seen", r.Seen, "error", err)
		return r.Digest, nil, nil
	}
	return "", nil, fmt.Errorf("resolve %v: %w", name, err)
}

// follow reads what the name stands for and follows indexes to a manifest.
func (l *Library) follow(ctx context.Context, name Name) (digest.Digest, []byte, error) {
	reference := name.Tag
	if name.Digest != "" {
		reference = name.Digest.String()
	}
	for range maxIndexes {
		data, mediaType, d, err := l.cfg.Resolver.Manifest(ctx, name.Repository, reference)
		if err != nil {
			return "", nil, err
		}
		if !isIndex(mediaType, data) {
			return d, data, nil
		}
		if d, err = choose(data, l.cfg.Platform); err != nil {
			return "", nil, err
		}
		reference = d.String()
		if l.lookup(d) != nil {
			return d, nil, nil
		}
	}
	return "", nil, blob.Errorf(blob.Invalid, "follow index: more than %d indexes inside each other", maxIndexes)
}

// Pulled is a layer that was pulled lazily, with all that it takes to mount it
// and to fetch what is missing of it. Whoever pulled it keeps it, and gives it
// to the next process with Config.Pulled.
type Pulled struct {
	Layer
	// Repository is where missing data is fetched from.
	Repository string `json:"repository"`
	// Image is how the user called the image it was pulled for, for logs.
	Image string `json:"image,omitempty"`
}

func (p Pulled) id() string { return layerID(p.Digest, p.TOCDigest) }

func (p Pulled) ref() blob.Ref {
	return blob.Ref{Digest: p.Digest, Size: p.Size, MediaType: p.MediaType, Repository: p.Repository}
}

// LayerRequest asks for one layer of an image.
type LayerRequest struct {
	// Name is the image: its manifest's digest, or a tag where that is not
	// known.
	Name Name
	// Called is how the user called it; default Name.
	Called string
	// Layer is the digest of the layer's blob.
	Layer digest.Digest
	// Content, where set, is asked for manifest and configuration before the
	// registry is; what it returns need not be trusted, digests are checked.
	Content Content
}

// Content returns the bytes with that digest where they are nearby.
type Content func(context.Context, digest.Digest) ([]byte, error)

// PrepareLayer makes a layer ready to be mounted. The first call for an image
// reads the manifest and all its tables of contents at once and builds the
// metadata of the whole; later calls are look-ups. The layer is kept for some
// minutes for the caller to say Adopt.
//
// Errors: one that is estargz.ErrNotLazy, and others of kind Invalid, for a
// layer that has to be unpacked instead; those of Prepare.
func (l *Library) PrepareLayer(ctx context.Context, req LayerRequest) (Pulled, error) {
	if req.Called == "" {
		req.Called = req.Name.String()
	}
	p, err := l.prepareLayer(ctx, req)
	if err != nil {
		return Pulled{}, fmt.Errorf("prepare layer %v of %s: %w", req.Layer, req.Called, err)
	}
	p.Image = req.Called
	return p, nil
}

// errNoRanges is why a layer of a registry without ranges is unpacked.
var errNoRanges = blob.Errorf(blob.Invalid, "its registry ignores range requests: every read of a part would fetch all before it: %w", estargz.ErrNotLazy)

func (l *Library) noRanges(repository string) bool {
	return l.cfg.NoRanges != nil && l.cfg.NoRanges(repository)
}

func (l *Library) prepareLayer(ctx context.Context, req LayerRequest) (Pulled, error) {
	if l.noRanges(req.Name.Repository) {
		return Pulled{}, errNoRanges
	}
	d, read := req.Name.Digest, req.Content
	if d == "" {
		var err error
		if d, read, err = l.manifestOf(ctx, req); err != nil {
			return Pulled{}, err
		}
	}
	ix, layer, err := l.indexedLayer(ctx, req, d, read)
	if l.again(ctx, ix, err) {
		ix, layer, err = l.indexedLayer(ctx, req, d, read)
	}
	if err != nil {
		return Pulled{}, err
	}
	if l.noRanges(req.Name.Repository) {
		return Pulled{}, errNoRanges
	}
	p := Pulled{Layer: layer, Repository: req.Name.Repository}
	if !l.expect(p) {
		// It was indexed, and dropped again as nobody wanted it.
		l.forgetIndexing(ix)
		return Pulled{}, blob.Errorf(blob.Busy, "it is being removed")
	}
	return p, nil
}

// indexedLayer returns the layer that is asked for once it is indexed, and the
// indexing of its image, which is that of the manifest d.
func (l *Library) indexedLayer(ctx context.Context, req LayerRequest, d digest.Digest, read Content) (*indexing, Layer, error) {
	ix := l.indexing(ctx, Name{Repository: req.Name.Repository, Digest: d}, req.Called, read)
	if err := wait(ctx, ix.parsed); err != nil {
		return ix, Layer{}, err
	}
	if ix.err != nil {
		return ix, Layer{}, ix.err
	}
	i := slices.IndexFunc(ix.layers, func(il *indexedLayer) bool { return il.promise.Digest == req.Layer })
	if i < 0 {
		return ix, Layer{}, blob.Errorf(blob.Invalid, "manifest %v does not list it", d)
	}
	il := ix.layers[i]
	if err := wait(ctx, il.done); err != nil {
		return ix, Layer{}, err
	}
	return ix, il.layer, il.err
}

// manifestOf returns the digest of the manifest a tag stands for, and where to
// read it. What a tag stood for a moment ago is good enough if that lists the
// layer: clients that do not say which manifest they mean ask for its layers
// one after the other.
func (l *Library) manifestOf(ctx context.Context, req LayerRequest) (digest.Digest, Content, error) {
	l.mu.Lock()
	ix := l.tags[req.Name.String()]
	l.mu.Unlock()
	if ix != nil && ix.lists(req.Layer) {
		return ix.manifest, req.Content, nil
	}
	d, data, err := l.follow(ctx, req.Name)
	if err != nil {
		return "", nil, err
	}
	content := given(d, data, req.Content)
	ix = l.indexing(ctx, Name{Repository: req.Name.Repository, Digest: d}, req.Called, content)
	l.mu.Lock()
	l.tags[req.Name.String()] = ix
	l.mu.Unlock()
	return d, content, nil
}

// comingFor is how long an indexed layer waits for somebody to adopt it.
const comingFor = 5 * time.Minute

// expect makes sure that p is not collected before it can be adopted. It
// reports false if p is not known any more.
func (l *Library) expect(p Pulled) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	ll := l.layers[p.id()]
	if ll == nil {
		return false
	}
	ll.coming = time.Now().Add(comingFor)
	ll.addRef(p.ref())
	return true
}

// Adopt notes that p is kept by the caller from now on, who has written that
// down: Collect will find it.
func (l *Library) Adopt(p Pulled) {
	l.mu.Lock()
	l.adoptPulled(p)
	l.mu.Unlock()
	l.lastMiss.Store(time.Now().UnixNano()) // it is about to be read
	l.kickFill()
}

// adoptPulled makes p known. l.mu is held.
func (l *Library) adoptPulled(p Pulled) {
	ll := l.addLayer(p.Layer, p.ref())
	ll.coming = time.Time{}
	ll.touched = l.tick()
	if !ll.pulled {
		ll.pulled = true
		ll.image = p.Image
	}
}

// given returns a Content that has the manifest d, where data is not nil, and
// what next has.
func given(d digest.Digest, data []byte, next Content) Content {
	return func(ctx context.Context, want digest.Digest) ([]byte, error) {
		switch {
		case want == d && data != nil:
			return data, nil
		case next != nil:
			return next(ctx, want)
		}
		return nil, blob.Errorf(blob.NotFound, "%v is not here", want)
	}
}

// checked returns c with digests checked.
func (c Content) checked(ctx context.Context, d digest.Digest) ([]byte, error) {
	if c == nil {
		return nil, blob.Errorf(blob.NotFound, "%v is not here", d)
	}
	data, err := c(ctx, d)
	if err == nil && digest.FromBytes(data) != d {
		err = blob.Errorf(blob.Corrupt, "bytes of %v have another digest", d)
	}
	return data, err
}

// manifestBytes reads the manifest d: from nearby, else from the registry.
func (l *Library) manifestBytes(ctx context.Context, repository string, d digest.Digest, nearby Content) ([]byte, error) {
	data, err := nearby.checked(ctx, d)
	if err == nil {
		return data, nil
	}
	l.log.Debug("manifest is not to be had nearby, asking the registry", "manifest", d, "error", err)
	data, _, _, err = l.cfg.Resolver.Manifest(ctx, repository, d.String())
	return data, err
}
