package image

import (
	"bytes"
	"debug/elf"
	"os"
	"slices"
	"strings"
	"testing"

	"skimmer/internal/layerdev"
)

// What the headers say is compared with what the standard library makes of
// the whole file.
func TestReadELF(t *testing.T) {
	for _, path := range []string{"/bin/ls", "/usr/bin/containerd", "/lib/x86_64-linux-gnu/libm.so.6"} {
		f, err := elf.Open(path)
		if err != nil {
			t.Logf("%s: %v", path, err)
			continue
		}
		want, err := f.ImportedLibraries()
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		r, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		got := readELF(r)
		r.Close()
		if !slices.Equal(got.needed, want) {
			t.Errorf("%s needs %q, want %q", path, got.needed, want)
		}
		if path == "/bin/ls" && got.loader == "" {
			t.Errorf("%s has no loader", path)
		}
	}
}

// The read-only data of a program are its segment of that kind up to the tables
// for exceptions, if it has them and is not large.
func TestConstants(t *testing.T) {
	load := func(flags elf.ProgFlag, off, size uint64) elf.Prog64 {
		return elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(flags), Off: off, Filesz: size}
	}
	for _, c := range []struct {
		name   string
		progs  []elf.Prog64
		unwind uint64
		want   []layerdev.Span
	}{
		{"usual", []elf.Prog64{load(elf.PF_R, 0, 0x1000), load(elf.PF_R|elf.PF_X, 0x1000, 0x5000), load(elf.PF_R, 0x6000, 0x3000), load(elf.PF_R|elf.PF_W, 0x9000, 0x1000)}, 0x7800, []layerdev.Span{{Off: 0x6000, End: 0x7800}}},
		{"one segment", []elf.Prog64{load(elf.PF_R|elf.PF_X, 0, 0x9000)}, 0x7800, nil},
		{"no tables", []elf.Prog64{load(elf.PF_R, 0x6000, 0x3000)}, 0, nil},
		{"tables elsewhere", []elf.Prog64{load(elf.PF_R, 0x6000, 0x3000)}, 0x9000, nil},
		{"large", []elf.Prog64{load(elf.PF_R, 0x6000, 2*maxConstBytes)}, 0x6000 + maxConstBytes, nil},
		{"of a liar", []elf.Prog64{load(elf.PF_R, 1<<63, 1<<63), load(elf.PF_R, 0, 1<<63)}, 1<<62 - 1, nil},
	} {
		if got := constants(c.progs, c.unwind); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// What is used of a program is told from its program headers; the sections say
// what is in it.
func TestUsedOfELF(t *testing.T) {
	const path = "/bin/ls"
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	used := usedOfELF(bytes.NewReader(data))
	for name, want := range map[string]bool{
		".text": true, ".rodata": true, ".dynstr": true, ".data.rel.ro": true, ".eh_frame": false, ".shstrtab": false,
	} {
		s := f.Section(name)
		if s == nil {
			t.Fatalf("%s has no %s", path, name)
		}
		if got := slices.ContainsFunc(used, func(sp layerdev.Span) bool {
			return sp.Off <= int64(s.Offset) && int64(s.Offset+s.FileSize) <= sp.End
		}); got != want {
			t.Errorf("%s is used: %v, want %v; used is %v", name, got, want, used)
		}
	}
	if got := usedOfELF(bytes.NewReader([]byte("#!/bin/sh"))); got != nil {
		t.Errorf("a script has %v", got)
	}
}

// The libraries that a program needs are named together near its front; what looks like
// a library's name elsewhere is not looked for.
func TestMentioned(t *testing.T) {
	const size = 1 << 20
	plain := ELFLibrary{Size: size, Needed: []string{"libm.so.6", "libz.so.1", "libstdc++.so.6", "libm.so.6", "libx/y.so", "libtool", "libq.so.conf", "other.so"}}.Build(t)
	long := bytes.Repeat([]byte("x"), maxLibraryName)
	across := slices.Clone(ELFLibrary{Size: size}.Build(t))
	copy(across[mentionedBlock-6:], "\x00liba.so.1\x00libb.so\x00lib"+string(long)+".so\x00")
	late := slices.Clone(ELFLibrary{Size: size}.Build(t))
	copy(late[10*mentionedBlock:], "\x00liblate.so.1\x00")
	copy(late[14*mentionedBlock:], "\x00libelse.so.1\x00")
	for name, c := range map[string]struct {
		data []byte
		want []string
	}{
		"usual":             {plain, []string{"libm.so.6", "libz.so.1", "libstdc++.so.6"}},
		"on a border":       {across, []string{"liba.so.1", "libb.so"}},
		"far behind":        {late, []string{"liblate.so.1"}},
		"not a program":     {plain[64:], nil},
		"none":              {ELFLibrary{Size: size}.Build(t), nil},
		"cut within a name": {plain[:elfStrings+5], nil},
	} {
		if got := openELF(bytes.NewReader(c.data)).mentioned(); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	for _, path := range []string{"/bin/ls", "/usr/bin/perl", "/bin/bash"} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		want := readELF(f).needed
		for _, name := range openELF(f).mentioned() {
			want = slices.DeleteFunc(want, func(w string) bool { return w == name })
		}
		if len(want) > 0 {
			t.Errorf("%s needs %q, too", path, want)
		}
	}
}

func FuzzReadELF(f *testing.F) {
	for _, path := range []string{"/bin/ls", "/bin/true"} {
		if data, err := os.ReadFile(path); err == nil {
			f.Add(data[:min(len(data), 8<<10)])
		}
	}
	f.Add([]byte(elf.ELFMAG))
	f.Fuzz(func(t *testing.T, data []byte) {
		n := readELF(bytes.NewReader(data))
		if len(n.needed) > maxNeeded || len(n.loader) > maxELFString {
			t.Errorf("%d libraries, a loader of %d bytes", len(n.needed), len(n.loader))
		}
		for _, name := range openELF(bytes.NewReader(data)).mentioned() {
			if len(name) > maxLibraryName || strings.ContainsAny(name, "/\x00") {
				t.Errorf("a library %q", name)
			}
		}
		for _, sp := range usedOfELF(bytes.NewReader(data)) {
			if sp.Off < 0 || sp.End < sp.Off {
				t.Errorf("used at %v", sp)
			}
		}
		for _, sp := range n.constants {
			if sp.Off < 0 || sp.End <= sp.Off || sp.End-sp.Off > maxConstBytes {
				t.Errorf("read-only data at %v", sp)
			}
		}
	})
}
