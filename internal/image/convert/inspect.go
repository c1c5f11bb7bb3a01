package convert

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
)

// InspectOptions is how Inspect works.
type InspectOptions struct {
	// Access says how registries are reached for manifests and configs.
	Access Access
	// Blobs is where ranges of layers in a registry are read from. It is not
	// asked for those of layouts and archives.
	Blobs blob.Source
	// Platforms selects what of a multi-platform image is looked at; none
	// means all.
	Platforms []ocispec.Platform
	// Jobs is how many layers are looked at a time; 0 means one for each CPU.
	Jobs int
	// TempDir is where a compressed archive is unpacked; empty means the
	// system's temporary directory.
	TempDir string
}

// Inspection is what Inspect finds out about an image. Its JSON form is what
// the command prints; sizes are in bytes.
type Inspection struct {
	// Name is the image's name, complete.
	Name string `json:"name"`
	// Digest and MediaType are those of what the name stands for, an index or
	// a manifest.
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	// Images are its platforms, in the order of the index.
	Images []ImageInfo `json:"images"`
	// Others are manifests that are not those of images, as attestations.
	Others []OtherInfo `json:"others,omitempty"`
}

// ImageInfo is one platform of an image.
type ImageInfo struct {
	// Platform is os/architecture[/variant].
	Platform string `json:"platform"`
	// Digest and MediaType are those of its manifest, Config is its config's.
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Config    digest.Digest `json:"config"`
	// Size is the sum of the layers as they are stored.
	Size int64 `json:"size"`
	// Lazy is whether all layers can be mounted lazily.
	Lazy bool `json:"lazy"`
	// Layers are in the order of the manifest, the lowest first.
	Layers []LayerInfo `json:"layers"`
}

// LayerInfo is one layer of an image.
type LayerInfo struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	// Size is that of the blob; UncompressedSize that of the tar, 0 where the
	// manifest does not say it.
	Size             int64 `json:"size"`
	UncompressedSize int64 `json:"uncompressedSize,omitempty"`
	// Lazy is whether the layer can be mounted lazily; Reason says why not.
	Lazy   bool   `json:"lazy"`
	Reason string `json:"reason,omitempty"`
	// TOC is what its table of contents says, nil where there is none.
	TOC *TOCInfo `json:"toc,omitempty"`
}

// TOCInfo is what a layer's table of contents says.
type TOCInfo struct {
	Digest digest.Digest `json:"digest"`
	// Compression is "gzip" or "zstd".
	Compression string `json:"compression"`
	// Entries counts files of any type, Chunks the separately verified parts
	// of their contents, Streams those that can be decompressed on their own.
	Entries int `json:"entries"`
	Chunks  int `json:"chunks"`
	Streams int `json:"streams"`
	// DataSize is the size of all file contents, each rounded up to a block.
	DataSize int64 `json:"dataSize"`
	// PrefetchSize is where the prefetch landmark is: so many bytes from the
	// start of the layer are wanted early; 0 where there is none.
	PrefetchSize int64 `json:"prefetchSize"`
	// NoPrefetch says that the layer has the landmark by which it asks for
	// nothing to be fetched ahead.
	NoPrefetch bool `json:"noPrefetch"`
}

// OtherInfo is a manifest that is not that of an image.
type OtherInfo struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	// Subject is the image an attestation is about, if it says so.
	Subject digest.Digest `json:"subject,omitempty"`
}

// Inspect reads the documents of the image n and the tables of contents of
// its layers, and nothing else of these. That a layer cannot be mounted lazily
// is a finding, not an error, and so is content that is not what its digest
// says; errors are those of finding and reaching the image.
func Inspect(ctx context.Context, n Name, opts InspectOptions) (*Inspection, error) {
	if opts.Jobs <= 0 {
		opts.Jobs = runtime.GOMAXPROCS(0)
	}
	s, err := opts.Access.open(opts.Jobs)
	if err != nil {
		return nil, err
	}
	defer s.close()
	src, err := openSource(ctx, n, s, opts.TempDir)
	if err != nil {
		return nil, err
	}
	defer src.close()
	root, err := load(ctx, src, n, opts.Platforms)
	if err != nil {
		return nil, err
	}
	in := &inspector{name: n, blobs: opts.Blobs}
	if local, ok := src.(localSource); ok {
		in.blobs = localBlobs{local}
	}
	layers, err := in.readLayers(ctx, root, opts.Jobs)
	if err != nil {
		return nil, err
	}
	return report(n, root, layers), nil
}

