package image

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
	"skimmer/internal/image/trace"
	"skimmer/internal/layerdev"
)

// indexing is the reading of one image's manifest and of all its tables of
// contents, done once for all who want a part of it.
type indexing struct {
	// Constant.
	key         string
	manifest    digest.Digest
	anticipated bool // it began before anybody asked for it
	rec         *recording
	parsed      chan struct{} // closed when what follows is known

	// Constant once parsed is closed.
	err    error
	layers []*indexedLayer // bottom first

	// unclaimed says that nobody has asked for it yet. Library.mu guards it.
	unclaimed bool
}

// indexedLayer is one layer of an indexing.
type indexedLayer struct {
	// Constant.
	promise manifestLayer
	done    chan struct{} // closed when what follows is known

	// Constant once done is closed.
	err   error
	layer Layer
}

// lists reports whether the manifest has been read and lists a layer.
func (ix *indexing) lists(layer digest.Digest) bool {
	select {
	case <-ix.parsed:
	default:
		return false
	}
	return ix.err == nil && slices.ContainsFunc(ix.layers, func(il *indexedLayer) bool { return il.promise.Digest == layer })
}

const (
	// indexAtOnce is how many tables of contents of an image are read at once.
	indexAtOnce = 16
	// indexedFor is how long what was indexed stays in memory: containerd asks
	// for an image's layers one after the other, and then for a mount of all.
	indexedFor = 2 * time.Minute
)

// indexing returns the indexing of a manifest, which may be under way or over.
// It goes on when ctx ends, as others may wait for it, with the credential
// that ctx brings. name has the digest; called is how the user calls it.
func (l *Library) indexing(ctx context.Context, name Name, called string, nearby Content) *indexing {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ix := l.indexings[indexingKey(name.Repository, name.Digest)]; ix != nil {
		if ix.unclaimed {
			ix.unclaimed = false
			ix.rec.name(called)
		}
		return ix
	}
	return l.beginIndexing(ctx, name, called, nearby, false)
}

// beginIndexing is indexing of what is not indexed. l.mu is held.
func (l *Library) beginIndexing(ctx context.Context, name Name, called string, nearby Content, anticipated bool) *indexing {
	repository, d := name.Repository, name.Digest
	key := indexingKey(repository, d)
	ix := &indexing{key: key, manifest: d, anticipated: anticipated, unclaimed: anticipated, parsed: make(chan struct{})}
	if l.ctx.Err() != nil {
		ix.err = blob.Errorf(blob.Unavailable, "the node is stopping")
		close(ix.parsed)
		return ix
	}
	l.indexings[key] = ix
	ix.rec = l.record(repository, called, d)
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(l.ctx, cancel)
	l.work.Go(func() {
		defer cancel()
		defer stop()
		l.index(ctx, ix, repository, nearby)
	})
	return ix
}

func indexingKey(repository string, manifest digest.Digest) string {
	return repository + "@" + manifest.String()
}

func (l *Library) index(ctx context.Context, ix *indexing, repository string, nearby Content) {
	planned := l.findProfile(ctx, ix.rec, repository)
	mctx, over := ix.rec.timed(ctx, trace.Manifest, "")
	data, err := l.manifestBytes(mctx, repository, ix.manifest, nearby)
	over(int64(len(data)), err)
	if err == nil {
		var layers []manifestLayer
		layers, err = parseManifest(data)
		for _, promise := range layers {
			ix.layers = append(ix.layers, &indexedLayer{promise: promise, done: make(chan struct{})})
		}
	}
	ix.err = err
	close(ix.parsed)
	if ix.err != nil {
		ix.rec.giveUp()
		l.forgetIndexing(ix)
		return
	}
	slots := make(chan struct{}, indexAtOnce)
	for _, il := range ix.layers {
		slots <- struct{}{}
		l.work.Go(func() {
			defer func() { <-slots }()
			tctx, over := ix.rec.timed(ctx, trace.Index, il.promise.Digest)
			il.layer, il.err = l.indexLayer(tctx, repository, il.promise)
			over(0, il.err)
			close(il.done)
		})
	}
	l.settleIndexing(ctx, ix, repository, plan{startOf(ctx, data, nearby), planned})
}

