//go:build e2e

package containerd

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"skimmer/internal/testkit"
)

// nerdctl is the program that scripts/setup builds.
func nerdctl(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(cache, "skimmer", "nerdctl-2.1.2", "nerdctl")
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("find nerdctl 2.1.2 (scripts/setup builds it): %v", err)
	}
	return program
}

// nerdctl runs it against the node's containerd, with the hosts.toml that skimmer wrote,
// and returns what it says on standard output.
func (s *space) nerdctl(hosts string, args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), stepLimit)
	defer cancel()
	root := filepath.Join(s.n.root, "nerdctl")
	cmd := exec.CommandContext(ctx, nerdctl(s.t), append([]string{
		"--address", s.n.containerd.Address(), "--namespace", s.ns, "--hosts-dir", hosts,
		"--data-root", root, "--cni-netconfpath", filepath.Join(root, "net.d"), "--cgroup-manager", "cgroupfs",
	}, args...)...)
	// Neither the machine's configuration nor its user's credentials.
	cmd.Env = append(os.Environ(), "NERDCTL_TOML="+filepath.Join(root, "none"), "DOCKER_CONFIG="+root)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("nerdctl %s: %v\n%s%s", strings.Join(args, " "), err, out, said.String())
	}
	return string(out)
}

// nerdctl, configured as for any other mirror and as for the stock stargz snapshotter,
// pulls whole images through the swarm and lazy ones without their layers.
func TestNerdctl(t *testing.T) {
	eachVersion(t, func(t *testing.T, v version) {
		r := testkit.NewRegistry(t, testkit.Options{})
		n := newNode(t, v, options{mirror: true, unpack: true})
		hosts := n.installMirror("http://" + r.Host())
		whole := newImage(t, r, imageSpec{repo: "nerdctl/whole", mid: "whole", top: "whole", big: 5})
		lazy := newImage(t, r, imageSpec{repo: "nerdctl/lazy", mid: "lazy", top: "lazy", big: 5})

		s := n.space(t)
		s.nerdctl(hosts, "--snapshotter", "overlayfs", "pull", "--quiet", whole.ref)
		if got, want := whole.fetched(), whole.size(); got < want || got > want*101/100 {
			t.Errorf("the registry sent %d bytes of an image of %d", got, want)
		}
		s.nerdctl(hosts, "rmi", "--force", whole.ref)
		before := whole.fetched()
		s.nerdctl(hosts, "--snapshotter", "overlayfs", "pull", "--quiet", whole.ref)
		if got := whole.fetched() - before; got != 0 {
			t.Errorf("pulled again, the registry sent %d bytes", got)
		}

		for _, file := range []string{topFile, "/data/small-03"} {
			said := s.nerdctl(hosts, "--snapshotter", "stargz", "run", "--rm", "--net", "host", "--pull", "missing", lazy.ref, "/tool", "sha", file)
			if want := lazy.sums[file]; !strings.Contains(said, want) {
				t.Errorf("%s has the sum %q in a container, want %s", file, said, want)
			}
		}
		for _, d := range lazy.layerDigests()[1:] { // The lowest is in both images.
			if _, err := n.client.ContentStore().Info(s.ctx, d); !errdefs.IsNotFound(err) {
				t.Errorf("layer %s was downloaded into containerd's content store (%v)", d, err)
			}
		}
		s.expectRemote(lazy)
	})
}
