package nodejs

import (
	"slices"
	"strings"
	"testing"
)

// names writes specifiers as one word each; those that are imported begin with "+".
func names(all []Specifier) string {
	var b strings.Builder
	for _, s := range all {
		b.WriteByte(' ')
		if s.Import {
			b.WriteByte('+')
		}
		b.WriteString(s.Name)
	}
	return strings.TrimPrefix(b.String(), " ")
}

func TestSource(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{``, ``},
		{`const a = require('a'), {b} = require("./b").c, d = require( /* x */ '../d' )`, `a ./b ../d`},
		{"#!/usr/bin/env node\n'use strict'\nrequire(`a`)", `a`},
		{"require(`a${b}`); require('b' + c); require(d); require('e', f); require()", `e`},
		{`x.require('a'); requires('b'); require.resolve('c'); module.exports = require('d')`, `d`},
		{`// require('a')` + "\n" + `/* require('b') */ "require('c')"; 'require("d")'; ` + "`require('e')`", ``},
		{`"it's"; 'a"b\'c'; require('d')`, `d`},
		{"'not closed\nrequire('a')", `a`},
		{`"line\` + "\n" + `goes on require('b')"; require('a')`, `a`},

		// Functions run later, but for those that are called where they stand.
		{`function f() { require('a') } require('b')`, `b`},
		{`async function* f(x = {}) { require('a') } class C extends D { m() { require('b') } static async n() { require('c') } get [x]() { require('d') } 'e'() { require('e') } }`, ``},
		{`const f = function () { return require('a') }, g = () => { require('b') }, h = x => require('c'), i = require('d')`, `d`},
		{"const f = x => require('a')\nconst b = require('b')", `b`},
		{"const f = x => require('a');b = require('b')", `b`},
		{`const f = async (x) => (require('a'), require('b')); require('c')`, `c`},
		{`(function () { require('a') })(); !(function () { require('b') })(); (() => { require('c') })(); (async () => require('d'))(); (() => require('e'))()`, `a b c d e`},
		{`app.get('/', function () { require('a') }); p.then(() => require('b')); new P(() => { require('c') })`, ``},
		{`return (function () { require('a') })()`, `a`},
		{`(function (root, factory) { if (typeof exports === 'object') { module.exports = factory(require('a')) } else { root.b = factory(root.a) } }(this, function (a) { require('c') }))`, `a c`},
		{`(function (factory) { factory(require, exports) })(function (require, exports) { const a = require("./a") })`, `./a`},
		{`Object.defineProperty(exports, 'a', { get: function () { return require('a') } }); __exportStar(require("./b"), exports); __importDefault(require("c"))`, `./b c`},
		{`module.exports = { get a() { return require('a') }, b: () => require('b'), c: require('c'), d() { require('d') } }`, `c`},

		// Blocks run.
		{`if (x) { require('a') } else { require('b') } for (const x of y) { require('c') } while (z) { require('d') } try { require('e') } catch (err) { require('f') } finally { require('g') } switch (x) { case 1: require('h') } do { require('i') } while (0)`, `a b c d e f g h i`},
		{`for await (const x of y) { require('a') } try { require('b') } catch { require('c') } { require('d') }`, `a b c d`},

		// Modules of ECMAScript.
		{`import 'a'; import b from "b"; import * as c from './c'; import d, { e as f } from 'd'`, `+a +b +./c +d`},
		{`export * from 'a'; export { b } from "b"; export default function () { require('c') }; export const d = 1, from = 'e'`, `+a +b`},
		{"import {\n  a,\n  b\n} from 'x'\nimport y from 'y' with { type: 'json' }", `+x +y`},
		{`const a = await import('a'), b = import.meta.url; const c = () => import('c'); import(d); import('e' + f)`, `+a`},
		{`const from = 'a'; from 'b'; x.from('c'); { const { from } = y; z(from, 'd') }`, ``},

		// Slashes.
		{`a = b / c; d = /['"]/; e = require('e') / 2; f = /[/'"]\/"/g.test(x); require('g')`, `e g`},
		{`return /"/.test(x) ? require('a') : typeof /'/`, `a`},
		{`x = y /2/ require('a'); z(a[0] / b, c / require('b'))`, `a b`},

		// Templates.
		{"`a ${require('a')} b ${`c ${require('d')} e`} f`; require('g')", `a d g`},
		{"`${function () { require('a') }} } ${{ b: require('b') }.b}`; require('c')", `b c`},
		{"`\\`${'}'}\\${require('a')}`; require('b')", `b`},

		// What is no program ends somehow.
		{`))}}]] require('a')`, `a`},
		{"`", ``}, {"`${", ``}, {"'", ``}, {"'\\", ``}, {"`\\", ``}, {"/\\", ``}, {"/*", ``}, {"require(", ``}, {"import", ``}, {"x = /[", ``},
		{strings.Repeat("(", 2*maxDepth) + "require('a')", ``},
	} {
		if got := names(Source(c.text)); got != c.want {
			t.Errorf("%.300s\nnames %q, want %q", c.text, got, c.want)
		}
	}
	long := strings.Repeat("x", maxName+1)
	if got := Source("require('" + long + "')"); got != nil {
		t.Errorf("a name of %d bytes is one", len(long))
	}
	if got := len(Source(strings.Repeat("require('a');", maxSpecifiers+1))); got != maxSpecifiers {
		t.Errorf("%d names, want %d", got, maxSpecifiers)
	}
}

func TestProgramOf(t *testing.T) {
	for _, c := range []struct {
		args string
		want Program
	}{
		{"node", Program{}},
		{"node server.js --port 80", Program{File: "server.js"}},
		{"node --max-old-space-size=512 --inspect app --help", Program{File: "app"}},
		{"node -r dotenv/config --require=./a --import b.mjs -C x server.js", Program{File: "server.js", Preload: []string{"dotenv/config", "./a", "b.mjs"}}},
		{"node -e require('x') y", Program{Text: "require('x')"}},
		{"node -p 1", Program{Text: "1"}},
		{"node -- --odd.js", Program{File: "--odd.js"}},
		{"node --", Program{}}, {"node -r", Program{Preload: []string{""}}}, {"node - x", Program{}}, {"node --version", Program{}},
	} {
		got := ProgramOf(strings.Fields(c.args))
		if got.File != c.want.File || got.Text != c.want.Text || !slices.Equal(got.Preload, c.want.Preload) {
			t.Errorf("%s runs %+v, want %+v", c.args, got, c.want)
		}
	}
	for file, want := range map[string]bool{"/usr/bin/node": true, "nodejs": true, "/usr/bin/nodemon": false, "": false} {
		if got := IsInterpreter(file); got != want {
			t.Errorf("%q is Node.js: %v", file, got)
		}
	}
}

func FuzzSource(f *testing.F) {
	for _, text := range []string{
		"import a, {b} from 'c'\nexport * from \"d\"", "`${`${require('x')}`}`", "(function(){ require('a') })()", "x = /[/]/g, y => require('b')",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range Source(text) {
			if s.Name == "" || len(s.Name) > maxName || !strings.Contains(text, s.Name) || strings.ContainsAny(s.Name, "\n\x00") {
				t.Errorf("a name %q", s.Name)
			}
		}
	})
}
