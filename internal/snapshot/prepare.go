package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"

	"skimmer/internal/blob"
	"skimmer/internal/image"
)

// Prepare implements snapshots.Snapshotter. Where labels say which layer of
// which image the snapshot is to hold, and that can be mounted lazily, the
// snapshot is committed at once and the answer is ErrAlreadyExists, as the
// interface asks of remote snapshotters. A layer that cannot is prepared to
// be unpacked, and one line of the log says why.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	labels, err := labelsOf(opts)
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot %s: %w", key, err)
	}
	if labels[targetLabel] != "" {
		switch err := s.prepareRemote(ctx, key, parent, labels); {
		case err == nil:
			return nil, fmt.Errorf("target snapshot %q: %w", labels[targetLabel], errdefs.ErrAlreadyExists)
		case !errors.Is(err, errNotRemote):
			return nil, err
		}
	}
	return s.create(ctx, snapshots.KindActive, key, parent, opts)
}

// errNotRemote means that the snapshot has to be made the ordinary way.
var errNotRemote = errors.New("not a remote snapshot")

// prepareRemote commits a lazy snapshot under the name labels ask for.
func (s *Snapshotter) prepareRemote(ctx context.Context, key, parent string, labels map[string]string) error {
	log := s.log.With("key", key, "parent", parent)
	req, wanted, err := s.request(ctx, key, labels)
	if err == nil && !wanted {
		return errNotRemote
	}
	var p image.Pulled
	if err == nil {
		limited, cancel := context.WithTimeout(ctx, s.cfg.PrepareTimeout)
		p, err = s.cfg.Images.PrepareLayer(limited, req)
		cancel()
	}
	if ctx.Err() != nil {
		return fmt.Errorf("prepare snapshot %s: %w", key, context.Cause(ctx))
	}
	if err != nil {
		log.Warn("layer cannot be mounted lazily, containerd unpacks it instead", "remote-snapshot-prepared", "false",
			"image", req.Called, "layer", req.Layer, "error", err)
		return errNotRemote
	}
	all, err := committedLabels(labels, p)
	if err != nil {
		return err
	}
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent, snapshots.WithLabels(labels)); err != nil {
			return err
		}
		_, err := storage.CommitActive(ctx, key, labels[targetLabel], snapshots.Usage{}, snapshots.WithLabels(all))
		return err
	})
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("prepare snapshot %s: %w", key, err)
	}
	if err == nil {
		s.cfg.Images.Adopt(p)
	}
	log.Info("prepared remote snapshot", "remote-snapshot-prepared", "true", "image", req.Called, "layer", req.Layer)
	return nil
}

// create makes an active snapshot or a view. Its record comes first, so that
// a Cleanup meanwhile finds that its lower layers are in use.
func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, opts []snapshots.Opt) ([]mount.Mount, error) {
	var c chain
	dir, err := s.makeFolder(kind)
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot %s: %w", key, err)
	}
	err = s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		snap, err := storage.CreateSnapshot(ctx, kind, key, parent, opts...)
		if err != nil {
			return err
		}
		if c, err = s.chain(ctx, key); err != nil {
			return err
		}
		if err := s.own(filepath.Join(dir, "fs"), c); err != nil {
			return err
		}
		return os.Rename(dir, filepath.Join(s.cfg.Root, "snapshots", snap.ID))
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("prepare snapshot %s: %w", key, err), os.RemoveAll(dir))
	}
	mounts, err := s.mounts(ctx, c)
	if err != nil {
		// The caller will not hear of the snapshot, so it must not be there.
		undo := context.WithoutCancel(ctx)
		return nil, errors.Join(err, s.Remove(undo, key), s.removeFolders(undo))
	}
	return mounts, nil
}

// makeFolder makes an ordinary snapshot's folder under a name of its own.
func (s *Snapshotter) makeFolder(kind snapshots.Kind) (string, error) {
	dir, err := os.MkdirTemp(filepath.Join(s.cfg.Root, "snapshots"), newPrefix)
	if err != nil {
		return "", err
	}
	err = os.Mkdir(filepath.Join(dir, "fs"), 0o755)
	if err == nil && kind == snapshots.KindActive {
		err = os.Mkdir(filepath.Join(dir, "work"), 0o711)
	}
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, nil
}

// own gives a snapshot's root folder to whom it belongs: the root of the user
// namespace that labels ask for, else the owner of its parent.
func (s *Snapshotter) own(dir string, c chain) error {
	uidMap, gidMap := c.info.Labels[snapshots.LabelSnapshotUIDMapping], c.info.Labels[snapshots.LabelSnapshotGIDMapping]
	if uidMap != "" || gidMap != "" {
		uid, err := hostRoot(uidMap)
		gid, err2 := hostRoot(gidMap)
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		return os.Lchown(dir, uid, gid)
	}
	if len(c.parents) == 0 || c.parents[0].pulled != nil {
		return nil
	}
	st, err := os.Stat(s.upperPath(c.parents[0].id))
	if err != nil {
		return fmt.Errorf("find the owner of the parent: %w", err)
	}
	if owner, ok := st.Sys().(*syscall.Stat_t); ok {
		return os.Lchown(dir, int(owner.Uid), int(owner.Gid))
	}
	return nil
}

// hostRoot returns the host's ID for ID 0 of a user namespace whose mappings
// are given as containerd's labels give them, container:host:length with
// commas between.
func hostRoot(mappings string) (int, error) {
	for m := range strings.SplitSeq(mappings, ",") {
		var n [3]uint32
		words := strings.Split(m, ":")
		if len(words) != len(n) {
			return 0, blob.Errorf(blob.Invalid, "decode user namespace label %q: want container:host:length", mappings)
		}
		for i, w := range words {
			v, err := strconv.ParseUint(w, 10, 32)
			if err != nil {
				return 0, blob.Errorf(blob.Invalid, "decode user namespace label %q: %w", mappings, err)
			}
			n[i] = uint32(v)
		}
		if n[0] == 0 && n[2] > 0 {
			return int(n[1]), nil
		}
	}
	return 0, blob.Errorf(blob.Invalid, "decode user namespace label %q: it maps no root", mappings)
}
