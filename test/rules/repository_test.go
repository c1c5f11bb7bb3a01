package rules

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// goMod is what this package needs to know of go.mod.
type goMod struct {
	required []string // module paths
	direct   []string // those without "// indirect"
	tools    []string // package paths of tool directives
}

func readGoMod(t *testing.T) goMod {
	t.Helper()
	var m goMod
	block := ""
	for line := range strings.Lines(readFile(t, "go.mod")) {
		code, comment, _ := strings.Cut(line, "//")
		words := strings.Fields(code)
		switch {
		case len(words) == 0:
			continue
		case words[0] == ")":
			block = ""
			continue
		case len(words) == 2 && words[1] == "(":
			block = words[0]
			continue
		case block != "":
			words = append([]string{block}, words...)
		}
		switch words[0] {
		case "require":
			m.required = append(m.required, words[1])
			if strings.TrimSpace(comment) != "indirect" {
				m.direct = append(m.direct, words[1])
			}
		case "tool":
			m.tools = append(m.tools, words[1])
		}
	}
	if len(m.required) == 0 {
		t.Fatal("no requirements found in go.mod: mend this parser")
	}
	return m
}

// moduleOf returns the required module that holds the package; empty for the
// standard library and our own packages.
func (m goMod) moduleOf(pkg string) string {
	best := ""
	for _, mod := range m.required {
		if (pkg == mod || strings.HasPrefix(pkg, mod+"/")) && len(mod) > len(best) {
			best = mod
		}
	}
	return best
}

// imported returns the modules our Go files import, sorted.
func (m goMod) imported(t *testing.T) []string {
	t.Helper()
	used := make(map[string]bool)
	for _, f := range goFiles(t) {
		for _, imp := range f.syntax.Imports {
			name, _ := strconv.Unquote(imp.Path.Value)
			if mod := m.moduleOf(name); mod != "" {
				used[mod] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(used))
}

func TestGoModIsTidy(t *testing.T) {
	m := readGoMod(t)
	want, got := m.imported(t), slices.Sorted(slices.Values(m.direct))
	if !slices.Equal(got, want) {
		t.Errorf("go.mod names as direct %q, the code imports %q: run go mod tidy", got, want)
	}
}

// documented matches a row of docs/dependencies.md.
var documented = regexp.MustCompile("(?m)^\\| `([^`]+)` \\|([^|]+)\\|([^|]+)\\|([^|]+)\\|$")

func TestDependenciesAreDocumented(t *testing.T) {
	m := readGoMod(t)
	want := m.imported(t)
	for _, tool := range m.tools {
		want = append(want, m.moduleOf(tool))
	}
	var got []string
	for _, row := range documented.FindAllStringSubmatch(readFile(t, "docs/dependencies.md"), -1) {
		got = append(got, row[1])
		for i, column := range []string{"why", "why not another", "who keeps it"} {
			if strings.TrimSpace(row[2+i]) == "" {
				t.Errorf("docs/dependencies.md: %s: column %q is empty: fill it in", row[1], column)
			}
		}
	}
	for _, mod := range want {
		if !slices.Contains(got, mod) {
			t.Errorf("docs/dependencies.md: no row for %s: say why it, why not another, and who keeps it; or do without it", mod)
		}
	}
	for _, mod := range got {
		if !slices.Contains(want, mod) {
			t.Errorf("docs/dependencies.md: nothing imports %s: delete its row", mod)
		}
	}
	if !slices.IsSorted(got) {
		t.Error("docs/dependencies.md: rows are not sorted by module: sort them")
	}
}

// privateWords match what exists only on the machine something was written
// on. They are put together here so that this file does not match itself.
var privateWords = []*regexp.Regexp{
	regexp.MustCompile(`/wor` + `k/(main|shared|\.)`),
	regexp.MustCompile(`\.\./shar` + `ed\b`),
	regexp.MustCompile(`/tmp/bri` + `ef\b`),
	regexp.MustCompile(`/home/[a-z]+/`),
	regexp.MustCompile(`(?i)\biss` + `ue #?[0-9]`),
	regexp.MustCompile(`\b(DESIGN|STY` + `LE)\.md\b`),
}

func TestNothingPrivate(t *testing.T) {
	names, err := paths()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		p, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		if !utf8.Valid(p) {
			continue // nobody reads it
		}
		for _, re := range privateWords {
			if at := re.FindIndex(p); at != nil {
				line := 1 + strings.Count(string(p[:at[0]]), "\n")
				t.Errorf("%s:%d: %q means nothing to a reader elsewhere: say it in words that stand by themselves", name, line, p[at[0]:at[1]])
			}
		}
	}
}
