package convert

import (
	"context"
	"maps"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"skimmer/internal/blob"
)

// Copy copies the image src to dst without changing it: same bytes, same
// digests. Only an index of which opts.Platforms selects a part becomes
// another one; the manifests it lists stay what they are. What dst has
// already is not sent again, and blobs within one registry are mounted where
// it allows that. Artifacts that are not images are copied as well.
//
// dst is unchanged until everything it needs is there; on error or when ctx
// ends, no temporary files are left. Errors are those of Convert.
func Copy(ctx context.Context, src, dst Name, opts Options) (*Result, error) {
	t, err := begin(ctx, src, dst, opts)
	if err != nil {
		return nil, err
	}
	defer t.close()
	root, err := load(ctx, t.src, src, opts.Platforms)
	if err != nil {
		return nil, err
	}
	blobs := make(map[digest.Digest]ocispec.Descriptor)
	err = root.walk(func(n *node) error {
		for _, d := range n.blobs() {
			blobs[d.Digest] = d
		}
		switch {
		case n.index == nil && n.manifest == nil:
			blobs[n.desc.Digest] = n.desc
		case n.filtered:
			if err := n.rewriteIndex(n.desc.MediaType); err != nil {
				return blob.Errorf(blob.Corrupt, "copy %v: rewrite index: %w", src, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	sorted := slices.SortedFunc(maps.Values(blobs), largestFirst)
	for _, d := range sorted {
		t.report(Event{Blob: d, State: Waiting, Total: d.Size})
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(t.opts.Jobs)
	for _, d := range sorted {
		g.Go(func() error { return t.copyBlob(gctx, d) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if err := t.finish(ctx, root); err != nil {
		return nil, err
	}
	return t.result(root, func(*LayerResult) {}), nil
}
