// Package child starts programs that do not outlive this process, however it
// ends: also when it is killed, and nothing is left that could clean up.
package child

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// tailLines is how many of the last lines of a log Tail returns.
	tailLines = 10
	// tailBytes is how far before the end of the log they may begin.
	tailBytes = 16 << 10
)

// Options says how [Start] starts a program. The zero value will do.
type Options struct {
	// Log is the file to which the program's standard output and error are
	// appended; it is made where it does not exist. Empty leaves both as the
	// command has them.
	Log string
	// Signal is what the program gets when this process is gone; 0 means
	// SIGKILL.
	Signal syscall.Signal
	// Enter, if not nil, is called first, on the thread that starts the program,
	// and may change what belongs to a thread and is inherited, such as its
	// namespaces. Nothing else will run on that thread. If it fails, nothing is
	// started.
	Enter func() error
}

// Process is a program that was started. It is for the caller to see that it
// ends, and to call Wait, Kill or End, which return when it is gone. What the
// program has started in turn is not ended with it. Safe for concurrent use.
type Process struct {
	// Constant after Start.
	cmd    *exec.Cmd
	log    string // empty: none
	from   int64  // where in the log this program's part begins
	exited chan struct{}

	err     error          // set before exited is closed
	watcher sync.WaitGroup // who closes exited
}

// Start starts a program, in a process group of its own: an interrupt at the
// terminal is for this process, which ends the program when it is time. The
// command's other attributes are kept; it must not be used by others from here
// on. An error names the program or file, and leaves nothing running.
func Start(cmd *exec.Cmd, opts Options) (*Process, error) {
	p := &Process{cmd: cmd, log: opts.Log, exited: make(chan struct{})}
	out, err := p.openLog()
	if err != nil {
		return nil, err
	}
	var attr syscall.SysProcAttr
	if cmd.SysProcAttr != nil {
		attr = *cmd.SysProcAttr
	}
	attr.Setpgid, attr.Pdeathsig = true, opts.Signal
	if attr.Pdeathsig == 0 {
		attr.Pdeathsig = syscall.SIGKILL
	}
	cmd.SysProcAttr = &attr
	started := make(chan error, 1)
	p.watcher.Go(func() {
		defer close(p.exited)
		defer out.Close() // does nothing where there is none
		// The signal is sent when the thread that started the program ends, not
		// the process (prctl(2)), so a thread is kept for that. As it is not
		// unlocked, it ends with this goroutine, and what Enter did with it.
		runtime.LockOSThread()
		err := p.start(opts.Enter)
		started <- err
		if err == nil {
			p.err = p.described(cmd.Wait())
		}
	})
	if err := <-started; err != nil {
		p.watcher.Wait()
		return nil, err
	}
	return p, nil
}

// openLog opens the log, if there is to be one, and makes it the program's output.
func (p *Process) openLog() (*os.File, error) {
	if p.log == "" {
		return nil, nil
	}
	if p.cmd.Stdout != nil || p.cmd.Stderr != nil {
		return nil, fmt.Errorf("start %s: its output cannot go to %s and elsewhere", p.cmd.Path, p.log)
	}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	if p.from, err = out.Seek(0, io.SeekEnd); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	return out, nil
}

func (p *Process) start(enter func() error) error {
	if enter != nil {
		if err := enter(); err != nil {
			return err
		}
	}
	return p.cmd.Start()
}

// described adds to how the program ended what it is called and said last.
func (p *Process) described(err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("run %s: %w", filepath.Base(p.cmd.Path), err)
	if said := p.Tail(); said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return err
}

// PID returns the program's process ID, which may stand for another one once it
// has ended.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Exited is closed when the program has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Wait waits until the program has ended, and its output was copied where it
// goes to a writer. It returns how, as [exec.Cmd.Wait] does, with the end of the
// log. It may be called any number of times.
func (p *Process) Wait() error {
	p.watcher.Wait()
	return p.err
}

// State waits as Wait does and returns how the program ended and what it has
// used.
func (p *Process) State() *os.ProcessState {
	p.watcher.Wait()
	return p.cmd.ProcessState
}

// Signal sends the program a signal; one that has ended takes it as well.
func (p *Process) Signal(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %v to %s: %w", sig, filepath.Base(p.cmd.Path), err)
	}
	return nil
}

// Kill kills the program and waits until it is gone. It fails only when the
// program cannot be killed, as one that runs as somebody else.
func (p *Process) Kill() error {
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	p.watcher.Wait()
	return nil
}

// End asks the program with SIGTERM to end, kills it when it has not within
// limit, and waits until it is gone. It says whether that was what ended it, and
// fails as Kill does.
func (p *Process) End(limit time.Duration) (killed bool, err error) {
	select {
	case <-p.exited:
		return false, nil
	default:
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return false, err
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.exited:
		return false, nil
	case <-timer.C:
	}
	if err := p.Kill(); err != nil {
		return false, err
	}
	// It may have ended by itself in the last moment.
	status, ok := p.State().Sys().(syscall.WaitStatus)
	return ok && status.Signal() == syscall.SIGKILL, nil
}

// Tail returns the last lines, ten at most, that the program has written to its
// log, in one line with bars between them, or why they cannot be read. Without
// a log it is empty.
func (p *Process) Tail() string {
	if p.log == "" {
		return ""
	}
	said, err := p.tail()
	if err != nil {
		return err.Error()
	}
	lines := strings.FieldsFunc(said, func(r rune) bool { return r == '\n' })
	return strings.Join(lines[max(0, len(lines)-tailLines):], " | ")
}

// tail returns the end of this program's part of the log.
func (p *Process) tail() (string, error) {
	log, err := os.Open(p.log)
	if err != nil {
		return "", err
	}
	defer log.Close()
	size, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return "", err
	}
	from := max(p.from, size-tailBytes)
	// What is written meanwhile is left for the next time.
	data, err := io.ReadAll(io.NewSectionReader(log, from, max(0, size-from)))
	return string(data), err
}
