package image

import (
	"debug/elf"
	"encoding/binary"
	"testing"
)

// ELFLibrary describes a 64-bit ELF file for x86-64: tables in front, code, read-only
// data with tables for exceptions behind, and its data. Addresses are offsets.
type ELFLibrary struct {
	Size   int
	Needed []string
	// Dynamic is where the dynamic section lies, 0 for behind the headers.
	Dynamic int

	// Initializer is where code lies that the loader calls, 0 for none. It calls Direct
	// by their addresses, and ByTable and one function of another library by its
	// linkage table.
	Initializer     int
	Direct, ByTable []int
}

// Where the tables lie.
const (
	elfHeaders     = 64 + 4*56
	elfStrings     = 1024
	elfRelocations = 1536
	elfSymbols     = 2048
	elfSlots       = 3072
	elfInitArray   = 3584
	elfStubs       = 4096
)

// Build returns the file.
func (l ELFLibrary) Build(t *testing.T) []byte {
	t.Helper()
	p := make([]byte, l.Size)
	put := func(off int, v any) int {
		n, err := binary.Encode(p[off:], binary.LittleEndian, v)
		if err != nil {
			t.Fatal(err)
		}
		return off + n
	}
	names := []byte{0}
	dynamic := []elf.Dyn64{{Tag: int64(elf.DT_STRTAB), Val: elfStrings}}
	for _, name := range l.Needed {
		dynamic = append(dynamic, elf.Dyn64{Tag: int64(elf.DT_NEEDED), Val: uint64(len(names))})
		names = append(append(names, name...), 0)
	}
	dynamic = append(dynamic, elf.Dyn64{Tag: int64(elf.DT_STRSZ), Val: uint64(len(names))})
	if l.Initializer != 0 {
		dynamic = append(dynamic, l.code(put)...)
	}
	dynamic = append(dynamic, elf.Dyn64{})
	constants, data := uint64(l.Size/8*6), uint64(l.Size/8*7)
	section := max(elfHeaders, l.Dynamic)
	h := elf.Header64{Machine: uint16(elf.EM_X86_64), Phoff: 64, Phentsize: 56, Phnum: 4}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB)
	put(0, h)
	put(64, []elf.Prog64{
		{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Filesz: constants},
		{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R), Off: constants, Vaddr: constants, Filesz: data - constants},
		{Type: uint32(elf.PT_GNU_EH_FRAME), Off: data - 100, Filesz: 100},
		{Type: uint32(elf.PT_DYNAMIC), Off: uint64(section), Filesz: uint64(16 * len(dynamic))},
	})
	put(section, dynamic)
	copy(p[elfStrings:], names)
	return p
}

// code puts the initializer where it belongs, and what leads to it and from it, and
// returns what the dynamic section says of that.
func (l ELFLibrary) code(put func(int, any) int) []elf.Dyn64 {
	call := func(at, to int) int {
		return put(at, struct {
			Op       uint8
			Distance int32
		}{0xe8, int32(to - at - 5)})
	}
	at := l.Initializer
	for _, to := range l.Direct {
		at = call(at, to)
	}
	put(elfRelocations, elf.Rela64{Off: elfInitArray, Info: elf.R_INFO(0, uint32(elf.R_X86_64_RELATIVE)), Addend: int64(l.Initializer)})
	const jumps = elfRelocations + elfRela64Size
	for i, to := range append([]int{0}, l.ByTable...) { // the first is of another library
		stub, slot, symbol := elfStubs+codeAlign*i, elfSlots+8*i, elf.Sym64{Value: uint64(to)}
		if to != 0 {
			symbol.Shndx = 1
		}
		put(elfSymbols+elf.Sym64Size*(1+i), symbol)
		put(jumps+elfRela64Size*i, elf.Rela64{Off: uint64(slot), Info: elf.R_INFO(uint32(1+i), uint32(elf.R_X86_64_JMP_SLOT))})
		put(put(stub, [6]byte{0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25}), int32(slot-stub-10))
		at = call(at, stub)
	}
	return []elf.Dyn64{
		{Tag: int64(elf.DT_INIT_ARRAY), Val: elfInitArray},
		{Tag: int64(elf.DT_INIT_ARRAYSZ), Val: 8},
		{Tag: int64(elf.DT_RELA), Val: elfRelocations},
		{Tag: int64(elf.DT_RELASZ), Val: elfRela64Size},
		{Tag: int64(elf.DT_JMPREL), Val: jumps},
		{Tag: int64(elf.DT_PLTRELSZ), Val: uint64(elfRela64Size * (1 + len(l.ByTable)))},
		{Tag: int64(elf.DT_SYMTAB), Val: elfSymbols},
	}
}
