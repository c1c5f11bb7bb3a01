package nodejs

import (
	"encoding/json"
	"path"
	"slices"
	"strings"
)

// globalFolders are where Debian's Node.js looks for packages that are in no node_modules.
var globalFolders = []string{
	"/usr/share/nodejs", "/usr/lib/nodejs", "/usr/lib/x86_64-linux-gnu/nodejs", "/usr/lib/aarch64-linux-gnu/nodejs",
}

// builtIn are modules that are no files.
var builtIn = []string{
	"assert", "assert/strict", "async_hooks", "buffer", "child_process", "cluster", "console", "constants", "crypto", "dgram",
	"diagnostics_channel", "dns", "dns/promises", "domain", "events", "fs", "fs/promises", "http", "http2", "https", "inspector",
	"inspector/promises", "module", "net", "os", "path", "path/posix", "path/win32", "perf_hooks", "process", "punycode", "querystring",
	"readline", "readline/promises", "repl", "stream", "stream/consumers", "stream/promises", "stream/web", "string_decoder", "sys",
	"timers", "timers/promises", "tls", "trace_events", "tty", "url", "util", "util/types", "v8", "vm", "wasi", "worker_threads", "zlib",
}

// Modules are the modules of a tree of files. Paths are absolute. It is not safe for
// concurrent use.
type Modules struct {
	find     func(file string) (real string, ok bool)
	folders  []string // where packages are looked for that are in no node_modules
	packages map[string]*description
}

// description is what a package says of itself, in its package.json.
type description struct {
	known   bool // it was read
	main    string
	exports any
	wanted  []entry // before it was
}

// entry is a module of a package by the package's name.
type entry struct {
	sub      string // "." or "./sub"
	imported bool
}

// NewModules returns the modules among the files that find knows: of a path it returns the
// one without symbolic links. folders are those of the NODE_PATH variable.
func NewModules(find func(file string) (real string, ok bool), folders []string) *Modules {
	return &Modules{find: find, folders: slices.Concat(folders, globalFolders), packages: make(map[string]*description)}
}

// ownModules are modules of Node.js itself that Debian's reads from files when it starts
// (its --shared-builtin options), in order, by their paths in a global folder.
var ownModules = []string{
	"cjs-module-lexer/lexer.js", "cjs-module-lexer/dist/lexer.js", "undici/undici-fetch.js", "acorn/dist/acorn.js", "acorn-walk/dist/walk.js",
}

// Interpreter returns what Node.js reads before any program.
func (m *Modules) Interpreter() []string {
	var files []string
	for _, name := range ownModules {
		if real, ok := m.find(path.Join(globalFolders[0], name)); ok {
			files = append(files, real)
		}
	}
	return files
}

// Main returns the files that running a file reads: which it is, and what describes the
// package around it.
func (m *Modules) Main(file string) []string {
	found := m.file(file, false)
	for _, f := range found {
		if around := m.around(path.Dir(f)); around != "" && !slices.Contains(found, around) {
			found = append([]string{around}, found...)
			break
		}
	}
	return found
}

// Describes reports whether a package says that a file is of it.
func (m *Modules) Describes(file string) bool { return m.around(path.Dir(file)) != "" }

// Preloaded returns the files of a module that is loaded before the program.
func (m *Modules) Preloaded(dir, name string) []string { return m.resolve(dir, Specifier{Name: name}) }

// Command returns the files that a program reads which is given as text.
func (m *Modules) Command(dir, text string) []string { return m.named(dir, Source(text)) }

// Loads returns the files that loading a file reads in addition, in order and each once.
// Errors are about its content.
func (m *Modules) Loads(file string, content []byte) ([]string, error) {
	switch {
	case path.Base(file) == packageFile:
		return m.describe(file, content)
	case path.Ext(file) == ".json":
		return nil, nil
	}
	return m.named(path.Dir(file), Source(string(content))), nil
}

func (m *Modules) named(dir string, specifiers []Specifier) []string {
	var files []string
	for _, s := range specifiers {
		files = append(files, m.resolve(dir, s)...)
	}
	return once(files)
}

// once returns list without what stands in it before.
func once(list []string) []string {
	seen := make(map[string]bool, len(list))
	return slices.DeleteFunc(list, func(f string) bool {
		before := seen[f]
		seen[f] = true
		return before
	})
}

// packageFile describes a package, or those files of one that are around it.
const packageFile = "package.json"

// around returns the description that holds for files in dir; empty if there is none.
func (m *Modules) around(dir string) string {
	for ; ; dir = path.Dir(dir) {
		if real, ok := m.find(path.Join(dir, packageFile)); ok {
			return real
		}
		if dir == "/" || dir == "." {
			return ""
		}
	}
}

// resolve returns the files that a name in a module in dir stands for.
func (m *Modules) resolve(dir string, s Specifier) []string {
	name := s.Name
	switch {
	case strings.HasPrefix(name, "/"):
		return m.file(name, s.Import)
	case name == "." || name == ".." || strings.HasPrefix(name, "./") || strings.HasPrefix(name, "../"):
		if last := name[strings.LastIndexByte(name, '/')+1:]; last == "" || last == "." || last == ".." {
			return m.folder(path.Join(dir, name))
		}
		return m.file(path.Join(dir, name), s.Import)
	case strings.HasPrefix(name, "#") || strings.Contains(name, ":") || slices.Contains(builtIn, name):
		return nil // of the package's own map, built in, or a URL
	}
	pkg, sub := splitPackage(strings.TrimSuffix(name, "/"))
	for d := dir; ; d = path.Dir(d) {
		if path.Base(d) != "node_modules" {
			if found := m.inPackage(path.Join(d, "node_modules", pkg), entry{sub, s.Import}); found != nil {
				return found
			}
		}
		if d == "/" || d == "." {
			break
		}
	}
	for _, d := range m.folders {
		if found := m.inPackage(path.Join(d, pkg), entry{sub, s.Import}); found != nil {
			return found
		}
	}
	return nil
}