type inspector struct {
	name  Name
	blobs blob.Source
}

// readLayers looks into every layer of the tree once.
func (in *inspector) readLayers(ctx context.Context, root *node, jobs int) (map[digest.Digest]*LayerInfo, error) {
	layers := make(map[digest.Digest]*LayerInfo)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(jobs)
	_ = root.walk(func(n *node) error {
		if n.config == nil {
			return nil
		}
		for _, d := range n.manifest.Layers {
			if layers[d.Digest] != nil {
				continue
			}
			info := &LayerInfo{Digest: d.Digest, MediaType: d.MediaType, Size: d.Size}
			layers[d.Digest] = info
			g.Go(func() error { return in.readLayer(ctx, d, info) })
		}
		return nil
	})
	return layers, g.Wait()
}

func (in *inspector) readLayer(ctx context.Context, d ocispec.Descriptor, info *LayerInfo) error {
	if size, err := strconv.ParseInt(d.Annotations[estargz.UncompressedSizeAnnotation], 10, 64); err == nil && size > 0 {
		info.UncompressedSize = size
	}
	want, opts := estargz.Promised(d.Annotations)
	if isForeign(d) {
		info.Reason = "foreign layer, kept outside of registries"
		return nil
	}
	if want == "" && opts.CompressedDigest == "" {
		info.Reason = "no table of contents; skimmer image convert adds one"
		return nil
	}
	toc, err := in.readTOC(ctx, d, want, opts)
	switch kind := blob.KindOf(err); {
	case err == nil:
	case errors.Is(err, estargz.ErrNotLazy), kind == blob.Invalid, kind == blob.Corrupt, kind == blob.NotFound:
		info.Reason = err.Error()
		return nil
	default:
		return fmt.Errorf("inspect layer %v of %v: %w", d.Digest, in.name, err)
	}
	compression := "gzip"
	if toc.Index.Compression == estargz.Zstd {
		compression = "zstd"
	}
	info.Lazy = true
	info.TOC = &TOCInfo{
		Digest: toc.Digest, Compression: compression,
		Entries: len(toc.Entries), Chunks: len(toc.Index.Chunks), Streams: len(toc.Index.Streams),
		DataSize: toc.Index.DataSize, PrefetchSize: toc.Index.PrefetchEnd, NoPrefetch: toc.NoPrefetch,
	}
	return nil
}

func (in *inspector) readTOC(ctx context.Context, d ocispec.Descriptor, want digest.Digest, opts estargz.ReadOptions) (*estargz.TOC, error) {
	b, err := in.blobs.Open(ctx, blob.Ref{
		Digest: d.Digest, Size: d.Size, MediaType: d.MediaType, Repository: in.name.Repository(),
	})
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return estargz.ReadTOC(ctx, b, want, opts)
}

// report puts together what was found.
func report(n Name, root *node, layers map[digest.Digest]*LayerInfo) *Inspection {
	r := &Inspection{Name: n.String(), Digest: root.desc.Digest, MediaType: root.desc.MediaType, Images: []ImageInfo{}}
	_ = root.walk(func(n *node) error {
		switch {
		case n.index != nil:
		case n.config == nil:
			r.Others = append(r.Others, OtherInfo{
				Digest: n.desc.Digest, MediaType: n.desc.MediaType, Subject: digest.Digest(n.desc.Annotations[annotationReference]),
			})
		default:
			img := ImageInfo{
				Platform: platformString(n.platform()), Digest: n.desc.Digest, MediaType: n.desc.MediaType,
				Config: n.manifest.Config.Digest, Lazy: len(n.manifest.Layers) > 0, Layers: []LayerInfo{},
			}
			for _, d := range n.manifest.Layers {
				l := *layers[d.Digest]
				img.Size += l.Size
				img.Layers = append(img.Layers, l)
			}
			img.Lazy = img.Lazy && !slices.ContainsFunc(img.Layers, func(l LayerInfo) bool { return !l.Lazy })
			r.Images = append(r.Images, img)
		}
		return nil
	})
	return r
}
