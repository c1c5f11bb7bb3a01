package holder

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
)

// The test binary is a holder, or a daemon, where these say so.
const (
	socketEnv = "HOLDER_TEST_SOCKET"
	daemonEnv = "HOLDER_TEST_DAEMON"
	deviceEnv = "HOLDER_TEST_DEVICE"
)

func TestMain(m *testing.M) {
	socket := os.Getenv(socketEnv)
	switch {
	case socket == "":
		os.Exit(m.Run())
	case os.Getenv(daemonEnv) != "" && os.Getenv(stageEnv) == "":
		daemon(socket)
	case os.Getenv(deviceEnv) != "" && os.Getenv(stageEnv) == "":
		deviceDaemon(socket, os.Getenv(deviceEnv))
	}
	if err := Run(context.Background(), ServerConfig{Socket: socket}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// daemon puts the end of a pipe that is its descriptor 3 and waits to be
// killed.
func daemon(socket string) {
	h, err := Ensure(context.Background(), Config{Socket: socket, Command: []string{"/proc/self/exe"}})
	if err == nil {
		err = h.Put("pipe", os.NewFile(3, "pipe"))
	}
	fmt.Println("put:", err)
	if err == nil {
		select {}
	}
	os.Exit(0)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// serve runs a server in this process until the test ends.
func serve(t *testing.T, cfg ServerConfig) *Holder {
	t.Helper()
	s, err := Listen(cfg)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(ctx); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	h, err := Ensure(t.Context(), Config{Socket: cfg.Socket})
	must(t, err)
	return h
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	must(t, err)
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

// carries checks that w writes to r.
func carries(t *testing.T, w, r *os.File) {
	t.Helper()
	want := t.Name()
	if _, err := w.WriteString(want); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 200)
	n, err := r.Read(p)
	if err != nil || string(p[:n]) != want {
		t.Fatalf("pipe carries %q, %v, want %q", p[:n], err, want)
	}
}

func TestPutGetDrop(t *testing.T) {
	h := serve(t, ServerConfig{Socket: filepath.Join(t.TempDir(), "s")})
	if _, err := h.Get("conn"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("get of nothing: %v, want not exist", err)
	}
	r, w := pipe(t)
	must(t, h.Put("conn", w))
	must(t, w.Close())
	for range 2 {
		got, err := h.Get("conn")
		must(t, err)
		carries(t, got, r)
		must(t, got.Close())
	}
	r2, w2 := pipe(t)
	must(t, h.Put("conn", w2))
	if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("what was replaced is still open: %d, %v", n, err)
	}
	must(t, w2.Close())
	must(t, h.Drop("conn"))
	must(t, h.Drop("conn"))
	if n, err := r2.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("what was dropped is still open: %d, %v", n, err)
	}
	if _, err := h.Get("conn"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("get of what was dropped: %v, want not exist", err)
	}
	for _, name := range []string{"", "a/b", strings.Repeat("x", maxName+1), "zero\x00"} {
		if err := h.Put(name, r); !errors.Is(err, blob.Invalid) {
			t.Errorf("put of name %q: %v, want invalid", name, err)
		}
	}
}

func TestStop(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	h := serve(t, ServerConfig{Socket: socket})
	r, w := pipe(t)
	must(t, h.Put("conn", w))
	must(t, w.Close())
	must(t, h.Stop())
	if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("pipe is still open after the stop: %d, %v", n, err)
	}
	must(t, h.Stop())
	must(t, h.Drop("conn"))
	if _, err := h.Get("conn"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("get after the stop: %v, want not exist", err)
	}
	if err := h.Put("conn", r); !errors.Is(err, blob.Unavailable) {
		t.Errorf("put after the stop: %v, want unavailable", err)
	}
}

func TestIdleServerEnds(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	s, err := Listen(ServerConfig{Socket: socket, Idle: time.Millisecond})
	must(t, err)
	must(t, s.Serve(t.Context()))
	if _, err := os.Stat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("socket is still there: %v", err)
	}
}

func TestOneServerPerSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	// Whatever lies there is of the dead.
	dead, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: socket, Net: "unixpacket"})
	must(t, err)
	dead.SetUnlinkOnClose(false)
	must(t, dead.Close())
	h := serve(t, ServerConfig{Socket: socket})
	if _, err := Listen(ServerConfig{Socket: socket}); !errors.Is(err, blob.Busy) {
		t.Errorf("second server: %v, want busy", err)
	}
	st, err := os.Stat(socket)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v, want mode 0600", st.Mode(), err)
	}
	must(t, h.Stop())
	for _, path := range []string{"relative", "/" + strings.Repeat("x", 101)} {
		if _, err := Listen(ServerConfig{Socket: path}); !errors.Is(err, blob.Invalid) {
			t.Errorf("listen on %s: %v, want invalid", path, err)
		}
	}
}

func TestStrangersAreRefused(t *testing.T) {
	for _, c := range []struct {
		uid  uint32
		self int
		want bool
	}{{0, 0, true}, {0, 1000, true}, {1000, 1000, true}, {1000, 0, false}, {1001, 1000, false}} {
		if err := allowed(c.uid, c.self); (err == nil) != c.want {
			t.Errorf("user %d at a holder of user %d: %v, want allowed: %v", c.uid, c.self, err, c.want)
		}
	}
	if os.Getuid() != 0 {
		return
	}
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	socket := filepath.Join(dir, "s")
	serve(t, ServerConfig{Socket: socket})
	must(t, os.Chmod(socket, 0o666)) // So that only the holder itself is in the way.
	exe, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "exe"), exe, 0o755))
	if out, err := as(65534, filepath.Join(dir, "exe"), socket).CombinedOutput(); err != nil || !strings.Contains(string(out), "put: give descriptor") &&
		!strings.Contains(string(out), "put: start descriptor holder") {
		t.Errorf("another user: %q, %v, want a refusal", out, err)
	}
}

// as returns the command of a daemon of another user that ends after it was
// refused.
func as(uid uint32, exe, socket string) *exec.Cmd {
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), socketEnv+"="+socket, daemonEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd
}

// start makes the daemon process, with w as its descriptor 3, and returns it
// once it has put that.
func startDaemon(t *testing.T, socket string, w *os.File) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), socketEnv+"="+socket, daemonEnv+"=1")
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "put: <nil>\n" {
		t.Errorf("daemon says %q, %v", line, err)
	}
	return cmd
}

// The point of it all: what a daemon put is still open after kill -9 of it and
// its whole process group.
func TestDescriptorOutlivesDaemon(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	t.Setenv(socketEnv, socket)
	r, w := pipe(t)
	first := startDaemon(t, socket, w)
	must(t, w.Close())
	h, err := Ensure(t.Context(), Config{Socket: socket})
	must(t, err)
	t.Cleanup(func() { must(t, h.Stop()) })
	pid := holderPID(t, socket)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	if strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", first.Process.Pid)) {
		t.Error("holder is a child of the daemon")
	}
	t.Logf("holder: %s", field(string(status), "VmRSS"))
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("session of the holder: %d, %v, want its own, %d", sid, err, pid)
	}
	must(t, first.Process.Kill())
	if err := first.Wait(); err == nil {
		t.Error("killed daemon ended well")
	}
	got, err := h.Get("pipe")
	must(t, err)
	defer got.Close()
	carries(t, got, r)
	if again := holderPID(t, socket); again != pid {
		t.Errorf("holder is process %d, was %d", again, pid)
	}
}

// field returns a line of a status file.
func field(status, name string) string {
	_, rest, _ := strings.Cut(status, name+":")
	line, _, _ := strings.Cut(rest, "\n")
	return name + strings.TrimSpace(line)
}

// holderPID asks the socket who listens.
func holderPID(t *testing.T, socket string) int {
	t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
	must(t, err)
	defer c.Close()
	raw, err := c.SyscallConn()
	must(t, err)
	var cred *unix.Ucred
	must(t, raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }))
	must(t, err)
	return int(cred.Pid)
}

