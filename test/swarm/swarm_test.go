//go:build e2e

package swarm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"skimmer/internal/lab/cluster"
	"skimmer/internal/testkit"
)

const (
	mib  = 1 << 20
	mbit = 1_000_000
	// once is how many times its size may leave the origin of what leaves it
	// once: requests end and begin somewhere.
	once = 1.02
	// patience is how long anything may take, far more than it does.
	patience = 2 * time.Minute
	// port is where the origin listens.
	port = 5000
)

// formation says what a swarm is made of.
type formation struct {
	nodes, seeds int
	// rate is the bandwidth of every link but the scheduler's, in bits per
	// second.
	rate int64
	// delay is how long everything takes between a node and the switch.
	delay time.Duration
	// alone leaves the scheduler out; peers know the seeds.
	alone bool
	// more is added to every peer's configuration, all to the scheduler's too.
	more, all string
}

// swarm is a cluster with our daemons on it.
type swarm struct {
	t         *testing.T
	formation formation
	world     *cluster.World
	origin    *cluster.Origin
	registry  *testkit.Registry // what the origin serves below /v2
	files     string            // what it serves below /files
	host      string            // the origin, host:port

	scheduler *cluster.Process // nil without
	seeds     []*cluster.Peer
	peers     []*cluster.Peer // replaced by restart
}

func newSwarm(t *testing.T, l formation) *swarm {
	t.Helper()
	testkit.NeedMount(t)
	s := &swarm{t: t, formation: l, files: t.TempDir(), registry: testkit.NewRegistry(t, testkit.Options{})}
	link := cluster.Link{Up: l.rate, Down: l.rate}
	cfg := cluster.Config{Nodes: []cluster.NodeConfig{{Name: "origin", Link: link}, {Name: "scheduler"}}}
	for i := range l.nodes {
		cfg.Nodes = append(cfg.Nodes, cluster.NodeConfig{Name: fmt.Sprintf("n%d", i+1), Link: link, Delay: l.delay})
	}
	for i := range l.seeds {
		cfg.Nodes = append(cfg.Nodes, cluster.NodeConfig{Name: fmt.Sprintf("seed%d", i+1), Link: link, Delay: l.delay})
	}
	var err error
	if s.world, err = cluster.New(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	open.add(s.world)
	t.Cleanup(func() {
		if err := s.world.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(s.explain)

	mux := http.NewServeMux()
	mux.Handle("/v2/", s.registry)
	mux.Handle("/files/", cluster.Files(s.files))
	s.origin = cluster.NewOrigin(mux)
	stop, err := s.origin.Serve(context.Background(), s.world.Node("origin"), port, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	s.host = s.world.Node("origin").HostPort(port)

	if !l.alone {
		s.startScheduler()
	}
	for i := range l.seeds {
		s.seeds = append(s.seeds, s.startPeer(fmt.Sprintf("seed%d", i+1), true))
	}
	for i := range l.nodes {
		s.peers = append(s.peers, s.startPeer(fmt.Sprintf("n%d", i+1), false))
	}
	return s
}

func (s *swarm) startScheduler() {
	s.t.Helper()
	var err error
	if s.scheduler, err = s.world.Node("scheduler").StartScheduler(s.t.Context(), cluster.SchedulerConfig{Skimmer: binary, Verbose: true, More: s.formation.all}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *swarm) startPeer(name string, seed bool) *cluster.Peer {
	s.t.Helper()
	cfg := cluster.PeerConfig{Skimmer: binary, Seed: seed, Verbose: true, Insecure: []string{s.host}}
	cfg.More = fmt.Sprintf("pprofPort: %d\n%s\n%s", profiles, s.formation.more, s.formation.all)
	if !s.formation.alone {
		cfg.Schedulers = []string{s.world.Node("scheduler").HostPort(cluster.PortScheduler)}
	} else if !seed {
		for i := range s.formation.seeds {
			cfg.Seeds = append(cfg.Seeds, s.world.Node(fmt.Sprintf("seed%d", i+1)).HostPort(cluster.PortPeer))
		}
	}
	p, err := s.world.Node(name).StartPeer(s.t.Context(), cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

// startPeerOn starts one more peer, on a node that has none.
func (s *swarm) startPeerOn(name string) *cluster.Peer {
	s.t.Helper()
	p := s.startPeer(name, false)
	s.peers = append(s.peers, p)
	return p
}

// explain says what the daemons logged last where a test has failed. Where
// SWARM_LOGS names a directory, all they logged is kept there, always.
func (s *swarm) explain() {
	dir := os.Getenv("SWARM_LOGS")
	if dir == "" && !s.t.Failed() {
		return
	}
	daemons := map[string]*cluster.Process{}
	if s.scheduler != nil {
		daemons["scheduler"] = s.scheduler
	}
	for _, p := range append(append([]*cluster.Peer{}, s.seeds...), s.peers...) {
		daemons[p.Node().Name()] = p.Process
	}
	for name, p := range daemons {
		if dir == "" {
			s.t.Logf("%s said last: %s", name, p.Tail())
			continue
		}
		keep(s.t, filepath.Join(dir, s.t.Name(), name+".log"), []byte(p.Log()))
	}
	if dir == "" || !s.t.Failed() {
		return
	}
	for _, p := range append(append([]*cluster.Peer{}, s.seeds...), s.peers...) {
		keep(s.t, filepath.Join(dir, s.t.Name(), p.Node().Name()+".stacks"), stacks(p))
	}
}

// suspicious is after how long a fetch is looked at more closely.
const suspicious = 15 * time.Second

// suspect keeps what all peers are doing where a fetch takes long, and where
// SWARM_LOGS says; the function it returns ends that.
func (s *swarm) suspect() (done func()) {
	dir := os.Getenv("SWARM_LOGS")
	if dir == "" {
		return func() {}
	}
	peers := append(append([]*cluster.Peer{}, s.seeds...), s.peers...)
	var wg sync.WaitGroup
	over := make(chan struct{})
	wg.Go(func() {
		select {
		case <-over:
			return
		case <-time.After(suspicious):
		}
		for _, p := range peers {
			keep(s.t, filepath.Join(dir, s.t.Name(), p.Node().Name()+".slow"), stacks(p))
		}
	})
	return func() { close(over); wg.Wait() }
}

// keep writes a file for people.
func keep(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Error(err)
	}
}

// profiles is the port where peers tell what they are doing.
const profiles = 6060

// stacks returns what a peer is doing, or why that cannot be said.
func stacks(p *cluster.Peer) []byte {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: p.Node().DialContext, DisableKeepAlives: true}}
	resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/goroutine?debug=2", profiles))
	if err != nil {
		return []byte(err.Error())
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return []byte(err.Error())
	}
	return text
}

// thing is something to fetch.
type thing struct {
	url  string
	path string // at the origin
	size int64
	sum  string // hex SHA-256
}

// random makes bytes that depend on a name only, and returns their SHA-256.
func random(name string, size int64) (p []byte, sum string) {
	p = make([]byte, size)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(name))).Read(p) // it never fails
	h := sha256.Sum256(p)
	return p, hex.EncodeToString(h[:])
}

// file puts a file of random bytes at the origin.
func (s *swarm) file(name string, size int64) thing {
	s.t.Helper()
	p, sum := random(name, size)
	if err := os.WriteFile(filepath.Join(s.files, name), p, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return thing{"http://" + s.host + "/files/" + name, "/files/" + name, size, sum}
}

// blob puts a blob of random bytes into the origin's registry.
func (s *swarm) blob(repo string, size int64) thing {
	s.t.Helper()
	p, sum := random(repo, size)
	d := s.registry.AddBlob(repo, p).Digest
	return thing{fmt.Sprintf("oci://%s/%s@%s", s.host, repo, d), fmt.Sprintf("/v2/%s/blobs/%s", repo, d), size, sum}
}

// get fetches a thing on a node and checks it.
func (s *swarm) get(ctx context.Context, p *cluster.Peer, what thing) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	to := filepath.Join(p.Node().Dir(), "got")
	_ = os.Remove(to) // there may be none
	defer s.suspect()()
	if err := p.Get(ctx, what.url, to); err != nil {
		return err
	}
	sum, err := sumOf(to)
	if err == nil && sum != what.sum {
		err = fmt.Errorf("node %s got the wrong bytes", p.Node().Name())
	}
	return err
}

// checkFile fails the test unless a file has exactly these bytes.
func checkFile(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: %d wrong bytes, want %d", filepath.Base(path), len(got), len(want))
	}
}

func sumOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), err
}

