package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
	"slices"
	"strings"

	"skimmer/internal/layerdev"
)

// needs of a program, as its ELF headers name them (System V ABI, chapter 5).
type elfNeeds struct {
	loader  string   // PT_INTERP
	needed  []string // DT_NEEDED
	runPath []string // DT_RUNPATH or DT_RPATH
	// loaded are the parts of the file, as offsets, that the loader reads
	// whatever the program does: its tables, and the data it relocates.
	loaded []layerdev.Span
	// constants are the parts with what its code looks at: strings, tables. Those
	// for exceptions, behind them, are read when one is thrown.
	constants []layerdev.Span
}

// Limits on what headers from a stranger may make us read.
const (
	maxProgramHeaders = 128
	maxDynamic        = 64 << 10
	maxNeeded         = 256
	maxELFString      = 4096
	maxLibraryName    = 128
	mentionedBlock    = 64 << 10 // how much is looked through at a time for names
)

// elfFile is a program or a library whose program headers have been read: section
// headers lie at the end of the file, where nothing else is read.
type elfFile struct {
	r       io.ReaderAt
	machine elf.Machine
	progs   []elf.Prog64
}

// openELF reads the program headers of a 64-bit little-endian file; of others, and
// of damaged ones, there are none.
func openELF(r io.ReaderAt) elfFile {
	f := elfFile{r: r}
	var h elf.Header64
	if read(r, 0, 64, &h) != nil || string(h.Ident[:len(elf.ELFMAG)]) != elf.ELFMAG ||
		elf.Class(h.Ident[elf.EI_CLASS]) != elf.ELFCLASS64 || elf.Data(h.Ident[elf.EI_DATA]) != elf.ELFDATA2LSB ||
		h.Phentsize != 56 || h.Phnum > maxProgramHeaders {
		return f
	}
	progs := make([]elf.Prog64, h.Phnum)
	if read(r, h.Phoff, 56*uint64(h.Phnum), progs) == nil {
		f.machine, f.progs = elf.Machine(h.Machine), progs
	}
	return f
}

// loader returns the path of what loads the program; empty where it names none.
func (f elfFile) loader() string {
	for _, p := range f.progs {
		if elf.ProgType(p.Type) == elf.PT_INTERP {
			return cstring(f.r, p.Off, min(p.Filesz, maxELFString))
		}
	}
	return ""
}

// mentioned returns the first names of libraries that stand together in the file: near
// the front, linkers put those that it needs. Whether it is these, only the dynamic
// section says, near the end.
func (f elfFile) mentioned() (names []string) {
	if f.progs == nil {
		return nil // no such file
	}
	var block []byte
	for off := int64(0); len(names) < maxNeeded; off += mentionedBlock {
		// What the block before ends with may be the beginning of a name.
		kept := copy(block, block[max(0, len(block)-maxLibraryName):])
		block = append(block[:kept], make([]byte, mentionedBlock)...)
		n, err := f.r.ReadAt(block[kept:], off)
		block = block[:kept+n]
		before := len(names)
		for rest := block; ; {
			_, after, ok := bytes.Cut(rest, []byte("\x00lib"))
			end := bytes.IndexByte(after, 0)
			if !ok || end < 0 {
				break
			}
			if name := "lib" + string(after[:end]); isLibrary(name) && !slices.Contains(names, name) {
				names = append(names, name)
			}
			rest = after[end:]
		}
		if err != nil || before > 0 && len(names) == before {
			break
		}
	}
	return names
}

// isLibrary reports whether a name looks like that of a library.
func isLibrary(name string) bool {
	base, version, ok := strings.Cut(name, ".so")
	return ok && len(name) <= maxLibraryName && !strings.Contains(base, "/") && strings.Trim(version, ".0123456789") == ""
}

// dynamic returns the entries of the dynamic section, as far as they can be read.
func (f elfFile) dynamic() []elf.Dyn64 {
	for _, p := range f.progs {
		if elf.ProgType(p.Type) == elf.PT_DYNAMIC {
			entries := make([]elf.Dyn64, min(p.Filesz, maxDynamic)/16)
			if read(f.r, p.Off, 16*uint64(len(entries)), entries) != nil {
				return nil
			}
			return entries
		}
	}
	return nil
}

// readELF reads what a program needs. Of a damaged one it returns what it could
// make out.
func readELF(r io.ReaderAt) elfNeeds {
	var n elfNeeds
	f := openELF(r)
	for _, p := range f.progs {
		if elf.ProgType(p.Type) == elf.PT_LOAD && elf.ProgFlag(p.Flags)&elf.PF_W != 0 && p.Off < 1<<62 && p.Filesz < 1<<62 {
			n.loaded = append(n.loaded, layerdev.Span{Off: int64(p.Off), End: int64(p.Off + p.Filesz)})
		}
	}
	n.loader = f.loader()
	n.constants = constants(f.progs, unwindTables(f.progs))
	if entries := f.dynamic(); len(entries) > 0 {
		n.dynamic(f, entries)
	}
	return n
}

