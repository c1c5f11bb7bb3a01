package layerdev

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
	"skimmer/internal/layerdev/fuse"
)

const defaultReadaheadKiB = 1024

// ErrGone is the error of taking over a connection whose mount is not there
// any more: it was taken away, or its connection ended. It can only be mounted
// anew, without a Connection. Whatever was mounted over files of the old one
// fails from then on wherever the kernel has no data yet, and never recovers:
// the caller takes those mounts away.
var ErrGone = errors.New("mount of the connection is gone")

// Mount serves cfg.Files on the folder cfg.Dir. A mount there whose process
// is gone is taken away first; anything else mounted there is a Busy error,
// one that is alive and served by nobody too: whoever holds its connection
// passes it to Mount or lets it go. With a Connection it is ErrGone where
// that is not of a mount on cfg.Dir. It needs the right to mount and to open
// /dev/fuse. The caller ends the device with Close, Abort or Release.
func Mount(cfg DeviceConfig) (*Device, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Device{
		dir:   cfg.Dir,
		files: cfg.Files,
		log:   cfg.Logger,
		reads: make(map[uint64]*reading),
	}
	fd, err := connect(cfg)
	if err != nil {
		return nil, fmt.Errorf("mount layer device on %s: %w", cfg.Dir, err)
	}
	// Only now that it is mounted does the descriptor tell when it is
	// readable, which the runtime asks for here and then waits for without
	// holding a thread.
	d.conn = os.NewFile(uintptr(fd), "/dev/fuse")
	if d.raw, err = d.conn.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("mount layer device on %s: %w", cfg.Dir, err), d.conn.Close())
	}
	// context.Background: the device owns its lifetime and ends it itself.
	d.ctx, d.stop = context.WithCancel(context.Background())
	d.start()
	if cfg.Connection != nil {
		p := fuse.Notification(fuse.NotifyResend)
		var werr error
		cerr := d.raw.Control(func(fd uintptr) { _, werr = unix.Write(int(fd), p) })
		if err := errors.Join(cerr, werr); err != nil {
			return nil, errors.Join(fmt.Errorf("adopt layer device on %s: ask for unanswered requests: %w", cfg.Dir, err), d.Release())
		}
		return d, nil
	}
	if err := d.probePoll(); err != nil {
		return nil, errors.Join(fmt.Errorf("mount layer device on %s: %w", cfg.Dir, err), d.Abort())
	}
	if cfg.ReadaheadKiB == 0 {
		cfg.ReadaheadKiB = defaultReadaheadKiB
	}
	if err := setReadahead(cfg.Dir, cfg.ReadaheadKiB); err != nil {
		d.log.Warn("cannot raise readahead of the layer device: cold sequential reads will be slower",
			"dir", cfg.Dir, "error", err)
	}
	return d, nil
}