// settleIndexing builds what will be asked for next, and forgets an indexing
// that failed for a reason that may pass.
func (l *Library) settleIndexing(ctx context.Context, ix *indexing, repository string, p plan) {
	var run []Layer
	lazy, passing := true, false
	for _, il := range ix.layers {
		<-il.done
		if il.err != nil {
			lazy = false
			passing = passing || blob.KindOf(il.err) != blob.Invalid
		} else if lazy {
			run = append(run, il.layer)
		}
	}
	if passing {
		l.forgetIndexing(ix)
	}
	ix.rec.watch(run)
	l.fetchStart(ctx, ix.rec, run, p)
	if len(run) > 0 {
		_, over := ix.rec.timed(ctx, trace.Metadata, "")
		err := l.stack(run, repository, false).build(ctx)
		over(0, err)
		if err != nil {
			l.log.Debug("metadata could not be built ahead", "image", ix.key, "error", err)
		}
	} else {
		ix.rec.giveUp()
	}
	time.AfterFunc(indexedFor, func() { l.forgetIndexing(ix) })
}

// again reports whether what an indexing failed with is to be tried once more: of one
// that began before anybody asked for it, it may be for want of a credential that who
// asks has.
func (l *Library) again(ctx context.Context, ix *indexing, err error) bool {
	if err == nil || ctx.Err() != nil || !ix.anticipated || blob.KindOf(err) == blob.Invalid {
		return false
	}
	l.forgetIndexing(ix)
	return true
}

// forgetIndexing makes the next who wants it begin anew.
func (l *Library) forgetIndexing(ix *indexing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.indexings[ix.key] == ix {
		delete(l.indexings, ix.key)
	}
	maps.DeleteFunc(l.tags, func(_ string, tagged *indexing) bool { return tagged == ix })
	for _, il := range ix.layers {
		select {
		case <-il.done:
			delete(l.tocs, layerID(il.layer.Digest, il.layer.TOCDigest))
		default:
		}
	}
}

// indexLayer reads a layer's table of contents and makes the layer known.
func (l *Library) indexLayer(ctx context.Context, repository string, promise manifestLayer) (Layer, error) {
	layer := Layer{Digest: promise.Digest, MediaType: promise.MediaType, Size: promise.Size}
	ref := promise.ref(repository)
	toc, err := l.readTOC(ctx, ref, promise.TOC, promise.Read)
	if err != nil {
		return layer, err
	}
	layer.TOCDigest, layer.DataSize = toc.Digest, toc.Index.DataSize
	id := layerID(layer.Digest, layer.TOCDigest)

	// Known before its folder is made: what is not known is swept away.
	l.mu.Lock()
	ll := l.addLayer(layer, ref)
	ll.coming = time.Now().Add(comingFor)
	l.tocs[id] = toc
	l.mu.Unlock()
	if err := layerdev.Create(l.layerDir(id), &toc.Index); err != nil {
		return layer, fmt.Errorf("make layer folder: %w", err)
	}
	return layer, nil
}

func (l *Library) readTOC(ctx context.Context, ref blob.Ref, want digest.Digest, opts estargz.ReadOptions) (*estargz.TOC, error) {
	b, err := l.cfg.Source.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	toc, err := estargz.ReadTOC(ctx, b, want, opts)
	if errors.Is(err, estargz.ErrNotLazy) {
		return nil, fmt.Errorf("%w; make an image that can be mounted lazily with: skimmer image convert", err)
	}
	return toc, err
}

// toc returns a layer's table of contents: from memory shortly after it was
// indexed, else it is read again.
func (l *Library) toc(ctx context.Context, layer Layer, repository string) (*estargz.TOC, error) {
	id := layerID(layer.Digest, layer.TOCDigest)
	l.mu.Lock()
	toc := l.tocs[id]
	refs := []blob.Ref{{Digest: layer.Digest, Size: layer.Size, MediaType: layer.MediaType, Repository: repository}}
	if ll := l.layers[id]; ll != nil {
		refs = append(refs, ll.sources()...)
	}
	l.mu.Unlock()
	if toc != nil {
		return toc, nil
	}
	var errs []error
	for _, ref := range refs {
		toc, err := l.readTOC(ctx, ref, layer.TOCDigest, estargz.ReadOptions{})
		if err == nil {
			return toc, nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("read table of contents of layer %v: %w", layer.Digest, errors.Join(errs...))
}
