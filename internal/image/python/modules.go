package python

import (
	"iter"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Modules are the modules of a tree of files, for an interpreter of one version.
// Paths are absolute. It is not safe for concurrent use.
type Modules struct {
	version string // "3.11"
	minor   int    // 11
	tag     string // "cpython-311"
	files   map[string]module
	folders map[string]bool // that have modules in them, at any depth
	configs []string        // path configuration files
	path    []string        // the search path
}

// module are the files that a module can be read from.
type module struct {
	compiled, source, extension string
}

// best returns the file that the interpreter reads.
func (m module) best() string {
	switch {
	case m.extension != "":
		return m.extension
	case m.compiled != "":
		return m.compiled
	}
	return m.source
}

var (
	interpreterName = regexp.MustCompile(`^python(3\.\d+)$`)
	compiledName    = regexp.MustCompile(`\.cpython-3(\d+)\.pyc$`)
	libraryName     = regexp.MustCompile(`/python(3\.\d+)/`)
)

// Version returns the version of the interpreter that is in that file; empty if its
// name is not that of one.
func Version(file string) string {
	if m := interpreterName.FindStringSubmatch(path.Base(file)); m != nil {
		return m[1]
	}
	return ""
}

// VersionOf returns the version that a module is for, by its path; empty where that
// does not say.
func VersionOf(file string) string {
	if m := compiledName.FindStringSubmatch(file); m != nil {
		return "3." + m[1]
	}
	if m := libraryName.FindStringSubmatch(file); m != nil {
		return m[1]
	}
	return ""
}

// NewModules finds the modules among files for an interpreter of that version.
func NewModules(version string, files iter.Seq[string]) *Modules {
	m := &Modules{
		version: version,
		tag:     "cpython-" + strings.ReplaceAll(version, ".", ""),
		files:   make(map[string]module),
		folders: make(map[string]bool),
	}
	_, minor, _ := strings.Cut(version, ".")
	m.minor, _ = strconv.Atoi(minor)
	for file := range files {
		m.file(file)
	}
	slices.Sort(m.configs)
	return m
}

// file notes a file, if it is one of a module.
func (m *Modules) file(file string) {
	dir, base := path.Split(file)
	dir = strings.TrimSuffix(dir, "/")
	stem, kind, ok := strings.Cut(base, ".")
	if !ok {
		return
	}
	switch {
	case kind == "py":
		key := m.key(dir, stem)
		found := m.files[key]
		found.source = file
		m.files[key] = found
	case kind == m.tag+".pyc" && path.Base(dir) == "__pycache__":
		key := m.key(path.Dir(dir), stem)
		found := m.files[key]
		found.compiled = file
		m.files[key] = found
	case kind == "so" || kind == "abi3.so" || strings.HasPrefix(kind, m.tag+"-") && strings.HasSuffix(kind, ".so"):
		key := m.key(dir, stem)
		found := m.files[key]
		found.extension = file
		m.files[key] = found
	case strings.HasSuffix(base, ".pth"):
		m.configs = append(m.configs, file)
	}
}

// key returns what a module is kept under: its path without the ending; of a package,
// that of its folder and what is loaded with it.
func (m *Modules) key(dir, stem string) string {
	for d := dir; !m.folders[d] && d != "/" && d != "."; d = path.Dir(d) {
		m.folders[d] = true
	}
	return dir + "/" + stem
}

// Interpreter has modules searched where that interpreter does, and returns what it
// reads before its program: its codecs, and what configures its search path.
func (m *Modules) Interpreter(file string) []string {
	prefix := path.Dir(path.Dir(file))
	m.Library(path.Join(prefix, "lib", "python"+m.version))
	var first []string
	for _, name := range []string{"encodings", "encodings.aliases", "encodings.utf_8"} {
		first = append(first, m.Named(name)...)
	}
	if m.minor < firstFrozen {
		for _, name := range withInterpreter {
			first = append(first, m.Named(name)...)
		}
	}
	for _, c := range m.configs {
		if slices.Contains(m.path, path.Dir(c)) {
			first = append(first, c)
		}
	}
	return append(first, m.Named("sitecustomize")...)
}

// firstFrozen is the minor version of Python 3 since which the modules withInterpreter are
// in the interpreter (Python/frozen.c of CPython); before, they are read when it starts.
const firstFrozen = 11

var withInterpreter = []string{
	"codecs", "io", "abc", "site", "os", "stat", "posixpath", "genericpath", "_collections_abc", "_sitebuiltins", "_bootlocale",
}

// inInterpreter are modules that are never read, or only for other systems.
var inInterpreter = map[string]bool{"importlib._bootstrap": true, "importlib._bootstrap_external": true, "zipimport": true, "ntpath": true}

func (m *Modules) frozen(name string) bool {
	return inInterpreter[name] || m.minor >= firstFrozen && slices.Contains(withInterpreter, name)
}

// Library has modules searched in the standard library in that folder, and where
// packages are installed beside it: by the Python Packaging Authority's tools and by
// Debian's.
func (m *Modules) Library(folder string) {
	m.Search(folder)
	m.Search(path.Join(folder, "lib-dynload"))
	prefix := path.Dir(path.Dir(folder))
	for _, dir := range []string{
		path.Join(prefix, "local/lib", path.Base(folder), "dist-packages"),
		path.Join(prefix, "lib/python3/dist-packages"),
		path.Join(folder, "dist-packages"), path.Join(folder, "site-packages"),
		path.Join("/usr/local/lib", path.Base(folder), "site-packages"),
	} {
		m.Search(dir)
	}
}

// Environment has modules searched in the virtual environment whose interpreter, or script
// of a package in it, is at that path (PEP 405); it does nothing where there is none.
func (m *Modules) Environment(program string) {
	m.Search(path.Join(path.Dir(path.Dir(program)), "lib", "python"+m.version, "site-packages"))
}

// Search adds a folder to the end of the search path, if it has modules.
func (m *Modules) Search(dir string) {
	if m.folders[dir] && !slices.Contains(m.path, dir) {
		m.path = append(m.path, dir)
	}
}

// Named returns the files that importing a module reads: of the packages around it,
// and its own. None where it is in none.
func (m *Modules) Named(name string) []string {
	if m.frozen(name) {
		return nil
	}
	first, _, _ := strings.Cut(name, ".")
	for _, dir := range m.path {
		if m.has(dir, first) {
			files, _ := m.in(dir, name)
			return files
		}
	}
	return nil
}

// Main returns the files that running a module reads, with "python -m".
func (m *Modules) Main(name string) []string {
	return append(m.Named(name), m.Named(name+".__main__")...)
}

// has reports whether a folder has a module or package of that name.
func (m *Modules) has(dir, name string) bool {
	at := dir + "/" + name
	_, ok := m.files[at]
	return ok || m.folders[at]
}

// in returns the files of a module, dotted, in a folder, those of packages around it
// too, and the folder of it if it is a package.
func (m *Modules) in(dir, name string) (files []string, folder string) {
	at := dir
	for part := range strings.SplitSeq(name, ".") {
		if part == "" || !m.has(at, part) {
			return files, ""
		}
		at += "/" + part
		if m.folders[at] {
			if init, ok := m.files[at+"/__init__"]; ok {
				files = append(files, init.best())
				continue
			}
		}
		if found, ok := m.files[at]; ok {
			return append(files, found.best()), ""
		}
	}
	return files, at
}

// Loads returns the files that loading a file reads in addition: of the modules that
// its code names. Where modules of its own folder are searched is learned from it.
// Errors are about its content.
func (m *Modules) Loads(file string, content []byte) ([]string, error) {
	var scopes []Scope
	dir := path.Dir(file)
	if strings.HasSuffix(file, ".pyc") {
		if path.Base(dir) == "__pycache__" {
			dir = path.Dir(dir)
		}
		var err error
		if scopes, err = Compiled(content); err != nil {
			return nil, err
		}
	} else {
		scopes = Source(string(content))
	}
	m.learn(dir)
	return m.imported(dir, scopes), nil
}

// Command returns the files that a program given as "python -c" reads.
func (m *Modules) Command(text string) []string {
	return m.imported("", Source(text))
}

// learn adds the folder to the search path that the package in dir was found in.
func (m *Modules) learn(dir string) {
	for {
		if _, ok := m.files[dir+"/__init__"]; !ok || dir == "/" {
			break
		}
		dir = path.Dir(dir)
	}
	if base := path.Base(dir); base == "python"+m.version {
		m.Library(dir)
		return
	}
	for _, known := range m.path {
		if known == dir || strings.HasPrefix(dir, known+"/") {
			return // a package without a file of its own
		}
	}
	m.Search(dir)
}

// imported returns the files of what a module in dir names, in order and each once.
func (m *Modules) imported(dir string, scopes []Scope) []string {
	var files []string
	seen := make(map[string]bool)
	add := func(more []string) {
		for _, f := range more {
			if f != "" && !seen[f] {
				seen[f] = true
				files = append(files, f)
			}
		}
	}
	for _, s := range scopes {
		bases := m.bases(dir, s.Levels)
		for _, name := range s.Names {
			first, _, _ := strings.Cut(name, ".")
			i := slices.IndexFunc(bases, func(base string) bool { return m.has(base, first) })
			if i < 0 || m.frozen(name) {
				continue
			}
			found, folder := m.in(bases[i], name)
			add(found)
			if folder == "" {
				continue
			}
			for _, name := range s.From {
				if m.has(folder, name) {
					found, _ := m.in(folder, name)
					add(found)
				}
			}
		}
	}
	return files
}

// bases returns the folders in which a module in dir searches: of packages around it,
// the nearest first, then those of the search path.
func (m *Modules) bases(dir string, levels []int) []string {
	var bases []string
	if dir != "" {
		for level, base := 1, dir; level <= maxLevel; level, base = level+1, path.Dir(base) {
			if _, ok := m.files[base+"/__init__"]; !ok {
				break
			}
			if slices.Contains(levels, level) {
				bases = append(bases, base)
			}
		}
	}
	if slices.Contains(levels, 0) {
		bases = append(bases, m.path...)
	}
	return bases
}
