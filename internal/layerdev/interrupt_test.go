package layerdev

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// signalledReader reads the file it is told to in one call, on a thread whose
// number it tells, and handles signals, as Go programs do.
func signalledReader(path string, direct bool) {
	runtime.LockOSThread()
	handled := make(chan os.Signal, 10)
	signal.Notify(handled, unix.SIGTERM)
	go func() {
		for range handled {
			fmt.Println("handled")
		}
	}()
	flags := unix.O_RDONLY
	if direct {
		flags |= unix.O_DIRECT
	}
	fd, err := unix.Open(path, flags, 0)
	fmt.Println("thread", unix.Gettid(), err)
	p := make([]byte, 64<<10)
	n, err := unix.Pread(fd, p, 0)
	fmt.Println("read", n, err, bytes.Count(p, []byte("x")))
	os.Exit(0)
}

// A signal that a reader handles or ignores is none of the read's business,
// but a killed reader goes away, even if it was sent another signal before.
func TestSignalledReader(t *testing.T) {
	const pathEnv, directEnv = "LAYERDEV_READ_PATH", "LAYERDEV_READ_DIRECT"
	if path := os.Getenv(pathEnv); path != "" {
		signalledReader(path, os.Getenv(directEnv) == "true")
	}
	for _, direct := range []bool{true, false} {
		for _, kill := range []bool{false, true} {
			t.Run(fmt.Sprintf("direct=%v,kill=%v", direct, kill), func(t *testing.T) {
				come, blocked := make(chan struct{}), make(chan struct{}, 10)
				f := &memFile{p: bytes.Repeat([]byte("x"), 1<<20), wait: func(ctx context.Context, _ int64) error {
					blocked <- struct{}{}
					select {
					case <-come:
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				}}
				d := mountDevice(t, fileSet{"f": f}, nil)
				cmd := exec.Command(os.Args[0], "-test.run=^TestSignalledReader$")
				cmd.Env = append(os.Environ(), pathEnv+"="+d.Path("f"), fmt.Sprintf("%s=%v", directEnv, direct))
				out, err := cmd.StdoutPipe()
				must(t, err)
				must(t, cmd.Start())
				lines := newLines(out)
				tid, err := strconv.Atoi(strings.Fields(lines.after(t, "thread "))[0])
				must(t, err)
				<-blocked
				for _, sig := range []unix.Signal{unix.SIGURG, unix.SIGTERM} {
					must(t, unix.Tgkill(cmd.Process.Pid, tid, sig))
				}
				must(t, cmd.Process.Signal(unix.SIGTERM)) // for a thread that is free
				lines.until(t, "handled")
				if direct {
					d.untilWatched(t)
				}
				if kill {
					must(t, cmd.Process.Kill())
					if err := cmd.Wait(); err == nil {
						t.Error("killed reader ended well")
					}
					close(come)
					return
				}
				close(come)
				if got := lines.after(t, "read "); got != "65536 <nil> 65536" {
					t.Errorf("reader got %s, want all and no error", got)
				}
				must(t, cmd.Wait())
			})
		}
	}
}

// untilWatched returns when the kernel has said that a reader was signalled.
func (d *Device) untilWatched(t *testing.T) {
	t.Helper()
	for {
		d.mu.Lock()
		for _, r := range d.reads {
			if r.watched {
				d.mu.Unlock()
				return
			}
		}
		d.mu.Unlock()
		select {
		case <-time.After(time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("kernel did not tell of the signal")
		}
	}
}

func TestKilledStatus(t *testing.T) {
	for status, want := range map[string]bool{
		"Name:\tx\nState:\tS (sleeping)\nSigPnd:\t0000000000400000\nShdPnd:\t0000000000004000\n": false,
		"State:\tD (disk sleep)\nSigPnd:\t0000000000000100\nShdPnd:\t0000000000000000\n":         true,
		"State:\tD (disk sleep)\nSigPnd:\t0000000000000000\nShdPnd:\t0000000000000100\n":         true,
		"State:\tZ (zombie)\n": true,
		"SigPnd:\tnonsense\n":  false,
		"":                     false,
	} {
		if got := killedStatus([]byte(status)); got != want {
			t.Errorf("%q: killed %v, want %v", status, got, want)
		}
	}
	if killed(uint32(os.Getpid())) || killed(0) {
		t.Error("this test counts as killed")
	}
}
