package image_test

import (
	"archive/tar"
	"context"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/image"
	"skimmer/internal/image/trace"
	"skimmer/internal/testkit"
)

// library returns a 64-bit ELF file of some size that needs others: tables in
// front, code, read-only data with tables for exceptions behind, and its data.
func library(t *testing.T, size int, needed ...string) []byte {
	t.Helper()
	p := make([]byte, size)
	const headers, strings = 64 + 4*56, 512
	names := []byte{0}
	dynamic := []elf.Dyn64{{Tag: int64(elf.DT_STRTAB), Val: strings}}
	for _, name := range needed {
		dynamic = append(dynamic, elf.Dyn64{Tag: int64(elf.DT_NEEDED), Val: uint64(len(names))})
		names = append(append(names, name...), 0)
	}
	dynamic = append(dynamic, elf.Dyn64{Tag: int64(elf.DT_STRSZ), Val: uint64(len(names))}, elf.Dyn64{})
	constants, data := uint64(size/8*6), uint64(size/8*7)
	put := func(off int, v any) {
		if _, err := binary.Encode(p[off:], binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	h := elf.Header64{Phoff: 64, Phentsize: 56, Phnum: 4}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB)
	put(0, h)
	put(64, []elf.Prog64{
		{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Filesz: constants},
		{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R), Off: constants, Vaddr: constants, Filesz: data - constants},
		{Type: uint32(elf.PT_GNU_EH_FRAME), Off: data - 100, Filesz: 100},
		{Type: uint32(elf.PT_DYNAMIC), Off: headers, Filesz: uint64(16 * len(dynamic))},
	})
	put(headers, dynamic)
	copy(p[strings:], names)
	return p
}

// TestFetchAheadOfCommand has the library fetch what a command reads that is a front
// of a large library: in a request for each generation of files.
func TestFetchAheadOfCommand(t *testing.T) {
	testkit.NeedMount(t)
	w := newWorld()
	const large = 10 << 20
	w.bodies = map[string][]byte{
		"usr/bin/node":         library(t, 4096, "libnode.so.1"),
		"usr/lib/libnode.so.1": library(t, large, "libdep.so.1"),
		"usr/lib/libdep.so.1":  library(t, 4096, "libdeep.so.1"),
		"usr/lib/libdeep.so.1": library(t, 4096),
	}
	layer := []*tar.Header{dir("usr"), dir("usr/bin"), dir("usr/lib")}
	for i, name := range []string{"usr/lib/libdeep.so.1", "usr/bin/node", "usr/lib/libnode.so.1", "usr/lib/libdep.so.1"} {
		layer = append(layer, file(name, len(w.bodies[name])), file(fmt.Sprintf("filler%d", i), 128<<10))
	}
	config, err := json.Marshal(ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"node", "--version"}, Env: []string{"PATH=/usr/bin"}}})
	if err != nil {
		t.Fatal(err)
	}
	configured := digest.FromBytes(config)
	name := w.push(t, "v1", func(m *ocispec.Manifest) { m.Config.Digest = configured }, layer)

	l := open(t, w, t.TempDir(), nil)
	_, err = l.PrepareLayer(t.Context(), image.LayerRequest{
		Name: name, Layer: w.layersOf(t, "v1")[0],
		Content: func(_ context.Context, d digest.Digest) ([]byte, error) {
			if d == configured {
				return config, nil
			}
			return nil, blob.Errorf(blob.NotFound, "%v is not here", d)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	const generations = 3 // the program and its library, what that needs, what that needs
	testkit.Eventually(t, time.Minute, "it was fetched ahead", func() error {
		if n := count(l.Traces()[0], trace.Prefetch); n < generations {
			return fmt.Errorf("%d fetches, want %d", n, generations)
		}
		return nil
	})
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	s := l.Traces()[0]
	if n := count(s, trace.Prefetch); n != generations {
		t.Errorf("%d fetches, want %d: %+v", n, generations, s.Events)
	}
	var fetched int64
	for _, e := range s.Events {
		if e.Kind == trace.Prefetch {
			fetched += e.Bytes
		}
	}
	// An eighth of the library at the front and an eighth of read-only data, and no code.
	if least, most := int64(large/4), int64(large/4+512<<10); fetched < least || fetched > most {
		t.Errorf("%d bytes were fetched, want %d to %d", fetched, least, most)
	}
}
