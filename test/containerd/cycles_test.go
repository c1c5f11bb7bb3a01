//go:build e2e

package containerd

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"skimmer/internal/testkit"
)

// cycles is how often TestCycles pulls, runs and removes.
const cycles = 200

// TestCycles pulls, runs and removes over and over, and expects that nothing
// of the peer grows.
func TestCycles(t *testing.T) {
	eachVersion(t, func(t *testing.T, v version) {
		n := newNode(t, v, options{plugin: "skimmer"})
		r := testkit.NewRegistry(t, testkit.Options{})
		var ims []*testImage
		for i := range 3 {
			ims = append(ims, newImage(t, r, imageSpec{repo: fmt.Sprintf("cycles/%d", i), mid: fmt.Sprint("cycles", i/2), top: fmt.Sprint(i)}))
		}
		cycle := func(i int) {
			s, im := n.space(t), ims[i%len(ims)]
			img := s.pull(im)
			im.compare(t, s.once(img, "/tool", "sha", topFile, midFile), []string{topFile, midFile})
			s.removeImage(img)
		}
		const warm = 6 // until pools and connections have the size they keep
		for i := range warm {
			cycle(i)
		}
		before := n.settled(t, figures{})
		for i := warm; i < cycles; i++ {
			cycle(i)
		}
		t.Logf("after %d cycles: %v; after %d: %v", warm, before, cycles, n.settled(t, before))
	})
}

// figures are what a process may leak.
type figures struct {
	mounts, descriptors, goroutines int
	files, bytes                    int64
}

// exceeds says what of f is more than it was, within what varies in a process
// at rest.
func (f figures) exceeds(was figures) error {
	if f.mounts > was.mounts || f.descriptors > was.descriptors+4 || f.goroutines > was.goroutines+6 ||
		f.files > was.files+4 || f.bytes > was.bytes+1<<20 {
		return fmt.Errorf("%+v, and was %+v", f, was)
	}
	return nil
}

// settled returns the figures of the peer at rest: once they do not exceed
// those before, or without any, once it has forgotten the images.
func (n *node) settled(t *testing.T, before figures) (f figures) {
	t.Helper()
	eventually(t, "the peer has as much as before", func() error {
		f = n.figures(t)
		if before == (figures{}) {
			// What is left of removed images goes after containerd's collection.
			blobs, err := filepath.Glob(filepath.Join(n.dataDir, "blobs", "*", "*", "*"))
			if err != nil || len(blobs) > 0 {
				return fmt.Errorf("blobs of removed images: %v, %v", blobs, err)
			}
			return nil
		}
		return f.exceeds(before)
	})
	return f
}

func (n *node) figures(t *testing.T) (f figures) {
	t.Helper()
	f.mounts = len(mounts(t, n.dataDir))
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.peer.PID()))
	if err != nil {
		t.Fatal(err)
	}
	f.descriptors = len(fds)
	f.bytes, f.files = usage(n.dataDir)
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/debug/pprof/goroutine?debug=1", n.pprof))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	p, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscanf(string(p), "goroutine profile: total %d", &f.goroutines); err != nil {
		t.Fatalf("read goroutine profile: %v: %.100s", err, p)
	}
	return f
}

// parts says how large the folders of the data directory are.
func (n *node) parts() string {
	var text []string
	for _, name := range []string{"blobs", "layers", "metadata", "snapshotter"} {
		size, _ := usage(filepath.Join(n.dataDir, name))
		text = append(text, fmt.Sprintf("%d MiB in %s", size>>20, name))
	}
	return strings.Join(text, ", ")
}

// TestWaterMarks fills the disk with layers of images that are kept and not
// run: their data goes, what is mounted stays.
func TestWaterMarks(t *testing.T) {
	eachVersion(t, func(t *testing.T, v version) {
		n := newNode(t, v, options{peer: "lazy: {backgroundDelay: 50ms}\nstorage: {highWater: 40MiB, lowWater: 30MiB}"})
		r := testkit.NewRegistry(t, testkit.Options{})
		s := n.space(t)
		mounted := newImage(t, r, imageSpec{repo: "water/mounted", mid: "water", top: "water", big: 6})
		c := s.run(s.pull(mounted))
		n.expectComplete(mounted)
		var idle []*testImage
		for i := range 5 {
			im := newImage(t, r, imageSpec{repo: fmt.Sprint("water/", i), mid: fmt.Sprint("water", i), top: fmt.Sprint(i), big: 6})
			im.compare(t, s.once(s.pull(im), "/tool", "sha", bigFile, midFile), []string{bigFile, midFile})
			idle = append(idle, im)
		}
		// Their mounts go with the next garbage collection. The peer looks every
		// 20 s whether there is too much.
		s.collect(mounted)
		eventually(t, "data of layers that are not mounted is given up", func() error {
			if size, _ := usage(n.dataDir); size > 44<<20 {
				return fmt.Errorf("high water is 40 MiB, and there are %s", n.parts())
			}
			return nil
		})
		away(r)
		c.check(mounted, mounted.files()...)
		r.ClearFaults()
		// What was given up comes back when it is wanted.
		for _, im := range idle[:2] {
			img, err := n.client.GetImage(s.ctx, im.ref)
			if err != nil {
				t.Fatal(err)
			}
			im.compare(t, s.once(img, "/tool", "sha", bigFile, topFile), []string{bigFile, topFile})
		}
		if err := n.stopPeer(syscall.SIGTERM); err != nil {
			t.Errorf("the peer ended badly when asked to end: %v", err)
		}
	})
}
