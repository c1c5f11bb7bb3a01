package python

import (
	"regexp"
	"strings"
)

// byCall is an import that is no statement, as path configuration files of namespace
// packages have it.
var byCall = regexp.MustCompile(`__import__\(['"]([A-Za-z_][A-Za-z0-9_.]*)['"]\)`)

// Source reads what a source file, a command of "python -c" or a path configuration
// file (.pth) imports when it is loaded: the statements outside of functions (Python
// Language Reference, 7.11), but those for type checkers alone.
func Source(text string) []Scope {
	var s source
	for rest := text; rest != ""; {
		var line string
		line, rest, _ = strings.Cut(rest, "\n")
		s.line(strings.TrimSuffix(line, "\r"))
	}
	return s.scopes
}

// source reads a file line by line, as far as imports need it.
type source struct {
	scopes  []Scope
	quote   string // what ends the string that the line begins in
	pending string // a statement that goes on in the next line
	skipped int    // lines indented deeper than that are of a function; 0 where none is
	skips   bool
}

func (s *source) line(line string) {
	if s.quote != "" {
		at := strings.Index(line, s.quote)
		if at < 0 {
			return
		}
		line = line[at+len(s.quote):]
		s.quote = ""
	}
	code := s.withoutStrings(line)
	text := strings.TrimSpace(code)
	if s.pending != "" {
		s.statement(s.pending + " " + text)
		return
	}
	if text == "" {
		return
	}
	indent := len(code) - len(strings.TrimLeft(code, " \t"))
	if s.skips && indent > s.skipped {
		return
	}
	s.skips = false
	if opensFunction(text) {
		s.skips, s.skipped = true, indent
		return
	}
	s.statement(text)
	for _, call := range byCall.FindAllStringSubmatch(line, -1) {
		s.scopes = append(s.scopes, Scope{Names: []string{call[1]}, Levels: []int{0}})
	}
}

// opensFunction reports whether the lines below, as far as they are indented
// deeper, do not run when the file is loaded.
func opensFunction(text string) bool {
	for _, word := range []string{"def ", "async def "} {
		if strings.HasPrefix(text, word) {
			return true
		}
	}
	condition, ok := strings.CutPrefix(text, "if ")
	return ok && strings.HasSuffix(strings.TrimSuffix(strings.TrimSpace(condition), ":"), "TYPE_CHECKING")
}

// withoutStrings returns a line without the strings in it and without its comment.
// A string that goes on in the next line is remembered.
func (s *source) withoutStrings(line string) string {
	if !strings.ContainsAny(line, `"'#`) {
		return line
	}
	var out strings.Builder
	for i := 0; i < len(line); i++ {
		switch c := line[i]; c {
		case '#':
			return out.String()
		case '"', '\'':
			quote := line[i : i+1]
			if strings.HasPrefix(line[i:], strings.Repeat(quote, 3)) {
				quote = line[i : i+3]
			}
			n := endOfString(line[i+len(quote):], quote)
			if n < 0 {
				if len(quote) == 3 {
					s.quote = quote
				}
				return out.String()
			}
			i += len(quote) + n - 1
		default:
			out.WriteByte(c)
		}
	}
	return out.String()
}

// endOfString returns how long a string is, with its closing quotes; -1 where they
// are not in the line.
func endOfString(line, quote string) int {
	for i := 0; i < len(line); i++ {
		if line[i] == '\\' {
			i++
		} else if strings.HasPrefix(line[i:], quote) {
			return i + len(quote)
		}
	}
	return -1
}

// maxStatement is how long a statement over several lines is at most.
const maxStatement = 64 << 10

// statement reads the statements of a line; one that is not over yet is kept.
func (s *source) statement(text string) {
	s.pending = ""
	for part := range strings.SplitSeq(text, ";") {
		part = strings.TrimSpace(part)
		// Of what a compound statement has in its own line, too.
		for _, word := range []string{"try:", "else:", "finally:", "except ImportError:", "with suppress(ImportError):"} {
			part = strings.TrimSpace(strings.TrimPrefix(part, word))
		}
		if !strings.HasPrefix(part, "import ") && !strings.HasPrefix(part, "from ") {
			continue
		}
		whole, goesOn := strings.CutSuffix(part, `\`)
		if goesOn || strings.Contains(part, "(") && !strings.Contains(part, ")") {
			if len(whole) <= maxStatement {
				s.pending = whole
			}
			return
		}
		s.imports(part)
	}
}

// imports reads an import statement.
func (s *source) imports(text string) {
	text = strings.NewReplacer("(", " ", ")", " ", "\t", " ").Replace(text)
	if modules, ok := strings.CutPrefix(text, "import "); ok {
		if names := listed(modules); len(names) > 0 {
			s.scopes = append(s.scopes, Scope{Names: names, Levels: []int{0}})
		}
		return
	}
	module, names, ok := strings.Cut(strings.TrimPrefix(text, "from "), " import ")
	if !ok {
		return
	}
	module = strings.TrimSpace(module)
	name := strings.TrimLeft(module, ".")
	level := len(module) - len(name)
	if level > maxLevel {
		return
	}
	scope := Scope{Levels: []int{level}}
	if name != "" {
		scope.Names, scope.From = []string{name}, listed(names)
	} else {
		scope.Names = listed(names)
	}
	s.scopes = append(s.scopes, scope)
}

// listed returns the names of a list of them, without what they are called then.
func listed(list string) []string {
	var names []string
	for item := range strings.SplitSeq(list, ",") {
		if words := strings.Fields(item); len(words) > 0 && words[0] != "*" {
			names = append(names, words[0])
		}
	}
	return names
}
