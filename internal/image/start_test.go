package image

import (
	"reflect"
	"testing"

	"skimmer/internal/estargz"
)

func TestNames(t *testing.T) {
	lower := &estargz.TOC{Entries: []estargz.Entry{
		{Name: "usr/bin/python3.11", Type: estargz.Regular, Size: 1},
		{Name: "usr/bin/python3", Type: estargz.Symlink, Link: "python3.11"},
		{Name: "bin", Type: estargz.Symlink, Link: "usr/bin"},
		{Name: "usr/bin/hard", Type: estargz.Hardlink, Link: "usr/bin/python3.11"},
		{Name: "loop", Type: estargz.Symlink, Link: "/loop"},
		{Name: "out", Type: estargz.Symlink, Link: "../../usr/bin/python3"},
		{Name: "empty", Type: estargz.Regular},
	}}
	upper := &estargz.TOC{Entries: []estargz.Entry{
		{Name: "opt/run", Type: estargz.Symlink, Link: "/bin/python3"},
		{Name: "usr/bin/tool", Type: estargz.Regular, Size: 2},
	}}
	n := newNames([]*estargz.TOC{lower, upper})
	for _, c := range []struct {
		name, real string
		layer      int
	}{
		{"/usr/bin/python3.11", "/usr/bin/python3.11", 0},
		{"/usr/bin/python3", "/usr/bin/python3.11", 0},
		{"/bin/python3", "/usr/bin/python3.11", 0},
		{"/opt/run", "/usr/bin/python3.11", 0},
		{"/bin/tool", "/usr/bin/tool", 1},
		{"/bin/hard", "/usr/bin/hard", 0},
		{"/out", "/usr/bin/python3.11", 0},
		{"/loop", "", 0},
		{"/empty", "", 0},
		{"/usr/bin", "", 0},
		{"/nothing/here", "", 0},
	} {
		found, real, ok := n.file(c.name)
		if ok != (c.real != "") || ok && (real != c.real || found.layer != c.layer) {
			t.Errorf("%s is %q in layer %d (%t), want %q in layer %d", c.name, real, found.layer, ok, c.real, c.layer)
		}
	}
}

func TestFrontOf(t *testing.T) {
	n := newNames([]*estargz.TOC{{Entries: []estargz.Entry{
		{Name: "usr/lib/x86_64-linux-gnu/libnode.so.108", Type: estargz.Regular, Size: 1},
		{Name: "usr/lib/x86_64-linux-gnu/libnode.so", Type: estargz.Symlink, Link: "libnode.so.108"},
		{Name: "usr/lib/x86_64-linux-gnu/libnodes.so.1", Type: estargz.Regular, Size: 1},
		{Name: "usr/share/libtool.so.1", Type: estargz.Regular, Size: 1},
		{Name: "usr/lib/libruby-3.1.so.3.1.2", Type: estargz.Regular, Size: 1},
		{Name: "usr/lib/libruby-3.0.so.3.0.9", Type: estargz.Regular, Size: 1},
		{Name: "usr/lib/libruby-static.a", Type: estargz.Regular, Size: 1},
	}}})
	for program, want := range map[string]string{
		"node": "/usr/lib/x86_64-linux-gnu/libnode.so.108", "ruby": "/usr/lib/libruby-3.0.so.3.0.9", "tool": "", "nod": "", "python3": "",
	} {
		if got := n.frontOf(program); got != want {
			t.Errorf("%s is a front of %q, want %q", program, got, want)
		}
	}
}

// What is small is fetched whole, of large programs and libraries the ends; at
// the front of the program are its symbols.
func TestPartsOf(t *testing.T) {
	file := func(layer int, off, size int64) located {
		return located{layer, &estargz.Entry{Type: estargz.Regular, DataOff: off, Size: size}}
	}
	const large = 8 * maxStartBytes
	parts := partsOf([]program{
		{located: file(0, 4096, 100), path: "/bin/small"},
		{located: file(0, 8192, large), path: "/bin/large", program: true},
		{located: file(1, 0, maxWholeBytes), path: "/lib/libx.so.1", whole: true},
		{located: file(3, 0, large), path: "/lib/liby.so.1"},
		{located: file(1, large, large), path: "/share/data"},
		{located: file(2, 0, maxWholeBytes+1), path: "/share/more", whole: true},
	})
	wantParts := spans{
		0: {{Off: 4096, End: 4196}, {Off: 8192, End: 8192 + large/frontShare}, {Off: 8192 + large - large/backShare, End: 8192 + large}},
		1: {{Off: 0, End: 1}, {Off: large, End: large + 1}},
		2: {{Off: 0, End: 1}},
		3: {{Off: 0, End: 1}, {Off: large - 1, End: large}},
	}
	if !reflect.DeepEqual(parts, wantParts) {
		t.Errorf("parts are %v, want %v", parts, wantParts)
	}
	joined := spans{1: {{Off: 0, End: large}}}
	joined.join(spans{1: {{Off: 1, End: 2}}, 3: {{Off: 5, End: 6}}})
	if want := (spans{1: {{Off: 0, End: large}, {Off: 1, End: 2}}, 3: {{Off: 5, End: 6}}}); !reflect.DeepEqual(joined, want) {
		t.Errorf("joined they are %v, want %v", joined, want)
	}
}
