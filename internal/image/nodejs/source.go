package nodejs

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// Specifier is what a module names that it loads.
type Specifier struct {
	Name string
	// Import says that it is imported, not required: other rules hold then.
	Import bool
}

const (
	// maxSpecifiers is how many names of one module are returned, maxDepth how deep
	// its brackets may be nested.
	maxSpecifiers = 4096
	maxDepth      = 4096
	// maxName is how long a name may be, in bytes.
	maxName = 1024
)

// Source returns what the text of a module names that runs when the module is loaded, in
// that order: with require, import and export declarations, and import expressions. What
// stands in functions runs later, but for those that are called where they stand, as the
// wrappers that bundlers and compilers write.
func Source(text string) []Specifier {
	s := scanner{text: text, open: []bracket{{}}}
	for s.next() && len(s.found) < maxSpecifiers && len(s.open) < maxDepth {
	}
	return s.found
}

// token is a piece of the text. Of punctuation, kind is the character itself.
type token struct {
	kind byte
	text string // of a word
}

// The kinds of other tokens.
const (
	word    = 'a'
	number  = '0'
	literal = '"' // a string, a template or a regular expression
	arrow   = '>'
)

// bracket is one that is open. The first of all stands for the whole text.
type bracket struct {
	char         byte  // '(', '[', '{', or '$' in a template
	before, last token // what stands before it, and what before that
	lazy         bool  // what is in it runs later
	expression   bool  // so does what comes until the next comma, or the end of the statement
}

type scanner struct {
	text       string
	at         int
	prev, last token // the token before, and the one before that
	line       bool  // a line has ended since prev
	open       []bracket
	closed     bracket // the one that was closed last
	declares   bool    // in an import or export declaration
	found      []Specifier
}

func (s *scanner) top() *bracket { return &s.open[len(s.open)-1] }

func (s *scanner) lazy() bool { return s.top().lazy || s.top().expression }

// next looks at the next token, and reports whether there was one.
func (s *scanner) next() bool {
	s.space()
	if s.at >= len(s.text) {
		return false
	}
	t := token{kind: s.text[s.at]}
	switch c := t.kind; {
	case isWord(c):
		t = token{word, s.word()}
		s.name(t.text)
	case c >= '0' && c <= '9':
		t.kind = number
		s.word()
	case c == '"' || c == '\'':
		t.kind = literal
		s.quoted()
	case c == '`':
		t.kind = literal
		s.at++
		if s.template() {
			return true // there is code in it
		}
	case c == '/' && s.expects():
		t.kind = literal
		s.pattern()
	case strings.HasPrefix(s.text[s.at:], "=>"):
		t.kind = arrow
		s.at += 2
		s.body()
	default:
		s.at++
		if !s.punctuation(c) {
			return true // back in a template
		}
	}
	s.token(t)
	return true
}

func (s *scanner) token(t token) {
	s.last, s.prev, s.line = s.prev, t, false
}

// space skips white space and comments.
func (s *scanner) space() {
	for s.at < len(s.text) {
		rest := s.text[s.at:]
		switch {
		case rest[0] == '\n':
			s.line = true
			s.at++
		case rest[0] <= ' ' || strings.HasPrefix(rest, "\ufeff"):
			_, n := utf8.DecodeRuneInString(rest)
			s.at += n
		case strings.HasPrefix(rest, "//") || s.at == 0 && strings.HasPrefix(rest, "#!"):
			s.skip(strings.IndexByte(rest, '\n'))
		case strings.HasPrefix(rest, "/*"):
			end := strings.Index(rest[2:], "*/")
			if end < 0 {
				s.at = len(s.text)
				return
			}
			s.line = s.line || strings.Contains(rest[:end+2], "\n")
			s.at += end + 4
		default:
			return
		}
	}
}

// skip goes on n bytes; to the end if that is less than 0.
func (s *scanner) skip(n int) {
	if n < 0 {
		n = len(s.text) - s.at
	}
	s.at += n
}

func isWord(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c == '$' || c == '#' || c == '\\' || c >= utf8.RuneSelf
}

// word reads a name, a keyword or a number.
func (s *scanner) word() string {
	from := s.at
	for s.at++; s.at < len(s.text) && (isWord(s.text[s.at]) || s.text[s.at] >= '0' && s.text[s.at] <= '9'); s.at++ {
	}
	return s.text[from:s.at]
}

// quoted reads a string. One that is not closed ends with its line.
func (s *scanner) quoted() string {
	quote, from := s.text[s.at], s.at+1
	for s.at++; s.at < len(s.text); s.at++ {
		switch s.text[s.at] {
		case '\\':
			s.at++
		case quote, '\n':
			s.at++
			return s.text[from : s.at-1]
		}
	}
	s.at = len(s.text)
	return ""
}

// template reads the text of a template up to its end, or to the code in it, which it
// reports.
func (s *scanner) template() bool {
	for ; s.at < len(s.text); s.at++ {
		switch s.text[s.at] {
		case '\\':
			s.at++
		case '`':
			s.at++
			return false
		case '$':
			if strings.HasPrefix(s.text[s.at:], "${") {
				s.at += 2
				s.push('$')
				s.token(token{kind: '{'})
				return true
			}
		}
	}
	s.at = len(s.text) // an escape may have gone beyond it
	return false
}

