package lab

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
)

// pythonSpec returns the spec of a small image with an interpreter.
func pythonSpec(t *testing.T) Spec {
	spec := busyboxSpec(t)
	spec.Name = "snake"
	spec.Layers = append(spec.Layers, []string{"python3-minimal"})
	return spec
}

// pythonBuilder returns what builds the spec, with the interpreter unpacked.
func pythonBuilder(t *testing.T, spec Spec) *builder {
	t.Helper()
	cache, err := DefaultCacheDir()
	must(t, err)
	a := &apt{dir: cache, progress: func(Progress) {}}
	p, err := a.plan(t.Context(), spec.Layers)
	must(t, err)
	b := &builder{spec: spec, plan: p, debs: a.debs(), progress: a.progress}
	b.python, err = b.unpackPython(t.Context(), t.TempDir())
	must(t, err)
	return b
}

// systemOf writes the layers of an image with an interpreter, below dir unless
// that is empty, and returns their digests and the steps that were reported.
func systemOf(t *testing.T, dir string) (sums []digest.Digest, steps map[string]bool) {
	t.Helper()
	b := pythonBuilder(t, pythonSpec(t))
	steps = map[string]bool{}
	b.progress = func(p Progress) { steps[p.Step] = true }
	done := make(chan advance)
	var report sync.WaitGroup
	report.Go(func() { b.report(done) })
	for i := range b.plan.Layers {
		f, err := os.Create(filepath.Join(t.TempDir(), "layer.tar"))
		must(t, err)
		sum := digest.SHA256.Digester()
		_, _, err = b.packageLayer(t.Context(), io.MultiWriter(f, sum.Hash()), i, done)
		must(t, err, f.Close())
		sums = append(sums, sum.Digest())
		if dir == "" {
			continue
		}
		if out, err := exec.CommandContext(t.Context(), "tar", "-xf", f.Name(), "-C", dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	close(done)
	report.Wait()
	return sums, steps
}

// TestPythonFindsItsModulesCompiled runs an image's Python and looks where its
// modules came from, and that they are the same when they are compiled again,
// by an interpreter in another place.
func TestPythonFindsItsModulesCompiled(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	sums, steps := systemOf(t, root)
	if !testing.Short() { // in which the second takes as long as the first, and shows no other race
		if again, _ := systemOf(t, ""); !slices.Equal(sums, again) {
			t.Errorf("two builds: %s and %s", sums, again)
		}
	}
	if !steps["build layers"] || !steps["compile Python modules"] {
		t.Errorf("steps reported: %v", steps)
	}
	const program = "import argparse, tempfile, sitecustomize; print(argparse.ArgumentParser.parse_args.__code__.co_filename)"
	res, err := Run(t.Context(), root, nil, []string{"/usr/bin/python3", "-v", "-c", program})
	must(t, err)
	// What -v says of a module ("code object from", "matches") is in importlib.
	for line := range strings.Lines(res.Output) {
		if strings.HasPrefix(line, "# code object from '/usr/lib") && strings.HasSuffix(line, ".py'\n") {
			t.Errorf("compiled when it was imported: %s", line)
		}
	}
	for _, name := range []string{"argparse", "tempfile", "sitecustomize"} {
		if want := "/usr/lib/python3.11/__pycache__/" + name + ".cpython-311.pyc matches /usr/lib/python3.11/" + name + ".py\n"; !strings.Contains(res.Output, want) {
			t.Errorf("Python does not say %q", want)
		}
	}
	if !strings.Contains(res.Output, "\n/usr/lib/python3.11/argparse.py\n") {
		t.Error("the code does not say which file it is from")
	}
}

// TestWhichModulesAreCompiled makes a layer of packages with modules of each
// sort.
func TestWhichModulesAreCompiled(t *testing.T) {
	py := pythonBuilder(t, pythonSpec(t)).python
	const public = "usr/lib/python3/dist-packages/"
	a := makeDeb(t, "a", func(dir string) {
		put(t, dir+"/etc/a/config.py", "setting = 1", 0o644)
		put(t, dir+"/"+public+"good.py", "print('good')", 0o644)
		put(t, dir+"/"+public+"bad.py", "print 'no parenthesis'", 0o644)
		put(t, dir+"/"+public+"zero.py", "a\x00b", 0o644)
		put(t, dir+"/"+public+"notes.txt", "notes", 0o644)
		must(t, os.Symlink("/etc/a/config.py", dir+"/"+public+"soft.py"), os.Symlink("nowhere.py", dir+"/"+public+"none.py"))
		put(t, dir+"/usr/share/a/private.py", "private = 1", 0o644)
		put(t, dir+"/usr/share/python3/tool.py", "tool = 1", 0o644)
	})
	b := makeDeb(t, "b", func(dir string) {
		put(t, dir+"/usr/lib/python3.11/os.py", "name = 'posix'", 0o644)
		put(t, dir+"/usr/lib/python3.11/test/badge.py", "x = 1", 0o644)
		put(t, dir+"/usr/lib/python3.11/lib2to3/tests/data/x.py", "x = 1", 0o644)
		put(t, dir+"/usr/lib/python3.12/os.py", "x = 1", 0o644)
	})
	var buf bytes.Buffer
	var sum advance
	l := newLayerTar(&buf)
	// One batch after the other: the slot orders what is reported.
	py.slots = make(chan struct{}, 1)
	l.modules = newModules(t.Context(), py, func(a advance) { sum.modules += a.modules; sum.compiled += a.compiled })
	must(t, l.deb(t.Context(), a), l.deb(t.Context(), b), l.finish())
	var got []string
	for tr := tar.NewReader(&buf); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		if strings.HasSuffix(h.Name, ".pyc") && h.Mode == 0o644 && h.ModTime.Equal(l.newest) {
			got = append(got, h.Name)
		}
	}
	want := []string{
		public + "__pycache__/good.cpython-311.pyc", "usr/share/python3/__pycache__/tool.cpython-311.pyc",
		public + "__pycache__/soft.cpython-311.pyc", "usr/lib/python3.11/__pycache__/os.cpython-311.pyc",
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("compiled files:\n got %q\nwant %q", got, want)
	}
	if sum.modules != 6 || sum.compiled != 6 {
		t.Errorf("reported: %+v", sum)
	}
}

func TestPythonThatFails(t *testing.T) {
	deb := makeDeb(t, "a", func(dir string) { put(t, dir+"/usr/lib/python3/x.py", "x = 1", 0o644) })
	layer := func(ctx context.Context, program ...string) error {
		p := &python{library: "usr/lib/python3.11/", dir: t.TempDir(), args: program, slots: make(chan struct{}, 1)}
		l := newLayerTar(io.Discard)
		l.modules = newModules(ctx, p, func(advance) {})
		must(t, l.deb(t.Context(), deb))
		err := l.finish()
		_ = l.modules.wait()
		return err
	}
	if err := layer(t.Context(), "/bin/sh", "-c", "echo broken >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "exit status 3: broken") {
		t.Errorf("a process that fails: %v", err)
	}
	for _, said := range []string{"what", "5 name", "5 name\\nfour", "5name\\n"} {
		if err := layer(t.Context(), "/bin/sh", "-c", "printf '"+said+"'"); err == nil || !strings.Contains(err.Error(), "read compiled Python modules") {
			t.Errorf("a process that says %q: %v", said, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := layer(ctx, "/bin/cat"); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled one: %v", err)
	}
}

// TestLoaderOf asks for the loader of a program that has one and of one that
// is none.
func TestLoaderOf(t *testing.T) {
	sh, err := exec.LookPath("sh")
	must(t, err)
	if loader, err := interpreterOf(sh); err != nil || !strings.HasPrefix(filepath.Base(loader), "ld") {
		t.Errorf("loader of %s: %q, %v", sh, loader, err)
	}
	p := &python{dir: t.TempDir()}
	put(t, p.dir+"/usr/bin/python3.11", "#!/bin/sh", 0o755)
	if err := p.findLoader("usr/bin/python3.11", "x86_64-linux-gnu"); err == nil || !strings.Contains(err.Error(), "find loader of") {
		t.Errorf("a script: %v", err)
	}
}
