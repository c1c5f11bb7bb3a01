//go:build e2e

package containerd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"skimmer/internal/testkit"
)

// slow makes the registry accept requests for blobs and not answer them, until
// ClearFaults.
func slow(r *testkit.Registry) { r.Inject(testkit.Fault{On: testkit.BlobGet, Do: testkit.HangHeaders}) }

// asked waits until the registry has been asked for a blob since the last
// ResetStats.
func asked(t *testing.T, r *testkit.Registry) {
	t.Helper()
	eventually(t, "the registry is asked for a blob", func() error {
		if stats := r.Stats(); stats.Requests[testkit.BlobGet] == 0 {
			return fmt.Errorf("it was asked for %v", stats.Requests)
		}
		return nil
	})
}

// TestDaemonGoes takes the peer away in every way there is, while containers
// read, and brings it back.
func TestDaemonGoes(t *testing.T) {
	eachVersion(t, func(t *testing.T, v version) {
		n := newNode(t, v, options{peer: "lazy: {background: false}"})
		r := testkit.NewRegistry(t, testkit.Options{})
		im := newImage(t, r, imageSpec{repo: "life/goes", mid: "goes", top: "goes", big: 40})
		other := newImage(t, r, imageSpec{repo: "life/other", mid: "goes-other", top: "goes-other", big: 8})
		s := n.space(t)
		c := s.run(s.pull(im))
		d := s.run(s.pull(other))
		c.check(im, midFile)
		for _, step := range []struct {
			name   string
			signal syscall.Signal
			c      *container
			im     *testImage
			path   string // still missing
		}{
			{"killed", syscall.SIGKILL, c, im, bigFile},
			{"upgraded", syscall.SIGTERM, d, other, bigFile},
			{"killed again", syscall.SIGKILL, d, other, topFile},
		} {
			t.Run(step.name, func(t *testing.T) {
				r.ResetStats()
				slow(r)
				missing := step.c.exec("/tool", "sha", step.path)
				present := c.exec("/tool", "reread", "150", midFile)
				present.says("reading")
				asked(t, r)
				err := n.stopPeer(step.signal)
				if step.signal == syscall.SIGTERM && err != nil {
					t.Errorf("the peer ended badly when asked to end: %v", err)
				}
				if missing.ended() {
					t.Errorf("a read of missing data ended without the peer: %d, %v: %s", missing.code, missing.err, missing.text())
				}
				r.ClearFaults()
				n.startPeer()
				step.im.compare(t, missing.output(), []string{step.path})
				if out := strings.Fields(present.output()); out[len(out)-1] != im.sums[midFile] {
					t.Errorf("reading present data meanwhile: %v", out)
				}
			})
		}
		if len(n.holders()) != 1 {
			t.Errorf("processes that hold the device: %v, want one", n.holders())
		}
		// What came after all of it is as good as before.
		c.check(im, im.files()...)
		d.check(other, other.files()...)
		more := s.run(s.pull(newImage(t, r, imageSpec{repo: "life/more", mid: "goes-more", top: "goes-more"})))
		more.remove()
	})
}

// TestStoppedPeer stops the peer in good order: mounts stay, what is complete
// is read without it, and later containers of complete images start.
func TestStoppedPeer(t *testing.T) {
	eachVersion(t, func(t *testing.T, v version) {
		n := newNode(t, v, options{peer: "lazy: {backgroundDelay: 50ms}"})
		r := testkit.NewRegistry(t, testkit.Options{})
		im := newImage(t, r, imageSpec{repo: "life/stopped", mid: "stopped", top: "stopped", big: 6})
		s := n.space(t)
		img := s.pull(im)
		early := s.run(img)
		n.expectComplete(im)

		// Its snapshot is made while there is a snapshotter, its task is not.
		ms, err := s.snapshotter().Prepare(s.ctx, "later", s.chain(img)[2])
		if err != nil {
			t.Fatal(err)
		}
		// The device may go once all is complete.
		stacks := filepath.Join(n.dataDir, "stacks")
		before := mounts(t, stacks)
		if err := n.stopPeer(syscall.SIGTERM); err != nil {
			t.Errorf("the peer ended badly when asked to end: %v", err)
		}
		if after := mounts(t, stacks); !slices.Equal(before, after) || len(after) == 0 {
			t.Errorf("mounts before the peer stopped: %v, and after: %v", before, after)
		}
		later := s.createOn("/tool", "pause").start(ms...)
		later.main.says("ready")
		later.check(im, im.files()...) // none of them was ever read before
		later.exec("/tool", "write", "/data/new", "x").output()
		later.stop()

		n.startPeer()
		early.check(im, im.files()...)
		early.remove()
	})
}

// expectComplete waits until everything of an image is on the node's disk.
func (n *node) expectComplete(im *testImage) {
	n.t.Helper()
	eventually(n.t, "all of "+im.ref+" arrives", func() error {
		for _, d := range im.layerDigests() {
			if len(n.grep("layer is complete", d.String())) == 0 {
				return fmt.Errorf("layer %s is not complete", d)
			}
		}
		return nil
	})
}

