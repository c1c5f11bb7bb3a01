package holder

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"syscall"

	"skimmer/internal/blob"
)

// stageEnv tells a program started by start what it is: the first stage
// starts the second, which is the holder, and ends, so that the holder is
// nobody's child and leaves nobody a zombie. Both have the pipe on which they
// say how it went as descriptor 3.
const (
	stageEnv   = "SKIMMER_HOLDER_STAGE"
	stageStart = "start"
	stageHold  = "hold"
	readyFD    = 3
)

// What is said on the pipe; anything else is an error.
const (
	saidReady = "ready"
	saidBusy  = "busy"
)

// Run is the whole of the holder process: it detaches from whoever started it
// by Ensure, listens on the socket and serves until told to stop. Started by
// anybody else it stays in the foreground. It changes settings of the process
// and so belongs into main.
func Run(ctx context.Context, cfg ServerConfig) error {
	stage := os.Getenv(stageEnv)
	if stage == stageStart {
		return detach()
	}
	s, err := Listen(cfg)
	if stage == stageHold {
		say(err)
		_ = os.WriteFile("/proc/self/comm", []byte("skimmer-hold"), 0) // for ps
	}
	if err != nil {
		return err
	}
	// If memory runs out, what keeps containers alive and is small goes last.
	// That is not everybody's right to ask.
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0)
	debug.SetGCPercent(20)
	debug.FreeOSMemory()
	return s.Serve(ctx)
}

// say tells start how it went.
func say(err error) {
	out := os.NewFile(readyFD, "ready")
	defer out.Close()
	switch {
	case err == nil:
		fmt.Fprintln(out, saidReady)
	case errors.Is(err, blob.Busy):
		fmt.Fprintln(out, saidBusy)
	default:
		fmt.Fprintln(out, err)
	}
}

// detach starts this program again, in a session of its own.
func detach() error {
	out := os.NewFile(readyFD, "ready")
	defer out.Close()
	// context.Background: nobody ends the holder but those who talk to it.
	cmd := exec.CommandContext(context.Background(), "/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), stageEnv+"="+stageHold, "GOMAXPROCS=1")
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{out}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start descriptor holder: %w", err)
	}
	return cmd.Process.Release()
}

// start runs the command and returns when the holder listens; Busy where
// another does.
func start(ctx context.Context, cfg Config) error {
	if len(cfg.Command) == 0 {
		return blob.Errorf(blob.Unavailable, "there is none, and no command to start it with: %w", errAbsent)
	}
	in, out, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	cmd := exec.CommandContext(ctx, cfg.Command[0], cfg.Command[1:]...)
	cmd.Env = append(os.Environ(), stageEnv+"="+stageStart)
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{out}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	out.Close()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { in.Close() })()
	said, rerr := bufio.NewReader(io.LimitReader(in, 4096)).ReadString('\n')
	werr := cmd.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	switch said = strings.TrimSpace(said); {
	case said == saidReady:
		return nil
	case said == saidBusy:
		return blob.Errorf(blob.Busy, "another process starts it")
	case said != "":
		return errors.New(said)
	}
	return errors.Join(fmt.Errorf("run %s: it ended without a word: %w", cfg.Command[0], rerr), werr)
}
