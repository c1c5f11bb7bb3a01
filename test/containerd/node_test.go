//go:build e2e

package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"skimmer/internal/lab"
	"skimmer/internal/testkit"
)

// The limits of waiting, ten times what is usual on a slow machine.
const (
	stepLimit = 2 * time.Minute // one step: a start, a stop, a line in a log
	testLimit = 5 * time.Minute // everything a test asks of containerd
)

// options say how a node differs from the usual one.
type options struct {
	plugin     string // the name the snapshotter has in containerd; default stargz
	peer       string // more lines of the peer's configuration
	cri        bool
	pause      string // the image CRI runs in sandboxes
	registries []string
	mirror     bool // the peer serves its mirror, see node.mirror
	unpack     bool // containerd has skimmer decompress layers, which is noted in node.unpacked
	stock      bool // the snapshotter is the stock one, with the mirror before these registries
}

// node is one machine: a containerd and the peer it uses as a snapshotter.
type node struct {
	t          *testing.T
	opts       options
	version    version
	root       string // everything is below
	dataDir    string
	runDir     string
	namespaces []string
	pprof      int // port
	mirror     int // port; 0 if there is none

	containerd *lab.Containerd
	client     *client.Client
	peer       *testkit.Process
	stock      *testkit.Process // nil unless options.stock

	mu sync.Mutex // mu guards namespaces
}

// newNode starts a node, which is gone without a trace when the test has ended.
func newNode(t *testing.T, v version, opts options) *node {
	t.Helper()
	if opts.plugin == "" {
		opts.plugin = "stargz"
	}
	// Socket paths are short; test directories are not.
	root, err := os.MkdirTemp("", "sk-")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, opts: opts, version: v, root: root, dataDir: filepath.Join(root, "data"), runDir: filepath.Join(root, "run")}
	t.Cleanup(n.remove)
	n.pprof = testkit.FreePort(t)
	if opts.mirror {
		n.mirror = testkit.FreePort(t)
	}
	n.configure()
	n.startPeer()
	if opts.stock {
		n.startStock()
	}
	n.startContainerd()
	return n
}

func (n *node) socket() string { return filepath.Join(n.runDir, "snapshotter.sock") }

// snapshotter is the socket of the snapshotter that containerd uses.
func (n *node) snapshotter() string {
	if n.opts.stock {
		return filepath.Join(n.root, "stock.sock")
	}
	return n.socket()
}

