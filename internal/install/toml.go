package install

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"skimmer/internal/blob"
)

// statement is one piece of a TOML text: a table header, or a key with its
// value. Offsets are bytes of the text.
type statement struct {
	kind unstable.Kind // Table, ArrayTable or KeyValue
	// path is the full path of the table or the key.
	path []string
	// table is how many elements of a key's path come from the header above it
	// or, within an inline table, from what leads to that.
	table int
	// start and end enclose the header without its brackets, or key and value.
	start, end int
	// value is where the value of a key starts.
	value int
	// of is the value's kind.
	of unstable.Kind
	// inline is whether the key stands in an inline table; repeated, whether
	// it is in an array of tables, so that its path names several things.
	inline, repeated bool
}

// document is a TOML text and where what is in it.
type document struct {
	text       []byte
	statements []statement
	eol        string // how lines end
	quote      string // how strings and keys are quoted
}

// parse finds the statements of a TOML text, and its content. Errors:
// Invalid, with the line.
func parse(text []byte) (*document, map[string]any, error) {
	content := make(map[string]any)
	if err := toml.Unmarshal(text, &content); err != nil {
		var d *toml.DecodeError
		if errors.As(err, &d) {
			line, column := d.Position()
			return nil, nil, blob.Errorf(blob.Invalid, "line %d, column %d: %w", line, column, err)
		}
		return nil, nil, blob.Errorf(blob.Invalid, "%w", err)
	}
	d := &document{text: text, eol: "\n", quote: `"`}
	if i := bytes.IndexByte(text, '\n'); i > 0 && text[i-1] == '\r' {
		d.eol = "\r\n"
	}
	if bytes.Contains(text, []byte("plugins.'")) {
		d.quote = "'"
	}
	var p unstable.Parser
	// The parser finds offsets by capacity, so the text must fill its array.
	p.Reset(slices.Clip(slices.Clone(text)))
	var arrays [][]string
	var table []string
	for p.NextExpression() {
		n := p.Expression()
		switch n.Kind {
		case unstable.Table, unstable.ArrayTable:
			s := statement{kind: n.Kind}
			s.path, s.start, s.end = d.key(n)
			table = s.path
			s.repeated = slices.ContainsFunc(arrays, func(a []string) bool { return within(a, s.path) })
			if n.Kind == unstable.ArrayTable {
				arrays = append(arrays, s.path)
			}
			d.statements = append(d.statements, s)
		case unstable.KeyValue:
			repeated := slices.ContainsFunc(arrays, func(a []string) bool { return within(a, table) })
			d.keyValue(n, statement{path: table, repeated: repeated})
		}
	}
	if err := p.Error(); err != nil {
		return nil, nil, blob.Errorf(blob.Invalid, "%w", err)
	}
	return d, content, nil
}

// key returns the path of a header or key and where it stands.
func (d *document) key(n *unstable.Node) (path []string, start, end int) {
	start = -1
	for it := n.Key(); it.Next(); {
		k := it.Node()
		path = append(path, string(k.Data))
		if start < 0 {
			start = int(k.Raw.Offset)
		}
		end = int(k.Raw.Offset + k.Raw.Length)
	}
	return path, start, end
}

// keyValue records a key, and those of an inline table it has. in is what it
// stands in.
func (d *document) keyValue(n *unstable.Node, in statement) {
	path, start, keyEnd := d.key(n)
	v := n.Value()
	s := statement{
		kind: unstable.KeyValue, path: slices.Concat(in.path, path), table: len(in.path),
		start: start, end: int(n.Raw.Offset + n.Raw.Length),
		of: v.Kind, inline: in.inline, repeated: in.repeated,
	}
	s.value = keyEnd + bytes.IndexByte(d.text[keyEnd:], '=') + 1
	for d.text[s.value] == ' ' || d.text[s.value] == '\t' {
		s.value++
	}
	d.statements = append(d.statements, s)
	if v.Kind == unstable.InlineTable {
		in := s
		in.inline = true
		for it := v.Children(); it.Next(); {
			if it.Node().Kind == unstable.KeyValue {
				d.keyValue(it.Node(), in)
			}
		}
	}
}

