// Package snapshot is the containerd snapshotter: it answers containerd's
// snapshots service so that containers start from images that are mounted
// lazily, and unpacks the ordinary way what cannot be.
//
// A snapshot is one of two things. An ordinary one is a folder, stacked with
// overlayfs as containerd's own overlay snapshotter does. A lazy one is a
// layer of [skimmer/internal/image]: it has no folder, and a run of them at the
// bottom of a chain is one file system. Which it is stands in the snapshot's
// own record (label LayerLabel), so containerd's store is the only truth, and
// what a snapshot needs is known after a restart without asking anybody.
package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"

	"skimmer/internal/image"
)

// Labels of lazy snapshots.
const (
	// RemoteLabel is what containerd's remote snapshotters mark theirs with.
	RemoteLabel = "containerd.io/snapshot/remote"
	remoteValue = "remote snapshot"
	// LayerLabel holds the image.Pulled of the snapshot, as JSON.
	LayerLabel = "skimmer/layer"
)

// Images are the lazy layers. *image.Library implements it.
type Images interface {
	PrepareLayer(ctx context.Context, req image.LayerRequest) (image.Pulled, error)
	Adopt(image.Pulled)
	MountStack(ctx context.Context, layers []image.Pulled, whiteouts bool) (path string, err error)
	Collect(kept func() (image.Kept, error)) error
	Usage(image.Pulled) int64
}

// Config says what a Snapshotter stands on. Root, Images and ParseName are
// required.
type Config struct {
	// Root is the folder of ordinary snapshots and of the record of all.
	Root string
	// Images are the lazy layers.
	Images Images
	// ParseName takes an image's name as users write it apart.
	ParseName func(string) (image.Name, error)
	// Content, where set, is asked for manifests and configurations before the
	// registry is. Its context brings containerd's namespace.
	Content image.Content
	// PrepareTimeout limits the wait for a layer before it is unpacked
	// instead. Default 1 minute.
	PrepareTimeout time.Duration
	// Logger receives what a person may need to know. Default: discard.
	Logger *slog.Logger
}

// Snapshotter implements containerd's snapshots.Snapshotter and Cleaner. Its
// methods are safe for concurrent use.
type Snapshotter struct {
	// Constant after New.
	cfg     Config
	log     *slog.Logger
	ms      *storage.MetaStore
	options []string // of every overlay mount
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New opens the snapshotter kept in cfg.Root. It needs no network.
func New(cfg Config) (*Snapshotter, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.PrepareTimeout == 0 {
		cfg.PrepareTimeout = time.Minute
	}
	if err := os.MkdirAll(filepath.Join(cfg.Root, "snapshots"), 0o700); err != nil {
		return nil, fmt.Errorf("open snapshotter: %w", err)
	}
	if ok, err := fs.SupportsDType(cfg.Root); err != nil || !ok {
		return nil, errors.Join(fmt.Errorf("open snapshotter: the file system of %s does not say what directory entries are (d_type), which overlayfs needs; on xfs, make it anew with ftype=1", cfg.Root), err)
	}
	ms, err := openStore(cfg.Root)
	if err != nil {
		return nil, fmt.Errorf("open snapshotter: %w", err)
	}
	s := &Snapshotter{cfg: cfg, log: cfg.Logger, ms: ms}
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil {
		// With an index, one lower directory could not serve several mounts.
		s.options = append(s.options, "index=off")
	}
	if err := s.removeUnborn(); err != nil {
		s.log.Warn("cannot remove what an earlier process left", "error", err)
	}
	return s, nil
}

// storeTimeout limits the wait for another process to let go of the record.
const storeTimeout = 10 * time.Second

func openStore(root string) (*storage.MetaStore, error) {
	path := filepath.Join(root, "metadata.db")
	ms, err := storage.NewMetaStore(path, func(o *bolt.Options) error {
		o.Timeout = storeTimeout
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return ms, nil
}

// Layers returns the lazy layers of all snapshots kept in root, for who
// opens the image library before the snapshotter. A root that does not exist
// has none. What a damaged record says is left out with a warning.
func Layers(root string, log *slog.Logger) ([]image.Pulled, error) {
	if _, err := os.Stat(filepath.Join(root, "metadata.db")); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	ms, err := openStore(root)
	if err != nil {
		return nil, fmt.Errorf("read snapshots: %w", err)
	}
	s := &Snapshotter{ms: ms, log: log}
	// context.Background: reading a local file, which nothing interrupts.
	kept, err := s.kept(context.Background())
	if err := errors.Join(err, ms.Close()); err != nil {
		return nil, fmt.Errorf("read snapshots: %w", err)
	}
	return kept.Layers, nil
}

// Close frees the record. Mounts stay. Closing again does nothing.
func (s *Snapshotter) Close() error { return s.ms.Close() }

func (s *Snapshotter) upperPath(id string) string {
	return filepath.Join(s.cfg.Root, "snapshots", id, "fs")
}

func (s *Snapshotter) workPath(id string) string {
	return filepath.Join(s.cfg.Root, "snapshots", id, "work")
}

// Stat implements snapshots.Snapshotter.
func (s *Snapshotter) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	return info, err
}

// Update implements snapshots.Snapshotter. The labels that make a snapshot a
// lazy one stay whatever the caller asks for.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (updated snapshots.Info, err error) {
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		_, old, _, err := storage.GetInfo(ctx, info.Name)
		if err != nil {
			return err
		}
		if updated, err = storage.UpdateInfo(ctx, info, fieldpaths...); err != nil {
			return err
		}
		restore := false
		for _, key := range []string{LayerLabel, RemoteLabel} {
			if v, ok := old.Labels[key]; ok && updated.Labels[key] != v {
				if updated.Labels == nil {
					updated.Labels = make(map[string]string)
				}
				updated.Labels[key] = v
				restore = true
			}
		}
		if restore {
			updated, err = storage.UpdateInfo(ctx, updated, "labels")
		}
		return err
	})
	return updated, err
}

