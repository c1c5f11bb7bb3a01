package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"skimmer/internal/lab/child"
)

const (
	// readyLimit is how long a daemon may take until it says it is ready.
	readyLimit = 30 * time.Second
	// stopLimit is how long a program may take to end before it is killed.
	stopLimit = 15 * time.Second
)

// Command is a program for a node.
type Command struct {
	// Name is what its log and folder are called; one at a time of a name runs
	// on a node.
	Name string
	// Path is the program, Args are its arguments without the name.
	Path string
	Args []string
	// Env is added to this process's environment.
	Env []string
	// Notifies says that the program tells when it is ready, as sd_notify(3)
	// has it, and is waited for.
	Notifies bool
}

// Process is a program that was started on a node. Its methods are safe for
// concurrent use.
type Process struct {
	*child.Process

	// Constant after Start.
	name string
	log  string // the name of a file
}

// Start starts a program on the node, in the node's folder, with its output
// appended to a log there. It runs until it ends, is stopped, or the world is
// closed, whatever becomes of ctx, which limits only the wait for Notifies.
func (n *Node) Start(ctx context.Context, c Command) (*Process, error) {
	p, err := n.start(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("start %s on node %s: %w", c.Name, n.name, err)
	}
	n.world.log.Debug("program started", "node", n.name, "program", c.Name, "pid", p.PID())
	return p, nil
}

func (n *Node) start(ctx context.Context, c Command) (*Process, error) {
	p := &Process{name: c.Name, log: filepath.Join(n.dir, c.Name+".log")}
	// Not CommandContext: it outlives ctx.
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Dir, cmd.Env = n.dir, append(os.Environ(), c.Env...)
	var ready *net.UnixConn
	if c.Notifies {
		path := filepath.Join(n.dir, c.Name+".ready")
		_ = os.Remove(path) // there only if it ran before
		var err error
		if ready, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"}); err != nil {
			return nil, err
		}
		defer ready.Close()
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+path)
	}
	var err error
	if p.Process, err = n.world.launch(cmd, child.Options{Log: p.log, Enter: n.space.enter}); err != nil {
		return nil, err
	}
	if !c.Notifies {
		return p, nil
	}
	if err := errors.Join(p.awaitReady(ctx, ready), ctx.Err()); err != nil {
		return nil, errors.Join(err, p.Kill(), errors.New("it said last: "+p.Tail()))
	}
	return p, nil
}

// awaitReady waits until the program says READY=1, ends, or has had its time.
func (p *Process) awaitReady(ctx context.Context, conn *net.UnixConn) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	var watch sync.WaitGroup
	defer watch.Wait()
	said := make(chan struct{})
	defer close(said)
	watch.Go(func() {
		select {
		case <-ctx.Done():
		case <-p.Exited():
		case <-said:
		}
		_ = conn.SetReadDeadline(time.Unix(1, 0))
	})
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			select {
			case <-p.Exited():
				return fmt.Errorf("it ended: %v", p.State())
			default:
				return fmt.Errorf("it is not ready after %v: %w", readyLimit, err)
			}
		}
		if slices.Contains(strings.Split(string(buf[:n]), "\n"), "READY=1") {
			return nil
		}
	}
}

// Stop asks the program to end, kills it when it does not within 15 seconds,
// and waits until it is gone. It returns how it ended, and an error where it
// had to be killed.
func (p *Process) Stop() error {
	killed, err := p.End(stopLimit)
	switch {
	case err != nil:
	case killed:
		err = fmt.Errorf("it runs %v after SIGTERM", stopLimit)
	default:
		err = p.Wait()
	}
	if err != nil {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	return nil
}

// Log returns all that the program has written, and what ran before under its
// name on the node.
func (p *Process) Log() string {
	data, _ := os.ReadFile(p.log) // what cannot be read is empty
	return string(data)
}

// Usage is what a program has used so far.
type Usage struct {
	CPU  time.Duration `json:"cpu"`  // of all its threads
	Peak int64         `json:"peak"` // most bytes resident at a time
}

// tick is the unit of times in /proc: 1/100 s on every architecture of Linux
// that has Go.
const tick = 10 * time.Millisecond

// Usage returns what the program has used so far, or in all if it has ended.
func (p *Process) Usage() (Usage, error) {
	select {
	case <-p.Exited():
		return usageOf(p.State()), nil
	default:
	}
	dir := fmt.Sprintf("/proc/%d/", p.PID())
	stat, serr := os.ReadFile(dir + "stat")
	status, err := os.ReadFile(dir + "status")
	if err := errors.Join(serr, err); err != nil {
		return Usage{}, fmt.Errorf("read usage of %s: %w", p.name, err)
	}
	return parseUsage(string(stat), string(status))
}

// usageOf returns what a program that has ended has used.
func usageOf(s *os.ProcessState) Usage {
	u := Usage{CPU: s.UserTime() + s.SystemTime()}
	if r, ok := s.SysUsage().(*syscall.Rusage); ok {
		u.Peak = r.Maxrss << 10
	}
	return u
}

// parseUsage reads the files stat and status of a process (proc_pid_stat(5)).
func parseUsage(stat, status string) (Usage, error) {
	var u Usage
	// The name is in parentheses and may contain any character. User and system
	// time are the 12th and 13th field after it.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return u, fmt.Errorf("read process times: %q", stat)
	}
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return u, fmt.Errorf("read process times: %w", err)
		}
		u.CPU += time.Duration(n) * tick
	}
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return u, fmt.Errorf("read process memory: %w", err)
			}
			u.Peak = kib << 10
		}
	}
	return u, nil
}
