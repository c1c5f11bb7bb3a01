package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"skimmer/internal/blob"
	"skimmer/internal/erofs"
	"skimmer/internal/estargz"
	"skimmer/internal/layerdev"
)

// Config says what a Library stands on. Dir, Source and Resolver are
// required.
type Config struct {
	// Dir is the folder everything derived from images is kept in.
	Dir string
	// Source is where layer blobs are read from.
	Source blob.Source
	// Resolver is where manifests are read from.
	Resolver Resolver
	// Platform is chosen where an image has several; the zero value is the
	// platform of this machine.
	Platform Platform
	// IOTimeout limits how long a reader of missing data waits before it gets
	// an I/O error. Default 5 minutes.
	IOTimeout time.Duration
	// MaxReadahead limits how much compressed data a sequential reader makes
	// the library fetch at once, in bytes. Default 8 MiB.
	MaxReadahead int64
	// Background makes mounted images complete themselves once no reader has
	// had to wait for BackgroundDelay (default 5 seconds).
	Background      bool
	BackgroundDelay time.Duration
	// Pin, where set, is told which layer blobs mounted images still need; it
	// returns what undoes it.
	Pin func(digest.Digest) (release func())
	// Logger receives what a person may need to know. Default: discard.
	Logger *slog.Logger
}

// Library is a node's lazy images: prepared, mounted and complete ones. Its
// methods are safe for concurrent use.
type Library struct {
	// Constant after Open.
	cfg     Config
	log     *slog.Logger
	device  *layerdev.Device
	ctx     context.Context // ends when Close begins
	stop    context.CancelFunc
	flights singleflight.Group // one indexing per manifest
	work    sync.WaitGroup     // background completion

	// Atomics.
	lastMiss atomic.Int64 // when a reader had to wait, or something was mounted, Unix nanoseconds

	// mountMu guards mounts and is held while mounting, which makes the kernel
	// ask the layer device for files; so mu must not be. Order: mountMu, mu.
	mountMu sync.Mutex
	mounts  map[string]*mounted // by target

	// mu guards all that follows.
	mu     sync.Mutex
	images map[digest.Digest]*Image // prepared since Open
	layers map[string]*lazyLayer    // by layerID, which is also the name on the device
	nodes  map[uint64]*lazyLayer
}

// Open returns the library kept in cfg.Dir. It mounts the layer device, so it
// needs root and /dev/fuse, and needs no network. Mounts recorded by an
// earlier process that are still in place are taken over.
func Open(cfg Config) (*Library, error) {
	if cfg.Platform == (Platform{}) {
		cfg.Platform = HostPlatform()
	}
	if cfg.BackgroundDelay == 0 {
		cfg.BackgroundDelay = 5 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	for _, dir := range []string{"layers", "images", "metadata", "tags", "mounts", "device"} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, dir), 0o700); err != nil {
			return nil, fmt.Errorf("open image library: %w", err)
		}
	}
	l := &Library{
		cfg:    cfg,
		log:    cfg.Logger,
		images: make(map[digest.Digest]*Image),
		layers: make(map[string]*lazyLayer),
		nodes:  make(map[uint64]*lazyLayer),
		mounts: make(map[string]*mounted),
	}
	// context.Background: the library owns its lifetime and ends it in Close.
	l.ctx, l.stop = context.WithCancel(context.Background())
	if err := l.loadImages(); err != nil {
		l.stop()
		return nil, err
	}
	device, err := layerdev.Mount(layerdev.DeviceConfig{
		Dir:    l.path("device"),
		Files:  (*deviceFiles)(l),
		Logger: cfg.Logger,
	})
	if err != nil {
		l.stop()
		return nil, fmt.Errorf("open image library: %w", err)
	}
	l.device = device
	l.restoreMounts()
	return l, nil
}