// within reports whether path is at or below dir.
func within(dir, path []string) bool {
	return len(path) >= len(dir) && slices.Equal(dir, path[:len(dir)])
}

// find returns the key with exactly this path, or nil.
func (d *document) find(path []string) *statement {
	for i := range d.statements {
		s := &d.statements[i]
		if s.kind == unstable.KeyValue && !s.repeated && slices.Equal(s.path, path) {
			return s
		}
	}
	return nil
}

// literal is the text of a key's value.
func (d *document) literal(s *statement) string { return string(d.text[s.value:s.end]) }

// splice replaces the bytes from start to end.
func (d *document) splice(start, end int, with string) []byte {
	return slices.Concat(d.text[:start], []byte(with), d.text[end:])
}

// lineStart and lineEnd return where the line of an offset starts, and where
// the next one does.
func (d *document) lineStart(at int) int { return bytes.LastIndexByte(d.text[:at], '\n') + 1 }

func (d *document) lineEnd(at int) int {
	if i := bytes.IndexByte(d.text[at:], '\n'); i >= 0 {
		return at + i + 1
	}
	return len(d.text)
}

// indent returns the blanks the line of an offset begins with.
func (d *document) indent(at int) string {
	line := d.text[d.lineStart(at):]
	return string(line[:len(line)-len(bytes.TrimLeft(line, " \t"))])
}

// addLine inserts a line after the one that holds offset at.
func (d *document) addLine(at int, line string) []byte {
	end := d.lineEnd(at)
	if end > 0 && d.text[end-1] != '\n' {
		return d.splice(end, end, d.eol+line+d.eol)
	}
	return d.splice(end, end, line+d.eol)
}

// quoted writes a string value, which must need no escapes.
func (d *document) quoted(s string) string { return d.quote + s + d.quote }

