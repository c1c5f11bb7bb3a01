package config

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// place is a position in the file, counted from 1.
type place struct{ line, column int }

// decoder puts a YAML syntax tree into a struct. It decodes by itself, not
// with the yaml module's decoder, because that one converts between types,
// stops at the first fault, and says where but not which key.
type decoder struct {
	file     string
	places   map[string]place // of the keys the file has
	problems []error
}

func (d *decoder) report(key string, at place, err error) {
	d.problems = append(d.problems, &Problem{File: d.file, Line: at.line, Column: at.column, Key: key, Err: err})
}

// document decodes text into the struct dst.
func (d *decoder) document(text []byte, dst reflect.Value) {
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		var at place
		var y yaml.Error
		if errors.As(err, &y) {
			if tk := y.GetToken(); tk != nil && tk.Position != nil {
				at = place{tk.Position.Line, tk.Position.Column}
			}
			err = errors.New(y.GetMessage())
		}
		d.report("", at, err)
		return
	}
	for i, doc := range file.Docs {
		switch {
		case doc.Body == nil:
		case i > 0:
			d.report("", placeOf(doc.Body), errors.New("a second document: the file holds only one"))
		default:
			d.decode(doc.Body, dst, "")
		}
	}
}

func placeOf(n ast.Node) place {
	if tk := n.GetToken(); tk != nil && tk.Position != nil {
		return place{tk.Position.Line, tk.Position.Column}
	}
	return place{}
}

// decode puts node, the value of key, into dst.
func (d *decoder) decode(node ast.Node, dst reflect.Value, key string) {
	switch node.(type) {
	case *ast.NullNode:
		return // nothing behind the colon, or all of it commented out
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.MergeKeyNode:
		d.report(key, placeOf(node), errors.New("anchors, aliases and tags have no place in this file: write the value"))
		return
	}
	if err := d.fill(node, dst, key); err != nil {
		d.report(key, placeOf(node), err)
	}
}

// fill is decode for a node that has a value. It returns what is wrong with
// that value itself; faults further down are reported where they are.
func (d *decoder) fill(node ast.Node, dst reflect.Value, key string) error {
	if u, ok := dst.Addr().Interface().(encoding.TextUnmarshaler); ok {
		text, ok := scalar(node)
		if !ok {
			return errors.New("needs a single value")
		}
		return u.UnmarshalText([]byte(text))
	}
	switch dst.Kind() {
	case reflect.Struct:
		m, ok := node.(ast.MapNode)
		if !ok {
			return fmt.Errorf("needs keys of its own (%s)", strings.Join(names(dst.Type()), ", "))
		}
		d.mapping(m, dst, key)
	case reflect.Map:
		m, ok := node.(ast.MapNode)
		if !ok {
			return errors.New("needs names with a value each")
		}
		dst.Set(reflect.MakeMap(dst.Type()))
		d.entries(m, key, func(name, path string, value ast.Node) {
			v := reflect.New(dst.Type().Elem()).Elem()
			d.element(value, v, path)
			dst.SetMapIndex(reflect.ValueOf(name), v)
		})
	case reflect.Slice:
		s, ok := node.(*ast.SequenceNode)
		if !ok {
			return errors.New("needs a list")
		}
		dst.Set(reflect.MakeSlice(dst.Type(), len(s.Values), len(s.Values)))
		for i, item := range s.Values {
			d.element(item, dst.Index(i), fmt.Sprintf("%s[%d]", key, i))
		}
	case reflect.Bool:
		b, ok := node.(*ast.BoolNode)
		if !ok {
			return errors.New("needs true or false")
		}
		dst.SetBool(b.Value)
	case reflect.String:
		switch n := node.(type) {
		case *ast.StringNode:
			dst.SetString(n.Value)
		case *ast.LiteralNode:
			dst.SetString(n.Value.Value)
		case ast.MapNode:
			text, ok := address(n)
			if !ok {
				return errors.New("needs text: if this is meant, put it in quotes")
			}
			dst.SetString(text)
		default:
			return errors.New("needs text: if this is meant, put it in quotes")
		}
	default:
		return integer(node, dst)
	}
	return nil
}

