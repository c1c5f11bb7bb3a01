// Package rules holds the repository to what CONTRIBUTING.md says of it:
// who may import whom, how large things get, what is documented, and what
// code may not do. It has only tests, and they look only at source text, so
// they are quick and need no network, root or build.
//
// A rule that has to be broken gets an entry in exceptions, with the reason.
package rules

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// root is the repository's top directory, seen from this package.
const root = "../.."

// file is one Go file.
type file struct {
	path   string // from the repository's top, as internal/blob/blob.go
	dir    string // as internal/blob
	test   bool   // name ends in _test.go
	fset   *token.FileSet
	syntax *ast.File
}

// main reports whether f belongs to a command, which alone may end the
// process and owns the context everything runs in.
func (f *file) main() bool { return f.syntax.Name.Name == "main" }

// line returns the line number of pos.
func (f *file) line(pos token.Pos) int { return f.fset.Position(pos).Line }

// enclosing returns the name of the top-level declaration around pos, with
// its receiver's type if it is a method; empty where there is none.
func (f *file) enclosing(pos token.Pos) string {
	for _, d := range f.syntax.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || pos < d.Pos() || pos >= d.End() {
			continue
		}
		return funcName(fn)
	}
	return ""
}

func funcName(fn *ast.FuncDecl) string {
	if r := receiver(fn); r != "" {
		return r + "." + fn.Name.Name
	}
	return fn.Name.Name
}

// receiver returns the name of the type fn is a method of; empty if none.
func receiver(fn *ast.FuncDecl) string {
	if fn.Recv == nil || len(fn.Recv.List) == 0 {
		return ""
	}
	t := fn.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.IndexListExpr:
			t = x.X
		case *ast.Ident:
			return x.Name
		default:
			return ""
		}
	}
}

func parse(name string, src any) (*file, error) {
	fset := token.NewFileSet()
	syntax, err := parser.ParseFile(fset, filepath.Join(root, name), src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	return &file{
		path: name, dir: path.Dir(name), test: strings.HasSuffix(name, "_test.go"),
		fset: fset, syntax: syntax,
	}, nil
}

// paths lists every file of the repository, from its top, without what
// .gitignore keeps out of it.
var paths = sync.OnceValues(func() ([]string, error) {
	var all []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains([]string{".git", ".cache", "bin"}, rel) {
			return filepath.SkipDir
		}
		if d.Type().IsRegular() && !strings.HasSuffix(rel, ".test") && !strings.HasSuffix(rel, ".prof") {
			all = append(all, rel)
		}
		return nil
	})
	return all, err
})

var files = sync.OnceValues(func() ([]*file, error) {
	names, err := paths()
	if err != nil {
		return nil, err
	}
	var all []*file
	for _, name := range names {
		if !strings.HasSuffix(name, ".go") || strings.Contains(name, "testdata/") {
			continue
		}
		f, err := parse(name, nil)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
})

// goFiles returns every Go file of the repository, parsed.
func goFiles(t *testing.T) []*file {
	t.Helper()
	all, err := files()
	if err != nil {
		t.Fatalf("read the repository's Go files: %v", err)
	}
	return all
}

// packages returns the repository's Go files by directory.
func packages(t *testing.T) map[string][]*file {
	t.Helper()
	byDir := make(map[string][]*file)
	for _, f := range goFiles(t) {
		byDir[f.dir] = append(byDir[f.dir], f)
	}
	return byDir
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	p, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// rule is something one Go file can break by itself.
type rule struct {
	name string
	do   string // what to do about it, added to every finding
	// check calls report for every place where f breaks the rule.
	check func(f *file, report func(at ast.Node, what string))
	// as is the name of the file that bad and good are put to the test in.
	as string
	// bad lists sources that break the rule, good sources that come close.
	bad, good []string
}

var rules = slices.Concat(shapeRules, conductRules, testRules)

// exceptions lists what may break a rule, as rule name, then
// "path Func" or "path Type.Method", then the reason.
var exceptions = map[string]map[string]string{
	"goroutines have an owner": {
		"internal/daemon/daemon.go Group.start": "Group.stop waits for it, but has to give up some time, which no WaitGroup can",
	},
}

func TestRules(t *testing.T) {
	all := goFiles(t)
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			used := make(map[string]bool)
			for _, f := range all {
				if ast.IsGenerated(f.syntax) {
					continue // it reads as its generator has it
				}
				r.check(f, func(at ast.Node, what string) {
					where := f.path + " " + f.enclosing(at.Pos())
					if _, ok := exceptions[r.name][where]; ok {
						used[where] = true
						return
					}
					t.Errorf("%s:%d: %s: %s", f.path, f.line(at.Pos()), what, r.do)
				})
			}
			for where := range exceptions[r.name] {
				if !used[where] {
					t.Errorf("exception for %q is not needed any more: delete it", where)
				}
			}
		})
	}
}

// TestRulesCanFail puts every rule to the test on small sources.
func TestRulesCanFail(t *testing.T) {
	findings := func(t *testing.T, r rule, src string) []string {
		f, err := parse(r.as, src)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		r.check(f, func(at ast.Node, what string) {
			got = append(got, fmt.Sprintf("%d: %s", f.line(at.Pos()), what))
		})
		return got
	}
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) {
			if r.do == "" || len(r.bad) == 0 {
				t.Error("rule says nothing to do, or has no source that breaks it: add them")
			}
			for _, src := range r.bad {
				if len(findings(t, r, src)) == 0 {
					t.Errorf("rule finds nothing in:\n%s", src)
				}
			}
			for _, src := range r.good {
				if got := findings(t, r, src); len(got) != 0 {
					t.Errorf("rule finds %q in:\n%s", got, src)
				}
			}
		})
	}
}

// call reports whether n calls pkg.name for one of the names; pkg is the
// name a file calls an imported package by.
func call(n ast.Node, pkg string, names ...string) bool {
	c, ok := n.(*ast.CallExpr)
	if !ok {
		return false
	}
	sel, ok := c.Fun.(*ast.SelectorExpr)
	if !ok || !slices.Contains(names, sel.Sel.Name) {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return ok && x.Name == pkg
}