// dotted writes a path as a key.
func (d *document) dotted(path []string) string {
	words := make([]string, len(path))
	for i, w := range path {
		bare := w != "" && strings.Trim(w, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") == ""
		if words[i] = w; !bare {
			words[i] = d.quoted(w)
		}
	}
	return strings.Join(words, ".")
}

// set returns the text with a key set to a value, given as TOML. Everything
// else keeps its place and its bytes.
func (d *document) set(path []string, literal string) ([]byte, error) {
	if s := d.find(path); s != nil {
		return d.splice(s.value, s.end, literal), nil
	}
	parent := path[:len(path)-1]
	var container, header, sibling *statement
	shared := 0 // how much of the path sibling defines
	for i := range d.statements {
		s := &d.statements[i]
		switch {
		case s.repeated:
		case s.kind == unstable.Table && slices.Equal(s.path, parent):
			header = s
		case s.kind == unstable.KeyValue && within(s.path, path):
			if s.of != unstable.InlineTable {
				return nil, blob.Errorf(blob.Invalid, "set %s: %s is not a table", d.dotted(path), d.dotted(s.path))
			}
			if container == nil || len(s.path) > len(container.path) {
				container = s
			}
		case s.kind == unstable.KeyValue && !s.inline:
			n := 0
			for n < min(len(s.path)-1, len(parent)) && s.path[n] == parent[n] {
				n++
			}
			if n > s.table && n >= shared {
				sibling, shared = s, n
			}
		}
	}
	switch {
	case container != nil:
		return d.intoInline(container, d.dotted(path[len(container.path):])+" = "+literal), nil
	case header != nil:
		return d.intoTable(header, d.dotted(path[len(parent):])+" = "+literal), nil
	case sibling != nil:
		// A table that dotted keys made cannot have a header.
		return d.addLine(sibling.end, d.indent(sibling.start)+d.dotted(path[sibling.table:])+" = "+literal), nil
	case len(parent) == 0:
		return slices.Concat([]byte(d.dotted(path)+" = "+literal+d.eol), d.text), nil
	}
	return d.appendTable("["+d.dotted(parent)+"]", d.dotted(path[len(parent):])+" = "+literal), nil
}

// intoTable adds a key to the table that a header starts, after the keys that
// are there.
func (d *document) intoTable(header *statement, entry string) []byte {
	at, indent := header.end, d.indent(header.start)
	if len(header.path) > 0 {
		indent += "  "
	}
	for i := range d.statements {
		s := &d.statements[i]
		if s.start <= header.start || s.inline {
			continue
		}
		if s.kind != unstable.KeyValue {
			break
		}
		at, indent = s.end, d.indent(s.start)
	}
	return d.addLine(at, indent+entry)
}

// intoInline adds a key to an inline table, or a value to an array. Where
// there are several lines it goes first, for the last may end in a comment.
func (d *document) intoInline(s *statement, entry string) []byte {
	inner := d.text[s.value+1 : s.end-1]
	kept := bytes.TrimRight(inner, " \t")
	first, last := s.value+1, s.value+1+len(kept)
	switch {
	case len(kept) == 0:
		return d.splice(first, s.end-1, " "+entry+" ")
	case bytes.IndexByte(inner, '\n') >= 0:
		return d.splice(first, first, " "+entry+",")
	case kept[len(kept)-1] == ',':
		return d.splice(last, last, " "+entry)
	}
	return d.splice(last, last, ", "+entry)
}

// marker is the comment on headers that install wrote, so that uninstall
// knows them.
const marker = "# added by skimmer install"

// appendTable adds a table at the end.
func (d *document) appendTable(header string, entries ...string) []byte {
	var b bytes.Buffer
	b.Write(d.text)
	if len(d.text) > 0 {
		if d.text[len(d.text)-1] != '\n' {
			b.WriteString(d.eol)
		}
		b.WriteString(d.eol)
	}
	fmt.Fprintf(&b, "%s %s%s", header, marker, d.eol)
	for _, e := range entries {
		fmt.Fprintf(&b, "  %s%s", e, d.eol)
	}
	return b.Bytes()
}

// remove returns the text without a key: without its line, or, in an inline
// table, without it and its comma.
func (d *document) remove(s *statement) []byte {
	if !s.inline {
		return d.splice(d.lineStart(s.start), d.lineEnd(s.end), "")
	}
	start, end := s.start, s.end
	for d.text[start-1] == ' ' || d.text[start-1] == '\t' {
		start--
	}
	if d.text[start-1] == ',' {
		return d.splice(start-1, end, "")
	}
	after := bytes.TrimLeft(d.text[end:], " \t")
	if len(after) > 0 && after[0] == ',' {
		after = bytes.TrimLeft(after[1:], " \t")
		return d.splice(s.start, len(d.text)-len(after), "")
	}
	return d.splice(start, end, "")
}

// marked reports whether install wrote a header.
func (d *document) marked(s *statement) bool {
	return s.kind != unstable.KeyValue && bytes.Contains(d.text[s.end:d.lineEnd(s.end)], []byte(marker))
}

// section returns where the table of the header at index i ends: where its
// last key does, or else its header's line.
func (d *document) section(i int) (end int, empty bool) {
	end, empty = d.lineEnd(d.statements[i].end), true
	for _, s := range d.statements[i+1:] {
		if s.kind != unstable.KeyValue {
			break
		}
		if !s.inline {
			end, empty = d.lineEnd(s.end), false
		}
	}
	return end, empty
}

// removeMarked takes the first table away that install wrote and that is
// empty or, being an element of an array at path, install's own. It returns
// nil if there is none.
func (d *document) removeMarked(array []string) []byte {
	for i := range d.statements {
		s := &d.statements[i]
		if !d.marked(s) {
			continue
		}
		end, empty := d.section(i)
		if !empty && (s.kind != unstable.ArrayTable || !slices.Equal(s.path, array)) {
			continue
		}
		start := d.lineStart(s.start)
		if blank := d.lineStart(max(start-1, 0)); start > 0 && len(bytes.TrimSpace(d.text[blank:start])) == 0 {
			start = blank
		}
		return d.splice(start, end, "")
	}
	return nil
}
