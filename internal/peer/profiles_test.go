package peer

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/image/profile"
	"skimmer/internal/testkit"
)

// TestProfilesOverTheControlSocket keeps, lists, returns and removes a profile.
func TestProfilesOverTheControlSocket(t *testing.T) {
	p, client := start(t, func(c *Config) { c.Starts.Profiles = true })
	c := client.Profiles()
	want := profile.Profile{
		Manifest: digest.FromString("m"), Platform: "linux/amd64", Recorded: time.Unix(1_700_000_000, 0).UTC(), Starts: 2,
		Layers: []profile.Layer{{Digest: digest.FromString("l"), TOC: digest.FromString("t"), Chunks: 9}},
		Reads:  []profile.Read{{First: 3, Count: 4, At: 20 * time.Millisecond, Starts: 1}},
	}
	if err := c.Put(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	list, err := c.List(t.Context())
	if err != nil || len(list) != 1 || list[0].Manifest != want.Manifest || list[0].Chunks != 4 {
		t.Errorf("list %+v, %v", list, err)
	}
	got, err := c.Get(t.Context(), want.Manifest)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	// Who finds no peer running looks there.
	dir, err := profile.OpenDir(ProfileDir(p.cfg.DataDir))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dir.Get(want.Manifest); err != nil {
		t.Error(err)
	}
	want.Starts = 0
	if err := c.Put(t.Context(), want); !errors.Is(err, blob.Invalid) {
		t.Errorf("a bad one was kept: %v", err)
	}
	if err := c.RemoveFromCluster(t.Context(), want.Manifest); !errors.Is(err, blob.Invalid) {
		t.Errorf("without a cluster: %v", err)
	}
	if err := c.Remove(t.Context(), want.Manifest); err != nil {
		t.Error(err)
	}
	if _, err := c.Get(t.Context(), want.Manifest); !errors.Is(err, blob.NotFound) {
		t.Errorf("after it was removed: %v", err)
	}
}

// TestProfilesInTheCluster imports a profile on a node, finds it on another, and
// removes it there from the cluster.
func TestProfilesInTheCluster(t *testing.T) {
	svc, addr, stop := runScheduler(t)
	join := func() (*Peer, ProfileClient) {
		p, c := start(t, func(c *Config) {
			c.Starts.Profiles = true
			c.Swarm = &SwarmConfig{Listen: "127.0.0.1:0", Schedulers: []string{addr}}
		})
		testkit.Eventually(t, time.Minute, "the node has joined", func() error {
			all, err := c.SwarmPeers(t.Context())
			if err == nil && !slices.ContainsFunc(all.Peers, func(other SwarmPeer) bool { return other.ID == p.member.id }) {
				err = fmt.Errorf("peers are %+v", all.Peers)
			}
			return err
		})
		return p, c.Profiles()
	}
	_, a := join()
	pb, b := join()
	want := profile.Profile{
		Manifest: digest.FromString("m"), Platform: "linux/amd64", Recorded: time.Unix(1_700_000_000, 0).UTC(), Starts: 2,
		Layers: []profile.Layer{{Digest: digest.FromString("l"), TOC: digest.FromString("t"), Chunks: 9}},
		Reads:  []profile.Read{{First: 3, Count: 4, At: 20 * time.Millisecond, Starts: 1}},
	}
	encoded, err := profile.Encode(want)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Put(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, time.Minute, "the other node finds it", func() error {
		got, err := pb.member.swarm.Profiles().Lookup(t.Context(), want.Manifest)
		if err == nil && digest.FromBytes(got) != digest.FromBytes(encoded) {
			t.Fatal("it is another profile")
		}
		return err
	})
	// b never had it; its schedulers did.
	for range 2 {
		if err := b.RemoveFromCluster(t.Context(), want.Manifest); err != nil {
			t.Error(err)
		}
	}
	if _, err := pb.member.swarm.Profiles().Lookup(t.Context(), want.Manifest); !errors.Is(err, blob.NotFound) {
		t.Errorf("after it was removed: error %v, want NotFound", err)
	}
	if _, err := a.Get(t.Context(), want.Manifest); err != nil {
		t.Errorf("the other node's own: %v", err)
	}
	if err := a.RemoveFromCluster(t.Context(), want.Manifest); err != nil {
		t.Error(err)
	}
	if _, err := a.Get(t.Context(), want.Manifest); !errors.Is(err, blob.NotFound) {
		t.Errorf("the other node's own, removed: error %v, want NotFound", err)
	}
	if err := a.RemoveFromCluster(t.Context(), "nothing"); !errors.Is(err, blob.Invalid) {
		t.Errorf("of nothing: error %v, want Invalid", err)
	}
	if s := svc.Stats(); s.Profiles != 0 {
		t.Errorf("the scheduler has %d profiles", s.Profiles)
	}

	// Without a scheduler the node keeps what it has.
	if err := a.Put(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	stop()
	testkit.Eventually(t, time.Minute, "the scheduler is gone", func() error {
		if err := a.RemoveFromCluster(t.Context(), digest.FromString("other")); !errors.Is(err, blob.Unavailable) {
			return fmt.Errorf("error %v, want Unavailable", err)
		}
		return nil
	})
	if err := a.RemoveFromCluster(t.Context(), want.Manifest); !errors.Is(err, blob.Unavailable) {
		t.Errorf("without a scheduler: error %v, want Unavailable", err)
	}
	if _, err := a.Get(t.Context(), want.Manifest); err != nil {
		t.Error(err)
	}
}

// TestProfilesTurnedOff finds that a peer without profiles says so.
func TestProfilesTurnedOff(t *testing.T) {
	_, c := start(t, nil)
	if _, err := c.Profiles().List(t.Context()); !errors.Is(err, blob.Invalid) {
		t.Error(err)
	}
}
