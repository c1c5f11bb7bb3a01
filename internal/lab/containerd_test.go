package lab

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestParseVersion(t *testing.T) {
	for _, c := range []struct {
		out  string
		want string
	}{
		{"containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n", "1.6.20"},
		{"containerd github.com/containerd/containerd/v2 2.4.2+unknown \n", "2.4.2"},
		{"containerd github.com/containerd/containerd/v2 v2.1.0-rc.1 abcdef\n", "2.1.0"},
		{"containerd github.com/containerd/containerd/v2\n", ""},
		{"", ""},
	} {
		got, err := parseVersion(c.out)
		if got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("parseVersion(%q) = %q, %v; want %q", c.out, got, err, c.want)
		}
	}
}

func TestContainerdConfig(t *testing.T) {
	cfg := ContainerdConfig{
		Dir: "/x", Plugins: map[string]string{"skimmer": "/s.sock"}, CRI: true, Snapshotter: "skimmer", PauseImage: "a:5000/pause:1",
	}
	one, two := cfg.configText(1), cfg.configText(2)
	for _, want := range []string{
		"version = 2\n",
		"[\"proxy_plugins\".\"skimmer\"]\ntype = \"snapshot\"\naddress = \"/s.sock\"\n",
		"restrict_oom_score_adj = true\nsandbox_image = \"a:5000/pause:1\"\n",
		"snapshotter = \"skimmer\"\ndisable_snapshot_annotations = false\n",
	} {
		if !strings.Contains(one, want) {
			t.Errorf("configuration for 1.x lacks %q:\n%s", want, one)
		}
	}
	for _, want := range []string{
		"version = 3\n",
		"[\"proxy_plugins\".\"skimmer\".\"exports\"]\nenable_remote_snapshot_annotations = \"true\"\n",
		"sandbox = \"a:5000/pause:1\"\n",
		"snapshotter = \"skimmer\"\ndisable_snapshot_annotations = false\n",
	} {
		if !strings.Contains(two, want) {
			t.Errorf("configuration for 2.x lacks %q:\n%s", want, two)
		}
	}
	cfg.CRI = false
	if text := cfg.configText(2); strings.Contains(text, "pause") || !strings.Contains(text, `"io.containerd.cri.v1.images"`) {
		t.Errorf("configuration without CRI does not turn it off:\n%s", text)
	}
}

func TestParentOf(t *testing.T) {
	for _, c := range []struct {
		stat string
		want int
		ok   bool
	}{
		{"12 (a b) S 7 12 12 0", 7, true},
		{"12 (evil) S 9) S 7 12", 7, true},
		{"12 (x) S", 0, false},
		{"12 x S 7", 0, false},
		{"", 0, false},
	} {
		if got, ok := parentOf(c.stat); got != c.want || ok != c.ok {
			t.Errorf("parentOf(%q) = %d, %v; want %d, %v", c.stat, got, ok, c.want, c.ok)
		}
	}
}

func TestMountPoints(t *testing.T) {
	got := mountPoints("22 1 0:21 / /proc rw - proc proc rw\n23 1 0:22 / /a\\040b\\134c rw shared:1 - tmpfs x rw\nshort line\n")
	if want := []string{"/proc", `/a b\c`}; !slices.Equal(got, want) {
		t.Errorf("mount points %q, want %q", got, want)
	}
}

func TestShimsOf(t *testing.T) {
	shim := func(pid int, socket string) process {
		return process{pid, 1, []string{"/usr/bin/containerd-shim-runc-v2", "-namespace", "n", "-address", socket}}
	}
	all := []process{
		shim(10, "/ours"), shim(20, "/theirs"),
		{11, 10, []string{"sh"}}, {12, 11, []string{"sleep"}}, {21, 20, []string{"sh"}},
		{30, 1, []string{"grep", "-address", "/ours"}},
	}
	var pids []int
	for _, p := range shimsOf("/ours", all) {
		pids = append(pids, p.pid)
	}
	if want := []int{10, 11, 12}; !slices.Equal(pids, want) {
		t.Errorf("processes %v, want %v", pids, want)
	}
}

func TestKillProcesses(t *testing.T) {
	dir := t.TempDir()
	start := func(args ...string) *exec.Cmd {
		cmd := exec.Command("sh", append([]string{"-c", "read forever"}, args...)...)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = stdin.Close() }) // open, it keeps the program waiting
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	theirs, other := start(filepath.Join(dir, "socket")), start(dir+"-of-others/socket")
	gone := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() { gone <- theirs.Wait() })
	KillProcesses(dir, nil)
	wg.Wait()
	if err := <-gone; err == nil || err.Error() != "signal: killed" {
		t.Errorf("process with a path below: %v", err)
	}
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("process of others: %v", err)
	}
	if err := other.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = other.Wait() // it was killed
}

