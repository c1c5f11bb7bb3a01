package image

import (
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
