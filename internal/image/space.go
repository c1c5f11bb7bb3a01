package image

import (
	"cmp"
	"errors"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"skimmer/internal/erofs"
	"skimmer/internal/layerdev"
)

// pin holds the blobs of the stack's layers that are not complete in the
// store below. s.mu is held.
func (s *stack) pin() {
	if s.lib.cfg.Pin == nil || len(s.pinned) > 0 {
		return
	}
	for _, layer := range s.layers {
		if ll := s.lib.layer(layerID(layer.Digest, layer.TOCDigest)); ll != nil {
			if _, complete := ll.completeData(); !complete {
				s.pinned = append(s.pinned, s.lib.cfg.Pin(layer.Digest))
			}
		}
	}
}

// unpin undoes pin. s.mu is held.
func (s *stack) unpin() {
	for _, release := range s.pinned {
		release()
	}
	s.pinned = nil
}

// unpinComplete lets go of the blobs of stacks that do not need them any more.
func (l *Library) unpinComplete() {
	l.mu.Lock()
	all := slices.Collect(maps.Values(l.stacks))
	l.mu.Unlock()
	for _, s := range all {
		s.mu.Lock()
		if len(s.pinned) > 0 && l.allComplete(s) {
			s.unpin()
		}
		s.mu.Unlock()
	}
}

// Kept is what somebody who pulled layers still has.
type Kept struct {
	// Layers are all layers that were adopted and are still wanted.
	Layers []Pulled
	// Stacks are the StackIDs of the mounts that are in use.
	Stacks map[string]bool
}

// Collect frees what was pulled and is not kept any more: layers that nobody
// keeps, with what is fetched of them, their metadata and their blobs, and
// mounts that have been in nobody's use for an hour, or are of such layers.
// kept is asked once; what is prepared, mounted or adopted meanwhile stays
// whatever it says.
func (l *Library) Collect(kept func() (Kept, error)) error {
	l.collecting.Lock()
	defer l.collecting.Unlock()
	l.mu.Lock()
	since := l.tick()
	l.mu.Unlock()
	k, err := kept()
	if err != nil {
		return err
	}
	gone := l.collectLayers(since, k.Layers)
	errs := []error{l.collectStacks(since, k.Stacks)}
	if len(gone) > 0 {
		errs = append(errs, l.remove(gone))
	}
	return errors.Join(errs...)
}

// idleFor is how long a stack stays mounted that no container stands on: the
// next one finds what the kernel has cached of it.
const idleFor = time.Hour

// collectStacks takes the mounts away that are not in use, those of earlier
// processes included. l.collecting is held.
func (l *Library) collectStacks(since uint64, used map[string]bool) error {
	entries, err := os.ReadDir(l.path("stacks"))
	if err != nil {
		return err
	}
	l.collected, l.used = since, used
	var errs []error
	for _, e := range entries {
		if !used[e.Name()] && !l.lingers(e.Name()) {
			errs = append(errs, l.asked(e.Name()).drop(since))
		}
	}
	return errors.Join(errs...)
}

// lingers reports whether a stack in nobody's use is to stay mounted.
func (l *Library) lingers(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stacks[id]
	if s == nil || s.layers == nil || time.Since(s.used) > idleFor {
		return false
	}
	return !slices.ContainsFunc(s.layers, func(layer Layer) bool {
		return l.layers[layerID(layer.Digest, layer.TOCDigest)] == nil
	})
}

// asked returns the stack of that ID, also if nobody has asked for it since
// Open.
func (l *Library) asked(id string) *stack {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stacks[id]
	if s == nil {
		s = &stack{lib: l, id: id}
		l.stacks[id] = s
	}
	return s
}

// dropIdle unmounts stacks that no container stood on when snapshots were last
// looked at, and that nobody has asked for since.
func (l *Library) dropIdle() {
	l.collecting.Lock()
	defer l.collecting.Unlock()
	entries, err := os.ReadDir(l.path("stacks"))
	for _, e := range entries {
		if l.used != nil && !l.used[e.Name()] {
			err = errors.Join(err, l.asked(e.Name()).drop(l.collected))
		}
	}
	if err != nil {
		l.log.Warn("cannot unmount what is not in use", "error", err)
	}
}

