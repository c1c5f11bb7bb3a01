package testkit

import (
	"fmt"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"skimmer/internal/lab/child"
)

// Process is a program that a test runs in the background. Safe for concurrent
// use.
type Process struct {
	run *child.Process // constant
}

// StartProcess starts cmd with its output appended to the file log. The program
// is killed when this process ends. Until then it is the caller who ends it.
func StartProcess(t testing.TB, log string, cmd *exec.Cmd) *Process {
	t.Helper()
	run, err := child.Start(cmd, child.Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return &Process{run}
}

// PID returns the program's process ID.
func (p *Process) PID() int { return p.run.PID() }

// Exited is closed when the program has ended.
func (p *Process) Exited() <-chan struct{} { return p.run.Exited() }

// Ended reports whether the program has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.run.Exited():
		return true
	default:
		return false
	}
}

// Wait waits until the program has ended and returns how, as exec.Cmd does, with
// the end of the log.
func (p *Process) Wait() error { return p.run.Wait() }

// Signal sends the program a signal and waits until it has ended. It fails when
// it cannot be sent, or when that takes longer than limit.
func (p *Process) Signal(s syscall.Signal, limit time.Duration) error {
	if err := p.run.Signal(s); err != nil {
		return err
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-p.run.Exited():
		return nil
	case <-timer.C:
		return fmt.Errorf("process %d does not end after %v and signal %v", p.PID(), limit, s)
	}
}
