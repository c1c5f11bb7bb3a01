package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/time/rate"

	"skimmer/internal/blob"
	"skimmer/internal/erofs"
	"skimmer/internal/estargz"
	"skimmer/internal/image/profile"
	"skimmer/internal/image/trace"
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
	// BackgroundRate limits that, in compressed bytes per second; 0 is no limit.
	BackgroundRate int64
	// Pin, where set, is told which layer blobs mounted and pulled images still
	// need; it returns what undoes it. Forget is told which blobs nothing here
	// needs any more.
	Pin    func(digest.Digest) (release func())
	Forget func(digest.Digest)
	// NoRanges, where set, reports whether a repository is in a registry that
	// was seen to ignore range requests. PrepareLayer refuses such.
	NoRanges func(repository string) bool
	// Pulled are the layers that somebody keeps, see Adopt.
	Pulled []Pulled
	// Holder, where set, keeps the layer device alive while no process serves
	// it. Then Close leaves mounts in place, and Open takes them over.
	Holder Holder
	// HighWater is how much layer data may take, in bytes, before the least
	// recently used of what is not mounted is given up; LowWater is how much it
	// takes once that is done. 0 means no limit; LowWater defaults to 7/8.
	HighWater, LowWater int64
	// Profiles keeps what images read while they start, and fetches by it when
	// they start again. Exchange, where set, is where the cluster's profiles are;
	// Referrer, where set, returns the profile that is kept beside an image in
	// its registry, NotFound where there is none.
	Profiles bool
	Exchange profile.Exchange
	Referrer func(ctx context.Context, repository string, manifest digest.Digest) ([]byte, error)
	// ProfileLimit is how many compressed bytes are fetched by a profile at
	// most; 0 is 256 MiB.
	ProfileLimit int64
	// StartSettle is how long a start must not read anything new to count as
	// over. Default 5 seconds.
	StartSettle time.Duration
	// OnStarted, where set, is told of each start once it is over.
	OnStarted func(trace.Start)
	// OnFilled, where set, is told after each round of background completion
	// from which repositories something is still missing.
	OnFilled func(missing map[string]bool)
	// Logger receives what a person may need to know. Default: discard.
	Logger *slog.Logger
}

