package doctor

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"google.golang.org/grpc"

	"skimmer/internal/install"
	"skimmer/internal/lab"
	"skimmer/internal/testkit"
)

// expect checks one outcome; words are what its text and advice must say.
func expect(t *testing.T, c Check, status Status, words ...string) {
	t.Helper()
	if c.Status != status {
		t.Errorf("%s: %s, want %s: %s", c.Name, c.Status, status, c.Found)
	}
	if c.Status == Fail && c.Found == "" {
		t.Errorf("%s failed and does not say why", c.Name)
	}
	for _, w := range words {
		if !strings.Contains(c.Found+"\n"+c.Advice, w) {
			t.Errorf("%s says %q and %q, without %q", c.Name, c.Found, c.Advice, w)
		}
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMachine(t *testing.T) {
	expect(t, root(0), OK)
	expect(t, root(1000), Fail, "1000", "sudo")
	expect(t, kernelRelease("6.18.44-fc"), OK, "6.18")
	expect(t, kernelRelease("6.12.0-rc1"), OK)
	expect(t, kernelRelease("7.0.0"), OK)
	expect(t, kernelRelease("6.1.0-18-amd64"), Warn, "6.12")
	expect(t, kernelRelease("5.15.0"), Warn)
	expect(t, kernelRelease("strange"), Warn)
	expect(t, fuse(filepath.Join(t.TempDir(), "none")), Fail, "modprobe fuse")
	expect(t, fuse(write(t, "")), OK)
	expect(t, overlay(write(t, "nodev\tproc\nnodev\toverlay\n")), OK)
	expect(t, overlay(write(t, "nodev\tproc\nnodev\toverlayish\n")), Warn, "modprobe overlay")
}

func TestData(t *testing.T) {
	dir := t.TempDir()
	o := Options{DataDir: filepath.Join(dir, "not", "there", "yet")}
	checks := o.data(t.Context())
	expect(t, checks[1], OK)
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	o.DataDir = filepath.Join(write(t, "a file"), "x")
	expect(t, o.data(t.Context())[0], Fail)
	expect(t, sparse(filepath.Join(dir, "none")), Fail, "writable")
}

func TestErofs(t *testing.T) {
	testkit.NeedMount(t)
	o := Options{DataDir: t.TempDir()}
	expect(t, o.erofs(), OK)
}

func TestRegistry(t *testing.T) {
	check := func(o Options) Check { return o.registry(t.Context())[0] }
	open := testkit.NewRegistry(t, testkit.Options{})
	closed := testkit.NewRegistry(t, testkit.Options{Auth: testkit.BasicAuth, Users: map[string]string{"u": "p"}})
	tls := testkit.NewRegistry(t, testkit.Options{TLS: true})
	expect(t, check(Options{}), Skip, "--registry")
	expect(t, check(Options{Registry: open.Host()}), OK, "200")
	expect(t, check(Options{Registry: open.Host() + "/app:v1"}), OK)
	expect(t, check(Options{Registry: closed.Host()}), OK, "credentials")
	expect(t, check(Options{Registry: tls.Host()}), Warn) // plain HTTP to a TLS port: 400
	expect(t, check(Options{Registry: "Not A Host"}), Fail, "host:port")
	expect(t, check(Options{Registry: unused(t)}), Fail, "refused")
	open.Inject(testkit.Fault{On: testkit.Ping, Do: testkit.Status, Status: 503})
	expect(t, check(Options{Registry: open.Host()}), Fail, "503")
}

// unused returns an address nobody listens on.
func unused(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestScheduler(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	check := func(address string) Check {
		o := Options{Scheduler: address}
		return o.scheduler(t.Context())[0]
	}
	expect(t, check(""), Skip)
	expect(t, check(l.Addr().String()), OK)
	expect(t, check(unused(t)), Fail, "refused")
	expect(t, check("127.0.0.1"), Fail, "host:port")
}

func TestCRI(t *testing.T) {
	check := func(config string) Check {
		o := Options{ContainerdConfig: config, Names: []string{"stargz", "skimmer"}}
		return o.configured(t.Context())[0]
	}
	expect(t, check(filepath.Join(t.TempDir(), "none")), Warn, "skimmer install containerd")
	expect(t, check(write(t, "version = 2\n")), Warn)
	expect(t, check(write(t, "disabled_plugins = []\n")), Warn, "version 1")
	stargz := "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"stargz\"\n"
	expect(t, check(write(t, stargz)), Fail, "not among its proxy plugins")
	stargz += "[proxy_plugins.stargz]\ntype = \"snapshot\"\naddress = \"/s.sock\"\n"
	expect(t, check(write(t, stargz)), Fail, "disable_snapshot_annotations")
	config := write(t, stargz)
	change, err := install.Containerd{Config: config, Address: "/s.sock", Version: "1.7.0"}.Install()
	if err != nil {
		t.Fatal(err)
	}
	if err := change.Apply(); err != nil {
		t.Fatal(err)
	}
	expect(t, check(config), OK, "stargz")
	over := write(t, "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"overlayfs\"\n")
	expect(t, check(write(t, strings.Replace(stargz, "\n", "\nimports = [\""+over+"\"]\n", 1))), Warn, "overlayfs")
}

func TestUnpack(t *testing.T) {
	check := func(config string) Check {
		o := Options{ContainerdConfig: config}
		return o.configured(t.Context())[1]
	}
	expect(t, check(filepath.Join(t.TempDir(), "none")), Skip)
	expect(t, check(write(t, "version = 2\n")), Skip, "skimmer install containerd")
	program := write(t, "")
	config := write(t, "version = 2\n")
	change, err := install.Containerd{Config: config, Address: "/s.sock", Version: "1.7.0", Unpacker: program}.Install()
	if err != nil {
		t.Fatal(err)
	}
	if err := change.Apply(); err != nil {
		t.Fatal(err)
	}
	expect(t, check(config), Warn, program, "permission denied", "skimmer install containerd")
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	expect(t, check(config), OK, program)
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	expect(t, check(config), Warn, program, "no such file")
}

// serve runs a snapshotter on a socket.
func serve(t *testing.T, socket string) {
	t.Helper()
	inner, err := native.NewSnapshotter(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(srv, snapshotservice.FromSnapshotter(inner))
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() { srv.Stop(); wg.Wait(); inner.Close() })
}

func TestSnapshotter(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s.sock")
	o := Options{}
	expect(t, o.snapshotter(t.Context())[0], Skip)
	o.Socket = socket
	expect(t, o.snapshotter(t.Context())[0], Fail, "skimmer up")
	serve(t, socket)
	expect(t, o.snapshotter(t.Context())[0], OK)

	// One that takes connections and says nothing holds nobody up.
	o.Socket = filepath.Join(t.TempDir(), "mute.sock")
	l, err := net.Listen("unix", o.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	expect(t, o.snapshotter(ctx)[0], Fail)
}

func TestContainerd(t *testing.T) {
	testkit.NeedMount(t)
	dir := t.TempDir()
	socket, dead := filepath.Join(dir, "s.sock"), filepath.Join(dir, "d.sock")
	o := Options{Containerd: filepath.Join(dir, "none.sock"), Socket: socket, Names: []string{"stargz", "skimmer"}, Timeout: time.Minute}
	none := Options{}
	for _, c := range slices.Concat(none.containerd(t.Context()), none.configured(t.Context())) {
		expect(t, c, Skip)
	}
	checks := o.containerd(t.Context())
	expect(t, checks[0], Fail, "--containerd")
	expect(t, checks[1], Skip)
	if _, err := lab.ContainerdVersion(t.Context(), ""); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("CI must have containerd")
		}
		t.Skip("NOT TESTED: needs containerd")
	}
	serve(t, socket)
	c, err := lab.StartContainerd(t.Context(), lab.ContainerdConfig{
		Dir: filepath.Join(dir, "c"), Plugins: map[string]string{"skimmer": socket, "dead": dead},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	o.Containerd = c.Address()
	checks = o.containerd(t.Context())
	expect(t, checks[0], OK, "version")
	expect(t, checks[1], OK, "skimmer", socket)
	o.Socket = "/other.sock"
	expect(t, o.containerd(t.Context())[1], Warn, "/other.sock")
	o.Names = []string{"dead"}
	expect(t, o.containerd(t.Context())[1], Fail, dead)
	o.Names = []string{"stargz"}
	expect(t, o.containerd(t.Context())[1], Fail, "no snapshotter stargz", "skimmer install containerd")
}

// TestRun asks everything on a machine where nothing of ours is, and wants an
// answer to each.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	checks := Run(t.Context(), Options{
		DataDir: dir, Socket: filepath.Join(dir, "s"), Containerd: filepath.Join(dir, "c"),
		ContainerdConfig: filepath.Join(dir, "f"), Names: []string{"stargz"}, Timeout: time.Second,
	})
	var names []string
	for _, c := range checks {
		names = append(names, c.Name)
		if !slices.Contains([]Status{OK, Warn, Fail, Skip}, c.Status) || c.Found == "" {
			t.Errorf("%+v", c)
		}
	}
	want := []string{"root", "kernel", "erofs", "fuse", "overlayfs", "disk", "sparse", "snapshotter", "containerd", "plugin", "cri", "unpack", "registry", "scheduler"}
	if !slices.Equal(names, want) {
		t.Errorf("checks %q, want %q", names, want)
	}
	if !Failed(checks) || Failed([]Check{{Status: OK}, {Status: Warn}, {Status: Skip}}) {
		t.Error("Failed does not tell failures from others")
	}
}
