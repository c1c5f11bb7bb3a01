package image_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/image"
	"skimmer/internal/image/profile"
	"skimmer/internal/image/trace"
	"skimmer/internal/testkit"
)

// exchange is the cluster's profiles in memory.
type exchange struct {
	mu   sync.Mutex
	kept map[digest.Digest][]byte // mu guards
}

func (x *exchange) Lookup(_ context.Context, manifest digest.Digest) ([]byte, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if data := x.kept[manifest]; data != nil {
		return data, nil
	}
	return nil, blob.Errorf(blob.NotFound, "no profile of %v", manifest)
}

func (x *exchange) Offer(manifest digest.Digest, encoded []byte) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.kept[manifest] = encoded
}

const (
	fileSize  = 256 << 10
	fileCount = 24
)

// program is an image of files in two layers, with gaps between any two of
// them that are too large to be fetched along.
func (w *world) program(t *testing.T, tag string) image.Name {
	var layers [2][]*tar.Header
	for i := range fileCount {
		layers[i%2] = append(layers[i%2], file(fmt.Sprintf("f%02d", i), fileSize))
	}
	return w.push(t, tag, nil, layers[0], layers[1])
}

// starting is how an image is started in a test.
type starting struct {
	w    *world
	name image.Name
	cfg  func(*image.Config)
	// planned waits, before anything is read, until all is here that a profile
	// names.
	planned bool
}

// start mounts the image, reads files of it, and returns how that went. It is over
// when the library is closed: nothing here depends on the time.
func (s starting) start(t *testing.T, files ...int) trace.Start {
	t.Helper()
	started := make(chan trace.Start, 1)
	l := open(t, s.w, t.TempDir(), func(c *image.Config) {
		c.Profiles, c.StartSettle = true, time.Hour
		c.OnStarted = func(s trace.Start) { started <- s }
		s.cfg(c)
	})
	target := filepath.Join(t.TempDir(), "mnt")
	if _, _, err := l.Mount(t.Context(), s.name, target); err != nil {
		t.Fatal(err)
	}
	if s := l.Traces(); len(s) != 1 {
		t.Fatalf("%d traces, want 1", len(s))
	}
	if s.planned {
		testkit.Eventually(t, time.Minute, "the profile's bytes are here", func() error {
			if s := l.Traces()[0]; s.Profile == "" || l.Stats().Inflated < s.Wanted {
				return fmt.Errorf("profile %q, %d bytes of %d", s.Profile, l.Stats().Inflated, s.Wanted)
			}
			return nil
		})
	}
	for _, i := range files {
		name := fmt.Sprintf("f%02d", i)
		got, err := os.ReadFile(filepath.Join(target, name))
		if err != nil || digest.FromBytes(got) != digest.FromBytes(content(name, fileSize)) {
			t.Fatalf("read %s: %d bytes, wrong content, %v", name, len(got), err)
		}
	}
	if err := errors.Join(l.Unmount(target, true), l.Close()); err != nil {
		t.Error(err)
	}
	select {
	case s := <-started:
		return s
	default:
		t.Fatal("the start was not recorded")
		return trace.Start{}
	}
}

// TestStartSettles has a start end by itself.
func TestStartSettles(t *testing.T) {
	testkit.NeedMount(t)
	w := newWorld()
	name := w.program(t, "v1")
	started := make(chan trace.Start, 1)
	l := open(t, w, t.TempDir(), func(c *image.Config) {
		c.StartSettle = 20 * time.Millisecond
		c.OnStarted = func(s trace.Start) { started <- s }
	})
	target := filepath.Join(t.TempDir(), "mnt")
	if _, _, err := l.Mount(t.Context(), name, target); err != nil {
		t.Fatal(err)
	}
	check(t, target, "f03", fileSize)
	if s := <-started; s.Read == 0 || s.Settled == 0 {
		t.Errorf("start = %+v", s)
	}
}

