package erofs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
)

// MountOptions say what to mount where.
type MountOptions struct {
	// Metadata is the path of a file system image written by Build.
	Metadata string
	// Devices are the paths of the files that hold the flat data of the layers
	// Info.Devices names, in that order.
	Devices []string
	// Target is the directory to mount on.
	Target string
	// NoSuid takes the effect of setuid bits and file capabilities, NoDev that
	// of device nodes. What is to be a container's root needs setuid programs.
	NoSuid, NoDev bool
	// Direct makes the kernel read the devices past their own page cache, so
	// that reading a file reads no further in the device than that file goes,
	// and data is cached once. A kernel without it (before 6.13), or a device
	// on a file system without direct I/O, is read as usual.
	Direct bool
}

// Mount mounts an image, read-only, straight from its files. The kernel opens
// the devices while Mount runs and holds them until the unmount; if a device
// is served by this process, it must go on answering. Mount cannot be
// interrupted.
//
// Errors: Invalid for the wrong number of devices, those of Inspect, and those
// of the system calls, with the kernel's own explanation where it gives one. Where the kernel cannot do it at all the error is
// errors.ErrUnsupported and says what is missing; without the privilege it is
// os.ErrPermission.
func Mount(opts MountOptions) error {
	opts.Direct = opts.Direct && !noDirect()
	fd, err := openMount(opts)
	if opts.Direct && errors.Is(err, unix.EINVAL) {
		// For whatever reason: what matters is that it works without.
		opts.Direct = false
		fd, err = openMount(opts)
	}
	if err != nil {
		return fmt.Errorf("mount %s on %s: %w", opts.Metadata, opts.Target, err)
	}
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, opts.Target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s on %s: attach: %w", opts.Metadata, opts.Target, err)
	}
	return nil
}

// Unmount takes away what is mounted on target; of several mounts, the last.
// Lazily means to detach it at once and free it when nobody uses it any more,
// where otherwise a file system in use is an error (unix.EBUSY).
func Unmount(target string, lazily bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if lazily {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(target, flags)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("unmount %s: nothing is mounted there: %w", target, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("unmount %s: a process still has a file or its working directory there: %w", target, err)
	}
	return fmt.Errorf("unmount %s: %w", target, err)
}

// openMount makes a mount that is attached nowhere and returns its
// descriptor; closing that ends an unattached mount.
func openMount(opts MountOptions) (int, error) {
	// The kernel mounts an image without its devices, too, and tells what is
	// wrong with an image to its log only.
	info, err := inspect(opts.Metadata)
	if err != nil {
		return -1, fmt.Errorf("inspect the image: %w", err)
	}
	if len(info.TOCs) != len(opts.Devices) {
		return -1, blob.Errorf(blob.Invalid, "the image needs %d devices, %d were given", len(info.TOCs), len(opts.Devices))
	}
	c, err := openContext()
	if err != nil {
		return -1, err
	}
	defer c.close()
	if err := c.set("source", opts.Metadata); err != nil {
		return -1, err
	}
	for _, d := range opts.Devices {
		if err := c.set("device", d); err != nil {
			return -1, err
		}
	}
	return c.mount(opts)
}

// fsContext is a file system being configured, see fsopen(2).
type fsContext struct {
	fd int
	// held are open files the configuration refers to.
	held []*os.File
}

func openContext() (*fsContext, error) {
	fd, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, explainOpen(err)
	}
	return &fsContext{fd: fd}, nil
}

func (c *fsContext) close() {
	unix.Close(c.fd)
	for _, f := range c.held {
		f.Close()
	}
}

// noDirect reports whether the kernel does not know how to read devices
// directly. It never learns, so it is asked once; a kernel that cannot be asked
// is asked again by mounting.
var noDirect = sync.OnceValue(func() bool {
	c, err := openContext()
	if err != nil {
		return false
	}
	defer c.close()
	return errors.Is(unix.FsconfigSetFlag(c.fd, "directio"), unix.EINVAL)
})

// set gives the file system a file.
func (c *fsContext) set(key, path string) error {
	name := path
	if len(path) > maxFsconfig {
		f, err := os.OpenFile(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		c.held = append(c.held, f)
		name = fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	}
	if err := unix.FsconfigSetString(c.fd, key, name); err != nil {
		return c.explain(fmt.Errorf("set %s=%s: %w", key, path, err))
	}
	return nil
}

// mount makes the file system and a mount of it.
func (c *fsContext) mount(opts MountOptions) (int, error) {
	if err := unix.FsconfigSetFlag(c.fd, "ro"); err != nil {
		return -1, c.explain(fmt.Errorf("set ro: %w", err))
	}
	if opts.Direct {
		if err := unix.FsconfigSetFlag(c.fd, "directio"); err != nil {
			return -1, c.explain(fmt.Errorf("set directio: %w", err))
		}
	}
	var before map[string]bool
	if opts.Direct {
		before = bdis()
	}
	if err := unix.FsconfigCreate(c.fd); err != nil {
		return -1, c.explain(explainCreate(err))
	}
	if opts.Direct {
		raiseReadahead(before)
	}
	attrs := unix.MOUNT_ATTR_RDONLY
	if opts.NoSuid {
		attrs |= unix.MOUNT_ATTR_NOSUID
	}
	if opts.NoDev {
		attrs |= unix.MOUNT_ATTR_NODEV
	}
	fd, err := unix.Fsmount(c.fd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, c.explain(fmt.Errorf("make the mount: %w", err))
	}
	return fd, nil
}

// explain adds what the kernel logged to the context to err. Messages start
// with a letter for their level and a space.
func (c *fsContext) explain(err error) error {
	var lines []string
	buf := make([]byte, 4096)
	for {
		n, rerr := unix.Read(c.fd, buf)
		if rerr != nil || n == 0 {
			break
		}
		_, text, _ := strings.Cut(strings.TrimSpace(string(buf[:n])), " ")
		lines = append(lines, strings.TrimSpace(text))
	}
	if len(lines) == 0 {
		return err
	}
	return fmt.Errorf("%w (kernel: %s)", err, strings.Join(lines, "; "))
}

// maxFsconfig is the longest string fsconfig(2) takes, in bytes. A longer path
// is given by way of an open file.
const maxFsconfig = 255

// wayOut says what a kernel needs.
const wayOut = "Linux 6.12 or newer with CONFIG_EROFS_FS and CONFIG_EROFS_FS_BACKED_BY_FILE is needed"

// explainOpen says why there is no EROFS to be had.
func explainOpen(err error) error {
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("kernel %s has no EROFS; %s: %w", kernelRelease(), wayOut, errors.ErrUnsupported)
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("kernel %s has no fsopen(2); %s: %w", kernelRelease(), wayOut, errors.ErrUnsupported)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("mounting needs root in the initial user namespace (CAP_SYS_ADMIN): %w", err)
	}
	return fmt.Errorf("open a file system context: %w", err)
}

// explainCreate says why an image could not be mounted.
func explainCreate(err error) error {
	if errors.Is(err, unix.ENOTBLK) {
		return fmt.Errorf("kernel %s does not mount EROFS from a file on this file system; %s, and a directory that is not on tmpfs: %w", kernelRelease(), wayOut, errors.ErrUnsupported)
	}
	return fmt.Errorf("create the file system: %w", err)
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "(unknown)"
	}
	return unix.ByteSliceToString(u.Release[:])
}
