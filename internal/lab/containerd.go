package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"skimmer/internal/lab/child"
)

// ContainerdConfig says which containerd is started and what it is connected
// to. Only Dir has to be set.
type ContainerdConfig struct {
	// Dir holds root, state, socket, log and configuration; it is made where it
	// does not exist, and stays. A containerd started again in the same
	// directory finds its images and containers.
	Dir string
	// Binary is the program, of version 1.6 or later; empty means "containerd"
	// in PATH. The shim, and other programs containerd starts, are looked for in
	// its folder first.
	Binary string
	// Plugins are the proxy snapshotters: name to unix socket.
	Plugins map[string]string
	// Unpacker, where set, is the skimmer that decompresses layers for containerd, an
	// absolute path.
	Unpacker string
	// CRI turns the kubelet's interface on. Pods have to use the host's
	// network, as there are no CNI plugins.
	CRI bool
	// Snapshotter is what CRI uses; empty means overlayfs.
	Snapshotter string
	// PauseImage is what CRI runs in a pod's sandbox; empty leaves containerd's
	// own choice.
	PauseImage string
	// InsecureRegistries are registries, as host:port, that CRI speaks to over
	// plain HTTP.
	InsecureRegistries []string
	// Logger receives what is done; nil discards it. containerd's own log goes
	// to a file.
	Logger *slog.Logger
}

// Containerd is a running containerd of our own. Its methods are safe for
// concurrent use.
type Containerd struct {
	// Constant after StartContainerd.
	cfg     ContainerdConfig
	major   int
	log     *slog.Logger
	process *child.Process // nil where it could not be started

	mu      sync.Mutex
	stopped bool // mu guards: it was asked to end
	closed  bool // mu guards
}

// StartContainerd starts a containerd that shares nothing with others on the
// machine but runc's cgroups, and returns when its socket answers. It runs
// until Stop or Close, whatever becomes of ctx afterwards, so that whoever was
// interrupted can still clean up; the end of this process ends it too. It needs
// root. Where it fails, nothing is left running, and the error has the end of
// containerd's log.
func StartContainerd(ctx context.Context, cfg ContainerdConfig) (*Containerd, error) {
	c, err := newContainerd(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start containerd: %w", err), c.Close())
	}
	c.log.Info("containerd started", "version", c.major, "socket", c.Address())
	return c, nil
}

func newContainerd(ctx context.Context, cfg ContainerdConfig) (*Containerd, error) {
	c := &Containerd{log: cfg.Logger}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if cfg.Binary == "" {
		cfg.Binary = "containerd"
	}
	var err error
	if cfg.Binary, err = exec.LookPath(cfg.Binary); err != nil {
		return nil, err
	}
	if cfg.Binary, err = filepath.Abs(cfg.Binary); err != nil {
		return nil, err
	}
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, err
	}
	c.cfg = cfg
	version, err := ContainerdVersion(ctx, cfg.Binary)
	if err != nil {
		return nil, err
	}
	if c.major, err = majorOf(version); err != nil {
		return nil, err
	}
	// containerd adds ".ttrpc", and a socket's path may have 107 bytes (unix(7)).
	if n := len(c.cfg.socket()) + len(".ttrpc"); n > 107 {
		return nil, fmt.Errorf("the path of the socket would have %d bytes, more than 107: %s", n, c.cfg.socket())
	}
	if err := os.MkdirAll(cfg.Dir, 0o711); err != nil {
		return nil, err
	}
	if err := c.cfg.writeHosts(); err != nil {
		return nil, err
	}
	return c, os.WriteFile(filepath.Join(cfg.Dir, "config.toml"), []byte(cfg.configText(c.major)), 0o644)
}

// ContainerdVersion returns the version of a containerd program, such as 1.6.20
// or 2.4.2; an empty name means containerd in PATH.
func ContainerdVersion(ctx context.Context, binary string) (string, error) {
	if binary == "" {
		binary = "containerd"
	}
	out, err := exec.CommandContext(ctx, binary, "--version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("run %s --version: %w: %s", binary, err, out)
	}
	return parseVersion(string(out))
}

var versionPattern = regexp.MustCompile(`\bv?(\d+\.\d+\.\d+)`)

// parseVersion returns the version in what containerd --version prints:
// containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3.
func parseVersion(out string) (string, error) {
	// The import path has a version too, without dots.
	m := versionPattern.FindStringSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("read containerd's version: there is none in %q", strings.TrimSpace(out))
	}
	return m[1], nil
}

