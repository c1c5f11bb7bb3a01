//go:build e2e

package containerd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"skimmer/internal/image/profile"
	"skimmer/internal/image/trace"
	"skimmer/internal/testkit"
)

// clusterScheduler is a running scheduler.
type clusterScheduler struct {
	t             *testing.T
	port, metrics int
}

// startScheduler runs a scheduler until the test ends.
func startScheduler(t *testing.T) *clusterScheduler {
	t.Helper()
	s := &clusterScheduler{t: t, port: testkit.FreePort(t), metrics: testkit.FreePort(t)}
	dir := t.TempDir()
	config, log := filepath.Join(dir, "scheduler.yaml"), filepath.Join(dir, "scheduler.log")
	text := fmt.Sprintf("server: {ip: 127.0.0.1, port: %d}\nmetrics: {server: {ip: 127.0.0.1, port: %d}}\nhealth: {server: {port: 0}}\n", s.port, s.metrics)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := testkit.StartProcess(t, log, exec.Command(binary, "scheduler", "--config", config))
	t.Cleanup(func() {
		if err := p.Signal(syscall.SIGKILL, stepLimit); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the end of the scheduler's log:\n%s", tail(log, 3000))
		}
	})
	testkit.Eventually(t, stepLimit, "start scheduler", func() error {
		if p.Ended() {
			t.Fatalf("start scheduler: it ended: %v: %s", p.Wait(), tail(log, 3000))
		}
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.port))
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return s
}

// expect waits until a gauge of the scheduler has a value.
func (s *clusterScheduler) expect(gauge string, want int) {
	s.t.Helper()
	line := regexp.MustCompile(`(?m)^skimmer_scheduler_` + gauge + `(\{.*\})? ` + fmt.Sprint(want) + `$`)
	eventually(s.t, fmt.Sprintf("the scheduler has %d %s", want, gauge), func() error {
		response, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", s.metrics))
		if err != nil {
			return err
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err == nil && !line.Match(text) {
			err = fmt.Errorf("no line of its metrics is like %v", line)
		}
		return err
	})
}

// member is what the configuration of a node says that joins the scheduler. What
// is fetched is asked for: there is nothing in the background.
func (s *clusterScheduler) member(name string) string {
	return fmt.Sprintf("lazy: {background: false}\nscheduler: {addresses: [\"127.0.0.1:%d\"]}\nupload: {server: {ip: 127.0.0.1, port: %d}}\nhost: {hostname: %s}",
		s.port, testkit.FreePort(s.t), name)
}

// skimmer runs a command against the node's peer and returns what it prints.
func (n *node) skimmer(args ...string) (string, error) {
	cmd := exec.Command(binary, append(args, "--socket", filepath.Join(n.runDir, "skimmer.sock"))...)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("skimmer %s: %w: %s", strings.Join(args, " "), err, exit.Stderr)
	}
	return string(out), err
}

// ask runs a command against the node's peer and decodes what it prints.
func ask[T any](n *node, args ...string) (v T, err error) {
	out, err := n.skimmer(append(args, "--output", "json")...)
	if err == nil {
		err = json.Unmarshal([]byte(out), &v)
	}
	return v, err
}

// trace returns how the start of an image, or of a container's, went so far.
func (n *node) trace(name string) (trace.Start, error) {
	return ask[trace.Start](n, "image", "trace", name, "--containerd", filepath.Join(n.root, "c", "containerd.sock"))
}

// startSettled waits until an image's start has settled.
func (n *node) startSettled(im *testImage) (s trace.Start) {
	n.t.Helper()
	eventually(n.t, "the start of "+im.ref+" settles", func() (err error) {
		if s, err = n.trace(im.ref); err == nil && s.Settled == 0 {
			err = fmt.Errorf("it has read %d bytes", s.Read)
		}
		return err
	})
	return s
}

// learned waits until the node has a profile of so many starts of an image.
func (n *node) learned(manifest string, starts int) (p profile.Profile) {
	n.t.Helper()
	eventually(n.t, "a profile is kept", func() error {
		list, err := ask[[]profile.Info](n, "profile", "ls")
		if err == nil && (len(list) != 1 || list[0].Manifest.String() != manifest || list[0].Starts != starts) {
			err = fmt.Errorf("the profiles are %+v", list)
		}
		return err
	})
	p, err := ask[profile.Profile](n, "profile", "export", manifest)
	if err != nil {
		n.t.Fatal(err)
	}
	return p
}

// fetchedAhead waits until everything is on the node that a profile names.
func (n *node) fetchedAhead(im *testImage) {
	n.t.Helper()
	eventually(n.t, "what the profile names is fetched", func() error {
		s, err := n.trace(im.ref)
		if err == nil && (s.Wanted == 0 || s.Inflated < s.Wanted) {
			err = fmt.Errorf("%d bytes of %d", s.Inflated, s.Wanted)
		}
		return err
	})
}

