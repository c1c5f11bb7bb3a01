package distribute

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"skimmer/internal/lab"
	"skimmer/internal/lab/cluster"
)

const (
	// sampleEvery is how often what links have carried is noted.
	sampleEvery = 200 * time.Millisecond
	// port is where the origin listens.
	port = 8080
)

// Run distributes a file of random bytes once in each mode, on nodes that have
// nothing. It needs root, iproute2, and a machine with nothing else to do. When
// it returns, nothing that it started is left, however it ended. The report
// beside an error has what was measured until then.
func Run(ctx context.Context, cfg Config) (Report, error) {
	if err := cfg.check(); err != nil {
		return Report{}, fmt.Errorf("measure distribution: %w", err)
	}
	if cfg.Report == nil {
		cfg.Report = func(lab.Progress) {}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	e := &experiment{Config: cfg}
	e.report = Report{Nodes: cfg.Nodes, Seeds: cfg.Seeds, Size: cfg.Size, Rate: cfg.Rate}
	err := e.run(ctx)
	e.step("")
	if err != nil {
		return e.report, fmt.Errorf("measure distribution: %w", err)
	}
	return e.report, nil
}

// experiment is an experiment under way.
type experiment struct {
	Config
	file   string // what is distributed
	sum    [sha256.Size]byte
	report Report
}

func (e *experiment) step(name string) { e.Report(lab.Progress{Step: name, Fraction: -1}) }

func (e *experiment) run(ctx context.Context) (err error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("find the kernel's version: %w", err)
	}
	e.report.Machine = Machine{Kernel: unix.ByteSliceToString(uts.Release[:]), CPUs: runtime.NumCPU(), Congestion: cmp.Or(e.Congestion, lab.CongestionControl())}
	if e.Dir == "" {
		if e.Dir, err = os.MkdirTemp("", "skd-"); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, os.RemoveAll(e.Dir)) }()
	e.step("making a file")
	if err := e.makeFile(ctx); err != nil {
		return fmt.Errorf("make a file: %w", err)
	}
	for _, mode := range e.Modes {
		r, err := e.measure(ctx, mode)
		if err != nil {
			return fmt.Errorf("mode %s: %w", mode, err)
		}
		e.report.Results = append(e.report.Results, r)
	}
	return nil
}

// makeFile makes what is distributed: bytes that are the same each time and
// that nothing compresses.
func (e *experiment) makeFile(ctx context.Context) error {
	dir := filepath.Join(e.Dir, "files")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	e.file = filepath.Join(dir, "file")
	f, err := os.Create(e.file)
	if err != nil {
		return err
	}
	hash := sha256.New()
	src := &contextReader{ctx, rand.NewChaCha8([32]byte{1})}
	_, err = io.CopyN(io.MultiWriter(f, hash), src, e.Size)
	hash.Sum(e.sum[:0])
	return errors.Join(err, f.Close())
}

// contextReader ends with a context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// field is the nodes of one mode.
type field struct {
	world   *cluster.World
	url     string
	fetch   []*cluster.Node // those that fetch, in the order of the results
	daemons []*cluster.Process
	// get fetches the file on node number i of fetch, and to a path if it is to be
	// there too. It returns how long before its end the node had all of it.
	get func(ctx context.Context, i int, to string) (before time.Duration, err error)
	// take writes what node number i has to a path; nil if get did.
	take func(ctx context.Context, i int, to string) error
}

