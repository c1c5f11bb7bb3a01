package layerdev

import (
	"errors"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
)

// left mounts a device and leaves the mount to the connection it returns.
func left(t *testing.T, dir string) *os.File {
	t.Helper()
	d, err := Mount(DeviceConfig{Dir: dir, Files: fileSet{"f": &memFile{p: []byte("old")}}})
	must(t, err)
	conn, err := d.Connection()
	must(t, err)
	must(t, d.Release())
	<-d.Done()
	return conn
}

// Taking over a mount that is gone is an error of its own, after which the
// folder can be mounted on anew.
func TestTakeOverOfWhatIsGone(t *testing.T) {
	needRoot(t)
	for name, end := range map[string]func(dir string) error{
		"unmounted": func(dir string) error { return unix.Unmount(dir, unix.MNT_FORCE) },
		"detached":  func(dir string) error { return unix.Unmount(dir, unix.MNT_DETACH) },
		"aborted":   func(dir string) error { return abortConnection(dir) },
		"covered":   func(dir string) error { return unix.Mount("none", dir, "tmpfs", 0, "") },
		"other fuse": func(dir string) error {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				return err
			}
			other := left(t, dir)
			t.Cleanup(func() { other.Close() })
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			t.Cleanup(func() {
				for unix.Unmount(dir, unix.MNT_DETACH) == nil {
				}
			})
			conn := left(t, dir)
			// An open file keeps a detached mount, and its connection, alive.
			fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
			must(t, err)
			if name == "unmounted" {
				must(t, unix.Close(fd))
			} else {
				defer unix.Close(fd)
			}
			must(t, end(dir))
			if _, err := Mount(DeviceConfig{Dir: dir, Files: fileSet{}, Connection: conn}); !errors.Is(err, ErrGone) {
				t.Fatalf("take over: %v, want that it is gone", err)
			}
			if name == "covered" || name == "other fuse" {
				return
			}
			d := mountAt(t, dir, fileSet{"f": &memFile{p: []byte("new")}}, nil)
			if got, err := os.ReadFile(d.Path("f")); err != nil || string(got) != "new" {
				t.Errorf("after mounting anew: %q, %v", got, err)
			}
		})
	}
}

func abortConnection(dir string) error {
	dev, _, err := mountedOn(dir)
	if err != nil {
		return err
	}
	ctl, err := os.MkdirTemp("", "fusectl")
	if err != nil {
		return err
	}
	defer os.Remove(ctl)
	if err := unix.Mount("none", ctl, "fusectl", 0, ""); err != nil {
		return err
	}
	defer unix.Unmount(ctl, unix.MNT_DETACH)
	return os.WriteFile(ctl+"/"+strconv.FormatUint(dev, 10)+"/abort", []byte("1"), 0)
}

// A mount that is held and not served is not waited for.
func TestHeldMountIsBusy(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	conn := left(t, dir)
	if _, err := Mount(DeviceConfig{Dir: dir, Files: fileSet{}}); !errors.Is(err, blob.Busy) {
		t.Errorf("mount over one that is held: %v, want busy", err)
	}
	d, err := Mount(DeviceConfig{Dir: dir, Files: fileSet{}, Connection: conn})
	must(t, err)
	must(t, d.Abort()) // What was given up may not have been answered yet.
	<-d.Done()
}
