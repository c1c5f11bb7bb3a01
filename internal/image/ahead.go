package image

import (
	"context"
	"maps"
	"slices"
	"sort"
	"sync"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
	"skimmer/internal/layerdev"
)

const (
	// maxAhead is how many compressed bytes of an image's data are fetched before
	// anybody has asked for its layers.
	maxAhead = 64 << 20
	// aheadAtOnce is how many parts of layers are on their way together then.
	aheadAtOnce = 4
)

// fetchAhead has the source fetch what the image's profile names, where there is one,
// so that it is near when the layers are asked for: until then the way to it would be
// idle. Nothing is inflated yet. Where there is no profile nobody knows.
func (l *Library) fetchAhead(ctx context.Context, a *anticipation, repository string, layers []manifestLayer) {
	if wait(ctx, a.found.done) != nil || a.found.profile == nil {
		return
	}
	s := &starter{}
	var tocs []*estargz.TOC
	var at []int // in layers, of those whose tables could be read
	for i, promise := range layers {
		if toc := a.table(ctx, promise); toc != nil {
			s.layers = append(s.layers, Layer{Digest: promise.Digest, TOCDigest: toc.Digest})
			tocs, at = append(tocs, toc), append(at, i)
		}
	}
	limit := int64(maxAhead)
	if l.cfg.ProfileLimit > 0 {
		limit = min(limit, l.cfg.ProfileLimit)
	}
	waves, _ := cutWaves(s.trusted(a.found.profile, tocs), tocs, limit)
	ctx = blob.WithPriority(ctx, blob.Prefetch)
	var all sync.WaitGroup
	defer all.Wait()
	under := make(chan struct{}, aheadAtOnce)
	for _, w := range waves {
		for layer, list := range w {
			select {
			case under <- struct{}{}:
			case <-ctx.Done():
				return
			}
			all.Go(func() {
				defer func() { <-under }()
				err := l.pass(ctx, layers[at[layer]].ref(repository), streamRanges(&tocs[layer].Index, list))
				if err != nil && l.ctx.Err() == nil {
					l.log.Debug("could not fetch ahead of a pull", "repository", repository, "layer", s.layers[layer].Digest, "error", err)
				}
			})
		}
	}
}

// pass has the source read ranges of a blob, which it keeps.
func (l *Library) pass(ctx context.Context, ref blob.Ref, ranges []blob.Range) error {
	b, err := l.cfg.Source.Open(ctx, ref)
	if err != nil {
		return err
	}
	defer b.Close()
	return blob.ReadRanges(ctx, b, ranges, func(int, int64, []byte) error { return nil })
}

// streamRanges returns where in the blob the streams are that hold spans of the flat
// data, in order.
func streamRanges(ix *estargz.Index, list []layerdev.Span) []blob.Range {
	wanted := make(map[int]bool)
	for _, sp := range list {
		chunk := sort.Search(len(ix.Chunks), func(i int) bool { return ix.Chunks[i].DataOff+ix.Chunks[i].Size > sp.Off })
		for chunk < len(ix.Chunks) && ix.Chunks[chunk].DataOff < sp.End {
			n := streamOf(ix, chunk)
			wanted[n] = true
			chunk = int(ix.Streams[n].FirstChunk + ix.Streams[n].NumChunks)
		}
	}
	var ranges []blob.Range
	for _, n := range slices.Sorted(maps.Keys(wanted)) {
		st := ix.Streams[n]
		if last := len(ranges) - 1; last >= 0 && ranges[last].End() == st.Off {
			ranges[last].Len += st.End - st.Off
		} else {
			ranges = append(ranges, blob.Range{Off: st.Off, Len: st.End - st.Off})
		}
	}
	return ranges
}
