package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/erofs"
	"skimmer/internal/estargz"
)

// stack is a chain of lazy layers as one file system. It is what containers
// are started from; images that share their lower layers share those stacks.
type stack struct {
	// Constant.
	lib *Library
	id  string

	// Constant once it has been asked for.
	layers     []Layer // bottom first
	repository string  // where their tables of contents can be had
	whiteouts  bool    // it is to lie over other layers

	// mu is held while it is built, mounted and unmounted. Order: mu, then
	// Library.mu.
	mu      sync.Mutex
	devices []int    // the layer behind each device slot; nil before it is built
	path    string   // where it is mounted; empty where it is not
	native  bool     // the mount at path needs no layer device
	beside  bool     // a native mount beside the lazy one at path was tried
	pinned  []func() // release blobs that are held for it

	// mounted says that it may be mounted: set before it is, and cleared after.
	mounted atomic.Bool

	// Library.mu guards when it was last asked for, in ticks and by the clock.
	touched uint64
	used    time.Time
}

// stackID names the file system that the layers make. Only tables of contents
// go into metadata, but a stack is mounted over data, which a layer's digest
// names too.
func stackID(layers []Layer, whiteouts bool) string {
	hash := digest.SHA256.Hash()
	fmt.Fprintf(hash, "stack %d %t\n", recordVersion, whiteouts)
	for _, layer := range layers {
		fmt.Fprintf(hash, "%s\n", layerID(layer.Digest, layer.TOCDigest))
	}
	return digest.NewDigest(digest.SHA256, hash).Encoded()
}

// stack returns the stack of the layers, and notes that it is wanted.
func (l *Library) stack(layers []Layer, repository string, whiteouts bool) *stack {
	id := stackID(layers, whiteouts)
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stacks[id]
	if s == nil {
		s = &stack{lib: l, id: id}
		l.stacks[id] = s
	}
	if s.layers == nil {
		s.layers, s.repository, s.whiteouts = layers, repository, whiteouts
	}
	s.touched, s.used = l.tick(), time.Now()
	return s
}

// tick returns a number higher than any before. l.mu is held.
func (l *Library) tick() uint64 {
	l.ticks++
	return l.ticks
}

func (s *stack) metadata() string     { return s.id + ".erofs" }
func (s *stack) metadataPath() string { return s.lib.path("metadata", s.metadata()) }
func (s *stack) mountPath(native bool) string {
	if native {
		return s.lib.path("stacks", s.id, "native")
	}
	return s.lib.path("stacks", s.id, "lazy")
}

// build makes the stack's metadata, unless it is there.
func (s *stack) build(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buildLocked(ctx)
}

func (s *stack) buildLocked(ctx context.Context) error {
	if s.devices != nil {
		return nil
	}
	if info, err := erofs.Inspect(s.metadataPath()); err == nil {
		devices, err := s.match(info.TOCs)
		if err == nil {
			s.devices = devices
			return nil
		}
		s.lib.log.Warn("metadata is not what its name says: building it anew", "path", s.metadataPath(), "error", err)
	}
	tocs := make([]*estargz.TOC, len(s.layers))
	for i, layer := range s.layers {
		var err error
		if tocs[i], err = s.lib.toc(ctx, layer, s.repository); err != nil {
			return fmt.Errorf("build metadata: %w", err)
		}
	}
	err := writeFile(s.metadataPath(), func(f *os.File) error {
		info, err := erofs.Build(f, tocs, erofs.Options{KeepWhiteouts: s.whiteouts})
		if err != nil {
			return err
		}
		s.devices = append([]int{}, info.Devices...)
		return f.Sync() // the kernel will trust it
	})
	if err != nil {
		s.devices = nil
		return fmt.Errorf("build metadata: %w", err)
	}
	return nil
}

// match finds the layers behind the devices of existing metadata.
func (s *stack) match(tocs []digest.Digest) ([]int, error) {
	devices := []int{}
	next := 0
	for _, d := range tocs {
		for next < len(s.layers) && s.layers[next].TOCDigest != d {
			next++
		}
		if next == len(s.layers) {
			return nil, blob.Errorf(blob.Corrupt, "no layer has the table of contents %v", d)
		}
		devices = append(devices, next)
		next++
	}
	return devices, nil
}

// devicePaths returns the file behind each device slot: the layer's own data
// file where it is complete, else its file on the layer device.
func (l *Library) devicePaths(layers []Layer, devices []int) (paths []string, native bool) {
	native = true
	for _, i := range devices {
		id := layerID(layers[i].Digest, layers[i].TOCDigest)
		if ll := l.layer(id); ll != nil {
			if data, ok := ll.completeData(); ok {
				paths = append(paths, data)
				continue
			}
		}
		native = false
		paths = append(paths, l.device.Path(id))
	}
	return paths, native
}

