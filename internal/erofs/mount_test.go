package erofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// TestMountLongPaths mounts an image whose files have paths longer than
// fsconfig takes, with a comma, which mount(8) could not pass.
func TestMountLongPaths(t *testing.T) {
	var layers []layer
	for i := range 128 {
		layers = append(layers, makeLayer(reg(fmt.Sprintf("own%d", i), i+1)))
	}
	im := build(t, Options{}, layers...)
	want := see(t, mountImage(t, im))

	far := filepath.Join(t.TempDir(), strings.Repeat("d,", 100), strings.Repeat("e", 200))
	if err := os.MkdirAll(far, 0o755); err != nil {
		t.Fatal(err)
	}
	move := func(path string) string {
		to := filepath.Join(far, filepath.Base(path))
		if err := os.Rename(path, to); err != nil {
			t.Fatal(err)
		}
		return to
	}
	moved := image{path: move(im.path)}
	for _, d := range im.devices {
		moved.devices = append(moved.devices, move(d))
	}
	fds := openFiles(t)
	same(t, "mount of long paths", want, see(t, mountImage(t, moved)))
	if now := openFiles(t); now != fds {
		t.Errorf("%d open files after the mount, %d before", now, fds)
	}
}

func openFiles(t *testing.T) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestMountFlags(t *testing.T) {
	im := build(t, Options{}, everything())
	for _, opts := range []MountOptions{{}, {NoSuid: true}, {NoDev: true}, {NoSuid: true, NoDev: true}} {
		opts.Metadata, opts.Devices, opts.Target = im.path, im.devices, t.TempDir()
		if err := Mount(opts); err != nil {
			t.Fatal(err)
		}
		var st unix.Statfs_t
		if err := unix.Statfs(opts.Target, &st); err != nil {
			t.Fatal(err)
		}
		if st.Flags&unix.ST_RDONLY == 0 || (st.Flags&unix.ST_NOSUID != 0) != opts.NoSuid || (st.Flags&unix.ST_NODEV != 0) != opts.NoDev {
			t.Errorf("%+v: flags %x", opts, st.Flags)
		}
		if err := os.WriteFile(filepath.Join(opts.Target, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("write: %v", err)
		}
		if err := Unmount(opts.Target, false); err != nil {
			t.Error(err)
		}
	}
}

// Reading past the page cache shows the same; kernels that can do it are told.
func TestMountDirect(t *testing.T) {
	im := build(t, Options{}, everything())
	want := see(t, mountImage(t, im))
	target := t.TempDir()
	before := bdis()
	if err := Mount(MountOptions{Metadata: im.path, Devices: im.devices, Target: target, Direct: true}); err != nil {
		t.Fatal(err)
	}
	for path := range bdis() {
		if p, err := os.ReadFile(path + "/read_ahead_kb"); !before[path] && err == nil && strings.TrimSpace(string(p)) != strconv.Itoa(directReadaheadKiB) && !noDirect() {
			t.Errorf("readahead of a direct mount is %q KiB", p)
		}
	}
	defer Unmount(target, true)
	same(t, "direct mount", want, see(t, target))
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, " "+target+" ") && strings.Contains(line, "directio") == noDirect() {
			t.Errorf("kernel does not know direct reading: %v, mount is %s", noDirect(), line)
		}
	}
}

