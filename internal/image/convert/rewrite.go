package convert

import (
	"maps"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// replace gives n new content.
func (n *node) replace(mediaType string, document any) error {
	raw, err := encode(document)
	if err != nil {
		return err
	}
	n.raw = raw
	n.desc.MediaType, n.desc.Digest, n.desc.Size, n.desc.Data = mediaType, digest.FromBytes(raw), int64(len(raw)), nil
	return nil
}

// rewriteIndex brings an index up to date with its children.
func (n *node) rewriteIndex(mediaType string) error {
	renamed := make(map[string]string)
	for i, c := range n.children {
		renamed[n.index.Manifests[i].Digest.String()] = c.desc.Digest.String()
		d := &n.index.Manifests[i]
		d.MediaType, d.Digest, d.Size, d.Data = c.desc.MediaType, c.desc.Digest, c.desc.Size, c.desc.Data
	}
	for i := range n.index.Manifests {
		d := &n.index.Manifests[i]
		now, ok := renamed[d.Annotations[annotationReference]]
		if !ok {
			continue
		}
		d.Annotations = maps.Clone(d.Annotations)
		d.Annotations[annotationReference] = now
	}
	return n.replace(mediaType, n.index)
}

// blobs returns what a manifest refers to and registries keep.
func (n *node) blobs() []ocispec.Descriptor {
	if n.manifest == nil {
		return nil
	}
	all := []ocispec.Descriptor{n.manifest.Config}
	for _, d := range n.manifest.Layers {
		if !isForeign(d) {
			all = append(all, d)
		}
	}
	return all
}
