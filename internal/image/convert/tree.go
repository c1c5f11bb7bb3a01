package convert

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
)

// Media types of the Docker era; their documents have the fields of the OCI
// ones.
const (
	dockerSchema1       = "application/vnd.docker.distribution.manifest.v1+json"
	dockerSchema1Signed = "application/vnd.docker.distribution.manifest.v1+prettyjws"
	dockerManifest      = "application/vnd.docker.distribution.manifest.v2+json"
	dockerIndex         = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig        = "application/vnd.docker.container.image.v1+json"
)

// annotationReference is how an attestation names, in the index, the image
// it is about (BuildKit's attestation storage).
const annotationReference = "vnd.docker.reference.digest"

const (
	// maxDepth is how deep an index may refer to indexes.
	maxDepth = 4
	// maxNodes is how many manifests one image may have.
	maxNodes = 1000
)

// node is a document of an image: an index with its children, a manifest, or
// something an index refers to that is neither.
type node struct {
	desc     ocispec.Descriptor
	raw      []byte            // nil for what is neither
	index    *ocispec.Index    // of an index, else nil
	children []*node           // in the order of index.Manifests
	manifest *ocispec.Manifest // of a manifest, else nil
	// srcDesc and srcLayers are what the source had, where desc and manifest
	// have been rewritten.
	srcDesc   ocispec.Descriptor
	srcLayers []ocispec.Descriptor
	// config is the image's configuration; nil where the manifest is that of
	// an attestation or another artifact.
	config   *ocispec.Image
	rawConf  []byte
	filtered bool // children were left out, so raw is no longer the content
}

// loader reads an image's tree of documents.
type loader struct {
	src       source
	name      Name
	platforms []ocispec.Platform // none: all
	nodes     int
	seen      []string // platforms met, for the error that none fits
}

// load reads the image that src's name selects, without what is for other
// platforms than those asked for.
func load(ctx context.Context, src source, n Name, platforms []ocispec.Platform) (*node, error) {
	l := &loader{src: src, name: n, platforms: platforms}
	desc, raw, err := src.root(ctx)
	if err != nil {
		return nil, err
	}
	root, err := l.node(ctx, desc, raw, 0)
	if err != nil {
		return nil, err
	}
	if err := l.filter(root); err != nil {
		return nil, err
	}
	return root, nil
}

func (l *loader) node(ctx context.Context, desc ocispec.Descriptor, raw []byte, depth int) (*node, error) {
	n := &node{desc: desc, raw: raw, srcDesc: desc}
	if l.nodes++; l.nodes > maxNodes {
		return nil, blob.Errorf(blob.Invalid, "read image %v: more than %d manifests", l.name, maxNodes)
	}
	if len(raw) > maxManifest {
		return nil, blob.Errorf(blob.Invalid, "read image %v: manifest %v of %d bytes is too large", l.name, desc.Digest, len(raw))
	}
	switch mt := documentType(desc.MediaType, raw); mt {
	case dockerSchema1, dockerSchema1Signed:
		return nil, blob.Errorf(blob.Invalid, "read image %v: its manifest is of Docker's schema 1, which is no longer supported; push it again with a current Docker", l.name)
	case ocispec.MediaTypeImageIndex, dockerIndex:
		n.desc.MediaType = mt
		return n, l.index(ctx, n, depth)
	case ocispec.MediaTypeImageManifest, dockerManifest:
		n.desc.MediaType = mt
		return n, l.manifest(ctx, n)
	}
	return nil, blob.Errorf(blob.Invalid, "read image %v: %v has media type %q, which is no image", l.name, desc.Digest, desc.MediaType)
}

// documentType returns a document's media type: what the descriptor says if
// that is known, else what the document says itself or looks like.
func documentType(mediaType string, raw []byte) string {
	if isIndexType(mediaType) || isManifestType(mediaType) || mediaType == dockerSchema1 || mediaType == dockerSchema1Signed {
		return mediaType
	}
	var probe struct {
		SchemaVersion int               `json:"schemaVersion"`
		MediaType     string            `json:"mediaType"`
		Manifests     []json.RawMessage `json:"manifests"`
		Layers        []json.RawMessage `json:"layers"`
	}
	switch err := json.Unmarshal(raw, &probe); {
	case err != nil:
		return mediaType
	case probe.SchemaVersion == 1:
		return dockerSchema1
	case isIndexType(probe.MediaType) || isManifestType(probe.MediaType):
		return probe.MediaType
	case probe.Manifests != nil:
		return ocispec.MediaTypeImageIndex
	case probe.Layers != nil:
		return ocispec.MediaTypeImageManifest
	}
	return mediaType
}