// splitPackage splits a name into that of a package, and which of its modules is meant.
func splitPackage(name string) (pkg, sub string) {
	parts := strings.SplitN(name, "/", 3)
	n := 1
	if strings.HasPrefix(name, "@") {
		n = 2
	}
	if len(parts) <= n {
		return name, "."
	}
	return strings.Join(parts[:n], "/"), "./" + strings.Join(parts[n:], "/")
}

// inPackage returns the files of a module of the package in dir; nil where there is none.
func (m *Modules) inPackage(dir string, e entry) []string {
	described, ok := m.find(path.Join(dir, packageFile))
	if !ok {
		if e.sub == "." {
			return m.file(dir, false) // one file, or no description
		}
		return m.file(path.Join(dir, e.sub), e.imported)
	}
	return append([]string{described}, m.entry(described, e)...)
}

// entry returns the files of a module of a described package, once it is known which.
func (m *Modules) entry(described string, e entry) []string {
	d := m.packages[described]
	if d == nil {
		d = &description{}
		m.packages[described] = d
	}
	if !d.known {
		if !slices.Contains(d.wanted, e) {
			d.wanted = append(d.wanted, e)
		}
		return nil
	}
	dir := path.Dir(described)
	if d.exports != nil {
		if target := exported(d.exports, e); target != "" {
			return m.file(path.Join(dir, target), true)
		}
	}
	switch {
	case e.sub != ".":
		return m.file(path.Join(dir, e.sub), false)
	case d.main != "":
		if found := m.file(path.Join(dir, d.main), false); found != nil {
			return found
		}
	}
	return m.index(dir)
}

// describe notes what a package says of itself, and returns the files of those modules that
// were asked for before.
func (m *Modules) describe(file string, content []byte) ([]string, error) {
	d := m.packages[file]
	if d == nil {
		d = &description{}
		m.packages[file] = d
	}
	var doc struct {
		Main    any `json:"main"`
		Exports any `json:"exports"`
	}
	d.known = true
	err := json.Unmarshal(content, &doc)
	if err == nil {
		d.main, _ = doc.Main.(string)
		d.exports = doc.Exports
	}
	var files []string
	for _, e := range d.wanted {
		files = append(files, m.entry(file, e)...)
	}
	d.wanted = nil
	return once(files), err
}

// exported returns which file a package exports as a module, relative to the package; empty
// where it does not.
func exported(exports any, e entry) string {
	paths, ok := exports.(map[string]any)
	if !ok || !hasPaths(paths) {
		if e.sub != "." {
			return ""
		}
		return target(exports, e.imported, "", 0)
	}
	if to, ok := paths[e.sub]; ok {
		return target(to, e.imported, "", 0)
	}
	// The longest that fits.
	best, middle := "", ""
	for pattern := range paths {
		before, after, ok := strings.Cut(pattern, "*")
		if !ok || len(e.sub) < len(before)+len(after) || !strings.HasPrefix(e.sub, before) || !strings.HasSuffix(e.sub, after) {
			continue
		}
		if len(pattern) > len(best) || len(pattern) == len(best) && pattern < best {
			best, middle = pattern, e.sub[len(before):len(e.sub)-len(after)]
		}
	}
	if best == "" {
		return ""
	}
	return target(paths[best], e.imported, middle, 0)
}

// hasPaths reports whether the keys are modules of the package, and not conditions.
func hasPaths(exports map[string]any) bool {
	for key := range exports {
		return strings.HasPrefix(key, ".")
	}
	return false
}

// maxConditions is how deep conditions may be nested.
const maxConditions = 8

// target returns the file that conditions lead to; middle stands for the star in it. What a
// JSON object says first counts first for Node.js; which that is, is not known here, and the
// default comes last.
func target(to any, imported bool, middle string, depth int) string {
	if depth > maxConditions {
		return ""
	}
	switch to := to.(type) {
	case string:
		return strings.ReplaceAll(to, "*", middle)
	case []any:
		for _, one := range to {
			if found := target(one, imported, middle, depth+1); found != "" {
				return found
			}
		}
	case map[string]any:
		kind := "require"
		if imported {
			kind = "import"
		}
		for _, condition := range []string{"node", "node-addons", kind, "module-sync", "default"} {
			if one, ok := to[condition]; ok {
				if found := target(one, imported, middle, depth+1); found != "" {
					return found
				}
			}
		}
	}
	return ""
}

// file returns the file of a module by its path, which may lack the ending or be a folder
// if it is not to be exact.
func (m *Modules) file(p string, exact bool) []string {
	if real, ok := m.find(p); ok {
		return []string{real}
	}
	if exact {
		return nil
	}
	for _, ending := range []string{".js", ".json", ".node"} {
		if real, ok := m.find(p + ending); ok {
			return []string{real}
		}
	}
	return m.folder(p)
}

// folder returns the files of the module that a folder is.
func (m *Modules) folder(dir string) []string {
	if described, ok := m.find(path.Join(dir, packageFile)); ok {
		return append([]string{described}, m.entry(described, entry{sub: "."})...)
	}
	return m.index(dir)
}

// index returns the module of a folder that says nothing of itself.
func (m *Modules) index(dir string) []string {
	for _, name := range []string{"index.js", "index.json", "index.node"} {
		if real, ok := m.find(path.Join(dir, name)); ok {
			return []string{real}
		}
	}
	return nil
}