// Usage implements snapshots.Snapshotter. For a lazy snapshot it is what has
// arrived so far.
func (s *Snapshotter) Usage(ctx context.Context, key string) (usage snapshots.Usage, err error) {
	var id string
	var info snapshots.Info
	err = s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		id, info, usage, err = storage.GetInfo(ctx, key)
		return err
	})
	if err != nil {
		return snapshots.Usage{}, err
	}
	if p := s.pulled(info); p != nil {
		usage.Size = s.cfg.Images.Usage(*p)
		return usage, nil
	}
	if info.Kind == snapshots.KindActive {
		du, err := fs.DiskUsage(ctx, s.upperPath(id))
		if err != nil {
			return snapshots.Usage{}, fmt.Errorf("measure snapshot %s: %w", key, err)
		}
		usage = snapshots.Usage(du)
	}
	return usage, nil
}

// View implements snapshots.Snapshotter.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return s.create(ctx, snapshots.KindView, key, parent, opts)
}

// Mounts implements snapshots.Snapshotter. What is not mounted of lazy layers
// any more, after a reboot say, is mounted again.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	var c chain
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		c, err = s.chain(ctx, key)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("mount snapshot %s: %w", key, err)
	}
	return s.mounts(ctx, c)
}

// Commit implements snapshots.Snapshotter.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		id, _, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return err
		}
		usage, err := fs.DiskUsage(ctx, s.upperPath(id))
		if err != nil {
			return fmt.Errorf("commit snapshot %s: %w", key, err)
		}
		if _, err := storage.CommitActive(ctx, key, name, snapshots.Usage(usage), opts...); err != nil {
			return fmt.Errorf("commit snapshot %s: %w", key, err)
		}
		return nil
	})
}

// Walk implements snapshots.Snapshotter.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	return s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		if ids, err := storage.IDMap(ctx); errdefs.IsNotFound(err) || len(ids) == 0 {
			return nil // the store knows no difference between none and none yet
		}
		return storage.WalkInfo(ctx, fn, filters...)
	})
}

// pulled returns the layer of a lazy snapshot, nil for an ordinary one.
func (s *Snapshotter) pulled(info snapshots.Info) *image.Pulled {
	label, ok := info.Labels[LayerLabel]
	if !ok || info.Kind != snapshots.KindCommitted {
		return nil
	}
	var p image.Pulled
	err := json.Unmarshal([]byte(label), &p)
	if err == nil {
		err = errors.Join(p.Digest.Validate(), p.TOCDigest.Validate())
	}
	if err != nil {
		s.log.Error("record of a lazy snapshot is damaged; its image has to be pulled again", "snapshot", info.Name, "error", err)
		return nil
	}
	return &p
}
