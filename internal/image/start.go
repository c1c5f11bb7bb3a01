package image

import (
	"context"
	"debug/elf"
	"encoding/json"
	"io"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
	"skimmer/internal/image/nodejs"
	"skimmer/internal/image/python"
	"skimmer/internal/layerdev"
)

// While containerd is still busy with an image's configuration and the
// container's bundle, what the image's command will read first can be fetched:
// the program, what loads it, and the libraries it names, one round trip for
// each generation of them instead of one for each file.

// command is what an image runs when nobody says otherwise.
type command struct {
	args   []string
	path   []string // folders of the PATH variable
	locale string   // as glibc names its folder; empty for that of C
	dir    string   // where it is run
	// pythonPath and nodePath are the folders of the variables PYTHONPATH and NODE_PATH.
	pythonPath, nodePath []string
	wrapper              string // what is run to run it, if anything is
}

// always are files that nearly every program of a usual distribution reads
// before its first line.
var always = []string{"/etc/ld.so.cache", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group"}

// libraryFolders are where the dynamic loader looks for libraries that the
// program gives no path for.
var libraryFolders = []string{
	"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu",
	"/lib64", "/usr/lib64", "/usr/local/lib", "/lib", "/usr/lib",
}

// byName is what programs open by name, which no header says: by the name of
// the program, paths from its folder, and names of the system's libraries that
// come with them. A virtual machine for Java is one library that is used all
// over, an archive of classes that is mapped whole, and some small ones.
var byName = map[string][]string{
	"java": {
		"../lib/libjli.so", "../lib/jvm.cfg", "../lib/server/libjvm.so", "../lib/server/classes.jsa",
		"../lib/libjava.so", "../lib/libjimage.so", "../lib/libjsvml.so", "../lib/modules",
		"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libz.so.1",
		"libgcc_s.so.1", "libstdc++.so.6",
	},
}

const (
	// maxStartFiles bounds how many files are fetched ahead of a start: there are
	// programs of a thousand modules and more.
	// maxStartBytes is the largest file that is fetched whole, maxMainBytes the
	// largest program that the image's command is, of which more is needed: of
	// larger ones nobody knows which parts are. maxWholeBytes is that of files
	// which are known to be used all over. OpenSSL's library and Python fall
	// just below the first two, and are read from end to end.
	maxStartFiles = 16384
	maxStartBytes = 5 << 20
	maxMainBytes  = 8 << 20
	maxWholeBytes = 32 << 20
	// maxFrontBytes is how large a program is at most that does nothing but call
	// the library it is a front of, and maxConstBytes how much read-only data of
	// the program is fetched.
	maxFrontBytes = 64 << 10
	maxConstBytes = 8 << 20
	// frontShare and backShare are which share of a large program is fetched of its
	// front and of its end before anything is known of it.
	frontShare, backShare = 5, 64
	// maxGenerations is how deep libraries may name others.
	maxGenerations = 6
	maxLinks       = 40 // as Linux' own limit on symbolic links
)

// startOf reads the command from the configuration that a manifest names; an
// empty one where it is not at hand.
func startOf(ctx context.Context, manifest []byte, nearby Content) command {
	var m ocispec.Manifest
	if json.Unmarshal(manifest, &m) != nil || m.Config.Digest.Validate() != nil {
		return command{}
	}
	data, err := m.Config.Data, error(nil) // OCI image-spec, "Descriptor": embedded content
	if digest.FromBytes(data) != m.Config.Digest {
		data, err = nearby.checked(ctx, m.Config.Digest)
	}
	var c ocispec.Image
	if err != nil || json.Unmarshal(data, &c) != nil {
		return command{}
	}
	cmd := command{args: append(slices.Clone(c.Config.Entrypoint), c.Config.Cmd...), dir: path.Join("/", c.Config.WorkingDir)}
	for _, v := range c.Config.Env {
		name, value, _ := strings.Cut(v, "=")
		switch name {
		case "PATH":
			cmd.path = strings.Split(value, ":")
		case "LANG", "LC_ALL":
			cmd.locale = localeFolder(value)
		case "PYTHONPATH":
			cmd.pythonPath = strings.Split(value, ":")
		case "NODE_PATH":
			cmd.nodePath = strings.Split(value, ":")
		}
	}
	if cmd.path == nil {
		cmd.path = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}
	}
	return cmd
}

