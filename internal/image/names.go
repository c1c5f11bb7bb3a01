package image

import (
	"path"
	"slices"
	"strings"

	"skimmer/internal/estargz"
)

// located is an entry of the merged layers.
type located struct {
	layer int
	entry *estargz.Entry
}

// names finds entries of merged layers by path. What layers delete is found
// all the same: it is good for guesses only.
type names map[string]located

func newNames(tocs []*estargz.TOC) names {
	entries := 0
	for _, toc := range tocs {
		entries += len(toc.Entries)
	}
	n := make(names, entries)
	for i, toc := range tocs {
		for j := range toc.Entries {
			n[toc.Entries[j].Name] = located{i, &toc.Entries[j]}
		}
	}
	return n
}

// file returns the regular file at an absolute path, symbolic links followed,
// and the path it really has.
func (n names) file(name string) (located, string, bool) {
	rest := strings.Split(strings.TrimPrefix(path.Clean("/"+name), "/"), "/")
	at := ""
	for links := 0; len(rest) > 0; {
		next := path.Join(at, rest[0])
		found, ok := n[next]
		if ok && found.entry.Type == estargz.Symlink {
			if links++; links > maxLinks {
				return located{}, "", false
			}
			target := found.entry.Link
			if !path.IsAbs(target) {
				target = path.Join("/", at, target)
			}
			rest = append(strings.Split(strings.TrimPrefix(path.Clean(target), "/"), "/"), rest[1:]...)
			at = ""
			continue
		}
		at, rest = next, rest[1:]
	}
	found, ok := n[at]
	for links := 0; ok && found.entry.Type == estargz.Hardlink && links < maxLinks; links++ {
		found, ok = n[found.entry.Link]
	}
	return found, "/" + at, ok && found.entry.Type == estargz.Regular && found.entry.Size > 0
}

// frontOf returns the path of the library that a program of that name is a front
// of: the one that is called like it, "libnode.so.108" for "node", in a folder
// where the loader looks. Empty where there is none; of several, the first by name.
func (n names) frontOf(program string) string {
	found := ""
	for name, at := range n {
		version, ok := strings.CutPrefix(path.Base(name), "lib"+program)
		if !ok || !strings.HasPrefix(version, ".") && !strings.HasPrefix(version, "-") || !strings.Contains(version, ".so") {
			continue
		}
		if at.entry.Type == estargz.Regular && slices.Contains(libraryFolders, "/"+path.Dir(name)) && (found == "" || "/"+name < found) {
			found = "/" + name
		}
	}
	return found
}