// Holder keeps descriptors beyond the life of this process. Implementations
// are safe for concurrent use.
type Holder interface {
	// Put keeps a duplicate of f under that name.
	Put(name string, f *os.File) error
	// Get returns a duplicate of what is kept, fs.ErrNotExist if nothing is.
	Get(name string) (*os.File, error)
	// Drop forgets what is kept; nothing kept is no error.
	Drop(name string) error
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
	work    sync.WaitGroup
	fillNow chan struct{} // holds a token when there may be something to complete
	// pace limits background completion; nil is no limit.
	pace *rate.Limiter
	// profiles is nil where they are turned off.
	profiles *profile.Dir

	// Atomics.
	lastMiss atomic.Int64 // when a reader had to wait, or something was mounted, Unix nanoseconds

	// making is held while space is made, by one at a time. Order: making,
	// collecting.
	making sync.Mutex

	// collecting is held while collecting, by one at a time; it guards what the
	// last Collect found: when it began, in ticks, and the stacks in use, nil
	// before the first.
	collecting sync.Mutex
	collected  uint64
	used       map[string]bool

	// mountMu guards mounts and is held while mounting, which makes the kernel
	// ask the layer device for files; so mu must not be. Order: mountMu, mu.
	mountMu sync.Mutex
	mounts  map[string]*mounted // by target

	// mu guards all that follows.
	mu        sync.Mutex
	ticks     uint64                   // see tick
	images    map[digest.Digest]*Image // prepared by name, now or by an earlier process
	indexings map[string]*indexing     // by repository@digest, recent ones
	tags      map[string]*indexing     // by name, of requests that named no manifest
	tocs      map[string]*estargz.TOC  // by layerID, recent ones
	stacks    map[string]*stack        // by stackID
	layers    map[string]*lazyLayer    // by layerID, which is also the name on the device
	nodes     map[uint64]*lazyLayer
	traces    []*recording // the latest starts, the latest last
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
	if cfg.ProfileLimit == 0 {
		cfg.ProfileLimit = 256 << 20
	}
	if cfg.StartSettle == 0 {
		cfg.StartSettle = 5 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.LowWater == 0 {
		cfg.LowWater = cfg.HighWater / 8 * 7
	}
	for _, dir := range []string{"layers", "images", "metadata", "tags", "mounts", "stacks", "trash"} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, dir), 0o700); err != nil {
			return nil, fmt.Errorf("open image library: %w", err)
		}
	}
	// Not MkdirAll: it would ask the file system mounted there, which nobody
	// serves yet.
	if err := os.Mkdir(filepath.Join(cfg.Dir, "device"), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("open image library: %w", err)
	}
	l := &Library{
		cfg:       cfg,
		log:       cfg.Logger,
		fillNow:   make(chan struct{}, 1),
		images:    make(map[digest.Digest]*Image),
		indexings: make(map[string]*indexing),
		tags:      make(map[string]*indexing),
		tocs:      make(map[string]*estargz.TOC),
		stacks:    make(map[string]*stack),
		layers:    make(map[string]*lazyLayer),
		nodes:     make(map[uint64]*lazyLayer),
		mounts:    make(map[string]*mounted),
	}
	// context.Background: the library owns its lifetime and ends it in Close.
	l.ctx, l.stop = context.WithCancel(context.Background())
	if err := l.loadImages(); err != nil {
		l.stop()
		return nil, err
	}
	if cfg.BackgroundRate > 0 {
		l.pace = rate.NewLimiter(rate.Limit(cfg.BackgroundRate), paceBurst)
	}
	if cfg.Profiles {
		var err error
		if l.profiles, err = profile.OpenDir(l.path("profiles")); err != nil {
			l.stop()
			return nil, fmt.Errorf("open image library: %w", err)
		}
	}
	for _, p := range cfg.Pulled {
		l.adoptPulled(p)
	}
	takenOver, err := l.openDevice()
	if err != nil {
		l.stop()
		return nil, fmt.Errorf("open image library: %w", err)
	}
	l.sweepStacks(!takenOver)
	l.restoreMounts(takenOver)
	l.sweepFolders()
	l.work.Go(l.tend)
	l.work.Go(l.fill)
	l.kickFill()
	return l, nil
}

// DeviceKey is what the layer device's connection is kept under by a Holder.
const DeviceKey = "layers"

// openDevice serves the layer device: that of the process before, if its
// connection was kept, so that whoever waits for data there goes on; else a
// new one.
func (l *Library) openDevice() (takenOver bool, err error) {
	cfg := layerdev.DeviceConfig{Dir: l.path("device"), Files: (*deviceFiles)(l), Logger: l.log}
	if l.cfg.Holder != nil {
		cfg.Connection, err = l.cfg.Holder.Get(DeviceKey)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.log.Warn("cannot ask for the connection of the layer device; mounting a new one", "error", err)
		}
	}
	if cfg.Connection != nil {
		if l.device, err = layerdev.Mount(cfg); err == nil {
			l.log.Info("took over the layer device: readers go on", "dir", cfg.Dir)
			return true, nil
		}
		l.log.Warn("cannot take over the layer device; mounting a new one: what was mounted lazily has to be mounted again", "error", err)
		cfg.Connection = nil
	}
	if l.device, err = layerdev.Mount(cfg); err != nil {
		return false, err
	}
	if l.cfg.Holder == nil {
		return false, nil
	}
	conn, err := l.device.Connection()
	if err == nil {
		err = errors.Join(l.cfg.Holder.Put(DeviceKey, conn), conn.Close())
	}
	if err != nil {
		return false, errors.Join(err, l.device.Abort())
	}
	return false, nil
}

