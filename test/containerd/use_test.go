//go:build e2e

package containerd

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"skimmer/internal/testkit"
)

// TestUse is what people do with images and containers, side by side on one
// node. Nothing is fetched in the background, so that what is fetched was
// asked for.
func TestUse(t *testing.T) {
	eachVersion(t, func(t *testing.T, v version) {
		n := newNode(t, v, options{peer: "lazy: {background: false}"})
		// In a group, so that the node outlives its parallel members. So do their
		// registries: the tests share the lowest layer of their images.
		t.Run("node", func(t *testing.T) {
			for name, test := range map[string]func(*testing.T, *node){
				"pull": testPull, "commit": testCommit, "together": testPullTogether, "snapshots": testSnapshots,
				"mixed": testMixed, "no-ranges": testNoRanges, "wrong-toc": testWrongTOC,
			} {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					test(t, n)
				})
			}
		})
		for _, line := range n.logLines() {
			if line["level"] == "ERROR" && !strings.Contains(fmt.Sprint(line), "wrong-toc") {
				t.Errorf("the peer logged an error: %v", line)
			}
		}
	})
}

// testPull pulls, runs and executes, and counts what the registry was asked
// for meanwhile.
func testPull(t *testing.T, n *node) {
	r := testkit.NewRegistry(n.t, testkit.Options{})
	im := newImage(t, r, imageSpec{repo: "use/pull", mid: "pull", top: "pull", big: 20})
	s := n.space(t)
	img := s.pull(im)
	if got := im.fetched(); got > im.size()/8 {
		t.Errorf("pulling fetched %d bytes of %d", got, im.size())
	}
	for _, d := range im.layerDigests() {
		if _, err := n.client.ContentStore().Info(s.ctx, d); !errdefs.IsNotFound(err) {
			t.Errorf("layer %s was downloaded into containerd's content store (%v)", d, err)
		}
	}
	s.expectRemote(im)

	c := s.run(img)
	running := im.fetched()
	c.check(im, topFile, "/data/small-03")
	if got := im.fetched() - running; got > 8<<20 {
		t.Errorf("reading 2 MiB fetched %d bytes", got)
	}
	if out := c.exec("/tool", "cat", "/etc/name").output(); out != "pull\n" {
		t.Errorf("/etc/name says %q", out)
	}
	if p := c.exec("/tool", "cat", "/base/gone"); p.wait() != 1 || !strings.Contains(p.text(), "no such file") {
		t.Errorf("a file that the top layer deletes is there: %s", p.text())
	}
	c.check(im, im.files()...)
	c.exec("/tool", "write", "/data/new", "mine").output()
	c.exec("/tool", "remove", topFile).output()
	if out := c.exec("/tool", "cat", "/data/new").output(); out != "mine" {
		t.Errorf("read back what was written: %q", out)
	}
	other := s.run(img)
	other.check(im, topFile)
	if got := im.fetched(); got > im.size()*9/8 {
		t.Errorf("two containers made the registry send %d bytes of an image of %d", got, im.size())
	}
	c.remove()
	other.remove()
}

// expectRemote checks that every layer was prepared as a remote snapshot, and
// that the log has the keys people look for.
func (s *space) expectRemote(im *testImage) {
	s.t.Helper()
	found := map[string]bool{}
	for _, line := range s.n.logLines() {
		if line["msg"] == "prepared remote snapshot" && line["remote-snapshot-prepared"] == "true" &&
			strings.HasPrefix(fmt.Sprint(line["key"]), s.ns+"/") {
			if _, ok := line["parent"]; !ok {
				s.t.Errorf("log line without a parent: %v", line)
			}
			found[fmt.Sprint(line["layer"])] = true
		}
	}
	for _, d := range im.layerDigests() {
		if !found[d.String()] {
			s.t.Errorf("no line of the log says that layer %s was prepared; lines: %v", d, found)
		}
	}
}

// testCommit makes an image of a changed container, and runs it.
func testCommit(t *testing.T, n *node) {
	r := testkit.NewRegistry(n.t, testkit.Options{})
	im := newImage(t, r, imageSpec{repo: "use/commit", mid: "commit", top: "commit"})
	s := n.space(t)
	img := s.pull(im)
	c := s.run(img)
	c.exec("/tool", "write", "/data/new", "committed").output()
	c.exec("/tool", "remove", topFile).output()
	made := s.commit(img, c)
	c.remove()
	d := s.run(made)
	if out := d.exec("/tool", "cat", "/data/new").output(); out != "committed" {
		t.Errorf("the new image has %q", out)
	}
	if p := d.exec("/tool", "cat", topFile); p.wait() != 1 {
		t.Errorf("a file deleted before the commit is there")
	}
	d.check(im, midFile, lowFile)
	d.remove()
}

