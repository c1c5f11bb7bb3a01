package image_test

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/image"
	"skimmer/internal/testkit"
)

// pythonFiles are an interpreter, a program, and what that imports, directly or not; none
// imports what is called unused. An extension module needs a library.
func pythonFiles(t *testing.T) map[string][]byte {
	const stdlib = "usr/lib/python3.11/"
	return map[string][]byte{
		"usr/bin/python3.11":                          library(t, 8192, "libc.so.6"),
		"usr/lib/libc.so.6":                           library(t, 8192),
		stdlib + "encodings/__init__.py":              []byte("from . import aliases\n"),
		stdlib + "encodings/aliases.py":               []byte("aliases = {}\n"),
		stdlib + "encodings/utf_8.py":                 []byte("import codecs\n"),
		stdlib + "unused.py":                          []byte("import never\n"),
		stdlib + "deep.py":                            []byte("import _native\n"),
		stdlib + "lib-dynload/_native.abi3.so":        library(t, 8192, "libnative.so.1"),
		"usr/lib/libnative.so.1":                      library(t, 8192),
		"usr/lib/python3/dist-packages/p/sub.py":      []byte("from .other import name\nimport deep\n"),
		"usr/lib/python3/dist-packages/p/other.py":    []byte("name = 1\n"),
		"usr/lib/python3/dist-packages/p/unused.py":   []byte("name = 1\n"),
		"usr/lib/python3/dist-packages/p/__init__.py": []byte("def later():\n    from . import unused\n"),
		"app/main.py":                                 []byte("import helper\n"),
		"app/helper.py":                               []byte("from p import sub\n"),
	}
}

// nodeFiles are an interpreter, a program, and what that loads, directly or not; none loads
// what is called unused. A native module needs a library.
func nodeFiles(t *testing.T) map[string][]byte {
	const p = "app/node_modules/p/"
	return map[string][]byte{
		"usr/bin/node":           library(t, 8192, "libc.so.6"),
		"usr/lib/libc.so.6":      library(t, 8192),
		"app/package.json":       []byte(`{"name": "app"}`),
		"app/server.js":          []byte("require('./helper'); require('fs')\n"),
		"app/helper.js":          []byte("import { a } from 'p'\n"),
		"app/unused.js":          []byte("require('never')\n"),
		p + "package.json":       []byte(`{"main": "./lib/main"}`),
		p + "lib/main.js":        []byte("require('./native'); exports.later = () => require('./unused')\n"),
		p + "lib/unused.js":      []byte("require('never')\n"),
		p + "lib/native.node":    library(t, 8192, "libnative.so.1"),
		"usr/lib/libnative.so.1": library(t, 8192),
	}
}

// pushFiles pushes an image of files, with what nobody wants between any two, and returns
// how many bytes all take that a program reads, and its name.
func (w *world) pushFiles(t *testing.T, files map[string][]byte, edit func(*ocispec.Manifest)) (name image.Name, wanted int64) {
	w.bodies = files
	var layer []*tar.Header
	made := map[string]bool{}
	for i, name := range slices.Sorted(maps.Keys(files)) {
		for _, parent := range parents(name) {
			if !made[parent] {
				made[parent] = true
				layer = append(layer, dir(parent))
			}
		}
		layer = append(layer, file(name, len(files[name])), file(fmt.Sprintf("filler%d", i), 128<<10))
		if base := filepath.Base(name); !strings.HasPrefix(base, "unused.") {
			wanted += int64(len(files[name]))
		}
	}
	return w.push(t, "v1", edit, layer), wanted
}

func parents(name string) (all []string) {
	for dir := filepath.Dir(name); dir != "."; dir = filepath.Dir(dir) {
		all = slices.Insert(all, 0, dir)
	}
	return all
}

