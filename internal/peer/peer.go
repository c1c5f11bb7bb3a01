// Package peer is the node: it stacks the sources a byte passes on its way
// from a registry to a container, mounts images on top of them, and answers
// local commands on a control socket.
package peer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
	"skimmer/internal/image"
	"skimmer/internal/layerdev"
	"skimmer/internal/layerdev/holder"
	"skimmer/internal/origin"
	"skimmer/internal/origin/keychain"
	"skimmer/internal/snapshot"
	"skimmer/internal/store"
	"skimmer/internal/swarm"
)

// Config says how a Peer is built. DataDir and Socket are required; the zero
// value of the rest is what one machine wants.
type Config struct {
	// DataDir is where everything is kept that outlives the process.
	DataDir string
	// Socket is the path of the control socket.
	Socket string
	// Origin says how registries are reached.
	Origin origin.Config
	// Store configures the blob store; its Dir, Logger and water marks are
	// filled in.
	Store store.Config
	// IOTimeout, MaxReadahead, Background and BackgroundDelay are passed to the
	// lazy images; see image.Config.
	IOTimeout       time.Duration
	MaxReadahead    int64
	Background      bool
	BackgroundDelay time.Duration
	// BackgroundRate limits background completion, in bytes per second; 0 is no
	// limit.
	BackgroundRate int64
	// HighWater and LowWater are how much blobs and the data of lazy layers may
	// take together, in bytes: half for each. A HighWater of 0 is 80 % of the
	// file system, a LowWater of 0 is 7/8 of HighWater.
	HighWater, LowWater int64
	// Holder is the command, with the socket's path to be appended, of the
	// process that keeps the layer device alive while no node runs. Without
	// one, what is mounted lazily ends with this process.
	Holder []string
	// Snapshotter says how containerd is served.
	Snapshotter SnapshotterConfig
	// Swarm, where set, says how blobs are exchanged with other nodes.
	Swarm *SwarmConfig
	// Mirror, where set, says how others fetch through this node by HTTP.
	Mirror *MirrorConfig
	// Starts says what becomes of what images read while they start.
	Starts StartsConfig
	// Kubernetes, where set, says where to look for image pull secrets.
	Kubernetes *keychain.KubernetesConfig
	// ExitWhenIdle makes Run return once nothing is mounted any more: for a
	// peer that was started for one mount.
	ExitWhenIdle bool
	// Version is what Status says of the build.
	Version string
	// Logger receives what a person may need to know. Default: discard.
	Logger *slog.Logger
}

// idleStart is how long a peer with ExitWhenIdle waits for its first mount.
const idleStart = time.Minute

// Peer is a node daemon. New builds it, Run serves until its context ends,
// Close frees it. Its methods are safe for concurrent use.
type Peer struct {
	// Constant after New.
	cfg      Config
	log      *slog.Logger
	since    time.Time
	origin   *origin.Origin
	store    *store.Store
	images   *image.Library
	pulls    *pulls
	upstream *Files

	// nil where it was not asked for.
	kubernetes *keychain.Kubernetes
	containerd *containerd
	holder     *holder.Holder
	member     *member
	gateway    *gateway
	swarm      atomic.Pointer[swarm.Swarm] // of member; the store asks for it from the beginning

	// FromOrigin counts what was read from registries as blobs.
	FromOrigin blob.Counter

	handing sync.WaitGroup // downloads that took their connection from the control server

	idle      chan struct{} // closed when nothing is mounted any more
	idleOnce  sync.Once
	closeOnce sync.Once
}

