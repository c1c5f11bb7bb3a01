package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/erofs"
)

// Mount is an image mounted on a folder.
type Mount struct {
	Target string    `json:"target"`
	Name   string    `json:"image"`
	Since  time.Time `json:"since"`
	Image  *Image    `json:"-"`
	// Manifest is the digest of the mounted image's manifest.
	Manifest digest.Digest `json:"manifest"`
	// Native says that all layers were complete when it was mounted, so the
	// mount does not need this process.
	Native bool `json:"native"`
}

// mounted is a Mount with what goes with it.
type mounted struct {
	Mount
	cancel  context.CancelFunc // ends its background work
	release []func()           // unpins its blobs
}

// Mount prepares the named image and mounts it, all layers merged, read-only
// on target, a folder that is made if it is not there. It returns when the
// mount is usable; data arrives as it is read. Mounting the same image where
// it is mounted already does nothing.
//
// Errors: those of Prepare; Invalid where something else is mounted by this
// library on target.
func (l *Library) Mount(ctx context.Context, name Name, target string) (Mount, Timing, error) {
	target, err := cleanTarget(target)
	if err != nil {
		return Mount{}, Timing{}, err
	}
	im, t, err := l.Prepare(ctx, name)
	if err != nil {
		return Mount{}, t, err
	}
	start := time.Now()
	m, err := l.mount(im, name.String(), target)
	t.Mount = time.Since(start)
	return m, t, err
}

func cleanTarget(target string) (string, error) {
	if !filepath.IsAbs(target) {
		return "", blob.Errorf(blob.Invalid, "mount on %q: the folder must be given as an absolute path", target)
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		return "", fmt.Errorf("mount on %s: %w", target, err)
	}
	// The kernel reports mounts by their real path; use the same.
	real, err := filepath.EvalSymlinks(target)
	if err != nil {
		return "", fmt.Errorf("mount on %s: %w", target, err)
	}
	return real, nil
}

func (l *Library) mount(im *Image, name, target string) (Mount, error) {
	l.mountMu.Lock()
	defer l.mountMu.Unlock()
	if old := l.mounts[target]; old != nil {
		if old.Manifest == im.Manifest {
			return old.Mount, nil
		}
		return Mount{}, blob.Errorf(blob.Invalid, "mount on %s: %s is mounted there; take it away first with: skimmer umount %s",
			target, old.Name, target)
	}
	paths, native := l.devicePaths(im.Layers, im.Devices)
	over := l.mounting(im.Layers[len(im.Layers)-1])
	err := erofs.Mount(erofs.MountOptions{Metadata: l.MetadataPath(im), Devices: paths, Target: target, Direct: !native})
	over(err)
	if err != nil {
		return Mount{}, fmt.Errorf("mount %s on %s: %w", name, target, err)
	}
	m := &mounted{Mount: Mount{
		Target: target, Name: name, Since: time.Now(), Image: im, Manifest: im.Manifest, Native: native,
	}}
	l.keep(m)
	if err := writeJSON(l.mountPath(target), m.Mount); err != nil {
		l.log.Warn("cannot remember a mount for the next start", "target", target, "error", err)
	}
	return m.Mount, nil
}

// keep enters m and starts what goes on while it is mounted. l.mountMu is held.
func (l *Library) keep(m *mounted) {
	l.mounts[m.Target] = m
	if m.Native {
		return
	}
	if l.cfg.Pin != nil {
		for _, layer := range m.Image.Layers {
			m.release = append(m.release, l.cfg.Pin(layer.Digest))
		}
	}
	var ctx context.Context
	ctx, m.cancel = context.WithCancel(l.ctx)
	l.lastMiss.Store(time.Now().UnixNano())
	if l.cfg.Background {
		l.work.Go(func() { l.complete(ctx, m.Image) })
	}
}

// drop forgets m. l.mountMu is held.
func (l *Library) drop(m *mounted) {
	delete(l.mounts, m.Target)
	if m.cancel != nil {
		m.cancel()
	}
	for _, release := range m.release {
		release()
	}
	if err := os.Remove(l.mountPath(m.Target)); err != nil && !errors.Is(err, os.ErrNotExist) {
		l.log.Warn("cannot forget a mount", "target", m.Target, "error", err)
	}
}

