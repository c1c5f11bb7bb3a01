package install

import (
	"bytes"
	"fmt"
	"maps"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"

	"skimmer/internal/blob"
)

// DefaultContainerdConfig is where containerd reads its configuration.
const DefaultContainerdConfig = "/etc/containerd/config.toml"

// Containerd makes a snapshotter known to containerd. Versions 2, 3 and 4 of
// its configuration are understood.
type Containerd struct {
	// Config is the file; empty is DefaultContainerdConfig.
	Config string
	// Name is what containerd calls the snapshotter; empty is "stargz", which
	// nerdctl and others take to understand eStargz.
	Name string
	// Address is the snapshotter's unix socket, an absolute path. Uninstall
	// does not need it.
	Address string
	// Root is where the snapshotter keeps its data, which containerd 2 shows to
	// those who ask; empty is /var/lib/skimmer.
	Root string
	// HostsDir, where set, is the directory in which CRI is to find out how
	// registries are reached (see Hosts), unless it is told another one already.
	HostsDir string
	// Unpacker, where set, is the skimmer that is to decompress the layers which
	// containerd unpacks, an absolute path; one that cannot be written down is left
	// out, with a note.
	Unpacker string
	// Version is containerd's, such as "1.7.27" or what containerd --version
	// prints; empty if unknown, which does not do where there is no file yet.
	Version string
}

// written is the first line of files that did not exist before.
const written = "# Written by skimmer install containerd."

// The names of plugins in containerd's configuration.
const (
	cri2     = "io.containerd.grpc.v1.cri"
	cri3     = "io.containerd.cri.v1.images"
	transfer = "io.containerd.transfer.v1.local"
)

var unpackPath = []string{"plugins", transfer, "unpack_config"}

// setting is a key and what it has to be.
type setting struct {
	path  []string
	value any // string, bool or a list of strings
}

// processorPath is where containerd finds a program that decompresses layers, and
// unpackedTypes are the media types of those that it is given.
var (
	processorPath = []string{"stream_processors", "skimmer"}
	unpackedTypes = []any{"application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"}
)

// unpackScript runs the program that it is called as, which decompresses; where that is not
// there any more, gzip, so that containerd unpacks whatever becomes of us. It has no
// quotes, which a configuration may use for its own.
const unpackScript = "set -f; IFS=; [ -x $0 ] && exec $0 unpack-stream; exec gzip -cdf"

// settings lists what containerd needs. full adds what only containerd 2
// takes.
func (c *Containerd) settings(version int64, full bool) []setting {
	cri := []string{"plugins", cri2, "containerd"}
	if version >= 3 {
		cri = []string{"plugins", cri3}
	}
	proxy := []string{"proxy_plugins", c.Name}
	at := func(dir []string, key ...string) []string { return slices.Concat(dir, key) }
	all := []setting{
		{at(cri, "snapshotter"), c.Name},
		{at(cri, "disable_snapshot_annotations"), false},
		{at(proxy, "type"), "snapshot"},
		{at(proxy, "address"), c.Address},
	}
	if c.HostsDir != "" {
		all = append(all, setting{configPath(version), c.HostsDir})
	}
	if c.Unpacker != "" {
		all = append(all,
			setting{at(processorPath, "accepts"), unpackedTypes},
			setting{at(processorPath, "returns"), "application/vnd.oci.image.layer.v1.tar"},
			setting{at(processorPath, "path"), "/bin/sh"},
			setting{at(processorPath, "args"), []any{"-c", unpackScript, c.Unpacker}})
	}
	if full {
		all = append(all,
			setting{at(proxy, "exports", "root"), c.Root},
			setting{at(proxy, "exports", "enable_remote_snapshot_annotations"), "true"})
	}
	return all
}

// configPath is where CRI is told which directory says how registries are
// reached.
func configPath(version int64) []string {
	if version >= 3 {
		return []string{"plugins", cri3, "registry", "config_path"}
	}
	return []string{"plugins", cri2, "registry", "config_path"}
}

