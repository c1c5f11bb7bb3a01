package python

import (
	"path"
	"strings"
)

// Program is what an interpreter runs. The zero value is what it reads from its input.
type Program struct {
	Kind Kind
	Name string // of a file or module, or the text itself
}

// Kind is a way to say what an interpreter runs.
type Kind int

// The kinds: a file, a module ("-m"), the text of a program ("-c"), or nothing, as only
// something is printed that the interpreter knows by itself.
const (
	ScriptFile Kind = iota
	ModuleName
	CommandText
	Nothing
)

// IsInterpreter reports whether a command is that of an interpreter, by its name: "python3".
func IsInterpreter(command string) bool { return strings.HasPrefix(path.Base(command), "python") }

// ProgramOf returns what an interpreter runs that is called so (Python Setup and Usage,
// 1.1). args[0] is its own name.
func ProgramOf(args []string) Program {
	for i := 1; i < len(args); i++ {
		option, ok := strings.CutPrefix(args[i], "-")
		if !ok {
			return Program{ScriptFile, args[i]}
		}
		if option == "" {
			return Program{} // its input
		}
		if long, ok := strings.CutPrefix(option, "-"); ok {
			switch {
			case long == "version" || strings.HasPrefix(long, "help"):
				return Program{Kind: Nothing}
			case long == "check-hash-based-pycs":
				i++
			}
			continue
		}
		at := strings.IndexAny(option, "cmWXVh?")
		if at < 0 {
			continue
		}
		value := option[at+1:]
		if value == "" && i+1 < len(args) && option[at] != 'V' {
			i++
			value = args[i]
		}
		switch option[at] {
		case 'V', 'h', '?':
			return Program{Kind: Nothing}
		case 'c', 'm':
			if value == "" {
				return Program{}
			}
			return Program{map[byte]Kind{'c': CommandText, 'm': ModuleName}[option[at]], value}
		}
	}
	return Program{}
}
