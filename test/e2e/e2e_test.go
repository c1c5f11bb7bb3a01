//go:build e2e

// Package e2e runs the built binary as a user would, against a real registry,
// real images made of Debian packages, and real kernel mounts. It needs root,
// /dev/fuse and what scripts/setup installs; `make test` runs it.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"skimmer/internal/lab"
	"skimmer/internal/testkit"
)

// binary is the program under test, built once.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Getuid() != 0 {
			fmt.Fprintln(os.Stderr, "e2e: NOT TESTED: mounting needs root")
			return 1
		}
		dir, err := os.MkdirTemp("", "skimmer-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "skimmer")
		cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", binary, "skimmer/cmd/skimmer")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as it is shipped
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// node is one machine's skimmer: a data directory and a control socket.
type node struct {
	t       *testing.T
	dataDir string
	socket  string
}

func newNode(t *testing.T) *node {
	n := &node{t: t, dataDir: filepath.Join(t.TempDir(), "data")}
	// Socket paths are short; test directories are not.
	dir, err := os.MkdirTemp("", "sk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	n.socket = filepath.Join(dir, "s")
	t.Cleanup(n.awaitEnd)
	return n
}

// awaitEnd waits until no peer runs that "skimmer mount" started: it ends a while
// after its last mount, and until then writes what it keeps.
func (n *node) awaitEnd() {
	// context.Background: this is a cleanup, and the test's context has ended.
	err := testkit.Poll(context.Background(), 2*time.Minute, func() error {
		dirs, _ := filepath.Glob("/proc/[0-9]*") // fails only on a bad pattern
		for _, dir := range dirs {
			cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
			if args := strings.Split(string(cmdline), "\x00"); err == nil && len(args) > 1 && args[1] == "up" && slices.Contains(args, n.socket) {
				return fmt.Errorf("process %s runs", filepath.Base(dir))
			}
		}
		return nil
	})
	if err != nil {
		n.t.Errorf("the peer does not end with its last mount: %v", err)
	}
}

// run runs skimmer and returns what it printed; it must succeed.
func (n *node) run(args ...string) string {
	n.t.Helper()
	out, err := n.try(args...)
	if err != nil {
		n.t.Fatalf("skimmer %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func (n *node) try(args ...string) (string, error) {
	return output(n.t.Context(), binary, args...)
}

func (n *node) mount(image, dir string) {
	n.t.Helper()
	n.run("mount", image, dir, "--socket", n.socket, "--data-dir", n.dataDir)
	n.t.Cleanup(func() {
		// The test may have unmounted it itself; then there is nothing to say.
		_, _ = output(context.Background(), binary, "umount", "--lazy", dir, "--socket", n.socket)
	})
}

// output runs a program and returns its standard output; a failure carries
// what it wrote on standard error.
func output(ctx context.Context, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// decode parses what a command printed with --output json.
func decode[T any](t *testing.T, out string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("decode %.200s: %v", out, err)
	}
	return v
}

// startRegistry runs a registry until the test ends.
func startRegistry(t *testing.T) *lab.Registry {
	t.Helper()
	r, err := lab.StartRegistry(context.Background(), lab.RegistryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	if r.Program() == "embedded" {
		t.Error("no registry program is installed: scripts/setup installs Debian's docker-registry")
	}
	return r
}