func (l *Library) mountPath(target string) string {
	return l.path("mounts", digest.FromString(target).Encoded()+".json")
}

// Unmount takes the image mounted on target away. Background work for it
// stops; what was fetched is kept.
//
// Errors: NotFound where this library has nothing mounted there; Busy where
// the mount is in use, unless lazily was asked for, which detaches it now and
// lets its users finish.
func (l *Library) Unmount(target string, lazily bool) error {
	target = filepath.Clean(target)
	if real, err := filepath.EvalSymlinks(target); err == nil {
		target = real
	}
	l.mountMu.Lock()
	defer l.mountMu.Unlock()
	m := l.mounts[target]
	if m == nil {
		return blob.Errorf(blob.NotFound, "unmount %s: nothing is mounted there by skimmer", target)
	}
	if err := erofs.Unmount(target, lazily); err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	l.drop(m)
	return nil
}

// Mounts returns what is mounted, by target.
func (l *Library) Mounts() []Mount {
	l.mountMu.Lock()
	defer l.mountMu.Unlock()
	ms := make([]Mount, 0, len(l.mounts))
	for _, m := range l.mounts {
		ms = append(ms, m.Mount)
	}
	slices.SortFunc(ms, func(a, b Mount) int { return strings.Compare(a.Target, b.Target) })
	return ms
}

// closeMounts takes away every mount that needs this process.
func (l *Library) closeMounts() error {
	l.mountMu.Lock()
	defer l.mountMu.Unlock()
	var errs []error
	for target, m := range l.mounts {
		if m.Native {
			continue
		}
		if err := erofs.Unmount(target, false); err != nil {
			l.log.Warn("mount is in use at shutdown: detaching it; its missing files will be unreadable",
				"target", target, "error", err)
			if err := erofs.Unmount(target, true); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		l.drop(m)
	}
	return errors.Join(errs...)
}

// restoreMounts takes over what an earlier process mounted: mounts that do
// not need a process, and all where the layer device was taken over, are kept
// as they are, others are mounted anew over the dead one, which is detached. Nothing that fails here keeps the library
// from opening.
func (l *Library) restoreMounts(takenOver bool) {
	paths, _ := filepath.Glob(l.path("mounts", "*.json"))
	for _, p := range paths {
		var m Mount
		err := readJSON(p, &m)
		if err == nil {
			err = l.restore(m, takenOver)
		}
		if err != nil {
			l.log.Warn("cannot restore a mount", "target", m.Target, "image", m.Name, "error", err)
			if err := os.Remove(p); err != nil {
				l.log.Warn("cannot forget it", "path", p, "error", err)
			}
		}
	}
}

func (l *Library) restore(m Mount, takenOver bool) error {
	m.Image = l.lookup(m.Manifest)
	if m.Image == nil {
		return blob.Errorf(blob.NotFound, "image %v is not kept any more", m.Manifest)
	}
	here, err := erofs.Mounted(m.Target)
	if err != nil {
		return err
	}
	if here && (m.Native || takenOver) {
		l.mountMu.Lock()
		defer l.mountMu.Unlock()
		l.keep(&mounted{Mount: m})
		return nil
	}
	if here {
		if err := erofs.Unmount(m.Target, true); err != nil {
			return err
		}
	}
	_, err = l.mount(m.Image, m.Name, m.Target)
	return err
}

// complete fetches what im still misses once reading has settled.
func (l *Library) complete(ctx context.Context, im *Image) {
	if l.settle(ctx) != nil {
		return
	}
	start := time.Now()
	if err := l.Complete(ctx, im); err != nil {
		if ctx.Err() == nil {
			l.log.Warn("background fetch failed; what is missing is fetched when it is read",
				"image", im.Repository, "manifest", im.Manifest, "error", err)
		}
		return
	}
	l.log.Info("image is complete: new mounts of it do not need this process",
		"image", im.Repository, "manifest", im.Manifest, "took", time.Since(start))
}