// localeFolder returns the name under which glibc keeps a locale: what follows
// the dot is in lower case and without hyphens there.
func localeFolder(locale string) string {
	language, codeset, ok := strings.Cut(locale, ".")
	if !ok {
		if language == "C" || language == "POSIX" {
			return "" // they have no files
		}
		return language
	}
	return language + "." + strings.ReplaceAll(strings.ToLower(codeset), "-", "")
}

// localeFiles are what glibc reads of a locale.
func localeFiles(folder string) []string {
	if folder == "" || strings.Contains(folder, "/") {
		return nil
	}
	dir := "/usr/lib/locale/" + folder
	files := []string{"/usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache", "/usr/lib/aarch64-linux-gnu/gconv/gconv-modules.cache"}
	for _, category := range []string{"CTYPE", "NUMERIC", "TIME", "COLLATE", "MONETARY", "PAPER", "NAME", "ADDRESS", "TELEPHONE", "MEASUREMENT", "IDENTIFICATION"} {
		files = append(files, dir+"/LC_"+category)
	}
	return append(files, dir+"/LC_MESSAGES/SYS_LC_MESSAGES")
}

// plan says what is known of a start before it begins.
type plan struct {
	command command
	found   *found
}

// starter fetches what a command reads first.
type starter struct {
	lib    *Library
	rec    *recording
	layers []Layer
	names  names
	later  sync.WaitGroup // fetches that nothing else waits for

	// mu guards what follows.
	mu    sync.Mutex
	asked map[located]bool
	// interpreter is the path of the first program that was asked for of those whose
	// modules are known.
	interpreter string
}

func (s *starter) interpreterPath() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.interpreter
}

// fetchStart fetches what the image's profile names; where there is none, what
// the landmarks of the layers ask for, else what the command reads before
// anything else; in the background of Library.
func (l *Library) fetchStart(ctx context.Context, rec *recording, layers []Layer, p plan) {
	tocs := make([]*estargz.TOC, len(layers))
	l.mu.Lock()
	for i, layer := range layers {
		tocs[i] = l.tocs[layerID(layer.Digest, layer.TOCDigest)]
	}
	l.mu.Unlock()
	if slices.Contains(tocs, nil) || len(layers) == 0 {
		return // it was dropped again already
	}
	// The tables of contents do not change, and the caller goes on.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(l.ctx, cancel)
	l.work.Go(func() {
		defer cancel()
		defer stop()
		s := &starter{lib: l, rec: rec, layers: layers, asked: make(map[located]bool)}
		grace := time.NewTimer(profileGrace)
		defer grace.Stop()
		select {
		case <-p.found.done:
			if s.profile(ctx, p.found, tocs) {
				return
			}
		case <-grace.C:
			// Whoever is that slow to answer may still be right.
			s.later.Go(func() {
				if wait(ctx, p.found.done) == nil {
					s.profile(ctx, p.found, tocs)
				}
			})
		}
		defer s.later.Wait()
		if !s.landmarks(ctx, tocs) {
			s.names = newNames(tocs)
			var following sync.WaitGroup
			follow := sync.OnceFunc(func() {
				following.Go(func() { s.follow(ctx, p.command) })
			})
			if len(p.command.args) > 0 {
				p.command = s.unwrapped(p.command)
				s.command(ctx, p.command, follow)
			}
			follow()
			following.Wait()
		}
	})
}

// landmarks fetches what the image's builder asked for; it reports whether
// there was anything.
func (s *starter) landmarks(ctx context.Context, tocs []*estargz.TOC) bool {
	found := false
	for i, layer := range s.layers {
		if tocs[i].NoPrefetch || tocs[i].Index.PrefetchEnd == 0 {
			continue // converters say so, too, when nobody told them anything
		}
		found = true
		open, err := s.open(layer)
		if err != nil {
			continue
		}
		if part, err := open.Landmark(); err == nil && part.Len > 0 {
			s.note(open.Fetch(ctx, []blob.Range{part}, blob.Prefetch))
		}
	}
	return found
}

func (s *starter) open(layer Layer) (*layerdev.Layer, error) {
	ll := s.lib.layer(layerID(layer.Digest, layer.TOCDigest))
	if ll == nil {
		return nil, blob.Errorf(blob.NotFound, "layer %v is not known any more", layer.Digest)
	}
	return ll.open()
}

