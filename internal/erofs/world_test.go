package erofs

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	goerofs "github.com/erofs/go-erofs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"skimmer/internal/blob/blobtest"
	"skimmer/internal/estargz"
)

// file is an entry of a layer together with its content.
type file struct {
	estargz.Entry
	data []byte
}

// The constructors of entries; the tests change what else matters to them.

func dir(name string, mode uint32) file {
	return file{Entry: estargz.Entry{Name: name, Type: estargz.Dir, Mode: mode, MTime: 1500000000}}
}

func reg(name string, size int) file {
	seed := uint64(size)
	for _, c := range []byte(name) {
		seed = seed*131 + uint64(c)
	}
	return file{
		Entry: estargz.Entry{Name: name, Type: estargz.Regular, Mode: 0o644, Size: int64(size), MTime: 1600000000 + int64(size), MTimeNsec: 123456789},
		data:  blobtest.Bytes(seed, size),
	}
}

func sym(name, target string) file {
	return file{Entry: estargz.Entry{Name: name, Type: estargz.Symlink, Mode: 0o777, Link: target, MTime: 1550000000}}
}

func link(name, target string) file {
	return file{Entry: estargz.Entry{Name: name, Type: estargz.Hardlink, Link: target}}
}

func wh(name string) file { return reg(name, 0) }

func xattrOf(name, value string) estargz.Xattr {
	return estargz.Xattr{Name: name, Value: []byte(value)}
}

func (f file) with(xs ...estargz.Xattr) file {
	f.Xattrs = xs
	return f
}

func (f file) owned(mode, uid, gid uint32) file {
	f.Mode, f.UID, f.GID = mode, uid, gid
	return f
}

// layer is a layer of a test image: its TOC and its flat data.
type layer struct {
	toc   *estargz.TOC
	data  []byte
	files []file
}

func makeLayer(files ...file) layer {
	l := layer{toc: &estargz.TOC{}, files: files}
	for _, f := range files {
		if f.Size > 0 {
			f.DataOff = int64(len(l.data))
			l.data = append(l.data, f.data...)
			l.data = append(l.data, make([]byte, alignUp(len(l.data), blockSize)-len(l.data))...)
		}
		l.toc.Entries = append(l.toc.Entries, f.Entry)
	}
	l.toc.Index.DataSize = int64(len(l.data))
	l.toc.Digest = digest.FromString(fmt.Sprintf("%v", l.toc.Entries))
	return l
}

func tocs(layers []layer) []*estargz.TOC {
	var ts []*estargz.TOC
	for _, l := range layers {
		ts = append(ts, l.toc)
	}
	return ts
}

// image is a built image with its devices, in files.
type image struct {
	info    Info
	path    string
	devices []string
}

// build builds an image and checks what holds for every image: two builds
// make the same bytes, and fsck.erofs is content.
func build(t testing.TB, opts Options, layers ...layer) image {
	t.Helper()
	var img, again bytes.Buffer
	info, err := Build(&img, tocs(layers), opts)
	if err != nil {
		t.Fatalf("build: %v", err)
	}
	if _, err := Build(&again, tocs(layers), opts); err != nil || !bytes.Equal(img.Bytes(), again.Bytes()) {
		t.Errorf("a second build made other bytes (%v)", err)
	}
	if info.Size != int64(img.Len()) {
		t.Errorf("info says %d bytes, the image has %d", info.Size, img.Len())
	}
	tmp := t.TempDir()
	im := image{info: info, path: filepath.Join(tmp, "metadata.erofs")}
	if err := os.WriteFile(im.path, img.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, l := range info.Devices {
		d := filepath.Join(tmp, fmt.Sprintf("layer%d", l))
		if err := os.WriteFile(d, layers[l].data, 0o600); err != nil {
			t.Fatal(err)
		}
		im.devices = append(im.devices, d)
	}
	fsck(t, im, true)
	return im
}

// fsck fails the test unless fsck.erofs accepts the image; with content set
// it also reads every file.
func fsck(t testing.TB, im image, content bool) {
	t.Helper()
	path, err := exec.LookPath("fsck.erofs")
	if err != nil {
		missing(t, "fsck.erofs is not installed (Debian package erofs-utils)")
		return
	}
	// It recurses with large frames, and says nothing unless asked.
	args := []string{"-c", `ulimit -s unlimited && exec "$0" "$@"`, path, "-d3"}
	for _, d := range im.devices {
		args = append(args, "--device="+d)
	}
	if content {
		args = append(args, "--extract")
	}
	out, err := exec.Command("/bin/sh", append(args, im.path)...).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "No errors found") {
		t.Errorf("fsck.erofs: %v\n%s", err, out)
	}
}

// missing ends a test that lacks something of the machine: loudly, and in CI
// as a failure.
func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf("cannot run: %s", what)
	}
	t.Skipf("SKIPPED, NOT TESTED: %s", what)
}

// mountImage mounts the image and returns the directory.
func mountImage(t testing.TB, im image) string {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "mounting needs root")
	}
	target := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Mount(MountOptions{Metadata: im.path, Devices: im.devices, Target: target}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unmount(target, false); err != nil {
			t.Error(err)
		}
	})
	return target
}

// facts are what can be seen of a path. Peers is the first path, in order,
// that has the same inode.
type facts struct {
	Mode, UID, GID, Nlink uint32
	Rdev                  uint64
	MTime                 int64
	MTimeNsec             int64
	Size                  int64
	Link, Content, Xattrs string
	Peers                 string
}

type world map[string]facts

func contentHash(p []byte) string { return fmt.Sprintf("%x", sha256.Sum256(p)) }

