package erofs

import (
	"strings"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
)

// The namespaces the format has numbers for. A POSIX ACL's name is all
// namespace.
const (
	xattrUser       = 1
	xattrACLAccess  = 2
	xattrACLDefault = 3
	xattrTrusted    = 4
	xattrLustre     = 5
	xattrSecurity   = 6
)

// opaqueXattr marks a directory for overlayfs as hiding what is below it.
var opaqueXattr = estargz.Xattr{Name: "trusted.overlay.opaque", Value: []byte("y")}

// xattrs holds the distinct name and value pairs of a file system.
type xattrs struct {
	all  []xattr
	refs []int32 // indexes into all, inode by inode
	// index finds a pair by its namespace, name and value.
	index   map[string]int32
	key     []byte // scratch
	skipped int
}

type xattr struct {
	namespace byte
	name      string // without the namespace
	value     []byte
	uses      int
	// off is where a shared pair lies in the shared area, -1 for others.
	off int64
}

func (x *xattr) size() int64 {
	return int64(alignUp(xattrEntrySize+len(x.name)+len(x.value), 4))
}

func (x *xattr) put(b []byte) {
	b[0], b[1] = byte(len(x.name)), x.namespace
	le.PutUint16(b[2:], uint16(len(x.value)))
	copy(b[4+copy(b[4:], x.name):], x.value)
}

// add notes the attributes of an inode and returns where their references
// are in refs.
func (t *xattrs) add(ino *inode) (first, n int32, err error) {
	first = int32(len(t.refs))
	for i, x := range ino.entry.Xattrs {
		if i > 0 && x.Name <= ino.entry.Xattrs[i-1].Name {
			return 0, 0, blob.Errorf(blob.Invalid, "attributes %q and %q are not in order", ino.entry.Xattrs[i-1].Name, x.Name)
		}
		namespace, name := splitXattr(x.Name)
		ofFileOrDir := ino.entry.Type == estargz.Regular || ino.entry.Type == estargz.Dir
		switch {
		case namespace == 0, namespace == xattrUser && !ofFileOrDir, ofOverlay(x.Name):
			t.skipped++
			continue
		case len(x.Name) > MaxName || strings.Contains(name, "\x00"):
			return 0, 0, blob.Errorf(blob.Invalid, "%q is not a name for an attribute", x.Name)
		case len(x.Value) > MaxXattrValue:
			return 0, 0, blob.Errorf(blob.Invalid, "attribute %q has %d bytes, at most %d are possible", x.Name, len(x.Value), MaxXattrValue)
		}
		t.ref(namespace, name, x.Value)
	}
	if ino.opaque {
		namespace, name := splitXattr(opaqueXattr.Name)
		t.ref(namespace, name, opaqueXattr.Value)
	}
	return first, int32(len(t.refs)) - first, nil
}

func (t *xattrs) ref(namespace byte, name string, value []byte) {
	t.key = append(t.key[:0], namespace, byte(len(name)))
	t.key = append(append(t.key, name...), value...)
	id, ok := t.index[string(t.key)]
	if !ok {
		if t.index == nil {
			t.index = make(map[string]int32)
		}
		id = int32(len(t.all))
		t.index[string(t.key)] = id
		t.all = append(t.all, xattr{namespace: namespace, name: name, value: value, off: -1})
	}
	t.all[id].uses++
	t.refs = append(t.refs, id)
}

// splitXattr cuts an attribute's name in the namespace's number and the rest.
// The number is 0 where Linux would take the name for no attribute's.
func splitXattr(name string) (namespace byte, rest string) {
	switch name {
	case "system.posix_acl_access":
		return xattrACLAccess, ""
	case "system.posix_acl_default":
		return xattrACLDefault, ""
	}
	prefix, rest, _ := strings.Cut(name, ".")
	if rest == "" {
		return 0, name
	}
	switch prefix {
	case "user":
		return xattrUser, rest
	case "trusted":
		return xattrTrusted, rest
	case "lustre":
		return xattrLustre, rest
	case "security":
		return xattrSecurity, rest
	}
	return 0, name
}

// ofOverlay reports whether overlayfs takes the attribute as an instruction;
// a layer must not give it any.
func ofOverlay(name string) bool {
	return strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.")
}

// share lays out the shared area, of every pair more than one inode has, and
// returns its size.
func (t *xattrs) share() int64 {
	var end int64
	for i := range t.all {
		if x := &t.all[i]; x.uses > 1 {
			x.off = end
			end += x.size()
		}
	}
	return end
}

// body returns the size of the attributes with the given references as an
// inode carries them.
func (t *xattrs) body(refs []int32) (int64, error) {
	if len(refs) == 0 {
		return 0, nil
	}
	size, shared := int64(0), 0
	for _, id := range refs {
		if t.all[id].off >= 0 && shared < maxSharedXattrs {
			shared++
			size += 4
		} else {
			size += t.all[id].size()
		}
	}
	if size > MaxXattrBody {
		return 0, blob.Errorf(blob.Invalid, "attributes take %d bytes, at most %d are possible", size, MaxXattrBody)
	}
	return xattrHeaderSize + size, nil
}

// put writes the attributes with the given references into an inode.
func (t *xattrs) put(b []byte, refs []int32) {
	shared := 0
	for _, id := range refs {
		if t.all[id].off >= 0 && shared < maxSharedXattrs {
			le.PutUint32(b[xattrHeaderSize+4*shared:], uint32(t.all[id].off/4))
			shared++
		}
	}
	b[4] = byte(shared)
	b = b[xattrHeaderSize+4*shared:]
	for _, id := range refs {
		x := &t.all[id]
		if x.off >= 0 && shared > 0 {
			shared--
			continue
		}
		x.put(b)
		b = b[x.size():]
	}
}

// putShared writes the shared area.
func (t *xattrs) putShared(b []byte) {
	for i := range t.all {
		if x := &t.all[i]; x.off >= 0 {
			x.put(b[x.off:])
		}
	}
}