// note says that a guess came to nothing: whoever reads will fetch it.
func (s *starter) note(err error) {
	if err != nil && s.lib.ctx.Err() == nil {
		s.lib.log.Debug("could not fetch ahead of a start", "error", err)
	}
}

// command fetches the program, its loader and its libraries, a generation at
// a time. What the loader will read of one generation is fetched with the next.
// What is large and fetched whole waits until what is fetched in parts has come. begun is
// called, if there is any, once what the program is loaded with is on its way.
func (s *starter) command(ctx context.Context, cmd command, begun func()) {
	next := s.first(cmd)
	loaded := make(spans)
	var large []program
	for generation := range maxGenerations {
		if generation == 1 {
			next = s.addSurroundings(next, cmd)
		}
		if len(next) == 0 || ctx.Err() != nil {
			break
		}
		s.lib.log.Debug("fetching ahead of the image's command", "command", cmd.args[0], "files", len(next))
		parts := partsOf(next)
		parts.join(loaded)
		s.begin(ctx, parts)
		if generation == 1 { // what it is loaded with comes before what it runs
			begun()
		}
		s.beginCode(ctx, large)
		loaded, large = make(spans), nil
		var later []program
		if generation == 0 {
			later = s.glance(ctx, next, cmd)
		}
		for _, p := range next {
			if !p.wholly() {
				later = s.needs(ctx, later, p, loaded)
				if !p.small() {
					large = append(large, p)
				}
			}
		}
		s.begin(ctx, s.wholeOf(ctx, next))
		for _, p := range next {
			if p.wholly() {
				later = s.needs(ctx, later, p, loaded)
			}
		}
		next = later
	}
	s.begin(ctx, loaded)
	s.beginCode(ctx, large)
}

// beginCode fetches, of large programs and libraries whose tables are here or on their
// way, the code that runs first.
func (s *starter) beginCode(ctx context.Context, large []program) {
	for _, p := range large {
		open, err := s.open(s.layers[p.layer])
		if err != nil {
			continue
		}
		s.later.Go(func() {
			f := openELF(io.NewSectionReader(readerAt{ctx, open}, p.entry.DataOff, p.entry.Size))
			code := f.initializers()
			s.begin(ctx, s.partsIn(p, code))
			s.begin(ctx, s.partsIn(p, f.callees(code)))
		})
	}
}

// partsIn returns parts of a file as such of its layer.
func (s *starter) partsIn(p program, parts []layerdev.Span) spans {
	out := make(spans)
	for _, sp := range parts {
		if end := min(sp.End, p.entry.Size); sp.Off < end {
			out.add(p.layer, p.entry.DataOff+sp.Off, p.entry.DataOff+end)
		}
	}
	return out
}

// first returns what is known before anything has been read of a program: the
// program, and what its name says.
func (s *starter) first(cmd command) []program {
	next := s.add(nil, s.program(cmd), nil)
	if len(next) == 0 {
		return nil
	}
	next[0].program = true
	main := next[0]
	names := byName[path.Base(main.path)]
	for _, name := range names {
		if strings.Contains(name, "/") {
			next = s.add(next, path.Join(path.Dir(main.path), name), nil)
		} else {
			next = s.addLibrary(next, name, nil)
		}
	}
	for i := range next[1:] {
		next[1+i].whole = true
	}
	switch {
	case len(names) > 0:
		next = s.addSurroundings(next, cmd)
	case main.entry.Size <= maxFrontBytes:
		for _, name := range []string{path.Base(main.path), path.Base(cmd.args[0])} {
			next = s.add(next, s.names.frontOf(name), nil)
		}
		for i := range next[1:] {
			next[1+i].program = true
		}
	}
	if cmd.wrapper != "" {
		next = s.add(next, s.programNamed(cmd.wrapper, cmd.path), nil)
	}
	return next
}

// unwrapped returns the command without what runs it, as an init process or a script that
// prepares things does, if what it runs is an interpreter.
func (s *starter) unwrapped(cmd command) command {
	for i, arg := range cmd.args {
		if !nodejs.IsInterpreter(arg) && !python.IsInterpreter(arg) {
			continue
		}
		if i > 0 && s.programNamed(arg, cmd.path) != "" {
			cmd.wrapper, cmd.args = cmd.args[0], cmd.args[i:]
		}
		break
	}
	return cmd
}

