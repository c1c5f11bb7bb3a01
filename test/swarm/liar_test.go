//go:build e2e

package swarm

import (
	"fmt"
	"path"
	"strings"
	"testing"

	"skimmer/internal/lab/cluster"
)

// TestLiar has a peer that says it has everything and sends wrong bytes.
func TestLiar(t *testing.T) {
	s := newSwarm(t, formation{nodes: 8, rate: 200 * mbit})
	b := s.blob("library/layer", 64*mib)
	// Somebody has read the origin, so what the bytes are is known.
	s.start(b, s.peers[0]).wait()

	home := s.world.Node("origin") // any node without a peer
	cheat, err := home.Start(t.Context(), cluster.Command{
		Name: "liar", Path: liar, Notifies: true,
		Args: []string{
			"-scheduler", s.world.Node("scheduler").HostPort(cluster.PortScheduler), "-listen", home.HostPort(cluster.PortPeer),
			"-digest", path.Base(b.path), "-size", fmt.Sprint(b.size),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.start(b, s.peers[1:]...).wait()
	s.leftOnce(b, once)
	told := strings.Count(cheat.Log(), "lied ")
	if told == 0 {
		t.Error("nobody has asked the peer that lies")
	}
	t.Logf("it lied %d times", told)

	// What the nodes hold now is right for those who come later.
	before := s.origin.Sent(b.path)
	late := s.startPeerOn("scheduler")
	s.start(b, late).wait()
	if after := s.origin.Sent(b.path); after != before {
		t.Errorf("the origin sent %+v, before it was %+v", after, before)
	}
}
