package rules

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strings"
	"testing"
)

// The limits nothing passes. What we aim at is about half of each:
// CONTRIBUTING.md has both, with the reasons.
const (
	maxFileLines        = 800
	maxFuncLines        = 100
	maxInterfaceMethods = 7
	maxParams           = 5
	maxInternalDirs     = 20
	maxDepth            = 3 // internal/x/y
)

var shapeRules = []rule{
	{
		name: "file length",
		do:   "split it by what its parts are about",
		as:   "internal/x/x.go",
		check: func(f *file, report func(ast.Node, string)) {
			if n := f.fset.File(f.syntax.FileStart).LineCount(); n > maxFileLines {
				report(f.syntax.Name, fmt.Sprintf("file has %d lines, at most %d", n, maxFileLines))
			}
		},
		bad:  []string{"package x\n" + strings.Repeat("\n", maxFileLines)},
		good: []string{"package x\n" + strings.Repeat("\n", maxFileLines-2)},
	},
	{
		name: "function length",
		do:   "name its steps and make them functions",
		as:   "internal/x/x.go",
		check: func(f *file, report func(ast.Node, string)) {
			for _, d := range f.syntax.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok {
					if n := f.line(fn.End()) - f.line(fn.Type.Pos()) + 1; n > maxFuncLines {
						report(fn, fmt.Sprintf("%s has %d lines, at most %d", funcName(fn), n, maxFuncLines))
					}
				}
			}
		},
		bad:  []string{"package x\nfunc f() {" + strings.Repeat("\n", maxFuncLines) + "}"},
		good: []string{"package x\nfunc f() {" + strings.Repeat("\n", maxFuncLines-1) + "}"},
	},
	{
		name: "interface size",
		do:   "an interface lists what its user calls; split it, or take the type itself",
		as:   "internal/x/x.go",
		check: func(f *file, report func(ast.Node, string)) {
			ast.Inspect(f.syntax, func(n ast.Node) bool {
				if it, ok := n.(*ast.InterfaceType); ok && it.Methods.NumFields() > maxInterfaceMethods {
					report(it, fmt.Sprintf("interface has %d methods, at most %d", it.Methods.NumFields(), maxInterfaceMethods))
				}
				return true
			})
		},
		bad:  []string{"package x\ntype i interface { a(); b(); c(); d(); e(); f(); g(); h() }"},
		good: []string{"package x\ntype i interface { a(); b(); c(); d(); e(); f(); g() }"},
	},
	{
		name: "parameters",
		do:   "make them a struct, whose field names then say at the call what is what",
		as:   "internal/x/x.go",
		check: func(f *file, report func(ast.Node, string)) {
			ast.Inspect(f.syntax, func(n ast.Node) bool {
				if ft, ok := n.(*ast.FuncType); ok && ft.Params.NumFields() > maxParams {
					report(ft, fmt.Sprintf("function has %d parameters, at most %d", ft.Params.NumFields(), maxParams))
				}
				return true
			})
		},
		bad:  []string{"package x\nfunc f(a, b, c int, d, e, f string) {}", "package x\nvar f func(a, b, c, d, e, f int)"},
		good: []string{"package x\nfunc (r r) f(a, b, c, d, e int) {}"},
	},
	{
		name:  "exported names are documented",
		do:    "say what it is, with units, limits, errors and whether it is safe for concurrent use",
		as:    "internal/x/x.go",
		check: undocumented,
		bad: []string{
			"package x\nfunc F() {}", "package x\ntype T int", "package x\nvar V int",
			"package x\nconst (\n\tA = 1\n)", "package x\n// T is.\ntype T int\nfunc (t *T) M() {}",
		},
		good: []string{
			"package x\n// F does.\nfunc F() {}\nfunc f() {}\ntype t int\nfunc (t) M() {}",
			"package x\n// The sizes.\nconst (\n\tA = 1\n\tB = 2\n)", "package x\nvar (\n\t// A is.\n\tA int\n)",
			"package main\nfunc F() {}", "package x\n// T is.\ntype T int\nfunc (T) String() string { return `` }",
		},
	},
	{
		name:  "mutexes say what they guard",
		do:    "put a comment with the word guards on the fields under it, and banners over those that are constant after New or atomic",
		as:    "internal/x/x.go",
		check: unguarded,
		bad:   []string{"package x\ntype t struct { mu sync.Mutex; n int }", "package x\ntype t struct { sync.RWMutex; n int }"},
		good:  []string{"package x\ntype t struct {\n\tmu sync.Mutex // mu guards n\n\tn int\n}", "package x\nvar mu sync.Mutex"},
	},
}

