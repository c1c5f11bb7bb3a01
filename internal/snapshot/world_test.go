package snapshot_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/estargz"
	"skimmer/internal/image"
	"skimmer/internal/snapshot"
	"skimmer/internal/testkit"
)

// world is a registry in memory with one image, and a switch that takes it
// away.
type world struct {
	blobtest.Memory
	manifest []byte
	config   []byte
	layers   []ocispec.Descriptor
	away     atomic.Bool
	asked    atomic.Int64 // manifests asked for
}

const (
	repository = "memory.test/image"
	imageName  = repository + ":1"
)

// layer is the content of a layer: files by name, whiteouts included. A plain
// one is not eStargz.
type layer struct {
	files map[string]string
	plain bool
}

func newWorld(t testing.TB, layers ...layer) *world {
	t.Helper()
	w := &world{}
	w.Before = func(context.Context, blob.Ref, blob.Range) error { return w.check() }
	for _, l := range layers {
		var raw, out bytes.Buffer
		tw := tar.NewWriter(&raw)
		for name, body := range l.files {
			h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(body)), Mode: 0o644}
			if err := tw.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(tw, body); err != nil {
				t.Fatal(err)
			}
		}
		if err := tw.Close(); err != nil {
			t.Fatal(err)
		}
		built, err := estargz.Build(t.Context(), &out, bytes.NewReader(raw.Bytes()), int64(raw.Len()), estargz.BuildOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if l.plain {
			out = raw
			built.Annotations = nil
		}
		ref := w.Add(out.Bytes())
		w.layers = append(w.layers, ocispec.Descriptor{
			MediaType: built.MediaType, Digest: ref.Digest, Size: ref.Size, Annotations: built.Annotations,
		})
	}
	var err error
	if w.config, err = json.Marshal(ocispec.Image{Config: ocispec.ImageConfig{Cmd: []string{"tool"}}}); err != nil {
		t.Fatal(err)
	}
	w.manifest, err = json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: w.layers,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(w.config), Size: int64(len(w.config))},
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) check() error {
	if w.away.Load() {
		return blob.Errorf(blob.Unavailable, "registry is away")
	}
	return nil
}

func (w *world) digest() digest.Digest { return digest.FromBytes(w.manifest) }

// content is what containerd has of the image already: its configuration.
func (w *world) content(_ context.Context, d digest.Digest) ([]byte, error) {
	if d != digest.FromBytes(w.config) {
		return nil, blob.Errorf(blob.NotFound, "containerd does not have %v", d)
	}
	return w.config, nil
}

// Manifest implements image.Resolver.
func (w *world) Manifest(_ context.Context, repo, reference string) ([]byte, string, digest.Digest, error) {
	w.asked.Add(1)
	if err := w.check(); err != nil {
		return nil, "", "", err
	}
	if repo != repository || reference != "1" && reference != w.digest().String() {
		return nil, "", "", blob.Errorf(blob.NotFound, "no manifest %s %s", repo, reference)
	}
	return w.manifest, ocispec.MediaTypeImageManifest, w.digest(), nil
}

func parseName(s string) (image.Name, error) {
	repo, tag, ok := strings.Cut(s, ":")
	if !ok {
		return image.Name{}, blob.Errorf(blob.Invalid, "parse %q: no tag", s)
	}
	return image.Name{Repository: repo, Tag: tag}, nil
}

// node is a snapshotter with its library.
type node struct {
	*snapshot.Snapshotter
	library *image.Library
	root    string
}

func startNode(t testing.TB, root string, w *world) *node {
	t.Helper()
	testkit.NeedMount(t)
	log := testLogger(t)
	dir := filepath.Join(root, "snapshotter")
	layers, err := snapshot.Layers(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	library, err := image.Open(image.Config{Dir: root, Source: w, Resolver: w, Pulled: layers, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	s, err := snapshot.New(snapshot.Config{Root: dir, Images: library, ParseName: parseName, Content: w.content, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{s, library, root}
	t.Cleanup(func() { n.stop(t) })
	return n
}

// stop ends the node as a machine's end does: nothing stays mounted.
func (n *node) stop(t testing.TB) {
	t.Helper()
	n.unmountStacks(t) // or its device would be in use
	if err := errors.Join(n.Snapshotter.Close(), n.library.Close()); err != nil {
		t.Error(err)
	}
	n.unmountStacks(t) // of images that have become complete meanwhile
}

func (n *node) unmountStacks(t testing.TB) {
	t.Helper()
	stacks, _ := filepath.Glob(filepath.Join(n.root, "stacks", "*", "*"))
	for _, s := range stacks {
		if err := unix.Unmount(s, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmount %s: %v", s, err)
		}
	}
}

func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// count returns how many entries the folder at path has; none if there is no
// such folder.
func count(t testing.TB, path string) int {
	t.Helper()
	entries, err := os.ReadDir(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return len(entries)
}