// program returns the path of the program the command runs.
func (s *starter) program(cmd command) string { return s.programNamed(cmd.args[0], cmd.path) }

// programNamed returns the path of a program that is looked for in folders; empty if it is
// in none.
func (s *starter) programNamed(name string, folders []string) string {
	if strings.Contains(name, "/") {
		return name
	}
	for _, dir := range folders {
		if _, _, ok := s.names.file(path.Join(dir, name)); ok {
			return path.Join(dir, name)
		}
	}
	return ""
}

// program is a file that is fetched, with where it looks for libraries.
type program struct {
	located
	path    string
	folders []string // of whoever wants it
	program bool     // it is what the command runs, or what that is a front of
	whole   bool     // it will be used all over
	script  language // what it is in whatever it is called
}

// small reports whether all of it is fetched whatever is used of it.
func (f program) small() bool {
	return f.entry.Size <= maxStartBytes || f.program && f.entry.Size <= maxMainBytes
}

// wholly reports whether it is too large to be fetched whole at once, and is.
func (f program) wholly() bool {
	return f.whole && !f.small() && f.entry.Size <= maxWholeBytes
}

func (s *starter) add(list []program, name string, folders []string) []program {
	if name == "" {
		return list
	}
	found, real, ok := s.names.file(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !ok || s.asked[found] || len(s.asked) >= maxStartFiles {
		return list
	}
	s.asked[found] = true
	if s.interpreter == "" && (python.Version(real) != "" || nodejs.IsInterpreter(real)) {
		s.interpreter = real
	}
	return append(list, program{located: found, path: real, folders: folders})
}

// partsOf returns what to fetch of files: all, or of large ones the beginning, and
// of large programs and libraries the end, where their data is.
func partsOf(files []program) spans {
	parts := make(spans)
	for _, f := range files {
		off, end := f.entry.DataOff, f.entry.DataOff+f.entry.Size
		if f.small() {
			parts.add(f.layer, off, end)
			continue
		}
		if f.program || strings.Contains(path.Base(f.path), ".so") {
			// The larger, the more symbols there are at the front; of what the
			// program is made of, they are looked up in any case, and the code
			// behind them runs first. Its data is longer, too.
			front, back := int64(1), int64(1)
			if f.program {
				front, back = f.entry.Size/frontShare, f.entry.Size/backShare
			}
			parts.add(f.layer, off, off+front)
			if !f.wholly() { // or it comes with what is used, or is not used
				parts.add(f.layer, end-back, end)
			}
		} else {
			parts.add(f.layer, off, off+1)
		}
	}
	return parts
}

// wholeOf returns what to fetch after the parts of files that are used all over:
// of programs and libraries what is loaded, of others everything.
func (s *starter) wholeOf(ctx context.Context, files []program) spans {
	whole := make(spans)
	for _, f := range files {
		if !f.wholly() {
			continue
		}
		var used []layerdev.Span
		if open, err := s.open(s.layers[f.layer]); err == nil {
			used = usedOfELF(io.NewSectionReader(readerAt{ctx, open}, f.entry.DataOff, f.entry.Size))
		}
		if used == nil {
			used = []layerdev.Span{{End: f.entry.Size}}
		}
		for _, sp := range used {
			whole.add(f.layer, f.entry.DataOff+sp.Off, f.entry.DataOff+min(sp.End, f.entry.Size))
		}
	}
	return whole
}

// spans are parts of flat data, by layer.
type spans map[int][]layerdev.Span

func (sp spans) add(layer int, off, end int64) {
	sp[layer] = append(sp[layer], layerdev.Span{Off: off, End: end})
}

// join adds what others has.
func (sp spans) join(others spans) {
	for layer, list := range others {
		sp[layer] = append(sp[layer], list...)
	}
}

// fetchSpans fetches parts of several layers at the same time. arrived is called
// once, when nothing of them is on its way any more.
func (s *starter) fetchSpans(ctx context.Context, parts spans, arrived func()) {
	var all, coming sync.WaitGroup
	coming.Add(len(parts))
	for layer, list := range parts {
		all.Go(func() {
			open, err := s.open(s.layers[layer])
			if err != nil {
				coming.Done()
			} else {
				err = open.Prefetch(ctx, list, coming.Done)
			}
			s.note(err)
		})
	}
	coming.Wait()
	arrived()
	all.Wait()
}

// begin begins to fetch parts of layers: whoever reads in them waits for what is
// on its way.
func (s *starter) begin(ctx context.Context, parts spans) {
	for layer, list := range parts {
		var rest func() error
		open, err := s.open(s.layers[layer])
		if err == nil {
			rest, err = open.Begin(ctx, list)
		}
		if err != nil {
			s.note(err)
			continue
		}
		s.later.Go(func() { s.note(rest()) })
	}
}

// needs adds what the program f names: its loader and its libraries, or the
// interpreter of a script; and to loaded what will be read of it to load it.
func (s *starter) needs(ctx context.Context, list []program, f program, loaded spans) []program {
	open, err := s.open(s.layers[f.layer])
	if err != nil {
		return list
	}
	r := io.NewSectionReader(readerAt{ctx, open}, f.entry.DataOff, f.entry.Size)
	var head [256]byte
	n, _ := r.ReadAt(head[:], 0)
	if line, ok := strings.CutPrefix(string(head[:n]), "#!"); ok {
		words := strings.Fields(strings.SplitN(line, "\n", 2)[0])
		if len(words) > 1 && path.Base(words[0]) == "env" {
			return s.add(s.add(list, words[0], nil), path.Join("/usr/bin", words[1]), nil)
		}
		if len(words) > 0 {
			return s.add(list, words[0], nil)
		}
		return list
	}
	if !strings.HasPrefix(string(head[:n]), elf.ELFMAG) {
		return list
	}
	e := readELF(r)
	if f.program {
		for _, sp := range e.constants { // the kernel reads beyond their end
			e.loaded = append(e.loaded, layerdev.Span{Off: sp.Off, End: sp.End + faultAround})
		}
	}
	loaded.join(s.partsIn(f, e.loaded))
	folders := f.folders
	for _, dir := range e.runPath {
		dir = strings.NewReplacer("$ORIGIN", path.Dir(f.path), "${ORIGIN}", path.Dir(f.path)).Replace(dir)
		folders = append(slices.Clone(folders), path.Clean(dir))
	}
	list = s.add(list, e.loader, nil)
	for _, lib := range e.needed {
		list = s.addLibrary(list, lib, folders)
	}
	return list
}

// glance begins to fetch what programs name that are on their way, as far as their
// fronts tell, and what is read whatever a program is, and returns that: what the
// programs need for certain is known when their ends have come. Of those that are not
// fetched whole there is little to wait for.
func (s *starter) glance(ctx context.Context, programs []program, cmd command) []program {
	var next []program
	for _, p := range programs {
		open, err := s.open(s.layers[p.layer])
		if err != nil || !p.small() {
			continue
		}
		if p.entry.Size <= maxFrontBytes {
			next = s.needs(ctx, next, p, make(spans))
			continue
		}
		f := openELF(io.NewSectionReader(readerAt{ctx, open}, p.entry.DataOff, p.entry.Size))
		next = s.add(next, f.loader(), nil)
		for _, name := range f.mentioned() {
			next = s.addLibrary(next, name, p.folders)
		}
	}
	if len(next) > 0 {
		next = s.addSurroundings(next, cmd)
		s.begin(ctx, partsOf(next))
	}
	return next
}

// addLibrary adds the library that the loader would find under that name.
func (s *starter) addLibrary(list []program, name string, folders []string) []program {
	for _, dir := range slices.Concat(folders, libraryFolders) {
		if _, _, ok := s.names.file(path.Join(dir, name)); ok {
			return s.add(list, path.Join(dir, name), folders)
		}
	}
	return list
}

// addSurroundings adds what is read whatever the program is.
func (s *starter) addSurroundings(list []program, cmd command) []program {
	for _, name := range slices.Concat(always, localeFiles(cmd.locale)) {
		list = s.add(list, name, nil)
	}
	return list
}

// readerAt reads a layer's flat data without pushing readers aside.
type readerAt struct {
	ctx   context.Context
	layer *layerdev.Layer
}

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	return r.layer.ReadAt(blob.WithPriority(r.ctx, blob.Prefetch), p, off)
}
