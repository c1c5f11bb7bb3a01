package config

import (
	"embed"
	"encoding"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"reflect"
	"slices"
	"strings"
)

// sources are the files whose structs are documented by their own comments.
//
//go:embed peer.go proxy.go scheduler.go swarm.go tracing.go
var sources embed.FS

// Files returns the generated documentation: the content of each file, by
// its path below docs/. They are kept in the repository, and a test compares.
func Files() (map[string]string, error) {
	comments, err := readComments()
	if err != nil {
		return nil, err
	}
	peer, scheduler := DefaultPeer(), DefaultScheduler()
	peerKeys := keysOf(reflect.ValueOf(&peer).Elem(), "", comments)
	schedulerKeys := keysOf(reflect.ValueOf(&scheduler).Elem(), "", comments)
	return map[string]string{
		"config.md":             markdown("peer", renamed(comments["Peer"], "Peer", "This file"), peerKeys),
		"config/peer.yaml":      sample("peer", peerKeys),
		"config-scheduler.md":   markdown("scheduler", renamed(comments["Scheduler"], "Scheduler", "This file"), schedulerKeys),
		"config/scheduler.yaml": sample("scheduler", schedulerKeys),
	}, nil
}

// keyDoc is what there is to say about one key.
type keyDoc struct {
	path, name   string
	kind         string // what its value is, for people
	value        string // the default, as YAML
	comment      string
	section      []keyDoc // its own keys, where it has any
	sectionAbout string   // the comment on the section's type
}

// readComments returns the comments on types, by name, and on their fields,
// by Type.Field, from the embedded sources.
func readComments() (map[string]string, error) {
	comments := make(map[string]string)
	entries, err := sources.ReadDir(".")
	if err != nil {
		return nil, fmt.Errorf("read embedded sources: %w", err)
	}
	for _, e := range entries {
		src, err := sources.ReadFile(e.Name())
		if err != nil {
			return nil, fmt.Errorf("read embedded sources: %w", err)
		}
		f, err := parser.ParseFile(token.NewFileSet(), e.Name(), src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("parse embedded %s: %w", e.Name(), err)
		}
		for _, d := range f.Decls {
			if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.TYPE {
				typeComments(g, comments)
			}
		}
	}
	return comments, nil
}

func typeComments(g *ast.GenDecl, comments map[string]string) {
	for _, s := range g.Specs {
		t := s.(*ast.TypeSpec)
		st, ok := t.Type.(*ast.StructType)
		if !ok {
			continue
		}
		comments[t.Name.Name] = oneLine(g.Doc.Text())
		for _, f := range st.Fields.List {
			for _, n := range f.Names {
				comments[t.Name.Name+"."+n.Name] = oneLine(f.Doc.Text())
			}
		}
	}
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// keysOf describes the keys of the struct v, whose values are the defaults.
func keysOf(v reflect.Value, parent string, comments map[string]string) []keyDoc {
	var all []keyDoc
	for i := range v.NumField() {
		f := v.Type().Field(i)
		k := keyDoc{name: keyOf(f), path: join(parent, keyOf(f))}
		k.comment = renamed(comments[v.Type().Name()+"."+f.Name], f.Name, k.name)
		if isSection(f.Type) {
			k.section = keysOf(v.Field(i), k.path, comments)
			k.sectionAbout = renamed(comments[f.Type.Name()], f.Type.Name(), k.name)
		} else {
			k.kind, k.value = kindOf(f.Type), encode(v.Field(i))
			k.comment += ofElements(f.Type, comments)
		}
		all = append(all, k)
	}
	return all
}

// ofElements says which keys the elements of a list have, if they have any.
func ofElements(t reflect.Type, comments map[string]string) string {
	if t.Kind() != reflect.Slice || !isSection(t.Elem()) {
		return ""
	}
	var keys []string
	zero := reflect.New(t.Elem()).Elem()
	for _, k := range keysOf(zero, "", comments) {
		keys = append(keys, fmt.Sprintf("%s (%s): %s", k.name, k.kind, strings.TrimSuffix(strings.TrimPrefix(k.comment, k.name+" "), ".")))
	}
	return " Each has the keys " + strings.Join(keys, "; ") + "."
}

// renamed returns a comment that begins with the Go name of what it is on,
// with the name files have for it instead.
func renamed(comment, from, to string) string {
	if rest, ok := strings.CutPrefix(comment, from+" "); ok {
		return to + " " + rest
	}
	return comment
}

// kindOf says in a word what values of type t are.
func kindOf(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[Bytes]():
		return "size"
	case reflect.TypeFor[Duration]():
		return "duration"
	}
	switch {
	case reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()), t.Kind() == reflect.String:
		return "text"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Slice:
		return "list"
	case t.Kind() == reflect.Map:
		return "names with values"
	}
	return "number"
}

