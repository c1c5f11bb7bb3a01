package testkit

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// BuildStargz builds the stock stargz snapshotter, which is a module of its own,
// in the folder bench of the repository at root, and returns its path.
func BuildStargz(t testing.TB, root string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stargz-snapshotter")
	cmd := exec.Command("go", "build", "-C", filepath.Join(root, "bench"), "-trimpath", "-o", path, "./stargz-snapshotter")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the stock snapshotter: %v\n%s", err, said)
	}
	return path
}
