package child

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// role is the variable that makes a program for tests of this test binary.
const role = "SKIMMER_TEST_CHILD"

// What the program says.
const (
	up    = "up\n"
	asked = "asked to end\n"
)

func TestMain(m *testing.M) {
	switch os.Getenv(role) {
	case "":
		os.Exit(m.Run())
	case "parent":
		parent()
	case "polite":
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM)
		fmt.Print(up)
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin) // as long as the test lasts
			os.Exit(1)
		}()
		<-term
		fmt.Print(asked)
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		fmt.Print(up)
		_, _ = io.Copy(io.Discard, os.Stdin)
	}
}

// parent starts a program as its argument has it, and waits for more than one
// end. It is killed.
func parent() {
	var opts Options
	if os.Args[1] == "asks" {
		opts.Signal = syscall.SIGTERM
	}
	cmd := program("polite")
	cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
	p, err := Start(cmd, opts)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	_ = p.Wait() // the test looks at what it said
	fmt.Println("the program ended first")
}

// program returns this test binary in a role.
func program(what string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	// The race detector would have it last another second.
	cmd.Env = append(os.Environ(), role+"="+what, "GORACE=atexit_sleep_ms=0")
	return cmd
}

// pipe returns a pipe whose reader does not wait for ever.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.Close()
		_ = w.Close() // most are closed already
	})
	if err := r.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return r, w
}

// start starts a program in a role and returns when it is up, with the rest of
// what it says.
func start(t *testing.T, what string) (*Process, *bufio.Reader) {
	t.Helper()
	out, w := pipe(t)
	stdin, _ := pipe(t)
	cmd := program(what)
	cmd.Stdin, cmd.Stdout = stdin, w
	p, err := Start(cmd, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	})
	_ = w.Close()
	said := bufio.NewReader(out)
	if line, err := said.ReadString('\n'); line != up {
		t.Fatalf("the program said %q, %v", line, err)
	}
	return p, said
}

// TestKilledParent kills a process that started a program. The program holds
// the other end of a pipe, which is therefore closed when both are gone.
func TestKilledParent(t *testing.T) {
	for how, want := range map[string]string{"kills": "", "asks": asked} {
		t.Run(how, func(t *testing.T) {
			out, w := pipe(t)
			stdin, _ := pipe(t)
			cmd := program("parent", how)
			cmd.Stdin, cmd.Stdout = stdin, w
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			_ = w.Close()
			said := bufio.NewReader(out)
			line, err := said.ReadString('\n')
			if line != up {
				t.Errorf("the program said %q, %v", line, err)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // it was killed
			if rest, err := io.ReadAll(said); err != nil || string(rest) != want {
				t.Errorf("then it said %q, want %q; %v", rest, want, err)
			}
		})
	}
}

// TestEndedThread starts a program from a thread that ends, which by itself would
// be what the kernel sends the signal for.
func TestEndedThread(t *testing.T) {
	in, toProgram := pipe(t)
	fromProgram, out := pipe(t)
	cmd := exec.Command("cat")
	cmd.Stdin, cmd.Stdout = in, out
	var p *Process
	var err error
	ended := onThread(func() { p, err = Start(cmd, Options{}) })
	if err != nil {
		t.Fatal(err)
	}
	for range 3000 {
		if _, err := os.Stat(ended); errors.Is(err, fs.ErrNotExist) {
			break
		}
		<-time.After(20 * time.Millisecond)
	}
	if _, err := os.Stat(ended); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the thread does not end: %v", err)
	}
	_ = in.Close()
	_ = out.Close()
	if _, err := io.WriteString(toProgram, up); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(fromProgram).ReadString('\n'); line != up {
		t.Errorf("the program said %q, %v", line, err)
	}
	_ = toProgram.Close()
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
}

// onThread calls f on a thread that ends then, and returns its folder in /proc.
func onThread(f func()) (dir string) {
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		if unix.Gettid() == os.Getpid() {
			dir = onThread(f) // the first thread of a process stays
			return
		}
		dir = fmt.Sprintf("/proc/self/task/%d", unix.Gettid())
		f()
	})
	wg.Wait()
	return dir
}