// TestReboot ends everything as a reboot does, and starts again without the
// registry.
func TestReboot(t *testing.T) {
	eachVersion(t, func(t *testing.T, v version) {
		n := newNode(t, v, options{peer: "lazy: {backgroundDelay: 50ms}"})
		r, poor := testkit.NewRegistry(t, testkit.Options{}), testkit.NewRegistry(t, testkit.Options{})
		full := newImage(t, r, imageSpec{repo: "life/full", mid: "full", top: "full", big: 3})
		part := newImage(t, poor, imageSpec{repo: "life/part", mid: "part", top: "part", big: 12})
		s := n.space(t)
		a := s.run(s.pull(full))
		n.expectComplete(full)
		// The other one is never completed.
		if err := n.stopPeer(syscall.SIGTERM); err != nil {
			t.Errorf("the peer ended badly when asked to end: %v", err)
		}
		n.opts.peer = "lazy: {background: false, ioTimeout: 10s}"
		n.configure()
		n.startPeer()
		b := s.run(s.pull(part))
		b.check(part, "/data/small-00")
		away(poor)
		away(r)
		a.stop()
		b.stop()

		n.stopContainerd()
		_ = n.stopPeer(syscall.SIGKILL) // its end is the point
		n.killAll()
		eventually(t, "all of the peer's processes end", func() error {
			if left := n.processes(); len(left) > 0 {
				return fmt.Errorf("left: %v", left)
			}
			return nil
		})
		unmountAll(t, n.root)
		if err := os.RemoveAll(n.runDir); err != nil {
			t.Fatal(err)
		}
		n.startPeer()
		n.startContainerd()

		a.restart()
		a.check(full, full.files()...)
		images, err := n.client.ListImages(s.ctx)
		if err != nil || len(images) != 2 {
			t.Fatalf("images after the reboot: %v, %v", images, err)
		}
		again, err := n.client.GetImage(s.ctx, full.ref)
		if err != nil {
			t.Fatal(err)
		}
		fresh := s.run(again)
		fresh.check(full, topFile)
		b.restart()
		b.check(part, "/data/small-00")
		if p := b.exec("/tool", "try", bigFile); !strings.HasPrefix(p.output(), "EIO ") {
			t.Errorf("reading what is missing, without a registry: %s", p.text())
		}
		poor.ClearFaults()
		b.check(part, part.files()...)
	})
}

// TestRegistryGoes reads missing data while the registry is away: that fails
// in time and is logged, and nobody else notices.
func TestRegistryGoes(t *testing.T) {
	eachVersion(t, func(t *testing.T, v version) {
		n := newNode(t, v, options{plugin: "skimmer", peer: "lazy: {background: false, ioTimeout: 10s}"})
		r := testkit.NewRegistry(t, testkit.Options{})
		s := n.space(t)
		for name, goAway := range map[string]func(*testkit.Registry){"refuses": away, "hangs": slow} {
			im := newImage(t, r, imageSpec{repo: "life/" + name, mid: name, top: name, big: 4})
			c := s.run(s.pull(im))
			c.check(im, topFile)
			r.ResetStats()
			goAway(r)
			missing := c.exec("/tool", "try", bigFile)
			asked(t, r)
			present := c.exec("/tool", "reread", "5", topFile).output()
			if missing.ended() {
				t.Errorf("%s: reading present data took longer than reading what is missing (%s)", name, missing.text())
			}
			if !strings.Contains(present, im.sums[topFile]) {
				t.Errorf("%s: reading present data: %s", name, present)
			}
			out, ms, _ := strings.Cut(strings.TrimSpace(missing.output()), " ")
			if took, err := strconv.Atoi(ms); err != nil || out != "EIO" || took < 9500 || took > 60_000 {
				t.Errorf("%s: reading missing data ended with %s after %s ms, want EIO after 10 s", name, out, ms)
			}
			n.expectReadError(im, bigFile, 1)
			r.ClearFaults()
			c.check(im, bigFile)
		}
	})
}

// expectReadError checks that the log says which file of which image could not
// be read, and why.
func (n *node) expectReadError(im *testImage, path string, layer int) {
	n.t.Helper()
	eventually(n.t, "the log says that "+path+" could not be read", func() error {
		for _, line := range n.logLines() {
			text := fmt.Sprint(line)
			if line["level"] == "ERROR" && strings.Contains(text, strings.TrimPrefix(path, "/")) &&
				strings.Contains(text, im.manifest.Layers[layer].Digest.Encoded()[:12]) &&
				strings.Contains(text, im.registry.Host()+"/"+im.repo) && fmt.Sprint(line["error"]) != "<nil>" {
				return nil
			}
		}
		return errors.New("no line has level ERROR, image, layer, file and error: " + strings.Join(n.grep(`"ERROR"`), "\n"))
	})
}

// restart starts the container of a task that a reboot has ended.
func (c *container) restart() {
	c.s.t.Helper()
	again, err := c.s.n.client.LoadContainer(c.s.ctx, c.c.ID())
	if err != nil {
		c.s.t.Fatalf("load container: %v", err)
	}
	c.c = again
	c.start()
	c.main.says("ready")
}

// TestHolderKilled kills the holder together with the peer, as the kernel does
// when memory is short: reads end with an error, none hangs, and the next peer
// serves new containers.
func TestHolderKilled(t *testing.T) {
	eachVersion(t, func(t *testing.T, v version) {
		n := newNode(t, v, options{peer: "lazy: {background: false}"})
		r := testkit.NewRegistry(t, testkit.Options{})
		im := newImage(t, r, imageSpec{repo: "life/abrupt", mid: "abrupt", top: "abrupt", big: 4})
		s := n.space(t)
		img := s.pull(im)
		c := s.run(img)
		r.ResetStats()
		slow(r)
		waiting := c.exec("/tool", "try", bigFile)
		asked(t, r)
		n.killAll()
		_ = n.peer.Wait() // it was killed
		if out := waiting.output(); strings.HasPrefix(out, "ok") {
			t.Errorf("reading missing data without anybody to bring it: %s", out)
		}
		c.stop()
		r.ClearFaults()
		n.startPeer()
		d := s.run(img)
		d.check(im, im.files()...)
		d.remove()
	})
}
