package cluster

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// helper names what this program does when a test starts it on a node.
const helper = "SKIMMER_CLUSTER_HELPER"

func TestMain(m *testing.M) {
	switch os.Getenv(helper) {
	case "":
		os.Exit(m.Run())
	case "notify": // a daemon
		fmt.Println("started")
		conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
		if err == nil {
			_, err = conn.Write([]byte("STATUS=well\nREADY=1\n"))
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		<-time.After(time.Hour)
	case "world": // makes a world with a program in it and waits to be killed
		w, err := New(context.Background(), Config{Dir: os.Args[1], Nodes: []NodeConfig{{Name: "a"}}})
		if err == nil {
			var p *Process
			if p, err = w.Nodes()[0].Start(context.Background(), Command{Name: "sleep", Path: "sleep", Args: []string{"1000"}}); err == nil {
				fmt.Println(p.PID())
			}
		}
		if err != nil {
			fmt.Println(err)
		}
		_, _ = io.Copy(io.Discard, os.Stdin)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("network namespaces need root, and CI must have it")
		}
		t.Skip("NOT TESTED: network namespaces need root")
	}
}

func newWorld(t *testing.T, link Link, names ...string) *World {
	t.Helper()
	needRoot(t)
	cfg := Config{Dir: t.TempDir()}
	for _, name := range names {
		cfg.Nodes = append(cfg.Nodes, NodeConfig{Name: name, Link: link})
	}
	w, err := New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// connect returns both ends of a connection from one node to another.
func connect(t *testing.T, from, to *Node) (near, far net.Conn) {
	t.Helper()
	ln, err := to.Listen(t.Context(), to.HostPort(0))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if near, err = from.DialContext(t.Context(), "tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	if far, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	return near, far
}

func TestNodesReachEachOtherAndNobodyElse(t *testing.T) {
	before, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, Link{}, "a", "b", "c")
	a, c := w.Node("a"), w.Node("c")
	near, far := connect(t, a, c)
	if got := far.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(); got != a.Addr() {
		t.Errorf("c is called from %v, want %v", got, a.Addr())
	}
	if _, err := near.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(far, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	after, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	if len(after) != len(before) {
		t.Errorf("this machine has the interfaces %v, had %v", after, before)
	}
	out, err := a.Run(t.Context(), "ip", "-o", "route")
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(out, "\n"); lines != 1 || !strings.HasPrefix(out, "198.18.0.0/24 dev eth0") {
		t.Errorf("routes of a node: %q", out)
	}
	traffic, err := w.Traffic()
	if err != nil {
		t.Fatal(err)
	}
	if len(traffic) != 3 || traffic[0].Sent < 5 || traffic[2].Received < 5 {
		t.Errorf("traffic %+v", traffic)
	}
}

func TestLinksAreSlow(t *testing.T) {
	const bits, size = 64_000_000, 4 << 20
	for name, slow := range map[string]int{"up": 0, "down": 1} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Link{}, "a", "b")
			link := Link{Up: bits}
			if slow == 1 {
				link = Link{Down: bits}
			}
			if err := w.Nodes()[slow].SetLink(t.Context(), link); err != nil {
				t.Fatal(err)
			}
			near, far := connect(t, w.Nodes()[0], w.Nodes()[1])
			start := time.Now()
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() { _, _ = near.Write(make([]byte, size)); near.Close() })
			if n, err := io.Copy(io.Discard, far); n != size || err != nil {
				t.Errorf("received %d bytes: %v", n, err)
			}
			// A busy machine is slower; nothing makes a link faster.
			if took, least := time.Since(start), 9*time.Second*size*8/bits/10; took < least {
				t.Errorf("%d bytes took %v at %d bits/s, want at least %v", size, took, bits, least)
			}
		})
	}
}

