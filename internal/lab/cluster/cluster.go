// Package cluster makes machines out of network namespaces: nodes with an
// address each on one switch, joined to it by links of a given bandwidth, that
// run programs, can be cut off and come back.
//
// Nothing leaves the machine and nothing of it is visible outside: the switch
// is in a namespace of its own, namespaces have no names, and all of them end
// with the process that made them, however it ends.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"skimmer/internal/lab"
	"skimmer/internal/lab/child"
)

// MaxNodes is how many nodes a world may have: they share a /24.
const MaxNodes = 250

// NodeConfig is a machine that [New] makes.
type NodeConfig struct {
	// Name is its name in errors and folders: letters, digits and dashes.
	Name string
	// Link joins it to the switch.
	Link Link
	// Delay is how long everything takes to the switch, and from it to the
	// node; between two nodes there are two of them each way. It costs this
	// process a copy of all that is sent.
	Delay time.Duration
}

// Config says what [New] makes.
type Config struct {
	// Dir is a directory with a short path for everything the nodes keep;
	// empty means a temporary one. Close removes it in either case.
	Dir string
	// Nodes are the machines; at least one, at most MaxNodes.
	Nodes []NodeConfig
	// Congestion is how TCP finds its rate on the nodes, as the kernel names it;
	// empty means as on this machine.
	Congestion string
	// Logger receives what is done; nil discards it.
	Logger *slog.Logger
}

// World is a number of nodes on one switch. Its methods are safe for
// concurrent use.
type World struct {
	// Constant after New.
	dir        string
	congestion string
	log        *slog.Logger
	fabric     *namespace // where the switch is
	counters   *os.File   // what passed the switch's ports
	nodes      []*Node
	wires      []*wire // to the nodes that have a delay

	close sync.Once
	mu    sync.Mutex
	procs []*child.Process // mu guards: all that were ever started
	ended bool             // mu guards: Close was called
}

// New makes the nodes of a world and their switch. It needs root and
// iproute2. The world lasts until Close, or until the process ends.
func New(ctx context.Context, cfg Config) (*World, error) {
	w := &World{dir: cfg.Dir, log: cfg.Logger, congestion: cfg.Congestion}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	if err := w.open(ctx, cfg); err != nil {
		return nil, errors.Join(fmt.Errorf("make nodes: %w", err), w.Close())
	}
	return w, nil
}

func (w *World) open(ctx context.Context, cfg Config) error {
	switch {
	case os.Getuid() != 0:
		return errors.New("network namespaces need root")
	case len(cfg.Nodes) == 0 || len(cfg.Nodes) > MaxNodes:
		return fmt.Errorf("%d nodes: must be 1 to %d", len(cfg.Nodes), MaxNodes)
	}
	var err error
	if w.dir == "" {
		if w.dir, err = os.MkdirTemp("", "skc-"); err != nil {
			return err
		}
	}
	if w.fabric, err = newNamespace(w.congestion); err != nil {
		return err
	}
	for i, nc := range cfg.Nodes {
		n, err := newNode(w, nc, i)
		if err != nil {
			return err
		}
		w.nodes = append(w.nodes, n)
	}
	if err := w.connect(ctx, cfg.Nodes); err != nil {
		return err
	}
	for i, nc := range cfg.Nodes {
		if err := w.nodes[i].SetLink(ctx, nc.Link); err != nil {
			return err
		}
	}
	return w.fabric.do(func() error {
		w.counters, err = os.Open("/proc/thread-self/net/dev")
		return err
	})
}

