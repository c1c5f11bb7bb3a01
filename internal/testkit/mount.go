package testkit

import (
	"os"
	"testing"
)

// NeedMount skips the test loudly, or fails it where CI is set, on a machine
// where lazy mounts cannot be had: they need root and /dev/fuse.
func NeedMount(t testing.TB) {
	t.Helper()
	if os.Getuid() == 0 {
		if _, err := os.Stat("/dev/fuse"); err == nil {
			return
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatal("lazy mounts need root and /dev/fuse, and CI must have both")
	}
	t.Skip("NOT TESTED: lazy mounts need root and /dev/fuse")
}
