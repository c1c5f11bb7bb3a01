package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// Link is the bandwidth between a node and the switch, in bits per second; 0 is
// as fast as the machine is.
type Link struct {
	Up   int64 `json:"up"`   // what the node sends
	Down int64 `json:"down"` // what it receives
}

// queue is what waits for a slow link before packets are dropped, in bytes:
// sixteen of the largest segments that the kernel sends in one piece.
const queue = 1 << 20

// Node is a machine of a [World]. Its methods are safe for concurrent use.
type Node struct {
	// Constant after New.
	world *World
	name  string
	addr  netip.Addr
	port  string // the switch's end of its link
	dir   string
	space *namespace
}

var nodeName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)

// newNode makes a machine that is not on the network yet.
func newNode(w *World, cfg NodeConfig, i int) (*Node, error) {
	if !nodeName.MatchString(cfg.Name) || w.Node(cfg.Name) != nil {
		return nil, fmt.Errorf("node name %q: must be of lower-case letters, digits and dashes, and be there once", cfg.Name)
	}
	n := &Node{world: w, name: cfg.Name, addr: address(i), port: fmt.Sprintf("port%d", i), dir: filepath.Join(w.dir, cfg.Name)}
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		return nil, err
	}
	var err error
	if n.space, err = newNamespace(w.congestion); err != nil {
		return nil, err
	}
	return n, nil
}

// Name returns the node's name.
func (n *Node) Name() string { return n.name }

// Addr returns the node's address on the switch.
func (n *Node) Addr() netip.Addr { return n.addr }

// HostPort returns an address on the node as host:port.
func (n *Node) HostPort(port uint16) string { return netip.AddrPortFrom(n.addr, port).String() }

// Dir returns a directory for what the node keeps; it exists.
func (n *Node) Dir() string { return n.dir }

// SetLink gives the node's link a bandwidth, at once. What waits in its queues
// is dropped.
func (n *Node) SetLink(ctx context.Context, l Link) error {
	err := n.space.batch(ctx, "tc", shape("eth0", l.Up))
	if err == nil {
		err = n.world.fabric.batch(ctx, "tc", shape(n.port, l.Down))
	}
	if err != nil {
		return fmt.Errorf("set link of node %s: %w", n.name, err)
	}
	return nil
}

// shape is the script that limits what a device sends. A class that is as fast
// as its parent allows, with a plain queue: tokens may run into the red by one
// packet, so the large segments that a virtual link carries need not be cut.
func shape(dev string, bits int64) string {
	if bits == 0 {
		return fmt.Sprintf("qdisc replace dev %s root handle 2: bfifo limit %d\n", dev, 16*queue)
	}
	return fmt.Sprintf("qdisc replace dev %[1]s root handle 1: htb default 1\n"+
		"class replace dev %[1]s parent 1: classid 1:1 htb rate %[2]dbit ceil %[2]dbit burst 64k cburst 64k quantum 65536\n"+
		"qdisc replace dev %[1]s parent 1:1 handle 10: bfifo limit %[3]d\n", dev, bits, queue)
}

// Isolate cuts the node off: nothing that it sends or that is sent to it
// arrives, and nobody is told.
func (n *Node) Isolate(ctx context.Context) error { return n.setPort(ctx, "isolate", 0) }

// Rejoin ends Isolate.
func (n *Node) Rejoin(ctx context.Context) error { return n.setPort(ctx, "rejoin", 3) }

// setPort sets the state of the switch's port (bridge(8)).
func (n *Node) setPort(ctx context.Context, what string, state int) error {
	err := n.world.fabric.batch(ctx, "bridge", fmt.Sprintf("link set dev %s state %d\n", n.port, state))
	if err != nil {
		return fmt.Errorf("%s node %s: %w", what, n.name, err)
	}
	return nil
}

// Listen listens on an address of the node, such as ":80"; connections that are
// accepted are the node's too.
func (n *Node) Listen(ctx context.Context, address string) (ln net.Listener, err error) {
	err = n.space.do(func() error {
		ln, err = new(net.ListenConfig).Listen(ctx, "tcp4", address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on node %s: %w", n.name, err)
	}
	return ln, nil
}

// DialContext connects from the node to an address, an IP and a port; it has
// the signature that [net/http.Transport] wants.
func (n *Node) DialContext(ctx context.Context, network, address string) (conn net.Conn, err error) {
	// A name would be looked up on other threads.
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial from node %s: %w", n.name, err)
	}
	err = n.space.do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dial from node %s: %w", n.name, err)
	}
	return conn, nil
}

// Run runs a program on the node to its end and returns its standard output. A
// failure carries what it wrote to standard error. When ctx ends it is killed.
func (n *Node) Run(ctx context.Context, program string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	err := n.space.do(func() error {
		cmd := exec.CommandContext(ctx, program, args...)
		cmd.Dir = n.dir
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		cmd.WaitDelay = stopLimit // what it left behind may keep the pipes open
		// The thread lasts until Run returns, so the signal comes only when this
		// process dies.
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		return cmd.Run()
	})
	if err != nil {
		said := strings.TrimSpace(stderr.String())
		if ctx.Err() != nil {
			err = errors.Join(ctx.Err(), err)
		}
		return stdout.String(), fmt.Errorf("run %s on node %s: %w: %s", brief(program, args), n.name, err, said)
	}
	return stdout.String(), nil
}

// brief writes a command for an error: as much of it as tells it from others.
func brief(program string, args []string) string {
	line := strings.Join(append([]string{filepath.Base(program)}, args...), " ")
	if most := 200; len(line) > most {
		line = line[:most] + "…"
	}
	return line
}