// A holder that was killed is replaced when something is put, and daemons
// that start at once get the same one.
func TestRacingAndKilled(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	t.Setenv(socketEnv, socket)
	cfg := Config{Socket: socket, Command: []string{"/proc/self/exe"}}
	r, w := pipe(t)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			h, err := Ensure(t.Context(), cfg)
			if err == nil {
				err = h.Put("name"+strconv.Itoa(i), w)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	h, err := Ensure(t.Context(), cfg)
	must(t, err)
	t.Cleanup(func() { must(t, h.Stop()) })
	for i := range 4 {
		got, err := h.Get("name" + strconv.Itoa(i))
		must(t, err)
		carries(t, got, r)
		must(t, got.Close())
	}
	must(t, unix.Kill(holderPID(t, socket), unix.SIGKILL))
	must(t, h.Put("conn", w))
	got, err := h.Get("conn")
	must(t, err)
	defer got.Close()
	carries(t, got, r)
}

func TestBadCommands(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	for want, command := range map[string][]string{
		"no command":     nil,
		"without a word": {"/bin/true"},
		"no such file":   {"/does/not/exist"},
	} {
		_, err := Ensure(t.Context(), Config{Socket: socket, Command: command})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("command %q: %v, want an error with %q", command, err, want)
		}
	}
	t.Setenv(socketEnv, "/does/not/exist/s")
	_, err := Ensure(t.Context(), Config{Socket: socket, Command: []string{"/proc/self/exe"}})
	if err == nil || !strings.Contains(err.Error(), "/does/not/exist/s.lock") {
		t.Errorf("holder that cannot listen: %v, want its own words", err)
	}
}

func TestOtherVersionsAreTold(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	serve(t, ServerConfig{Socket: socket})
	for text, want := range map[string]status{"SKH\x02\x01": statusVersion, "SKH\x01\x63": statusRefused, "?": statusRefused, "SKH\x01\x02name": statusRefused} {
		c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
		must(t, err)
		must(t, send(c, []byte(text), -1))
		p, _, err := receive(c)
		must(t, err)
		if r, err := parseReply(p); err != nil || r.status != want || r.text == "" {
			t.Errorf("%q is answered with %+v, %v, want status %d", text, r, err, want)
		}
		must(t, c.Close())
	}
}

func FuzzParse(f *testing.F) {
	f.Add(request{opPut, "conn"}.bytes())
	f.Add(request{op: opPing}.bytes())
	f.Add(reply{statusRefused, "why"}.bytes())
	f.Add([]byte("SKH\x02\x01"))
	f.Fuzz(func(t *testing.T, p []byte) {
		if r, err := parseRequest(p); err == nil && string(r.bytes()) != string(p) {
			t.Errorf("request %q becomes %q", p, r.bytes())
		}
		if r, err := parseReply(p); err == nil && string(r.bytes()) != string(p) {
			t.Errorf("reply %q becomes %q", p, r.bytes())
		}
	})
}

// A holder that hangs up without an answer is asked again: it may be there, and
// have what is asked for.
func TestHungUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	must(t, err)
	defer ln.Close()
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range 2 + 3 {
			c, err := ln.AcceptUnix()
			if err != nil {
				t.Error(err)
				return
			}
			_, _, err = receive(c)
			if i == 1 {
				err = errors.Join(err, send(c, reply{statusDone, ""}.bytes(), -1))
			}
			if err = errors.Join(err, c.Close()); err != nil {
				t.Error(err)
			}
		}
	})
	h := &Holder{Config{Socket: path, Logger: slog.New(slog.DiscardHandler)}}
	if err := h.Drop("x"); err != nil {
		t.Errorf("hung up once: %v", err)
	}
	if _, err := h.Get("x"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("hung up for good: %v, want an error that does not say there is none", err)
	}
	wg.Wait()
}
