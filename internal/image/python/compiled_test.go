package python

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The files of testdata are what CPython 3.8 to 3.13 compile from sample.py, and from
// a module of 300 assignments with a guarded import behind them, so that numbers of
// names take two bytes.

// described returns scopes as lines: level, module, what is imported from it.
func described(scopes []Scope) []string {
	var lines []string
	for _, s := range scopes {
		for _, n := range s.Names {
			line := fmt.Sprint(s.Levels, " ", n)
			if len(s.From) > 0 {
				line += ": " + strings.Join(s.From, " ")
			}
			lines = append(lines, line)
		}
	}
	return lines
}

// sampleImports is what loading sample.py imports.
var sampleImports = []string{
	"[0] __future__: annotations", "[0] os.path", "[0] json", "[0] typing", "[0] typing: TYPE_CHECKING",
	"[0] collections: abc OrderedDict", "[1] sibling", "[1] package: name other", "[2] above",
	"[0] otherwise", "[0] maybe", "[0] late", "[0] later", "[0] long.line: goes_on", "[0] inside",
}

func compiledFiles(t testing.TB, pattern string, least int) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/" + pattern)
	if err != nil || len(files) < least {
		t.Fatalf("%d files are like %s (%v), want %d", len(files), pattern, err, least)
	}
	return files
}

func TestCompiled(t *testing.T) {
	for _, file := range compiledFiles(t, "sample.*.pyc", 6) {
		t.Run(filepath.Base(file), func(t *testing.T) {
			p, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			scopes, err := Compiled(p)
			if err != nil {
				t.Fatal(err)
			}
			got := described(scopes)
			if !slices.Equal(got, sampleImports) {
				t.Errorf("imports are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(sampleImports, "\n"))
			}
			for n := range p {
				if _, err := Compiled(p[:n]); err == nil {
					t.Fatalf("%d of %d bytes are good", n, len(p))
				}
			}
		})
	}
}

func TestCompiledOfManyNames(t *testing.T) {
	for _, file := range compiledFiles(t, "many.*.pyc", 4) {
		p, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		scopes, err := Compiled(p)
		if got, want := described(scopes), []string{"[0] typing: TYPE_CHECKING", "[0] behind"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: imports are %q (%v), want %q", file, got, err, want)
		}
	}
}

// Of a version whose instructions are not known, names are known all the same: too
// many, and all that are right.
func TestCompiledOfLaterVersion(t *testing.T) {
	p, err := os.ReadFile("testdata/sample.cpython-313.pyc")
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint16(p, 3620)
	scopes, err := Compiled(p)
	if err != nil {
		t.Fatal(err)
	}
	if len(scopes) != 2 {
		t.Fatalf("%d scopes, want that of the module and of its class: %+v", len(scopes), scopes)
	}
	for _, name := range []string{"os.path", "json", "collections", "sibling", "package", "above", "maybe", "long.line"} {
		if !slices.Contains(scopes[0].Names, name) {
			t.Errorf("%s is not among the names %q", name, scopes[0].Names)
		}
	}
	if !slices.Contains(scopes[0].From, "goes_on") || !slices.Contains(scopes[1].Names, "inside") || slices.Contains(scopes[0].Names, "in_function") {
		t.Errorf("scopes are %+v", scopes)
	}
}

func TestCompiledRefuses(t *testing.T) {
	header := func(magic uint16, body string) []byte {
		p := binary.LittleEndian.AppendUint16(nil, magic)
		return append(append(p, "\r\n"+strings.Repeat("\x00", 12)...), body...)
	}
	for name, p := range map[string][]byte{
		"empty":             nil,
		"source":            []byte("import os, sys, json, collections"),
		"python 2":          header(62211, "N"),
		"nested":            header(3495, strings.Repeat(")\x01", 100000)+"N"),
		"long tuple":        header(3495, "(\xff\xff\xff\x7f"),
		"negative":          header(3495, "s\xff\xff\xff\xff"),
		"unknown reference": header(3495, "r\x00\x00\x00\x00"),
		"unknown type":      header(3495, "?"),
	} {
		if scopes, err := Compiled(p); err == nil {
			t.Errorf("%s: imports %v, want an error", name, scopes)
		}
	}
}

func FuzzCompiled(f *testing.F) {
	for _, file := range compiledFiles(f, "*.pyc", 10) {
		p, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		before := bytes.Clone(p)
		scopes, err := Compiled(p)
		if err != nil && scopes != nil {
			t.Errorf("imports %v beside %v", scopes, err)
		}
		if !bytes.Equal(p, before) {
			t.Error("it was written to")
		}
	})
}

func BenchmarkCompiled(b *testing.B) {
	p, err := os.ReadFile("testdata/many.cpython-311.pyc")
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if _, err := Compiled(p); err != nil {
			b.Fatal(err)
		}
	}
}
