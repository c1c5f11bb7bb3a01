package image

import (
	"container/list"
	"context"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"skimmer/internal/image/python"
)

const (
	// followBytes is how much of the modules of a program is fetched at once, and
	// followAtOnce how often: enough that the way is never idle, and little enough
	// that what is found meanwhile and read sooner does not wait long.
	followBytes  = 1 << 20
	followAtOnce = 2
	// maxUnread is how much may be fetched that the program has not read yet, beside a
	// quarter of what it has: it is what a program costs at most that reads something
	// else.
	maxUnread = 32 << 20
	// maxModuleBytes is the largest module that is looked into.
	maxModuleBytes = 4 << 20
)

// follower fetches what a program's modules name, before the program gets there: an
// interpreter opens them one by one, and knows of the next when it has run the last.
type follower struct {
	s    *starter // constant
	kick chan struct{}

	// openedMu guards opened: files that were read for the first time and not looked at.
	openedMu sync.Mutex
	opened   []string

	// mu guards what follows. Order: mu, starter.mu.
	mu      sync.Mutex
	modules *python.Modules // nil before an interpreter is known
	// order has the modules that were found and not looked into, of *module, in the
	// order in which the program will read them.
	order        list.List
	found        map[located]*module
	coming       int   // how many fetches are under way
	unread, used int64 // bytes that were asked for and not read, and those that were
}

// module is a file of a program that was found. follower.mu guards what is not of
// the program.
type module struct {
	program
	at    *list.Element // nil once it was looked into
	begun bool          // it was asked for
	read  bool
}

// weight returns about how many bytes are fetched of it.
func (m *module) weight() int64 { return min(m.entry.Size, maxStartBytes) }

// follow fetches what the modules name of the command, and of whatever program reads
// modules, until the start is over.
func (s *starter) follow(ctx context.Context, cmd command) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := &follower{s: s, kick: make(chan struct{}, 1), found: make(map[located]*module)}
	f.command(cmd)
	s.rec.follow(f.open)
	defer s.rec.follow(nil)
	var all sync.WaitGroup
	defer all.Wait()
	for {
		f.look()
		if batch := f.next(); len(batch) > 0 {
			programs := make([]program, len(batch))
			for i, m := range batch {
				programs[i] = m.program
			}
			s.begin(ctx, partsOf(programs))
			all.Go(func() {
				for _, m := range batch {
					f.lookInto(ctx, m)
				}
				f.done()
			})
			continue
		}
		select {
		case <-f.kick:
		case <-s.rec.ended:
			return
		case <-ctx.Done():
			return
		}
	}
}

// open notes that a file is read for the first time.
func (f *follower) open(file string) {
	f.openedMu.Lock()
	defer f.openedMu.Unlock()
	f.opened = append(f.opened, file)
	f.wake()
}

// look takes note of the files that were read.
func (f *follower) look() {
	f.openedMu.Lock()
	files := f.opened
	f.opened = nil
	f.openedMu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, file := range files {
		f.readBy(file)
	}
}

// done notes that a fetch is over and looked into.
func (f *follower) done() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.coming--
	f.wake()
}

// wake has follow look for more.
func (f *follower) wake() {
	select {
	case f.kick <- struct{}{}:
	default:
	}
}

// command finds what the image's command reads first.
func (f *follower) command(cmd command) {
	f.mu.Lock()
	defer f.mu.Unlock()
	interpreter := f.s.interpreterPath()
	version := python.Version(interpreter)
	if version == "" {
		return
	}
	main := python.Program{Name: f.s.program(cmd)} // a script, by its first line
	if strings.HasPrefix(path.Base(cmd.args[0]), "python") {
		main = python.ProgramOf(cmd.args)
	}
	if main.Kind == python.Nothing {
		return
	}
	f.openModules(version)
	f.insert(nil, f.modules.Interpreter(interpreter))
	for _, dir := range cmd.modules {
		f.modules.Search(dir)
	}
	f.modules.Environment(f.s.program(cmd))
	switch main.Kind {
	case python.CommandText:
		f.insert(nil, f.modules.Command(main.Name))
	case python.ModuleName:
		f.modules.Search(cmd.dir)
		f.insert(nil, f.modules.Main(main.Name))
	case python.ScriptFile:
		f.script(path.Join(cmd.dir, main.Name), main.Name)
	}
}

// script adds the file that the interpreter runs. It may have been asked for already, but
// what it names was not looked for. f.mu is held.
func (f *follower) script(file, name string) {
	if path.IsAbs(name) {
		file = name
	}
	if at, real, ok := f.s.names.file(file); ok && name != "" && f.found[at] == nil {
		m := &module{program: program{located: at, path: real, script: true}}
		f.found[at] = m
		m.at = f.order.PushBack(m)
	}
}

