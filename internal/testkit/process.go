package testkit

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is a program that a test runs in the background. Safe for concurrent
// use.
type Process struct {
	// Cmd is what was started.
	Cmd *exec.Cmd

	exited  chan struct{}
	err     error          // set before exited is closed
	watcher sync.WaitGroup // who closes exited
}

// StartProcess starts cmd with its output appended to the file log. The program
// is killed when this process ends. Until then it is the caller who ends it.
func StartProcess(t testing.TB, log string, cmd *exec.Cmd) *Process {
	t.Helper()
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	p := &Process{Cmd: cmd, exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error, 1)
	p.watcher.Go(func() {
		defer close(p.exited)
		defer out.Close()
		// The signal is sent when the thread ends, not the process (prctl(2)).
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
	})
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	return p
}

// Exited is closed when the program has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Ended reports whether the program has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// Wait waits until the program has ended and returns how, as exec.Cmd does.
func (p *Process) Wait() error {
	p.watcher.Wait()
	return p.err
}

// Signal sends the program a signal and waits until it has ended. It fails only
// when that takes longer than limit.
func (p *Process) Signal(s syscall.Signal, limit time.Duration) error {
	_ = p.Cmd.Process.Signal(s) // it may have ended
	select {
	case <-p.exited:
		return nil
	case <-time.After(limit):
		return fmt.Errorf("%s does not end after %v and signal %v", p.Cmd.Path, limit, s)
	}
}