func xattrList(xs map[string]string) string {
	var list []string
	for k, v := range xs {
		if len(v) > 100 {
			v = fmt.Sprintf("%d bytes, %s", len(v), contentHash([]byte(v)))
		}
		list = append(list, fmt.Sprintf("%q=%q", k, v))
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// see looks at everything below root with the kernel's eyes.
func see(t testing.TB, root string) world {
	t.Helper()
	w := world{}
	first := map[uint64]string{}
	var visit func(path, rel string)
	visit = func(path, rel string) {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatalf("lstat %s: %v", path, err)
		}
		f := facts{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Nlink: uint32(st.Nlink), MTime: st.Mtim.Sec, MTimeNsec: st.Mtim.Nsec, Xattrs: xattrList(xattrsAt(t, path))}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			f.Size = st.Size
			if st.Size < 64<<20 {
				p, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				f.Content = contentHash(p)
			}
		case unix.S_IFLNK:
			f.Size = st.Size
			f.Link, _ = os.Readlink(path)
		case unix.S_IFCHR, unix.S_IFBLK:
			f.Rdev = st.Rdev
		}
		if _, ok := first[st.Ino]; !ok {
			first[st.Ino] = rel
		}
		f.Peers = first[st.Ino]
		w[rel] = f
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			names, err := os.ReadDir(path)
			if err != nil {
				t.Fatalf("read directory %q: %v", rel, err)
			}
			for _, d := range names {
				visit(path+"/"+d.Name(), strings.TrimPrefix(rel+"/"+d.Name(), "/"))
			}
		}
	}
	visit(root, "")
	return w
}

func xattrsAt(t testing.TB, path string) map[string]string {
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatalf("listxattr %s: %v", path, err)
	}
	xs := map[string]string{}
	val := make([]byte, 1<<16)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, val)
		if err != nil {
			t.Fatalf("getxattr %s %s: %v", path, name, err)
		}
		xs[name] = string(val[:n])
	}
	return xs
}

// padded reads zeros behind the end: go-erofs reads attributes in whole
// blocks from where they start.
type padded struct{ p []byte }

func (r padded) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(r.p)) {
		copy(p, r.p[off:])
	}
	return len(p), nil
}

// seeWithReader looks at an image with go-erofs, which shares no code with
// the kernel or with us.
func seeWithReader(img []byte, devices [][]byte) (world, error) {
	var devs []io.ReaderAt
	for _, d := range devices {
		devs = append(devs, bytes.NewReader(d))
	}
	fsys, err := goerofs.Open(padded{img}, goerofs.WithExtraDevices(devs...))
	if err != nil {
		return nil, err
	}
	w := world{}
	first := map[int64]string{}
	var visit func(rel string, info fs.FileInfo) error
	visit = func(rel string, info fs.FileInfo) error {
		st := info.Sys().(*goerofs.Stat)
		f := facts{UID: st.UID, GID: st.GID, Nlink: uint32(st.Nlink), MTime: int64(st.Mtime), MTimeNsec: int64(st.MtimeNs), Mode: unixMode(st.Mode)}
		xs := map[string]string{}
		for k, v := range st.Xattrs {
			xs[strings.TrimSuffix(k, ".")] = v // it writes system.posix_acl_access.
		}
		f.Xattrs = xattrList(xs)
		if _, ok := first[st.Ino]; !ok {
			first[st.Ino] = rel
		}
		f.Peers = first[st.Ino]
		switch st.Mode.Type() {
		case 0:
			f.Size = st.Size
			p, err := fs.ReadFile(fsys, rel)
			if err != nil {
				return err
			}
			f.Content = contentHash(p)
		case fs.ModeSymlink:
			f.Size = st.Size
			if f.Link, err = fs.ReadLink(fsys, rel); err != nil {
				return err
			}
		case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
			major, minor := st.Rdev>>8&0xfff, st.Rdev&0xff|st.Rdev>>12&0xfff00
			f.Rdev = unix.Mkdev(major, minor)
		case fs.ModeDir:
			list, err := fs.ReadDir(fsys, rel)
			if err != nil {
				return err
			}
			for _, d := range list {
				info, err := d.Info()
				if err != nil {
					return err
				}
				if err := visit(strings.TrimPrefix(rel+"/"+d.Name(), "/"), info); err != nil {
					return err
				}
			}
		}
		w[rel] = f
		return nil
	}
	root, err := fs.Stat(fsys, "")
	if err != nil {
		return nil, err
	}
	return w, visit("", root)
}

func unixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	for from, to := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&from != 0 {
			mode |= to
		}
	}
	switch m.Type() {
	case fs.ModeDir:
		mode |= unix.S_IFDIR
	case fs.ModeSymlink:
		mode |= unix.S_IFLNK
	case fs.ModeNamedPipe:
		mode |= unix.S_IFIFO
	case fs.ModeDevice:
		mode |= unix.S_IFBLK
	case fs.ModeDevice | fs.ModeCharDevice:
		mode |= unix.S_IFCHR
	default:
		mode |= unix.S_IFREG
	}
	return mode
}

func readImage(t testing.TB, im image) world {
	t.Helper()
	img, err := os.ReadFile(im.path)
	if err != nil {
		t.Fatal(err)
	}
	var devices [][]byte
	for _, d := range im.devices {
		p, err := os.ReadFile(d)
		if err != nil {
			t.Fatal(err)
		}
		devices = append(devices, p)
	}
	w, err := seeWithReader(img, devices)
	if err != nil {
		t.Fatalf("read with go-erofs: %v", err)
	}
	return w
}

func same(t testing.TB, what string, want, got world) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		if len(d) > 4000 {
			d = d[:4000] + "\n..."
		}
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}