func isIndexType(mt string) bool {
	return mt == ocispec.MediaTypeImageIndex || mt == dockerIndex
}

func isManifestType(mt string) bool {
	return mt == ocispec.MediaTypeImageManifest || mt == dockerManifest
}

func (l *loader) index(ctx context.Context, n *node, depth int) error {
	if depth == maxDepth {
		return blob.Errorf(blob.Invalid, "read image %v: indexes are nested more than %d deep", l.name, maxDepth)
	}
	n.index = &ocispec.Index{}
	if err := json.Unmarshal(n.raw, n.index); err != nil {
		return blob.Errorf(blob.Corrupt, "read image %v: decode index %v: %w", l.name, n.desc.Digest, err)
	}
	for _, d := range n.index.Manifests {
		child := &node{desc: d, srcDesc: d}
		switch {
		case !l.wanted(d):
			// Kept as a place holder until filter knows which attestations go
			// with it.
		case isIndexType(d.MediaType) || isManifestType(d.MediaType):
			raw, err := l.src.manifest(ctx, d)
			if err != nil {
				if p := d.Platform; p != nil {
					return fmt.Errorf("read image for %s: %w; --platform leaves platforms out", platformString(p), err)
				}
				return err
			}
			if child, err = l.node(ctx, d, raw, depth+1); err != nil {
				return err
			}
		}
		n.children = append(n.children, child)
	}
	return nil
}

// wanted reports whether a descriptor in an index may be part of what was
// asked for.
func (l *loader) wanted(d ocispec.Descriptor) bool {
	if d.Platform == nil || isUnknown(d.Platform) || isIndexType(d.MediaType) {
		return true
	}
	l.seen = append(l.seen, platformString(d.Platform))
	return matches(l.platforms, *d.Platform)
}

// isUnknown reports the platform that attestations have.
func isUnknown(p *ocispec.Platform) bool {
	return p != nil && (p.OS == "unknown" || p.Architecture == "unknown")
}

func (l *loader) manifest(ctx context.Context, n *node) error {
	n.manifest = &ocispec.Manifest{}
	if err := json.Unmarshal(n.raw, n.manifest); err != nil {
		return blob.Errorf(blob.Corrupt, "read image %v: decode manifest %v: %w", l.name, n.desc.Digest, err)
	}
	m := n.manifest
	n.srcLayers = slices.Clone(m.Layers)
	for i, d := range append(slices.Clone(m.Layers), m.Config) {
		if err := d.Digest.Validate(); err != nil || d.Size < 0 {
			return blob.Errorf(blob.Corrupt, "read image %v: manifest %v: blob %d has digest %q and size %d", l.name, n.desc.Digest, i, d.Digest, d.Size)
		}
	}
	if !isImage(n) {
		return nil
	}
	if m.Config.Size > maxManifest {
		return blob.Errorf(blob.Invalid, "read image %v: config %v of %d bytes is too large", l.name, m.Config.Digest, m.Config.Size)
	}
	var err error
	if n.rawConf, err = fetchAll(ctx, l.src, m.Config); err != nil {
		return err
	}
	n.config = &ocispec.Image{}
	if err := json.Unmarshal(n.rawConf, n.config); err != nil {
		return blob.Errorf(blob.Corrupt, "read image %v: decode config %v: %w", l.name, m.Config.Digest, err)
	}
	if n.desc.Platform == nil {
		// An index need not say it; the config does.
		l.seen = append(l.seen, platformString(&n.config.Platform))
	}
	return nil
}

// isImage reports whether a manifest is that of an image one could run, not
// of an attestation or another artifact.
func isImage(n *node) bool {
	if !isConfig(n.manifest.Config.MediaType) || isUnknown(n.desc.Platform) || n.manifest.ArtifactType != "" {
		return false
	}
	return !slices.ContainsFunc(n.manifest.Layers, func(d ocispec.Descriptor) bool {
		return strings.HasPrefix(d.MediaType, "application/vnd.in-toto")
	})
}