// integer puts a whole number into dst, which has an integer kind.
func integer(node ast.Node, dst reflect.Value) error {
	n, _ := node.(*ast.IntegerNode)
	bits := dst.Type().Bits()
	if dst.CanUint() {
		if n != nil {
			if u, ok := n.Value.(uint64); ok && !dst.OverflowUint(u) {
				dst.SetUint(u)
				return nil
			}
		}
		return fmt.Errorf("needs a whole number from 0 to %d", uint64(math.MaxUint64)>>(64-bits))
	}
	if n != nil {
		switch i := n.Value.(type) {
		case int64:
			if !dst.OverflowInt(i) {
				dst.SetInt(i)
				return nil
			}
		case uint64:
			if i <= math.MaxInt64 && !dst.OverflowInt(int64(i)) {
				dst.SetInt(int64(i))
				return nil
			}
		}
	}
	limit := int64(math.MaxInt64) >> (64 - bits)
	return fmt.Errorf("needs a whole number from %d to %d", -limit-1, limit)
}

// scalar returns the text of a single value as the file has it.
func scalar(node ast.Node) (string, bool) {
	switch n := node.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// address returns the text of host:port where it stands in a list inside of
// braces: there the parser takes it for a key with a value, which YAML does not
// without a blank behind the colon.
func address(m ast.MapNode) (string, bool) {
	it := m.MapRange()
	if !it.Next() {
		return "", false
	}
	host, port := it.Key().GetToken(), it.Value().GetToken()
	value, plain := scalar(it.Value())
	if it.Next() || !plain || host.Value != host.Origin && " "+host.Value != host.Origin ||
		strings.TrimRight(port.Origin, " ") != value || port.Position.Offset != host.Position.Offset+len(host.Value)+1 {
		return "", false
	}
	return host.Value + ":" + value, true
}

// element is decode for something that has no default to keep.
func (d *decoder) element(node ast.Node, dst reflect.Value, key string) {
	if _, null := node.(*ast.NullNode); null {
		d.report(key, placeOf(node), errors.New("is empty"))
		return
	}
	d.decode(node, dst, key)
}

// entries calls do for every key of m, which is the value of key, with the
// key's own path, and notes where it is.
func (d *decoder) entries(m ast.MapNode, key string, do func(name, path string, value ast.Node)) {
	for it := m.MapRange(); it.Next(); {
		at := placeOf(it.Key())
		name, ok := scalar(it.Key())
		if !ok {
			d.report(key, at, errors.New("a key that is not a name"))
			continue
		}
		path := join(key, name)
		d.places[path] = at
		do(name, path, it.Value())
	}
}

// mapping puts the keys of m into the struct dst.
func (d *decoder) mapping(m ast.MapNode, dst reflect.Value, key string) {
	d.entries(m, key, func(name, path string, value ast.Node) {
		field, ok := fieldNamed(dst, name)
		if !ok {
			d.report(path, d.places[path], fmt.Errorf("unknown key%s", known(dst.Type(), name)))
			return
		}
		d.decode(value, field, path)
	})
}

// known says which keys there are in place of name.
func known(t reflect.Type, name string) string {
	all := names(t)
	if i := slices.IndexFunc(all, func(s string) bool { return strings.EqualFold(s, name) }); i >= 0 {
		return ": it is written " + all[i]
	}
	return " (known here: " + strings.Join(all, ", ") + ")"
}

func join(parent, key string) string {
	if parent == "" {
		return key
	}
	return parent + "." + key
}

// keyOf returns the name a struct field has in files.
func keyOf(f reflect.StructField) string { return f.Tag.Get("yaml") }

// names returns the keys of a configuration struct, in the struct's order.
func names(t reflect.Type) []string {
	var all []string
	for f := range t.Fields() {
		all = append(all, keyOf(f))
	}
	return all
}

func fieldNamed(v reflect.Value, name string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if keyOf(v.Type().Field(i)) == name {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

// isSection reports whether a value of type t has keys of its own.
func isSection(t reflect.Type) bool {
	return t.Kind() == reflect.Struct && !reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

// validate asks every struct in v, whose own key is key, the innermost first.
func (d *decoder) validate(v reflect.Value, key string) {
	switch {
	case isSection(v.Type()):
		for i := range v.NumField() {
			d.validate(v.Field(i), join(key, keyOf(v.Type().Field(i))))
		}
	case v.Kind() == reflect.Slice:
		for i := range v.Len() {
			d.validate(v.Index(i), key+"["+strconv.Itoa(i)+"]")
		}
	}
	if c, ok := v.Addr().Interface().(Validator); ok {
		d.faults(c.Validate(), key)
	}
}

// faults reports what Validate of the struct at key returned.
func (d *decoder) faults(err error, key string) {
	if err == nil {
		return
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range many.Unwrap() {
			d.faults(e, key)
		}
		return
	}
	path := key
	var p *Problem
	if errors.As(err, &p) {
		path, err = join(key, p.Key), p.Err
	}
	d.report(path, d.places[path], err)
}
