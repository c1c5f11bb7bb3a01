package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// The fields a [Difference] can be about. An extended attribute is a field of
// its own, named FieldXattr followed by the attribute's name.
const (
	FieldExists  = "exists"
	FieldType    = "type"
	FieldMode    = "mode"
	FieldUID     = "uid"
	FieldGID     = "gid"
	FieldSize    = "size"
	FieldMTime   = "mtime"
	FieldDevice  = "device"
	FieldNlink   = "nlink"
	FieldLinks   = "links" // which paths share an inode
	FieldTarget  = "target"
	FieldContent = "content"
	FieldXattr   = "xattr "
)

// Difference is one thing in which two trees are not the same.
type Difference struct {
	// Path is relative to the compared directories; "." is the directories
	// themselves. It need not be UTF-8.
	Path string
	// Field is one of the Field constants.
	Field string
	// A and B are the field's value in either tree, as text.
	A, B string
}

// String returns the difference on one line, the path quoted.
func (d Difference) String() string {
	return fmt.Sprintf("%q: %s: %s, %s", d.Path, d.Field, d.A, d.B)
}

// CompareOptions says what [CompareTrees] passes over. The zero value compares
// everything that is the same for equal trees on different file systems.
type CompareOptions struct {
	// Ignore, where set, reports paths (relative, "." for the top) that are
	// left out with everything below them, and out of hard link groups.
	Ignore func(path string) bool
	// IgnoreField, where set, reports single fields not to compare. It is not
	// called concurrently.
	IgnoreField func(path, field string) bool
	// DirNlink also compares the link counts of directories, which not every
	// file system keeps.
	DirNlink bool
}

// CompareTrees compares two directories and everything below them and returns
// the differences in order of path: existence, type, permission bits, owner,
// size, modification time to the nanosecond, device numbers, link count, which
// paths are hard links of each other, extended attributes, symlink targets,
// and the SHA-256 of each file's content. The sizes of directories and access
// and change times say nothing about a tree and are not looked at.
//
// It holds a small record per non-directory in memory, reads as many files at
// a time as there are processors, and fails when a path cannot be read or ctx
// ends. Neither tree may change meanwhile.
func CompareTrees(ctx context.Context, a, b string, opts CompareOptions) ([]Difference, error) {
	c := &comparison{opts: opts, linksA: map[inode]string{}, linksB: map[inode]string{}, roots: [2]string{a, b}}
	if err := c.path(ctx, "."); err != nil {
		return nil, err
	}
	if err := c.contents(ctx); err != nil {
		return nil, err
	}
	slices.SortStableFunc(c.diffs, func(x, y Difference) int { return strings.Compare(x.Path, y.Path) })
	return c.diffs, nil
}

// inode identifies a file within one tree.
type inode struct{ dev, ino uint64 }

type comparison struct {
	opts  CompareOptions
	roots [2]string
	// linksA and linksB map each inode to the first path that has it.
	linksA, linksB map[inode]string
	files          []string // regular files of equal size whose content is still to be compared
	diffs          []Difference
}

func (c *comparison) report(path, field string, a, b any) {
	as, bs := fmt.Sprint(a), fmt.Sprint(b)
	if as == bs || c.opts.IgnoreField != nil && c.opts.IgnoreField(path, field) {
		return
	}
	c.diffs = append(c.diffs, Difference{path, field, as, bs})
}

// path compares what is at rel in both trees, and below it.
func (c *comparison) path(ctx context.Context, rel string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("compare %q: %w", rel, err)
	}
	if c.opts.Ignore != nil && c.opts.Ignore(rel) {
		return nil
	}
	a, err := lstat(filepath.Join(c.roots[0], rel))
	if err != nil {
		return err
	}
	b, err := lstat(filepath.Join(c.roots[1], rel))
	if err != nil {
		return err
	}
	switch {
	case a == nil && b == nil:
		return fmt.Errorf("compare %q: it is in neither tree", rel)
	case a == nil || b == nil:
		c.report(rel, FieldExists, typeName(a), typeName(b))
		return nil
	case a.Mode&unix.S_IFMT != b.Mode&unix.S_IFMT:
		c.report(rel, FieldType, typeName(a), typeName(b))
		return nil
	}
	return c.same(ctx, rel, a, b)
}

