//go:build e2e

package containerd

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/opencontainers/image-spec/identity"
)

// space is a containerd namespace of its own on a node, which tests share.
type space struct {
	t   *testing.T
	n   *node
	ns  string
	ctx context.Context
}

// space makes a namespace, which is emptied when the test ends.
func (n *node) space(t *testing.T) *space {
	t.Helper()
	s := &space{t: t, n: n, ns: "sk-" + strings.ToLower(rand.Text()[:8])}
	n.mu.Lock()
	n.namespaces = append(n.namespaces, s.ns)
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), testLimit)
	t.Cleanup(cancel)
	s.ctx = namespaces.WithNamespace(ctx, s.ns)
	return s
}

func (s *space) snapshotter() snapshots.Snapshotter {
	return s.n.client.SnapshotService(s.n.opts.plugin)
}

// pullErr pulls as nerdctl does: with the labels that let snapshots be made of
// layers that are not there.
func (s *space) pullErr(ref string) (client.Image, error) {
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: docker.ConfigureDefaultRegistries(docker.WithPlainHTTP(docker.MatchLocalhost)),
	})
	return s.n.client.Pull(s.ctx, ref, client.WithResolver(resolver), client.WithPullUnpack,
		client.WithPullSnapshotter(s.n.opts.plugin),
		client.WithImageHandlerWrapper(snapshotters.AppendInfoHandlerWrapper(ref)))
}

func (s *space) pull(im *testImage) client.Image {
	s.t.Helper()
	img, err := s.pullErr(im.ref)
	if err != nil {
		s.t.Fatalf("pull %s: %v", im.ref, err)
	}
	return img
}

// chain returns the names of an image's snapshots, the lowest first.
func (s *space) chain(img client.Image) (names []string) {
	s.t.Helper()
	diffIDs, err := img.RootFS(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := range diffIDs {
		names = append(names, identity.ChainID(diffIDs[:i+1]).String())
	}
	return names
}

// container is a container, and its task where it has one.
type container struct {
	s    *space
	c    client.Container
	task client.Task
	main *proc // the task's first process
}

func newID(kind string) string { return kind + "-" + strings.ToLower(rand.Text()[:8]) }

// create makes a container with a snapshot of its own.
func (s *space) create(img client.Image, args ...string) *container {
	s.t.Helper()
	id := newID("c")
	c, err := s.n.client.NewContainer(s.ctx, id, client.WithImage(img), client.WithSnapshotter(s.n.opts.plugin),
		client.WithNewSnapshot(id, img), s.spec(img, args))
	if err != nil {
		s.t.Fatalf("create container of %s: %v", img.Name(), err)
	}
	return &container{s: s, c: c}
}

// createOn makes a container that is given its root file system later, and
// that needs no snapshotter.
func (s *space) createOn(args ...string) *container {
	s.t.Helper()
	c, err := s.n.client.NewContainer(s.ctx, newID("c"),
		client.WithNewSpec(oci.WithHostNamespace("network"), oci.WithProcessArgs(args...)))
	if err != nil {
		s.t.Fatalf("create container: %v", err)
	}
	return &container{s: s, c: c}
}

func (s *space) spec(img client.Image, args []string) client.NewContainerOpts {
	opts := []oci.SpecOpts{oci.WithHostNamespace("network"), oci.WithImageConfig(img)}
	if len(args) > 0 {
		opts = append(opts, oci.WithProcessArgs(args...))
	}
	return client.WithNewSpec(opts...)
}

// start starts the container's first process.
func (c *container) start(mounts ...mount.Mount) *container {
	c.s.t.Helper()
	p := &proc{s: c.s, name: "container " + c.c.ID()}
	var opts []client.NewTaskOpts
	if len(mounts) > 0 {
		opts = append(opts, client.WithRootFS(mounts))
	}
	task, err := c.c.NewTask(c.s.ctx, p.io(), opts...)
	if err != nil {
		c.s.t.Fatalf("make task of %s: %v", c.c.ID(), err)
	}
	p.p, c.task, c.main = task, task, p
	p.start()
	return c
}

// run starts a container that reads nothing and waits to be told to.
func (s *space) run(img client.Image) *container {
	s.t.Helper()
	c := s.create(img).start()
	c.main.says("ready")
	return c
}

// once runs a container to its end and returns what it wrote; it must succeed.
func (s *space) once(img client.Image, args ...string) string {
	s.t.Helper()
	c := s.create(img, args...).start()
	out := c.main.output()
	c.remove()
	return out
}

// exec starts another process in a running container.
func (c *container) exec(args ...string) *proc {
	c.s.t.Helper()
	p := &proc{s: c.s, name: strings.Join(args, " ")}
	spec, err := c.c.Spec(c.s.ctx)
	if err != nil {
		c.s.t.Fatal(err)
	}
	process := *spec.Process
	process.Args, process.Terminal = args, false
	if p.p, err = c.task.Exec(c.s.ctx, newID("e"), &process, p.io()); err != nil {
		c.s.t.Fatalf("exec %s: %v", p.name, err)
	}
	p.start()
	return p
}

// stop ends the container's processes; the container stays.
func (c *container) stop() {
	c.s.t.Helper()
	if c.task == nil {
		return
	}
	if err := c.task.Kill(c.s.ctx, syscall.SIGKILL); err != nil && !c.main.ended() {
		c.s.t.Fatalf("kill %s: %v", c.c.ID(), err)
	}
	c.main.wait()
	c.task = nil
}

// remove takes the container away with its snapshot.
func (c *container) remove() {
	c.s.t.Helper()
	c.stop()
	if err := c.c.Delete(c.s.ctx, client.WithSnapshotCleanup); err != nil {
		c.s.t.Fatalf("delete %s: %v", c.c.ID(), err)
	}
}

// removeImage removes an image and waits for the garbage collection that takes
// its snapshots.
func (s *space) removeImage(img client.Image) {
	s.t.Helper()
	if err := s.n.client.ImageService().Delete(s.ctx, img.Name(), images.SynchronousDelete()); err != nil {
		s.t.Fatalf("remove image %s: %v", img.Name(), err)
	}
}

// collect makes containerd collect garbage now, which it does by itself after
// a hundred changes only.
func (s *space) collect(im *testImage) {
	s.t.Helper()
	store := s.n.client.ImageService()
	record, err := store.Get(s.ctx, im.ref)
	if err == nil {
		record.Name = "garbage.test/collect:now"
		_, err = store.Create(s.ctx, record)
	}
	if err == nil {
		err = store.Delete(s.ctx, record.Name, images.SynchronousDelete())
	}
	if err != nil {
		s.t.Fatalf("collect garbage: %v", err)
	}
}

// check reads files in the container and compares them with the image's.
func (c *container) check(im *testImage, paths ...string) {
	c.s.t.Helper()
	im.compare(c.s.t, c.exec(append([]string{"/tool", "sha"}, paths...)...).output(), paths)
}

// compare compares what "tool sha" wrote with the image.
func (im *testImage) compare(t *testing.T, out string, paths []string) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != len(paths) {
		t.Errorf("read %d files of %s: %s", len(paths), im.ref, out)
		return
	}
	for i, path := range paths {
		if want := im.sums[path] + " " + path; lines[i] != want {
			t.Errorf("read %s of %s: %q, want %q", path, im.ref, lines[i], want)
		}
	}
}

