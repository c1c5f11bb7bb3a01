package coldstart

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"skimmer/internal/lab"
	"skimmer/internal/lab/child"
)

const (
	// readyLimit is how long a daemon may take until its socket answers.
	readyLimit = 30 * time.Second
	// endLimit is how long it may take to end before it is killed.
	endLimit = 15 * time.Second
)

// proc is a snapshotter in a process of its own.
type proc struct {
	cmd  *exec.Cmd
	log  string // the name of a file
	warn *slog.Logger
	run  *child.Process // nil until it was started
}

// daemonConfig says where a snapshotter is.
type daemonConfig struct {
	mode       Mode
	dir        string  // for everything it keeps
	socket     string  // its own
	containerd string  // containerd's
	mirror     int     // the port of the mirror; 0 for none
	registry   string  // host:port, that a stock snapshotter has the mirror for
	member     *member // of a cluster; nil for none
	more       string  // added to our configuration, as YAML
}

// control returns the socket by which our daemon in dir is asked about itself.
func (d daemonConfig) control() string { return filepath.Join(d.dir, "run", "skimmer.sock") }

// startDaemon starts the snapshotter of a mode and returns when its socket
// answers. It runs until close, whatever becomes of ctx.
func startDaemon(ctx context.Context, cfg Config, d daemonConfig) (*proc, error) {
	if err := os.MkdirAll(d.dir, 0o755); err != nil {
		return nil, err
	}
	var cmd *exec.Cmd
	switch d.mode {
	case Stargz:
		// Without a configuration, as it is installed; registries on this
		// machine are spoken to over plain HTTP by default.
		cmd = exec.Command(cfg.Stargz, "--root", filepath.Join(d.dir, "root"), "--address", d.socket)
		if d.mirror != 0 {
			file := filepath.Join(d.dir, "stargz.toml")
			if err := os.WriteFile(file, []byte(lab.StargzMirror(d.registry, fmt.Sprintf("127.0.0.1:%d", d.mirror))), 0o644); err != nil {
				return nil, err
			}
			cmd.Args = append(cmd.Args, "--config", file)
		}
	case Skimmer:
		file := filepath.Join(d.dir, "peer.yaml")
		if err := os.WriteFile(file, []byte(d.peerConfig()), 0o644); err != nil {
			return nil, err
		}
		cmd = exec.Command(cfg.Skimmer, "peer", "--config", file)
	default:
		return nil, fmt.Errorf("mode %s has no daemon", d.mode)
	}
	p := &proc{cmd: cmd, log: filepath.Join(d.dir, "daemon.log"), warn: cfg.Logger}
	if err := p.start(ctx, "unix", d.socket); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", d.mode, err), p.close())
	}
	return p, nil
}

// peerConfig returns the configuration of a node: the defaults, in dir, without
// the ports that nodes of one machine would fight over.
func (d daemonConfig) peerConfig() string {
	return fmt.Sprintf(`dataDir: %q
runDir: %q
metrics: {server: {port: 0}}
health: {server: {port: 0}}
proxy: {server: {port: %d}}
snapshotter:
  enable: true
  socket: %q
  containerd: %q
%s%s`, filepath.Join(d.dir, "data"), filepath.Join(d.dir, "run"), d.mirror, d.socket, d.containerd, d.member.config(), d.more)
}

// start starts the program and returns when it answers at an address.
func (p *proc) start(ctx context.Context, network, address string) error {
	var err error
	if p.run, err = child.Start(p.cmd, child.Options{Log: p.log, Signal: syscall.SIGTERM}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-p.run.Exited():
			return fmt.Errorf("it ended: %v; the end of its log:\n%s", p.run.State(), tail(p.log))
		default:
		}
		if werr := wait(ctx, 10*time.Millisecond); werr != nil {
			return fmt.Errorf("it does not answer: %w; the end of its log:\n%s", errors.Join(werr, err), tail(p.log))
		}
	}
}

// close asks the daemon to end, makes it, and waits until it is gone. One that
// has to be killed has been measured all the same; its mounts are taken away by
// the node.
func (p *proc) close() error {
	if p.run == nil {
		return nil
	}
	killed, err := p.run.End(endLimit)
	if err != nil {
		return fmt.Errorf("stop %s: %w", p.cmd.Path, err)
	}
	if killed {
		p.warn.Warn("snapshotter had to be killed", "program", p.cmd.Path, "after", endLimit)
	}
	return nil
}

// tail returns the last lines of a file.
func tail(name string) string {
	data, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
