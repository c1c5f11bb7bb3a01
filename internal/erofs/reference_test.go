package erofs

import (
	"errors"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"skimmer/internal/estargz"
)

// unpacker is the reference for merging: it unpacks layers one after another
// into a directory of maps, the way tar unpackers do, with no thought for
// speed. It shares nothing with the code under test.
type unpacker struct {
	root    *refNode
	written map[string]bool // what this layer has written, and all above it
}

type refNode struct {
	f    file
	kids map[string]*refNode
}

var errUnpack = errors.New("cannot be unpacked")

func newDir(f file) *refNode { return &refNode{f: f, kids: map[string]*refNode{}} }

func unpack(layers []layer) (world, error) {
	u := &unpacker{root: newDir(dir("", 0o755))}
	u.root.f.MTime = 0
	for _, l := range layers {
		u.written = map[string]bool{}
		for _, f := range l.files {
			if err := u.entry(f); err != nil {
				return nil, err
			}
		}
	}
	return u.world(), nil
}

// real resolves the directory p, following symlinks, to a path without any.
func (u *unpacker) real(p string, links *int) (string, error) {
	at := ""
	for i, c := range strings.Split(p, "/") {
		rest := strings.Join(strings.Split(p, "/")[i+1:], "/")
		if c == "" || c == "." {
			continue
		}
		if c == ".." {
			at = strings.TrimPrefix(path.Dir("/"+at), "/")
			continue
		}
		n := u.find(path.Join(at, c))
		if n != nil && n.f.Type == estargz.Symlink {
			if *links++; *links > 40 {
				return "", errUnpack
			}
			to := n.f.Link
			if !strings.HasPrefix(to, "/") {
				to = at + "/" + to
			}
			return u.real(to+"/"+rest, links)
		}
		if n != nil && n.kids == nil {
			return "", errUnpack
		}
		at = path.Join(at, c)
	}
	return at, nil
}

// find returns what is at the path p, which leads through no symlink.
func (u *unpacker) find(p string) *refNode {
	n := u.root
	for c := range strings.SplitSeq(p, "/") {
		if c == "" {
			continue
		}
		if n.kids == nil || n.kids[c] == nil {
			return nil
		}
		n = n.kids[c]
	}
	return n
}

func (u *unpacker) mkdirAll(p string) *refNode {
	n := u.root
	for c := range strings.SplitSeq(p, "/") {
		if c == "" {
			continue
		}
		if n.kids[c] == nil {
			n.kids[c] = newDir(file{Entry: estargz.Entry{Type: estargz.Dir, Mode: 0o755}})
		}
		n = n.kids[c]
	}
	return n
}

func (u *unpacker) entry(f file) error {
	if f.Name == "" {
		if f.Type != estargz.Dir {
			return errUnpack
		}
		u.root.f = f
		return nil
	}
	up, base := path.Split(f.Name)
	if strings.HasPrefix(base, ".wh.") {
		return u.whiteout(up, base)
	}
	up, err := u.real(up, new(int))
	if err != nil {
		return err
	}
	parent, name := u.mkdirAll(up), path.Join(up, base)
	if old := parent.kids[base]; old != nil && old.kids != nil && f.Type == estargz.Dir {
		old.f = f
	} else {
		delete(parent.kids, base)
		n := &refNode{f: f}
		switch f.Type {
		case estargz.Dir:
			n = newDir(f)
		case estargz.Hardlink:
			to, toBase := path.Split(f.Link)
			if to, err = u.real(to, new(int)); err != nil {
				return err
			}
			if n = u.find(path.Join(to, toBase)); n == nil || n.kids != nil {
				return errUnpack
			}
		}
		parent.kids[base] = n
	}
	for p := name; p != "." && p != ""; p = path.Dir(p) {
		u.written[p] = true
	}
	return nil
}

func (u *unpacker) whiteout(up, base string) error {
	if base != ".wh..wh..opq" && strings.HasPrefix(base, ".wh..wh.") {
		return nil
	}
	if gone := base[len(".wh."):]; gone == "" || gone == "." || gone == ".." {
		return errUnpack
	}
	up, err := u.real(up, new(int))
	if err != nil {
		return nil
	}
	if base == ".wh..wh..opq" {
		if n := u.find(up); n != nil {
			u.purge(n, up)
		}
		return nil
	}
	parent, base := u.find(up), base[len(".wh."):]
	if parent == nil || parent.kids[base] == nil {
		return nil
	}
	if !u.written[path.Join(up, base)] {
		delete(parent.kids, base)
	} else {
		u.purge(parent.kids[base], path.Join(up, base))
	}
	return nil
}

func (u *unpacker) purge(n *refNode, p string) {
	for name, k := range n.kids {
		if !u.written[path.Join(p, name)] {
			delete(n.kids, name)
		} else {
			u.purge(k, path.Join(p, name))
		}
	}
}

// world says what a mount of the unpacked tree must look like.
func (u *unpacker) world() world {
	w := world{}
	first := map[*refNode]string{}
	links := map[*refNode]uint32{}
	var visit func(p string, n *refNode)
	visit = func(p string, n *refNode) {
		if _, ok := first[n]; !ok {
			first[n] = p
		}
		links[n]++
		e := n.f.Entry
		f := facts{Mode: uint32(modeBits[e.Type]) | e.Mode, UID: e.UID, GID: e.GID, MTime: e.MTime, MTimeNsec: int64(e.MTimeNsec), Peers: first[n]}
		xs := map[string]string{}
		for _, x := range e.Xattrs {
			xs[x.Name] = string(x.Value)
		}
		f.Xattrs = xattrList(xs)
		switch e.Type {
		case estargz.Regular:
			f.Size, f.Content = e.Size, contentHash(n.f.data)
		case estargz.Symlink:
			f.Size, f.Link, f.Mode = int64(len(e.Link)), e.Link, unix.S_IFLNK|0o777
		case estargz.Char, estargz.Block:
			f.Rdev = unix.Mkdev(e.DevMajor, e.DevMinor)
		}
		w[p] = f
		var names []string
		for name := range n.kids {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			visit(strings.TrimPrefix(p+"/"+name, "/"), n.kids[name])
			if n.kids[name].kids != nil {
				links[n]++
			}
		}
		if n.kids != nil {
			links[n]++
		}
	}
	visit("", u.root)
	byPath := map[string]*refNode{}
	for n, p := range first {
		byPath[p] = n
	}
	for p, f := range w {
		f.Nlink = links[byPath[f.Peers]]
		w[p] = f
	}
	return w
}

var modeBits = map[estargz.EntryType]uint32{
	estargz.Dir: unix.S_IFDIR, estargz.Regular: unix.S_IFREG, estargz.Symlink: unix.S_IFLNK,
	estargz.Char: unix.S_IFCHR, estargz.Block: unix.S_IFBLK, estargz.Fifo: unix.S_IFIFO,
}
