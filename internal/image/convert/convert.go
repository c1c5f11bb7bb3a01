// Package convert makes images lazily mountable and moves them about: it
// reads an image from a registry, a layout or an archive, and writes it, as
// it is or with every layer rebuilt as eStargz or zstd:chunked, to a registry,
// a layout or an archive. It also looks into images and says what of them can
// be mounted lazily.
//
// Images are handled as the documents they are: what need not change keeps
// its bytes and so its digest. Registries are spoken to with
// go-containerregistry; layouts and archives are files. Building layers is
// the business of [skimmer/internal/estargz].
package convert

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
)

// ConvertOptions is how Convert works; its zero value is good.
type ConvertOptions struct {
	Options
	// Layer is how layers are built. TempDir and Progress are Convert's own.
	Layer estargz.BuildOptions
	// Prefetch, where set, takes the place of Layer.Prefetch: it returns the
	// list for each layer of the source by its digest, in the order of need. It
	// may be called concurrently.
	Prefetch func(source digest.Digest) []string
}

// Convert reads the image src, rebuilds its layers so that they can be
// mounted before they have arrived, and writes the result to dst with OCI
// media types throughout. The same image and options give the same digests.
//
// An index stays an index. In it, manifests that are not those of images
// (attestations) and images for Windows, whose layers nothing mounts lazily,
// keep their bytes; an attestation's reference to its image is brought up to
// date. A layer that several platforms share is rebuilt once. Layers that are
// kept elsewhere (foreign layers) stay where they are.
//
// dst is unchanged until everything it needs is there. On error or when ctx
// ends, no temporary files are left; blobs that were stored completely stay,
// so that a second try need not send them again.
//
// Errors: Invalid for what is not an image, is encrypted or of a kind nobody
// knows, NotFound for an image or platform that is not there, Corrupt for
// content that is not what it should be, and the Kinds of reading and writing.
func Convert(ctx context.Context, src, dst Name, opts ConvertOptions) (*Result, error) {
	t, err := begin(ctx, src, dst, opts.Options)
	if err != nil {
		return nil, err
	}
	defer t.close()
	root, err := load(ctx, t.src, src, opts.Platforms)
	if err != nil {
		return nil, err
	}
	c := &conversion{transfer: t, build: opts.Layer, prefetch: opts.Prefetch, layers: make(map[digest.Digest]*layer)}
	if err := c.plan(root); err != nil {
		return nil, fmt.Errorf("convert %v: %w", src, err)
	}
	if err := c.run(ctx); err != nil {
		return nil, err
	}
	if err := c.rewrite(ctx, root); err != nil {
		return nil, err
	}
	if err := t.finish(ctx, root); err != nil {
		return nil, err
	}
	return t.result(root, c.describe), nil
}

// maxEmbedded is the largest configuration that is put into the manifest, too (OCI
// image-spec, "Descriptor": the field data), in bytes: who knows to look there need not
// ask the registry for it. Most have 2 to 10 KB; a manifest may have 4 MiB.
const maxEmbedded = 32 << 10

// conversion is one run of Convert.
type conversion struct {
	*transfer
	build    estargz.BuildOptions
	prefetch func(digest.Digest) []string // nil: build's
	images   []*node                      // to convert
	layers   map[digest.Digest]*layer
	copies   map[digest.Digest]ocispec.Descriptor // blobs that stay as they are
}

// layer is a layer to convert, shared by all images that have it.
type layer struct {
	src   ocispec.Descriptor
	built estargz.Built
}