// New opens the data directory and builds the node on it; it needs root,
// /dev/fuse, and no network. What an earlier process left mounted is taken
// over. A data directory is used by one process at a time.
func New(cfg Config) (_ *Peer, err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	cfg.Origin.Logger = cfg.Logger
	cfg.Store.Dir = cfg.DataDir
	cfg.Store.Logger = cfg.Logger
	if cfg.Store.PieceSize == 0 {
		// Readers of lazy images want chunks, which lie anywhere: what is fetched
		// beyond them is a cost, and what a reader will want next is known above.
		cfg.Store.PieceSize, cfg.Store.RandomRun = lazyPiece, -1
	}
	if err := cfg.divideSpace(); err != nil {
		return nil, fmt.Errorf("start peer: %w", err)
	}
	p := &Peer{cfg: cfg, log: cfg.Logger, since: time.Now(), idle: make(chan struct{})}
	p.cfg.Store.Lost = p.lost
	if cfg.Swarm != nil {
		p.cfg.Store.DigestDelay = digestDelay
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("start peer: %w", err), p.free())
		}
	}()
	// The store locks the data directory, so all else comes after it.
	if p.store, err = store.Open(p.cfg.Store); err != nil {
		return nil, err
	}
	if err := p.openCredentials(); err != nil {
		return nil, err
	}
	if err := p.cfg.guardDials(); err != nil {
		return nil, err
	}
	if p.origin, err = origin.New(p.cfg.Origin); err != nil {
		return nil, err
	}
	if err := p.openSwarm(); err != nil {
		return nil, err
	}
	if err := p.openMirror(); err != nil {
		return nil, err
	}
	// Before the layer device is served: a process that serves it must not
	// start another, see holder.
	if err := p.openHolder(); err != nil {
		return nil, err
	}
	if err := p.openImages(); err != nil {
		return nil, err
	}
	if cfg.Snapshotter.Socket != "" {
		if p.containerd, err = p.newContainerd(p.images); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// digestDelay is how long a whole blob of the swarm, each piece of which was
// compared, waits to be compared with its own digest: until nobody is in a hurry.
const digestDelay = 10 * time.Second

// lazyPiece is the size of pieces in bytes.
const lazyPiece = 16 << 10

// divideSpace fills in the water marks.
func (c *Config) divideSpace() error {
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return err
	}
	if c.HighWater == 0 {
		var st unix.Statfs_t
		if err := unix.Statfs(c.DataDir, &st); err != nil {
			return &fs.PathError{Op: "statfs", Path: c.DataDir, Err: err}
		}
		c.HighWater = int64(st.Blocks) * st.Bsize / 10 * 8
	}
	if c.LowWater == 0 {
		c.LowWater = c.HighWater / 8 * 7
	}
	c.Store.HighWater, c.Store.LowWater = c.HighWater/2, c.LowWater/2
	return nil
}

// openHolder finds or starts the process that keeps the layer device.
func (p *Peer) openHolder() error {
	if len(p.cfg.Holder) == 0 {
		return nil
	}
	socket := filepath.Join(p.cfg.DataDir, "device.sock")
	if len(socket) > maxSocketPath {
		socket = fmt.Sprintf("/run/skimmer-%s.sock", digest.FromString(p.cfg.DataDir).Encoded()[:16])
	}
	// context.Background: Ensure has a limit of its own.
	h, err := holder.Ensure(context.Background(), holder.Config{
		Socket: socket, Command: append(slices.Clone(p.cfg.Holder), socket), Logger: p.log,
	})
	p.holder = h
	return err
}

// releaseHolder ends the holder if there is nothing for it to keep.
func (p *Peer) releaseHolder() error {
	if p.holder == nil {
		return nil
	}
	f, err := p.holder.Get(image.DeviceKey)
	if errors.Is(err, fs.ErrNotExist) {
		return p.holder.Stop()
	}
	if err == nil {
		err = f.Close()
	}
	return err
}

// maxSocketPath is the longest path of a unix socket that all systems take.
const maxSocketPath = 100

func (p *Peer) openImages() error {
	pulled, err := snapshot.Layers(snapshotterDir(p.cfg.DataDir), p.log)
	if err != nil {
		return err
	}
	cfg := image.Config{
		Dir:             p.cfg.DataDir,
		Source:          p.source(),
		Resolver:        p.origin,
		IOTimeout:       p.cfg.IOTimeout,
		MaxReadahead:    p.cfg.MaxReadahead,
		Background:      p.cfg.Background,
		BackgroundDelay: p.cfg.BackgroundDelay,
		BackgroundRate:  p.cfg.BackgroundRate,
		Pin:             p.store.Pin,
		Forget:          p.forget,
		NoRanges:        p.origin.NoRanges,
		Pulled:          pulled,
		HighWater:       p.cfg.HighWater / 2,
		LowWater:        p.cfg.LowWater / 2,
		OnFilled:        p.pulls.keep,
		Logger:          p.log,
	}
	if p.holder != nil {
		cfg.Holder = p.holder
	}
	p.watchStarts(&cfg)
	if p.images, err = image.Open(cfg); err != nil {
		return err
	}
	p.shareProfiles()
	return nil
}

// forget removes a blob that no image needs any more.
func (p *Peer) forget(d digest.Digest) {
	if err := p.store.Remove(d); err != nil && blob.KindOf(err) != blob.NotFound {
		p.log.Warn("cannot remove a blob that is not needed any more", "blob", d, "error", err)
	}
}