// same compares two things of the same type.
func (c *comparison) same(ctx context.Context, rel string, a, b *unix.Stat_t) error {
	c.report(rel, FieldMode, mode(a), mode(b))
	c.report(rel, FieldUID, a.Uid, b.Uid)
	c.report(rel, FieldGID, a.Gid, b.Gid)
	c.report(rel, FieldMTime, mtime(a), mtime(b))
	if err := c.xattrs(rel); err != nil {
		return err
	}
	kind := a.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		if c.opts.DirNlink {
			c.report(rel, FieldNlink, a.Nlink, b.Nlink)
		}
		return c.dir(ctx, rel)
	}
	c.report(rel, FieldNlink, a.Nlink, b.Nlink)
	first := firstOf(c.linksA, a, rel)
	c.report(rel, FieldLinks, first, firstOf(c.linksB, b, rel))
	switch kind {
	case unix.S_IFREG:
		c.report(rel, FieldSize, a.Size, b.Size)
		// The content of a hard link is compared under its first name.
		if a.Size == b.Size && a.Size > 0 && first == rel {
			c.files = append(c.files, rel)
		}
	case unix.S_IFLNK:
		return c.symlink(rel)
	case unix.S_IFCHR, unix.S_IFBLK:
		c.report(rel, FieldDevice, device(a), device(b))
	}
	return nil
}

func (c *comparison) dir(ctx context.Context, rel string) error {
	names := map[string]bool{}
	for _, root := range c.roots {
		entries, err := os.ReadDir(filepath.Join(root, rel))
		if err != nil {
			return fmt.Errorf("compare %q: %w", rel, err)
		}
		for _, e := range entries {
			names[e.Name()] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if err := c.path(ctx, filepath.Join(rel, name)); err != nil {
			return err
		}
	}
	return nil
}

func (c *comparison) symlink(rel string) error {
	var targets [2]string
	for i, root := range c.roots {
		t, err := os.Readlink(filepath.Join(root, rel))
		if err != nil {
			return fmt.Errorf("compare %q: %w", rel, err)
		}
		targets[i] = fmt.Sprintf("%q", t)
	}
	c.report(rel, FieldTarget, targets[0], targets[1])
	return nil
}

func (c *comparison) xattrs(rel string) error {
	var sets [2]map[string]string
	names := map[string]bool{}
	for i, root := range c.roots {
		set, err := xattrs(filepath.Join(root, rel))
		if err != nil {
			return fmt.Errorf("compare %q: %w", rel, err)
		}
		for name := range set {
			names[name] = true
		}
		sets[i] = set
	}
	value := func(set map[string]string, name string) string {
		if v, ok := set[name]; ok {
			return fmt.Sprintf("%q", v)
		}
		return "absent"
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		c.report(rel, FieldXattr+name, value(sets[0], name), value(sets[1], name))
	}
	return nil
}

// contents compares the files that could only be told apart by reading them.
func (c *comparison) contents(ctx context.Context) error {
	sums := make([][2]string, len(c.files))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU())
	for i, rel := range c.files {
		g.Go(func() error {
			for j, root := range c.roots {
				sum, err := hashFile(ctx, filepath.Join(root, rel))
				if err != nil {
					return fmt.Errorf("compare content of %q: %w", rel, err)
				}
				sums[i][j] = sum
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, rel := range c.files {
		c.report(rel, FieldContent, sums[i][0], sums[i][1])
	}
	return nil
}

func hashFile(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	buf := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if err == io.EOF {
			return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
	}
}

// lstat returns nil where there is nothing at path.
func lstat(path string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stat %q: %w", path, err)
	}
	return &st, nil
}

// firstOf returns the first path that was seen with the inode of st, which is
// rel if there was none before.
func firstOf(links map[inode]string, st *unix.Stat_t, rel string) string {
	key := inode{st.Dev, st.Ino}
	if first, ok := links[key]; ok {
		return first
	}
	links[key] = rel
	return rel
}

func typeName(st *unix.Stat_t) string {
	if st == nil {
		return "absent"
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "regular file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	}
	return fmt.Sprintf("type %#o", st.Mode&unix.S_IFMT)
}

func mode(st *unix.Stat_t) string { return fmt.Sprintf("%04o", st.Mode&0o7777) }

func mtime(st *unix.Stat_t) string { return fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec) }

func device(st *unix.Stat_t) string {
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
}

// xattrs returns the extended attributes of path itself, not of what a symlink
// points to.
func xattrs(path string) (map[string]string, error) {
	list, err := grow(func(p []byte) (int, error) { return unix.Llistxattr(path, p) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	set := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		v, err := grow(func(p []byte) (int, error) { return unix.Lgetxattr(path, name, p) })
		if err != nil {
			return nil, fmt.Errorf("read extended attribute %q: %w", name, err)
		}
		set[name] = string(v)
	}
	return set, nil
}

// grow calls get, which answers ERANGE when p is too small, with enough room.
func grow(get func(p []byte) (int, error)) ([]byte, error) {
	p := make([]byte, 1024)
	n, err := get(p)
	if errors.Is(err, unix.ERANGE) {
		// 64 KiB is the kernel's limit for a list and for a value (XATTR_SIZE_MAX).
		p = make([]byte, 64<<10)
		n, err = get(p)
	}
	if err != nil {
		return nil, err
	}
	return p[:n], nil
}