// unwindTables returns where in the file the tables for exceptions begin; 0
// where it does not say.
func unwindTables(progs []elf.Prog64) uint64 {
	for _, p := range progs {
		if elf.ProgType(p.Type) == elf.PT_GNU_EH_FRAME && p.Off < 1<<62 {
			return p.Off
		}
	}
	return 0
}

// constants returns the part of the file that is loaded to be read alone, up to
// where the tables for exceptions begin, if that is in it and it is not large.
func constants(progs []elf.Prog64, unwind uint64) []layerdev.Span {
	for _, p := range progs {
		if elf.ProgType(p.Type) != elf.PT_LOAD || elf.ProgFlag(p.Flags) != elf.PF_R {
			continue
		}
		if p.Off < unwind && unwind-p.Off < min(p.Filesz, maxConstBytes) {
			return []layerdev.Span{{Off: int64(p.Off), End: int64(unwind)}}
		}
	}
	return nil
}

// usedOfELF returns the parts of a program or library that are loaded, without
// the tables for exceptions, which end the segment they are in. Symbols for
// debuggers, at the end of the file, are not among them. It reads the program
// headers alone; of what is no such file it returns nothing.
func usedOfELF(r io.ReaderAt) []layerdev.Span {
	var parts []layerdev.Span
	f := openELF(r)
	unwind := unwindTables(f.progs)
	for _, p := range f.progs {
		if elf.ProgType(p.Type) != elf.PT_LOAD || p.Off >= 1<<62 || p.Filesz >= 1<<62 {
			continue
		}
		end := p.Off + p.Filesz
		if p.Off < unwind && unwind < end && elf.ProgFlag(p.Flags) == elf.PF_R {
			end = unwind
		}
		parts = append(parts, layerdev.Span{Off: int64(p.Off), End: int64(end)})
	}
	return parts
}

// tableSizes are the tables of a dynamic section, with what says how long each
// is. They lie at the front of a file; that of symbols, whose length is not
// said, before that of their names.
var tableSizes = map[elf.DynTag]elf.DynTag{
	elf.DT_STRTAB: elf.DT_STRSZ, elf.DT_RELA: elf.DT_RELASZ, elf.DT_JMPREL: elf.DT_PLTRELSZ,
}

// dynamic reads the entries of the dynamic section.
func (n *elfNeeds) dynamic(f elfFile, entries []elf.Dyn64) {
	values := dynamicValues(entries)
	tables := uint64(0)
	for table, size := range tableSizes {
		if values[table] != 0 {
			tables = max(tables, f.offset(values[table])+min(values[size], 1<<32))
		}
	}
	n.loaded = append(n.loaded, layerdev.Span{End: int64(tables)})
	table, size := f.offset(values[elf.DT_STRTAB]), values[elf.DT_STRSZ]
	if table == 0 {
		return
	}
	for _, d := range entries {
		if d.Val >= size || len(n.needed) >= maxNeeded {
			continue
		}
		switch elf.DynTag(d.Tag) {
		case elf.DT_NEEDED:
			if name := cstring(f.r, table+d.Val, min(size-d.Val, maxELFString)); name != "" {
				n.needed = append(n.needed, name)
			}
		case elf.DT_RUNPATH, elf.DT_RPATH:
			n.runPath = strings.Split(cstring(f.r, table+d.Val, min(size-d.Val, maxELFString)), ":")
		}
	}
}

// dynamicValues returns the entries of a dynamic section by their tags; of those
// that there may be several of, one.
func dynamicValues(entries []elf.Dyn64) map[elf.DynTag]uint64 {
	values := make(map[elf.DynTag]uint64)
	for _, d := range entries {
		values[elf.DynTag(d.Tag)] = d.Val
	}
	return values
}

// offset returns where in the file the byte at an address is; 0 where it is not
// in the file.
func (f elfFile) offset(addr uint64) uint64 {
	for _, p := range f.progs {
		if elf.ProgType(p.Type) == elf.PT_LOAD && addr >= p.Vaddr && addr-p.Vaddr < p.Filesz {
			return p.Off + addr - p.Vaddr
		}
	}
	return 0
}

// read decodes n bytes at off into v.
func read(r io.ReaderAt, off, n uint64, v any) error {
	if off > 1<<62 {
		return io.ErrUnexpectedEOF
	}
	return binary.Read(io.NewSectionReader(r, int64(off), int64(n)), binary.LittleEndian, v)
}

// cstring returns the string at off that ends with a zero byte; empty if none
// is within limit bytes.
func cstring(r io.ReaderAt, off, limit uint64) string {
	if off > 1<<62 {
		return ""
	}
	p := make([]byte, limit)
	k, _ := r.ReadAt(p, int64(off)) // what is there decides
	s, _, ok := strings.Cut(string(p[:k]), "\x00")
	if !ok {
		return ""
	}
	return s
}