// TestFollowCommand has everything fetched that a program in the image's command imports,
// and nothing else, before anybody reads anything.
func TestFollowCommand(t *testing.T) {
	testkit.NeedMount(t)
	wrapped := nodeFiles(t)
	wrapped["bin/init"] = library(t, 8192)
	for name, c := range map[string]struct {
		files map[string][]byte
		cmd   []string
	}{
		"python script":  {pythonFiles(t), []string{"/usr/bin/python3.11", "main.py"}},
		"python module":  {pythonFiles(t), []string{"/usr/bin/python3.11", "-m", "main"}},
		"python command": {pythonFiles(t), []string{"/usr/bin/python3.11", "-u", "-c", "import main"}},
		"node":           {nodeFiles(t), []string{"node", "--inspect", "server"}},
		"node by init":   {wrapped, []string{"/bin/init", "--", "node", "./server.js"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			config, err := json.Marshal(ocispec.Image{Config: ocispec.ImageConfig{
				Cmd: c.cmd, WorkingDir: "/app", Env: []string{"PATH=/usr/bin", "PYTHONPATH=/app"},
			}})
			if err != nil {
				t.Fatal(err)
			}
			configured := digest.FromBytes(config)
			image, wanted := w.pushFiles(t, c.files, func(m *ocispec.Manifest) { m.Config.Digest = configured })
			w.prepareAndWait(t, image, configured, config, wanted)
		})
	}
}

// prepareAndWait prepares the image's layer, waits until so much is here, and sees that it
// is not more.
func (w *world) prepareAndWait(t *testing.T, name image.Name, configured digest.Digest, config []byte, wanted int64) {
	t.Helper()
	l := open(t, w, t.TempDir(), nil)
	w.prepare(t, l, name, configured, config)
	testkit.Eventually(t, time.Minute, "it was fetched ahead", func() error {
		if got := l.Stats().Inflated; got < wanted {
			return fmt.Errorf("%d bytes were fetched, want %d", got, wanted)
		}
		return nil
	})
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if got := l.Traces()[0].Inflated; got != wanted {
		t.Errorf("%d bytes were fetched in the end, want %d", got, wanted)
	}
}

// TestFollowReads has the modules fetched that a program names which is read, whatever the
// image's command is.
func TestFollowReads(t *testing.T) {
	testkit.NeedMount(t)
	t.Run("python", func(t *testing.T) {
		following{
			files: pythonFiles(t), unread: []string{"usr/bin/python3.11", "usr/lib/libc.so.6", "usr/lib/python3.11/encodings/utf_8.py"},
			read: []string{"usr/lib/python3.11/encodings/__init__.py", "app/main.py"},
			then: []string{"usr/lib/python3/dist-packages/p/sub.py", "usr/lib/python3.11/lib-dynload/_native.abi3.so", "usr/lib/libnative.so.1"},
		}.run(t)
	})
	t.Run("node", func(t *testing.T) {
		following{
			files: nodeFiles(t), unread: []string{"usr/bin/node", "usr/lib/libc.so.6"},
			read: []string{"app/package.json", "app/server.js"},
			then: []string{"app/node_modules/p/lib/main.js", "app/node_modules/p/lib/native.node", "usr/lib/libnative.so.1"},
		}.run(t)
	})
}

// following is an image of which something is read, and what is then here without the
// registry: all but what is unread.
type following struct {
	files              map[string][]byte
	unread, read, then []string
}

func (f following) run(t *testing.T) {
	w := newWorld()
	name, wanted := w.pushFiles(t, f.files, nil)
	for _, name := range f.unread {
		wanted -= int64(len(f.files[name]))
	}
	l := open(t, w, t.TempDir(), nil)
	target := filepath.Join(t.TempDir(), "mnt")
	if _, _, err := l.Mount(t.Context(), name, target); err != nil {
		t.Fatal(err)
	}
	for _, name := range f.read {
		if _, err := os.ReadFile(filepath.Join(target, name)); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, time.Minute, "what they name was fetched", func() error {
		if got := l.Stats().Inflated; got != wanted {
			return fmt.Errorf("%d bytes were fetched, want %d", got, wanted)
		}
		return nil
	})
	// What is here needs no registry.
	w.away.Store(true)
	for _, name := range f.then {
		if _, err := os.ReadFile(filepath.Join(target, name)); err != nil {
			t.Error(err)
		}
	}
	if err := errors.Join(l.Unmount(target, true), l.Close()); err != nil {
		t.Error(err)
	}
}