// files lists all files of the image whose content is known.
func (im *testImage) files() (paths []string) {
	for path := range im.sums {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	return paths
}

// proc is a process in a container, with what it has written.
type proc struct {
	s      *space
	name   string
	p      client.Process
	exited chan struct{}
	code   uint32 // set before exited is closed
	err    error  // set before exited is closed

	mu  sync.Mutex
	out bytes.Buffer // mu guards
}

func (p *proc) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *proc) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

func (p *proc) io() cio.Creator {
	return cio.NewCreator(cio.WithStreams(nil, p, p), cio.WithFIFODir(p.s.t.TempDir()))
}

// start starts the process and watches for its end.
func (p *proc) start() {
	p.s.t.Helper()
	status, err := p.p.Wait(p.s.ctx)
	if err != nil {
		p.s.t.Fatalf("wait for %s: %v", p.name, err)
	}
	if err := p.p.Start(p.s.ctx); err != nil {
		p.s.t.Fatalf("start %s: %v", p.name, err)
	}
	p.exited = make(chan struct{})
	go func() {
		defer close(p.exited)
		st := <-status
		if p.code, _, p.err = st.Result(); p.err != nil {
			return
		}
		p.p.IO().Wait()
		if _, err := p.p.Delete(p.s.ctx); err != nil {
			p.err = fmt.Errorf("delete process: %w", err)
		}
	}()
}

func (p *proc) ended() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// wait waits for the end of the process and returns its exit code.
func (p *proc) wait() uint32 {
	p.s.t.Helper()
	select {
	case <-p.exited:
	case <-time.After(testLimit / 2):
		p.s.t.Fatalf("%s: does not end; it said: %s", p.name, p.text())
	}
	if p.err != nil {
		p.s.t.Fatalf("%s: %v", p.name, p.err)
	}
	return p.code
}

// output waits for the end of the process, which must be a good one, and
// returns what it has written.
func (p *proc) output() string {
	p.s.t.Helper()
	if code := p.wait(); code != 0 {
		p.s.t.Fatalf("%s: exit code %d: %s", p.name, code, p.text())
	}
	return p.text()
}

// says waits until the process has written something.
func (p *proc) says(text string) {
	p.s.t.Helper()
	eventually(p.s.t, p.name+" says "+text, func() error {
		switch out := p.text(); {
		case strings.Contains(out, text):
			return nil
		case p.ended():
			p.s.t.Fatalf("%s ended: %d, %v: %s", p.name, p.code, p.err, out)
			return nil
		default:
			return errors.New("it said: " + out)
		}
	})
}
