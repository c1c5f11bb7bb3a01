//go:build e2e

// Package docker has a dockerd pull through the built binary, as people have it
// configured: the mirror in daemon.json, and the forward proxy for all other
// registries. It needs root and what scripts/setup installs; `make test` runs
// it.
package docker

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// The programs the tests run, built once: the one under test, and the one in
// the images.
var binary, tool string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Getuid() != 0 {
			fmt.Fprintln(os.Stderr, "docker: NOT TESTED: dockerd needs root")
			return 1
		}
		dir, err := os.MkdirTemp("", "skimmer-docker-")
		if err != nil {
			fmt.Fprintln(os.Stderr, "docker:", err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary, tool = filepath.Join(dir, "skimmer"), filepath.Join(dir, "tool")
		for out, pkg := range map[string]string{binary: "skimmer/cmd/skimmer", tool: "../containerd/testdata/tool"} {
			cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", out, pkg)
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if said, err := cmd.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "docker: build %s: %v\n%s", pkg, err, said)
				return 1
			}
		}
		return m.Run()
	}())
}