// Close stops background work and takes the layer device away. Mounts whose
// layers are complete stay usable; others are unmounted, lazily where they
// are busy, because their missing data could never arrive. Closing again does
// nothing; nothing else may be called afterwards.
func (l *Library) Close() error {
	if l.ctx.Err() != nil {
		return nil
	}
	l.stop()
	l.work.Wait()
	errs := []error{l.closeMounts(), l.device.Close()}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ll := range l.layers {
		errs = append(errs, ll.close())
	}
	return errors.Join(errs...)
}

func (l *Library) path(elem ...string) string {
	return filepath.Join(append([]string{l.cfg.Dir}, elem...)...)
}

func (l *Library) recordPath(d digest.Digest) string {
	return l.path("images", d.Algorithm().String(), d.Encoded()+".json")
}

// MetadataPath returns the path of an image's EROFS metadata.
func (l *Library) MetadataPath(im *Image) string { return l.path("metadata", im.Metadata) }

// loadImages reads the records of earlier processes. A damaged one is dropped
// with a warning: everything in it can be derived again.
func (l *Library) loadImages() error {
	paths, err := filepath.Glob(l.path("images", "*", "*.json"))
	if err != nil {
		return fmt.Errorf("open image library: %w", err)
	}
	for _, p := range paths {
		var r record
		err := readJSON(p, &r)
		if err == nil && r.Version != recordVersion {
			continue
		}
		if err == nil {
			_, err = os.Stat(l.MetadataPath(&r.Image))
		}
		if err != nil {
			l.log.Warn("dropping a damaged image record", "path", p, "error", err)
			if err := os.Remove(p); err != nil {
				l.log.Warn("cannot drop it", "path", p, "error", err)
			}
			continue
		}
		l.adopt(&r.Image)
	}
	return nil
}

// adopt makes im and its layers known.
func (l *Library) adopt(im *Image) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.images[im.Manifest] = im
	for _, layer := range im.Layers {
		id := layerID(layer.Digest, layer.TOCDigest)
		ll := l.layers[id]
		if ll == nil {
			ll = newLazyLayer(l, layer)
			l.layers[id] = ll
			l.nodes[ll.node] = ll
		}
		ll.addRef(im.ref(layer))
	}
}

// Images returns all prepared images, in no particular order.
func (l *Library) Images() []*Image {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*Image, 0, len(l.images))
	for _, im := range l.images {
		all = append(all, im)
	}
	return all
}

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
	type result struct {
		im *Image
		t  Timing
	}
	ch := l.flights.DoChan(d.String(), func() (any, error) {
		// One caller's going away must not fail the others; the library's own
		// end must.
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		defer context.AfterFunc(l.ctx, cancel)()
		im, err := l.index(ctx, name.Repository, d, known, &t)
		return result{im, t}, err
	})
	select {
	case <-ctx.Done():
		return nil, Timing{}, fmt.Errorf("prepare %v: %w", name, context.Cause(ctx))
	case r := <-ch:
		if r.Err != nil {
			return nil, Timing{}, fmt.Errorf("prepare %v: %w", name, r.Err)
		}
		res := r.Val.(result)
		return res.im, res.t, nil
	}
}

func (l *Library) lookup(d digest.Digest) *Image {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.images[d]
}

