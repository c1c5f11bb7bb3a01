//go:build e2e

// Package containerd runs the built binary as containerd's snapshotter, with
// every containerd that is supported: real images from a registry that counts,
// containers by runc, a kubelet's calls. It needs root, /dev/fuse and what
// scripts/setup installs and builds; `make test` runs it.
package containerd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"skimmer/internal/testkit"
)

// The programs the tests run, built once: the one under test, and the one in
// the images.
var binary, tool string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Getuid() != 0 {
			fmt.Fprintln(os.Stderr, "containerd: NOT TESTED: mounting needs root")
			return 1
		}
		dir, err := os.MkdirTemp("", "skimmer-containerd-")
		if err != nil {
			fmt.Fprintln(os.Stderr, "containerd:", err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary, tool = filepath.Join(dir, "skimmer"), filepath.Join(dir, "tool")
		for out, pkg := range map[string]string{binary: "skimmer/cmd/skimmer", tool: "./testdata/tool"} {
			cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", out, pkg)
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if said, err := cmd.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "containerd: build %s: %v\n%s", pkg, err, said)
				return 1
			}
		}
		return m.Run()
	}())
}

// version is a containerd to test with.
type version struct {
	name, binary string
}

// versions are the oldest containerd that is supported, which is Debian's, and
// the newest, which scripts/setup builds.
func versions(t *testing.T) []version {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	newest := filepath.Join(cache, "skimmer", "containerd-2.4.2", "containerd")
	if _, err := os.Stat(newest); err != nil {
		t.Fatalf("find containerd 2.4.2 (scripts/setup builds it): %v", err)
	}
	return []version{{"1.6", "containerd"}, {"2.4", newest}}
}

// eachVersion runs f with every containerd, side by side.
func eachVersion(t *testing.T, f func(t *testing.T, v version)) {
	t.Helper()
	testkit.NeedMount(t)
	t.Parallel()
	for _, v := range versions(t) {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			f(t, v)
		})
	}
}