// encode writes v, which is no section, as YAML on one line.
func encode(v reflect.Value) string {
	if m, ok := v.Interface().(encoding.TextMarshaler); ok {
		if text, err := m.MarshalText(); err == nil {
			return quote(string(text))
		}
	}
	switch v.Kind() {
	case reflect.String:
		return quote(v.String())
	case reflect.Map:
		var items []string
		for it := v.MapRange(); it.Next(); {
			items = append(items, quote(it.Key().String())+": "+encode(it.Value()))
		}
		slices.Sort(items)
		return "{" + strings.Join(items, ", ") + "}"
	case reflect.Slice:
		var items []string
		for i := range v.Len() {
			items = append(items, encode(v.Index(i)))
		}
		return "[" + strings.Join(items, ", ") + "]"
	}
	return fmt.Sprint(v.Interface())
}

// quote puts quotes around text that YAML would not take as it is. What has
// only these characters and is not empty needs none in any place.
func quote(s string) string {
	plain := s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._") == ""
	if plain {
		return s
	}
	return fmt.Sprintf("%q", s)
}

// sample returns a file that has every key at its default, each with its
// comment.
func sample(role string, keys []keyDoc) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Every key of skimmer %s at its default. Copy what differs to\n# %s/%s.yaml; unknown keys are refused.\n", role, Dir, role)
	sampleKeys(&b, keys, "")
	return b.String()
}

func sampleKeys(b *strings.Builder, keys []keyDoc, indent string) {
	for i, k := range keys {
		about := k.comment
		if about == "" {
			about = k.sectionAbout
		}
		if indent == "" || i > 0 {
			b.WriteString("\n")
		}
		for line := range wrap(about, 78-len(indent)) {
			b.WriteString(indent + "# " + line + "\n")
		}
		if k.section == nil {
			b.WriteString(indent + k.name + ": " + k.value + "\n")
			continue
		}
		b.WriteString(indent + k.name + ":\n")
		sampleKeys(b, k.section, indent+"  ")
	}
}

// wrap yields the words of s in lines of at most n bytes.
func wrap(s string, n int) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		line := ""
		for _, word := range strings.Fields(s) {
			if line != "" && len(line)+1+len(word) > n {
				if !yield(line) {
					return
				}
				line = ""
			}
			if line != "" {
				line += " "
			}
			line += word
		}
		if line != "" {
			yield(line)
		}
	}
}

// markdown returns the page that describes keys.
func markdown(role, about string, keys []keyDoc) string {
	var b strings.Builder
	b.WriteString(strings.NewReplacer("ROLE", role, "DIR", Dir, "ABOUT", about, "'", "`").Replace(
		`<!-- Generated by make docs from internal/config: change it there. -->

# Configuration of skimmer ROLE

ABOUT

The file is 'DIR/ROLE.yaml', or what '--config' names. Every key has a default, so an empty or
missing file is a good one; [config/ROLE.yaml](config/ROLE.yaml) has all of them. Unknown keys and
values out of bounds are refused, all at once, each with its file, line and column.

Sizes are numbers of bytes, or have a unit: 'KiB', 'MiB', 'GiB', 'TiB' (powers of 1024), 'kB', 'MB',
'GB', 'TB' (powers of 1000). Durations have units: '250ms', '30s', '5m', '1h30m'.
`))
	section(&b, keys)
	for _, k := range keys {
		if k.section != nil {
			fmt.Fprintf(&b, "\n## %s\n\n%s\n", k.path, k.sectionAbout)
			section(&b, k.section)
		}
	}
	return b.String()
}

// section writes a table of keys; sections inside it are put into the table
// by their full paths, unless they are at the top and have one of their own.
func section(b *strings.Builder, keys []keyDoc) {
	b.WriteString("\n| key | value | default | meaning |\n|---|---|---|---|\n")
	var rows func(keys []keyDoc)
	rows = func(keys []keyDoc) {
		for _, k := range keys {
			switch {
			case k.section == nil:
				fmt.Fprintf(b, "| `%s` | %s | `%s` | %s |\n", k.path, k.kind, k.value, strings.ReplaceAll(k.comment, "|", "\\|"))
			case strings.Contains(k.path, "."):
				rows(k.section)
			}
		}
	}
	rows(keys)
}
