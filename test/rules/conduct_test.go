package rules

import (
	"go/ast"
	"go/token"
	"regexp"
	"strconv"
	"strings"
)

// conductRules say what code may not do, tests included unless they say
// otherwise.
var conductRules = []rule{
	{
		name: "no way out but return",
		do:   "return an error; only package main ends the process, and panic(http.ErrAbortHandler) a connection",
		as:   "internal/x/x.go",
		check: func(f *file, report func(ast.Node, string)) {
			if f.test || f.main() || strings.HasPrefix(f.dir, "internal/testkit") {
				return
			}
			ast.Inspect(f.syntax, func(n ast.Node) bool {
				if c, ok := n.(*ast.CallExpr); ok {
					if id, ok := c.Fun.(*ast.Ident); ok && id.Name == "panic" && !aborts(c) {
						report(n, "panic")
					}
				}
				if call(n, "os", "Exit") || call(n, "log", "Fatal", "Fatalf", "Fatalln", "Panic", "Panicf", "Panicln") {
					report(n, "ends the process")
				}
				return true
			})
		},
		bad: []string{"package x\nfunc f() { panic(1) }", "package x\nfunc f() { os.Exit(1) }", "package x\nfunc f() { log.Fatalf(`x`) }"},
		good: []string{
			"package main\nfunc main() { os.Exit(1) }", "package x\nfunc f() { x.panic() }",
			"package x\nfunc f() { panic(http.ErrAbortHandler) }",
		},
	},
	{
		name: "goroutines have an owner",
		do:   "start it with sync.WaitGroup.Go or errgroup in an object whose Close waits for it",
		as:   "internal/x/x.go",
		check: func(f *file, report func(ast.Node, string)) {
			if f.test {
				return
			}
			ast.Inspect(f.syntax, func(n ast.Node) bool {
				if _, ok := n.(*ast.GoStmt); ok {
					report(n, "go statement")
				}
				return true
			})
		},
		bad:  []string{"package x\nfunc f() { go f() }"},
		good: []string{"package x\nfunc f() { wg.Go(f) }"},
	},
	{
		name:  "contexts have an owner",
		do:    "take a context from the caller; a lifetime that has no caller says so in a comment on or above the line: // context.Background: who ends it",
		as:    "internal/x/x.go",
		check: unownedContexts,
		bad: []string{
			"package x\nvar c = context.Background()", "package x\nvar c = context.TODO()",
			"package x\n// context.Background: Close ends it.\n\nvar c = context.Background()",
		},
		good: []string{
			"package x\n// context.Background: Close ends it,\n// and waits.\nvar c = context.Background()",
			"package x\nvar c = context.Background() // context.Background: Close ends it", "package main\nvar c = context.Background()",
		},
	},
	{
		name:  "nothing sleeps",
		do:    "wait for what is waited for: a channel, a timer with the context beside it; tests of time run in synctest.Test, where sleeping is free",
		as:    "internal/x/x_test.go",
		check: sleeps,
		bad:   []string{"package x\nfunc f() { time.Sleep(1) }"},
		good:  []string{"package x\nfunc f() { synctest.Test(t, func(t *testing.T) { time.Sleep(1) }) }"},
	},
	{
		name:  "error text",
		do:    "errors are put together into one line: lower case, no full stop, `verb object: cause`",
		as:    "internal/x/x.go",
		check: errorText,
		bad:   []string{"package x\nvar e = errors.New(`Cannot open`)", "package x\nvar e = blob.Errorf(blob.Busy, \"open x.\")"},
		good:  []string{"package x\nvar e = fmt.Errorf(`TOC of %v: %w`, a, b)", "package x\nvar e = errors.New(`open x`)"},
	},
	{
		name: "nothing is left to do",
		do:   "do it now, or leave it out and write an issue",
		as:   "internal/x/x.go",
		check: func(f *file, report func(ast.Node, string)) {
			for _, c := range f.syntax.Comments {
				if m := leftover.FindString(c.Text()); m != "" {
					report(c, "comment says "+m)
				}
			}
		},
		bad:  []string{"package x // " + "TO" + "DO: think"},
		good: []string{"package x // context.TO" + "DO_ is not used"},
	},
	{
		name: "imports that are not for us",
		do:   "use what stands beside it",
		as:   "internal/x/x.go",
		check: func(f *file, report func(ast.Node, string)) {
			for _, imp := range f.syntax.Imports {
				p, _ := strconv.Unquote(imp.Path.Value)
				for banned, instead := range bannedImports {
					if p == banned || strings.HasPrefix(p, banned+"/") {
						report(imp, "imports "+p+": "+instead)
					}
				}
			}
		},
		bad:  []string{"package x\nimport \"github.com/stretchr/testify/require\""},
		good: []string{"package x\nimport \"github.com/google/go-cmp/cmp\""},
	},
}