func faults(s trace.Start) (n int) {
	for _, e := range s.Events {
		if e.Kind == trace.Fault {
			n++
		}
	}
	return n
}

// startFiles is what a container reads when it starts: of all layers, small and
// large, and not bigFile.
var startFiles = []string{"/data/small-03", midFile, lowFile, "/data/small-11", topFile}

// newProfileImage is an image whose start leaves most of it unread.
func newProfileImage(t *testing.T, name string) *testImage {
	r := testkit.NewRegistry(t, testkit.Options{})
	return newImage(t, r, imageSpec{repo: "profile/" + name, mid: name, top: name, big: 12})
}

// referrers is how often a registry was asked what refers to an image.
func referrers(im *testImage) int { return im.registry.Stats().Requests[testkit.Other] }

// TestProfile starts an image on a node, and then on others: on one that has the
// profile from the cluster, and on one that was given a wrong one.
func TestProfile(t *testing.T) {
	testkit.NeedMount(t)
	t.Parallel()
	v, im, sched := versions(t)[0], newProfileImage(t, "shared"), startScheduler(t)

	a := newNode(t, v, options{peer: sched.member("a")})
	sched.expect("peers", 1)
	s := a.space(t)
	s.run(s.pull(im)).check(im, startFiles...)
	first := a.startSettled(im)
	// As many as there are layers wait at least, whatever is read ahead in them.
	if first.Profile != "" || faults(first) < len(im.manifest.Layers) {
		t.Errorf("the first start: profile %q, %d reads waited, want none and at least %d", first.Profile, faults(first), len(im.manifest.Layers))
	}
	if referrers(im) == 0 {
		t.Error("nobody looked for a profile in the registry")
	}
	right := a.learned(first.Manifest.String(), 1)
	sched.expect("profiles", 1)

	t.Run("of the cluster", func(t *testing.T) { testClusterProfile(t, v, im, sched, first) })
	t.Run("that is wrong", func(t *testing.T) { testWrongProfile(t, v, im, right) })
}

// testClusterProfile starts the image on a second node while the first is up.
func testClusterProfile(t *testing.T, v version, im *testImage, sched *clusterScheduler, first trace.Start) {
	b := newNode(t, v, options{peer: sched.member("b")})
	sched.expect("peers", 2)
	im.registry.ResetStats()
	s := b.space(t)
	img := s.pull(im)
	b.fetchedAhead(im)
	c := s.run(img)
	c.check(im, startFiles...)
	start := b.startSettled(im)
	if start.Profile != "cluster" {
		t.Errorf("the profile is from %q, want the cluster", start.Profile)
	}
	if got, most := faults(start), faults(first)/4; got > most {
		t.Errorf("%d reads waited, want at most %d: without a profile %d did", got, most, faults(first))
	}
	if start.Used < start.Wanted/4*3 {
		t.Errorf("of %d bytes that the profile named %d were read", start.Wanted, start.Used)
	}
	if got := im.fetched(); got != 0 {
		t.Errorf("%d bytes of layers came from the registry, want all from the other node", got)
	}
	if got := referrers(im); got != 0 {
		t.Errorf("the registry was asked %d times for a profile that the cluster has", got)
	}
	for _, name := range []string{c.c.ID(), im.ref, im.repo + ":v1"} {
		if again, err := b.trace(name); err != nil || again.Manifest != start.Manifest || again.Wanted != start.Wanted || again.Settled != start.Settled {
			t.Errorf("the trace by the name %s: %v, of %v", name, err, again.Manifest)
		}
	}
	b.learned(start.Manifest.String(), 2)
	if _, err := b.skimmer("profile", "rm", "--cluster", start.Manifest.String()); err != nil {
		t.Error(err)
	}
	sched.expect("profiles", 0) // though both nodes gave it, and one still has it
	if list, err := ask[[]profile.Info](b, "profile", "ls"); err != nil || len(list) != 0 {
		t.Errorf("profiles after they were removed: %+v, error %v", list, err)
	}
	c.remove()
	if _, err := b.trace(c.c.ID()); err == nil {
		t.Error("a container that is gone has a trace")
	}
	t.Logf("reads that waited: %d, and %d before; the profile named %d bytes, %d were used", faults(start), faults(first), start.Wanted, start.Used)
}