// Close stops background work and serving. With a Holder, what is mounted
// stays mounted: complete layers stay readable, and readers of what is missing
// wait for the next process. Without one, mounts that are not complete are
// taken away, lazily where they are busy, because their missing data could
// never arrive. Closing again does nothing; nothing else may be called
// afterwards.
func (l *Library) Close() error {
	if l.ctx.Err() != nil {
		return nil
	}
	l.stop()
	l.work.Wait()
	l.dropIdle()
	var errs []error
	if l.cfg.Holder != nil && l.inUse() {
		errs = append(errs, l.device.Release())
	} else {
		l.sweepStacks(true)
		errs = append(errs, l.closeMounts(), l.closeDevice())
		if l.cfg.Holder != nil {
			errs = append(errs, l.cfg.Holder.Drop(DeviceKey))
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ll := range l.layers {
		errs = append(errs, ll.close())
	}
	return errors.Join(errs...)
}

// closeLimit is how long the kernel may take to let go of the layer device
// once all that is mounted over it has been detached: it does that later.
const closeLimit = 5 * time.Second

// closeDevice takes the layer device away.
func (l *Library) closeDevice() error {
	deadline := time.Now().Add(closeLimit)
	for {
		err := l.device.Close()
		if blob.KindOf(err) != blob.Busy || time.Now().After(deadline) {
			return err
		}
		<-time.After(10 * time.Millisecond)
	}
}

// keepHeld makes sure that the holder still holds the layer device: one that
// was killed and started again has forgotten it.
func (l *Library) keepHeld() {
	if l.cfg.Holder == nil {
		return
	}
	f, err := l.cfg.Holder.Get(DeviceKey)
	if err == nil {
		f.Close() // it was only to see that it is there
		return
	}
	conn, err := l.device.Connection()
	if err == nil {
		err = errors.Join(l.cfg.Holder.Put(DeviceKey, conn), conn.Close())
	}
	if err != nil {
		l.log.Warn("nobody else holds the layer device: were this process killed, readers would get errors", "error", err)
		return
	}
	l.log.Warn("the holder of the layer device had forgotten it; it holds it again")
}

// inUse reports whether anything is mounted that needs the layer device.
func (l *Library) inUse() bool {
	for _, m := range l.Mounts() {
		if !m.Native {
			return true
		}
	}
	lazy, _ := filepath.Glob(l.path("stacks", "*", "lazy"))
	return slices.ContainsFunc(lazy, func(dir string) bool {
		here, err := erofs.Mounted(dir)
		return here || err != nil
	})
}

func (l *Library) path(elem ...string) string {
	return filepath.Join(append([]string{l.cfg.Dir}, elem...)...)
}

func (l *Library) recordPath(d digest.Digest) string {
	return l.path("images", d.Algorithm().String(), d.Encoded()+".json")
}

// MetadataPath returns the path of an image's EROFS metadata.
func (l *Library) MetadataPath(im *Image) string { return l.path("metadata", im.Metadata) }

// loadImages reads the records of earlier processes. One that is damaged, or of
// another version, is dropped with a warning: everything in it can be derived
// again.
func (l *Library) loadImages() error {
	paths, err := filepath.Glob(l.path("images", "*", "*.json"))
	if err != nil {
		return fmt.Errorf("open image library: %w", err)
	}
	for _, p := range paths {
		var r record
		err := readJSON(p, &r)
		if err == nil && r.Version != recordVersion {
			err = blob.Errorf(blob.Invalid, "it is of version %d, want %d", r.Version, recordVersion)
		}
		if err == nil {
			_, err = os.Stat(l.MetadataPath(&r.Image))
		}
		if err != nil {
			l.log.Warn("dropping an image record that cannot be used", "path", p, "error", err)
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
		l.addLayer(layer, im.ref(layer))
	}
}

func (l *Library) lookup(d digest.Digest) *Image {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.images[d]
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