// majorOf returns the first number of a version that parseVersion returned.
func majorOf(version string) (int, error) {
	major, _, _ := strings.Cut(version, ".")
	return strconv.Atoi(major)
}

// start runs the program and waits until its socket answers.
func (c *Containerd) start(ctx context.Context) error {
	// A socket left by one that was killed would look like an answer.
	if err := os.Remove(c.Address()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	cmd := exec.Command(c.cfg.Binary, "--config", filepath.Join(c.cfg.Dir, "config.toml"))
	cmd.Env = c.environ()
	var err error
	if c.process, err = child.Start(cmd, child.Options{Log: c.LogPath(), Signal: syscall.SIGTERM}); err != nil {
		return err
	}
	return c.waitReady(ctx)
}

// environ returns the environment containerd runs in: nothing that would make
// it look for tracing or talk to systemd, and the shim of the same version
// first in PATH.
func (c *Containerd) environ() []string {
	env := slices.DeleteFunc(os.Environ(), func(s string) bool {
		return strings.HasPrefix(s, "OTEL_") || strings.HasPrefix(s, "NOTIFY_SOCKET=") ||
			strings.HasPrefix(s, "CONTAINERD_") || strings.HasPrefix(s, "PATH=")
	})
	return append(env, "PATH="+filepath.Dir(c.cfg.Binary)+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
}

// waitReady waits until the socket accepts connections; containerd opens it
// when its plugins are loaded.
func (c *Containerd) waitReady(ctx context.Context) error {
	limit := time.NewTimer(startLimit)
	defer limit.Stop()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", c.Address())
		if err == nil {
			return conn.Close()
		}
		select {
		case <-c.process.Exited():
			return fmt.Errorf("%s ended: %v; it said last: %s", c.cfg.Binary, c.process.State(), c.process.Tail())
		case <-limit.C:
			return fmt.Errorf("%s does not answer after %v; it said last: %s", c.cfg.Binary, startLimit, c.process.Tail())
		case <-ctx.Done():
			return ctx.Err()
		case <-again.C:
		}
	}
}

// Address returns the path of the socket.
func (c *Containerd) Address() string { return c.cfg.socket() }

// LogPath returns the file containerd logs to.
func (c *Containerd) LogPath() string { return filepath.Join(c.cfg.Dir, "containerd.log") }

// Version returns the major version, 1 or 2.
func (c *Containerd) Version() (major int) { return c.major }

// Exited is closed when the process has ended, for whatever reason.
func (c *Containerd) Exited() <-chan struct{} { return c.process.Exited() }

// Stop ends containerd, with force after five seconds, and waits until it is
// gone. Containers go on running, as they do with any containerd; see Close.
// Where it has ended already there is nothing to do, and that is an error only
// if nobody asked it to.
func (c *Containerd) Stop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.stop()
}

// stop is Stop for those who hold mu.
func (c *Containerd) stop() error {
	if c.process == nil || c.stopped {
		return nil
	}
	c.stopped = true
	select {
	case <-c.process.Exited():
		return fmt.Errorf("stop containerd: it had ended already: %v; it said last: %s", c.process.State(), c.process.Tail())
	default:
	}
	if _, err := c.process.End(stopLimit); err != nil {
		return fmt.Errorf("stop containerd: %w", err)
	}
	return nil
}

// Close stops containerd, kills containers that it has left running, with
// their shims, and takes away what is mounted below Dir. Dir itself stays.
// Calling it again does nothing.
func (c *Containerd) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	err := c.stop()
	killShims(c.Address(), c.log)
	if uerr := errors.Join(forgetContainers(filepath.Join(c.cfg.Dir, "state")), UnmountBelow(c.cfg.Dir)); uerr != nil {
		err = errors.Join(err, fmt.Errorf("clean up after containerd: %w", uerr))
	}
	return err
}

// UnmountBelow detaches every mount below dir, the last one first. It needs root,
// an absolute path without symlinks, and nobody who mounts there meanwhile.
func UnmountBelow(dir string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for _, point := range slices.Backward(mountPoints(string(data))) {
		if !strings.HasPrefix(point, dir+"/") {
			continue
		}
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// mountPoints returns the mount points in a mountinfo file (proc(5)), in which
// blanks and backslashes are written in octal.
func mountPoints(mountinfo string) (points []string) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(mountinfo) {
		if fields := strings.Fields(line); len(fields) > 4 {
			points = append(points, unescape.Replace(fields[4]))
		}
	}
	return points
}