func (n *node) configure() {
	n.t.Helper()
	config := fmt.Sprintf(`dataDir: %s
runDir: %s
pprofPort: %d
log: {format: json, level: debug}
metrics: {server: {port: 0}}
health: {server: {port: 0}}
proxy: {server: {port: %d}}
snapshotter: {enable: true, containerd: %s}
%s
`, n.dataDir, n.runDir, n.pprof, n.mirror, filepath.Join(n.root, "c", "containerd.sock"), n.opts.peer)
	if err := os.WriteFile(filepath.Join(n.root, "peer.yaml"), []byte(config), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) startContainerd() {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), stepLimit)
	defer cancel()
	c, err := lab.StartContainerd(ctx, lab.ContainerdConfig{
		Dir: filepath.Join(n.root, "c"), Unpacker: n.unpacker(), Binary: n.version.binary, Plugins: map[string]string{n.opts.plugin: n.snapshotter()},
		CRI: n.opts.cri, Snapshotter: n.opts.plugin, PauseImage: n.opts.pause, InsecureRegistries: n.opts.registries,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.containerd = c
	if n.client, err = client.New(c.Address()); err != nil {
		n.t.Fatal(err)
	}
}

// unpacker writes a program that decompresses layers with the built binary and takes
// note of it.
func (n *node) unpacker() string {
	n.t.Helper()
	if !n.opts.unpack {
		return ""
	}
	file := filepath.Join(n.root, "unpack")
	script := fmt.Sprintf("#!/bin/sh\necho \"$1 $STREAM_PROCESSOR_MEDIATYPE\" >>%s.log\nexec %s \"$@\"\n", file, binary)
	if err := os.WriteFile(file, []byte(script), 0o755); err != nil {
		n.t.Fatal(err)
	}
	return file
}

// unpacked returns how many layers were decompressed by the built binary.
func (n *node) unpacked() int {
	n.t.Helper()
	p, err := os.ReadFile(filepath.Join(n.root, "unpack.log"))
	if err != nil && !os.IsNotExist(err) {
		n.t.Fatal(err)
	}
	return strings.Count(string(p), "unpack-stream application/vnd.")
}

func (n *node) stopContainerd() {
	n.t.Helper()
	if err := errors.Join(n.client.Close(), n.containerd.Stop()); err != nil {
		n.t.Fatal(err)
	}
	n.client = nil
}

// startPeer starts the peer and waits until it answers.
func (n *node) startPeer() {
	n.t.Helper()
	n.peer = testkit.StartProcess(n.t, n.peerLog(), exec.Command(binary, "peer", "--config", filepath.Join(n.root, "peer.yaml")))
	testkit.Eventually(n.t, stepLimit, "start peer", func() error {
		if n.peer.Ended() {
			n.t.Fatalf("start peer: it ended: %v", n.peer.Wait())
		}
		conn, err := net.Dial("unix", n.socket())
		if err != nil {
			return err
		}
		return conn.Close()
	})
	if n.client != nil {
		// A containerd that found nobody tries again after a pause only; and it
		// asks for nothing that it can answer itself.
		ctx, sn := namespaces.WithNamespace(n.t.Context(), "default"), n.client.SnapshotService(n.opts.plugin)
		eventually(n.t, "containerd finds the peer", func() error {
			if _, err := sn.Prepare(ctx, "probe", ""); err != nil && !errdefs.IsAlreadyExists(err) {
				return err
			}
			return sn.Remove(ctx, "probe")
		})
	}
}

// stopPeer sends the peer a signal and waits for its end, which it returns.
func (n *node) stopPeer(s syscall.Signal) error {
	n.t.Helper()
	if err := n.peer.Signal(s, stepLimit); err != nil {
		n.t.Fatal(err)
	}
	return n.peer.Wait()
}

func (n *node) peerLog() string { return filepath.Join(n.root, "peer.log") }

// logLines returns what the peer has logged so far.
func (n *node) logLines() (lines []map[string]any) {
	p, err := os.ReadFile(n.peerLog())
	if err != nil {
		n.t.Error(err)
	}
	for line := range strings.Lines(string(p)) {
		var fields map[string]any
		if json.Unmarshal([]byte(line), &fields) == nil {
			lines = append(lines, fields)
		}
	}
	return lines
}

// grep returns the lines of the peer's log that contain all of the texts.
func (n *node) grep(texts ...string) (lines []string) {
	p, err := os.ReadFile(n.peerLog())
	if err != nil {
		n.t.Error(err)
	}
	for line := range strings.Lines(string(p)) {
		if !slices.ContainsFunc(texts, func(s string) bool { return !strings.Contains(line, s) }) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// holders returns the processes that hold devices for the peer of this node.
func (n *node) holders() (pids []int) {
	for pid, args := range n.processes() {
		if len(args) > 1 && args[1] == "hold" {
			pids = append(pids, pid)
		}
	}
	return pids
}

// processes returns all that run our binary for this node, by process id.
func (n *node) processes() map[int][]string {
	found := map[int][]string{}
	dirs, _ := filepath.Glob("/proc/[0-9]*") // fails only on a bad pattern
	for _, dir := range dirs {
		p, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !strings.Contains(string(p), n.root+"/") {
			continue
		}
		exe, err := os.Readlink(filepath.Join(dir, "exe"))
		if err == nil && strings.TrimSuffix(exe, " (deleted)") == binary {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			found[pid] = strings.Split(strings.TrimRight(string(p), "\x00"), "\x00")
		}
	}
	return found
}

// killAll kills the peer and whoever holds its devices, which ends all reads.
func (n *node) killAll() {
	for pid := range n.processes() {
		_ = unix.Kill(pid, unix.SIGKILL) // it may have ended
	}
}

// mounts returns the mount points below dir, in the order they were made.
func mounts(t testing.TB, dir string) (points []string) {
	t.Helper()
	p, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(p)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	return points
}

// unmountAll detaches everything below dir.
func unmountAll(t testing.TB, dir string) {
	t.Helper()
	for _, point := range slices.Backward(mounts(t, dir)) {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmount %s: %v", point, err)
		}
	}
}

// remove ends and removes everything, and shows the logs of a failed test.
func (n *node) remove() {
	if n.t.Failed() {
		for _, log := range []string{n.peerLog(), n.stockLog(), filepath.Join(n.root, "c", "containerd.log")} {
			n.t.Logf("the end of %s:\n%s", filepath.Base(log), tail(log, 6000))
		}
	}
	if n.client != nil {
		_ = n.client.Close() // a test may have closed it
	}
	// First what programs may be waiting for, then the programs.
	n.killAll()
	if n.containerd != nil {
		if err := n.containerd.Close(); err != nil {
			n.t.Error(err)
		}
	}
	if n.stock != nil {
		if err := n.stock.Signal(syscall.SIGKILL, stepLimit); err != nil {
			n.t.Error(err)
		}
	}
	if n.peer != nil {
		if err := n.peer.Signal(syscall.SIGKILL, stepLimit); err != nil {
			n.t.Error(err)
		}
	}
	unmountAll(n.t, n.root)
	for _, ns := range n.namespaces {
		for _, pattern := range []string{"/sys/fs/cgroup/*/%s/*", "/sys/fs/cgroup/*/%s", "/sys/fs/cgroup/%s/*", "/sys/fs/cgroup/%s"} {
			left, _ := filepath.Glob(fmt.Sprintf(pattern, ns)) // fails only on a bad pattern
			for _, dir := range left {
				_ = unix.Rmdir(dir) // files in it are no reason to worry
			}
		}
	}
	if err := os.RemoveAll(n.root); err != nil {
		n.t.Error(err)
	}
}

// tail returns the last bytes of a file.
func tail(path string, limit int) string {
	p, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(p[max(0, len(p)-limit):])
}

// usage returns how many bytes on disk, and how many files, are below dir, on
// its own file system.
func usage(dir string) (size, files int64) {
	var top unix.Stat_t
	if unix.Stat(dir, &top) != nil {
		return 0, 0 // it went away meanwhile, as may what is in it
	}
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		var st unix.Stat_t
		switch {
		case err != nil || unix.Lstat(path, &st) != nil:
		case st.Dev != top.Dev && d.IsDir():
			return filepath.SkipDir
		default:
			size += st.Blocks * 512
			files++
		}
		return nil
	})
	return size, files
}

// held returns the files of the data directory, without those that outlive their
// image: its profile, which is written once a start has settled, whenever that is.
func (n *node) held(t *testing.T) (files []string) {
	t.Helper()
	for _, dir := range []string{"blobs", "layers", "metadata", "images", "manifests", "tags", "mounts", "sums", "snapshotter"} {
		err := filepath.WalkDir(filepath.Join(n.dataDir, dir), func(path string, d os.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it went away meanwhile
			}
			if err == nil && d.Type().IsRegular() {
				files = append(files, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// eventually waits for what a step brings about.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	testkit.Eventually(t, stepLimit, what, check)
}