// aborts reports a panic by which net/http is asked to break a connection off.
func aborts(c *ast.CallExpr) bool {
	sel, ok := c.Args[0].(*ast.SelectorExpr)
	if !ok {
		return false
	}
	pkg, ok := sel.X.(*ast.Ident)
	return ok && pkg.Name == "http" && sel.Sel.Name == "ErrAbortHandler"
}

var leftover = regexp.MustCompile(`\b(TODO|FIXME|XXX)\b`)

// bannedImports maps a package to what takes its place.
var bannedImports = map[string]string{
	"github.com/stretchr/testify":        "if and t.Errorf, go-cmp for large values",
	"github.com/onsi/gomega":             "if and t.Errorf, go-cmp for large values",
	"github.com/onsi/ginkgo":             "testing",
	"gotest.tools":                       "if and t.Errorf, go-cmp for large values",
	"github.com/matryer/is":              "if and t.Errorf, go-cmp for large values",
	"go.uber.org/mock":                   "a small real implementation, such as blobtest.Memory",
	"github.com/golang/mock":             "a small real implementation, such as blobtest.Memory",
	"github.com/vektra/mockery":          "a small real implementation, such as blobtest.Memory",
	"github.com/pkg/errors":              "fmt.Errorf with %w",
	"github.com/sirupsen/logrus":         "log/slog, passed in",
	"go.uber.org/zap":                    "log/slog, passed in",
	"io/ioutil":                          "io and os",
	"gopkg.in/yaml.v3":                   "internal/config",
	"github.com/containerd/log":          "log/slog, passed in",
	"github.com/hashicorp/go-multierror": "errors.Join",
}

func unownedContexts(f *file, report func(ast.Node, string)) {
	if f.test || f.main() {
		return
	}
	owned := make(map[int]bool) // lines that a comment with the owner covers
	for _, c := range f.syntax.Comments {
		if strings.Contains(c.Text(), "context.Background:") {
			owned[f.line(c.Pos())] = true
			owned[f.line(c.End())+1] = true
		}
	}
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		if call(n, "context", "TODO") || call(n, "context", "Background") && !owned[f.line(n.Pos())] {
			report(n, "a context that nobody ends")
		}
		return true
	})
}

func sleeps(f *file, report func(ast.Node, string)) {
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		if call(n, "time", "Sleep") {
			report(n, "time.Sleep")
		}
		return !call(n, "synctest", "Test")
	})
}

func errorText(f *file, report func(ast.Node, string)) {
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		if !call(n, "fmt", "Errorf") && !call(n, "errors", "New") && !call(n, "blob", "Errorf") {
			return true
		}
		for _, arg := range n.(*ast.CallExpr).Args {
			lit, ok := arg.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				continue
			}
			text, err := strconv.Unquote(lit.Value)
			if err == nil && sentence.MatchString(text) {
				report(lit, "error text "+lit.Value)
			}
			break // what follows the format is not text of ours
		}
		return true
	})
}

// sentence matches what begins with a capitalised word or ends as a sentence.
var sentence = regexp.MustCompile(`^[A-Z][a-z]+ |[^.][.!\n]$`)