func TestUnmount(t *testing.T) {
	im := build(t, Options{}, everything())
	target := t.TempDir()
	if err := Unmount(target, false); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "nothing is mounted") {
		t.Errorf("unmount of nothing: %v", err)
	}
	if err := Mount(MountOptions{Metadata: im.path, Devices: im.devices, Target: target}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{target: true, target + "/bin": false, filepath.Dir(target): false, target + "/nowhere": false} {
		if got, err := Mounted(path); got != want || err != nil {
			t.Errorf("Mounted(%s) = %v, %v", path, got, err)
		}
	}
	f, err := os.Open(filepath.Join(target, "bin/su"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Unmount(target, false); !errors.Is(err, unix.EBUSY) {
		t.Errorf("unmount of what is in use: %v", err)
	}
	if err := Unmount(target, true); err != nil {
		t.Error(err)
	}
	if list, err := os.ReadDir(target); err != nil || len(list) > 0 {
		t.Errorf("still mounted after a lazy unmount: %v, %v", list, err)
	}
	if _, err := f.ReadAt(make([]byte, 10), 60000); err != nil {
		t.Errorf("read of an open file after a lazy unmount: %v", err)
	}
}

func TestMountErrors(t *testing.T) {
	im := build(t, Options{}, everything())
	target := t.TempDir()
	good := MountOptions{Metadata: im.path, Devices: im.devices, Target: target}
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, make([]byte, 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		change func(*MountOptions)
		is     error
		says   string
	}{
		"no image":          {func(o *MountOptions) { o.Metadata += "x" }, os.ErrNotExist, ""},
		"not an image":      {func(o *MountOptions) { o.Metadata = garbage }, blob.Corrupt, "not an EROFS image"},
		"no device":         {func(o *MountOptions) { o.Devices = []string{garbage + "x"} }, os.ErrNotExist, ""},
		"too few devices":   {func(o *MountOptions) { o.Devices = nil }, blob.Invalid, "needs 1 devices, 0 were given"},
		"too many devices":  {func(o *MountOptions) { o.Devices = append(slices.Clone(o.Devices), garbage) }, blob.Invalid, "2 were given"},
		"no target":         {func(o *MountOptions) { o.Target += "/x" }, os.ErrNotExist, "attach"},
		"no such long path": {func(o *MountOptions) { o.Metadata = filepath.Dir(garbage) + strings.Repeat("/x", 200) }, os.ErrNotExist, ""},
	} {
		opts := good
		c.change(&opts)
		err := Mount(opts)
		if !errors.Is(err, c.is) || !strings.Contains(fmt.Sprint(err), c.says) || !strings.Contains(fmt.Sprint(err), opts.Metadata) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestExplanations covers what this kernel does not do.
func TestExplanations(t *testing.T) {
	for _, err := range []error{explainOpen(unix.ENODEV), explainOpen(unix.ENOSYS), explainCreate(unix.ENOTBLK)} {
		if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "6.12") || !strings.Contains(err.Error(), "CONFIG_EROFS_FS_BACKED_BY_FILE") || !strings.Contains(err.Error(), kernelRelease()) {
			t.Errorf("no way out: %v", err)
		}
	}
	if err := explainOpen(unix.EPERM); !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "root") {
		t.Errorf("not root: %v", err)
	}
}

func TestInspect(t *testing.T) {
	im := build(t, Options{}, everything(), makeLayer(dir("d", 0o755)), makeLayer(reg("x", 1)))
	info, err := Inspect(im.path)
	if err != nil {
		t.Fatal(err)
	}
	want := im.info
	want.Devices = nil
	if fmt.Sprint(info) != fmt.Sprint(want) {
		t.Errorf("got %+v, want %+v", info, want)
	}
	p, err := os.ReadFile(im.path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(p)
	flipped[superOffset+90]++
	for what, p := range map[string][]byte{"empty": nil, "cut": p[:len(p)-blockSize], "longer": append(bytes.Clone(p), 0), "flipped": flipped, "zeros": make([]byte, len(p))} {
		if err := os.WriteFile(im.path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Inspect(im.path); !errors.Is(err, blob.Corrupt) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := Inspect(im.path + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no image: %v", err)
	}
}

func TestProbe(t *testing.T) {
	if os.Geteuid() != 0 {
		missing(t, "mounting needs root")
	}
	dir := t.TempDir()
	f, err := Probe(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	if !f.EROFS.OK {
		missing(t, f.EROFS.Reason)
	}
	if !f.FileBacked.OK || !f.FileDevice.OK || f.FUSEDevice.OK || f.FUSEDevice.Reason == "" {
		t.Errorf("features %+v", f)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
		t.Errorf("probing left %v behind (%v)", list, err)
	}

	fuse := filepath.Join(dir, "fuse")
	serveFile(t, fuse, blobtest.Bytes(1, 3*blockSize))
	if f, err = Probe(dir, fuse); err != nil || !f.FUSEDevice.OK {
		t.Errorf("features %+v, %v", f, err)
	}
	if _, err := Probe(dir, "/dev/null"); err == nil || !errors.Is(err, io.EOF) {
		t.Errorf("an empty file: %v", err)
	}
	if _, err := Probe(filepath.Join(dir, "nowhere"), ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}

	shm := t.TempDir()
	if err := unix.Mount("tmpfs", shm, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(shm, 0)
	if f, err = Probe(shm, ""); err != nil || !f.FileBacked.OK && !strings.Contains(f.FileBacked.Reason, "tmpfs") {
		t.Errorf("on tmpfs: %+v, %v", f, err)
	}
}

// serveFile mounts, on a file, a FUSE file system that is nothing but that
// file. (include/uapi/linux/fuse.h; the root of a FUSE mount need not be a
// directory.)
func serveFile(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		missing(t, "no /dev/fuse: "+err.Error())
	}
	if err := unix.Mount("probe", path, "fuse.probe", 0, fmt.Sprintf("fd=%d,rootmode=100000,user_id=0,group_id=0", dev)); err != nil {
		t.Fatal(err)
	}
	var server sync.WaitGroup
	server.Go(func() { serveFUSE(dev, content) })
	t.Cleanup(func() {
		if err := Unmount(path, false); err != nil {
			t.Error(err)
		}
		server.Wait() // the unmount ends it
		unix.Close(dev)
	})
	// Whether it can be polled is asked once by each connection. Go's os.Open asks
	// in a way that keeps this process from collecting garbage, and then from
	// answering; here it is asked in another.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0); err != nil {
		t.Fatal(err)
	}
}

func serveFUSE(dev int, content []byte) {
	const (
		getattr, open, read, release, flush, initialize = 3, 14, 15, 18, 25, 26
	)
	attr := make([]byte, 104)
	attr[0] = 1 // valid for a second
	le.PutUint64(attr[16:], 1)
	le.PutUint64(attr[24:], uint64(len(content)))
	le.PutUint32(attr[76:], unix.S_IFREG|0o400)
	le.PutUint32(attr[80:], 1)
	buf := make([]byte, 1<<17)
	for {
		n, err := unix.Read(dev, buf)
		if err == unix.EINTR || err == unix.ENOENT {
			continue
		}
		if err != nil {
			return
		}
		req := buf[:n]
		var answer []byte
		status := int32(0)
		switch le.Uint32(req[4:]) {
		case initialize:
			answer = make([]byte, 64)
			copy(answer, req[40:52]) // version and read-ahead as the kernel has them
			le.PutUint32(answer[20:], 1<<16)
		case getattr:
			answer = attr
		case open:
			answer = make([]byte, 16)
		case read:
			off := min(le.Uint64(req[48:]), uint64(len(content)))
			answer = content[off:]
		case flush, release:
		default:
			status = -int32(unix.ENOSYS)
		}
		head := binary.LittleEndian.AppendUint32(nil, uint32(16+len(answer)))
		head = le.AppendUint32(head, uint32(status))
		head = le.AppendUint64(head, le.Uint64(req[8:]))
		unix.Write(dev, append(head, answer...))
	}
}