// resolve returns the digest of the image manifest the name stands for, with
// the manifest's bytes where they came along.
func (l *Library) resolve(ctx context.Context, name Name, t *Timing) (digest.Digest, []byte, error) {
	if name.Digest != "" && l.lookup(name.Digest) != nil {
		return name.Digest, nil, nil
	}
	start := time.Now()
	defer func() { t.Resolve = time.Since(start) }()
	reference := name.Tag
	if name.Digest != "" {
		reference = name.Digest.String()
	}
	tagPath := l.path("tags", digest.FromString(name.String()+" "+l.cfg.Platform.String()).Encoded()+".json")
	d, data, err := l.follow(ctx, name.Repository, reference)
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

// follow reads what the reference names and follows indexes to a manifest.
func (l *Library) follow(ctx context.Context, repository, reference string) (digest.Digest, []byte, error) {
	for range maxIndexes {
		data, mediaType, d, err := l.cfg.Resolver.Manifest(ctx, repository, reference)
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

// index does the work of Prepare for one manifest.
func (l *Library) index(ctx context.Context, repository string, d digest.Digest, data []byte, t *Timing) (*Image, error) {
	if im := l.lookup(d); im != nil {
		return im, nil
	}
	start := time.Now()
	if data == nil {
		var err error
		if data, _, _, err = l.cfg.Resolver.Manifest(ctx, repository, d.String()); err != nil {
			return nil, err
		}
		t.Manifest = time.Since(start)
	}
	layers, err := parseManifest(data)
	if err != nil {
		return nil, err
	}
	im := &Image{Manifest: d, Repository: repository}
	for _, m := range layers {
		im.Layers = append(im.Layers, Layer{Digest: m.Digest, MediaType: m.MediaType, Size: m.Size})
	}

	start = time.Now()
	tocs, err := l.readTOCs(ctx, im, layers)
	if err != nil {
		return nil, err
	}
	t.Index = time.Since(start)

	start = time.Now()
	if err := l.buildMetadata(im, tocs); err != nil {
		return nil, err
	}
	t.Metadata = time.Since(start)
	if err := writeJSON(l.recordPath(d), record{recordVersion, *im}); err != nil {
		return nil, fmt.Errorf("keep image record: %w", err)
	}
	l.adopt(im)
	return im, nil
}

// readTOCs reads all tables of contents at once and makes the layers' folders.
func (l *Library) readTOCs(ctx context.Context, im *Image, promised []manifestLayer) ([]*estargz.TOC, error) {
	tocs := make([]*estargz.TOC, len(im.Layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i, layer := range im.Layers {
		g.Go(func() error {
			toc, err := l.readTOC(ctx, im.ref(layer), promised[i])
			if err != nil {
				return fmt.Errorf("index layer %d of %d, %v: %w", i+1, len(im.Layers), layer.Digest, err)
			}
			tocs[i] = toc
			im.Layers[i].TOCDigest, im.Layers[i].DataSize = toc.Digest, toc.Index.DataSize
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return tocs, nil
}

func (l *Library) readTOC(ctx context.Context, ref blob.Ref, promised manifestLayer) (*estargz.TOC, error) {
	b, err := l.cfg.Source.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	toc, err := estargz.ReadTOC(ctx, b, promised.TOC, promised.Read)
	if errors.Is(err, estargz.ErrNotLazy) {
		return nil, fmt.Errorf("%w; make an image that can be mounted lazily with: skimmer image convert", err)
	}
	if err != nil {
		return nil, err
	}
	if err := layerdev.Create(l.layerDir(layerID(ref.Digest, toc.Digest)), &toc.Index); err != nil {
		return nil, fmt.Errorf("make layer folder: %w", err)
	}
	return toc, nil
}

// buildMetadata makes the image's merged EROFS metadata, or finds that an
// image with the same tables of contents has it already.
func (l *Library) buildMetadata(im *Image, tocs []*estargz.TOC) error {
	hash := digest.SHA256.Hash()
	fmt.Fprintf(hash, "merged %d\n", recordVersion)
	for _, toc := range tocs {
		fmt.Fprintf(hash, "%s\n", toc.Digest)
	}
	im.Metadata = digest.NewDigest(digest.SHA256, hash).Encoded() + ".erofs"
	err := writeFile(l.MetadataPath(im), func(f *os.File) error {
		info, err := erofs.Build(f, tocs, erofs.Options{})
		if err != nil {
			return err
		}
		im.Devices = info.Devices
		return f.Sync() // the kernel will trust it
	})
	if err != nil {
		return fmt.Errorf("build metadata: %w", err)
	}
	return nil
}
