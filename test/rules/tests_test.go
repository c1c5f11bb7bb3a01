package rules

import (
	"go/ast"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// testRules say what tests may not do.
var testRules = []rule{
	{
		name:  "skips are loud, and fail in CI",
		do:    "say why, and before it: if os.Getenv(\"CI\") != \"\" { t.Fatal } (or skip for testing.Short only)",
		as:    "internal/x/x_test.go",
		check: silentSkips,
		bad: []string{
			"package x\nfunc f() { t.Skip() }", "package x\nfunc f() { t.SkipNow() }",
			"package x\nfunc f() { t.Skipf(`no root`) }",
		},
		good: []string{
			"package x\nfunc f() { if testing.Short() { t.Skip(`slow`) } }",
			"package x\nfunc f() { if os.Getenv(`CI`) != `` { t.Fatal(`no root`) }\n t.Skip(`no root`) }",
		},
	},
	{
		name:  "fuzz targets have seeds",
		do:    "add inputs with f.Add or below testdata/fuzz/<name>: go test runs them always, and fuzzing starts from them",
		as:    "internal/x/x_test.go",
		check: seedless,
		bad:   []string{"package x\nfunc FuzzA(f *testing.F) { f.Fuzz(func(t *testing.T, p []byte) {}) }"},
		good: []string{
			"package x\nfunc FuzzA(f *testing.F) { f.Add(1); f.Fuzz(func(t *testing.T, n int) {}) }",
			"package x\nfunc FuzzA(f *testing.F) { seeds(f); f.Fuzz(func(t *testing.T, n int) {}) }",
		},
	},
}

func silentSkips(f *file, report func(ast.Node, string)) {
	for _, d := range f.syntax.Decls {
		allowed := false
		ast.Inspect(d, func(n ast.Node) bool {
			allowed = allowed || call(n, "testing", "Short") || call(n, "os", "Getenv")
			return true
		})
		ast.Inspect(d, func(n ast.Node) bool {
			for _, recv := range []string{"t", "b", "f", "tb"} {
				if call(n, recv, "Skip", "Skipf", "SkipNow") && (!allowed || len(n.(*ast.CallExpr).Args) == 0) {
					report(n, "a test that is skipped in silence")
				}
			}
			return true
		})
	}
}

func seedless(f *file, report func(ast.Node, string)) {
	for _, d := range f.syntax.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || !f.test || !strings.HasPrefix(fn.Name.Name, "Fuzz") || fn.Type.Params.NumFields() != 1 {
			continue
		}
		seeded := false
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			seeded = seeded || call(n, "f", "Add")
			if c, ok := n.(*ast.CallExpr); ok {
				// A helper that is given f adds them.
				seeded = seeded || slices.ContainsFunc(c.Args, func(a ast.Expr) bool {
					id, ok := a.(*ast.Ident)
					return ok && id.Name == "f"
				})
			}
			return true
		})
		stored, _ := os.ReadDir(filepath.Join(root, f.dir, "testdata", "fuzz", fn.Name.Name))
		if !seeded && len(stored) == 0 {
			report(fn, fn.Name.Name+" has no seeds")
		}
	}
}
