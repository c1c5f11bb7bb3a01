package nodejs

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"
)

// tree is files by their paths, with what is in them; what begins with "-> " is a link.
type tree map[string]string

// find is what Modules find files by.
func (tr tree) find(file string) (string, bool) {
	for {
		content, ok := tr[file]
		to, link := strings.CutPrefix(content, "-> ")
		if !ok {
			// A folder on the way may be a link.
			for dir := path.Dir(file); dir != "/"; dir = path.Dir(dir) {
				if to, link := strings.CutPrefix(tr[dir], "-> "); link {
					return tr.find(to + strings.TrimPrefix(file, dir))
				}
			}
			return "", false
		}
		if !link {
			return file, true
		}
		file = to
	}
}

// load returns what a program reads, file by file, in the order in which it is found.
func (tr tree) load(t *testing.T, m *Modules, first []string) []string {
	t.Helper()
	list := slices.Clone(first)
	for i := 0; i < len(list); i++ {
		more, err := m.Loads(list[i], []byte(tr[list[i]]))
		if err != nil {
			t.Errorf("%s: %v", list[i], err)
		}
		for _, f := range more {
			if !slices.Contains(list, f) {
				list = append(list, f)
			}
		}
	}
	return list
}

func TestModules(t *testing.T) {
	tr := tree{
		"/app/package.json":                           `{"name": "app", "type": "commonjs"}`,
		"/app/server.js":                              `require('./lib'); require('express'); require('fs'); require('node:http'); require('@scope/tool/sub'); require('none')`,
		"/app/lib/index.js":                           `require('..'); require('./data'); require('./native'); require('../other/')`,
		"/app/lib/data.json":                          `{"require": "('x')"}`,
		"/app/lib/native.node":                        ``,
		"/app/other/package.json":                     `{"main": "./start"}`,
		"/app/other/start.js":                         ``,
		"/app/other/index.js":                         ``,
		"/app/index.js":                               ``,
		"/app/unused.js":                              `require('never')`,
		"/app/node_modules/express/package.json":      `{"main": "lib/nothing"}`,
		"/app/node_modules/express/index.js":          `require('depd'); require('events'); require('events/'); require('dual'); require('dual/feature/a'); require('dual/hidden')`,
		"/app/node_modules/depd/package.json":         `{}`,
		"/app/node_modules/depd/index.js":             ``,
		"/app/node_modules/events/package.json":       `{"main": "events.js"}`,
		"/app/node_modules/events/events.js":          `require('plain')`,
		"/app/node_modules/plain.js":                  `import './no-ending'; import './es.mjs'; export * from 'dual'`,
		"/app/node_modules/no-ending.js":              ``,
		"/app/node_modules/es.mjs":                    ``,
		"/app/node_modules/@scope/tool":               `-> /store/tool`,
		"/store/tool/package.json":                    `{"main": 1}`,
		"/store/tool/sub.js":                          `require('beside')`,
		"/store/node_modules/beside/index.js":         ``,
		"/app/node_modules/dual/package.json":         `{"main": "old.js", "exports": {".": {"import": "./new.mjs", "require": {"default": "./new.cjs"}}, "./feature/*": ["./features/*.js"], "./feature/b*": "./b/*.js", "./hidden": null}}`,
		"/app/node_modules/dual/new.mjs":              ``,
		"/app/node_modules/dual/new.cjs":              ``,
		"/app/node_modules/dual/old.js":               ``,
		"/app/node_modules/dual/features/a.js":        `require('global-thing')`,
		"/usr/share/nodejs/global-thing/package.json": `{"exports": "./main.js"}`,
		"/usr/share/nodejs/global-thing/main.js":      ``,
	}
	m := NewModules(tr.find, nil)
	got := tr.load(t, m, m.Main("/app/server"))
	want := []string{
		"/app/package.json", "/app/server.js",
		"/app/lib/index.js", "/app/node_modules/express/package.json", "/store/tool/package.json",
		"/app/index.js", "/app/lib/data.json", "/app/lib/native.node", "/app/other/package.json",
		"/app/node_modules/express/index.js", "/store/tool/sub.js", "/app/other/start.js",
		"/app/node_modules/depd/package.json", "/app/node_modules/events/package.json", "/app/node_modules/dual/package.json",
		"/store/node_modules/beside/index.js", "/app/node_modules/depd/index.js", "/app/node_modules/events/events.js",
		"/app/node_modules/dual/new.cjs", "/app/node_modules/dual/features/a.js",
		"/app/node_modules/plain.js", "/usr/share/nodejs/global-thing/package.json",
		"/app/node_modules/es.mjs", "/app/node_modules/dual/new.mjs", "/usr/share/nodejs/global-thing/main.js",
	}
	if !slices.Equal(got, want) {
		t.Errorf("it reads\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}

	if got := m.Command("/app", "require('./lib'); require('express')"); fmt.Sprint(got) != "[/app/lib/index.js /app/node_modules/express/package.json /app/node_modules/express/index.js]" {
		t.Errorf("a text reads %q", got)
	}
	if got := m.Interpreter(); got != nil {
		t.Errorf("before any program, %q is read", got)
	}
	tr["/usr/share/nodejs/undici/undici-fetch.js"] = ""
	if got := m.Interpreter(); fmt.Sprint(got) != "[/usr/share/nodejs/undici/undici-fetch.js]" {
		t.Errorf("of Debian's Node.js, %q is read before any program", got)
	}
	if got := m.Preloaded("/app", "depd"); fmt.Sprint(got) != "[/app/node_modules/depd/package.json /app/node_modules/depd/index.js]" {
		t.Errorf("what is loaded before is %q", got)
	}
	if got := NewModules(tr.find, []string{"/store/node_modules"}).Preloaded("/", "beside"); fmt.Sprint(got) != "[/store/node_modules/beside/index.js]" {
		t.Errorf("of NODE_PATH, %q is read", got)
	}
	for file, want := range map[string]bool{"/app/lib/index.js": true, "/var/www/site.js": false} {
		if got := m.Describes(file); got != want {
			t.Errorf("%s is of a package: %v", file, got)
		}
	}
	if _, err := m.Loads("/app/broken/package.json", []byte("{")); err == nil {
		t.Error("a description that is none is one")
	}
}

// A package that exports itself through conditions without end, or to what is not there, has
// no module there.
func TestExported(t *testing.T) {
	deep := any("./x.js")
	for range 2 * maxConditions {
		deep = map[string]any{"default": deep}
	}
	for _, c := range []struct {
		exports any
		e       entry
		want    string
	}{
		{"./a.js", entry{sub: "."}, "./a.js"},
		{"./a.js", entry{sub: "./b"}, ""},
		{deep, entry{sub: "."}, ""},
		{map[string]any{"import": "./a.mjs", "default": "./a.js"}, entry{sub: ".", imported: true}, "./a.mjs"},
		{map[string]any{"import": "./a.mjs", "default": "./a.js"}, entry{sub: "."}, "./a.js"},
		{map[string]any{"./*": "./src/*.js", "./*.json": "./data/*.json"}, entry{sub: "./x/y.json"}, "./data/x/y.json"},
		{map[string]any{"./*": "./src/*.js", "./in/*": nil}, entry{sub: "./in/y"}, ""},
		{map[string]any{}, entry{sub: "."}, ""},
		{17.0, entry{sub: "."}, ""},
	} {
		if got := exported(c.exports, c.e); got != c.want {
			t.Errorf("%v exports %+v as %q, want %q", c.exports, c.e, got, c.want)
		}
	}
}

func FuzzDescribe(f *testing.F) {
	f.Add([]byte(`{"main": "x", "exports": {"./*": {"node": ["./*"]}}}`), "./a")
	f.Fuzz(func(t *testing.T, content []byte, sub string) {
		m := NewModules(func(file string) (string, bool) { return file, path.Ext(file) != "" }, nil)
		for _, e := range []entry{{"./" + sub, true}, {".", false}} {
			m.entry("/p/package.json", e)
		}
		files, _ := m.Loads("/p/package.json", content)
		for _, file := range files {
			if !path.IsAbs(file) {
				t.Errorf("a file %q", file)
			}
		}
	})
}
