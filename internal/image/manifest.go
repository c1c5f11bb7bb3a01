package image

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
)

// Media types a registry of the Docker era answers with; their JSON has the
// same fields as the OCI documents.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// Limits on what a manifest may ask of us; a document from a stranger must
// not be able to make the node allocate or fetch without bound.
const (
	maxLayers = 1000
	// maxIndexes is how deep an index may refer to indexes.
	maxIndexes = 4
)

// manifestLayer is what the lazy path needs of one layer descriptor.
type manifestLayer struct {
	Digest    digest.Digest
	Size      int64
	MediaType string
	// TOC is the promised digest of the table of contents; empty where Read
	// carries the promise or there is none.
	TOC  digest.Digest
	Read estargz.ReadOptions
}

func isIndex(mediaType string, data []byte) bool {
	switch mediaType {
	case ocispec.MediaTypeImageIndex, dockerIndex:
		return true
	case ocispec.MediaTypeImageManifest, dockerManifest:
		return false
	}
	// A registry that does not say: the documents differ in this field.
	var probe struct {
		Manifests []json.RawMessage `json:"manifests"`
	}
	return json.Unmarshal(data, &probe) == nil && len(probe.Manifests) > 0
}

// parseManifest decodes and checks an image manifest.
func parseManifest(data []byte) ([]manifestLayer, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, blob.Errorf(blob.Invalid, "decode manifest: %w", err)
	}
	if len(m.Layers) == 0 {
		return nil, blob.Errorf(blob.Invalid, "decode manifest: it has no layers (media type %q)", m.MediaType)
	}
	if len(m.Layers) > maxLayers {
		return nil, blob.Errorf(blob.Invalid, "decode manifest: %d layers, at most %d are supported", len(m.Layers), maxLayers)
	}
	layers := make([]manifestLayer, 0, len(m.Layers))
	for i, d := range m.Layers {
		if err := d.Digest.Validate(); err != nil {
			return nil, blob.Errorf(blob.Invalid, "decode manifest: layer %d: digest %q: %w", i, d.Digest, err)
		}
		if d.Size < 0 {
			return nil, blob.Errorf(blob.Invalid, "decode manifest: layer %d: size %d", i, d.Size)
		}
		toc, read := estargz.Promised(d.Annotations)
		for _, promise := range []digest.Digest{toc, read.CompressedDigest} {
			if err := promise.Validate(); promise != "" && err != nil {
				return nil, blob.Errorf(blob.Invalid, "decode manifest: layer %v: table of contents digest %q: %w", d.Digest, promise, err)
			}
		}
		layers = append(layers, manifestLayer{d.Digest, d.Size, d.MediaType, toc, read})
	}
	return layers, nil
}

// Platform says which image of an index is wanted.
type Platform struct {
	OS, Architecture, Variant string
}

// HostPlatform is the platform this program runs on.
func HostPlatform() Platform {
	return Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
}

// ParsePlatform parses os/architecture[/variant].
func ParsePlatform(s string) (Platform, error) {
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return Platform{}, blob.Errorf(blob.Invalid, "parse platform %q: want os/architecture[/variant], for example linux/arm64", s)
	}
	p := Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}

// String returns the platform as os/architecture[/variant].
func (p Platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// choose returns the digest of the index's manifest for platform p. Where no
// variant was asked for, any will do and the first wins, as indexes list the
// most general first.
func choose(data []byte, p Platform) (digest.Digest, error) {
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return "", blob.Errorf(blob.Invalid, "decode index: %w", err)
	}
	var have []string
	for _, m := range index.Manifests {
		if m.Platform == nil {
			// A lone manifest without a platform can only be meant for everybody.
			if len(index.Manifests) == 1 {
				return m.Digest, m.Digest.Validate()
			}
			continue
		}
		got := Platform{m.Platform.OS, m.Platform.Architecture, m.Platform.Variant}
		if got.OS == p.OS && got.Architecture == p.Architecture && (p.Variant == "" || got.Variant == p.Variant) {
			if err := m.Digest.Validate(); err != nil {
				return "", blob.Errorf(blob.Invalid, "decode index: manifest for %v: digest %q: %w", got, m.Digest, err)
			}
			return m.Digest, nil
		}
		if got.OS != "unknown" {
			have = append(have, got.String())
		}
	}
	return "", blob.Errorf(blob.NotFound, "choose platform: the image has none for %v, only %s", p, orNone(have))
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "manifests without a platform"
	}
	return fmt.Sprint(strings.Join(names, ", "))
}
