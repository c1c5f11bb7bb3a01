package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
)

// FuzzArchive reads archives from strangers: whatever is in them, reading
// ends, and what is found lies inside the archive.
func FuzzArchive(f *testing.F) {
	save := filepath.Join(f.TempDir(), "save.tar")
	writeDockerSave(f, save, imageOf(f, makeTar(f, []entry{file_("a", []byte("a"))}), makeTar(f, []entry{file_("b", nil)})))
	p, err := os.ReadFile(save)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(p)
	f.Add(makeTar(f, []entry{special('2', "a", "b"), special('2', "b", "a"), special('1', "../c", "/etc/passwd")}))
	f.Add(makeTar(f, []entry{file_("manifest.json", []byte(`[{"Config":"manifest.json","Layers":["x"]}]`))}))
	f.Fuzz(func(t *testing.T, p []byte) {
		members, err := indexTar(t.Context(), io.NewSectionReader(bytes.NewReader(p), 0, int64(len(p))))
		if err != nil {
			return
		}
		for name, m := range members {
			if m.off < 0 || m.size < 0 || m.off+m.size > int64(len(p)) {
				t.Errorf("%q is at %d+%d of %d bytes", name, m.off, m.size, len(p))
			}
		}
		files := &tarFiles{bytes.NewReader(p), members, io.NopCloser(nil)}
		s, err := openDocker(t.Context(), Name{Transport: DockerArchive, Path: "x"}, files)
		if err != nil {
			return
		}
		if _, err := load(t.Context(), s, Name{}, nil); err != nil {
			t.Logf("a docker archive without an image: %v", err)
		}
	})
}

// documents is a source whose manifests are all the same.
type documents struct{ raw, config []byte }

func (s documents) root(context.Context) (ocispec.Descriptor, []byte, error) {
	return descriptorOf("", s.raw), s.raw, nil
}

func (s documents) manifest(context.Context, ocispec.Descriptor) ([]byte, error) { return s.raw, nil }

func (s documents) open(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(s.config)), nil
}

func (s documents) origin(ocispec.Descriptor) name.Reference { return nil }
func (s documents) close() error                             { return nil }

// FuzzDocuments reads manifests, indexes and configs from strangers: planning
// ends, and what is kept of them can be written.
func FuzzDocuments(f *testing.F) {
	config := []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["sha256:` + digest.FromString("x").Encoded() + `"]}}`)
	m, err := json.Marshal(ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, Config: descriptorOf(ocispec.MediaTypeImageConfig, config),
		Layers: []ocispec.Descriptor{descriptorOf(ocispec.MediaTypeImageLayerGzip, []byte("layer"))},
	})
	if err != nil {
		f.Fatal(err)
	}
	index, err := json.Marshal(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{descriptorOf(ocispec.MediaTypeImageManifest, m)}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m, config)
	f.Add(index, config)
	f.Add([]byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json"},{}]}`), []byte(nil))
	f.Add([]byte(`{"layers":null,"config":{"digest":"x"}}`), []byte(nil))
	f.Add([]byte(`{"schemaVersion":1}`), []byte(nil))
	f.Fuzz(func(t *testing.T, raw, config []byte) {
		for _, platforms := range [][]ocispec.Platform{nil, {{OS: "linux", Architecture: "amd64"}}} {
			root, err := load(t.Context(), documents{raw, config}, Name{}, platforms)
			if err != nil {
				if blob.KindOf(err) == blob.Internal {
					t.Errorf("unclassified: %v", err)
				}
				continue
			}
			c := &conversion{transfer: &transfer{}, layers: map[digest.Digest]*layer{}}
			if c.plan(root) != nil {
				continue
			}
			if err := root.walk(func(n *node) error {
				if n.index != nil {
					return n.rewriteIndex(ocispec.MediaTypeImageIndex)
				}
				return nil
			}); err != nil {
				t.Errorf("rewrite: %v", err)
			}
		}
	})
}
