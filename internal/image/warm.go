package image

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
)

// A stack that was mounted while something was missing of it stays as it is for
// the containers on it. Once nothing is missing, the next container gets a mount
// that does without this process; but the page cache belongs to a mount, and that
// one would begin with none. So it is made before anybody asks, and what the
// kernel has cached of the old one, which is what the start read, is read there.

const (
	// maxWarm is how many bytes of a stack are read for the next container at
	// most: a start reads less, and a container that has been running for long has
	// read what the next start does not need.
	maxWarm = 256 << 20
	// warmStep is how fine it is looked what is cached, in bytes.
	warmStep = 128 << 10
)

// switchStacks mounts without the layer device what is mounted with it and does
// not need it any more.
func (l *Library) switchStacks() {
	l.mu.Lock()
	all := slices.Collect(maps.Values(l.stacks))
	l.mu.Unlock()
	for _, s := range all {
		if l.ctx.Err() != nil {
			return
		}
		if err := s.goNative(); err != nil {
			l.log.Warn("cannot prepare the next start of a complete image; it will do so itself", "stack", s.id, "error", err)
		}
	}
}

// goNative mounts s natively beside its lazy mount, if it can be.
func (s *stack) goNative() error {
	start := time.Now()
	lazy, native, err := s.mountBeside()
	if err != nil || lazy == nil {
		return err
	}
	// Whoever takes the mounts away does so at once, and does not wait for this.
	defer lazy.Close()
	defer native.Close()
	bytes, files := s.warm(lazy, native)
	s.lib.log.Debug("mounted complete layers for the next start", "layers", len(s.layers), "files", files, "bytes", bytes, "took", time.Since(start))
	return nil
}

// mountBeside returns the roots of the lazy mount and of the new native one; nil
// where there is nothing to do.
func (s *stack) mountBeside() (lazy, native *os.File, err error) {
	if !s.mu.TryLock() {
		return nil, nil, nil // it is being built, mounted or unmounted: others need not wait for that
	}
	defer s.mu.Unlock()
	if s.path == "" || s.native || s.beside || !s.lib.allComplete(s) {
		return nil, nil, nil
	}
	s.beside = true // if it fails, it would fail, and be logged, every time it is looked for something to do
	if lazy, err = os.Open(s.path); err != nil {
		return nil, nil, err
	}
	if err = s.mount(); err == nil {
		native, err = os.Open(s.path)
	}
	if err != nil {
		lazy.Close()
		return nil, nil, err
	}
	return lazy, native, nil
}

// warm reads in native what is cached of lazy.
func (s *stack) warm(lazy, native *os.File) (bytes int64, files int) {
	seen := make(map[string]bool)
	for _, layer := range slices.Backward(s.layers) {
		ll := s.lib.layer(layerID(layer.Digest, layer.TOCDigest))
		if ll == nil {
			continue
		}
		open, err := ll.open()
		if err != nil {
			continue // it was removed: nobody will start from it
		}
		for _, f := range open.UsedFiles() {
			if seen[f.Name] {
				continue
			}
			seen[f.Name] = true
			n, err := warmFile(lazy, native, f.Name, maxWarm-bytes)
			if err != nil {
				s.lib.log.Debug("cannot read a file for the next start", "file", f.Name, "error", err)
			}
			if n > 0 {
				bytes, files = bytes+n, files+1
			}
			if bytes >= maxWarm || s.lib.ctx.Err() != nil {
				return bytes, files
			}
		}
	}
	return bytes, files
}

// warmFile reads in native what is cached in lazy of the file called name, and
// returns how many bytes that is; limit is where it stops, at a multiple of
// warmStep.
func warmFile(lazy, native *os.File, name string, limit int64) (n int64, err error) {
	from, err := openRegular(lazy, name)
	if from == nil {
		return 0, err
	}
	defer from.Close()
	to, err := openRegular(native, name)
	if to == nil {
		return 0, err
	}
	defer to.Close()
	st, err := from.Stat()
	if err != nil {
		return 0, err
	}
	for off := int64(0); off < st.Size() && n < limit; off += warmStep {
		r := blob.Range{Off: off, Len: min(warmStep, st.Size()-off)}
		cached, err := isCached(from, r)
		if err != nil {
			return n, err
		}
		if !cached {
			continue
		}
		if err := unix.Fadvise(int(to.Fd()), r.Off, r.Len, unix.FADV_WILLNEED); err != nil {
			return n, fmt.Errorf("read %s ahead: %w", name, err)
		}
		n += r.Len
	}
	return n, nil
}

// isCached reports whether the kernel has a page of r of f.
func isCached(f *os.File, r blob.Range) (bool, error) {
	var stat unix.Cachestat_t
	err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Off: uint64(r.Off), Len: uint64(r.Len)}, &stat, 0)
	if err != nil {
		return false, fmt.Errorf("ask what is cached: %w", err)
	}
	return stat.Cache > 0, nil
}

// openRegular opens the regular file of that path below root; nil where there is
// something else, as another layer may have put there.
func openRegular(root *os.File, name string) (*os.File, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(root.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT || err == unix.ENOTDIR || err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", name, err)
	}
	fd, err := unix.Openat2(int(root.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err == unix.ELOOP {
		return nil, nil // a folder on its way is a link now
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