// StackID names the stack of the layers, bottom first, for Collect.
func StackID(layers []Pulled, whiteouts bool) string { return stackID(plain(layers), whiteouts) }

func plain(pulled []Pulled) []Layer {
	layers := make([]Layer, len(pulled))
	for i, p := range pulled {
		layers[i] = p.Layer
	}
	return layers
}

// MountStack returns a folder on which the layers, bottom first, are mounted
// as one read-only file system; it mounts them where they are not. With
// whiteouts, which only a single layer can have, what the layer deletes is
// kept as overlayfs wants it, because other layers lie below.
//
// The mount stays until a Collect that does not find it in use. Errors: those
// of the Source, where tables of contents have to be read again; those of
// erofs.Mount.
func (l *Library) MountStack(ctx context.Context, layers []Pulled, whiteouts bool) (string, error) {
	for _, p := range layers {
		if l.layer(p.id()) == nil {
			return "", blob.Errorf(blob.NotFound, "mount layers of %s: layer %v is not known", p.Image, p.Digest)
		}
	}
	s := l.stack(plain(layers), layers[0].Repository, whiteouts)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.path != "" && (s.native || !l.allComplete(s)) {
		return s.path, nil
	}
	if err := s.buildLocked(ctx); err != nil {
		return "", fmt.Errorf("mount layers of %s: %w", layers[0].Image, err)
	}
	if err := s.mount(); err != nil {
		return "", fmt.Errorf("mount layers of %s: %w", layers[0].Image, err)
	}
	return s.path, nil
}

// allComplete reports whether a new mount of s would be native.
func (l *Library) allComplete(s *stack) bool {
	_, native := l.devicePaths(s.layers, s.devices)
	return native
}

// mount mounts the stack, or finds it mounted. s.mu is held.
func (s *stack) mount() error {
	// Under Library.mu, so that a layer is either mounted or given up.
	s.lib.mu.Lock()
	s.mounted.Store(true)
	for _, layer := range s.layers {
		if ll := s.lib.layers[layerID(layer.Digest, layer.TOCDigest)]; ll != nil {
			ll.givenUp = false
		}
	}
	s.lib.mu.Unlock()
	s.lib.kickFill()
	paths, native := s.lib.devicePaths(s.layers, s.devices)
	target := s.mountPath(native)
	here, err := erofs.Mounted(target)
	if err != nil {
		return err
	}
	if !here {
		if err := os.MkdirAll(target, 0o700); err != nil {
			return err
		}
		over := s.lib.mounting(s.layers[len(s.layers)-1])
		err := erofs.Mount(erofs.MountOptions{Metadata: s.metadataPath(), Devices: paths, Target: target, Direct: !native})
		over(err)
		if err != nil {
			return err
		}
	}
	s.path, s.native = target, native
	s.pin()
	now := time.Now()
	for _, layer := range s.layers {
		// Least recently used is told by this; a failure only makes it less so.
		_ = os.Chtimes(s.lib.layerDir(layerID(layer.Digest, layer.TOCDigest)), now, now)
	}
	s.lib.lastMiss.Store(time.Now().UnixNano())
	s.lib.log.Debug("mounted layers", "layers", len(s.layers), "native", native, "path", target)
	return nil
}

// unmount takes the stack's mounts away; whoever uses them keeps them.
func (s *stack) unmount() error {
	s.path, s.native, s.beside = "", false, false
	s.mounted.Store(false)
	s.unpin()
	for _, native := range []bool{true, false} {
		target := s.mountPath(native)
		here, err := erofs.Mounted(target)
		if err == nil && here {
			err = erofs.Unmount(target, true)
		}
		if err != nil {
			return err
		}
		if err := os.Remove(target); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	if err := os.Remove(filepath.Dir(s.mountPath(true))); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// sweepStacks takes away mounts an earlier process left: all that depended on
// a layer device that is gone, so that they are made anew when a container
// asks. With the device taken over, they are good.
func (l *Library) sweepStacks(deviceLost bool) {
	dirs, _ := filepath.Glob(l.path("stacks", "*", "lazy"))
	if !deviceLost {
		return
	}
	for _, dir := range dirs {
		for range 8 { // mounts may lie on top of each other
			if here, err := erofs.Mounted(dir); err != nil || !here {
				break
			}
			if err := erofs.Unmount(dir, true); err != nil {
				l.log.Warn("cannot take away a mount whose data is gone", "path", dir, "error", err)
				break
			}
		}
	}
}
