package image

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
	"maps"
	"slices"

	"skimmer/internal/layerdev"
)

// Of a large library a start runs little, and all over the place. The first of it is
// known: before the program begins, the loader calls the library's initializers (System
// V ABI, chapter 5, "Initialization and Termination Functions"), one for each part
// that a large C++ library was made of, and they call what they need at addresses
// that their instructions say.

const (
	// maxRelocations is how many bytes of a table of relocations are looked at, and
	// maxInitializers how many initializers.
	maxRelocations  = 8 << 20
	maxInitializers = 8192
	// maxInitCode is how much code of initializers is read, in bytes, and tailOfCode
	// how long the last one of those that follow each other is at most.
	maxInitCode = 1 << 20
	tailOfCode  = 4 << 10
	// maxCallees is how many functions they call, and more are not fetched.
	maxCallees = 1024
	// codeAlign is where compilers have functions begin.
	codeAlign = 16
	// elfRela64Size is how long an entry of a table of relocations is, and otherStubs
	// how much code in front of a segment is neither that for entries of the largest
	// of them, nor the library's own.
	elfRela64Size = 24
	otherStubs    = 64 << 10
)

// faultAround is how far on each side of what is touched the kernel reads, in bytes:
// half of what erofs has it read ahead.
const faultAround = 128 << 10

// initializers returns the parts of the file with the code that the loader calls of a
// library before the program begins: only as much as has to be read to know what that
// calls.
func (f elfFile) initializers() []layerdev.Span {
	values := dynamicValues(f.dynamic())
	array, size := values[elf.DT_INIT_ARRAY], min(values[elf.DT_INIT_ARRAYSZ], 8*maxInitializers)
	at := f.offset(array)
	if at == 0 {
		return nil
	}
	// A library that may be loaded anywhere has them as relocations, which are relative;
	// where those are packed (DT_RELR), and in a program with an address of its own,
	// they are as they stand.
	addresses := make([]uint64, size/8)
	if read(f.r, at, 8*uint64(len(addresses)), addresses) != nil {
		return nil
	}
	relative := uint32(elf.R_X86_64_RELATIVE)
	if f.machine == elf.EM_AARCH64 {
		relative = uint32(elf.R_AARCH64_RELATIVE)
	}
	f.relocations(values[elf.DT_RELA], values[elf.DT_RELASZ], func(r elf.Rela64) {
		if i := (r.Off - array) / 8; r.Off >= array && i < uint64(len(addresses)) && elf.R_TYPE64(r.Info) == relative {
			addresses[i] = uint64(r.Addend)
		}
	})
	slices.Sort(addresses)
	var code []layerdev.Span
	total := int64(0)
	for _, addr := range slices.Compact(addresses) {
		off, end := f.code(addr, tailOfCode)
		if off == end {
			continue
		}
		if last := len(code) - 1; last >= 0 && off <= code[last].End+faultAround {
			total += end - code[last].End
			code[last].End = end
		} else {
			total += end - off
			code = append(code, layerdev.Span{Off: off, End: end})
		}
		if total > maxInitCode {
			break
		}
	}
	return code
}

// relocations calls each with the entries of a table of relocations at an address.
func (f elfFile) relocations(table, size uint64, each func(elf.Rela64)) {
	at := f.offset(table)
	if at == 0 {
		return
	}
	entries := bufio.NewReaderSize(io.NewSectionReader(f.r, int64(at), int64(min(size, maxRelocations))), 64<<10)
	var p [elfRela64Size]byte
	for {
		if _, err := io.ReadFull(entries, p[:]); err != nil {
			return // what is there decides
		}
		each(elf.Rela64{
			Off: binary.LittleEndian.Uint64(p[:]), Info: binary.LittleEndian.Uint64(p[8:]),
			Addend: int64(binary.LittleEndian.Uint64(p[16:])),
		})
	}
}

// code returns which part of the file the next n bytes of code at an address are; it
// is empty where none are.
func (f elfFile) code(addr, n uint64) (off, end int64) {
	for _, p := range f.progs {
		if elf.ProgType(p.Type) == elf.PT_LOAD && elf.ProgFlag(p.Flags)&elf.PF_X != 0 &&
			addr >= p.Vaddr && addr-p.Vaddr < p.Filesz && p.Off < 1<<62 && p.Filesz < 1<<62 {
			at := addr - p.Vaddr
			return int64(p.Off + at), int64(p.Off + at + min(n, p.Filesz-at))
		}
	}
	return 0, 0
}

// address is the reverse of code.
func (f elfFile) address(off int64) uint64 {
	for _, p := range f.progs {
		if elf.ProgType(p.Type) == elf.PT_LOAD && uint64(off) >= p.Off && uint64(off)-p.Off < p.Filesz {
			return p.Vaddr + uint64(off) - p.Off
		}
	}
	return 0
}