func TestWaitSaysWhy(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	run := func(script string) *Process {
		p, err := Start(exec.Command("sh", "-c", script), Options{Log: log})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	if err := run("echo fine").Wait(); err != nil {
		t.Error(err)
	}
	p := run("echo begun; echo; echo broken >&2; exit 3")
	err := p.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || p.State().ExitCode() != 3 {
		t.Errorf("it ended with %v, %v", err, p.State())
	}
	if want := "run sh: exit status 3: begun | broken"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if again := p.Wait(); again != err {
		t.Errorf("waiting again: %v", again)
	}
	if data, err := os.ReadFile(log); err != nil || string(data) != "fine\nbegun\n\nbroken\n" {
		t.Errorf("log %q, %v", data, err)
	}
	p = run("i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo line $i; done")
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
	if lines := strings.Split(p.Tail(), " | "); len(lines) != tailLines || lines[0] != "line 4991" || lines[9] != "line 5000" {
		t.Errorf("last lines %q", lines)
	}
}

func TestEnd(t *testing.T) {
	for what, want := range map[string]struct {
		limit  time.Duration
		killed bool
		ended  string
	}{
		"polite":   {time.Minute, false, "exit status 0"},
		"stubborn": {time.Millisecond, true, "signal: killed"},
	} {
		t.Run(what, func(t *testing.T) {
			p, _ := start(t, what)
			if killed, err := p.End(want.limit); err != nil || killed != want.killed {
				t.Errorf("killed %v, %v; want %v", killed, err, want.killed)
			}
			select {
			case <-p.Exited():
			default:
				t.Error("it runs on")
			}
			if got := p.State().String(); got != want.ended {
				t.Errorf("it ended with %s, want %s", got, want.ended)
			}
			// It takes whatever comes now.
			if killed, err := p.End(0); killed || err != nil {
				t.Errorf("ending it again: killed %v, %v", killed, err)
			}
			if err := errors.Join(p.Signal(syscall.SIGTERM), p.Kill()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestKill kills a program that several wait for.
func TestKill(t *testing.T) {
	p, said := start(t, "stubborn")
	if group, err := unix.Getpgid(p.PID()); err != nil || group != p.PID() {
		t.Errorf("process %d is in group %d, %v", p.PID(), group, err)
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := p.Wait(); err == nil || err.Error() != "run child.test: signal: killed" {
				t.Errorf("it ended with %v", err)
			}
		})
	}
	wg.Go(func() {
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	})
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if rest, err := io.ReadAll(said); err != nil || len(rest) != 0 {
		t.Errorf("it said %q, %v", rest, err)
	}
}

// TestEnter gives a thread a folder of its own to work in.
func TestEnter(t *testing.T) {
	here, err := unix.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir, log := t.TempDir(), filepath.Join(t.TempDir(), "log")
	enter := func() error { return errors.Join(unix.Unshare(unix.CLONE_FS), unix.Chdir(dir)) }
	p, err := Start(exec.Command("/bin/pwd"), Options{Log: log, Enter: enter})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(); err != nil || p.Tail() != dir {
		t.Errorf("it ran in %q, %v", p.Tail(), err)
	}
	if now, err := unix.Getwd(); err != nil || now != here {
		t.Errorf("this process is in %q, %v", now, err)
	}
}

func TestStartThatFails(t *testing.T) {
	dir := t.TempDir()
	no := errors.New("no way in")
	mark := filepath.Join(dir, "mark")
	both := exec.Command("touch", mark)
	both.Stdout = io.Discard
	for what, c := range map[string]struct {
		cmd  *exec.Cmd
		opts Options
		want error
	}{
		"no program":       {exec.Command(filepath.Join(dir, "none")), Options{}, fs.ErrNotExist},
		"no place for log": {exec.Command("touch", mark), Options{Log: filepath.Join(dir, "none", "log")}, fs.ErrNotExist},
		"no way in":        {exec.Command("touch", mark), Options{Enter: func() error { return no }}, no},
		"output twice":     {both, Options{Log: filepath.Join(dir, "log")}, nil},
	} {
		p, err := Start(c.cmd, c.opts)
		if p != nil || err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: started %v, %v", what, p, err)
		}
	}
	if _, err := os.Stat(mark); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a program ran: %v", err)
	}
}
