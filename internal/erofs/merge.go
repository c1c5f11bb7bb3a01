package erofs

import (
	"strings"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
)

// Whiteouts, OCI image spec, layer.md. Other names with the opaque marker's
// prefix are the bookkeeping of AUFS and mean nothing.
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// merger applies layers to a tree, one entry at a time, as an unpacker does
// to a directory.
type merger struct {
	*tree
	keepWhiteouts bool
	layer         int32 // being applied, counts from 0

	// lastDir is the directory of the entry before and lastNode what it
	// resolved to, valid while nothing was removed since: entries of one
	// directory come together.
	lastDir      string
	lastNode     nodeID
	lastRemovals int
}

func merge(layers []*estargz.TOC, keepWhiteouts bool) (*tree, error) {
	n := 0
	for _, l := range layers {
		n += len(l.Entries)
	}
	m := &merger{tree: newTree(min(n, MaxEntries)), keepWhiteouts: keepWhiteouts, lastNode: rootNode}
	for i, l := range layers {
		if err := l.Digest.Validate(); err != nil || l.Digest.Algorithm() != digest.SHA256 {
			return nil, blob.Errorf(blob.Invalid, "merge layer %d: TOC digest %q is not a SHA-256 digest", i, l.Digest)
		}
		m.layer = int32(i)
		for j := range l.Entries {
			e := &l.Entries[j]
			err := checkEntry(e, l.Index.DataSize)
			if err == nil {
				err = m.apply(e)
			}
			if err != nil {
				return nil, blob.Errorf(blob.Invalid, "merge layer %d (TOC %s): entry %q: %w", i, l.Digest, e.Name, err)
			}
		}
	}
	return m.tree, nil
}

// checkEntry reports what no image can express about e, apart from its name
// and its attributes. dataSize is the length of its layer's flat data.
func checkEntry(e *estargz.Entry, dataSize int64) error {
	switch e.Type {
	case estargz.Dir, estargz.Fifo:
	case estargz.Regular:
		if e.Size < 0 || e.DataOff < 0 || e.DataOff%estargz.BlockSize != 0 || e.DataOff > dataSize || e.Size > dataSize-e.DataOff {
			return blob.Errorf(blob.Invalid, "%d bytes at %d are not a file in a layer of %d bytes of data", e.Size, e.DataOff, dataSize)
		}
		if e.DataOff+e.Size > MaxDeviceSize {
			return blob.Errorf(blob.Invalid, "content ends %d bytes into the layer's data, at most %d can be addressed", e.DataOff+e.Size, MaxDeviceSize)
		}
	case estargz.Symlink:
		if e.Link == "" || len(e.Link) > MaxSymlink || strings.Contains(e.Link, "\x00") {
			return blob.Errorf(blob.Invalid, "symlink target of %d bytes is empty, longer than %d or contains a zero byte", len(e.Link), MaxSymlink)
		}
	case estargz.Hardlink:
		if e.Link == "" {
			return blob.Errorf(blob.Invalid, "hard link to the root directory")
		}
	case estargz.Char, estargz.Block:
		if e.DevMajor >= 1<<12 || e.DevMinor >= 1<<20 {
			return blob.Errorf(blob.Invalid, "device number %d:%d is beyond Linux' 12 and 20 bits", e.DevMajor, e.DevMinor)
		}
	default:
		return blob.Errorf(blob.Invalid, "unknown entry type %d", e.Type)
	}
	if e.MTimeNsec >= 1e9 {
		return blob.Errorf(blob.Invalid, "modification time has %d nanoseconds", e.MTimeNsec)
	}
	return nil
}

// split cuts a path into the directory and the last element.
func split(path string) (dir, base string) {
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)], path[i+1:]
}

// apply does what unpacking e would do.
func (m *merger) apply(e *estargz.Entry) error {
	if e.Name == "" {
		return m.applyRoot(e)
	}
	dir, base := split(e.Name)
	if strings.HasPrefix(base, whiteoutPrefix) {
		return m.applyWhiteout(e, dir, base)
	}
	parent, err := m.makeDir(dir)
	if err != nil {
		return err
	}
	hash := m.names.hash(parent, base)
	old := m.lookupHash(hash, parent, base)
	hides := false
	if old != 0 {
		if e.Type == estargz.Dir && m.isDir(old) {
			m.at(old).entry = e
			m.touch(old)
			return nil
		}
		hides = m.at(old).whiteout
		m.remove(old)
	}
	var ino inodeID
	if e.Type == estargz.Hardlink {
		if ino, err = m.linkTarget(e.Link); err != nil {
			return err
		}
	} else {
		ino = m.newInode(e, m.layer)
		m.inodes[ino].opaque = hides && e.Type == estargz.Dir
	}
	n, err := m.insert(hash, parent, base, ino)
	if err != nil {
		return err
	}
	m.touch(n)
	return nil
}

