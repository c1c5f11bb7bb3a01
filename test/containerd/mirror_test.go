//go:build e2e

package containerd

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"

	"skimmer/internal/lab"
	"skimmer/internal/testkit"
)

// mirrorURL is where the peer's mirror answers.
func (n *node) mirrorURL() string { return fmt.Sprintf("http://127.0.0.1:%d", n.mirror) }

func (n *node) stockLog() string { return filepath.Join(n.root, "stock.log") }

// startStock starts the stock snapshotter behind the mirror.
func (n *node) startStock() {
	n.t.Helper()
	config := ""
	for _, host := range n.opts.registries {
		config += lab.StargzMirror(host, strings.TrimPrefix(n.mirrorURL(), "http://"))
	}
	file := filepath.Join(n.root, "stock.toml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		n.t.Fatal(err)
	}
	n.stock = testkit.StartProcess(n.t, n.stockLog(), exec.Command(testkit.BuildStargz(n.t, "../.."),
		"--root", filepath.Join(n.root, "stock"), "--address", n.snapshotter(), "--config", file))
	testkit.Eventually(n.t, stepLimit, "start the stock snapshotter", func() error {
		if n.stock.Ended() {
			n.t.Fatalf("start the stock snapshotter: it ended: %v", n.stock.Wait())
		}
		conn, err := net.Dial("unix", n.snapshotter())
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// installMirror writes hosts.toml with the built binary, and returns the
// directory.
func (n *node) installMirror(registry string) (dir string) {
	n.t.Helper()
	dir = filepath.Join(n.root, "certs.d")
	out, err := exec.Command(binary, "install", "containerd", "--config", filepath.Join(n.root, "written.toml"),
		"--containerd-version", "2.0.0", "--address", n.socket(), "--hosts-dir", dir,
		"--mirror", n.mirrorURL(), "--registry", registry).CombinedOutput()
	if err != nil {
		n.t.Fatalf("install containerd: %v\n%s", err, out)
	}
	return dir
}

// pullWhole pulls as ctr does with --hosts-dir: every layer, for containerd's
// own snapshotter.
func (s *space) pullWhole(hosts string, im *testImage, user, password string) error {
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(s.ctx, config.HostOptions{
		HostDir:     config.HostDirFromRoot(hosts),
		Credentials: func(string) (string, string, error) { return user, password, nil },
	})})
	_, err := s.n.client.Pull(s.ctx, im.ref, client.WithResolver(resolver), client.WithPullUnpack, client.WithPullSnapshotter("overlayfs"))
	return err
}

// forget removes an image, and what containerd has of it.
func (s *space) forget(im *testImage) {
	s.t.Helper()
	if err := s.n.client.ImageService().Delete(s.ctx, im.ref, images.SynchronousDelete()); err != nil {
		s.t.Fatal(err)
	}
}

const mirrorPassword = "correct-horse-battery-staple"

// A stock containerd pulls whole images through the mirror: each byte leaves
// the registry once, whoever may not read it gets nothing of what is here, and
// without the peer it pulls from the registry.
func TestMirror(t *testing.T) {
	eachVersion(t, func(t *testing.T, v version) {
		r := testkit.NewRegistry(t, testkit.Options{
			Auth: testkit.TokenAuth, Users: map[string]string{"u": mirrorPassword}, Private: []string{"mirror/private"}, Redirect: true,
		})
		n := newNode(t, v, options{mirror: true, unpack: true})
		hosts := n.installMirror("http://" + r.Host())
		builder := testkit.NewRegistry(t, testkit.Options{})
		for _, repo := range []string{"mirror/public", "mirror/private"} {
			im := newImage(t, builder, imageSpec{repo: repo, mid: repo, top: repo, big: 5}).copyTo(t, r, repo)
			s := n.space(t)
			user, password := "", ""
			if repo == "mirror/private" {
				user, password = "u", mirrorPassword
				if err := s.pullWhole(hosts, im, "", ""); err == nil {
					t.Errorf("an anonymous pull of %s succeeded", repo)
				}
			}
			if err := s.pullWhole(hosts, im, user, password); err != nil {
				t.Fatalf("pull %s: %v", repo, err)
			}
			if n.unpacked() == 0 {
				t.Errorf("%s: no layer was decompressed by ours", repo)
			}
			if got, want := im.fetched(), im.size(); got < want || got > want*101/100 {
				t.Errorf("%s: the registry sent %d bytes of an image of %d", repo, got, want)
			}
			before := im.fetched()
			s.forget(im)
			if err := s.pullWhole(hosts, im, user, password); err != nil {
				t.Fatalf("pull %s again: %v", repo, err)
			}
			if got := im.fetched() - before; got != 0 {
				t.Errorf("%s: pulled again, the registry sent %d bytes", repo, got)
			}
			s.forget(im)
			if user != "" {
				if err := s.pullWhole(hosts, im, "", ""); err == nil {
					t.Errorf("an anonymous pull of %s succeeded, because it is here", repo)
				}
				if err := s.pullWhole(hosts, im, "u", "wrong"); err == nil {
					t.Errorf("a pull of %s with a wrong password succeeded", repo)
				}
			}
			if r.Tokens() == nil {
				t.Error("the registry has given out no token")
			}
			for _, secret := range append(r.Tokens(), mirrorPassword, "Bearer ") {
				if n.grep(secret) != nil {
					t.Error("a token, or the password, is in the peer's log")
				}
			}
		}
		// From here on as the client does it, which would show its token to the
		// storage of the registry above: that is the same host to it.
		r = testkit.NewRegistry(t, testkit.Options{})
		hosts = n.installMirror("http://" + r.Host())
		im := newImage(t, r, imageSpec{repo: "mirror/alone", mid: "alone", top: "alone"})
		if err := n.stopPeer(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if err := n.space(t).pullWhole(hosts, im, "", ""); err != nil {
			t.Errorf("pull without the peer: %v", err)
		}
		n.startPeer()
	})
}

// The stock stargz snapshotter mounts and runs images through the mirror, as it
// is configured for Dragonfly.
func TestStockStargz(t *testing.T) {
	testkit.NeedMount(t)
	r := testkit.NewRegistry(t, testkit.Options{})
	v := versions(t)[1]
	n := newNode(t, v, options{mirror: true, stock: true, registries: []string{r.Host()}})
	im := newImage(t, r, imageSpec{repo: "mirror/stock", mid: "stock", top: "stock", big: 20})
	s := n.space(t)
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: func(string) ([]docker.RegistryHost, error) {
			return []docker.RegistryHost{{
				Client: http.DefaultClient, Host: strings.TrimPrefix(n.mirrorURL(), "http://"), Scheme: "http", Path: "/v2",
				Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
				Header:       http.Header{"X-Dragonfly-Registry": {"http://" + r.Host()}},
			}}, nil
		},
	})
	img, err := n.client.Pull(s.ctx, im.ref, client.WithResolver(resolver), client.WithPullUnpack,
		client.WithPullSnapshotter(n.opts.plugin), client.WithImageHandlerWrapper(snapshotters.AppendInfoHandlerWrapper(im.ref)))
	if err != nil {
		t.Fatal(err)
	}
	c := s.run(img)
	c.check(im, topFile, "/data/small-03")
	c.check(im, im.files()...)
	c.remove()
	for _, d := range im.layerDigests() {
		if _, err := n.client.ContentStore().Info(s.ctx, d); !errdefs.IsNotFound(err) {
			t.Errorf("layer %s was downloaded into containerd's content store (%v)", d, err)
		}
		if n.grep("mirror request", d.Encoded(), `"status":206`) == nil {
			t.Errorf("no range of layer %s was asked for at the mirror", d)
		}
	}
	if got := im.fetched(); got > im.size()*101/100 {
		t.Errorf("the registry sent %d bytes of an image of %d", got, im.size())
	}
}
