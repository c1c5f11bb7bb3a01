//go:build e2e

package docker

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"skimmer/internal/lab"
	"skimmer/internal/testkit"
)

// stepLimit is how long a start or a stop may take, ten times what is usual on
// a slow machine.
const stepLimit = 2 * time.Minute

// node is one machine: a peer, and a dockerd that shares nothing with another
// one. All fields are constant after newNode.
type node struct {
	t    *testing.T
	root string // everything is below
	port int    // of mirror and proxy
	peer *testkit.Process

	containerd *lab.Containerd
	dockerd    *testkit.Process
	certs      string // dockerd's /etc/docker/certs.d, after ownCerts
}

// newNode starts a peer with more lines of configuration. It is gone without a
// trace when the test has ended.
func newNode(t *testing.T, config string) *node {
	t.Helper()
	// Socket paths are short; test directories are not.
	root, err := os.MkdirTemp("", "sk-")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, root: root, port: testkit.FreePort(t)}
	t.Cleanup(n.remove)
	config = fmt.Sprintf(`dataDir: %s
runDir: %s
pprofPort: 0
log: {format: json, level: debug}
metrics: {server: {port: 0}}
health: {server: {port: 0}}
snapshotter: {enable: false}
%s
`, n.path("data"), n.path("run"), strings.ReplaceAll(config, "PORT", fmt.Sprint(n.port)))
	if err := os.WriteFile(n.path("peer.yaml"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	n.peer = n.start("peer", nil, binary, "peer", "--config", n.path("peer.yaml"))
	n.eventually("start peer", n.peer, func() error {
		conn, err := net.Dial("tcp", strings.TrimPrefix(n.url(), "http://"))
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return n
}

func (n *node) path(name string) string { return filepath.Join(n.root, name) }

// url is where mirror and proxy answer.
func (n *node) url() string { return fmt.Sprintf("http://127.0.0.1:%d", n.port) }

// startDocker starts dockerd with a daemon.json and an environment. Its
// containerd is one of ours: left alone, it would use the machine's.
func (n *node) startDocker(daemon map[string]any, env ...string) {
	n.t.Helper()
	program, err := exec.LookPath("dockerd")
	if err != nil {
		n.t.Fatalf("find dockerd (scripts/setup installs it): %v", err)
	}
	if n.containerd, err = lab.StartContainerd(n.t.Context(), lab.ContainerdConfig{Dir: n.path("c")}); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(n.path("daemon.json"), encode(n.t, daemon), 0o644); err != nil {
		n.t.Fatal(err)
	}
	command := append(n.inNamespace(), program)
	n.dockerd = n.start("dockerd", env, command[0], append(command[1:], "--config-file", n.path("daemon.json"), "--data-root", n.path("docker"),
		"--exec-root", n.path("exec"), "--pidfile", n.path("pid"), "--host", n.host(), "--containerd", n.containerd.Address(),
		"--cgroup-parent", "/"+filepath.Base(n.root), "--bridge=none", "--iptables=false", "--ip-forward=false")...)
	n.eventually("start dockerd", n.dockerd, func() error {
		_, err := n.docker("", "version")
		return err
	})
}

// ownCerts gives the dockerd that is started next a /etc/docker/certs.d of its
// own, which cannot be chosen otherwise. It sees its containers' file systems
// and this process does not, so it can pull, and not run, what it has pulled.
func (n *node) ownCerts() {
	n.t.Helper()
	n.certs = n.path("certs.d")
	for _, dir := range []string{n.certs, n.path("etc/docker/certs.d"), n.path("etc-work")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			n.t.Fatal(err)
		}
	}
}

// inNamespace returns the command that starts dockerd: nothing, or one that
// gives it a mount namespace with certs in its place. What is written to /etc
// there does not reach this machine's.
func (n *node) inNamespace() []string {
	if n.certs == "" {
		return nil
	}
	const script = `mount -t overlay -o "lowerdir=/etc,upperdir=$1,workdir=$2" etc /etc && mount --bind "$3" /etc/docker/certs.d && shift 3 && exec "$@"`
	return []string{"unshare", "--mount", "sh", "-c", script, "sh", n.path("etc"), n.path("etc-work"), n.certs}
}

func (n *node) host() string { return "unix://" + n.path("docker.sock") }

// docker runs docker with the credentials of a user of the registries, "name:password"
// or "", and returns what it printed.
func (n *node) docker(user string, args ...string) (string, error) {
	n.t.Helper()
	auths := map[string]any{}
	if user != "" {
		for _, registry := range []string{"https://index.docker.io/v1/", "registry.test"} {
			auths[registry] = map[string][]byte{"auth": []byte(user)} // base64 by its type
		}
	}
	config := encode(n.t, map[string]any{"auths": auths})
	dir, err := os.MkdirTemp(n.root, "config-")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(n.t.Context(), "docker", append([]string{"--config", dir, "--host", n.host()}, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("docker %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// mustDocker is docker as nobody, which has to succeed.
func (n *node) mustDocker(args ...string) string {
	n.t.Helper()
	out, err := n.docker("", args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// log returns what a program has logged so far.
func (n *node) log(name string) string {
	n.t.Helper()
	p, err := os.ReadFile(n.path(name + ".log"))
	if err != nil {
		n.t.Fatal(err)
	}
	return string(p)
}

// remove ends and removes everything, and shows the logs of a failed test.
func (n *node) remove() {
	if n.t.Failed() {
		for _, name := range []string{"peer", "dockerd"} {
			if p, err := os.ReadFile(n.path(name + ".log")); err == nil {
				n.t.Logf("the end of %s's log:\n%s", name, p[max(0, len(p)-6000):])
			}
		}
	}
	n.stop(n.dockerd)
	if n.containerd != nil {
		if err := n.containerd.Close(); err != nil {
			n.t.Error(err)
		}
	}
	n.stop(n.peer)
	if err := lab.UnmountBelow(n.root); err != nil {
		n.t.Error(err)
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(n.root)) // fails only on a bad pattern
	for _, dir := range append(groups, "/sys/fs/cgroup/"+filepath.Base(n.root)) {
		if err := syscall.Rmdir(dir); err != nil && !errors.Is(err, syscall.ENOENT) {
			n.t.Errorf("remove %s: %v", dir, err)
		}
	}
	if err := os.RemoveAll(n.root); err != nil {
		n.t.Error(err)
	}
}

// start starts a program with a log of its own.
func (n *node) start(log string, env []string, name string, args ...string) *testkit.Process {
	n.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	return testkit.StartProcess(n.t, n.path(log+".log"), cmd)
}

// stop ends a program, by force if it must be.
func (n *node) stop(p *testkit.Process) {
	if p == nil {
		return
	}
	if err := p.Signal(syscall.SIGTERM, stepLimit); err != nil {
		n.t.Error(errors.Join(err, p.Signal(syscall.SIGKILL, stepLimit)))
	}
}

// eventually waits until a program does what check asks for.
func (n *node) eventually(what string, p *testkit.Process, check func() error) {
	n.t.Helper()
	testkit.Eventually(n.t, stepLimit, what, func() error {
		if p.Ended() {
			n.t.Fatalf("%s: it ended: %v", what, p.Wait())
		}
		return check()
	})
}
