package lab

import (
	"bytes"
	"context"
	"debug/elf"
	_ "embed" // bytecode.py
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// python is an image's own interpreter, unpacked by itself with what it needs,
// without a system around it. It compiles modules as the scripts of Debian's
// packages do; nothing else of an image is ever executed. Safe for concurrent
// use.
type python struct {
	library string // directory of its standard library in the image, with a slash
	dir     string // what is unpacked; close removes it
	args    []string
	slots   chan struct{} // as many processes may run at once
}

// minimal is the package an interpreter is in.
var minimal = regexp.MustCompile(`^(python3\.[0-9]+)-minimal_`)

//go:embed bytecode.py
var bytecodeScript string

// unpackPython unpacks the interpreter of the image below dir, or returns nil
// if the image has none.
func (b *builder) unpackPython(ctx context.Context, dir string) (_ *python, err error) {
	packages := map[string]string{} // file by package
	var name string
	for _, layer := range b.plan.Layers {
		for _, d := range layer {
			pkg, _, _ := strings.Cut(d.Name, "_")
			packages[pkg] = filepath.Join(b.debs, d.Name)
			if m := minimal.FindStringSubmatch(d.Name); m != nil {
				name = m[1]
			}
		}
	}
	if name == "" {
		return nil, nil
	}
	b.progress(Progress{Step: "unpack Python", Fraction: -1})
	p := &python{library: "usr/lib/" + name + "/", slots: make(chan struct{}, runtime.NumCPU())}
	// Its processes run in it, where relative names lead elsewhere.
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if p.dir, err = os.MkdirTemp(dir, ".python-"); err != nil {
		return nil, err
	}
	if err = unpackWithDepends(ctx, packages, name+"-minimal", p.dir); err == nil {
		err = p.findLoader("usr/bin/"+name, architectures[b.plan.Architecture].multiarch)
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *python) close() error { return os.RemoveAll(p.dir) }

// unpackWithDepends unpacks a package and all it depends on into dir, each
// once: it takes them out of packages.
func unpackWithDepends(ctx context.Context, packages map[string]string, pkg, dir string) error {
	file, ok := packages[pkg]
	if !ok {
		return nil // unpacked already, or another alternative of a dependency
	}
	delete(packages, pkg)
	if out, err := exec.CommandContext(ctx, "dpkg-deb", "--extract", file, dir).CombinedOutput(); err != nil {
		return fmt.Errorf("unpack %s: %w: %s", file, err, bytes.TrimSpace(out))
	}
	out, err := exec.CommandContext(ctx, "dpkg-deb", "--show", "--showformat=${Pre-Depends},${Depends}", file).Output()
	if err != nil {
		return fmt.Errorf("read dependencies of %s: %w", file, err)
	}
	for _, d := range strings.FieldsFunc(string(out), func(r rune) bool { return r == ',' || r == '|' }) {
		d = strings.TrimSpace(d)
		if end := strings.IndexAny(d, " (:"); end >= 0 {
			d = d[:end]
		}
		if err := unpackWithDepends(ctx, packages, d, dir); err != nil {
			return err
		}
	}
	return nil
}

// findLoader makes the command line that runs the program from where it is
// unpacked: by its own dynamic loader, with its own libraries.
func (p *python) findLoader(program, multiarch string) error {
	program = filepath.Join(p.dir, program)
	loader, err := interpreterOf(program)
	if err != nil {
		return fmt.Errorf("find loader of %s: %w", program, err)
	}
	libraries := []string{filepath.Join(p.dir, "lib", multiarch), filepath.Join(p.dir, "usr/lib", multiarch)}
	for _, dir := range libraries {
		// The path in the program is a symlink out of what is unpacked to this.
		file := filepath.Join(dir, filepath.Base(loader))
		if st, err := os.Lstat(file); err == nil && st.Mode().IsRegular() {
			p.args = []string{file, "--library-path", strings.Join(libraries, ":"), program,
				"-B", "-S", "-W", "ignore", "-c", bytecodeScript}
			return nil
		}
	}
	return fmt.Errorf("find loader of %s: no %s in %s", program, filepath.Base(loader), strings.Join(libraries, " or "))
}

// interpreterOf returns what a program's PT_INTERP names (System V ABI, "Program
// Interpreter").
func interpreterOf(program string) (string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for _, s := range f.Progs {
		if s.Type == elf.PT_INTERP {
			name, err := io.ReadAll(s.Open())
			return string(bytes.TrimRight(name, "\x00")), err
		}
	}
	return "", errors.New("it names none")
}

// compile runs the interpreter with sources on standard input and writes what
// it makes of them to out. What it makes depends on all it has compiled before
// (an object that something else refers to is marshalled in another way), so
// the same sources in the same order make the same bytes, and others may not.
func (p *python) compile(ctx context.Context, sources io.Reader, out *os.File) error {
	cmd := exec.CommandContext(ctx, p.args[0], p.args[1:]...)
	cmd.Dir = p.dir
	cmd.Env = []string{"PYTHONHOME=" + filepath.Join(p.dir, "usr"), "PYTHONHASHSEED=0", "LC_ALL=C.UTF-8"}
	cmd.Stdin, cmd.Stdout = sources, out
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.WaitDelay = stopLimit
	err := cmd.Run()
	switch {
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("compile Python modules: %w", ctx.Err())
	case err != nil:
		return fmt.Errorf("compile Python modules: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
}

// module reports whether the scripts of Debian's packages compile the file of
// that name: python3.N-minimal, python3.N and libpython3.N-testsuite say which
// of the standard library, py3compile the rest.
func (p *python) module(name string) bool {
	if !strings.HasSuffix(name, ".py") {
		return false
	}
	if in, ok := strings.CutPrefix(name, p.library); ok {
		return !strings.Contains(in, "lib2to3/tests/data") && !strings.HasPrefix(in, "test/bad") && !strings.HasPrefix(in, "config-")
	}
	return strings.HasPrefix(name, "usr/lib/python3/") || strings.HasPrefix(name, "usr/share/python3/")
}
