package python

import (
	"os"
	"slices"
	"strings"
	"testing"
)

func TestSource(t *testing.T) {
	text, err := os.ReadFile("testdata/sample.py")
	if err != nil {
		t.Fatal(err)
	}
	got := described(Source(string(text)))
	// The same as what it is compiled to, but in the order of the lines, and what only
	// runs when the file is the program is in it: it may be the program.
	want := append(slices.Clone(sampleImports), "[0] main_only")
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("imports are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestSourceLines(t *testing.T) {
	for text, want := range map[string][]string{
		"import numpy, scipy.linalg as la; print(1)":                                           {"[0] numpy", "[0] scipy.linalg"},
		"import sys, types, os;has_mfs = sys.version > '3'":                                    {"[0] sys", "[0] types", "[0] os"},
		"try: import fast\nexcept ImportError: import slow":                                    {"[0] fast", "[0] slow"},
		"x = 'import a'\ny = \"\"\"import b\"\"\"; import c":                                   {"[0] c"},
		"x = 'it\\'s'; import a  # import b":                                                   {"[0] a"},
		"from x import (a,\n  b as c)\nimport d":                                               {"[0] x: a b", "[0] d"},
		"def f(): pass\nimport a\r\nimport b\r\n":                                              {"[0] a", "[0] b"},
		"\tdef f():\n\t\timport a\n\timport b":                                                 {"[0] b"},
		"from .. import a":                                                                     {"[2] a"},
		"from .a.b import *":                                                                   {"[1] a.b"},
		"import sys;importlib = has_mfs and __import__('importlib.util');m = __import__(name)": {"[0] sys", "[0] importlib.util"},
		"def f():\n  __import__('a')\n#  __import__('b')\n__import__('c'":                      nil,
		"importlib.util": nil,
		"import":         nil,
		"from x":         nil,
		"from " + strings.Repeat(".", 20) + " import a": nil,
		"from x import (": nil,
		"'''":             nil,
	} {
		if got := described(Source(text)); !slices.Equal(got, want) {
			t.Errorf("%q imports %q, want %q", text, got, want)
		}
	}
}

func FuzzSource(f *testing.F) {
	text, err := os.ReadFile("testdata/sample.py")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(text))
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range Source(text) {
			if len(s.Names) == 0 && s.From != nil || len(s.Levels) != 1 || s.Levels[0] > maxLevel {
				t.Errorf("%q has the scope %+v", text, s)
			}
		}
	})
}
