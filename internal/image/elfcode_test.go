package image

import (
	"bytes"
	"debug/elf"
	"slices"
	"testing"

	"skimmer/internal/layerdev"
)

// What a library's initializer calls is found by its address or by the linkage
// table, and what is no function of this library is not.
func TestCallees(t *testing.T) {
	const size = 16 << 20
	around := func(addr int64) layerdev.Span {
		return layerdev.Span{Off: addr - faultAround, End: addr + 1 + faultAround}
	}
	l := ELFLibrary{
		Size: size, Initializer: 1 << 20,
		Direct:  []int{4 << 20, 4<<20 + 64<<10, size - 16, 5<<20 + 1}, // one in the data, one where no function begins
		ByTable: []int{8 << 20, 2 << 20},
	}
	f := openELF(bytes.NewReader(l.Build(t)))
	code := f.initializers()
	if want := []layerdev.Span{{Off: 1 << 20, End: 1<<20 + tailOfCode}}; !slices.Equal(code, want) {
		t.Fatalf("initializers at %v, want %v", code, want)
	}
	want := []layerdev.Span{around(2 << 20), {Off: 4<<20 - faultAround, End: around(4<<20 + 64<<10).End}, around(8 << 20)}
	if got := f.callees(code); !slices.Equal(got, want) {
		t.Errorf("they call %v, want %v", got, want)
	}
	f.machine = elf.EM_AARCH64
	if got := f.callees(code); got != nil {
		t.Errorf("of a machine whose code is not known: %v", got)
	}
	if got := openELF(bytes.NewReader(ELFLibrary{Size: size}.Build(t))).initializers(); got != nil {
		t.Errorf("a library without initializers has some at %v", got)
	}
}

func FuzzCallees(f *testing.F) {
	f.Add(ELFLibrary{Size: 8 << 10, Initializer: 5 << 10, Direct: []int{6 << 10}, ByTable: []int{4608}}.Build(&testing.T{}))
	f.Add([]byte(elf.ELFMAG))
	f.Fuzz(func(t *testing.T, data []byte) {
		e := openELF(bytes.NewReader(data))
		code := e.initializers()
		for _, sp := range slices.Concat(code, e.callees(code)) {
			if sp.Off < 0 || sp.End <= sp.Off {
				t.Errorf("code at %v", sp)
			}
		}
	})
}