// connect makes the switch and joins all nodes to it.
func (w *World) connect(ctx context.Context, nodes []NodeConfig) error {
	var script strings.Builder
	var files []*os.File
	// Without spanning tree a port forwards at once.
	script.WriteString("link set lo up\nlink add br0 type bridge stp_state 0 forward_delay 0\nlink set br0 up\n")
	for i, n := range w.nodes {
		if delay := nodes[i].Delay; delay > 0 {
			wire, err := newWire(delay, n.space, "eth0", w.fabric, n.port)
			if err != nil {
				return fmt.Errorf("node %s: %w", n.name, err)
			}
			w.wires = append(w.wires, wire)
		} else {
			// The first descriptor that a program is given beyond its streams is 3.
			fmt.Fprintf(&script, "link add %s type veth peer name eth0 netns /proc/self/fd/%d\n", n.port, 3+len(files))
			files = append(files, n.space.file)
		}
		fmt.Fprintf(&script, "link set %s master br0 up\n", n.port)
	}
	if err := w.fabric.batch(ctx, "ip", script.String(), files...); err != nil {
		return err
	}
	for _, n := range w.nodes {
		err := n.space.batch(ctx, "ip", fmt.Sprintf("link set lo up\naddr add %s/24 dev eth0\nlink set eth0 up\n", n.addr))
		if err != nil {
			return fmt.Errorf("node %s: %w", n.name, err)
		}
	}
	return nil
}

// Nodes returns the nodes, in the order of the configuration.
func (w *World) Nodes() []*Node { return w.nodes }

// Node returns the node of a name, nil if there is none.
func (w *World) Node(name string) *Node {
	for _, n := range w.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

// Dir returns the directory of the world.
func (w *World) Dir() string { return w.dir }

// Traffic is what a node's link has carried, in bytes of Ethernet frames.
type Traffic struct {
	Sent     int64 `json:"sent"`
	Received int64 `json:"received"`
}

// Traffic returns what each node's link has carried so far, in the order of
// Nodes.
func (w *World) Traffic() ([]Traffic, error) {
	text, err := io.ReadAll(io.NewSectionReader(w.counters, 0, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("read traffic: %w", err)
	}
	found := make(map[string]Traffic, len(w.nodes))
	for line := range strings.Lines(string(text)) {
		name, rest, _ := strings.Cut(line, ":")
		// Received comes first and has eight columns (proc_net(5)); what the
		// switch's port receives is what the node has sent.
		fields := strings.Fields(rest)
		if len(fields) < 9 {
			continue
		}
		in, _ := strconv.ParseInt(fields[0], 10, 64)
		out, _ := strconv.ParseInt(fields[8], 10, 64)
		found[strings.TrimSpace(name)] = Traffic{Sent: in, Received: out}
	}
	list := make([]Traffic, len(w.nodes))
	for i, n := range w.nodes {
		t, ok := found[n.port]
		if !ok {
			return nil, fmt.Errorf("read traffic: node %s has no port", n.name)
		}
		list[i] = t
	}
	return list, nil
}

// Close kills all programs of the nodes, waits until they are gone, unmounts
// what they mounted below the world's directory and removes it. Calling it
// again does nothing.
func (w *World) Close() error {
	var err error
	w.close.Do(func() { err = w.end() })
	if err != nil {
		return fmt.Errorf("clean up after nodes: %w", err)
	}
	return nil
}

func (w *World) end() error {
	w.mu.Lock()
	w.ended = true
	procs := w.procs
	w.mu.Unlock()
	var errs []error
	for _, p := range procs {
		errs = append(errs, p.Signal(syscall.SIGKILL))
	}
	for _, p := range procs {
		_ = p.Wait() // they were killed
	}
	if w.dir != "" {
		// Daemons may have left helpers, and mounts that stay without them.
		lab.KillProcesses(w.dir, w.log)
		// What is still mounted must not be emptied.
		if err := lab.UnmountBelow(w.dir); err != nil {
			errs = append(errs, err)
		} else {
			errs = append(errs, os.RemoveAll(w.dir))
		}
	}
	for _, wire := range w.wires {
		errs = append(errs, wire.close())
	}
	if w.counters != nil {
		errs = append(errs, w.counters.Close())
	}
	for _, n := range w.nodes {
		errs = append(errs, n.space.close())
	}
	if w.fabric != nil {
		errs = append(errs, w.fabric.close())
	}
	return errors.Join(errs...)
}

// launch starts a program that Close kills; after Close there is no starting,
// and while a program is being started no closing.
func (w *World) launch(cmd *exec.Cmd, opts child.Options) (*child.Process, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return nil, errors.New("the world was closed")
	}
	p, err := child.Start(cmd, opts)
	if err == nil {
		w.procs = append(w.procs, p)
	}
	return p, err
}

// address returns the address of node number i. The network is of those set
// aside for benchmarks (RFC 2544).
func address(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 0, byte(i + 1)}) }
