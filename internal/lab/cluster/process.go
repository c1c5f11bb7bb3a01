package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
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
	// Constant after Start.
	name   string
	log    string // the name of a file
	cmd    *exec.Cmd
	exited chan struct{}
	wg     sync.WaitGroup

	err  error         // how it ended; set before exited is closed
	used time.Duration // set before exited is closed
	peak int64         // set before exited is closed
}

// Start starts a program on the node, in the node's folder, with its output
// appended to a log there. It runs until it ends, is stopped, or the world is
// closed, whatever becomes of ctx, which limits only the wait for Notifies.
func (n *Node) Start(ctx context.Context, c Command) (*Process, error) {
	p := &Process{name: c.Name, log: filepath.Join(n.dir, c.Name+".log"), exited: make(chan struct{})}
	if !n.world.add(p) {
		close(p.exited)
		return nil, fmt.Errorf("start %s on node %s: the world was closed", c.Name, n.name)
	}
	var ready *net.UnixConn
	env := append(os.Environ(), c.Env...)
	if c.Notifies {
		path := filepath.Join(n.dir, c.Name+".ready")
		_ = os.Remove(path) // there only if it ran before
		var err error
		if ready, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"}); err != nil {
			close(p.exited)
			return nil, fmt.Errorf("start %s on node %s: %w", c.Name, n.name, err)
		}
		defer ready.Close()
		env = append(env, "NOTIFY_SOCKET="+path)
	}
	// Not CommandContext: it outlives ctx.
	p.cmd = exec.Command(c.Path, c.Args...)
	p.cmd.Dir, p.cmd.Env = n.dir, env
	err := p.start(n.space)
	if err == nil && c.Notifies {
		err = errors.Join(p.awaitReady(ctx, ready), ctx.Err())
		if err != nil {
			err = errors.Join(err, p.Kill(), errors.New("the end of its log: "+p.Tail()))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("start %s on node %s: %w", c.Name, n.name, err)
	}
	n.world.log.Debug("program started", "node", n.name, "program", c.Name, "pid", p.PID())
	return p, nil
}

func (p *Process) start(space *namespace) error {
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		close(p.exited)
		return err
	}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error, 1)
	p.wg.Go(func() {
		defer close(p.exited)
		defer log.Close()
		// The signal is sent when the thread that started it ends (prctl(2)), so
		// the thread is kept until then; it is in the node and not given back.
		runtime.LockOSThread()
		err := space.enter()
		if err == nil {
			err = p.cmd.Start()
		}
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			p.rest(p.cmd.ProcessState)
		}
	})
	return <-started
}

// rest notes what the program has used in all.
func (p *Process) rest(s *os.ProcessState) {
	p.used = s.UserTime() + s.SystemTime()
	if u, ok := s.SysUsage().(*syscall.Rusage); ok {
		p.peak = u.Maxrss << 10
	}
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
		case <-p.exited:
		case <-said:
		}
		_ = conn.SetReadDeadline(time.Unix(1, 0))
	})
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			select {
			case <-p.exited:
				return fmt.Errorf("it ended: %w", errors.Join(p.err, err))
			default:
				return fmt.Errorf("it is not ready after %v: %w", readyLimit, err)
			}
		}
		if slices.Contains(strings.Split(string(buf[:n]), "\n"), "READY=1") {
			return nil
		}
	}
}

// PID returns the process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Exited is closed when the program has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Signal sends the program a signal; one that has ended takes it as well.
func (p *Process) Signal(sig syscall.Signal) error {
	if p.cmd == nil || p.cmd.Process == nil {
		return nil
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %v to %s: %w", sig, p.name, err)
	}
	return nil
}

func (p *Process) signalKill() error { return p.Signal(syscall.SIGKILL) }

// Kill kills the program and waits until it is gone.
func (p *Process) Kill() error {
	err := p.signalKill()
	if err == nil {
		<-p.exited
	}
	return err
}

// Stop asks the program to end, kills it when it does not within 15 seconds,
// and waits until it is gone. It returns how it ended, and an error where it
// had to be killed.
func (p *Process) Stop() error {
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	select {
	case <-p.exited:
		if p.err != nil {
			return fmt.Errorf("stop %s: %w: %s", p.name, p.err, p.Tail())
		}
		return nil
	case <-limit.C:
	}
	return errors.Join(fmt.Errorf("stop %s: it runs %v after SIGTERM", p.name, stopLimit), p.Kill())
}

// Log returns all that the program has written, and what ran before under its
// name on the node.
func (p *Process) Log() string {
	data, _ := os.ReadFile(p.log) // what cannot be read is empty
	return string(data)
}

// Tail returns the last lines of the log.
func (p *Process) Tail() string {
	lines := bytes.Split(bytes.TrimSpace([]byte(p.Log())), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-10):], []byte(" | ")))
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
	case <-p.exited:
		return Usage{CPU: p.used, Peak: p.peak}, nil
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