// source is the path of a byte, nearest hop first: what the store has is
// served from disk, the rest comes from other nodes if there are any, or from
// the origin, counted, and is kept.
func (p *Peer) source() blob.Source {
	if p.member != nil {
		return p.member.swarm
	}
	return p.store.Through(blob.Meter(p.files(), &p.FromOrigin))
}

// Close stops the node and writes down what the next one wants to know. With
// a holder, what is mounted stays mounted for the next process; without, what
// cannot live without this one is unmounted. Closing again does nothing.
func (p *Peer) Close() error {
	var err error
	p.closeOnce.Do(func() { err = p.free() })
	if err != nil {
		return fmt.Errorf("stop peer: %w", err)
	}
	return nil
}

// free closes what New opened, in reverse.
func (p *Peer) free() error {
	var errs []error
	if p.containerd != nil {
		errs = append(errs, p.containerd.close())
	}
	if p.images != nil {
		errs = append(errs, p.images.Close(), p.releaseHolder())
	}
	if p.gateway != nil {
		errs = append(errs, p.gateway.close())
	}
	if p.member != nil {
		errs = append(errs, p.member.free())
	}
	if p.origin != nil {
		errs = append(errs, p.origin.Close())
	}
	if p.store != nil {
		errs = append(errs, p.store.Close())
	}
	return errors.Join(errs...)
}

// Run answers the control socket, and containerd, until ctx ends, or, with
// ExitWhenIdle, until nothing is mounted. ready is called once all sockets
// answer.
func (p *Peer) Run(ctx context.Context, ready func()) error {
	ln, err := listen(p.cfg.Socket)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	group.Go(func() error { return p.serveControl(ctx, ln) })
	if p.member != nil {
		group.Go(func() error { return p.member.run(ctx) })
	}
	if p.containerd != nil {
		ln, err := listen(p.cfg.Snapshotter.Socket)
		if err != nil {
			stop()
			return errors.Join(err, group.Wait())
		}
		group.Go(func() error { return p.containerd.serve(ctx, ln) })
	}
	if p.kubernetes != nil {
		group.Go(func() error { return p.kubernetes.Run(ctx) })
	}
	group.Go(func() error {
		select {
		case <-ctx.Done():
		case <-p.waitIdle(ctx):
			p.log.Info("nothing is mounted any more: stopping, as asked")
			stop()
		}
		return nil
	})
	p.log.Info("peer is ready", "socket", p.cfg.Socket, "dataDir", p.cfg.DataDir)
	ready()
	return group.Wait()
}

// serveControl answers the control socket until ctx ends.
func (p *Peer) serveControl(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler:           p.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	stopped := make(chan error, 1)
	defer context.AfterFunc(ctx, func() {
		// Requests under way are answered; ctx, being over, cannot bound that.
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
		defer cancel()
		stopped <- srv.Shutdown(limited)
	})()
	if err := srv.Serve(ln); ctx.Err() == nil {
		return fmt.Errorf("serve control socket: %w", err)
	}
	err := <-stopped
	p.handing.Wait()
	return err
}

// waitIdle returns a channel that is closed when the peer may stop by itself,
// or nil when it never may.
func (p *Peer) waitIdle(ctx context.Context) <-chan struct{} {
	if !p.cfg.ExitWhenIdle {
		return nil
	}
	timer := time.AfterFunc(idleStart, p.checkIdle)
	context.AfterFunc(ctx, func() { timer.Stop() })
	return p.idle
}

func (p *Peer) checkIdle() {
	if p.cfg.ExitWhenIdle && len(p.images.Mounts()) == 0 {
		p.idleOnce.Do(func() { close(p.idle) })
	}
}

// listen listens on a unix socket for root and takes over one that a dead
// process left behind.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, blob.Errorf(blob.Invalid, "listen on %s: another process answers there, a peer that still runs perhaps", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), ln.Close())
	}
	return ln, nil
}

// parseName turns an image name as users write it into what the library
// takes.
func parseName(s string) (image.Name, error) {
	ref, err := origin.ParseReference(s)
	if err != nil {
		return image.Name{}, err
	}
	return image.Name{Repository: ref.Repository, Tag: ref.Tag, Digest: ref.Digest}, nil
}

// Mounted is the answer to a mount request.
type Mounted struct {
	image.Mount
	// Size is the sum of the image's layer blobs in bytes.
	Size int64 `json:"size"`
	// Layers is the number of layers.
	Layers int `json:"layers"`
	// Timing says where the time went, in nanoseconds.
	Timing image.Timing `json:"timing"`
}

