package image

import (
	"bytes"
	"debug/elf"
	"os"
	"slices"
	"testing"
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
	})
}