// TestContainerd starts every version of containerd that the machine has,
// twice in one directory, with and without CRI, leaves a container running and
// expects Close to clean up.
func TestContainerd(t *testing.T) {
	for _, binary := range containerds(t) {
		t.Run(filepath.Base(filepath.Dir(binary)), func(t *testing.T) {
			dir, err := os.MkdirTemp("", "lab") // t's own would be too long a path for a socket
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := os.RemoveAll(dir); err != nil {
					t.Error(err)
				}
			})
			cfg := ContainerdConfig{
				Dir: filepath.Join(dir, "c"), Binary: binary, CRI: true, Snapshotter: "native",
				Plugins:            map[string]string{"skimmer": filepath.Join(dir, "nobody.sock")},
				InsecureRegistries: []string{"127.0.0.1:5000"},
			}
			c, err := StartContainerd(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Stop(); err != nil {
				t.Errorf("stop: %v", err)
			}
			if c, err = StartContainerd(t.Context(), cfg); err != nil {
				t.Fatalf("start again: %v", err)
			}
			out, err := c.ctr(t.Context(), "plugins", "ls")
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for line := range strings.Lines(out) {
				if strings.Contains(line, "error") && (strings.Contains(line, "cri") || strings.Contains(line, "skimmer")) {
					t.Errorf("plugin has failed: %s", line)
				}
			}
			if !strings.Contains(out, "skimmer") {
				t.Errorf("no proxy plugin in\n%s", out)
			}
			runForever(t, c, dir)
			for range 2 {
				if err := c.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			}
			if left := shimsOf(c.Address(), processes()); len(left) != 0 {
				t.Errorf("processes left: %v", left)
			}
			data, err := os.ReadFile("/proc/self/mountinfo")
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(data), dir) {
				t.Errorf("mounts left below %s:\n%s", dir, data)
			}
		})
	}
}

// ctr runs the client that came with the same containerd, if there is one.
func (c *Containerd) ctr(ctx context.Context, args ...string) (string, error) {
	ctr := filepath.Join(filepath.Dir(c.cfg.Binary), "ctr")
	out, err := exec.CommandContext(ctx, ctr, append([]string{"--address", c.Address()}, args...)...).CombinedOutput()
	return string(out), err
}

// runForever starts a container that ends only when it is killed.
func runForever(t *testing.T, c *Containerd, dir string) {
	t.Helper()
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(filepath.Join(root, "usr"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"bin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+name, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	out, err := c.ctr(t.Context(), "run", "--detach", "--mount", "type=bind,src=/usr,dst=/usr,options=rbind:ro",
		"--rootfs", root, "forever", "/usr/bin/sleep", "1000000")
	if err != nil {
		t.Fatalf("run a container: %v: %s", err, out)
	}
	if len(shimsOf(c.Address(), processes())) < 2 {
		t.Fatalf("no shim and container after: %s", out)
	}
}

func TestContainerdFails(t *testing.T) {
	binary := containerds(t)[0]
	dir := t.TempDir()
	_, err := StartContainerd(t.Context(), ContainerdConfig{Dir: filepath.Join(dir, strings.Repeat("x", 90)), Binary: binary})
	if err == nil || !strings.Contains(err.Error(), "107") {
		t.Errorf("long path: %v", err)
	}
	// A root that is a file is something containerd finds itself.
	short, err := os.MkdirTemp("", "lab")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(short)
	if err := os.WriteFile(filepath.Join(short, "root"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = StartContainerd(t.Context(), ContainerdConfig{Dir: short, Binary: binary})
	if err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Errorf("root is a file: %v", err)
	}
}

// containerds returns the programs of the versions that scripts/setup installs.
func containerds(t *testing.T) (found []string) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("containerd needs root, and CI must have it")
		}
		t.Skip("NOT TESTED: containerd needs root")
	}
	if path, err := exec.LookPath("containerd"); err == nil {
		found = append(found, path)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	newer, err := filepath.Glob(filepath.Join(cache, "skimmer", "containerd-*", "containerd"))
	if err != nil {
		t.Fatal(err)
	}
	found = append(found, newer...)
	if len(found) == 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("containerd is not installed, and CI must have it: scripts/setup")
		}
		t.Skip("NOT TESTED: containerd is not installed: scripts/setup")
	}
	return found
}
