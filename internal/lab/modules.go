package lab

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
)

// batchSize is how much source, in bytes, is at least given to one process: it
// takes a second or so.
const batchSize = 1 << 20

// modules compiles the Python modules of one layer while it is written. One
// goroutine uses it; wait has to be called. A nil one has nothing to do.
type modules struct {
	python *python
	report func(advance)   // called concurrently
	group  *errgroup.Group // of processes
	ctx    context.Context // the group's

	sources map[string]source // so far, by name: symlinks lead to them
	batch   []source
	size    int      // of the batch
	outputs []string // the files processes write to, in order
}

type source struct {
	name  string
	mtime int64 // seconds since 1970
	data  []byte
}

// newModules returns one whose processes end with ctx, or nil if there is no
// interpreter.
func newModules(ctx context.Context, p *python, report func(advance)) *modules {
	if p == nil {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	return &modules{python: p, report: report, group: group, ctx: ctx, sources: map[string]source{}}
}

// file takes note of an entry whose content is body, and returns a reader of
// the same content.
func (m *modules) file(h *tar.Header, body io.Reader) (io.Reader, error) {
	if m == nil || !strings.HasSuffix(h.Name, ".py") {
		return body, nil
	}
	switch h.Typeflag {
	case tar.TypeReg:
		data, err := io.ReadAll(body)
		if err != nil {
			return nil, err
		}
		m.sources[h.Name] = source{h.Name, h.ModTime.Unix(), data}
		return bytes.NewReader(data), m.add(m.sources[h.Name])
	case tar.TypeSymlink:
		// dpkg-deb packs symlinks after all else of a package.
		target := h.Linkname
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(h.Name), target)
		}
		if s, ok := m.sources[mergeUsr(cleanName(target))]; ok {
			s.name = h.Name
			return body, m.add(s)
		}
	}
	return body, nil
}

func (m *modules) add(s source) error {
	if !m.python.module(s.name) {
		return nil
	}
	m.batch = append(m.batch, s)
	if m.size += len(s.data); m.size >= batchSize {
		return m.start()
	}
	return nil
}

// next begins another package, so that what else is in the layer does not
// change how a package's modules are compiled.
func (m *modules) next() error {
	if m == nil {
		return nil
	}
	return m.start()
}

// start has the batch compiled, once a processor is free.
func (m *modules) start() error {
	if len(m.batch) == 0 {
		return nil
	}
	out, err := os.CreateTemp(m.python.dir, "compiled-")
	if err != nil {
		return err
	}
	var in []io.Reader
	for _, s := range m.batch {
		in = append(in, strings.NewReader(fmt.Sprintf("%d %d %s\n", len(s.data), s.mtime, s.name)), bytes.NewReader(s.data))
	}
	n := len(m.batch)
	m.outputs, m.batch, m.size = append(m.outputs, out.Name()), nil, 0
	select {
	case m.python.slots <- struct{}{}:
	case <-m.ctx.Done():
		return errors.Join(m.ctx.Err(), out.Close())
	}
	m.report(advance{modules: n})
	m.group.Go(func() error {
		err := errors.Join(m.python.compile(m.ctx, io.MultiReader(in...), out), out.Close())
		m.report(advance{compiled: n})
		<-m.python.slots
		return err
	})
	return nil
}

// wait waits for the processes and says what went wrong with them.
func (m *modules) wait() error {
	if m == nil {
		return nil
	}
	return m.group.Wait()
}

// compiled compiles what is left and calls do with the name and the content of
// each file that was made.
func (m *modules) compiled(do func(name string, data []byte) error) error {
	if m == nil {
		return nil
	}
	if err := m.start(); err != nil {
		return err
	}
	if err := m.wait(); err != nil {
		return err
	}
	for _, name := range m.outputs {
		if err := readCompiled(name, do); err != nil {
			return fmt.Errorf("read compiled Python modules: %w", err)
		}
	}
	return nil
}

// readCompiled reads what bytecode.py wrote to file.
func readCompiled(file string, do func(name string, data []byte) error) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	for r := bufio.NewReader(f); ; {
		head, err := r.ReadString('\n')
		if err == io.EOF && head == "" {
			return nil
		}
		digits, name, _ := strings.Cut(strings.TrimSuffix(head, "\n"), " ")
		size, serr := strconv.Atoi(digits)
		if err != nil || serr != nil || size < 0 {
			return fmt.Errorf("%s: line %q makes no sense", file, head)
		}
		data := make([]byte, size)
		if _, err := io.ReadFull(r, data); err != nil {
			return fmt.Errorf("%s: %s: %w", file, name, err)
		}
		if err := do(name, data); err != nil {
			return err
		}
	}
}
