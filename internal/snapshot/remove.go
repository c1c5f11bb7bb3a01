package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"

	"skimmer/internal/image"
)

// newPrefix is what the name of a folder starts with that has no record yet.
const newPrefix = "new-"

// Remove implements snapshots.Snapshotter. Its space is freed by Cleanup,
// which containerd calls after each garbage collection.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	return s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		if _, _, err := storage.Remove(ctx, key); err != nil {
			return fmt.Errorf("remove snapshot %s: %w", key, err)
		}
		return nil
	})
}

// Cleanup implements snapshots.Cleaner: it frees what removed snapshots took,
// mounts and fetched data of lazy layers included.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	err := s.removeFolders(ctx)
	err = errors.Join(err, s.cfg.Images.Collect(func() (image.Kept, error) { return s.kept(ctx) }))
	if err != nil {
		return fmt.Errorf("clean up snapshots: %w", err)
	}
	return nil
}

// removeFolders removes the folders of snapshots that are no more.
func (s *Snapshotter) removeFolders(ctx context.Context) error {
	var gone []string
	// A write transaction, so that none that makes a folder is under way.
	err := s.ms.WithTransaction(ctx, true, func(ctx context.Context) error {
		ids, err := storage.IDMap(ctx)
		if err != nil && !errdefs.IsNotFound(err) { // not found: there has been no snapshot ever
			return err
		}
		entries, err := os.ReadDir(filepath.Join(s.cfg.Root, "snapshots"))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if _, ok := ids[e.Name()]; !ok && !strings.HasPrefix(e.Name(), newPrefix) {
				gone = append(gone, filepath.Join(s.cfg.Root, "snapshots", e.Name()))
			}
		}
		return nil
	})
	errs := []error{err}
	for _, dir := range gone {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// removeUnborn removes folders that an earlier process had made no record of.
func (s *Snapshotter) removeUnborn() error {
	dirs, err := filepath.Glob(filepath.Join(s.cfg.Root, "snapshots", newPrefix+"*"))
	errs := []error{err}
	for _, dir := range dirs {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// kept returns what snapshots still need: every lazy layer, and the stacks
// below those that a container may have mounted.
func (s *Snapshotter) kept(ctx context.Context) (image.Kept, error) {
	k := image.Kept{Stacks: make(map[string]bool)}
	err := s.ms.WithTransaction(ctx, false, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			if info.Kind == snapshots.KindCommitted {
				if p := s.pulled(info); p != nil {
					k.Layers = append(k.Layers, *p)
				}
				return nil
			}
			c, err := s.chain(ctx, info.Name)
			if err != nil {
				return err
			}
			for _, p := range c.parts() {
				if p.layers != nil {
					k.Stacks[image.StackID(p.layers, p.whiteouts)] = true
				}
			}
			return nil
		})
	})
	if errdefs.IsNotFound(err) {
		return k, nil // there has been no snapshot ever
	}
	return k, err
}