// connect returns a descriptor that is mounted and does not block.
func connect(cfg DeviceConfig) (int, error) {
	if cfg.Connection != nil {
		defer cfg.Connection.Close()
		return adopt(cfg.Connection, cfg.Dir)
	}
	if err := clearDir(cfg.Dir, cfg.Logger); err != nil {
		return -1, err
	}
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w", err)
	}
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read=%d", fd, maxRead)
	err = unix.Mount("skimmer", cfg.Dir, "fuse.skimmer", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, opts)
	if err != nil {
		return -1, errors.Join(fmt.Errorf("mount: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// adopt returns a descriptor of a connection, if it is that of the mount on
// dir.
func adopt(conn *os.File, dir string) (int, error) {
	fd, err := unix.FcntlInt(conn.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := errors.Join(unix.SetNonblock(fd, true), checkConnection(fd, dir)); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// checkConnection reports ErrGone unless fd is the living connection of the
// mount on dir. It asks only the kernel: nobody serves the mount yet.
func checkConnection(fd int, dir string) error {
	// A connection that ended says so to whoever polls.
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, 0); err != nil {
		return fmt.Errorf("poll connection: %w", err)
	}
	if fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0 {
		return fmt.Errorf("connection has ended: %w", ErrGone)
	}
	dev, root, err := mountedOn(dir)
	if err != nil {
		return err
	}
	if !root {
		return fmt.Errorf("nothing is mounted there: %w", ErrGone)
	}
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return err
	}
	if number, ok := connectionNumber(info); ok && number != dev {
		return fmt.Errorf("another file system is mounted there: %w", ErrGone)
	}
	return nil
}

// connectionNumber reads, from the fdinfo of a connection, the number of the
// device its mount has; kernels before 6.10 do not tell.
func connectionNumber(fdinfo []byte) (number uint64, ok bool) {
	for line := range strings.Lines(string(fdinfo)) {
		if value, found := strings.CutPrefix(line, "fuse_connection:"); found {
			number, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
			return number, err == nil
		}
	}
	return 0, false
}

// mountedOn returns the number of the device of what dir is on, and whether
// that is mounted on dir itself. A FUSE server is not asked.
func mountedOn(dir string) (dev uint64, root bool, err error) {
	var sx unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, 0, &sx); err != nil {
		return 0, false, &os.PathError{Op: "statx", Path: dir, Err: err}
	}
	// The kernel's own form of a device number, with 20 bits of minor.
	return uint64(sx.Dev_major)<<20 | uint64(sx.Dev_minor), sx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// answerLimit is how long what is mounted on a folder may take to say
// anything.
const answerLimit = 2 * time.Second

// alive reports what statfs says of dir, or Busy where it says nothing: a
// FUSE mount whose connection is open somewhere, and served by nobody.
func alive(dir string) error {
	said := make(chan error, 1)
	var wg sync.WaitGroup
	// Not waited for if it does not answer: nothing but the mount's end, or a
	// server, ends the call.
	wg.Go(func() {
		var st unix.Statfs_t
		said <- unix.Statfs(dir, &st)
	})
	t := time.NewTimer(answerLimit)
	defer t.Stop()
	select {
	case err := <-said:
		wg.Wait()
		return err
	case <-t.C:
		return blob.Errorf(blob.Busy, "what is mounted there is served by nobody, and some process holds its connection; end that, or take it away with: umount -f -l %s", dir)
	}
}

// clearDir makes sure that nothing is mounted on dir.
func clearDir(dir string, log *slog.Logger) error {
	for range 16 { // mounts may lie on top of each other
		err := alive(dir)
		if errors.Is(err, blob.Busy) {
			return err
		}
		if !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
			break
		}
		log.Info("taking away a mount whose process is gone", "dir", dir)
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("detach dead mount: %w", err)
		}
	}
	var here, parent unix.Stat_t
	if err := unix.Stat(dir, &here); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if err := unix.Stat(filepath.Dir(filepath.Clean(dir)), &parent); err != nil {
		return &os.PathError{Op: "stat", Path: filepath.Dir(dir), Err: err}
	}
	if here.Dev != parent.Dev {
		return blob.Errorf(blob.Busy, "another file system is mounted there, take it away first with: umount %s", dir)
	}
	return nil
}

// probePoll makes the kernel learn that files here cannot be polled. A Go
// program asks that of every file it opens, in a way that stops its scheduler
// until there is an answer; if the file is served by the same program, the
// answer would never come. Once the kernel has learned it, it does not ask.
func (d *Device) probePoll() error {
	fd, err := unix.Open(d.Path(probeName), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: d.Path(probeName), Err: err}
	}
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return errors.Join(err, unix.Close(fd))
}

// setReadahead raises how far the kernel reads ahead in files mounted at dir.
// INIT can only lower it. Files that are open already keep what they had.
func setReadahead(dir string, kib int) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	path := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(st.Dev), unix.Minor(st.Dev))
	return os.WriteFile(path, []byte(strconv.Itoa(kib)), 0)
}

func (d *Device) unmount(flags int) error {
	err := unix.Unmount(d.dir, flags)
	switch {
	case errors.Is(err, unix.EBUSY):
		return blob.Errorf(blob.Busy, "unmount layer device at %s: a file on it is in use", d.dir)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		// Somebody else took it away. What is left is to stop.
		return errors.Join(fmt.Errorf("unmount layer device at %s: it is not mounted any more", d.dir), d.Release())
	case err != nil:
		return fmt.Errorf("unmount layer device at %s: %w", d.dir, err)
	}
	d.stop()
	d.work.Wait()
	return d.conn.Close()
}