// plan decides what is to be converted and what is to be copied.
func (c *conversion) plan(root *node) error {
	c.copies = make(map[digest.Digest]ocispec.Descriptor)
	err := root.walk(func(n *node) error {
		switch {
		case n.manifest == nil:
			if n.index == nil {
				c.copies[n.desc.Digest] = n.desc
			}
		case !convertible(n):
			for _, d := range n.blobs() {
				c.copies[d.Digest] = d
			}
		default:
			return c.planImage(n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(c.images) > 0 {
		return nil
	}
	if root.manifest != nil && root.config == nil {
		return blob.Errorf(blob.Invalid, "it is not an image but an artifact (config %s); skimmer image cp copies it as it is", root.manifest.Config.MediaType)
	}
	return blob.Errorf(blob.Invalid, "there is no image in it that could be mounted lazily, only %s", platformString(root.platform()))
}

// convertible reports whether n is an image whose layers are ours to rebuild.
func convertible(n *node) bool { return n.config != nil && n.platform().OS != "windows" }

func (c *conversion) planImage(n *node) error {
	c.images = append(c.images, n)
	if have, want := len(n.config.RootFS.DiffIDs), len(n.manifest.Layers); have != want {
		return blob.Errorf(blob.Corrupt, "image %v: the manifest has %d layers, its config %d", n.desc.Digest, want, have)
	}
	for _, d := range n.manifest.Layers {
		rebuild, err := rebuilds(d)
		if err != nil {
			return err
		}
		if rebuild && c.layers[d.Digest] == nil {
			c.layers[d.Digest] = &layer{src: d}
		}
	}
	if filled := recorded(n.config.History); len(n.config.History) > 0 && filled != len(n.manifest.Layers) {
		c.warn("image %v: its history records %d layers of %d; it is kept as it is", n.desc.Digest, filled, len(n.manifest.Layers))
	}
	return nil
}

// recorded returns how many entries of a history stand for a layer.
func recorded(history []ocispec.History) int {
	n := 0
	for _, h := range history {
		if !h.EmptyLayer {
			n++
		}
	}
	return n
}

// Layer media types beside those of ocispec.
const (
	dockerLayer            = "application/vnd.docker.image.rootfs.diff.tar"
	dockerLayerGzip        = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	dockerLayerZstd        = "application/vnd.docker.image.rootfs.diff.tar.zstd"
	dockerForeignLayer     = "application/vnd.docker.image.rootfs.foreign.diff.tar"
	dockerForeignLayerGzip = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	ociForeignPrefix       = "application/vnd.oci.image.layer.nondistributable."
)

// rebuilds reports whether a layer is to be rebuilt; a foreign one is not.
func rebuilds(d ocispec.Descriptor) (bool, error) {
	switch d.MediaType {
	case ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageLayerZstd,
		dockerLayer, dockerLayerGzip, dockerLayerZstd:
		return true, nil
	}
	switch {
	case isForeign(d):
		return false, nil
	case strings.HasSuffix(d.MediaType, "+encrypted"):
		return false, blob.Errorf(blob.Invalid, "layer %v is encrypted (%s); decrypt the image first", d.Digest, d.MediaType)
	}
	return false, blob.Errorf(blob.Invalid, "layer %v has media type %q, which is no tar that could be rebuilt", d.Digest, d.MediaType)
}

// isForeign reports a layer that is not kept in registries but downloaded
// from where its descriptor says.
func isForeign(d ocispec.Descriptor) bool {
	return d.MediaType == dockerForeignLayer || d.MediaType == dockerForeignLayerGzip ||
		strings.HasPrefix(d.MediaType, ociForeignPrefix)
}

// run converts and copies everything that is not a document, the largest
// first, so that no worker is left with a long one at the end.
func (c *conversion) run(ctx context.Context) error {
	layers := slices.SortedFunc(maps.Values(c.layers), func(a, b *layer) int { return largestFirst(a.src, b.src) })
	copies := slices.SortedFunc(maps.Values(c.copies), largestFirst)
	for _, l := range layers {
		c.report(Event{Blob: l.src, State: Waiting})
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(c.opts.Jobs)
	for _, l := range layers {
		g.Go(func() error { return c.convertLayer(ctx, l) })
	}
	for _, d := range copies {
		g.Go(func() error { return c.copyBlob(ctx, d) })
	}
	return g.Wait()
}

func largestFirst(a, b ocispec.Descriptor) int {
	return cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(a.Digest, b.Digest))
}

// rewrite gives every document its new content and stores the configs.
func (c *conversion) rewrite(ctx context.Context, root *node) error {
	for _, n := range c.images {
		if err := c.rewriteImage(ctx, n); err != nil {
			return err
		}
	}
	c.warnMissing()
	return root.walk(func(n *node) error {
		if n.index == nil {
			return nil
		}
		n.index.MediaType = ocispec.MediaTypeImageIndex
		return n.rewriteIndex(ocispec.MediaTypeImageIndex)
	})
}

func (c *conversion) rewriteImage(ctx context.Context, n *node) error {
	m := n.manifest
	diffIDs := slices.Clone(n.config.RootFS.DiffIDs)
	for i, d := range m.Layers {
		l, ok := c.layers[d.Digest]
		if !ok {
			m.Layers[i].MediaType = foreignType(d.MediaType)
			continue
		}
		diffIDs[i] = l.built.DiffID
		m.Layers[i] = l.descriptor()
	}
	conf, err := rewriteConfig(n.rawConf, diffIDs)
	if err != nil {
		return blob.Errorf(blob.Corrupt, "rewrite config %v: %w", m.Config.Digest, err)
	}
	m.Versioned = specs.Versioned{SchemaVersion: 2}
	m.MediaType = ocispec.MediaTypeImageManifest
	m.Config.MediaType = ocispec.MediaTypeImageConfig
	m.Config.Digest, m.Config.Size, m.Config.Data = digest.FromBytes(conf), int64(len(conf)), nil
	if err := c.storeBytes(ctx, m.Config, conf); err != nil {
		return err
	}
	if len(conf) <= maxEmbedded {
		m.Config.Data = conf
	}
	return n.replace(ocispec.MediaTypeImageManifest, m)
}

// descriptor returns the built layer as a manifest lists it.
func (l *layer) descriptor() ocispec.Descriptor {
	return ocispec.Descriptor{
		MediaType: l.built.MediaType, Digest: l.built.Digest, Size: l.built.Size, Annotations: l.built.Annotations,
	}
}

// foreignType returns the OCI name of a foreign layer's media type.
func foreignType(mt string) string {
	switch mt {
	case dockerForeignLayer:
		return ociForeignPrefix + "v1.tar"
	case dockerForeignLayerGzip:
		return ociForeignPrefix + "v1.tar+gzip"
	}
	return mt
}

// rewriteConfig returns a config with other diff IDs. All else is kept,
// fields nobody here knows included; the history's, too, as every layer
// stays where it was.
func rewriteConfig(raw []byte, diffIDs []digest.Digest) ([]byte, error) {
	var conf map[string]json.RawMessage
	if err := json.Unmarshal(raw, &conf); err != nil {
		return nil, err
	}
	if diffIDs == nil {
		diffIDs = []digest.Digest{}
	}
	rootfs, err := json.Marshal(ocispec.RootFS{Type: "layers", DiffIDs: diffIDs})
	if err != nil {
		return nil, err
	}
	conf["rootfs"] = rootfs
	return encode(conf)
}

// encode returns v as JSON without what json.Marshal does for HTML, which
// would change the strings of documents that pass through.
func encode(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// warnMissing says which files of the prefetch list an image does not have.
// A file is in one of an image's layers, so only what all of them miss is
// missing.
func (c *conversion) warnMissing() {
	missing := make(map[string][]string) // path to platforms
	for _, n := range c.images {
		misses := make(map[string]int)
		rebuilt := 0
		for _, d := range n.srcLayers {
			if l := c.layers[d.Digest]; l != nil {
				rebuilt++
				for _, path := range l.built.PrefetchMissing {
					misses[path]++
				}
			}
		}
		for _, path := range c.build.Prefetch {
			if misses[path] == rebuilt {
				missing[path] = append(missing[path], platformString(n.platform()))
			}
		}
	}
	for _, path := range c.build.Prefetch {
		if len(missing[path]) > 0 {
			c.warn("prefetch list: no file %s in the image for %s", path, strings.Join(missing[path], ", "))
		}
	}
}

// describe adds to a layer's result what only the conversion knows.
func (c *conversion) describe(r *LayerResult) {
	if l := c.layers[r.Source]; l != nil && l.built.Digest == r.Digest {
		r.Converted = true
		r.DiffID, r.TOCDigest, r.UncompressedSize = l.built.DiffID, l.built.TOCDigest, l.built.UncompressedSize
	}
}
