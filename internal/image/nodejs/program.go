package nodejs

import (
	"path"
	"slices"
	"strings"
)

// Program is what an interpreter runs; the zero value is nothing, or what it reads from its
// input.
type Program struct {
	File    string   // as the command line names it
	Text    string   // the program itself
	Preload []string // modules that are loaded before it
}

// IsInterpreter reports whether a program is Node.js, by its path.
func IsInterpreter(file string) bool {
	return slices.Contains([]string{"node", "nodejs"}, path.Base(file))
}

// ProgramOf returns what an interpreter runs that is called so (documentation of Node.js,
// "Command-line API"). args[0] is its own name.
func ProgramOf(args []string) Program {
	var p Program
	for i := 1; i < len(args); i++ {
		option, value, given := strings.Cut(args[i], "=")
		if !strings.HasPrefix(option, "-") {
			p.File = args[i]
			return p
		}
		next := func() string {
			if !given && i+1 < len(args) {
				i++
				value = args[i]
			}
			return value
		}
		switch option {
		case "-", "-v", "--version", "-h", "--help", "--v8-options", "--test":
			return Program{}
		case "--":
			if i+1 < len(args) {
				p.File = args[i+1]
			}
			return p
		case "-e", "--eval", "-p", "--print", "-pe":
			p.Text = next()
			return p
		case "-r", "--require", "--import", "--loader", "--experimental-loader":
			p.Preload = append(p.Preload, next())
		case "-C", "--conditions", "--input-type", "--title", "--env-file":
			next()
		}
	}
	return p
}
