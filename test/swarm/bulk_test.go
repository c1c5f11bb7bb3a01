//go:build e2e

package swarm

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"skimmer/internal/lab/cluster"
	"skimmer/internal/testkit"
)

// TestWholeBlob has 8 nodes fetch the same at once.
func TestWholeBlob(t *testing.T) {
	for _, seeds := range []int{2, 0} {
		t.Run(fmt.Sprintf("%d seeds", seeds), func(t *testing.T) {
			s := newSwarm(t, formation{nodes: 8, seeds: seeds, rate: 200 * mbit})
			f := s.file("file", 48*mib)
			s.start(f, s.peers...).wait()
			s.leftOnce(f, once)

			b := s.blob("library/layer", 16*mib)
			s.start(b, s.peers...).wait()
			s.leftOnce(b, once)
		})
	}
}

// TestOneAfterTheOther has a node come when all others have it.
func TestOneAfterTheOther(t *testing.T) {
	s := newSwarm(t, formation{nodes: 3, rate: 200 * mbit})
	f := s.file("file", 32*mib)
	for _, p := range s.peers {
		s.start(f, p).wait()
	}
	s.leftOnce(f, once)
}

// middle is a swarm in which all nodes are midway through a file.
func middle(t *testing.T, l formation) (*swarm, thing, *gets) {
	t.Helper()
	s := newSwarm(t, l)
	f := s.file("file", 64*mib)
	g := s.start(f, s.peers...)
	s.arrived("n3", f.size/3)
	select {
	case <-g.done[2]:
		t.Fatalf("node n3 is done before anything happens (%v)", g.errs[2])
	default:
	}
	return s, f, g
}

// lost is what may leave the origin again when a node is gone, over the size of
// these blobs: what it had and not passed on to anybody yet. A seed that reads
// for all has more of that, as its links carry more in than anybody fetched from
// it yet; the scheduler bounds it to six runs of 256 KiB, and what is on its way.
const lost, lostSeed = 0.12, 0.15

// TestNodeKilled kills a node midway and starts it again.
func TestNodeKilled(t *testing.T) {
	s, f, g := middle(t, formation{nodes: 8, rate: 200 * mbit})
	if err := s.peers[2].Kill(); err != nil {
		t.Fatal(err)
	}
	<-g.done[2] // its peer is gone: this may fail
	g.wait(0, 1, 3, 4, 5, 6, 7)
	s.peers[2] = s.startPeer("n3", false)
	s.start(f, s.peers[2]).wait()
	s.leftOnce(f, once+lost)
}

// TestSchedulerKilled kills the scheduler midway; another one takes its place
// at once, as a supervisor does it.
func TestSchedulerKilled(t *testing.T) {
	s, f, g := middle(t, formation{nodes: 8, rate: 200 * mbit})
	if err := s.scheduler.Kill(); err != nil {
		t.Fatal(err)
	}
	s.startScheduler()
	g.wait()
	s.leftOnce(f, once)
}

// TestSchedulerGone kills the scheduler midway, and nobody starts another until
// all nodes have got by without.
func TestSchedulerGone(t *testing.T) {
	s, f, g := middle(t, formation{nodes: 3, rate: 200 * mbit})
	if err := s.scheduler.Kill(); err != nil {
		t.Fatal(err)
	}
	g.wait()
	s.leftOnce(f, 3)

	s.startScheduler()
	for _, p := range s.peers {
		testkit.Eventually(t, patience, "peers find the new scheduler", func() error {
			if joined := "joined scheduler"; strings.Count(p.Log(), joined) < 2 {
				return fmt.Errorf("%s has not", p.Node().Name())
			}
			return nil
		})
	}
	next := s.file("next", 16*mib)
	s.start(next, s.peers...).wait()
	s.leftOnce(next, once)
}

// TestSeedKilled kills one of two seeds midway.
func TestSeedKilled(t *testing.T) {
	s, f, g := middle(t, formation{nodes: 8, seeds: 2, rate: 200 * mbit})
	if err := s.seeds[0].Kill(); err != nil {
		t.Fatal(err)
	}
	g.wait()
	s.leftOnce(f, once+lostSeed)
}

// TestSeedHangs stops a seed midway, which takes connections and says nothing,
// and lets it go on.
func TestSeedHangs(t *testing.T) {
	s, f, g := middle(t, formation{nodes: 8, seeds: 2, rate: 200 * mbit})
	if err := s.seeds[0].Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	g.wait()
	s.leftOnce(f, once+lostSeed)
	if err := s.seeds[0].Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	next := s.file("next", 16*mib)
	s.start(next, s.peers...).wait()
	s.leftOnce(next, once)
}

// TestPartition cuts two nodes off midway and lets them come back when all
// others are done.
func TestPartition(t *testing.T) {
	s, f, g := middle(t, formation{nodes: 8, rate: 200 * mbit})
	cut := []*cluster.Node{s.world.Node("n3"), s.world.Node("n4")}
	for _, n := range cut {
		if err := n.Isolate(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	g.wait(0, 1, 4, 5, 6, 7)
	for _, n := range cut {
		if err := n.Rejoin(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	g.wait(2, 3)
	// Who is cut off cannot ask who has what, so when it is back it may read
	// from the origin until it has found the scheduler.
	s.leftOnce(f, once+lost)
}

// TestSeedsAlone has no scheduler: nodes ask seeds.
func TestSeedsAlone(t *testing.T) {
	s := newSwarm(t, formation{nodes: 4, seeds: 2, rate: 200 * mbit, alone: true})
	f := s.file("file", 32*mib)
	s.start(f, s.peers...).wait()
	// Seeds do not know of each other.
	s.leftOnce(f, float64(s.formation.seeds)*once)
}

// TestNobody has a peer whose only scheduler does not exist: it works all the
// same.
func TestNobody(t *testing.T) {
	s := newSwarm(t, formation{nodes: 1, rate: 200 * mbit})
	if err := s.scheduler.Kill(); err != nil {
		t.Fatal(err)
	}
	f := s.file("file", 16*mib)
	s.start(f, s.peers...).wait()
	s.leftOnce(f, once)
}
