package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/peer"
	"skimmer/internal/scheduler"
	"skimmer/internal/telemetry"
	"skimmer/internal/testkit"
)

// runPeer runs a node until the test ends and returns it and its socket.
func runPeer(t *testing.T, edit func(*peer.SwarmConfig)) (*peer.Peer, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sk") // socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg := peer.Config{DataDir: filepath.Join(dir, "data"), Socket: filepath.Join(dir, "s"), Version: "1.2.3"}
	if edit != nil {
		cfg.Swarm = &peer.SwarmConfig{Listen: "127.0.0.1:0"}
		edit(cfg.Swarm)
	}
	return startPeer(t, cfg), cfg.Socket
}

// startPeer runs a peer in this process until the test ends.
func startPeer(t *testing.T, cfg peer.Config) *peer.Peer {
	t.Helper()
	p, err := peer.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- p.Run(ctx, func() { close(ready) }) }()
	<-ready
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, p.Close()); err != nil {
			t.Error(err)
		}
	})
	return p
}

// ask runs a command against the peer at socket.
func ask(t *testing.T, socket string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	a := newApp()
	a.stdout, a.stderr = &out, &errs
	root := newRootCommand(a)
	root.SetArgs(append(args, "--socket", socket))
	err = root.ExecuteContext(t.Context())
	return out.String(), errs.String(), err
}

// asJSON runs a command and decodes what it prints.
func asJSON[T any](t *testing.T, socket string, args ...string) T {
	t.Helper()
	out, _, err := ask(t, socket, append(args, "--output", "json")...)
	var v T
	if err == nil {
		err = json.Unmarshal([]byte(out), &v)
	}
	if err != nil {
		t.Fatalf("%v: %v in\n%s", args, err, out)
	}
	return v
}

// has fails unless all of want are in text.
func has(t *testing.T, what, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%s: %q is missing in\n%s", what, w, text)
		}
	}
}