// openModules makes the modules known for an interpreter. f.mu is held.
func (f *follower) openModules(version string) {
	f.modules = python.NewModules(version, func(yield func(string) bool) {
		for name := range maps.Keys(f.s.names) {
			if !yield("/" + name) {
				return
			}
		}
	})
}

// next returns the next modules to fetch, in order, unless enough is under way.
func (f *follower) next() []*module {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.coming == followAtOnce {
		return nil
	}
	var batch []*module
	bytes := int64(0)
	for e := f.order.Front(); e != nil && bytes < followBytes && f.unread < maxUnread+f.used/4; e = e.Next() {
		m := e.Value.(*module)
		if m.begun {
			continue
		}
		m.begun = true
		if !m.read {
			f.unread += m.weight()
		}
		bytes += m.weight()
		batch = append(batch, m)
	}
	if len(batch) > 0 {
		f.coming++
	}
	return batch
}

// lookInto waits for a module, and finds what it names.
func (f *follower) lookInto(ctx context.Context, m *module) {
	var paths []string
	var libraries []program
	switch {
	case m.script || isModule(m.path):
		content := f.content(ctx, m)
		f.mu.Lock()
		if f.modules != nil && content != nil {
			var err error
			if paths, err = f.modules.Loads(m.path, content); err != nil {
				f.s.lib.log.Debug("could not look into a module", "file", m.path, "error", err)
			}
		}
		f.mu.Unlock()
	default:
		loaded := make(spans)
		libraries = f.s.needs(ctx, nil, m.program, loaded)
		if !m.small() {
			f.s.begin(ctx, loaded)
			f.s.beginCode(ctx, []program{m.program})
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.insertPrograms(m.at, libraries)
	f.insert(m.at, paths)
	f.order.Remove(m.at)
	m.at = nil
}

// content returns what is in a module; nil if it cannot be had.
func (f *follower) content(ctx context.Context, m *module) []byte {
	open, err := f.s.open(f.s.layers[m.layer])
	if err != nil || m.entry.Size > maxModuleBytes {
		return nil
	}
	p := make([]byte, m.entry.Size)
	if _, err := (readerAt{ctx, open}).ReadAt(p, m.entry.DataOff); err != nil {
		f.s.note(err)
		return nil
	}
	return p
}

// insert puts files behind the module at, or at the end, in their order: what was found
// before is moved there if it would come later. f.mu is held.
func (f *follower) insert(at *list.Element, files []string) {
	for _, file := range files {
		if known := f.known(file); known != nil {
			if at != nil && known.at != nil && !known.begun && before(at, known.at) {
				f.order.MoveAfter(known.at, at)
				at = known.at
			}
			continue
		}
		at = f.insertPrograms(at, f.s.add(nil, file, nil))
	}
}

// known returns the module that a file is, if it was found.
func (f *follower) known(file string) *module {
	at, _, ok := f.s.names.file(file)
	if !ok {
		return nil
	}
	return f.found[at]
}

// before reports whether a comes before b in the order.
func before(a, b *list.Element) bool {
	for ; a != nil; a = a.Next() {
		if a == b {
			return true
		}
	}
	return false
}

// insertPrograms puts new ones behind the module at, or at the end, and returns the last.
// f.mu is held.
func (f *follower) insertPrograms(at *list.Element, programs []program) *list.Element {
	for _, p := range programs {
		m := &module{program: p}
		f.found[p.located] = m
		if at == nil {
			m.at = f.order.PushBack(m)
		} else {
			m.at = f.order.InsertAfter(m, at)
			at = m.at
		}
	}
	return at
}

// isModule reports whether what is in a file are modules' names, and not a library.
func isModule(file string) bool {
	return slices.Contains([]string{".py", ".pyc", ".pth"}, path.Ext(file))
}

// follows reports whether a file may name others.
func follows(file string) bool {
	return isModule(file) || strings.Contains(path.Base(file), ".so")
}

// readBy notes that the program has read a file for the first time: what that names is
// read next. f.mu is held.
func (f *follower) readBy(file string) {
	at, real, ok := f.s.names.file(file)
	if !ok {
		return
	}
	if f.modules == nil {
		if version := python.VersionOf(real); version != "" {
			f.openModules(version)
		}
	}
	m := f.found[at]
	if m == nil {
		list := f.s.add(nil, real, nil)
		if len(list) == 0 {
			return // it was fetched with the program
		}
		m = &module{program: list[0], read: true}
		f.found[at] = m
		m.at = f.order.PushFront(m)
		f.used += m.weight()
		return
	}
	if m.read {
		return
	}
	m.read = true
	f.used += m.weight()
	if m.begun {
		f.unread -= m.weight()
	}
	if m.at != nil {
		f.order.MoveToFront(m.at)
	}
}