var (
	validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$`)
	validPath = regexp.MustCompile(`^/[a-zA-Z0-9/._+@:,=~ -]{0,200}$`)
)

// complete fills in defaults and checks what was given.
func (c *Containerd) complete() error {
	if c.Config == "" {
		c.Config = DefaultContainerdConfig
	}
	if c.Name == "" {
		c.Name = "stargz"
	}
	if c.Root == "" {
		c.Root = "/var/lib/skimmer"
	}
	if !validName.MatchString(c.Name) || slices.Contains([]string{"overlayfs", "native"}, c.Name) {
		return blob.Errorf(blob.Invalid, "configure containerd: %q cannot be the name of a plugin of ours", c.Name)
	}
	for _, path := range []string{c.Address, c.Root, c.HostsDir} {
		if path != "" && !validPath.MatchString(path) {
			return blob.Errorf(blob.Invalid, "configure containerd: %q is not an absolute path in plain characters", path)
		}
	}
	return nil
}

// Install returns what makes the snapshotter known; an empty Change where it
// is. The text is compared before and after as containerd would read it, and
// refused unless only the intended keys differ.
//
// Errors: Invalid for a file that cannot be edited, with the way out.
func (c Containerd) Install() (*Change, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	if c.Address == "" {
		return nil, blob.Errorf(blob.Invalid, "configure containerd: no socket given")
	}
	before, err := readFile(c.Config)
	if err != nil {
		return nil, fmt.Errorf("configure containerd: %w", err)
	}
	change := &Change{Path: c.Config, Before: before, backup: true}
	text := before
	if before == nil {
		if text, err = c.minimal(); err != nil {
			return nil, err
		}
	}
	if change.After, change.Notes, err = c.edit(text); err != nil {
		return nil, fmt.Errorf("edit %s: %w", c.Config, err)
	}
	if err := c.checkImports(before); err != nil {
		return nil, fmt.Errorf("edit %s: %w", c.Config, err)
	}
	return change, nil
}

// minimal is the text to begin with where there is none.
func (c *Containerd) minimal() ([]byte, error) {
	major, _, ok := parseVersion(c.Version)
	if !ok {
		return nil, blob.Errorf(blob.Invalid, "configure containerd: there is no %s, and which version of containerd it is for is not known: "+
			"install containerd first, or say its version", c.Config)
	}
	version := 2
	if major >= 2 {
		version = 3
	}
	return fmt.Appendf(nil, "%s\nversion = %d\n", written, version), nil
}

var versionPattern = regexp.MustCompile(`(?:^|[ v])(\d{1,4})\.(\d{1,4})(?:\.|$|[-~+ ])`)

// parseVersion finds major and minor version in a version, or in what
// containerd --version prints.
func parseVersion(s string) (major, minor int, ok bool) {
	m := versionPattern.FindStringSubmatch(s)
	if m == nil {
		return 0, 0, false
	}
	major, _ = strconv.Atoi(m[1])
	minor, _ = strconv.Atoi(m[2])
	return major, minor, true
}

// fileVersion returns the version of a configuration, or says what to do
// about one that is not understood.
func fileVersion(content map[string]any) (int64, error) {
	v, there := content["version"]
	n, isNumber := v.(int64)
	switch {
	case !there || n == 1:
		return 0, blob.Errorf(blob.Invalid, "it is in format version 1 (there is no line version = 2), which containerd 2 does not read any more: "+
			"convert it with \"containerd config migrate\", or, if there is nothing in it you need, move it away; then try again")
	case !isNumber || n < 2 || n > 4:
		return 0, blob.Errorf(blob.Invalid, "format version %v is not known; 2, 3 and 4 are", v)
	}
	return n, nil
}

// edit returns the text with everything set, and notes about it. It works on
// nothing but its arguments.
func (c *Containerd) edit(text []byte) ([]byte, []string, error) {
	d, content, err := parse(text)
	if err != nil {
		return nil, nil, err
	}
	version, err := fileVersion(content)
	if err != nil {
		return nil, nil, err
	}
	major, minor, known := parseVersion(c.Version)
	full := version >= 3 || major >= 2
	notes := c.unpackNotes(content)
	if mirrors, there := lookup(content, append(configPath(version)[:3:3], "mirrors")); there && c.HostsDir != "" && mirrors != nil {
		return nil, nil, blob.Errorf(blob.Invalid, "it has registry.mirrors, which containerd does not take together with registry.config_path: "+
			"move them to files hosts.toml first (https://github.com/containerd/containerd/blob/main/docs/hosts.md), or leave --registry out")
	}
	for _, s := range c.settings(version, full) {
		old, there := lookup(content, s.path)
		if there && (reflect.DeepEqual(old, s.value) || old != "" && slices.Equal(s.path, configPath(version))) {
			continue // the user's own directory is ours too
		}
		if there && old != "" {
			notes = append(notes, fmt.Sprintf("%s was %v", d.dotted(s.path), old))
		}
		text, err := d.set(s.path, d.value(s.value))
		if err != nil {
			return nil, nil, err
		}
		want := clone(content)
		if !store(want, s.path, s.value) {
			return nil, nil, blob.Errorf(blob.Invalid, "set %s: something on the way to it is not a table", d.dotted(s.path))
		}
		if d, content, err = reread(text, want); err != nil {
			return nil, nil, fmt.Errorf("set %s: %w", d.dotted(s.path), err)
		}
	}
	if major > 2 || major == 2 && minor >= 1 || !known && version >= 3 {
		if d, err = c.addUnpack(d, content); err != nil {
			return nil, nil, fmt.Errorf("set %s: %w", d.dotted(unpackPath), err)
		}
	}
	return d.text, append(notes, criNotes(content)...), nil
}

// FindHostsDir returns the directory in which a containerd with this
// configuration looks for how registries are reached: the first that it names,
// or DefaultHostsDir.
func (c Containerd) FindHostsDir() (string, error) {
	if err := c.complete(); err != nil {
		return "", err
	}
	text, err := readFile(c.Config)
	if err != nil || text == nil {
		return DefaultHostsDir, err
	}
	_, content, err := parse(text)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", c.Config, err)
	}
	version, err := fileVersion(content)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", c.Config, err)
	}
	if value, _ := lookup(content, configPath(version)); value != nil {
		if dir, _, _ := strings.Cut(fmt.Sprint(value), ":"); dir != "" {
			return dir, nil
		}
	}
	return DefaultHostsDir, nil
}

// criNotes says what keeps Kubernetes from using what was configured.
func criNotes(content map[string]any) []string {
	disabled, _ := content["disabled_plugins"].([]any)
	for _, name := range []any{"cri", cri2, cri3} {
		if slices.Contains(disabled, name) {
			return []string{"disabled_plugins turns CRI off, so that Kubernetes cannot use this containerd"}
		}
	}
	return nil
}

// unpackNotes leaves decompressing to a program that the configuration names for it
// already: of two, containerd would take either.
func (c *Containerd) unpackNotes(content map[string]any) []string {
	if c.Unpacker != "" && !validPath.MatchString(c.Unpacker) {
		note := fmt.Sprintf("%q is not an absolute path in plain characters: containerd goes on decompressing layers itself", c.Unpacker)
		c.Unpacker = ""
		return []string{note}
	}
	processors, _ := content[processorPath[0]].(map[string]any)
	for _, name := range slices.Sorted(maps.Keys(processors)) {
		p, _ := processors[name].(map[string]any)
		accepts, _ := p["accepts"].([]any)
		if name == processorPath[1] || c.Unpacker == "" || !slices.ContainsFunc(accepts, func(t any) bool { return slices.Contains(unpackedTypes, t) }) {
			continue
		}
		c.Unpacker = ""
		return []string{fmt.Sprintf("stream processor %s decompresses layers already, and goes on doing so", name)}
	}
	return nil
}

// value writes a setting's value.
func (d *document) value(v any) string {
	switch v := v.(type) {
	case string:
		return d.quoted(v)
	case []any:
		items := make([]string, len(v))
		for i, item := range v {
			items[i] = d.value(item)
		}
		return "[" + strings.Join(items, ", ") + "]"
	}
	return fmt.Sprint(v)
}

// reread parses a text that was edited, and refuses it unless it says what is
// wanted and nothing else. After an error the document is empty, not nil.
func reread(text []byte, want map[string]any) (*document, map[string]any, error) {
	d, content, err := parse(text)
	if err != nil {
		return &document{}, nil, fmt.Errorf("the file is written in a way that cannot be edited: %w", err)
	}
	if !reflect.DeepEqual(prune(clone(content)), prune(clone(want))) {
		return &document{}, nil, blob.Errorf(blob.Invalid, "the file is written in a way that cannot be edited without changing more than that")
	}
	return d, content, nil
}

// unpackEntry is an element of the transfer service's list of snapshotters.
func unpackEntry(snapshotter string) map[string]any {
	return map[string]any{"platform": "linux/" + runtime.GOARCH, "snapshotter": snapshotter}
}

// addUnpack lets containerd's transfer service unpack to the snapshotter. A
// list that is there replaces containerd's own, so a new one has that in it.
func (c *Containerd) addUnpack(d *document, content map[string]any) (*document, error) {
	old, there := lookup(content, unpackPath)
	list, isList := old.([]any)
	if there && !isList {
		return d, blob.Errorf(blob.Invalid, "it is not a list")
	}
	for _, e := range list {
		if e, ok := e.(map[string]any); ok && e["snapshotter"] == c.Name {
			return d, nil
		}
	}
	names := []string{c.Name}
	if !there {
		names = []string{"overlayfs", c.Name}
	}
	want := clone(content)
	for _, name := range names {
		list = append(slices.Clip(list), unpackEntry(name))
	}
	text := d.text
	s := d.find(unpackPath)
	if s != nil && bytes.IndexByte(text[s.value:s.end], '\n') >= 0 {
		list = slices.Concat(list[len(list)-1:], list[:len(list)-1]) // see intoInline
	}
	if !store(want, unpackPath, list) {
		return d, blob.Errorf(blob.Invalid, "something on the way to it is not a table")
	}
	if s != nil && s.of == unstable.Array {
		e := unpackEntry(c.Name)
		text = d.intoInline(s, fmt.Sprintf("{ platform = %s, snapshotter = %s }", d.value(e["platform"]), d.value(e["snapshotter"])))
	} else {
		for _, name := range names {
			e := unpackEntry(name)
			next := *d
			next.text = text
			text = next.appendTable("[["+d.dotted(unpackPath)+"]]",
				"platform = "+d.value(e["platform"]), "snapshotter = "+d.value(e["snapshotter"]))
		}
	}
	edited, _, err := reread(text, want)
	if err != nil {
		return d, err
	}
	return edited, nil
}

// maxImports bounds how many imported files are looked at.
const maxImports = 64

// checkImports refuses to edit a file whose imports have the last word.
func (c *Containerd) checkImports(text []byte) error {
	_, content, err := parse(text)
	if err != nil {
		return err
	}
	files, err := importsOf(c.Config, content)
	if err != nil {
		return err
	}
	for _, f := range files {
		for _, path := range [][]string{{"plugins", cri2}, {"plugins", cri3}, {"plugins", transfer, "unpack_config"}, {"proxy_plugins", c.Name}, processorPath} {
			if _, there := lookup(f.content, path); there {
				return blob.Errorf(blob.Invalid, "it imports %s, which has %s and overrides what is written here: "+
					"edit that file, with --config %s", f.path, strings.Join(path, "."), f.path)
			}
		}
	}
	return nil
}

// imported is a file that a configuration imports.
type imported struct {
	path    string
	content map[string]any
}

// importsOf returns the files a configuration imports, and those they do.
func importsOf(path string, content map[string]any) ([]imported, error) {
	var files []imported
	seen := map[string]bool{path: true}
	queue := []imported{{path, content}}
	for len(queue) > 0 {
		from := queue[0]
		queue = queue[1:]
		patterns, _ := from.content["imports"].([]any)
		for _, p := range patterns {
			pattern, _ := p.(string)
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join(filepath.Dir(from.path), pattern)
			}
			names, err := filepath.Glob(pattern)
			if err != nil {
				return nil, blob.Errorf(blob.Invalid, "read imports: %s: %w", pattern, err)
			}
			for _, name := range names {
				if seen[name] {
					continue
				}
				if seen[name] = true; len(seen) > maxImports {
					return nil, blob.Errorf(blob.Invalid, "read imports: there are more than %d", maxImports)
				}
				text, err := readFile(name)
				if err != nil {
					return nil, fmt.Errorf("read imports: %w", err)
				}
				_, content, err := parse(text)
				if err != nil {
					return nil, fmt.Errorf("read imports: %s: %w", name, err)
				}
				files = append(files, imported{name, content})
				queue = append(queue, imported{name, content})
			}
		}
	}
	return files, nil
}

// lookup returns what is at a path.
func lookup(content map[string]any, path []string) (any, bool) {
	for _, key := range path[:len(path)-1] {
		content, _ = content[key].(map[string]any)
	}
	v, ok := content[path[len(path)-1]]
	return v, ok
}

// store puts a value at a path, and reports whether it could.
func store(content map[string]any, path []string, value any) bool {
	for _, key := range path[:len(path)-1] {
		next, ok := content[key].(map[string]any)
		if !ok {
			if _, there := content[key]; there {
				return false
			}
			next = make(map[string]any)
			content[key] = next
		}
		content = next
	}
	content[path[len(path)-1]] = value
	return true
}

// clone copies a content's tables; nothing else in it is ever changed.
func clone(content map[string]any) map[string]any {
	c := maps.Clone(content)
	for key, v := range c {
		if table, ok := v.(map[string]any); ok {
			c[key] = clone(table)
		}
	}
	return c
}

// prune removes empty tables, which mean nothing to containerd, and returns
// content.
func prune(content map[string]any) map[string]any {
	for key, v := range content {
		if table, ok := v.(map[string]any); ok && len(prune(table)) == 0 {
			delete(content, key)
		}
	}
	return content
}
