package python

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Scope is code that runs when a module is loaded, and what in it may be the name
// of a module.
type Scope struct {
	// Names are what it imports, dotted, and whatever else it uses by name, in the
	// order of their first use.
	Names []string
	// From are what it imports from modules: modules of a package may be among them.
	From []string
	// Levels are where it looks: 0 is the search path, 1 the package of the module, 2
	// the one around that.
	Levels []int
}

// The header of a compiled module (PEP 552), and the magic numbers with which the
// form of its code changed (importlib/_bootstrap_external.py of CPython).
const (
	compiledHeader  = 16
	firstMagic      = 3390 // 3.7, the first with this header
	posOnlyMagic    = 3400 // 3.8: arguments by position alone are counted
	localsPlusMagic = 3450 // 3.11: names of local variables in one list
	lastMagic       = 3999 // it moves by 50 with each version; that of Python 2 is far above
)

// Limits on what a stranger's file may make us do. CPython refuses deeper ones, too.
const (
	maxDepth    = 500
	maxName     = 255
	codeIsOwn   = 0x1 // CO_OPTIMIZED: a function's
	maxLevel    = 8
	noneOfThese = -1
)

var errCompiled = errors.New("compiled module ends early or is damaged")

// Compiled reads what a file of compiled code (.pyc) of CPython 3.7 or later imports
// when it is loaded.
func Compiled(p []byte) ([]Scope, error) {
	if len(p) < compiledHeader || p[2] != '\r' || p[3] != '\n' {
		return nil, errors.New("not a compiled module")
	}
	magic := binary.LittleEndian.Uint16(p)
	if magic < firstMagic || magic > lastMagic {
		return nil, fmt.Errorf("compiled module of an unknown version (magic number %d)", magic)
	}
	m := &marshalled{p: p[compiledHeader:], magic: magic}
	m.object(0)
	if m.bad {
		return nil, errCompiled
	}
	return m.scopes, nil
}

// marshalled reads the format of Python/marshal.c. After its first error it returns
// nothing.
type marshalled struct {
	p      []byte
	magic  uint16
	bad    bool
	refs   []any
	scopes []Scope
}

// tuple is a tuple, or a list or set.
type tuple []any

func (m *marshalled) take(n int) []byte {
	if m.bad || n < 0 || n > len(m.p) {
		m.bad = true
		return nil
	}
	p := m.p[:n]
	m.p = m.p[n:]
	return p
}

func (m *marshalled) byte() int {
	if p := m.take(1); p != nil {
		return int(p[0])
	}
	return 0
}

func (m *marshalled) long() int {
	if p := m.take(4); p != nil {
		return int(int32(binary.LittleEndian.Uint32(p)))
	}
	return 0
}

// text returns a string if it is short enough to be a name.
func (m *marshalled) text(n int) any {
	p := m.take(n)
	if len(p) == 0 || len(p) > maxName {
		return nil
	}
	return string(p)
}

// object reads an object: a string that may be a name, a number, a tuple; of others
// it returns nil.
func (m *marshalled) object(depth int) any {
	kind := m.byte()
	if depth > maxDepth {
		m.bad = true
	}
	if m.bad {
		return nil
	}
	ref := noneOfThese
	if kind&0x80 != 0 {
		kind &^= 0x80
		ref = len(m.refs)
		m.refs = append(m.refs, nil)
	}
	v := m.value(kind, depth)
	if ref != noneOfThese {
		m.refs[ref] = v
	}
	return v
}

func (m *marshalled) value(kind, depth int) any {
	switch kind {
	case '0', 'N', 'F', 'T', 'S', '.':
	case 'i':
		return m.long()
	case 'r':
		if n := m.long(); n >= 0 && n < len(m.refs) {
			return m.refs[n]
		}
		m.bad = true
	case 'z', 'Z':
		return m.text(m.byte())
	case 'a', 'A', 'u', 't':
		return m.text(m.long())
	case 's':
		return m.take(m.long())
	case 'f':
		m.take(m.byte())
	case 'x':
		m.take(m.byte())
		m.take(m.byte())
	case 'g', 'I':
		m.take(8)
	case 'y':
		m.take(16)
	case 'l':
		n := m.long()
		m.take(2 * max(n, -n))
	case ')':
		return m.tuple(m.byte(), depth)
	case '(', '[', '<', '>':
		return m.tuple(m.long(), depth)
	case '{':
		for !m.bad && len(m.p) > 0 && m.p[0] != '0' {
			m.object(depth + 1)
			m.object(depth + 1)
		}
		m.take(1)
	case ':':
		m.tuple(3, depth)
	case 'c':
		m.code(depth)
	default:
		m.bad = true
	}
	return nil
}

func (m *marshalled) tuple(n, depth int) any {
	if n < 0 || n > len(m.p) {
		m.bad = true // each element takes a byte at least
		return nil
	}
	t := make(tuple, 0, min(n, 64)) // A stranger says how many, level by level.
	for range n {
		t = append(t, m.object(depth+1))
		if m.bad {
			return nil
		}
	}
	return t
}

// code reads a code object, and makes a scope of one that runs when the module is
// loaded. Those in it come after it.
func (m *marshalled) code(depth int) {
	numbers := 5
	if m.magic >= posOnlyMagic && m.magic < localsPlusMagic {
		numbers = 6
	}
	flags := 0
	for range numbers {
		flags = m.long() // the last of them
	}
	var inner []Scope
	outer := m.scopes
	m.scopes = nil
	instructions, _ := m.object(depth + 1).([]byte)
	constants, _ := m.object(depth + 1).(tuple)
	names, _ := m.object(depth + 1).(tuple)
	// Before the line number: variables, cells, free ones, file, name; or variables,
	// their kinds, file, name, qualified name. Behind it: lines; and exceptions.
	for range 5 {
		m.object(depth + 1)
	}
	m.long()
	m.object(depth + 1)
	if m.magic >= localsPlusMagic {
		m.object(depth + 1)
	}
	inner, m.scopes = m.scopes, outer
	if m.bad || flags&codeIsOwn != 0 {
		return
	}
	if ops, ok := opcodesOf(m.magic); ok {
		m.scopes = append(m.scopes, ops.read(instructions, constants, names)...)
	} else {
		m.scopes = append(m.scopes, scopeOf(constants, names))
	}
	m.scopes = append(m.scopes, inner...)
}

// scopeOf returns what may be the imports of code whose instructions are not known.
func scopeOf(constants, names tuple) Scope {
	s := Scope{Levels: []int{0, 1, 2}} // Since 3.14 small numbers are in the instructions.
	for _, n := range names {
		if n, ok := n.(string); ok {
			s.Names = append(s.Names, n)
		}
	}
	for _, c := range constants {
		list, _ := c.(tuple)
		for _, n := range list {
			if n, ok := n.(string); ok && slices.Contains(s.Names, n) && !slices.Contains(s.From, n) {
				s.From = append(s.From, n)
			}
		}
	}
	return s
}
