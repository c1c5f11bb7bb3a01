package estargz

import (
	"bytes"
	"fmt"
	"path"
	"strings"
)

// nameBlock is how many bytes of names get memory together.
const nameBlock = 64 << 10

// names makes the strings of a table of contents. They stay as long as the table
// does, so that it costs nothing to let many share a block.
type names struct {
	last  strings.Builder // only ever appended to
	block int             // how large the next one is, at least
}

// add returns p as a string.
func (n *names) add(p []byte) string {
	if n.last.Cap()-n.last.Len() < len(p) {
		n.last.Reset()
		n.last.Grow(max(n.block, len(p)))
	}
	start := n.last.Len()
	n.last.Write(p)
	return n.last.String()[start:]
}

// cleanName returns name as a path below the root, as Entry.Name has it.
func cleanName(name []byte) (string, error) { return new(names).clean(name) }

// clean is cleanName.
func (n *names) clean(name []byte) (string, error) {
	name = trimSlash(name)
	if isClean(name) {
		return n.add(name), nil
	}
	s := strings.TrimPrefix(path.Clean("/"+string(name)), "/")
	if s == "" || isClean([]byte(s)) {
		return s, nil
	}
	return "", fmt.Errorf("name %q holds a NUL or an element of more than %d bytes", s, maxNameElement)
}

// entryName returns the name of the next entry, which often is in the directory
// of the one before.
func (d *decoder) entryName(name []byte) (string, error) {
	name = trimSlash(name)
	if rest, ok := bytes.CutPrefix(name, d.dir); !ok || !isClean(rest) {
		d.dir = nil
		if !isClean(name) {
			return d.names.clean(name)
		}
	}
	d.dir = name[:bytes.LastIndexByte(name, '/')+1]
	return d.names.add(name), nil
}

// trimSlash returns name without the slash that directories usually have.
func trimSlash(name []byte) []byte {
	if n := len(name); n > 0 && name[n-1] == '/' {
		return name[:n-1]
	}
	return name
}

// isClean reports whether name is, as it stands, a path below the root that
// a file system can hold.
func isClean(name []byte) bool {
	if bytes.IndexByte(name, 0) >= 0 {
		return false
	}
	for more := true; more; {
		var element []byte
		element, name, more = bytes.Cut(name, []byte{'/'})
		switch {
		case len(element) == 0, len(element) > maxNameElement,
			element[0] == '.' && (len(element) == 1 || string(element) == ".."):
			return false
		}
	}
	return true
}
