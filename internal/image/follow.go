package image

import (
	"container/list"
	"context"
	"maps"
	"path"
	"strings"
	"sync"

	"skimmer/internal/image/nodejs"
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
	mu     sync.Mutex
	python *python.Modules // nil before an interpreter is known
	node   *nodejs.Modules // nil before there is reason to think of it
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
	switch version := python.Version(interpreter); {
	case version != "":
		f.pythonCommand(cmd, interpreter, version)
	case nodejs.IsInterpreter(interpreter):
		f.nodeCommand(cmd)
	}
}

// pythonCommand finds what the interpreter reads first. f.mu is held.
func (f *follower) pythonCommand(cmd command, interpreter, version string) {
	main := python.Program{Name: f.s.program(cmd)} // a script, by its first line
	if python.IsInterpreter(cmd.args[0]) {
		main = python.ProgramOf(cmd.args)
	}
	if main.Kind == python.Nothing {
		return
	}
	f.openPython(version)
	f.insert(nil, f.python.Interpreter(interpreter))
	for _, dir := range cmd.pythonPath {
		f.python.Search(dir)
	}
	f.python.Environment(f.s.program(cmd))
	switch main.Kind {
	case python.CommandText:
		f.insert(nil, f.python.Command(main.Name))
	case python.ModuleName:
		f.python.Search(cmd.dir)
		f.insert(nil, f.python.Main(main.Name))
	case python.ScriptFile:
		if main.Name != "" {
			f.script(absolute(cmd.dir, main.Name), inPython)
		}
	}
}

// nodeCommand finds what Node.js reads first. f.mu is held.
func (f *follower) nodeCommand(cmd command) {
	f.openNode(cmd.nodePath)
	main := nodejs.Program{File: f.s.program(cmd)} // a script, by its first line
	if nodejs.IsInterpreter(cmd.args[0]) {
		main = nodejs.ProgramOf(cmd.args)
	}
	if main.File == "" && main.Text == "" {
		return
	}
	f.insert(nil, f.node.Interpreter())
	for _, name := range main.Preload {
		f.insert(nil, f.node.Preloaded(cmd.dir, name))
	}
	if main.File == "" {
		f.insert(nil, f.node.Command(cmd.dir, main.Text))
		return
	}
	for _, file := range f.node.Main(absolute(cmd.dir, main.File)) {
		f.script(file, languageOf(file, inNode))
	}
}

// absolute returns the path of a file that is named in dir.
func absolute(dir, name string) string {
	if path.IsAbs(name) {
		return name
	}
	return path.Join(dir, name)
}

// script adds a file that the interpreter runs. It may have been asked for already, but
// what it names was not looked for. f.mu is held.
func (f *follower) script(file string, in language) {
	if at, real, ok := f.s.names.file(file); ok && f.found[at] == nil {
		m := &module{program: program{located: at, path: real, script: in}}
		f.found[at] = m
		m.at = f.order.PushBack(m)
	}
}

// openNode makes the modules known for Node.js. f.mu is held.
func (f *follower) openNode(folders []string) {
	f.node = nodejs.NewModules(func(file string) (string, bool) {
		_, real, ok := f.s.names.file(file)
		return real, ok
	}, folders)
}

// openPython makes the modules known for an interpreter. f.mu is held.
func (f *follower) openPython(version string) {
	f.python = python.NewModules(version, func(yield func(string) bool) {
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
	if in := languageOf(m.path, m.script); in != noLanguage {
		content := f.content(ctx, m)
		f.mu.Lock()
		var err error
		if paths, err = f.loads(m.path, in, content); err != nil {
			f.s.lib.log.Debug("could not look into a module", "file", m.path, "error", err)
		}
		f.mu.Unlock()
	} else {
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

// loads returns what loading a module reads in addition. f.mu is held.
func (f *follower) loads(file string, in language, content []byte) ([]string, error) {
	switch {
	case content == nil:
	case in == inPython && f.python != nil:
		return f.python.Loads(file, content)
	case in == inNode && f.node != nil:
		return f.node.Loads(file, content)
	}
	return nil, nil
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

// language is one whose modules name others.
type language uint8

const (
	noLanguage language = iota
	inPython
	inNode
)

// languageOf returns the language that a file is in, or, if its name does not say, other.
func languageOf(file string, other language) language {
	switch path.Ext(file) {
	case ".py", ".pyc", ".pth":
		return inPython
	case ".js", ".cjs", ".mjs":
		return inNode
	case ".json":
		if path.Base(file) == "package.json" {
			return inNode
		}
	}
	return other
}

// follows reports whether a file may name others: in its text, or as a library.
func follows(file string) bool {
	return languageOf(file, noLanguage) != noLanguage || strings.Contains(path.Base(file), ".so") || path.Ext(file) == ".node"
}

// readBy notes that the program has read a file for the first time: what that names is
// read next. f.mu is held.
func (f *follower) readBy(file string) {
	at, real, ok := f.s.names.file(file)
	if !ok {
		return
	}
	switch in := languageOf(real, noLanguage); {
	case in == inPython && f.python == nil:
		if version := python.VersionOf(real); version != "" {
			f.openPython(version)
		}
	case in == inNode && f.node == nil:
		f.openNode(nil)
		if !f.node.Describes(real) {
			f.node = nil // maybe it is for a browser
			return
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
