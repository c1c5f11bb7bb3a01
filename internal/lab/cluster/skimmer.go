package cluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The ports that daemons listen on.
const (
	PortPeer      = 4000
	PortScheduler = 8002
)

// SchedulerConfig is a "skimmer scheduler" that [Node.StartScheduler] starts.
type SchedulerConfig struct {
	// Skimmer is the program.
	Skimmer string
	// Verbose makes it log what it does.
	Verbose bool
	// More is added to the configuration file, as YAML.
	More string
}

// StartScheduler starts a scheduler on the node and returns when it is ready.
func (n *Node) StartScheduler(ctx context.Context, c SchedulerConfig) (*Process, error) {
	file := filepath.Join(n.dir, "scheduler.yaml")
	text := fmt.Sprintf("server: {ip: %s, port: %d}\nmetrics: {server: {port: 0}}\nhealth: {server: {port: 0}}\nverbose: %v\n%s\n",
		n.addr, PortScheduler, c.Verbose, c.More)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("start scheduler on node %s: %w", n.name, err)
	}
	return n.Start(ctx, Command{Name: "scheduler", Path: c.Skimmer, Args: []string{"scheduler", "--config", file}, Notifies: true})
}

// PeerConfig is a "skimmer peer" that [Node.StartPeer] starts.
type PeerConfig struct {
	// Skimmer is the program.
	Skimmer string
	// Seed makes it a seed.
	Seed bool
	// Schedulers and Seeds are the addresses of those that it asks, as
	// host:port.
	Schedulers, Seeds []string
	// Insecure are the registries that are spoken to over plain HTTP.
	Insecure []string
	// Verbose makes it log what it does.
	Verbose bool
	// More is added to the configuration file, as YAML.
	More string
}

// Peer is a running "skimmer peer". What it keeps is in the node's folder and
// is found again by the next one.
type Peer struct {
	*Process
	node    *Node
	skimmer string
	socket  string
}

// StartPeer starts a peer on the node and returns when it is ready.
func (n *Node) StartPeer(ctx context.Context, c PeerConfig) (*Peer, error) {
	run := filepath.Join(n.dir, "run")
	if err := os.MkdirAll(run, 0o755); err != nil {
		return nil, fmt.Errorf("start peer on node %s: %w", n.name, err)
	}
	file := filepath.Join(n.dir, "peer.yaml")
	if err := os.WriteFile(file, []byte(n.peerConfig(c, run)), 0o600); err != nil {
		return nil, fmt.Errorf("start peer on node %s: %w", n.name, err)
	}
	args := []string{"peer", "--config", file}
	if c.Seed {
		args = append(args, "--seed")
	}
	p, err := n.Start(ctx, Command{Name: "peer", Path: c.Skimmer, Args: args, Notifies: true})
	if err != nil {
		return nil, err
	}
	return &Peer{Process: p, node: n, skimmer: c.Skimmer, socket: filepath.Join(run, "skimmer.sock")}, nil
}

// peerConfig returns the configuration file of a peer.
func (n *Node) peerConfig(c PeerConfig, run string) string {
	return fmt.Sprintf(`dataDir: %q
runDir: %q
verbose: %v
metrics: {server: {port: 0}}
health: {server: {port: 0}}
snapshotter: {enable: false}
origin: {insecure: %s}
scheduler: {addresses: %s}
seedPeer: {addresses: %s}
upload: {server: {ip: %s, port: %d}, advertise: %q}
host: {hostname: %s}
%s
`, filepath.Join(n.dir, "data"), run, c.Verbose, yamlList(c.Insecure), yamlList(c.Schedulers), yamlList(c.Seeds),
		n.addr, PortPeer, n.HostPort(PortPeer), n.name, c.More)
}

func yamlList(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = fmt.Sprintf("%q", s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// Node returns the node that the peer is on.
func (p *Peer) Node() *Node { return p.node }

// Socket returns the peer's control socket.
func (p *Peer) Socket() string { return p.socket }

// Run runs a command of skimmer that talks to the peer and returns what it
// printed.
func (p *Peer) Run(ctx context.Context, args ...string) (string, error) {
	return p.node.Run(ctx, p.skimmer, append(args, "--socket", p.socket)...)
}

// Get fetches a URL through the peer into a file; args are more flags of
// "skimmer get".
func (p *Peer) Get(ctx context.Context, url, file string, args ...string) error {
	_, err := p.Run(ctx, append([]string{"get", url, "-o", file}, args...)...)
	return err
}
