package optimize

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
)

// Workload is what is run in an image to see what it reads.
type Workload struct {
	// Args is the command; empty means that of the image.
	Args []string
	// HostNetwork runs it in the machine's network instead of one of its own
	// without connections.
	HostNetwork bool
	// WaitFor is how long it runs before it is stopped, which then is how it
	// is meant to end; 0 means until it ends by itself.
	WaitFor time.Duration
	// Stop, where set, stops it as WaitFor does, once it is closed.
	Stop <-chan struct{}
	// Output receives what it writes to standard output and error; nil
	// discards that.
	Output io.Writer
}

const (
	// stopLimit is how long a workload may take to end when it is asked to.
	stopLimit = 5 * time.Second
	// tailSize is how much of the output an error shows, in bytes.
	tailSize = 1 << 10
	// overlaySuper is what file systems say they are that cannot be under an
	// overlay's writable part.
	overlaySuper = 0x794c7630
)

// container is a workload on its way. What is made for it is below dir.
type container struct {
	dir, id string
	runc    string
	config  ocispec.ImageConfig
	mounts  []string // in the order they were made
}

// findRunc returns the path of runc.
func findRunc() (string, error) {
	path, err := exec.LookPath("runc")
	if err != nil {
		return "", blob.Errorf(blob.Invalid, "find runc, which runs the workload: %w; install it (the package runc in Debian, Ubuntu, Fedora and Alpine)", err)
	}
	return path, nil
}

// mount puts a writable layer over the image mounted on lower.
func (c *container) mount(lower string) error {
	layers := filepath.Join(c.dir, "writable")
	if err := os.MkdirAll(layers, 0o711); err != nil {
		return fmt.Errorf("make writable layer: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(layers, &st); err != nil {
		return fmt.Errorf("make writable layer: %w", err)
	}
	if st.Type == overlaySuper {
		// As in a container: an overlay cannot write to another.
		if err := unix.Mount("tmpfs", layers, "tmpfs", 0, "mode=0711"); err != nil {
			return fmt.Errorf("make writable layer in memory: %w", err)
		}
		c.mounts = append(c.mounts, layers)
	}
	upper, work := filepath.Join(layers, "upper"), filepath.Join(layers, "work")
	for _, dir := range []string{upper, work, c.rootfs()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make writable layer: %w", err)
		}
	}
	options := "lowerdir=" + lower + ",upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", c.rootfs(), "overlay", 0, options); err != nil {
		return fmt.Errorf("mount writable layer over the image: %w", err)
	}
	c.mounts = append(c.mounts, c.rootfs())
	return nil
}

// unmount takes away what mount made.
func (c *container) unmount() error {
	var errs []error
	for i := len(c.mounts) - 1; i >= 0; i-- {
		if err := unix.Unmount(c.mounts[i], unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", c.mounts[i], err))
		}
	}
	c.mounts = nil
	return errors.Join(errs...)
}

func (c *container) rootfs() string { return filepath.Join(c.dir, "bundle", "rootfs") }

// prepare writes the bundle that runc runs.
func (c *container) prepare(ctx context.Context, w Workload) error {
	args := w.Args
	if len(args) == 0 {
		args = append(append(args, c.config.Entrypoint...), c.config.Cmd...)
	}
	if len(args) == 0 {
		return blob.Errorf(blob.Invalid, "run workload: the image has no command; name one behind --")
	}
	cwd := c.config.WorkingDir
	if cwd == "" {
		cwd = "/"
	}
	opts := []oci.SpecOpts{
		oci.WithDefaultSpec(), oci.WithRootFSPath(c.rootfs()), oci.WithDefaultPathEnv,
		oci.WithEnv(c.config.Env), oci.WithProcessArgs(args...), oci.WithProcessCwd(cwd), oci.WithCgroup(""),
	}
	if c.config.User != "" {
		opts = append(opts, oci.WithUser(c.config.User))
	}
	if w.HostNetwork {
		opts = append(opts, oci.WithHostNamespace("network"), oci.WithHostHostsFile, oci.WithHostResolvconf)
	}
	// The library wants a namespace of containerd's, for a default we replace.
	ctx = namespaces.WithNamespace(ctx, "skimmer")
	spec, err := oci.GenerateSpec(ctx, nil, &containers.Container{ID: c.id}, opts...)
	if err != nil {
		return blob.Errorf(blob.Invalid, "describe the workload's container: %w", err)
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("describe the workload's container: %w", err)
	}
	if err := os.WriteFile(filepath.Join(c.dir, "bundle", "config.json"), data, 0o600); err != nil {
		return fmt.Errorf("describe the workload's container: %w", err)
	}
	return nil
}

// run runs the workload until it ends, is stopped, or ctx ends. Nothing of it
// is left afterwards.
func (c *container) run(ctx context.Context, w Workload) error {
	limited, cancel := context.WithCancel(ctx)
	if w.WaitFor > 0 {
		timer := time.AfterFunc(w.WaitFor, cancel)
		defer timer.Stop()
	}
	var waiting sync.WaitGroup
	defer func() {
		cancel()
		waiting.Wait()
	}()
	waiting.Go(func() {
		select {
		case <-w.Stop:
			cancel()
		case <-limited.Done():
		}
	})
	tail := &tail{next: w.Output}
	// runc's own program is not in the image, which this process serves: Go
	// may wait for it.
	cmd := exec.CommandContext(limited, c.runc, "--root", c.state(), "run", "--bundle", filepath.Join(c.dir, "bundle"), c.id)
	cmd.Stdout, cmd.Stderr = tail, tail
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // runc passes it on
	cmd.WaitDelay = stopLimit
	err := cmd.Run()
	stopped := ctx.Err() == nil && limited.Err() != nil
	return errors.Join(c.finish(ctx, err, stopped, tail), c.remove(ctx))
}

// finish says whether the workload ended as it was meant to.
func (c *container) finish(ctx context.Context, err error, stopped bool, tail *tail) error {
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil || stopped && (errors.As(err, new(*exec.ExitError)) || errors.Is(err, context.Canceled) || errors.Is(err, exec.ErrWaitDelay)):
		return nil
	}
	return blob.Errorf(blob.Invalid, "run workload: it failed, so what it read says little: %w: %s", err, tail)
}

func (c *container) state() string { return filepath.Join(c.dir, "runc") }

// remove ends what is left of the container. It is done even if ctx ended.
func (c *container) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 4*stopLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, c.runc, "--root", c.state(), "delete", "--force", c.id).CombinedOutput()
	if err != nil {
		return fmt.Errorf("remove the workload's container: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// tail passes output on and keeps its end.
type tail struct {
	next io.Writer
	kept []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	t.kept = t.kept[max(0, len(t.kept)-tailSize):]
	if t.next != nil {
		return t.next.Write(p)
	}
	return len(p), nil
}

// String returns the end of the output as one line.
func (t *tail) String() string {
	s := strings.Join(strings.FieldsFunc(string(t.kept), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	if s == "" {
		return "it wrote nothing"
	}
	return s
}
