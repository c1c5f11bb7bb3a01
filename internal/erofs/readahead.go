package erofs

import (
	"os"
	"path/filepath"
	"strconv"
)

// directReadaheadKiB is how far the kernel reads ahead in files of a direct
// mount, in KiB: where the device has no cache of its own, the length of the
// requests it gets is EROFS's to choose, and of itself that is 128.
// It is also what a page fault in a program reads around itself, and whoever
// reads a file from front to back is served no slower than by the 1 MiB the
// kernel can be told at most (BenchmarkColdRead).
const directReadaheadKiB = 256

// bdiPattern matches what the kernel keeps for EROFS mounts. The names have a
// number that nothing else shows.
const bdiPattern = "/sys/class/bdi/erofs-*"

// bdis lists those of all EROFS mounts there are.
func bdis() map[string]bool {
	paths, _ := filepath.Glob(bdiPattern) // the pattern is good
	set := make(map[string]bool, len(paths))
	for _, p := range paths {
		set[p] = true
	}
	return set
}

// raiseReadahead sets how far is read ahead in the mounts that were not there
// before. Should another process mount EROFS at the same moment, its mount is
// among them, which does it no harm. Where it cannot be set requests are
// shorter, and that is all.
func raiseReadahead(before map[string]bool) {
	for path := range bdis() {
		if !before[path] {
			_ = os.WriteFile(filepath.Join(path, "read_ahead_kb"), []byte(strconv.Itoa(directReadaheadKiB)), 0)
		}
	}
}