// testWrongProfile starts the image on a node alone that was given a profile of
// what the start does not read.
func testWrongProfile(t *testing.T, v version, im *testImage, right profile.Profile) {
	n := newNode(t, v, options{peer: "lazy: {background: false}"})
	doc, err := json.Marshal(opposite(right))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "wrong.json")
	if err := os.WriteFile(file, doc, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := n.skimmer("profile", "import", file); err != nil {
		t.Fatal(err)
	}
	im.registry.ResetStats()
	s := n.space(t)
	img := s.pull(im)
	n.fetchedAhead(im)
	s.run(img).check(im, startFiles...)
	start := n.startSettled(im)
	if start.Profile != "node" || start.Used > start.Wanted/4 {
		t.Errorf("the profile is from %q, and %d bytes of %d that it names were read: it is not wrong", start.Profile, start.Used, start.Wanted)
	}
	t.Logf("the profile named %d bytes, %d were read, %d fetched", start.Wanted, start.Read, im.fetched())
	// The content is random and does not compress.
	if got, most := im.fetched(), (start.Wanted+start.Read)*9/8+1<<20; got > most {
		t.Errorf("%d bytes were fetched; the profile named %d, and %d were read", got, start.Wanted, start.Read)
	}
	corrected := chunksOf(n.learned(start.Manifest.String(), 2))
	read, missing := chunksOf(right), 0
	for c := range read {
		if !corrected[c] {
			missing++
		}
	}
	// Two starts may differ in what the kernel reads ahead.
	if missing > len(read)/5 {
		t.Errorf("of %d chunks that a start reads %d are not in the profile now", len(read), missing)
	}
}

// chunk is a chunk of a profile's layer.
type chunk struct{ layer, chunk int }

func chunksOf(p profile.Profile) map[chunk]bool {
	all := map[chunk]bool{}
	for _, r := range p.Reads {
		for i := range r.Count {
			all[chunk{r.Layer, r.First + i}] = true
		}
	}
	return all
}

// opposite returns the profile of a start that reads all that p's does not.
func opposite(p profile.Profile) profile.Profile {
	read := chunksOf(p)
	p.Reads = nil
	for i, l := range p.Layers {
		for j := range l.Chunks {
			if !read[chunk{i, j}] {
				p.Reads = append(p.Reads, profile.Read{Layer: i, First: j, Count: 1, Starts: 1})
			}
		}
	}
	return p
}

// TestProfilesOff starts an image on a node that is told to keep no profiles.
func TestProfilesOff(t *testing.T) {
	testkit.NeedMount(t)
	t.Parallel()
	im := newProfileImage(t, "off")
	n := newNode(t, versions(t)[0], options{peer: "lazy: {background: false, profiles: {enable: false}}"})
	s := n.space(t)
	s.run(s.pull(im)).check(im, startFiles...)
	if start := n.startSettled(im); start.Profile != "" || start.Wanted != 0 {
		t.Errorf("the start had a profile: %q, %d bytes", start.Profile, start.Wanted)
	}
	if files := n.profileFiles(); len(files) != 0 {
		t.Errorf("files of profiles: %v, want none", files)
	}
	if got := referrers(im); got != 0 {
		t.Errorf("the registry was asked %d times what refers to the image", got)
	}
	if _, err := n.skimmer("profile", "ls"); err == nil || !strings.Contains(err.Error(), "keeps none") {
		t.Errorf("the list of profiles: %v", err)
	}
}

// profileFiles returns the files in the directory of profiles.
func (n *node) profileFiles() (files []string) {
	_ = filepath.WalkDir(filepath.Join(n.dataDir, "profiles"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return nil // there may be no directory
	})
	return files
}

// TestProfileKilled kills the peer while it records a start. What it had read is
// not a profile, or a right one; the next start of another image makes one.
func TestProfileKilled(t *testing.T) {
	testkit.NeedMount(t)
	t.Parallel()
	im := newProfileImage(t, "killed")
	n := newNode(t, versions(t)[0], options{peer: "lazy: {background: false}"})
	s := n.space(t)
	c := s.run(s.pull(im))
	c.check(im, startFiles...)
	_ = n.stopPeer(syscall.SIGKILL) // it is how it ends
	n.startPeer()
	c.check(im, im.files()...)
	list, err := ask[[]profile.Info](n, "profile", "ls")
	if err != nil || len(list) > 1 {
		t.Errorf("the profiles are %+v, error %v", list, err)
	}
	for _, i := range list {
		// It took longer to kill the peer than it takes a start to settle.
		if p, err := ask[profile.Profile](n, "profile", "show", i.Manifest.String()); err != nil || p.Starts != 1 || p.Validate() != nil {
			t.Errorf("the profile of a start that ended badly: %+v, error %v", p, err)
		}
	}
	other := newProfileImage(t, "after")
	s.run(s.pull(other)).check(other, startFiles...)
	manifest := n.startSettled(other).Manifest.String()
	eventually(t, "the next start is learned", func() error {
		_, err := ask[profile.Profile](n, "profile", "show", manifest)
		return err
	})
	for _, line := range n.logLines() {
		if line["level"] == "ERROR" {
			t.Errorf("the peer logged an error: %v", line)
		}
	}
}