// commit makes an image of an image and what a container changed.
func (s *space) commit(base client.Image, c *container) client.Image {
	s.t.Helper()
	ctx, done, err := s.n.client.WithLease(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	defer done(s.ctx)
	store := s.n.client.ContentStore()
	layer, err := rootfs.CreateDiff(ctx, c.c.ID(), s.snapshotter(), s.n.client.DiffService())
	if err != nil {
		s.t.Fatalf("diff container: %v", err)
	}
	info, err := store.Info(ctx, layer.Digest)
	if err != nil {
		s.t.Fatal(err)
	}
	manifest, err := images.Manifest(ctx, store, base.Target(), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	var config ocispec.Image
	p, err := content.ReadBlob(ctx, store, manifest.Config)
	if err == nil {
		err = json.Unmarshal(p, &config)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.Digest(info.Labels["containerd.io/uncompressed"]))
	manifest.Layers = append(manifest.Layers, layer)
	write := func(mediaType string, v any, labels map[string]string) ocispec.Descriptor {
		p, err := json.Marshal(v)
		if err != nil {
			s.t.Fatal(err)
		}
		desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(p), Size: int64(len(p))}
		if err := content.WriteBlob(ctx, store, desc.Digest.String(), bytes.NewReader(p), desc, content.WithLabels(labels)); err != nil {
			s.t.Fatal(err)
		}
		return desc
	}
	chain := digest.FromString(strings.Join(s.chain(base), " "))
	manifest.Config = write(ocispec.MediaTypeImageConfig, config, map[string]string{
		"containerd.io/gc.ref.snapshot." + s.n.opts.plugin: s.chain(base)[len(config.RootFS.DiffIDs)-2]})
	target := write(ocispec.MediaTypeImageManifest, manifest, map[string]string{
		"containerd.io/gc.ref.content.config": manifest.Config.Digest.String(),
		"containerd.io/gc.ref.content.l.0":    layer.Digest.String(),
	})
	name := "committed.test/" + chain.Encoded()[:12] + ":v1"
	if _, err := s.n.client.ImageService().Create(ctx, images.Image{Name: name, Target: target}); err != nil {
		s.t.Fatal(err)
	}
	img, err := s.n.client.GetImage(ctx, name)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := img.Unpack(ctx, s.n.opts.plugin); err != nil {
		s.t.Fatalf("unpack the new image: %v", err)
	}
	return img
}

// testPullTogether pulls images that share layers at the same time, in one
// namespace and in another.
func testPullTogether(t *testing.T, n *node) {
	r := testkit.NewRegistry(n.t, testkit.Options{})
	var ims []*testImage
	for _, top := range []string{"one", "two", "three"} {
		ims = append(ims, newImage(t, r, imageSpec{repo: "use/" + top, mid: "together", top: top, big: 8}))
	}
	if ims[0].manifest.Layers[1].Digest != ims[1].manifest.Layers[1].Digest {
		t.Fatal("the images do not share a layer")
	}
	spaces := []*space{n.space(t), n.space(t)}
	var g errgroup.Group
	for _, s := range spaces {
		for _, im := range ims {
			g.Go(func() error {
				_, err := s.pullErr(im.ref)
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		t.Fatalf("pull together: %v", err)
	}
	shared := ims[0].manifest.Layers[1]
	if got := r.Stats().Bytes[shared.Digest]; got > shared.Size/4 {
		t.Errorf("pulling a shared layer of %d bytes three times in two namespaces fetched %d", shared.Size, got)
	}
	var running []*container
	for _, s := range spaces {
		for _, im := range ims {
			img, err := n.client.GetImage(s.ctx, im.ref)
			if err != nil {
				t.Fatal(err)
			}
			running = append(running, s.run(img))
		}
	}
	var reads []*proc
	for i, c := range running {
		reads = append(reads, c.exec("/tool", "sha", bigFile, topFile))
		defer func() { ims[i%len(ims)].compare(t, reads[i].output(), []string{bigFile, topFile}) }()
	}
	for _, p := range reads {
		p.wait()
	}
	if got := r.Stats().Bytes[shared.Digest]; got > shared.Size*5/4 {
		t.Errorf("a shared layer of %d bytes was fetched more than once: %d bytes", shared.Size, got)
	}
}

// testSnapshots uses the snapshots API as containerd's own clients do.
func testSnapshots(t *testing.T, n *node) {
	r := testkit.NewRegistry(n.t, testkit.Options{})
	im := newImage(t, r, imageSpec{repo: "use/snapshots", mid: "snapshots", top: "snapshots", big: 4})
	s := n.space(t)
	img := s.pull(im)
	sn, chain := s.snapshotter(), s.chain(img)
	seen := map[string]snapshots.Info{}
	err := sn.Walk(s.ctx, func(_ context.Context, info snapshots.Info) error {
		seen[info.Name] = info
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range chain {
		info, ok := seen[name]
		if !ok || info.Kind != snapshots.KindCommitted || i > 0 && info.Parent != chain[i-1] {
			t.Errorf("snapshot %d of the image is %+v, its parent should be %v", i, info, chain[max(0, i-1)])
		}
	}
	if len(seen) != len(chain) {
		t.Errorf("%d snapshots after a pull of %d layers: %v", len(seen), len(chain), seen)
	}

	top := chain[len(chain)-1]
	before, err := sn.Usage(s.ctx, chain[1])
	if err != nil {
		t.Fatal(err)
	}
	ms, err := sn.View(s.ctx, "view", top)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := mount.All(ms, root); err != nil {
		t.Fatalf("mount the view %v: %v", ms, err)
	}
	defer func() {
		if err := mount.UnmountAll(root, 0); err != nil {
			t.Error(err)
		}
	}()
	p, err := os.ReadFile(filepath.Join(root, midFile))
	if err != nil || digest.FromBytes(p).Encoded() != im.sums[midFile] {
		t.Errorf("%s of the view: %d bytes, %v", midFile, len(p), err)
	}
	if err := os.WriteFile(filepath.Join(root, "data/x"), nil, 0o644); err == nil {
		t.Error("a view can be written to")
	}
	after, err := sn.Usage(s.ctx, chain[1])
	if err != nil || after.Size < before.Size+4<<20 {
		t.Errorf("usage of the middle layer was %d and is %d after 4 MiB of it were read (%v)", before.Size, after.Size, err)
	}

	c := s.run(img)
	c.exec("/tool", "fill", "/data/filled", "1048576").output()
	if u, err := sn.Usage(s.ctx, c.c.ID()); err != nil || u.Size < 1<<20 || u.Size > 2<<20 {
		t.Errorf("usage of a container that wrote 1 MiB: %+v, %v", u, err)
	}
	if err := sn.Remove(s.ctx, chain[0]); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("remove a snapshot that others stand on: %v", err)
	}
	if _, err := sn.Prepare(s.ctx, c.c.ID(), top); !errdefs.IsAlreadyExists(err) {
		t.Errorf("prepare a key that is taken: %v", err)
	}
	c.remove()
	if _, err := sn.Stat(s.ctx, c.c.ID()); !errdefs.IsNotFound(err) {
		t.Errorf("the removed container's snapshot: %v", err)
	}
	// containerd passes Cleanup on to no client of its own: it is for its
	// garbage collector.
	direct := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(dial(t, n.socket())), n.opts.plugin)
	if err := direct.(snapshots.Cleaner).Cleanup(s.ctx); err != nil {
		t.Errorf("clean up: %v", err)
	}
}

// testMixed pulls an image with an ordinary layer among lazy ones.
func testMixed(t *testing.T, n *node) {
	r := testkit.NewRegistry(n.t, testkit.Options{})
	im := newImage(t, r, imageSpec{repo: "use/mixed", mid: "mixed", top: "mixed", big: 2})
	im.usePlain(t, 1)
	s := n.space(t)
	img := s.pull(im)
	s.expectFallback(im, 1)
	// From the first layer on that has to be unpacked, containerd downloads all
	// that are above, wanted or not; so says core/unpack.
	low, mid := im.manifest.Layers[0], im.manifest.Layers[1]
	if _, err := n.client.ContentStore().Info(s.ctx, low.Digest); !errdefs.IsNotFound(err) {
		t.Errorf("the layer below the ordinary one was downloaded (%v)", err)
	}
	if got := r.Stats().Bytes[mid.Digest]; got < mid.Size {
		t.Errorf("%d bytes were sent of the ordinary layer, which has %d", got, mid.Size)
	}
	for _, i := range []int{0, 2} {
		if len(n.grep("prepared remote snapshot", s.ns+"/", im.manifest.Layers[i].Digest.String())) != 1 {
			t.Errorf("layer %d is not mounted lazily", i)
		}
	}
	c := s.run(img)
	c.check(im, im.files()...)
	if p := c.exec("/tool", "cat", "/base/gone"); p.wait() != 1 {
		t.Error("a file that the top layer deletes from the lowest one is there")
	}
	c.remove()
}

// expectFallback checks that the log says once, with the reason, that a layer
// could not be mounted lazily.
func (s *space) expectFallback(im *testImage, layer int) {
	s.t.Helper()
	var found []map[string]any
	for _, line := range s.n.logLines() {
		if line["remote-snapshot-prepared"] == "false" && strings.HasPrefix(fmt.Sprint(line["key"]), s.ns+"/") &&
			line["layer"] == im.manifest.Layers[layer].Digest.String() {
			found = append(found, line)
		}
	}
	if len(found) != 1 {
		s.t.Errorf("%d lines of the log say that layer %d of %s is unpacked, want 1: %v", len(found), layer, im.ref, found)
		return
	}
	if reason := fmt.Sprint(found[0]["error"]); len(reason) < 10 || strings.Contains(reason, "\n") {
		s.t.Errorf("the log gives the reason %q", reason)
	}
	s.t.Logf("layer %d: %v", layer, found[0]["error"])
}

// testNoRanges pulls from a registry that always sends whole blobs.
func testNoRanges(t *testing.T, n *node) {
	r := testkit.NewRegistry(n.t, testkit.Options{})
	im := newImage(t, r, imageSpec{repo: "use/no-ranges", mid: "no-ranges", top: "no-ranges", big: 3})
	r.Inject(testkit.Fault{On: testkit.BlobGet, Do: testkit.NoRanges})
	s := n.space(t)
	img := s.pull(im)
	for i := 1; i < 3; i++ { // other tests may have brought the lowest
		s.expectFallback(im, i)
	}
	c := s.run(img)
	c.check(im, im.files()...)
	c.remove()
}

// testWrongTOC pulls an image whose manifest promises another TOC than a layer
// has.
func testWrongTOC(t *testing.T, n *node) {
	const annotation = "containerd.io/snapshot/stargz/toc.digest"
	r := testkit.NewRegistry(n.t, testkit.Options{})
	im := newImage(t, r, imageSpec{repo: "use/wrong-toc", mid: "wrong-toc", top: "wrong-toc"})
	if im.manifest.Layers[1].Annotations[annotation] == "" {
		t.Fatal("the converter writes no TOC digest")
	}
	im.manifest.Layers[1].Annotations[annotation] = digest.FromString("another").String()
	im.store(t)
	s := n.space(t)
	img := s.pull(im)
	s.expectFallback(im, 1)
	c := s.run(img)
	c.check(im, im.files()...)
	c.remove()
}

// TestRemove removes images and expects the disk to be given back.
func TestRemove(t *testing.T) {
	eachVersion(t, func(t *testing.T, v version) {
		n := newNode(t, v, options{peer: "lazy: {background: false}"})
		r := testkit.NewRegistry(t, testkit.Options{})
		stay := newImage(t, r, imageSpec{repo: "remove/stay", mid: "remove", top: "stay", big: 1})
		s := n.space(t)
		kept := s.run(s.pull(stay))
		kept.check(stay, stay.files()...) // the lowest layer, which both have, is here
		before, _ := usage(n.dataDir)
		held := n.held(t)

		im := newImage(t, r, imageSpec{repo: "remove/go", mid: "remove-go", top: "go", big: 16})
		img := s.pull(im)
		c := s.run(img)
		c.check(im, im.files()...)
		if got, _ := usage(n.dataDir); got < before+16<<20 {
			t.Errorf("data directory has %d bytes with 16 MiB more than when it had %d", got, before)
		}
		c.remove()
		s.removeImage(img)
		eventually(t, "the data directory shrinks", func() error {
			size, _ := usage(n.dataDir)
			if now := n.held(t); size > before+1<<20 || len(now) > len(held) {
				more := slices.DeleteFunc(now, func(path string) bool { return slices.Contains(held, path) })
				return fmt.Errorf("it has %d bytes, before the image it had %d, and files that were not there: %q", size, before, more)
			}
			return nil
		})
		kept.check(stay, stay.files()...)

		// What was removed can be pulled again.
		again := s.run(s.pull(im))
		again.check(im, topFile, midFile)
		if len(mounts(t, n.dataDir)) == 0 {
			t.Error("nothing is mounted below the data directory while containers run")
		}
	})
}