// promised lists methods whose contract the standard library states.
var promised = []string{"Error", "Unwrap", "String", "Read", "Write", "ServeHTTP"}

func undocumented(f *file, report func(ast.Node, string)) {
	if f.test || f.main() {
		return
	}
	for _, d := range f.syntax.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			r := receiver(d)
			if d.Name.IsExported() && d.Doc == nil && (r == "" || ast.IsExported(r) && !slices.Contains(promised, d.Name.Name)) {
				report(d, funcName(d)+" has no comment")
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				if name := undocumentedSpec(d, s); name != "" {
					report(s, name+" has no comment")
				}
			}
		}
	}
}

// undocumentedSpec returns the exported name that s declares without a
// comment on it or on its group; empty if there is none.
func undocumentedSpec(d *ast.GenDecl, s ast.Spec) string {
	switch s := s.(type) {
	case *ast.TypeSpec:
		if s.Name.IsExported() && s.Doc == nil && (d.Doc == nil || d.Lparen != token.NoPos) {
			return s.Name.Name
		}
	case *ast.ValueSpec:
		for _, n := range s.Names {
			if n.IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
				return n.Name
			}
		}
	}
	return ""
}

func unguarded(f *file, report func(ast.Node, string)) {
	if f.test {
		return // a test's structs are seen whole, with all of their uses
	}
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		st, ok := n.(*ast.StructType)
		if !ok {
			return true
		}
		isMutex := func(field *ast.Field) bool {
			sel, ok := field.Type.(*ast.SelectorExpr)
			return ok && (sel.Sel.Name == "Mutex" || sel.Sel.Name == "RWMutex")
		}
		says := func(c *ast.CommentGroup) bool {
			return c.Pos() > st.Pos() && f.line(c.Pos()) <= f.line(st.End()) && strings.Contains(c.Text(), "guard")
		}
		if slices.ContainsFunc(st.Fields.List, isMutex) && !slices.ContainsFunc(f.syntax.Comments, says) {
			report(st, "struct has a mutex and does not say what it guards")
		}
		return true
	})
}

func TestPackages(t *testing.T) {
	vague := []string{"util", "utils", "common", "helper", "helpers", "types", "base", "misc", "models", "lib", "shared", "core"}
	direct := make(map[string]bool)
	for dir, files := range packages(t) {
		if rest, ok := strings.CutPrefix(dir, "internal/"); ok {
			direct[strings.Split(rest, "/")[0]] = true
		}
		if strings.Count(dir, "/")+1 > maxDepth {
			t.Errorf("%s: deeper than internal/x/y: a package that deep has its place in its parent or beside it", dir)
		}
		if slices.Contains(vague, path.Base(dir)) || slices.Contains(vague, files[0].syntax.Name.Name) {
			t.Errorf("%s: a name that says nothing: name the package after what it is for", dir)
		}
		if !described(files) {
			t.Errorf("%s: no package comment: begin one of its files with %q and say what it is FOR", dir, "// Package "+path.Base(dir)+" ")
		}
	}
	if len(direct) > maxInternalDirs {
		t.Errorf("internal has %d directories, at most %d: put those together that are one part", len(direct), maxInternalDirs)
	}
}

// described reports whether one of a package's files has a comment that
// begins as go doc wants it.
func described(files []*file) bool {
	return slices.ContainsFunc(files, func(f *file) bool {
		return f.syntax.Doc != nil &&
			(strings.HasPrefix(f.syntax.Doc.Text(), "Package "+f.syntax.Name.Name+" ") || f.main() && strings.HasPrefix(f.syntax.Doc.Text(), "Command "))
	})
}
