package coldstart

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

const (
	// joinLimit is how long a node may take until it has joined its scheduler.
	joinLimit = 15 * time.Second
	// completeLimit is how long a node may take to complete an image.
	completeLimit = 10 * time.Minute
)

// swarm is a cluster: a scheduler, and links of one shape between its nodes, and
// between those and the scheduler.
type swarm struct {
	path      Path
	scheduler *proc
	links     []*link // the first is to the scheduler
}

// member is a node's place in a cluster.
type member struct {
	scheduler string // the address it joins at
	port      int    // that it serves others on
	advertise string // the address others reach that at
}

// config returns what the node's configuration says about it.
func (m *member) config() string {
	if m == nil {
		return ""
	}
	return fmt.Sprintf("scheduler: {addresses: [%q]}\nupload: {server: {ip: 127.0.0.1, port: %d}, advertise: %q}\n", m.scheduler, m.port, m.advertise)
}

// newSwarm starts a scheduler in dir. It runs until close.
func newSwarm(ctx context.Context, cfg Config, dir string) (*swarm, error) {
	s := &swarm{path: cfg.PeerPath}
	if err := s.open(ctx, cfg, dir); err != nil {
		return nil, errors.Join(fmt.Errorf("start cluster: %w", err), s.close())
	}
	return s, nil
}

func (s *swarm) open(ctx context.Context, cfg Config, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	port, err := freePort(ctx)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "scheduler.yaml")
	text := fmt.Sprintf("server: {ip: 127.0.0.1, port: %d}\nmetrics: {server: {port: 0}}\nhealth: {server: {port: 0}}\n", port)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	s.scheduler = &proc{
		cmd: exec.Command(cfg.Skimmer, "scheduler", "--config", file),
		log: filepath.Join(dir, "scheduler.log"), warn: cfg.Logger,
	}
	if err := s.scheduler.start(ctx, "tcp", address); err != nil {
		return fmt.Errorf("start scheduler: %w", err)
	}
	_, err = s.link(ctx, address)
	return err
}

// link makes a link of the cluster's shape to an address.
func (s *swarm) link(ctx context.Context, target string) (*link, error) {
	l, err := newLink(ctx, target, s.path)
	if err == nil {
		s.links = append(s.links, l)
	}
	return l, err
}

// join makes a place for one more node.
func (s *swarm) join(ctx context.Context) (*member, error) {
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	l, err := s.link(ctx, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	return &member{scheduler: s.links[0].host(), port: port, advertise: l.host()}, nil
}

// close ends the scheduler and all links.
func (s *swarm) close() error {
	var err error
	if s.scheduler != nil {
		err = s.scheduler.close()
	}
	for _, l := range s.links {
		l.close()
	}
	return err
}

// status is what an experiment asks of a node's daemon.
type status struct {
	Snapshotter *struct {
		Pulled []struct {
			Image    string `json:"image"`
			Complete bool   `json:"complete"`
		} `json:"pulled"`
	} `json:"snapshotter"`
	Swarm *struct {
		Schedulers []struct {
			Up bool `json:"up"`
		} `json:"schedulers"`
		Bytes struct {
			FromPeers int64 `json:"fromPeers"`
		} `json:"bytes"`
	} `json:"swarm"`
}

// joined reports whether a scheduler knows the node.
func (s status) joined() bool {
	if s.Swarm == nil {
		return false
	}
	for _, l := range s.Swarm.Schedulers {
		if l.Up {
			return true
		}
	}
	return false
}

// complete reports whether the node has all of the images it was asked for.
func (s status) complete() bool {
	if s.Snapshotter == nil || len(s.Snapshotter.Pulled) == 0 {
		return false
	}
	for _, l := range s.Snapshotter.Pulled {
		if !l.Complete {
			return false
		}
	}
	return true
}

// fromPeers returns how many bytes other nodes have sent.
func (s status) fromPeers() int64 {
	if s.Swarm == nil {
		return 0
	}
	return s.Swarm.Bytes.FromPeers
}

// await asks the node's daemon until what it says is good.
func (n *node) await(ctx context.Context, limit time.Duration, what string, good func(status) bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		var s status
		err := n.ask(ctx, "/v1/status", &s)
		if err == nil && good(s) {
			return nil
		}
		if werr := wait(ctx, 50*time.Millisecond); werr != nil {
			return fmt.Errorf("wait until the node %s: %w; %s", what, errors.Join(werr, err), n.logs())
		}
	}
}

// neighbour starts a case on the first node of a new cluster, over a path as fast as
// the machine, and leaves it as Config.FirstNode says.
func (e *experiment) neighbour(ctx context.Context, s *swarm, c testCase, dir string) (n *node, err error) {
	m, err := s.join(ctx)
	if err != nil {
		return nil, err
	}
	path, err := newLink(ctx, e.registry.Host(), Path{})
	if err != nil {
		return nil, err
	}
	s.links = append(s.links, path)
	more := "lazy: {background: false}\n"
	if e.FirstNode == Complete {
		more = "lazy: {backgroundDelay: 200ms}\n"
	}
	n, err = newNode(ctx, e.Config, nodeConfig{mode: SkimmerPeers, dir: dir, registry: path.host(), member: m, more: more})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
			n = nil
		}
	}()
	if err := n.await(ctx, joinLimit, "has joined", status.joined); err != nil {
		return n, err
	}
	image := e.images[c.image.Name]
	if err := e.startOnce(ctx, n, path.host()+"/"+image.Repository, c); err != nil {
		return n, err
	}
	if _, err := n.profile(ctx, image); err != nil {
		e.Logger.Warn("the first node recorded no profile", "image", image.Name, "error", err)
	}
	if e.FirstNode == Complete {
		return n, n.await(ctx, completeLimit, "is complete", status.complete)
	}
	return n, nil
}

// startOnce starts a case without measuring it.
func (e *experiment) startOnce(ctx context.Context, n *node, ref string, c testCase) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if _, _, err := n.start(ctx, e.containerID("before"), ref, c.args); err != nil {
		return fmt.Errorf("start it to prepare a node: %w; %s", err, n.logs())
	}
	return nil
}

// record returns a folder with the profile of a case: that of a start on a node
// of its own, which is made the first time.
func (e *experiment) record(ctx context.Context, c testCase) (folder string, err error) {
	if folder, ok := e.profiles[c.name]; ok {
		return folder, nil
	}
	e.step("record the profile of " + c.name)
	path, err := newLink(ctx, e.registry.Host(), Path{})
	if err != nil {
		return "", err
	}
	defer path.close()
	n, err := newNode(ctx, e.Config, nodeConfig{
		mode: SkimmerProfile, dir: e.newDir(), registry: path.host(), more: "lazy: {background: false}\n",
	})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	image := e.images[c.image.Name]
	if err := e.startOnce(ctx, n, path.host()+"/"+image.Repository, c); err != nil {
		return "", err
	}
	found, err := n.profile(ctx, image)
	if err != nil {
		return "", err
	}
	folder = filepath.Join(e.Dir, fmt.Sprintf("profiles%d", len(e.profiles)))
	data, err := os.ReadFile(found)
	if err == nil {
		err = os.MkdirAll(filepath.Join(folder, "sha256"), 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(folder, "sha256", filepath.Base(found)), data, 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("keep profile: %w", err)
	}
	e.profiles[c.name] = folder
	return folder, nil
}