// TestDelay sends a little there and back, and then much, over a slow wire.
func TestDelay(t *testing.T) {
	needRoot(t)
	const delay, bits, size = 10 * time.Millisecond, 200_000_000, 8 << 20
	link := Link{Up: bits, Down: bits}
	w, err := New(t.Context(), Config{Dir: t.TempDir(), Nodes: []NodeConfig{{"a", link, delay}, {"b", Link{}, 0}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	near, far := connect(t, w.Node("a"), w.Node("b"))
	start := time.Now()
	for range 3 {
		for _, way := range [][2]net.Conn{{near, far}, {far, near}} {
			if _, err := way[0].Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(way[1], make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if took, least := time.Since(start), 6*delay; took < least {
		t.Errorf("three times there and back took %v, want at least %v", took, least)
	}
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(i >> 12)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { _, _ = far.Write(content); far.Close() })
	got, err := io.ReadAll(near)
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes arrived (%v), want %d", len(got), err, size)
	}
	t.Logf("%d bytes took %v", size, time.Since(start))
}

func TestIsolation(t *testing.T) {
	w := newWorld(t, Link{}, "a", "b", "c")
	near, far := connect(t, w.Node("a"), w.Node("b"))
	if err := w.Node("b").Isolate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := near.Write([]byte("x")); err != nil {
		t.Fatalf("writing to who is cut off: %v, want silence", err)
	}
	if err := far.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := far.Read(make([]byte, 1)); n != 0 {
		t.Errorf("a node that is cut off received %d bytes (%v)", n, err)
	}
	connect(t, w.Node("a"), w.Node("c")) // others are not concerned
	if err := w.Node("b").Rejoin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := far.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(far, make([]byte, 1)); err != nil {
		t.Errorf("after it came back: %v", err)
	}
}

func TestProcess(t *testing.T) {
	w := newWorld(t, Link{}, "a")
	a := w.Node("a")
	daemon := Command{Name: "daemon", Path: os.Args[0], Env: []string{helper + "=notify"}, Notifies: true}
	p, err := a.Start(t.Context(), daemon)
	if err != nil {
		t.Fatal(err)
	}
	if u, err := p.Usage(); err != nil || u.Peak < 1<<20 {
		t.Errorf("usage %+v, %v", u, err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if u, err := p.Usage(); err != nil || u.Peak < 1<<20 {
		t.Errorf("usage when it has ended %+v, %v", u, err)
	}
	if err := p.Kill(); err != nil {
		t.Errorf("killing what is dead: %v", err)
	}
	if p, err = a.Start(t.Context(), daemon); err != nil {
		t.Fatalf("start it again: %v", err)
	}
	if err := p.Stop(); err == nil { // it does not handle SIGTERM
		t.Error("a program that a signal ended was stopped without an error")
	}
	if got := strings.Count(p.Log(), "started\n"); got != 2 {
		t.Errorf("log of two runs: %q", p.Log())
	}

	bad := Command{Name: "bad", Path: "sh", Args: []string{"-c", "echo no luck; exit 3"}, Notifies: true}
	if _, err := a.Start(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "no luck") {
		t.Errorf("a daemon that ends at once: error %v", err)
	}
	if _, err := a.Start(t.Context(), Command{Name: "none", Path: "/no/such/program"}); err == nil {
		t.Error("a program that does not exist was started")
	}
	if _, err := a.Run(t.Context(), "sh", "-c", "echo wrong >&2; exit 1"); err == nil || !strings.Contains(err.Error(), "wrong") {
		t.Errorf("a program that fails: error %v", err)
	}
}

func TestClose(t *testing.T) {
	needRoot(t)
	w, err := New(t.Context(), Config{Nodes: []NodeConfig{{Name: "a"}}})
	if err != nil {
		t.Fatal(err)
	}
	p, err := w.Node("a").Start(t.Context(), Command{Name: "sleep", Path: "sleep", Args: []string{"1000"}})
	if err != nil {
		t.Fatal(err)
	}
	// What is stopped can be ended too.
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Exited():
	default:
		t.Error("a program runs after Close")
	}
	if _, err := os.Stat(w.Dir()); !os.IsNotExist(err) {
		t.Errorf("the directory after Close: %v", err)
	}
	if _, err := w.Node("a").Start(t.Context(), Command{Name: "sleep", Path: "sleep"}); err == nil {
		t.Error("a program was started after Close")
	}
	if err := w.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
}

// TestCloseWhileStarting closes a world in which programs are being started:
// each of them fails to, or is gone afterwards.
func TestCloseWhileStarting(t *testing.T) {
	needRoot(t)
	w, err := New(t.Context(), Config{Nodes: []NodeConfig{{Name: "a"}}})
	if err != nil {
		t.Fatal(err)
	}
	started := make([]*Process, 8)
	first := make(chan struct{}, len(started))
	var wg sync.WaitGroup
	for i := range started {
		wg.Go(func() {
			name := fmt.Sprintf("sleep%d", i)
			started[i], _ = w.Node("a").Start(t.Context(), Command{Name: name, Path: "sleep", Args: []string{"1000"}})
			first <- struct{}{}
		})
	}
	<-first
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	for i, p := range started {
		if p == nil {
			continue // the world was closed before
		}
		select {
		case <-p.Exited():
		default:
			t.Errorf("program %d runs after Close", i)
			_ = p.Kill()
		}
	}
}

// TestKilled kills the process that made a world: nothing may run on.
func TestKilled(t *testing.T) {
	needRoot(t)
	cmd := exec.Command(os.Args[0], t.TempDir())
	cmd.Env = append(os.Environ(), helper+"=world")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("the process said %q", line)
	}
	child, err := os.FindProcess(pid) // by a descriptor: the number may be used again
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	for range 3000 {
		if child.Signal(syscall.Signal(0)) != nil || zombie(pid) {
			return
		}
		<-time.After(20 * time.Millisecond)
	}
	t.Errorf("process %d runs on", pid)
	_ = child.Kill()
}

// zombie says whether a process has ended and nobody has asked how yet.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

func TestBadConfig(t *testing.T) {
	needRoot(t)
	for name, nodes := range map[string][]NodeConfig{
		"none": nil, "too many": make([]NodeConfig, MaxNodes+1), "path": {{Name: "../a"}}, "twice": {{Name: "a"}, {Name: "a"}},
	} {
		if w, err := New(t.Context(), Config{Nodes: nodes}); err == nil {
			t.Errorf("%s: no error", name)
			w.Close()
		}
	}
}

func TestParseUsage(t *testing.T) {
	stat := "7 (a b) c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0"
	u, err := parseUsage(stat, "Name:\tx\nVmHWM:\t    2048 kB\nThreads:\t1\n")
	if want := (Usage{CPU: 2 * time.Second, Peak: 2 << 20}); err != nil || u != want {
		t.Errorf("%+v, %v; want %+v", u, err, want)
	}
	for _, bad := range []string{"", "7 (x) S 1", strings.Replace(stat, "150", "x", 1)} {
		if _, err := parseUsage(bad, ""); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

// The nodes' TCP is not the machine's, and what the kernel does not have is named.
func TestCongestion(t *testing.T) {
	needRoot(t)
	nodes := []NodeConfig{{Name: "a"}}
	w, err := New(t.Context(), Config{Nodes: nodes, Congestion: "reno"}) // every kernel has it
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}()
	var got []byte
	err = w.Node("a").space.do(func() (err error) {
		got, err = os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
		return err
	})
	if err != nil || string(bytes.TrimSpace(got)) != "reno" {
		t.Errorf("a node finds its rate by %q, %v; want reno", got, err)
	}
	if _, err := New(t.Context(), Config{Nodes: nodes, Congestion: "none-such"}); err == nil || !strings.Contains(err.Error(), `"none-such"`) {
		t.Errorf("what the kernel does not have: %v", err)
	}
}
