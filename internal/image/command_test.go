package image_test

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/image"
	"skimmer/internal/image/trace"
	"skimmer/internal/testkit"
)

// library returns an ELF file of some size that needs others.
func library(t *testing.T, size int, needed ...string) []byte {
	t.Helper()
	return image.ELFLibrary{Size: size, Needed: needed}.Build(t)
}

// prepare prepares the lowest layer of the image, whose configuration is at hand.
func (w *world) prepare(t *testing.T, l *image.Library, name image.Name, configured digest.Digest, config []byte) {
	t.Helper()
	_, err := l.PrepareLayer(t.Context(), image.LayerRequest{
		Name: name, Layer: w.layersOf(t, "v1")[0],
		Content: func(_ context.Context, d digest.Digest) ([]byte, error) {
			if d == configured {
				return config, nil
			}
			return nil, blob.Errorf(blob.NotFound, "%v is not here", d)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestFetchAheadOfCommand has the library fetch what a command reads that is a front
// of a large library: in a request for each generation of files, and one for what the
// library's initializer calls.
func TestFetchAheadOfCommand(t *testing.T) {
	testkit.NeedMount(t)
	w := newWorld()
	const large, called = 10 << 20, 4 << 20
	w.bodies = map[string][]byte{
		"usr/bin/node": library(t, 8192, "libnode.so.1"),
		"usr/lib/libnode.so.1": image.ELFLibrary{
			Size: large, Needed: []string{"libdep.so.1"}, Initializer: 1 << 20, Direct: []int{called}, ByTable: []int{called + 1<<20},
		}.Build(t),
		"usr/lib/libdep.so.1":  library(t, 8192, "libdeep.so.1"),
		"usr/lib/libdeep.so.1": library(t, 8192),
	}
	layer := []*tar.Header{dir("usr"), dir("usr/bin"), dir("usr/lib")}
	for i, name := range []string{"usr/lib/libdeep.so.1", "usr/bin/node", "usr/lib/libnode.so.1", "usr/lib/libdep.so.1"} {
		layer = append(layer, file(name, len(w.bodies[name])), file(fmt.Sprintf("filler%d", i), 128<<10))
	}
	config, err := json.Marshal(ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"node", "--version"}, Env: []string{"PATH=/usr/bin"}}})
	if err != nil {
		t.Fatal(err)
	}
	configured := digest.FromBytes(config)
	name := w.push(t, "v1", func(m *ocispec.Manifest) { m.Config.Digest = configured }, layer)

	l := open(t, w, t.TempDir(), nil)
	w.prepare(t, l, name, configured, config)
	const generations = 4 // the program and its library, what that needs, what that needs; what is called
	testkit.Eventually(t, time.Minute, "it was fetched ahead", func() error {
		if n := count(l.Traces()[0], trace.Prefetch); n < generations {
			return fmt.Errorf("%d fetches, want %d", n, generations)
		}
		return nil
	})
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	s := l.Traces()[0]
	if n := count(s, trace.Prefetch); n != generations {
		t.Errorf("%d fetches, want %d: %+v", n, generations, s.Events)
	}
	var fetched int64
	for _, e := range s.Events {
		if e.Kind == trace.Prefetch {
			fetched += e.Bytes
		}
	}
	// A fifth of the library at the front and an eighth of read-only data, and two
	// functions with 256 KiB around each.
	const known = large/5 + large/8 + 512<<10
	if least, most := int64(known), int64(known+768<<10); fetched < least || fetched > most {
		t.Errorf("%d bytes were fetched, want %d to %d", fetched, least, most)
	}
}

// holding is a Source of which one blob's second half does not come until the first of
// another is asked for; the tables of contents at their ends do.
type holding struct {
	blob.Source
	held  digest.Digest
	other chan struct{} // closed when another is asked for
	once  sync.Once
}

func (h *holding) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	b, err := h.Source.Open(ctx, ref)
	return &heldBlob{b, h, ref.Digest == h.held}, err
}

type heldBlob struct {
	blob.Blob
	h    *holding
	held bool
}

func (b *heldBlob) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	switch half := b.Size() / 2; {
	case !b.held && r.Off < half:
		b.h.once.Do(func() { close(b.h.other) })
	case b.held && r.Off >= half && r.Off < half/4*7:
		select {
		case <-b.h.other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return b.Blob.ReadRange(ctx, r)
}

// TestLibrariesDoNotWaitForTheProgramsEnd has the libraries of a program fetched, and
// what comes with them, while its end, where the headers say that it needs them, is on
// its way.
func TestLibrariesDoNotWaitForTheProgramsEnd(t *testing.T) {
	testkit.NeedMount(t)
	w := newWorld()
	const size = 3 << 20
	program := image.ELFLibrary{Size: size, Needed: []string{"libdep.so.1"}, Dynamic: size - 8192}.Build(t)
	copy(program[64<<10:size-64<<10], blobtest.Bytes(1, size-128<<10)) // that compresses to nothing
	w.bodies = map[string][]byte{"bin/tool": program, "lib/libdep.so.1": append(library(t, 8192), blobtest.Bytes(2, size)...)}
	config, err := json.Marshal(ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"/bin/tool"}}})
	if err != nil {
		t.Fatal(err)
	}
	configured := digest.FromBytes(config)
	name := w.push(t, "v1", func(m *ocispec.Manifest) { m.Config.Digest = configured },
		[]*tar.Header{dir("bin"), file("bin/tool", size)}, []*tar.Header{dir("lib"), file("lib/libdep.so.1", size+8192)})
	h := &holding{Source: w, held: w.layersOf(t, "v1")[0], other: make(chan struct{})}
	l := open(t, w, t.TempDir(), func(c *image.Config) { c.Source = h })
	w.prepare(t, l, name, configured, config)
	select {
	case <-h.other:
	case <-time.After(time.Minute):
		t.Error("the library is not asked for before all of the program is here")
		h.once.Do(func() { close(h.other) })
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