// Mount mounts the image with the given name, as users write it, on target,
// an absolute path. See image.Library.Mount.
func (p *Peer) Mount(ctx context.Context, name, target string) (Mounted, error) {
	n, err := parseName(name)
	if err != nil {
		return Mounted{}, err
	}
	m, t, err := p.images.Mount(ctx, n, target)
	p.checkIdle()
	if err != nil {
		return Mounted{}, err
	}
	p.log.Info("mounted", "image", m.Name, "manifest", m.Manifest, "target", m.Target, "native", m.Native,
		"resolve", t.Resolve, "index", t.Index, "metadata", t.Metadata, "mount", t.Mount)
	return Mounted{Mount: m, Size: m.Image.Size(), Layers: len(m.Image.Layers), Timing: t}, nil
}

// Unmount takes what is mounted on target away. See image.Library.Unmount.
func (p *Peer) Unmount(_ context.Context, target string, lazily bool) error {
	err := p.images.Unmount(target, lazily)
	p.checkIdle()
	return err
}

// LayerStatus says how much of a layer is here.
type LayerStatus struct {
	Digest digest.Digest `json:"digest"`
	// Size is the length of the layer blob in bytes.
	Size int64 `json:"size"`
	// DataSize and Present count bytes of file data: all, and those here.
	DataSize int64 `json:"dataSize"`
	Present  int64 `json:"present"`
	Complete bool  `json:"complete"`
}

// MountStatus is a mount and the state of its layers.
type MountStatus struct {
	image.Mount
	Layers []LayerStatus `json:"layers"`
}

// OriginStatus counts what registries were asked for since the peer started.
type OriginStatus struct {
	Requests int64 `json:"requests"`
	Bytes    int64 `json:"bytes"`
	Retries  int64 `json:"retries"`
}

// OriginStats returns the counters of what registries were asked for.
func (p *Peer) OriginStats() *origin.Stats { return p.origin.Stats() }

// StoreStats returns the counters of the blob store.
func (p *Peer) StoreStats() store.Stats { return p.store.Stats() }

// LayerStats returns the counters of all lazy layers together.
func (p *Peer) LayerStats() layerdev.Stats { return p.images.Stats() }

// PulledStatus is a layer that containerd pulled lazily.
type PulledStatus struct {
	// Image is how containerd's client called the image it was pulled for.
	Image string `json:"image"`
	LayerStatus
	// Mounted means that containers may run on it.
	Mounted bool `json:"mounted"`
}

// SnapshotterStatus says how containerd is served.
type SnapshotterStatus struct {
	Socket string         `json:"socket"`
	Pulled []PulledStatus `json:"pulled"`
}

// Status is what a peer knows about itself.
type Status struct {
	PID     int           `json:"pid"`
	Version string        `json:"version"`
	Since   time.Time     `json:"since"`
	DataDir string        `json:"dataDir"`
	Origin  OriginStatus  `json:"origin"`
	Mounts  []MountStatus `json:"mounts"`
	// Snapshotter is nil where containerd is not served.
	Snapshotter *SnapshotterStatus `json:"snapshotter,omitempty"`
	// Swarm is nil where no blobs are exchanged with other nodes.
	Swarm *SwarmStatus `json:"swarm,omitempty"`
	// Mirror is nil where there is none.
	Mirror *MirrorStatus `json:"mirror,omitempty"`
}

// Status returns the peer's state.
func (p *Peer) Status(ctx context.Context) (Status, error) {
	s := Status{PID: os.Getpid(), Version: p.cfg.Version, Since: p.since, DataDir: p.cfg.DataDir, Mounts: []MountStatus{}}
	st := p.origin.Stats()
	s.Origin = OriginStatus{Requests: st.Requests.Load(), Bytes: st.Bytes.Load(), Retries: st.Retries.Load()}
	for _, m := range p.images.Mounts() {
		ms := MountStatus{Mount: m}
		for _, l := range p.images.LayerStates(m.Image) {
			ms.Layers = append(ms.Layers, LayerStatus(l))
		}
		s.Mounts = append(s.Mounts, ms)
	}
	if p.containerd != nil {
		s.Snapshotter = &SnapshotterStatus{Socket: p.cfg.Snapshotter.Socket, Pulled: []PulledStatus{}}
		for _, l := range p.images.PulledStates() {
			s.Snapshotter.Pulled = append(s.Snapshotter.Pulled, PulledStatus{l.Image, LayerStatus(l.LayerState), l.Mounted})
		}
	}
	s.Mirror = p.mirrorStatus()
	if p.member != nil {
		var err error
		if s.Swarm, err = p.member.status(ctx); err != nil {
			return Status{}, err
		}
	}
	return s, nil
}