func isConfig(mt string) bool {
	return mt == ocispec.MediaTypeImageConfig || mt == dockerConfig
}

// platform returns what the image of n is for.
func (n *node) platform() *ocispec.Platform {
	if n.desc.Platform != nil {
		return n.desc.Platform
	}
	if n.config != nil {
		return &n.config.Platform
	}
	return nil
}

// filter takes out of the tree what is for platforms nobody asked for, and
// fails where nothing is left.
func (l *loader) filter(root *node) error {
	if len(l.platforms) == 0 {
		return nil
	}
	kept := l.prune(root)
	for _, p := range l.platforms {
		if !slices.ContainsFunc(kept, func(have ocispec.Platform) bool { return matches([]ocispec.Platform{p}, have) }) {
			slices.Sort(l.seen)
			return blob.Errorf(blob.NotFound, "read image %v: it has nothing for platform %s, only for %s",
				l.name, platformString(&p), strings.Join(slices.Compact(l.seen), ", "))
		}
	}
	return nil
}

// prune filters the children of n and returns the platforms left.
func (l *loader) prune(n *node) []ocispec.Platform {
	if n.manifest != nil {
		if p := n.platform(); n.config != nil && p != nil && matches(l.platforms, *p) {
			return []ocispec.Platform{*p}
		}
		return nil
	}
	if n.index == nil {
		return nil
	}
	var kept []ocispec.Platform
	images := make(map[digest.Digest]bool)
	keep := make([]bool, len(n.children))
	for i, c := range n.children {
		if got := l.prune(c); len(got) > 0 {
			kept, keep[i], images[c.desc.Digest] = append(kept, got...), true, true
		}
	}
	var children []*node
	var descs []ocispec.Descriptor
	for i, c := range n.children {
		if keep[i] || images[digest.Digest(c.desc.Annotations[annotationReference])] {
			children, descs = append(children, c), append(descs, n.index.Manifests[i])
		}
	}
	n.filtered = n.filtered || len(children) < len(n.children)
	for _, c := range children {
		n.filtered = n.filtered || c.filtered
	}
	n.children, n.index.Manifests = children, descs
	return kept
}

// walk calls f for n and all below it, children first.
func (n *node) walk(f func(*node) error) error {
	for _, c := range n.children {
		if err := c.walk(f); err != nil {
			return err
		}
	}
	return f(n)
}

// fetchAll returns a small blob, checked.
func fetchAll(ctx context.Context, src source, d ocispec.Descriptor) ([]byte, error) {
	var p []byte
	err := retry(ctx, retryDelays, func() error {
		rc, err := src.open(ctx, d)
		if err != nil {
			return err
		}
		defer rc.Close()
		p, err = io.ReadAll(checked(ctx, rc, d))
		return err
	})
	return p, err
}

// ParsePlatform reads a platform as users write it,
// os/architecture[/variant]. Errors are of kind Invalid.
func ParsePlatform(s string) (ocispec.Platform, error) {
	p, err := v1.ParsePlatform(s)
	if err == nil && (p.OS == "" || p.Architecture == "" || p.OSVersion != "") {
		err = fmt.Errorf("want os/architecture[/variant], as in linux/arm64")
	}
	if err != nil {
		return ocispec.Platform{}, blob.Errorf(blob.Invalid, "parse platform %q: %w", s, err)
	}
	return ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}, nil
}

func platformString(p *ocispec.Platform) string {
	if p == nil || p.OS == "" {
		return "no platform"
	}
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// matches reports whether have is one of the wanted platforms; all are when
// none is named. A wanted platform without a variant takes any.
func matches(wanted []ocispec.Platform, have ocispec.Platform) bool {
	return len(wanted) == 0 || slices.ContainsFunc(wanted, func(w ocispec.Platform) bool {
		return w.OS == have.OS && w.Architecture == have.Architecture && (w.Variant == "" || w.Variant == variant(have))
	})
}

// variant returns p's variant, written out for 64-bit ARM, where v8 goes
// without saying.
func variant(p ocispec.Platform) string {
	if p.Variant == "" && p.Architecture == "arm64" {
		return "v8"
	}
	return p.Variant
}
