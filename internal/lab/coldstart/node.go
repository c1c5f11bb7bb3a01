package coldstart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"

	"skimmer/internal/lab"
)

// namespace is containerd's, for all that is started.
const namespace = "skimmer-bench"

// nodeConfig says what a node is to be.
type nodeConfig struct {
	mode     Mode
	dir      string // must not exist
	registry string // what it will pull from, host:port
	member   *member
	more     string // added to our daemon's configuration, as YAML
	profiles string // a folder of profiles that our daemon finds; "" for none
}

// node is a machine that has never seen an image: a containerd and, where the
// mode has one, a snapshotter, both with empty directories.
type node struct {
	mode       Mode
	dir, fifos string
	data       string // our daemon's data directory; "" where it is not ours
	control    string // our daemon's control socket; "" where it is not ours
	daemon     *proc  // nil where containerd does it itself
	peer       *proc  // behind the mirror; nil without
	mirror     int    // the port of the mirror containerd has before the registry; 0 without
	containerd *lab.Containerd
	client     *containerd.Client
	log        *slog.Logger
}

// newNode starts a node. It runs until close, whatever becomes of ctx.
func newNode(ctx context.Context, cfg Config, c nodeConfig) (*node, error) {
	n := &node{mode: c.mode, dir: c.dir, fifos: filepath.Join(c.dir, "fifos"), log: cfg.Logger}
	if err := n.open(ctx, cfg, c); err != nil {
		return nil, errors.Join(fmt.Errorf("start node for %s: %w", c.mode, err), n.close())
	}
	return n, nil
}

func (n *node) open(ctx context.Context, cfg Config, nc nodeConfig) error {
	if !cfg.sharedDisk {
		if err := newDisk(ctx, n.dir); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(n.fifos, 0o711); err != nil {
		return err
	}
	c := lab.ContainerdConfig{Dir: filepath.Join(n.dir, "c"), Binary: cfg.Containerd, Logger: cfg.Logger}
	var err error
	d := daemonConfig{registry: nc.registry, containerd: filepath.Join(c.Dir, "containerd.sock"), member: nc.member, more: nc.more}
	if n.mode.mirrored() || n.mode.ours() && cfg.Mirror {
		if n.mirror, err = freePort(ctx); err != nil {
			return err
		}
		d.mirror = n.mirror
		if cfg.Unpack {
			if c.Unpacker, err = filepath.Abs(cfg.Skimmer); err != nil {
				return err
			}
		}
	}
	if n.mode.mirrored() {
		p := d
		p.mode, p.dir, p.socket = Skimmer, filepath.Join(n.dir, "p"), filepath.Join(n.dir, "p.sock")
		if n.peer, err = startDaemon(ctx, cfg, p); err != nil {
			return err
		}
	}
	if name := n.mode.snapshotter(); name != string(Overlayfs) {
		d.mode, d.dir, d.socket = Mode(name), filepath.Join(n.dir, "d"), filepath.Join(n.dir, "s.sock")
		c.Plugins = map[string]string{name: d.socket}
		if n.mode.ours() {
			n.data, n.control = filepath.Join(d.dir, "data"), d.control()
			if err := n.giveProfiles(nc.profiles); err != nil {
				return err
			}
		}
		if n.daemon, err = startDaemon(ctx, cfg, d); err != nil {
			return err
		}
	}
	if n.containerd, err = lab.StartContainerd(ctx, c); err != nil {
		return err
	}
	n.client, err = containerd.New(n.containerd.Address(), containerd.WithDefaultNamespace(namespace), containerd.WithTimeout(10*time.Second))
	return err
}

// freePort returns a port of this machine that nobody listens on.
func freePort(ctx context.Context) (int, error) {
	ln, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	port := ln.Addr().(*net.TCPAddr).Port
	return port, ln.Close()
}

// forget makes containerd forget an image and all it has of it.
func (n *node) forget(ctx context.Context, ref string) error {
	return n.client.ImageService().Delete(ctx, ref, images.SynchronousDelete())
}

// logs returns the end of what the daemons of the node logged.
func (n *node) logs() string {
	if n.daemon == nil {
		return "the end of containerd's log:\n" + tail(n.containerd.LogPath())
	}
	return "the end of the snapshotter's log:\n" + tail(n.daemon.log)
}

// close ends the node and removes everything it had.
func (n *node) close() error {
	var errs []error
	if n.client != nil {
		errs = append(errs, n.client.Close())
	}
	if n.containerd != nil {
		errs = append(errs, n.containerd.Close())
	}
	for _, p := range []*proc{n.daemon, n.peer} {
		if p != nil {
			errs = append(errs, p.close())
		}
	}
	// A daemon may have left helpers, and what is complete mounted, on purpose.
	lab.KillProcesses(n.dir, n.log)
	// What is still mounted must not be emptied.
	if err := lab.UnmountBelow(n.dir); err != nil {
		errs = append(errs, err)
	} else {
		errs = append(errs, removeDisk(n.dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up after node for %s: %w", n.mode, err)
	}
	return nil
}

// slowDrop is how long forgetting takes before it is said what it may wait for.
const slowDrop = 30 * time.Second

// dropCaches makes the kernel forget what it can of all files.
func dropCaches(log *slog.Logger) error {
	// A file system that is being unmounted holds it, and that may never end.
	defer time.AfterFunc(slowDrop, func() {
		log.Warn("the kernel does not drop its caches; if a FUSE file system hangs, echo 1 > /sys/fs/fuse/connections/N/abort ends it", "waited", slowDrop)
	}).Stop()
	// What is not written yet cannot be forgotten; waiting for the disk to
	// finish what others write would take as long as it likes.
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0); err != nil {
		return fmt.Errorf("drop page cache: %w", err)
	}
	return nil
}

// removeTraces removes the empty folders that runc and the kernel keep for the
// namespace, outside of any node's directory. Those somebody uses stay.
func removeTraces() {
	_ = os.Remove(filepath.Join("/run/containerd/runc", namespace))
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, _ := filepath.Glob(filepath.Join(pattern, namespace)) // fails only on a bad pattern
		for _, dir := range dirs {
			_ = os.Remove(dir)
		}
	}
}
