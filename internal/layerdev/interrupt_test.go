package layerdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// syncFile is a file of which one page is read in the way in which a process
// waits for the request itself: the kernel does that when reading ahead, which
// it tries first, has failed.
type syncFile struct {
	memFile
	mu    sync.Mutex
	reads int
	come  chan struct{}
}

// newSyncFile returns such a file, whose first page comes when come is closed.
// Whoever waits for it is announced, and how a wait ended.
func newSyncFile(blocked chan<- struct{}, ended chan<- error) *syncFile {
	f := &syncFile{come: make(chan struct{})}
	f.p = bytes.Repeat([]byte("x"), 1<<20)
	f.wait = func(ctx context.Context, off int64) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.reads++; f.reads == 1 {
			return unix.EIO
		}
		if off > 0 {
			return nil
		}
		f.mu.Unlock()
		defer f.mu.Lock()
		blocked <- struct{}{}
		select {
		case <-f.come:
			return nil
		case <-ctx.Done():
			ended <- ctx.Err()
			return ctx.Err()
		}
	}
	return f
}

// signalledReader reads the file it is told to in one call, on a thread whose
// number it tells, and handles signals, as Go programs do.
func signalledReader(path string) {
	runtime.LockOSThread()
	handled := make(chan os.Signal, 10)
	signal.Notify(handled, unix.SIGTERM)
	go func() {
		for range handled {
			fmt.Println("handled")
		}
	}()
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	fmt.Println("thread", unix.Gettid(), err)
	p := make([]byte, 64<<10)
	n, err := unix.Pread(fd, p, 0)
	fmt.Println("read", n, err, bytes.Count(p, []byte("x")))
	os.Exit(0)
}

// A signal that a reader handles or ignores is none of the read's business,
// but a killed reader goes away, even if it was sent another signal before.
func TestSignalledReader(t *testing.T) {
	const pathEnv = "LAYERDEV_READ_PATH"
	if path := os.Getenv(pathEnv); path != "" {
		signalledReader(path)
	}
	for _, kill := range []bool{false, true} {
		t.Run(fmt.Sprint("kill=", kill), func(t *testing.T) {
			blocked, ended := make(chan struct{}, 10), make(chan error, 10)
			f := newSyncFile(blocked, ended)
			d := mountDevice(t, fileSet{"f": f}, nil)
			cmd := exec.Command(os.Args[0], "-test.run=^TestSignalledReader$")
			cmd.Env = append(os.Environ(), pathEnv+"="+d.Path("f"))
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
			d.untilWatched(t)
			if kill {
				must(t, cmd.Process.Kill())
				if err := cmd.Wait(); err == nil {
					t.Error("killed reader ended well")
				}
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Errorf("read ended with %v", err)
				}
				return
			}
			close(f.come)
			if got := lines.after(t, "read "); got != "65536 <nil> 65536" {
				t.Errorf("reader got %s, want all and no error", got)
			}
			must(t, cmd.Wait())
		})
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
