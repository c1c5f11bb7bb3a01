package erofs

import (
	"fmt"
	"strings"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
)

// nodeID and inodeID index tree.nodes and tree.inodes. Zero is none.
type (
	nodeID  int32
	inodeID int32
)

const rootNode nodeID = 1

// tree is a file system tree in the making: names (nodes) and what they name
// (inodes), of which hard links share one. Lists are threaded through the
// nodes instead of hanging off them, because a tree of 200,000 names must not
// be 200,000 little objects.
type tree struct {
	nodes  []node
	inodes []inode
	names  names
	// removals counts removed nodes; it tells holders of a nodeID that it may
	// have become stale.
	removals int
}

type node struct {
	name       string
	parent     nodeID
	first      nodeID // of the children, the one added last
	next, prev nodeID // siblings
	inode      inodeID
	// touched is the layer that last said something about this node or one
	// below it; hidden the one that last hid what lower layers put there.
	// Layers count from 1 here.
	touched, hidden int32
}

type inode struct {
	entry *estargz.Entry
	layer int32 // whose flat data the content is in; counts from 0
	nlink uint32
	// opaque and whiteout are what they are to overlayfs.
	opaque, whiteout bool

	place place
}

// implicitDir is the entry of directories no layer lists.
var implicitDir = &estargz.Entry{Type: estargz.Dir, Mode: 0o755}

func newTree(capacity int) *tree {
	t := &tree{
		nodes:  make([]node, 1, capacity+2),
		inodes: make([]inode, 1, capacity+2),
		names:  newNames(capacity),
	}
	t.nodes = append(t.nodes, node{parent: rootNode, inode: t.newInode(implicitDir, 0)})
	return t
}

func (t *tree) newInode(e *estargz.Entry, layer int32) inodeID {
	t.inodes = append(t.inodes, inode{entry: e, layer: layer})
	return inodeID(len(t.inodes) - 1)
}

// at returns the inode n names.
func (t *tree) at(n nodeID) *inode { return &t.inodes[t.nodes[n].inode] }

func (t *tree) isDir(n nodeID) bool { return t.at(n).entry.Type == estargz.Dir }

// insert gives inode ino a name in parent, which must not have a child of
// that name. hash is that of the name.
func (t *tree) insert(hash uint32, parent nodeID, name string, ino inodeID) (nodeID, error) {
	if err := checkName(name); err != nil {
		return 0, err
	}
	if len(t.nodes) > MaxEntries {
		return 0, blob.Errorf(blob.Invalid, "more than %d directory entries", MaxEntries)
	}
	id := nodeID(len(t.nodes))
	head := t.nodes[parent].first
	t.nodes = append(t.nodes, node{name: name, parent: parent, next: head, inode: ino})
	if head != 0 {
		t.nodes[head].prev = id
	}
	t.nodes[parent].first = id
	t.names.add(hash, id)
	t.inodes[ino].nlink++
	return id, nil
}

// checkName reports an element of a path that cannot be a file's name.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return blob.Errorf(blob.Invalid, "%q is not a file name", name)
	case len(name) > MaxName:
		return blob.Errorf(blob.Invalid, "file name of %d bytes, at most %d are possible", len(name), MaxName)
	case strings.IndexByte(name, 0) >= 0:
		return blob.Errorf(blob.Invalid, "file name %q contains a zero byte", name)
	}
	return nil
}

// remove takes n and all below it out of the tree. It does not recurse: how
// deep a tree is, a stranger decided.
func (t *tree) remove(n nodeID) {
	for cur := n; ; {
		if below := t.nodes[cur].first; below != 0 {
			cur = below
			continue
		}
		parent := t.nodes[cur].parent
		t.unlink(cur)
		if cur == n {
			return
		}
		cur = parent
	}
}

// unlink takes the childless node n out of the tree.
func (t *tree) unlink(n nodeID) {
	d := &t.nodes[n]
	if d.prev != 0 {
		t.nodes[d.prev].next = d.next
	} else {
		t.nodes[d.parent].first = d.next
	}
	if d.next != 0 {
		t.nodes[d.next].prev = d.prev
	}
	t.names.remove(t.names.hash(d.parent, d.name), n)
	t.inodes[d.inode].nlink--
	t.removals++
}

// maxLinks is how many symlinks one path may lead through, as in Linux' own
// path lookup.
const maxLinks = 40

// walk resolves path, from the root, to a directory, following symlinks as a
// process confined to the tree would. It returns the deepest node that is
// there and the names below it that are not. A path through something that is
// neither directory nor symlink is an error.
func (t *tree) walk(start nodeID, path string) (at nodeID, missing []string, err error) {
	at = start
	links := 0
	for path != "" {
		var name string
		name, path, _ = strings.Cut(path, "/")
		if name == "" || name == "." {
			continue
		}
		if name == ".." {
			if len(missing) > 0 {
				missing = missing[:len(missing)-1]
			} else {
				at = t.nodes[at].parent
			}
			continue
		}
		var next nodeID
		if len(missing) == 0 {
			next = t.lookup(at, name)
		}
		if next == 0 {
			missing = append(missing, name)
			continue
		}
		switch e := t.at(next).entry; e.Type {
		case estargz.Dir:
			at = next
		case estargz.Symlink:
			if links++; links > maxLinks {
				return 0, nil, fmt.Errorf("too many symlinks on the way")
			}
			if strings.HasPrefix(e.Link, "/") {
				at = rootNode
			}
			path = e.Link + "/" + path
		default:
			if t.at(next).whiteout {
				missing = append(missing, name)
				continue
			}
			return 0, nil, fmt.Errorf("parent %q is not a directory", name)
		}
	}
	return at, missing, nil
}