// measure makes nodes, and has all of them fetch the file at once.
func (e *experiment) measure(ctx context.Context, mode Mode) (r Result, err error) {
	e.step(fmt.Sprintf("mode %s: making nodes", mode))
	world, err := cluster.New(ctx, e.world(mode))
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, world.Close()) }()
	f := &field{world: world, fetch: world.Nodes()[helpers : helpers+e.Nodes]}
	origin := cluster.NewOrigin(cluster.Files(filepath.Dir(e.file)))
	stop, err := origin.Serve(ctx, world.Node("origin"), port, e.Logger)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	f.url = "http://" + world.Node("origin").HostPort(port) + "/" + filepath.Base(e.file)
	if mode == Swarm {
		err = e.startPeers(ctx, f)
	} else {
		f.get = f.direct
	}
	if err != nil {
		return r, err
	}
	e.step(fmt.Sprintf("mode %s: %d nodes fetch %d MB each", mode, e.Nodes, e.Size/1e6))
	r, err = e.race(ctx, f)
	if err != nil {
		return r, err
	}
	r.Mode, r.Origin = mode, origin.Sent("/*")
	r.Egress = float64(r.Origin.Bytes) / float64(e.Size)
	seeds := 0
	if mode == Swarm {
		seeds = e.Seeds
	}
	r.Bound = Bound(e.Size, e.Rate, e.Nodes, seeds)
	if err := r.usage(f.daemons); err != nil {
		return r, err
	}
	return r, e.check(ctx, f)
}

// world says what nodes a mode has: the helpers first, then those that fetch,
// then the seeds.
func (e *experiment) world(mode Mode) cluster.Config {
	link := cluster.Link{Up: e.Rate, Down: e.Rate}
	cfg := cluster.Config{Dir: filepath.Join(e.Dir, string(mode)), Congestion: e.Congestion, Logger: e.Logger}
	// What a scheduler says is so little that its link does not matter.
	cfg.Nodes = []cluster.NodeConfig{{Name: "origin", Link: link}, {Name: "scheduler"}}
	for i := range e.Nodes {
		cfg.Nodes = append(cfg.Nodes, cluster.NodeConfig{Name: fmt.Sprintf("n%d", i+1), Link: link})
	}
	if mode == Swarm {
		for i := range e.Seeds {
			cfg.Nodes = append(cfg.Nodes, cluster.NodeConfig{Name: fmt.Sprintf("seed%d", i+1), Link: link})
		}
	}
	return cfg
}

// startPeers starts a scheduler, and a peer on every other node.
func (e *experiment) startPeers(ctx context.Context, f *field) error {
	scheduler := f.world.Node("scheduler")
	if _, err := scheduler.StartScheduler(ctx, cluster.SchedulerConfig{Skimmer: e.Skimmer}); err != nil {
		return err
	}
	peers := make([]*cluster.Peer, 0, e.Nodes+e.Seeds)
	for i, n := range f.world.Nodes()[helpers:] {
		p, err := n.StartPeer(ctx, cluster.PeerConfig{
			Skimmer: e.Skimmer, Seed: i >= e.Nodes,
			Schedulers: []string{scheduler.HostPort(cluster.PortScheduler)},
		})
		if err != nil {
			return err
		}
		peers = append(peers, p)
		f.daemons = append(f.daemons, p.Process)
	}
	if e.Copies {
		f.get = func(ctx context.Context, i int, to string) (time.Duration, error) {
			return copied(ctx, peers[i], f.url, to)
		}
		return nil
	}
	f.get = func(ctx context.Context, i int, _ string) (time.Duration, error) {
		_, err := peers[i].Run(ctx, "get", "--keep", "--quiet", f.url)
		return 0, err
	}
	f.take = func(ctx context.Context, i int, to string) error { return peers[i].Get(ctx, f.url, to, "--quiet") }
	return nil
}

// copied fetches the file to a path and returns how long before its end the peer had
// all of it.
func copied(ctx context.Context, p *cluster.Peer, url, to string) (time.Duration, error) {
	out, err := p.Run(ctx, "get", url, "-o", to, "--json")
	if err != nil {
		return 0, err
	}
	var said struct{ Seconds, Stored float64 }
	if err := json.Unmarshal([]byte(out), &said); err != nil {
		return 0, fmt.Errorf("decode what skimmer get printed: %w", err)
	}
	if said.Stored <= 0 || said.Stored > said.Seconds {
		return 0, fmt.Errorf("skimmer get says that all was stored after %g s of %g s", said.Stored, said.Seconds)
	}
	return time.Duration((said.Seconds - said.Stored) * float64(time.Second)), nil
}

