// Package peer is the node: it stacks the sources a byte passes on its way
// from a registry to a container, mounts images on top of them, and answers
// local commands on a control socket.
package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/image"
	"skimmer/internal/layerdev"
	"skimmer/internal/origin"
	"skimmer/internal/store"
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
	// Store limits the blob store; its Dir and Logger are filled in.
	Store store.Config
	// IOTimeout, MaxReadahead, Background and BackgroundDelay are passed to the
	// lazy images; see image.Config.
	IOTimeout       time.Duration
	MaxReadahead    int64
	Background      bool
	BackgroundDelay time.Duration
	// ExitWhenIdle makes Run return once nothing is mounted any more: for a
	// peer that was started for one mount.
	ExitWhenIdle bool
	// Logger receives what a person may need to know. Default: discard.
	Logger *slog.Logger
}

// idleStart is how long a peer with ExitWhenIdle waits for its first mount.
const idleStart = time.Minute

// Peer is a node daemon. New builds it, Run serves until its context ends,
// Close frees it. Its methods are safe for concurrent use.
type Peer struct {
	// Constant after New.
	cfg    Config
	log    *slog.Logger
	since  time.Time
	origin *origin.Origin
	store  *store.Store
	images *image.Library

	// FromOrigin counts what was read from registries as blobs.
	FromOrigin blob.Counter

	idle      chan struct{} // closed when nothing is mounted any more
	idleOnce  sync.Once
	closeOnce sync.Once
}

// New opens the data directory and builds the node on it; it needs root,
// /dev/fuse, and no network. Mounts left by an earlier process are restored.
// A data directory is used by one process at a time.
func New(cfg Config) (_ *Peer, err error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	p := &Peer{cfg: cfg, log: cfg.Logger, since: time.Now(), idle: make(chan struct{})}
	cfg.Origin.Logger = cfg.Logger
	if p.origin, err = origin.New(cfg.Origin); err != nil {
		return nil, fmt.Errorf("start peer: %w", err)
	}
	cfg.Store.Dir = cfg.DataDir
	cfg.Store.Logger = cfg.Logger
	if p.store, err = store.Open(cfg.Store); err != nil {
		return nil, fmt.Errorf("start peer: %w", err)
	}
	p.images, err = image.Open(image.Config{
		Dir:             cfg.DataDir,
		Source:          p.source(),
		Resolver:        p.origin,
		IOTimeout:       cfg.IOTimeout,
		MaxReadahead:    cfg.MaxReadahead,
		Background:      cfg.Background,
		BackgroundDelay: cfg.BackgroundDelay,
		Pin:             p.store.Pin,
		Logger:          cfg.Logger,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start peer: %w", err), p.store.Close())
	}
	return p, nil
}

// source is the path of a byte, nearest hop first: what the store has is
// served from disk, the rest comes from the origin, counted, and is kept.
func (p *Peer) source() blob.Source {
	return p.store.Through(blob.Meter(p.origin, &p.FromOrigin))
}

// Close unmounts what cannot live without the process and writes down what
// the next one wants to know. Closing again does nothing.
func (p *Peer) Close() error {
	var err error
	p.closeOnce.Do(func() { err = errors.Join(p.images.Close(), p.store.Close(), p.origin.Close()) })
	if err != nil {
		return fmt.Errorf("stop peer: %w", err)
	}
	return nil
}

// Run answers the control socket until ctx ends, or, with ExitWhenIdle, until
// nothing is mounted. ready is called once the socket answers.
func (p *Peer) Run(ctx context.Context, ready func()) error {
	ln, err := listenControl(p.cfg.Socket)
	if err != nil {
		return err
	}
	srv := &http.Server{
		Handler:           p.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	var serving sync.WaitGroup
	served := make(chan error, 1)
	serving.Go(func() { served <- srv.Serve(ln) })
	p.log.Info("peer is ready", "socket", p.cfg.Socket, "dataDir", p.cfg.DataDir)
	ready()

	select {
	case <-ctx.Done():
	case <-p.waitIdle(ctx):
		p.log.Info("nothing is mounted any more: stopping, as asked")
	case err := <-served:
		return fmt.Errorf("serve control socket: %w", err)
	}
	// Requests under way are answered; ctx, being over, cannot bound that.
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err = srv.Shutdown(stop)
	serving.Wait()
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

// listenControl listens on the control socket and takes over one that a dead
// process left behind.
func listenControl(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen on control socket: %w", err)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, blob.Errorf(blob.Invalid, "listen on control socket %s: another peer answers there", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on control socket: %w", err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on control socket: %w", err), ln.Close())
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

// Status is what a peer knows about itself.
type Status struct {
	PID     int           `json:"pid"`
	Since   time.Time     `json:"since"`
	DataDir string        `json:"dataDir"`
	Origin  OriginStatus  `json:"origin"`
	Mounts  []MountStatus `json:"mounts"`
}

// Status returns the peer's state.
func (p *Peer) Status(context.Context) (Status, error) {
	s := Status{PID: os.Getpid(), Since: p.since, DataDir: p.cfg.DataDir, Mounts: []MountStatus{}}
	st := p.origin.Stats()
	s.Origin = OriginStatus{Requests: st.Requests.Load(), Bytes: st.Bytes.Load(), Retries: st.Retries.Load()}
	for _, m := range p.images.Mounts() {
		ms := MountStatus{Mount: m}
		for _, l := range p.images.LayerStates(m.Image) {
			ms.Layers = append(ms.Layers, LayerStatus(l))
		}
		s.Mounts = append(s.Mounts, ms)
	}
	return s, nil
}
