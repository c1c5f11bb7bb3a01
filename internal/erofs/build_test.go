package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/estargz"
)

// check builds an image of layers and compares what the kernel and go-erofs
// see in it with what the reference unpacker makes of the layers.
func check(t *testing.T, layers ...layer) image {
	t.Helper()
	want, err := unpack(layers)
	if err != nil {
		t.Fatalf("the reference unpacker: %v", err)
	}
	im := build(t, Options{}, layers...)
	same(t, "mount", want, see(t, mountImage(t, im)))
	same(t, "go-erofs", want, readImage(t, im))
	return im
}

// everything is a layer with every kind of entry and attribute.
func everything() layer {
	dev := func(name string, typ estargz.EntryType, major, minor uint32) file {
		return file{Entry: estargz.Entry{Name: name, Type: typ, Mode: 0o620, GID: 5, DevMajor: major, DevMinor: minor, MTime: 1400000000}}
	}
	// user::rwx user:1000:r-x group::r-x mask::r-x other::---, as mode 0750.
	acl := "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x05\x00\xe8\x03\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x05\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
	capability := xattrOf("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	old := reg("etc/old", 10)
	old.MTime, old.MTimeNsec = -86400, 999999999
	far := reg("etc/far", 10)
	far.MTime = 1 << 33
	aclDir := dir("srv/acl", 0o750)
	aclDir.Xattrs = []estargz.Xattr{xattrOf("system.posix_acl_access", acl), xattrOf("system.posix_acl_default", acl)}
	return makeLayer(
		dir("", 0o755),
		dir("bin", 0o755),
		reg("bin/su", 70000).owned(0o4755, 0, 0),
		reg("bin/wall", 4096).owned(0o2755, 0, 5),
		reg("bin/ping", 4097).with(capability),
		reg("bin/nping", 1).with(capability, xattrOf("user.note", "x")),
		link("bin/wall2", "bin/wall"),
		dir("dev", 0o755),
		dev("dev/null", estargz.Char, 1, 3), dev("dev/big", estargz.Char, 4095, 1<<20-1),
		dev("dev/sda", estargz.Block, 8, 257), dev("dev/fifo", estargz.Fifo, 0, 0),
		link("dev/zero", "dev/null"),
		dir("etc", 0o755), old, far, reg("etc/empty", 0), link("etc/empty2", "etc/empty"),
		sym("lib", "usr/lib"), sym("abs", "/etc/passwd"), sym("dangling", "../../nowhere"),
		link("lib-too", "lib"),
		reg("lib/through-the-link", 5),
		dir("srv", 0o755), aclDir,
		reg("srv/owner", 3).owned(0, 4294967294, 70000),
		dir("srv/sticky", 0o1777),
		dir("srv/tagged", 0o755).with(xattrOf("trusted.md5", "abc"), xattrOf("user.note", "x")),
		dir("tmp", 0o1777),
		reg("made/up/parents", 12),
	)
}

func TestEverything(t *testing.T) {
	im := check(t, everything())
	if im.info.SkippedXattrs != 0 {
		t.Errorf("%d attributes were skipped", im.info.SkippedXattrs)
	}
}

func TestEmptyImage(t *testing.T) {
	check(t)
	check(t, makeLayer())
	im := check(t, makeLayer(reg("empty", 0)))
	if len(im.info.Devices) != 0 {
		t.Errorf("an image without data has devices %v", im.info.Devices)
	}
}

func TestNames(t *testing.T) {
	long := strings.Repeat("n", MaxName)
	files := []file{dir("", 0o755), reg("\xff\xfe not UTF-8 \x01\x7f", 3), dir("\x80dir", 0o700), reg("\x80dir/\xc3\x28", 5),
		reg("日本語", 9), dir(long, 0o755), reg(long+"/"+long, 10), reg("!before dots", 1), reg("-", 1), reg("...", 1), reg(" ", 2), reg("a\nb", 2),
		sym("link", "\xff target \x80")}
	check(t, makeLayer(files...))

	// Every length, so that names end at every place in a directory block.
	files = []file{dir("d", 0o755)}
	for n := 1; n <= MaxName; n++ {
		files = append(files, reg("d/"+strings.Repeat("x", n), 0))
		files = append(files, reg("d/"+strings.Repeat("+", n), 0))
	}
	check(t, makeLayer(files...))
}

func TestLongSymlinks(t *testing.T) {
	var files []file
	for _, n := range []int{1, 59, 60, 2047, 2048, 2049, 4000, 4094, MaxSymlink} {
		files = append(files, sym(fmt.Sprintf("link%d", n), strings.Repeat("y", n)))
		files = append(files, sym(fmt.Sprintf("xlink%d", n), strings.Repeat("z", n)).with(xattrOf("security.selinux", "label"), xattrOf("trusted.x", "y")))
	}
	check(t, makeLayer(files...))
}

// TestDirectorySizes makes directories whose content ends at every place in a
// block, behind attributes of different length.
func TestDirectorySizes(t *testing.T) {
	var files []file
	step := 1
	if testing.Short() {
		step = 4 // the same sizes, fewer of them
	}
	for n := 0; n < 400; n += step {
		d := dir(fmt.Sprintf("d%03d", n), 0o755)
		if n%3 == 0 {
			d.Xattrs = []estargz.Xattr{xattrOf("user.fill", strings.Repeat("v", n))}
		}
		files = append(files, d)
		for i := range n / 2 {
			files = append(files, reg(fmt.Sprintf("d%03d/%s%d", n, strings.Repeat("f", n%11), i), 0))
		}
	}
	check(t, makeLayer(files...))
}

func TestHugeDirectory(t *testing.T) {
	n := 100_000
	if testing.Short() {
		n = 20_000
	}
	files := []file{dir("huge", 0o755)}
	for i := range n {
		// In an order that is not that of the names.
		files = append(files, reg(fmt.Sprintf("huge/entry-%07d", i*7919%n), 0))
	}
	im := build(t, Options{}, makeLayer(files...))
	mnt := mountImage(t, im)
	list, err := os.ReadDir(filepath.Join(mnt, "huge"))
	if err != nil || len(list) != n {
		t.Fatalf("%d names, %v", len(list), err)
	}
	for i, d := range list {
		if want := fmt.Sprintf("entry-%07d", i); d.Name() != want {
			t.Fatalf("name %d is %q, want %q", i, d.Name(), want)
		}
		if i%97 == 0 {
			if _, err := os.Lstat(filepath.Join(mnt, "huge", d.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := os.Lstat(filepath.Join(mnt, "huge", fmt.Sprintf("entry-%07dx", n/2))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a name that is not there: %v", err)
	}
}

func TestDeepPath(t *testing.T) {
	const depth = 1000
	name := strings.Repeat("deeper/", depth)
	im := build(t, Options{}, makeLayer(reg(name+"bottom", 100), link(name+"again", name+"bottom")))
	fd, err := unix.Open(mountImage(t, im), unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range depth {
		next, err := unix.Openat(fd, "deeper", unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstatat(fd, "bottom", &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Size != 100 || st.Nlink != 2 {
		t.Errorf("bottom: %d bytes, %d links, %v", st.Size, st.Nlink, err)
	}
}

func TestManyXattrs(t *testing.T) {
	var many, huge []estargz.Xattr
	for i := range 400 {
		many = append(many, xattrOf(fmt.Sprintf("trusted.attribute-number-%03d", i), strings.Repeat("v", i)))
	}
	for i := range 3 {
		huge = append(huge, xattrOf(fmt.Sprintf("user.huge%d", i), string(blobtest.Bytes(uint64(i), MaxXattrValue))))
	}
	longest := xattrOf("user."+strings.Repeat("l", MaxName-len("user.")), "value")
	l := makeLayer(
		reg("many", 100).with(many...),
		// 400 shared ones are more than one inode can refer to.
		reg("shared", 100).with(many...), dir("shareddir", 0o755).with(many...),
		reg("huge", 100).with(huge...), reg("longest", 9).with(xattrOf("user.empty", ""), longest), dir("hugedir", 0o755).with(huge[0]),
		reg("next", 10),
	)
	im := build(t, Options{}, l)
	want, err := unpack([]layer{l})
	if err != nil {
		t.Fatal(err)
	}
	// go-erofs cannot read shared attributes above 4 KiB.
	same(t, "mount", want, see(t, mountImage(t, im)))
}

func TestSkippedXattrs(t *testing.T) {
	l := makeLayer(
		reg("f", 1).with(xattrOf("com.apple.provenance", "x"), xattrOf("system.other", "y"), xattrOf("trusted.overlay.opaque", "y"), xattrOf("user.", "z"), xattrOf("user.kept.", "1")),
		sym("s", "f").with(xattrOf("user.note", "x")),
	)
	im := build(t, Options{}, l)
	if im.info.SkippedXattrs != 5 {
		t.Errorf("%d attributes were skipped, want 5", im.info.SkippedXattrs)
	}
	w := see(t, mountImage(t, im))
	if w["f"].Xattrs != `"user.kept."="1"` || w["s"].Xattrs != "" {
		t.Errorf("attributes %s and %s", w["f"].Xattrs, w["s"].Xattrs)
	}
}

// TestHugeFile reads a sparse file of 5 GiB, which is one chunk, and one of
// 9 TiB, which are two.
func TestHugeFile(t *testing.T) {
	t.Run("5 GiB", func(t *testing.T) { testHugeFile(t, 5<<30+12345, 0, 1<<32-50, 5<<30) })
	t.Run("9 TiB", func(t *testing.T) { testHugeFile(t, 9<<40+12345, 0, 1<<32-50, 8<<40-50, 9<<40) })
}

// testHugeFile reads a file of the given size, between two others, at the
// places where it is not a hole.
func testHugeFile(t *testing.T, size int64, places ...int64) {
	huge := reg("huge", 1)
	huge.Size = size
	toc := &estargz.TOC{Digest: digest.FromString("huge")}
	before, after := reg("before", 5000), reg("after", 6000)
	after.DataOff = alignUp(8192+size, blockSize)
	huge.DataOff = 8192
	toc.Entries = []estargz.Entry{before.Entry, huge.Entry, after.Entry}
	toc.Index.DataSize = after.DataOff + 8192

	tmp := t.TempDir()
	im := image{path: filepath.Join(tmp, "metadata"), devices: []string{filepath.Join(tmp, "device")}}
	d, err := os.Create(im.devices[0])
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Truncate(toc.Index.DataSize); errors.Is(err, unix.EFBIG) {
		missing(t, "the file system of the temporary directory holds no file so large")
	} else if err != nil {
		t.Fatal(err)
	}
	want := map[int64][]byte{}
	for i, off := range append(places, size-100) {
		want[off] = blobtest.Bytes(uint64(i), 100)
		if _, err := d.WriteAt(want[off], 8192+off); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []file{before, after} {
		if _, err := d.WriteAt(f.data, f.DataOff); err != nil {
			t.Fatal(err)
		}
	}
	var img bytes.Buffer
	if _, err := Build(&img, []*estargz.TOC{toc}, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(im.path, img.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	fsck(t, im, false)
	mnt := mountImage(t, im)
	f, err := os.Open(filepath.Join(mnt, "huge"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() != size {
		t.Errorf("size %d, %v", st.Size(), err)
	}
	for off, p := range want {
		got := make([]byte, len(p))
		if _, err := f.ReadAt(got, off); err != nil || !bytes.Equal(got, p) {
			t.Errorf("read at %d: wrong content (%v)", off, err)
		}
	}
	zeros := make([]byte, 1<<20)
	if _, err := f.ReadAt(zeros, 3<<30); err != nil || !bytes.Equal(zeros, make([]byte, 1<<20)) {
		t.Errorf("read of a hole: %v", err)
	}
	for _, small := range []file{before, after} {
		if got, err := os.ReadFile(filepath.Join(mnt, small.Name)); err != nil || !bytes.Equal(got, small.data) {
			t.Errorf("%s: wrong content (%v)", small.Name, err)
		}
	}
}

// TestPlacement holds the plan to what the kernel does not check: that no
// inode lies in two blocks.
func TestPlacement(t *testing.T) {
	var files []file
	for i := range 500 {
		files = append(files, sym(fmt.Sprintf("s%d", i), strings.Repeat("x", i+1)), reg(fmt.Sprintf("f%d", i), i))
	}
	layers := tocs([]layer{makeLayer(files...)})
	tr, err := merge(layers, false)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPlan(tr, layers)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range p.order {
		if pos := p.inodes[id].place.pos; pos/blockSize != (pos+inodeSize-1)/blockSize {
			t.Errorf("the inode of %q at %d lies in two blocks", p.inodes[id].entry.Name, pos)
		}
	}
}

func TestChunks(t *testing.T) {
	for _, c := range []struct {
		size int64
		bits int
		n    int64
	}{
		{1, 0, 1}, {4096, 0, 1}, {4097, 1, 1}, {8192, 1, 1}, {8193, 2, 1}, {5 << 30, 21, 1},
		{8 << 40, 31, 1}, {8<<40 + 1, 31, 2}, {16<<40 - 4096, 31, 2},
	} {
		if bits, n := chunks(c.size); bits != c.bits || n != c.n {
			t.Errorf("a file of %d bytes has %d chunks of 2^%d blocks, want %d of 2^%d", c.size, n, bits, c.n, c.bits)
		}
	}
}

func TestRefusals(t *testing.T) {
	entry := func(change func(*estargz.Entry)) layer {
		f := reg("some/where", 1)
		l := makeLayer(f)
		change(&l.toc.Entries[0])
		return l
	}
	for what, l := range map[string]layer{
		"name of 256 bytes":        makeLayer(reg(strings.Repeat("n", 256), 0)),
		"directory of 256 bytes":   makeLayer(reg(strings.Repeat("n", 256)+"/x", 0)),
		"name with a zero byte":    makeLayer(reg("a\x00b", 0)),
		"name dot dot":             makeLayer(reg("a/..", 0)),
		"name ends in slash":       makeLayer(reg("a/", 0)),
		"whiteout of dot dot":      makeLayer(dir("a", 0o755), reg("a/.wh...", 0)),
		"whiteout of nothing":      makeLayer(dir("a", 0o755), reg("a/.wh.", 0)),
		"root is a file":           makeLayer(reg("", 0)),
		"link to nothing":          makeLayer(link("a", "b")),
		"link to itself":           makeLayer(reg("a", 0), link("a", "a")),
		"link to a directory":      makeLayer(dir("b", 0o755), link("a", "b")),
		"link to the root":         makeLayer(link("a", "")),
		"link through a file":      makeLayer(reg("b", 0), link("a", "b/c")),
		"file below a file":        makeLayer(reg("a", 0), reg("a/b", 0)),
		"symlink loop":             makeLayer(sym("a", "b"), sym("b", "a"), reg("a/c", 0)),
		"symlink to nothing":       makeLayer(sym("a", "")),
		"symlink of 4096 bytes":    makeLayer(sym("a", strings.Repeat("x", 4096))),
		"symlink with a zero byte": makeLayer(sym("a", "x\x00y")),
		"attribute of 64 KiB":      makeLayer(reg("a", 0).with(xattrOf("user.x", strings.Repeat("x", 1<<16)))),
		"attributes of 300 KiB": makeLayer(reg("a", 0).with(xattrOf("user.1", strings.Repeat("x", 65000)), xattrOf("user.2", strings.Repeat("x", 65000)),
			xattrOf("user.3", strings.Repeat("x", 65000)), xattrOf("user.4", strings.Repeat("x", 65000)), xattrOf("user.5", strings.Repeat("x", 65000)))),
		"attribute name too long": makeLayer(reg("a", 0).with(xattrOf("user."+strings.Repeat("x", 251), ""))),
		"attribute twice":         makeLayer(reg("a", 0).with(xattrOf("user.x", "1"), xattrOf("user.x", "2"))),
		"major number":            entry(func(e *estargz.Entry) { e.Type, e.DevMajor = estargz.Char, 4096 }),
		"minor number":            entry(func(e *estargz.Entry) { e.Type, e.DevMinor = estargz.Block, 1<<20 }),
		"unknown type":            entry(func(e *estargz.Entry) { e.Type = 99 }),
		"no type":                 entry(func(e *estargz.Entry) { e.Type = 0 }),
		"negative size":           entry(func(e *estargz.Entry) { e.Size = -1 }),
		"TOC without a digest":    {toc: &estargz.TOC{Entries: []estargz.Entry{{Name: "a", Type: estargz.Dir}}}},
		"beyond the data":         entry(func(e *estargz.Entry) { e.Size = 4097 }),
		"not aligned":             entry(func(e *estargz.Entry) { e.DataOff, e.Size = 1, 1 }),
		"nanoseconds":             entry(func(e *estargz.Entry) { e.MTimeNsec = 1e9 }),
	} {
		var img bytes.Buffer
		_, err := Build(&img, []*estargz.TOC{makeLayer(dir("", 0o755)).toc, l.toc}, Options{})
		if !errors.Is(err, blob.Invalid) {
			t.Errorf("%s: got %v, want an invalid error", what, err)
			continue
		}
		if bad := l.toc.Entries[len(l.toc.Entries)-1].Name; !strings.Contains(err.Error(), "layer 1") || l.toc.Digest != "" && !strings.Contains(err.Error(), fmt.Sprintf("%q", bad)) {
			t.Errorf("%s: the error does not name layer 1 and %q: %v", what, bad, err)
		}
		if img.Len() > 0 {
			t.Errorf("%s: something was written", what)
		}
	}

	huge := makeLayer(reg("huge", 1))
	huge.toc.Index.DataSize, huge.toc.Entries[0].Size = 1<<45, 1<<44
	if _, err := Build(&bytes.Buffer{}, tocs([]layer{huge}), Options{}); !errors.Is(err, blob.Invalid) {
		t.Errorf("a file that ends at 16 TiB: %v", err)
	}
}

func TestLimits(t *testing.T) {
	full := newTree(0)
	full.nodes = make([]node, MaxEntries+1) // never touched, so never there
	if _, err := full.insert(0, rootNode, "x", 1); !errors.Is(err, blob.Invalid) {
		t.Errorf("one entry too many: %v", err)
	}

	var layers []layer
	for i := range MaxDevices {
		layers = append(layers, makeLayer(reg(fmt.Sprintf("%d", i), 1)))
	}
	want, err := unpack(layers)
	if err != nil {
		t.Fatal(err)
	}
	var img bytes.Buffer
	info, err := Build(&img, tocs(layers), Options{})
	if err != nil || len(info.Devices) != MaxDevices {
		t.Fatalf("%d devices, %v", len(info.Devices), err)
	}
	var devices [][]byte
	for _, l := range layers {
		devices = append(devices, l.data)
	}
	got, err := seeWithReader(img.Bytes(), devices)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "go-erofs", want, got)
	layers = append(layers, makeLayer(reg("more", 1)))
	if _, err := Build(&img, tocs(layers), Options{}); !errors.Is(err, blob.Invalid) {
		t.Errorf("one device too many: %v", err)
	}
}

// failing fails every write.
type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, unix.ENOSPC }

func TestWriteError(t *testing.T) {
	_, err := Build(failing{}, tocs([]layer{everything()}), Options{})
	if !errors.Is(err, unix.ENOSPC) || !errors.Is(err, blob.Full) {
		t.Errorf("got %v, want a full disk", err)
	}
}

func TestIdentity(t *testing.T) {
	id := func(opts Options, layers ...layer) string {
		var img bytes.Buffer
		if _, err := Build(&img, tocs(layers), opts); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%x", img.Bytes()[superOffset+48:superOffset+64])
	}
	a, b := makeLayer(reg("a", 1)), makeLayer(reg("b", 1))
	seen := map[string]string{}
	for what, id := range map[string]string{
		"a": id(Options{}, a), "b": id(Options{}, b), "ab": id(Options{}, a, b), "ba": id(Options{}, b, a), "a for overlay": id(Options{KeepWhiteouts: true}, a),
	} {
		if other, ok := seen[id]; ok {
			t.Errorf("%s and %s have the same UUID", what, other)
		}
		seen[id] = what
		if id[12] != '8' || !strings.Contains("89ab", id[16:17]) {
			t.Errorf("UUID %s is not of version 8", id)
		}
	}
}