// pattern reads a regular expression. One that is not closed ends with its line.
func (s *scanner) pattern() {
	class := false
	for s.at++; s.at < len(s.text); s.at++ {
		switch c := s.text[s.at]; {
		case c == '\n':
			return
		case c == '\\':
			s.at++
		case c == '[':
			class = true
		case c == ']':
			class = false
		case c == '/' && !class:
			s.at++
			return
		}
	}
	s.at = len(s.text)
}

// operators are keywords behind which a value comes.
var operators = []string{
	"return", "typeof", "instanceof", "in", "of", "new", "delete", "void", "throw", "case", "do", "else", "yield", "await", "default",
}

// statements are keywords that begin a statement, and names that do often.
var statements = []string{
	"const", "let", "var", "import", "export", "function", "class", "if", "for", "while", "do", "switch", "try", "return", "throw", "async",
	"module", "exports", "require", "Object",
}

// blocks are keywords before a parenthesis behind which no function's body comes.
var blocks = []string{"if", "for", "while", "switch", "catch", "with", "await"}

// expects reports whether a value is expected, so that a slash begins a regular expression.
func (s *scanner) expects() bool {
	switch s.prev.kind {
	case word:
		return slices.Contains(operators, s.prev.text)
	case number, literal, ')', ']', '}':
		return false
	}
	return true
}

// name looks at a word that was read.
func (s *scanner) name(text string) {
	if s.line && slices.Contains(statements, text) {
		s.top().expression = false // a line without a semicolon
	}
	if s.prev.kind == '.' {
		return
	}
	switch text {
	case "import", "export":
		s.declares = len(s.open) == 1
		if text == "import" {
			s.argument(true, true)
		}
	case "require":
		s.argument(false, false)
	case "from":
		if s.declares {
			s.argument(true, true)
		}
	}
}

// argument notes the string in parentheses that comes next, or the bare one that does.
func (s *scanner) argument(imported, bare bool) {
	if s.lazy() {
		return
	}
	ahead := scanner{text: s.text, at: s.at}
	ahead.space()
	called := strings.HasPrefix(ahead.text[ahead.at:], "(")
	if called {
		ahead.at++
		ahead.space()
	} else if !bare {
		return
	}
	if ahead.at >= len(ahead.text) || !strings.ContainsRune("\"'`", rune(ahead.text[ahead.at])) {
		return
	}
	quote := ahead.text[ahead.at]
	name := ahead.quoted()
	if name == "" || len(name) > maxName || strings.ContainsAny(name, "\\\n\x00") || quote == '`' && strings.Contains(name, "${") {
		return
	}
	ahead.space()
	if called && (ahead.at >= len(ahead.text) || !strings.ContainsRune("),", rune(ahead.text[ahead.at]))) {
		return // it goes on
	}
	s.declares = false
	s.found = append(s.found, Specifier{name, imported})
}

// body notes that an arrow function begins.
func (s *scanner) body() {
	ahead := scanner{text: s.text, at: s.at}
	ahead.space()
	if !strings.HasPrefix(ahead.text[ahead.at:], "{") && !s.runs() {
		s.top().expression = true
	}
}

// runs reports whether a function that stands here is called here: it stands alone in
// parentheses, or is an argument of such a one.
func (s *scanner) runs() bool {
	b := s.top()
	if b.char != '(' {
		return false
	}
	switch b.before.kind {
	case word:
		return slices.Contains(operators, b.before.text)
	case ']', literal, number:
		return false
	}
	return true
}

// function reports whether a brace that opens is that of a function which runs later.
func (s *scanner) function() bool {
	switch s.prev.kind {
	case arrow:
		return !s.runs()
	case ')':
	default:
		return false
	}
	before := s.closed.before
	switch {
	case before.kind == word && slices.Contains(blocks, before.text):
		return false
	case before == token{word, "function"}, before == token{kind: '*'}, before.kind == word && s.closed.last == token{word, "function"},
		before.kind == word && s.closed.last.kind == '*':
		return !s.runs()
	}
	return before.kind == word || before.kind == ']' || before.kind == literal || before.kind == number // a method
}

func (s *scanner) push(char byte) {
	lazy := s.lazy()
	if char == '{' {
		lazy = lazy || s.function()
	}
	s.open = append(s.open, bracket{char: char, before: s.prev, last: s.last, lazy: lazy})
}

// punctuation looks at a character. It reports false if that was the end of a template's
// code.
func (s *scanner) punctuation(c byte) bool {
	switch c {
	case '(', '[', '{':
		s.push(c)
	case ')', ']', '}':
		if len(s.open) == 1 {
			break // it closes nothing
		}
		s.closed = *s.top()
		s.open = s.open[:len(s.open)-1]
		if s.closed.char == '$' {
			if !s.template() {
				s.token(token{kind: literal})
			}
			return false
		}
	case ';':
		s.declares = false
		s.top().expression = false
	case ',':
		s.top().expression = false
	}
	return true
}