// drop unmounts the stack and forgets it, unless it was asked for since. It is
// forgotten last, so that whoever asks for it meanwhile waits for the unmount.
func (s *stack) drop(since uint64) error {
	wanted := func() bool {
		s.lib.mu.Lock()
		defer s.lib.mu.Unlock()
		return s.touched > since
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if wanted() {
		return nil
	}
	if err := s.unmount(); err != nil {
		return err
	}
	s.lib.mu.Lock()
	defer s.lib.mu.Unlock()
	if s.touched <= since {
		delete(s.lib.stacks, s.id)
	}
	return nil
}

// collectLayers makes unknown what nobody keeps, and returns it.
func (l *Library) collectLayers(since uint64, kept []Pulled) []*lazyLayer {
	wanted := make(map[string]bool)
	for _, p := range kept {
		wanted[p.id()] = true
	}
	for _, m := range l.Mounts() {
		for _, layer := range m.Image.Layers {
			wanted[layerID(layer.Digest, layer.TOCDigest)] = true
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, im := range l.images {
		for _, layer := range im.Layers {
			wanted[layerID(layer.Digest, layer.TOCDigest)] = true
		}
	}
	var gone []*lazyLayer
	for id, ll := range l.layers {
		if wanted[id] || ll.touched > since || time.Now().Before(ll.coming) {
			continue
		}
		delete(l.layers, id)
		delete(l.nodes, ll.node)
		delete(l.tocs, id)
		gone = append(gone, ll)
	}
	if len(gone) > 0 {
		clear(l.tags)
		clear(l.indexings) // what they say about layers may not be true any more
	}
	return gone
}

// remove frees what belongs to layers that are not known any more.
func (l *Library) remove(gone []*lazyLayer) error {
	var errs []error
	for _, ll := range gone {
		ll.mu.Lock()
		ll.gone = true
		ll.mu.Unlock()
		errs = append(errs, ll.close(), l.discard(l.layerDir(ll.id)))
		d := ll.sources()[0].Digest
		if l.cfg.Forget != nil && !l.needsBlob(d.String()) {
			l.cfg.Forget(d)
		}
		l.log.Debug("removed a layer nobody keeps", "image", ll.image, "layer", d)
	}
	return errors.Join(append(errs, l.sweepMetadata())...)
}

// needsBlob reports whether a known layer is of that blob.
func (l *Library) needsBlob(d string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ll := range l.layers {
		if ll.sources()[0].Digest.String() == d {
			return true
		}
	}
	return false
}

// discard removes a folder: out of its place at once, then from the disk.
func (l *Library) discard(dir string) error {
	tmp, err := os.MkdirTemp(l.path("trash"), "")
	if err != nil {
		return err
	}
	if err := os.Rename(dir, filepath.Join(tmp, "layer")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, os.RemoveAll(tmp))
	}
	return os.RemoveAll(tmp)
}

// sweepMetadata removes the metadata of stacks that cannot be asked for any
// more, because not all of their layers are known.
func (l *Library) sweepMetadata() error {
	paths, err := filepath.Glob(l.path("metadata", "*.erofs"))
	if err != nil {
		return err
	}
	l.mu.Lock()
	known := make(map[string]bool)
	for _, ll := range l.layers {
		known[ll.toc.String()] = true
	}
	for _, s := range l.stacks {
		known[s.metadataPath()] = true
	}
	for _, im := range l.images {
		known[l.MetadataPath(im)] = true
	}
	l.mu.Unlock()
	var errs []error
	for _, p := range paths {
		if known[p] {
			continue
		}
		info, err := erofs.Inspect(p)
		for _, d := range info.TOCs {
			if !known[d.String()] {
				err = fs.ErrNotExist
			}
		}
		if err != nil {
			errs = append(errs, os.Remove(p))
		}
	}
	return errors.Join(errs...)
}

// sweepFolders removes what earlier processes left that nobody knows of.
// Nothing that fails here keeps the library from opening.
func (l *Library) sweepFolders() {
	errs := []error{os.RemoveAll(l.path("trash")), os.Mkdir(l.path("trash"), 0o700)}
	dirs, _ := filepath.Glob(l.path("layers", "*", "*"))
	for _, dir := range dirs {
		if l.layer(filepath.Base(dir)) == nil {
			errs = append(errs, l.discard(dir))
		}
	}
	left, _ := filepath.Glob(l.path("*", ".new-*"))
	for _, p := range left {
		if !strings.HasPrefix(p, l.path("device")) {
			errs = append(errs, os.Remove(p))
		}
	}
	if err := errors.Join(append(errs, l.sweepMetadata())...); err != nil {
		l.log.Warn("cannot remove what an earlier process left", "error", err)
	}
}

// room returns how many bytes layers may take before the low water mark is
// reached; without marks, all there are.
func (l *Library) room() int64 {
	if l.cfg.HighWater == 0 {
		return math.MaxInt64
	}
	room := l.cfg.LowWater
	l.mu.Lock()
	ids := slices.Collect(maps.Keys(l.layers))
	l.mu.Unlock()
	for _, id := range ids {
		size, _ := l.usage(id)
		room -= size
	}
	return room
}

// makeSpace gives up the data of layers that are not mounted, the least
// recently used first, when all together take more than the high water mark.
func (l *Library) makeSpace() {
	if l.cfg.HighWater == 0 {
		return
	}
	l.making.Lock()
	defer l.making.Unlock()
	type candidate struct {
		ll   *lazyLayer
		size int64
		used time.Time
	}
	var all []candidate
	var total int64
	l.mu.Lock()
	layers := make([]*lazyLayer, 0, len(l.layers))
	for _, ll := range l.layers {
		layers = append(layers, ll)
	}
	l.mu.Unlock()
	for _, ll := range layers {
		size, used := l.usage(ll.id)
		total += size
		all = append(all, candidate{ll, size, used})
	}
	if total <= l.cfg.HighWater {
		return
	}
	l.dropIdle()
	mounted := l.mountedTOCs()
	slices.SortFunc(all, func(a, b candidate) int { return cmp.Compare(a.used.UnixNano(), b.used.UnixNano()) })
	for _, c := range all {
		if total <= l.cfg.LowWater {
			return
		}
		if c.size == 0 || mounted[c.ll.toc] || !l.giveUp(c.ll) {
			continue
		}
		total -= c.size
		l.log.Info("gave up the data of a layer that is not mounted, for space", "image", c.ll.image, "layer", c.ll.sources()[0].Digest, "bytes", c.size)
	}
	if total > l.cfg.HighWater {
		l.log.Warn("layers take more space than they should, and none can be given up: they are mounted", "bytes", total, "highWater", l.cfg.HighWater)
	}
}

// usage returns the bytes a layer's data takes on disk, and when it was last
// mounted.
func (l *Library) usage(id string) (int64, time.Time) {
	var data, folder unix.Stat_t
	dir := l.layerDir(id)
	if unix.Stat(filepath.Join(dir, "data"), &data) != nil || unix.Stat(dir, &folder) != nil {
		return 0, time.Time{}
	}
	return data.Blocks * 512, time.Unix(folder.Mtim.Unix())
}

// mountedTOCs returns the tables of contents of all layers on which a stack
// is mounted, by whichever process.
func (l *Library) mountedTOCs() map[digest.Digest]bool {
	mounted := make(map[digest.Digest]bool)
	targets, _ := filepath.Glob(l.path("stacks", "*", "*"))
	for _, target := range targets {
		info, err := erofs.Inspect(l.path("metadata", filepath.Base(filepath.Dir(target))+".erofs"))
		if err != nil {
			l.log.Warn("cannot tell what is mounted", "path", target, "error", err)
		}
		for _, d := range info.TOCs {
			mounted[d] = true
		}
	}
	return mounted
}

// giveUp makes ll a layer of which nothing is present, if it is not mounted.
func (l *Library) giveUp(ll *lazyLayer) bool {
	for _, m := range l.Mounts() {
		for _, layer := range m.Image.Layers {
			if layerID(layer.Digest, layer.TOCDigest) == ll.id {
				return false
			}
		}
	}
	// Whoever mounts it from now on does so after this.
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.layers[ll.id] != ll || l.mountedLayers()[ll.id] {
		return false
	}
	err := ll.close()
	if err == nil {
		err = layerdev.Clear(l.layerDir(ll.id))
	}
	if err != nil {
		l.log.Warn("cannot give up the data of a layer", "layer", ll.sources()[0].Digest, "error", err)
		return false
	}
	ll.givenUp = true
	return true
}

// Usage returns the bytes that p takes on disk.
func (l *Library) Usage(p Pulled) int64 {
	size, _ := l.usage(p.id())
	return size
}