// direct fetches the file as a plain client that writes and checks it.
func (f *field) direct(ctx context.Context, i int, to string) (_ time.Duration, err error) {
	client := &http.Client{Transport: &http.Transport{DialContext: f.fetch[i].DialContext}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("the origin answered %s", resp.Status)
	}
	file, err := os.Create(to)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.MultiWriter(file, sha256.New()), resp.Body)
	return 0, errors.Join(err, file.Close())
}

// race has all nodes fetch the file at once.
func (e *experiment) race(ctx context.Context, f *field) (Result, error) {
	r := Result{Nodes: make([]NodeResult, len(f.fetch))}
	start := time.Now()
	s, err := startSampler(f.world, start)
	if err != nil {
		return r, err
	}
	group, gctx := errgroup.WithContext(ctx)
	for i, n := range f.fetch {
		r.Nodes[i].Name = n.Name()
		group.Go(func() error {
			before, err := f.get(gctx, i, filepath.Join(n.Dir(), "file"))
			if err != nil {
				return fmt.Errorf("node %s: %w", n.Name(), err)
			}
			end := time.Since(start)
			if r.Nodes[i].Time = end - before; before > 0 {
				r.Nodes[i].Copied = end
			}
			return nil
		})
	}
	err = group.Wait()
	samples, serr := s.stop()
	if err := errors.Join(err, serr); err != nil {
		return r, err
	}
	for _, carried := range samples {
		row := Sample{At: carried.at, Origin: carried.traffic[0].Sent}
		for i := range f.fetch {
			row.Received = append(row.Received, carried.traffic[helpers+i].Received)
		}
		r.Samples = append(r.Samples, row)
	}
	return r, nil
}

// check checks what nodes got.
func (e *experiment) check(ctx context.Context, f *field) error {
	e.step("checking what arrived")
	for i, n := range f.fetch {
		path := filepath.Join(n.Dir(), "file")
		if f.take != nil {
			if err := f.take(ctx, i, path); err != nil {
				return fmt.Errorf("node %s: %w", n.Name(), err)
			}
		}
		if err := e.verify(ctx, path); err != nil {
			return fmt.Errorf("node %s: %w", n.Name(), err)
		}
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("node %s: %w", n.Name(), err)
		}
	}
	return nil
}

// verify fails unless a file is the one that was distributed.
func (e *experiment) verify(ctx context.Context, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, &contextReader{ctx, f}); err != nil {
		return err
	}
	if [sha256.Size]byte(hash.Sum(nil)) != e.sum {
		return fmt.Errorf("check %s: it is not the file that was distributed", filepath.Base(path))
	}
	return nil
}

// carried is what all links have carried at a time.
type carried struct {
	at      time.Duration
	traffic []cluster.Traffic
}

// sampler notes what links carry until it is stopped. Only its goroutine uses
// list and err until then.
type sampler struct {
	world *cluster.World
	start time.Time
	done  chan struct{}
	wg    sync.WaitGroup
	first []cluster.Traffic
	list  []carried
	err   error
}

// startSampler notes what has been carried since now.
func startSampler(w *cluster.World, start time.Time) (*sampler, error) {
	s := &sampler{world: w, start: start, done: make(chan struct{})}
	var err error
	if s.first, err = w.Traffic(); err != nil {
		return nil, err
	}
	s.wg.Go(s.loop)
	return s, nil
}

func (s *sampler) loop() {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for s.note(); s.err == nil; s.note() {
		select {
		case <-tick.C:
		case <-s.done:
			s.note()
			return
		}
	}
}

func (s *sampler) note() {
	now, err := s.world.Traffic()
	if err != nil {
		s.err = err
		return
	}
	for i := range now {
		now[i].Sent -= s.first[i].Sent
		now[i].Received -= s.first[i].Received
	}
	s.list = append(s.list, carried{time.Since(s.start), now})
}

func (s *sampler) stop() ([]carried, error) {
	close(s.done)
	s.wg.Wait()
	return s.list, s.err
}