// gets is fetches under way, one for each peer.
type gets struct {
	s    *swarm
	done []chan struct{} // each closed when its fetch has ended
	errs []error         // each set before its channel is closed
}

// start fetches a thing on all peers at once; wait waits for them.
func (s *swarm) start(what thing, peers ...*cluster.Peer) *gets {
	g := &gets{s: s, errs: make([]error, len(peers))}
	var wg sync.WaitGroup
	for i, p := range peers {
		done := make(chan struct{})
		g.done = append(g.done, done)
		wg.Go(func() {
			defer close(done)
			g.errs[i] = s.get(s.t.Context(), p, what)
		})
	}
	s.t.Cleanup(wg.Wait)
	return g
}

// wait waits for some of the fetches, all where none are named, and fails the
// test for each that failed.
func (g *gets) wait(numbers ...int) {
	g.s.t.Helper()
	if len(numbers) == 0 {
		for i := range g.done {
			numbers = append(numbers, i)
		}
	}
	for _, i := range numbers {
		<-g.done[i]
		if g.errs[i] != nil {
			g.s.t.Error(g.errs[i])
		}
	}
}

// arrived waits until so many bytes have come over a node's link.
func (s *swarm) arrived(name string, bytes int64) {
	s.t.Helper()
	testkit.Eventually(s.t, patience, fmt.Sprintf("%d bytes arrive at %s", bytes, name), func() error {
		traffic, err := s.world.Traffic()
		if err != nil {
			return err
		}
		for i, n := range s.world.Nodes() {
			if n.Name() == name && traffic[i].Received >= bytes {
				return nil
			}
		}
		return fmt.Errorf("not yet")
	})
}

// leftOnce fails the test if more of a thing left the origin than limit times
// its size.
func (s *swarm) leftOnce(what thing, limit float64) {
	s.t.Helper()
	sent := s.origin.Sent(what.path)
	ratio := float64(sent.Bytes) / float64(what.size)
	s.t.Logf("%.4f times its size left the origin in %d requests, %d bytes again", ratio, sent.Requests, sent.Again)
	if ratio > limit {
		s.t.Errorf("%.4f times its size left the origin, want at most %.2f", ratio, limit)
	}
	if sent.Bytes < what.size {
		s.t.Errorf("%d bytes left the origin, less than there are: %d", sent.Bytes, what.size)
	}
}

// output runs a program on this machine and returns its standard output; a
// failure carries what it wrote to standard error.
func output(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
