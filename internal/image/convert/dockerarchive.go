package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
)

// dockerIndexFile lists the images of an archive made by docker save
// (moby's image/spec, version 1.2).
const dockerIndexFile = "manifest.json"

// dockerImage is an entry of that list.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// dockerSource reads one image of a docker archive. Such an archive has no
// manifests, so the source makes one: its layers are the archive's, mostly
// uncompressed.
type dockerSource struct {
	name  Name
	files *tarFiles
	desc  ocispec.Descriptor
	raw   []byte
	blobs map[digest.Digest]string // member names
}

// openDocker takes over files.
func openDocker(ctx context.Context, n Name, files *tarFiles) (source, error) {
	s := &dockerSource{name: n, files: files, blobs: make(map[digest.Digest]string)}
	raw, err := readFile(files, dockerIndexFile)
	if err != nil {
		return nil, blob.Errorf(blob.NotFound, "open image %v: not an archive of docker save: %w", n, err)
	}
	img, err := selectDockerImage(n, raw)
	if err != nil {
		return nil, err
	}
	if err := s.build(ctx, img); err != nil {
		return nil, blob.Errorf(unlessKnown(err, blob.Corrupt), "open image %v: %w", n, err)
	}
	return s, nil
}

func selectDockerImage(n Name, raw []byte) (dockerImage, error) {
	var images []dockerImage
	if err := json.Unmarshal(raw, &images); err != nil {
		return dockerImage{}, blob.Errorf(blob.Corrupt, "open image %v: decode %s: %w", n, dockerIndexFile, err)
	}
	var names []string
	for _, img := range images {
		for _, tag := range img.RepoTags {
			if n.Tag != "" && (tag == n.Tag || sameReference(tag, n.Tag) || strings.HasSuffix(tag, ":"+n.Tag)) {
				return img, nil
			}
			names = append(names, tag)
		}
	}
	switch {
	case len(images) == 0:
		return dockerImage{}, blob.Errorf(blob.NotFound, "open image %v: the archive holds no images", n)
	case n.Tag != "":
		return dockerImage{}, blob.Errorf(blob.NotFound, "open image %v: no image has that name; there are: %s", n, orNone(names))
	case len(images) > 1:
		return dockerImage{}, blob.Errorf(blob.Invalid, "open image %v: it holds %d images; choose one by appending :NAME: %s", n, len(images), orNone(names))
	}
	return images[0], nil
}

// build makes the manifest of img.
func (s *dockerSource) build(ctx context.Context, img dockerImage) error {
	config, err := readFile(s.files, img.Config)
	if err != nil {
		return fmt.Errorf("read config: %w", err)
	}
	var parsed ocispec.Image
	if err := json.Unmarshal(config, &parsed); err != nil {
		return fmt.Errorf("decode config %q: %w", img.Config, err)
	}
	if len(parsed.RootFS.DiffIDs) != len(img.Layers) {
		return blob.Errorf(blob.Corrupt, "the config has %d layers, %s has %d", len(parsed.RootFS.DiffIDs), dockerIndexFile, len(img.Layers))
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config)),
		},
		Layers: []ocispec.Descriptor{},
	}
	s.blobs[m.Config.Digest] = img.Config
	for i, layer := range img.Layers {
		d, err := s.layer(ctx, layer, parsed.RootFS.DiffIDs[i])
		if err != nil {
			return fmt.Errorf("read layer %d: %w", i, err)
		}
		m.Layers = append(m.Layers, d)
		s.blobs[d.Digest] = layer
	}
	s.raw, err = json.Marshal(m)
	s.desc = ocispec.Descriptor{
		MediaType: m.MediaType, Digest: digest.FromBytes(s.raw), Size: int64(len(s.raw)),
	}
	return err
}

// layer describes the layer that is the archive's member called name. What
// is not compressed is its own diff ID; what is has to be hashed.
func (s *dockerSource) layer(ctx context.Context, name string, diffID digest.Digest) (ocispec.Descriptor, error) {
	f, err := s.files.open(name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer f.Close()
	head, err := sniff(f)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: diffID, Size: f.Size()}
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		d.MediaType = ocispec.MediaTypeImageLayerGzip
	case bytes.HasPrefix(head, zstdMagic):
		d.MediaType = ocispec.MediaTypeImageLayerZstd
	default:
		return d, diffID.Validate()
	}
	d.Digest, err = digest.FromReader(ctxReader{ctx, fileReader(f)})
	return d, err
}

func (s *dockerSource) root(context.Context) (ocispec.Descriptor, []byte, error) {
	return s.desc, s.raw, nil
}

func (s *dockerSource) manifest(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
	if d.Digest != s.desc.Digest {
		return nil, blob.Errorf(blob.NotFound, "read manifest %v of %v: it is not there", d.Digest, s.name)
	}
	return s.raw, nil
}

func (s *dockerSource) openAt(d digest.Digest) (file, error) {
	if err := d.Validate(); err != nil {
		return nil, blob.Errorf(blob.Invalid, "read blob %q of %v: %w", d, s.name, err)
	}
	name, ok := s.blobs[d]
	if !ok {
		return nil, blob.Errorf(blob.NotFound, "read blob %v of %v: it is not there", d, s.name)
	}
	return s.files.open(name)
}

func (s *dockerSource) open(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	f, err := s.openAt(d.Digest)
	if err != nil {
		return nil, err
	}
	return fileReader(f), nil
}

func (s *dockerSource) origin(ocispec.Descriptor) name.Reference { return nil }
func (s *dockerSource) close() error                             { return s.files.Close() }
