//go:build e2e

// Package swarm runs the built binary as scheduler, seeds and peers on the
// nodes of a cluster with slow links, in front of an origin that counts which
// bytes left it how often. It needs root, /dev/fuse and what scripts/setup
// installs; `make test` runs it.
package swarm

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"skimmer/internal/lab/cluster"
)

// The programs the tests run, built once: the one under test, and a peer that
// lies.
var binary, liar string

// open is the worlds that are to be closed when the tests are interrupted.
var open worlds

type worlds struct {
	mu   sync.Mutex
	list []*cluster.World // mu guards
}

func (w *worlds) add(one *cluster.World) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, one)
}

func (w *worlds) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, one := range w.list {
		_ = one.Close() // once, whoever does it
	}
}

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Getuid() != 0 {
			fmt.Fprintln(os.Stderr, "swarm: NOT TESTED: network namespaces and mounting need root")
			return 1
		}
		dir, err := os.MkdirTemp("", "skimmer-swarm-")
		if err != nil {
			fmt.Fprintln(os.Stderr, "swarm:", err)
			return 1
		}
		defer os.RemoveAll(dir)
		interrupts := make(chan os.Signal, 1)
		signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
		go func() {
			<-interrupts
			open.close()
			os.RemoveAll(dir)
			os.Exit(130)
		}()
		binary, liar = filepath.Join(dir, "skimmer"), filepath.Join(dir, "liar")
		for out, pkg := range map[string]string{binary: "skimmer/cmd/skimmer", liar: "./testdata/liar"} {
			cmd := exec.Command("go", "build", "-ldflags", "-s -w", "-o", out, pkg)
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if said, err := cmd.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "swarm: build %s: %v\n%s", pkg, err, said)
				return 1
			}
		}
		return m.Run()
	}())
}
