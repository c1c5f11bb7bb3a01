//go:build e2e

package swarm

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"skimmer/internal/lab/cluster"
	"skimmer/internal/testkit"
)

// said is what skimmer get prints.
type said struct {
	Size, Bytes, Local, Peers, Origin int64
	Verified                          bool
	Stored                            float64
}

// run runs skimmer get on a node and returns what it printed.
func (s *swarm) run(p *cluster.Peer, args ...string) (r said) {
	out, err := p.Run(s.t.Context(), append([]string{"get", "--json"}, args...)...)
	if err == nil {
		err = json.Unmarshal([]byte(out), &r)
	}
	if err != nil {
		s.t.Errorf("skimmer get %v on %s: %v", args, p.Node().Name(), err)
	}
	return r
}

// TestKeep warms nodes, and has files come from what they keep: onto the same file
// system, onto another, into a pipe, and after what was kept is gone.
func TestKeep(t *testing.T) {
	s := newSwarm(t, formation{nodes: 3, rate: 200 * mbit})
	f := s.file("file", 16*mib)
	content, _ := random("file", f.size)
	digest := "--digest=sha256:" + f.sum
	var wg sync.WaitGroup
	for _, p := range s.peers {
		wg.Go(func() {
			if r := s.run(p, "--keep", digest, f.url); r.Bytes != f.size || !r.Verified || r.Stored <= 0 {
				t.Errorf("keep on %s: %+v", p.Node().Name(), r)
			}
		})
	}
	wg.Wait()
	s.leftOnce(f, once)
	other, err := os.MkdirTemp("/dev/shm", "skimmer-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(other)
	p := s.peers[0]
	for _, dir := range []string{p.Node().Dir(), other} {
		to := filepath.Join(dir, "kept")
		if r := s.run(p, digest, "-o", to, f.url); r.Local != f.size || !r.Verified {
			t.Errorf("get what was kept, into %s: %+v", dir, r)
		}
		checkFile(t, to, content)
	}
	out, err := p.Run(t.Context(), "get", "-q", digest, "-o", "-", "--range", "1000-999999", f.url)
	if err != nil || out != string(content[1000:1_000_000]) {
		t.Errorf("into a pipe: %d bytes, %v", len(out), err)
	}
	// Once it is known to be complete it is made durable, and is in use until then.
	testkit.Eventually(t, patience, "what was kept is removed", func() error {
		_, err := p.Run(t.Context(), "blob", "rm", "sha256:"+f.sum)
		return err
	})
	to := filepath.Join(p.Node().Dir(), "again")
	if r := s.run(p, digest, "-o", to, f.url); r.Peers != f.size || !r.Verified {
		t.Errorf("get what was removed: %+v", r)
	}
	checkFile(t, to, content)
	s.leftOnce(f, once)

	b := s.blob("library/kept", 2*mib)
	if r := s.run(p, "--keep", b.url); r.Bytes != b.size || r.Verified {
		t.Errorf("keep a blob of a registry: %+v", r)
	}
	if r := s.run(s.peers[1], "--keep", "--range", "0-99999", b.url); r.Bytes != 100_000 || r.Peers < 100_000 {
		t.Errorf("keep a part of it: %+v", r)
	}
	s.leftOnce(b, once)
	s.peers[2].Kill()
	if _, err := s.peers[2].Run(t.Context(), "get", "--keep", f.url); err == nil {
		t.Error("files are kept though no peer runs")
	}
}