// TestSwarmCommands has two nodes and a scheduler, and one that is dead.
func TestSwarmCommands(t *testing.T) {
	testkit.NeedMount(t)
	sched := scheduler.New(scheduler.Config{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- sched.Serve(ln) }()
	defer func() {
		closeScheduler(context.Background(), sched)
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	addr, dead := ln.Addr().String(), fmt.Sprintf("127.0.0.1:%d", testkit.FreePort(t))
	runPeer(t, func(c *peer.SwarmConfig) { c.Scheduler, c.Seed, c.Hostname = sched, true, "seed-host" })
	p, socket := runPeer(t, func(c *peer.SwarmConfig) { c.Schedulers, c.Hostname, c.Slots = []string{addr, dead}, "node-host", 7 })

	var out string
	testkit.Eventually(t, time.Minute, "both have joined", func() error {
		if out, _, err = ask(t, socket, "peers"); err == nil && (!strings.Contains(out, "node-host") || !strings.Contains(out, "seed-host")) {
			err = fmt.Errorf("printed\n%s", out)
		}
		return err
	})
	has(t, "peers", out, "UPLOADS", " 0/7 ", " 0/64 ", " seed ", " peer ", "1.2.3", "just now", "127.0.0.1:", "scheduler "+dead+" does not answer: dial tcp "+dead)
	peers := asJSON[peer.SwarmPeers](t, socket, "peers")
	if len(peers.Peers) != 2 || len(peers.Schedulers) != 2 || !strings.HasPrefix(peers.Self, "node-host-") {
		t.Errorf("peers as JSON: %+v", peers)
	}

	if out, _, err := ask(t, socket, "blob", "ls"); err != nil || out != "no blobs are kept\n" {
		t.Errorf("blob ls: %v, %q", err, out)
	}
	content := blobtest.Bytes(1, 1<<20)
	srv := newFileServer(t, content, `"v1"`)
	file := filepath.Join(t.TempDir(), "file")
	if _, errs, err := ask(t, socket, "get", "-o", file, srv.URL+"/dir/file"); err != nil {
		t.Fatalf("%v, said %s", err, errs)
	}
	var all []blobReport
	testkit.Eventually(t, time.Minute, "the scheduler knows who has the blob", func() error {
		all = asJSON[[]blobReport](t, socket, "blob", "ls")
		if len(all) != 1 || all[0].Swarm == nil || all[0].Swarm.Complete+all[0].Swarm.Partial == 0 ||
			all[0].Swarm.Leased > 0 || all[0].Swarm.Wants > 0 || all[0].Swarm.Scheduler != addr {
			return fmt.Errorf("blobs are %+v", all)
		}
		return nil
	})
	id := all[0].Digest.String()
	out, errs, err := ask(t, socket, "blob", "ls")
	if has(t, "blob ls", out, "NODES", "partly"); err != nil || errs != "" {
		t.Errorf("blob ls: %v, said %q", err, errs)
	}
	out, _, err = ask(t, socket, "blob", "stat", id)
	if has(t, "blob stat", out, id, "have all of it", "0 pieces of 16.0 KiB", "0 not answered", addr); err != nil {
		t.Error(err)
	}
	if s := asJSON[blobReport](t, socket, "blob", "stat", id); s.Swarm == nil || s.Size != int64(len(content)) {
		t.Errorf("blob stat as JSON: %+v", s)
	}

	out, _, err = ask(t, socket, "status")
	if has(t, "status", out, "peer "+peers.Self+" at 127.0.0.1:", addr, dead, "up", "down", "from peers", "from origins", "to others", "0 of 7"); err != nil {
		t.Error(err)
	}
	s := asJSON[peer.Status](t, socket, "status")
	if s.Swarm == nil || s.Swarm.Bytes.FromPeers+s.Swarm.Bytes.FromOrigin < int64(len(content)) {
		t.Errorf("status as JSON: %+v", s.Swarm)
	}
	testMetrics(t, p, sched)

	closeScheduler(t.Context(), sched)
	testkit.Eventually(t, time.Minute, "no scheduler answers", func() error {
		out, errs, err = ask(t, socket, "blob", "stat", id)
		if err != nil || strings.Contains(out, "nodes") || !strings.Contains(errs, "no scheduler is up") || strings.Count(errs, "\n") != 1 {
			return fmt.Errorf("%w, printed\n%s%s", err, out, errs)
		}
		return nil
	})
	out, _, err = ask(t, socket, "peers")
	if has(t, "peers", out, addr, dead); !errors.Is(err, blob.Unavailable) || strings.Contains(out, "PEER") {
		t.Errorf("peers: %v, printed\n%s", err, out)
	}
}

// testMetrics scrapes what skimmer up offers.
func testMetrics(t *testing.T, p *peer.Peer, sched *scheduler.Service) {
	t.Helper()
	m := telemetry.NewMetrics("1", "2")
	if err := m.Register(append(peerMetrics(p), schedulerMetrics(sched.Stats)...)...); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(m.Handler())
	defer srv.Close()
	resp, err := srv.Client().Get(srv.URL + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	st, up, down := p.SwarmStats()
	has(t, "metrics", string(text),
		fmt.Sprintf("\nskimmer_swarm_peer_bytes_total %v\n", float64(st.PeerBytes)),
		fmt.Sprintf("\nskimmer_swarm_origin_bytes_total %v\n", float64(st.OriginBytes)),
		fmt.Sprintf("\nskimmer_swarm_served_bytes_total %v\n", float64(up.Bytes)),
		fmt.Sprintf("\nskimmer_swarm_busy_answers_total %v\n", float64(down.Busy)),
		"\nskimmer_swarm_schedulers_up 1\n", "\nskimmer_scheduler_peers 2\n",
	)
	for _, name := range []string{
		"corrupt_sources_total", "peer_failures_total", "hedges_total", "revoked_total", "parked_total",
		"without_scheduler_total", "without_seeds_total", "uploads", "uploads_busy_total",
	} {
		has(t, "metrics", string(text), "\nskimmer_swarm_"+name+" ")
	}
}

func TestPeersWithoutSchedulers(t *testing.T) {
	testkit.NeedMount(t)
	_, socket := runPeer(t, nil)
	if out, _, err := ask(t, socket, "peers"); !errors.Is(err, blob.NotFound) || !strings.Contains(err.Error(), "scheduler.addresses") || out != "" {
		t.Errorf("%v, printed %q", err, out)
	}
	if out, _, err := ask(t, socket, "status"); err != nil || strings.Contains(out, "uploads") {
		t.Errorf("%v, printed\n%s", err, out)
	}
	if _, errs, err := ask(t, socket, "blob", "ls"); err != nil || errs != "" {
		t.Errorf("%v, said %q", err, errs)
	}
	if _, _, err := ask(t, filepath.Join(t.TempDir(), "none"), "peers"); !errors.Is(err, peer.ErrNotRunning) {
		t.Errorf("without a peer: %v", err)
	}
}

// TestStatusOfATransfer prints what a peer said in the middle of one.
func TestStatusOfATransfer(t *testing.T) {
	var out bytes.Buffer
	err := printStatus(&out, peer.Status{Swarm: &peer.SwarmStatus{
		ID: "node", Address: "a:1", Seed: true, Unresolved: "no such name", Uploads: 3, Slots: 64,
		Rates:            peer.SwarmBytes{FromPeers: 3 << 20, FromOrigin: 1 << 10, ToOthers: 5 << 30},
		Fetching:         []peer.FetchStatus{{Digest: "url:x", Size: 100, Present: 25, Rate: 7, URL: "https://example.test/x"}},
		WithoutScheduler: 11, WithoutSeeds: 12, Corrupt: 13, PeerFailures: 14, OriginFailures: 15, Hedges: 16, Busy: 17,
	}})
	if err != nil {
		t.Fatal(err)
	}
	has(t, "status", out.String(), "seed node at a:1", "no such name", "3.0 MiB/s", "1.0 KiB/s", "5.0 GiB/s", "3 of 64", "25 %", "7 B/s", "https://example.test/x",
		"11 reads without a scheduler", "12 of them", "13 sources sent wrong bytes", "14 sources failed", "15 reads from origins", "16 second", "17 answers")
}