func (m *merger) applyRoot(e *estargz.Entry) error {
	if e.Type != estargz.Dir {
		return blob.Errorf(blob.Invalid, "the root is not a directory")
	}
	m.at(rootNode).entry = e
	m.touch(rootNode)
	return nil
}

// linkTarget finds the inode a hard link to the path link shares.
func (m *merger) linkTarget(link string) (inodeID, error) {
	dir, base := split(link)
	parent, missing, err := m.walk(rootNode, dir)
	if err != nil {
		return 0, blob.Errorf(blob.Invalid, "resolve hard link to %q: %w", link, err)
	}
	var n nodeID
	if len(missing) == 0 {
		n = m.lookup(parent, base)
	}
	switch {
	case n == 0 || m.at(n).whiteout:
		return 0, blob.Errorf(blob.Invalid, "hard link to %q, which is neither before it in this layer nor in one below", link)
	case m.isDir(n):
		return 0, blob.Errorf(blob.Invalid, "hard link to %q, which is a directory", link)
	}
	return m.nodes[n].inode, nil
}

// makeDir resolves dir and makes what is missing of it.
func (m *merger) makeDir(dir string) (nodeID, error) {
	start, rest := rootNode, dir
	if m.lastRemovals == m.removals {
		if dir == m.lastDir {
			return m.lastNode, nil
		}
		if tail, ok := strings.CutPrefix(dir, m.lastDir); ok && m.lastDir != "" && tail[0] == '/' {
			start, rest = m.lastNode, tail
		}
	}
	at, missing, err := m.walk(start, rest)
	if err != nil {
		return 0, err
	}
	for _, name := range missing {
		ino := m.newInode(implicitDir, m.layer)
		hash := m.names.hash(at, name)
		if old := m.lookupHash(hash, at, name); old != 0 { // a whiteout, see walk
			m.remove(old)
			m.inodes[ino].opaque = true
		}
		if at, err = m.insert(hash, at, name, ino); err != nil {
			return 0, err
		}
	}
	m.lastDir, m.lastNode, m.lastRemovals = dir, at, m.removals
	return at, nil
}

// touch marks n and everything above it as spoken of by this layer, which
// whiteouts in the same layer therefore leave alone.
func (m *merger) touch(n nodeID) {
	for m.nodes[n].touched != m.layer+1 {
		m.nodes[n].touched = m.layer + 1
		n = m.nodes[n].parent
	}
}

func (m *merger) applyWhiteout(e *estargz.Entry, dir, base string) error {
	name := strings.TrimPrefix(base, whiteoutPrefix)
	opaque := base == whiteoutOpaque
	if !opaque {
		if strings.HasPrefix(base, whiteoutMeta) {
			return nil
		}
		if err := checkName(name); err != nil {
			return blob.Errorf(blob.Invalid, "whiteout: %w", err)
		}
	}
	if m.keepWhiteouts {
		return m.keepWhiteout(e, dir, name, opaque)
	}
	n, missing, err := m.walk(rootNode, dir)
	if err != nil || len(missing) > 0 {
		return nil // There is nothing to delete.
	}
	if !opaque {
		if n = m.lookup(n, name); n == 0 {
			return nil
		}
		if m.nodes[n].touched != m.layer+1 {
			m.remove(n)
			return nil
		}
	}
	m.hide(n)
	return nil
}

// hide removes everything below n that this layer has not spoken of. Doing it
// again in the same layer would find nothing, and is not tried.
func (m *merger) hide(n nodeID) {
	work := []nodeID{n}
	for len(work) > 0 {
		n, work = work[len(work)-1], work[:len(work)-1]
		if m.nodes[n].hidden == m.layer+1 {
			continue
		}
		m.nodes[n].hidden = m.layer + 1
		for c := m.nodes[n].first; c != 0; {
			next := m.nodes[c].next
			if m.nodes[c].touched == m.layer+1 {
				work = append(work, c)
			} else {
				m.remove(c)
			}
			c = next
		}
	}
}

// keepWhiteout records a whiteout in the form overlayfs knows. One for a name
// the layer also creates hides only what lower layers have there.
func (m *merger) keepWhiteout(e *estargz.Entry, dir, name string, opaque bool) error {
	parent, err := m.makeDir(dir)
	if err != nil {
		return err
	}
	n := parent
	if !opaque {
		n = m.lookup(parent, name)
	}
	if n != 0 {
		if m.isDir(n) {
			m.at(n).opaque = true
		}
		return nil
	}
	ino := m.newInode(&estargz.Entry{Type: estargz.Char, MTime: e.MTime, MTimeNsec: e.MTimeNsec}, m.layer)
	m.inodes[ino].whiteout = true
	_, err = m.insert(m.names.hash(parent, name), parent, name, ino)
	return err
}