// callees returns the parts of the file around the functions that code calls, with
// what the kernel reads around them. It understands x86-64; of others it knows nothing.
// It looks at every byte that may be a call, and the few that are none and lead to the
// beginning of a function cost what fetching that does.
func (f elfFile) callees(code []layerdev.Span) []layerdev.Span {
	if f.machine != elf.EM_X86_64 {
		return nil
	}
	called := make(map[uint64]bool)
	for _, sp := range code {
		p := make([]byte, sp.End-sp.Off)
		n, _ := f.r.ReadAt(p, sp.Off)
		f.calls(p[:n], f.address(sp.Off), called)
	}
	f.throughTables(called)
	var parts []layerdev.Span
	for _, addr := range slices.Sorted(maps.Keys(called)) {
		off, end := f.code(addr, 1)
		if off == end {
			continue
		}
		off, end = max(0, off-faultAround), end+faultAround
		if last := len(parts) - 1; last >= 0 && off <= parts[last].End {
			parts[last].End = end
		} else {
			parts = append(parts, layerdev.Span{Off: off, End: end})
		}
	}
	return parts
}

// calls adds to called where the code p, which is at an address, calls or jumps to:
// opcodes E8 and E9 with a distance of 32 bits (Intel SDM, volume 2, CALL and JMP).
func (f elfFile) calls(p []byte, addr uint64, called map[uint64]bool) {
	const length = 5
	for i := 0; i+length <= len(p) && len(called) < maxCallees; i++ {
		if p[i] != 0xe8 && p[i] != 0xe9 {
			continue
		}
		to := addr + uint64(i+length) + uint64(int64(int32(binary.LittleEndian.Uint32(p[i+1:]))))
		if off, end := f.code(to, 1); to%codeAlign == 0 && off < end {
			called[to] = true
		}
	}
}

// throughTables puts in the place of entries of the procedure linkage table the
// functions of this library that they lead to.
func (f elfFile) throughTables(called map[uint64]bool) {
	values := dynamicValues(f.dynamic())
	most := 2*codeAlign*min(values[elf.DT_PLTRELSZ], maxRelocations)/elfRela64Size + otherStubs
	slots := make(map[uint64]bool) // of the global offset table
	for addr := range called {
		if !f.inFront(addr, most) {
			continue // what is there is not read to see that it is none
		}
		if slot := f.slot(addr); slot != 0 {
			delete(called, addr)
			slots[slot] = true
		}
	}
	if len(slots) == 0 {
		return
	}
	symbols := f.offset(values[elf.DT_SYMTAB])
	resolve := func(r elf.Rela64) {
		if !slots[r.Off] || symbols == 0 {
			return
		}
		var s elf.Sym64
		// A symbol of another library has no section here.
		if read(f.r, symbols+uint64(elf.R_SYM64(r.Info))*elf.Sym64Size, elf.Sym64Size, &s) == nil && s.Shndx != uint16(elf.SHN_UNDEF) {
			called[s.Value] = true
		}
	}
	f.relocations(values[elf.DT_JMPREL], values[elf.DT_PLTRELSZ], resolve)
	f.relocations(values[elf.DT_RELA], values[elf.DT_RELASZ], resolve)
}

// inFront reports whether the code at addr is among the first n bytes of its segment,
// where linkers put that table.
func (f elfFile) inFront(addr, n uint64) bool {
	for _, p := range f.progs {
		if elf.ProgType(p.Type) == elf.PT_LOAD && addr >= p.Vaddr && addr-p.Vaddr < min(n, p.Filesz) {
			return true
		}
	}
	return false
}

// endbr64 begins functions that may be jumped to from afar.
var endbr64 = []byte{0xf3, 0x0f, 0x1e, 0xfa}

// slot returns which address the jump at addr goes by, if that is an entry of the
// procedure linkage table; else 0.
func (f elfFile) slot(addr uint64) uint64 {
	var entry [codeAlign]byte
	off, _ := f.code(addr, codeAlign)
	if n, err := f.r.ReadAt(entry[:], off); n < len(entry) && err != io.EOF {
		return 0
	}
	p := entry[:]
	p = bytes.TrimPrefix(p, endbr64)
	p = bytes.TrimPrefix(p, []byte{0xf2})
	jump, ok := bytes.CutPrefix(p, []byte{0xff, 0x25}) // by what lies at a distance of 32 bits
	if !ok {
		return 0
	}
	next := addr + uint64(len(entry)-len(jump)+4)
	return next + uint64(int64(int32(binary.LittleEndian.Uint32(jump))))
}
