package snapshot

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"

	"skimmer/internal/image"
)

// chain is an active snapshot or view and all it stands on.
type chain struct {
	id      string
	info    snapshots.Info
	parents []link // the topmost first
}

// link is a committed snapshot of a chain.
type link struct {
	id     string
	pulled *image.Pulled // nil for an ordinary one
}

// chain reads a snapshot's chain. It is called in a transaction.
func (s *Snapshotter) chain(ctx context.Context, key string) (chain, error) {
	id, info, _, err := storage.GetInfo(ctx, key)
	if err != nil {
		return chain{}, err
	}
	if info.Kind == snapshots.KindCommitted {
		// It answers that with the error the interface asks for.
		if _, err := storage.GetSnapshot(ctx, key); err != nil {
			return chain{}, err
		}
	}
	c := chain{id: id, info: info}
	for parent := info.Parent; parent != ""; {
		id, above, _, err := storage.GetInfo(ctx, parent)
		if err != nil {
			return chain{}, fmt.Errorf("read parent %s: %w", parent, err)
		}
		c.parents = append(c.parents, link{id, s.pulled(above)})
		parent = above.Parent
	}
	return c, nil
}

// part is one lower directory of a chain: an ordinary snapshot's folder, or
// lazy layers, bottom first.
type part struct {
	id        string
	layers    []image.Pulled
	whiteouts bool
}

// parts returns what a chain's lower directories are, the topmost first. The
// lazy layers at the bottom become one; others, with ordinary ones below them,
// stay alone, as what they delete is known only when they are stacked.
func (c chain) parts() []part {
	var parts []part
	bottom := len(c.parents)
	for bottom > 0 && c.parents[bottom-1].pulled != nil {
		bottom--
	}
	for _, l := range c.parents[:bottom] {
		if l.pulled != nil {
			parts = append(parts, part{layers: []image.Pulled{*l.pulled}, whiteouts: true})
		} else {
			parts = append(parts, part{id: l.id})
		}
	}
	if run := c.parents[bottom:]; len(run) > 0 {
		var layers []image.Pulled
		for _, l := range slices.Backward(run) {
			layers = append(layers, *l.pulled)
		}
		parts = append(parts, part{layers: layers})
	}
	return parts
}

// mounts mounts what is lazy of a chain and returns how to mount the whole.
func (s *Snapshotter) mounts(ctx context.Context, c chain) ([]mount.Mount, error) {
	var lower []string
	for _, p := range c.parts() {
		if p.layers == nil {
			lower = append(lower, s.upperPath(p.id))
			continue
		}
		path, err := s.cfg.Images.MountStack(ctx, p.layers, p.whiteouts)
		if err != nil {
			return nil, fmt.Errorf("mount snapshot %s: %w", c.info.Name, err)
		}
		lower = append(lower, path)
	}
	view := c.info.Kind == snapshots.KindView
	switch {
	case len(lower) == 0 && view:
		return bind(s.upperPath(c.id), "ro"), nil
	case len(lower) == 0:
		return bind(s.upperPath(c.id), "rw"), nil
	case len(lower) == 1 && view:
		return bind(lower[0], "ro"), nil
	}
	var options []string
	if !view {
		options = append(options, "workdir="+s.workPath(c.id), "upperdir="+s.upperPath(c.id))
	}
	options = append(options, "lowerdir="+strings.Join(lower, ":"))
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: append(options, s.options...)}}, nil
}

func bind(path, access string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: path, Options: []string{access, "rbind"}}}
}
