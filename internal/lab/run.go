package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxOutput is how much of a program's output Run keeps, in bytes.
const maxOutput = 64 << 10

// Result is how a program in an image fared.
type Result struct {
	// FirstOutput is the time from the decision to run it until it wrote its
	// first byte; Total the time until it had ended.
	FirstOutput, Total time.Duration
	// Output is the beginning of what it wrote to standard output and error.
	Output string
}

// Run runs a program in the root file system under root with chroot(1), with
// /proc and /dev of this machine in a mount namespace of its own: the file
// system under root is not changed and may be read-only. When Run returns, the
// program and everything it started are gone. It needs to be root.
//
// The caller may be the process that serves the file system. It executes
// nothing of it itself: Go starts a program with vfork(2), which holds up its
// scheduler until the program's file has been read, so a process that has to
// serve that read could wait for itself.
//
// It fails when the program cannot be started, ends badly, is ended by ctx, or
// writes nothing.
func Run(ctx context.Context, root string, env, args []string) (Result, error) {
	var res Result
	var err error
	var wg sync.WaitGroup
	wg.Go(func() {
		// The thread gets a mount namespace that its child inherits. It is not
		// given back: the thread ends with this goroutine.
		runtime.LockOSThread()
		res, err = runHere(ctx, root, env, args)
	})
	wg.Wait()
	if err != nil {
		return res, fmt.Errorf("run %q in %s: %w", args, root, err)
	}
	return res, nil
}

func runHere(ctx context.Context, root string, env, args []string) (Result, error) {
	if len(args) == 0 {
		return Result{}, errors.New("no program given")
	}
	start := time.Now()
	// The namespace has copies of all mounts, which keep what is mounted busy.
	// Leaving it here, and not when the thread happens to end, is what lets the
	// caller unmount root next.
	home, err := os.Open("/proc/thread-self/ns/mnt")
	if err != nil {
		return Result{}, fmt.Errorf("find mount namespace: %w", err)
	}
	defer home.Close()
	res, err := Result{}, isolate(root)
	if err == nil {
		res, err = runChroot(ctx, root, env, args, start)
	}
	if herr := unix.Setns(int(home.Fd()), unix.CLONE_NEWNS); herr != nil {
		err = errors.Join(err, fmt.Errorf("leave mount namespace: %w", herr))
	}
	return res, err
}

// runChroot runs the program and waits for it; times count from start.
func runChroot(ctx context.Context, root string, env, args []string, start time.Time) (Result, error) {
	chroot, err := exec.LookPath("chroot")
	if err != nil {
		chroot = "/usr/sbin/chroot" // not in everybody's PATH
	}
	out := &firstOutput{start: start}
	cmd := exec.CommandContext(ctx, chroot, append([]string{root}, args...)...)
	cmd.Env = env
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = stopLimit
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// In a PID namespace of its own, the end of the program is the end of
		// everything it started.
		Cloneflags: unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	err = cmd.Run()
	res := Result{FirstOutput: out.first, Total: time.Since(start), Output: out.kept.String()}
	switch {
	case ctx.Err() != nil:
		return res, ctx.Err()
	case err != nil:
		return res, fmt.Errorf("%w: %s", err, res.Output)
	case res.Output == "":
		return res, errors.New("it wrote nothing")
	}
	return res, nil
}

// isolate moves the calling thread into a mount namespace in which root has
// /proc and /dev, as far as it has the directories.
func isolate(root string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make mount namespace: %w", err)
	}
	// What is unmounted outside vanishes inside too, but not the other way.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("keep mounts inside: %w", err)
	}
	for _, dir := range []string{"/proc", "/dev"} {
		at := filepath.Join(root, dir)
		// A symlink would lead out of root.
		if st, err := os.Lstat(at); errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir() {
			continue
		}
		if err := unix.Mount(dir, at, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("mount %s in it: %w", dir, err)
		}
	}
	return nil
}

// firstOutput keeps the beginning of a program's output and when it began. It
// is written by one goroutine, that of exec.Cmd.
type firstOutput struct {
	start time.Time
	first time.Duration
	kept  bytes.Buffer
}

func (o *firstOutput) Write(p []byte) (int, error) {
	if o.first == 0 {
		o.first = time.Since(o.start)
	}
	o.kept.Write(p[:min(len(p), maxOutput-o.kept.Len())])
	return len(p), nil
}