func count(s trace.Start, kind trace.Kind) (n int) {
	for _, e := range s.Events {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

// TestProfileOfAnotherNode has one node start an image and another fetch by what
// that read.
func TestProfileOfAnotherNode(t *testing.T) {
	testkit.NeedMount(t)
	w := newWorld()
	name := w.program(t, "v1")
	x := &exchange{kept: make(map[digest.Digest][]byte)}
	share := func(c *image.Config) { c.Exchange = x }
	files := []int{13, 2, 21, 8}

	first := starting{w: w, name: name, cfg: share}.start(t, files...)
	if first.Profile != "" || count(first, trace.Fault) == 0 {
		t.Errorf("first start: profile %q, %d faults", first.Profile, count(first, trace.Fault))
	}
	for kind, want := range map[trace.Kind]int{trace.Manifest: 1, trace.Index: 2, trace.Metadata: 1, trace.Profile: 1, trace.Mount: 1} {
		if got := count(first, kind); got != want {
			t.Errorf("first start: %d events of kind %s, want %d", got, kind, want)
		}
	}
	if want := int64(len(files)) * fileSize; first.Read < want || first.Read > 2*want || first.Fetched == 0 || first.Inflated < first.Read {
		t.Errorf("first start read %d, fetched %d and inflated %d bytes; the files have %d", first.Read, first.Fetched, first.Inflated, want)
	}
	if len(x.kept) != 1 {
		t.Fatalf("%d profiles were offered, want 1", len(x.kept))
	}

	second := starting{w: w, name: name, cfg: share, planned: true}.start(t, files...)
	if second.Profile != "cluster" || count(second, trace.Fault) != 0 {
		t.Errorf("second start: profile %q, %d faults, want none: %+v", second.Profile, count(second, trace.Fault), second.Events)
	}
	if second.Wanted == 0 || second.Used != second.Wanted {
		t.Errorf("second start: %d of %d bytes that were fetched ahead were read", second.Used, second.Wanted)
	}

	off := starting{w: w, name: name, cfg: func(c *image.Config) { share(c); c.Profiles = false }}.start(t, files...)
	if off.Profile != "" || count(off, trace.Profile) != 0 {
		t.Errorf("with profiles turned off: profile %q", off.Profile)
	}
}

// TestProfileIsBounded has a profile name everything, of which the start wants
// nothing.
func TestProfileIsBounded(t *testing.T) {
	testkit.NeedMount(t)
	w := newWorld()
	name := w.program(t, "v1")
	x := &exchange{kept: make(map[digest.Digest][]byte)}
	var all []int
	for i := range fileCount {
		all = append(all, i)
	}
	starting{w: w, name: name, cfg: func(c *image.Config) { c.Exchange = x }}.start(t, all...)
	const limit = 1 << 20
	s := starting{w: w, name: name, cfg: func(c *image.Config) { c.Exchange, c.ProfileLimit = x, limit }, planned: true}.start(t, 5)
	// Random bytes do not compress: flat bytes are compressed ones, but for headers.
	if s.Wanted == 0 || s.Wanted > limit {
		t.Errorf("%d bytes were fetched ahead, want at most %d", s.Wanted, limit)
	}
}

// TestWrongProfile has profiles that are damaged, of another image, and of
// other layers.
func TestWrongProfile(t *testing.T) {
	testkit.NeedMount(t)
	w := newWorld()
	name := w.program(t, "v1")
	x := &exchange{kept: make(map[digest.Digest][]byte)}
	shared := starting{w: w, name: name, cfg: func(c *image.Config) { c.Exchange = x }}
	shared.start(t, 1, 2, 3)
	if len(x.kept) != 1 {
		t.Fatalf("%d profiles were offered, want 1", len(x.kept))
	}
	for manifest, good := range x.kept {
		p, err := profile.Decode(good)
		if err != nil {
			t.Fatal(err)
		}
		other := p
		other.Manifest = digest.FromString("another image")
		shorter := p
		shorter.Layers = append([]profile.Layer(nil), p.Layers...)
		for i := range shorter.Layers {
			shorter.Layers[i].Chunks++
		}
		for what, bad := range map[string]profile.Profile{"of another image": other, "of other chunks": shorter} {
			encoded, err := profile.Encode(bad)
			if err != nil {
				t.Fatal(err)
			}
			x.kept[manifest] = encoded
			if s := shared.start(t, 1, 2, 3); s.Wanted != 0 {
				t.Errorf("profile %s: %d bytes were fetched by it", what, s.Wanted)
			}
		}
		x.kept[manifest] = []byte("SKPF and nothing that makes sense")
		if s := shared.start(t, 1, 2, 3); s.Wanted != 0 {
			t.Errorf("damaged profile: %d bytes were fetched by it", s.Wanted)
		}
	}
}
