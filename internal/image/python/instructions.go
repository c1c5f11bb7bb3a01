package python

// opcodes are the instructions that matter here, as one version of CPython numbers
// them (Lib/opcode.py, later Include/opcode_ids.h).
type opcodes struct {
	extended, constant, name, attribute, imports, unless byte
	attributeFlags                                       int // low bits of what an attribute's instruction says that are not its name
	// A jump says where it goes: in bytes or instructions from the beginning, or in
	// instructions from what follows it and its caches.
	jumpBytes, jumpRelative bool
	jumpCaches              int
}

// opcodesOf returns the instructions of a compiled file's version; false for one that
// is not known.
func opcodesOf(magic uint16) (opcodes, bool) {
	old := opcodes{extended: 144, constant: 100, name: 101, attribute: 106, imports: 108, unless: 114}
	switch {
	case magic < 3430: // to 3.9
		old.jumpBytes = true
	case magic < 3450: // 3.10
	case magic < 3500: // 3.11
		old.jumpRelative = true
	case magic < 3550: // 3.12
		old.jumpRelative, old.attributeFlags = true, 1
	case magic < 3600: // 3.13
		return opcodes{
			extended: 71, constant: 83, name: 92, attribute: 82, imports: 75, unless: 97,
			attributeFlags: 1, jumpRelative: true, jumpCaches: 1,
		}, true
	default:
		return opcodes{}, false
	}
	return old, true
}

// guardReach is within how many instructions of what is asked for a condition jumps:
// the comparison, or what makes it a truth value, lies between.
const guardReach = 3

// read reads the imports of a code object, each as a scope of its own. What only
// runs for type checkers, or when the file is the program, is left out.
func (ops opcodes) read(code []byte, constants, names tuple) []Scope {
	var found []Scope
	var loaded [2]any // the last two values
	skipTo, arg := 0, 0
	since := guardReach // instructions since such a condition was loaded
	at := func(list tuple, i int) any {
		if i >= 0 && i < len(list) {
			return list[i]
		}
		return nil
	}
	for i := 0; i+1 < len(code); i += 2 {
		op := code[i]
		arg |= int(code[i+1])
		if op == ops.extended {
			arg = arg << 8 & 0xffffff
			continue
		}
		this := arg
		arg = 0
		if i < skipTo || op == 0 { // a cache, since 3.11
			continue
		}
		since++
		switch op {
		case ops.constant:
			loaded = [2]any{loaded[1], at(constants, this)}
			if loaded[1] == "__main__" {
				since = 0
			}
		case ops.name:
			if at(names, this) == "TYPE_CHECKING" {
				since = 0
			}
		case ops.attribute:
			if at(names, this>>ops.attributeFlags) == "TYPE_CHECKING" {
				since = 0
			}
		case ops.unless:
			if since <= guardReach {
				skipTo = ops.target(i, this)
			}
		case ops.imports:
			if s, ok := importOf(at(names, this), loaded); ok {
				found = append(found, s)
			}
		}
	}
	return found
}

// target returns where a jump at that offset goes.
func (ops opcodes) target(at, arg int) int {
	switch {
	case ops.jumpBytes:
		return arg
	case ops.jumpRelative:
		return at + 2 + 2*ops.jumpCaches + 2*arg
	}
	return 2 * arg
}

// importOf returns an import of a module, whose level and names were loaded before.
func importOf(module any, loaded [2]any) (Scope, bool) {
	level, ok := loaded[0].(int)
	if !ok || level < 0 || level > maxLevel {
		return Scope{}, false
	}
	s := Scope{Levels: []int{level}}
	if from, ok := loaded[1].(tuple); ok {
		for _, n := range from {
			if n, ok := n.(string); ok && n != "*" {
				s.From = append(s.From, n)
			}
		}
	}
	if name, ok := module.(string); ok {
		s.Names = []string{name}
		return s, true
	}
	s.Names, s.From = s.From, nil // from the package itself
	return s, true
}
