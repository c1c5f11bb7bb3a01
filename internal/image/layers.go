package image

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/layerdev"
)

// layerID is what a lazy layer is kept under. The table of contents promises
// every byte, the blob says where they come from, and only both together may
// share a cache: a registry that serves other bytes under a digest it does not
// have spoils nothing but its own.
func layerID(layer, toc digest.Digest) string {
	return digest.FromString(layer.String() + " " + toc.String()).Encoded()
}

func (l *Library) layerDir(id string) string { return l.path("layers", id[:2], id) }

// lazyLayer is a layer the device may be asked for. Its data is opened by the
// first who reads it, so that knowing thousands of layers costs nothing.
type lazyLayer struct {
	// Constant.
	lib      *Library
	id       string
	toc      digest.Digest
	dataSize int64
	node     uint64

	// watchers are the recordings of starts that its reads belong to. Library.mu
	// is held to change them.
	watchers atomic.Pointer[[]watcher]

	// Library.mu guards what follows.
	pulled  bool      // somebody keeps it: see Adopt
	image   string    // how the user called the image it was pulled for
	touched uint64    // when it was adopted, in ticks
	coming  time.Time // until when it may still be adopted
	givenUp bool      // its data was removed for space, and it was not mounted since

	// mu guards what follows. Order: Library.mu, mu.
	mu    sync.Mutex
	refs  []blob.Ref // where the blob can be had, the best first
	layer *layerdev.Layer
	gone  bool // dropped: must not be opened any more
}

func newLazyLayer(l *Library, layer Layer) *lazyLayer {
	id := layerID(layer.Digest, layer.TOCDigest)
	return &lazyLayer{lib: l, id: id, toc: layer.TOCDigest, dataSize: layer.DataSize, node: layerdev.NodeID(id)}
}

// addRef makes ref the first place to fetch from.
func (ll *lazyLayer) addRef(ref blob.Ref) {
	ll.mu.Lock()
	defer ll.mu.Unlock()
	ll.refs = slices.DeleteFunc(ll.refs, func(r blob.Ref) bool { return r.Repository == ref.Repository })
	ll.refs = slices.Insert(ll.refs, 0, ref)
}

// sources returns where the blob can be had, the best first.
func (ll *lazyLayer) sources() []blob.Ref {
	ll.mu.Lock()
	defer ll.mu.Unlock()
	return slices.Clone(ll.refs)
}

// demote makes ref the last place to fetch from, because it failed.
func (ll *lazyLayer) demote(ref blob.Ref) {
	ll.mu.Lock()
	defer ll.mu.Unlock()
	i := slices.IndexFunc(ll.refs, func(r blob.Ref) bool { return r.Repository == ref.Repository })
	if i >= 0 {
		ll.refs = append(slices.Delete(ll.refs, i, i+1), ref)
	}
}

// open returns the layer's chunk cache.
func (ll *lazyLayer) open() (*layerdev.Layer, error) {
	ll.mu.Lock()
	defer ll.mu.Unlock()
	if ll.layer != nil {
		return ll.layer, nil
	}
	if ll.gone {
		return nil, blob.Errorf(blob.NotFound, "open layer %v: it was removed", ll.refs[0])
	}
	l := ll.lib
	layer, err := layerdev.OpenLayer(l.layerDir(ll.id), layerdev.LayerConfig{
		Name:         ll.refs[0].String(),
		Blob:         ll.openBlob,
		IOTimeout:    l.cfg.IOTimeout,
		MaxReadahead: l.cfg.MaxReadahead,
		OnRead:       ll.read,
		OnFetch:      ll.fetched,
		OnComplete:   l.kickFill,
		Pace:         l.paceBackground(),
		Logger:       l.log,
	})
	if err != nil {
		return nil, fmt.Errorf("open layer %v: %w", ll.refs[0], err)
	}
	ll.layer = layer
	return layer, nil
}

func (ll *lazyLayer) close() error {
	ll.mu.Lock()
	defer ll.mu.Unlock()
	if ll.layer == nil {
		return nil
	}
	layer := ll.layer
	ll.layer = nil
	return layer.Close()
}

// addLayer makes a layer known that can be had from ref. l.mu is held.
func (l *Library) addLayer(layer Layer, ref blob.Ref) *lazyLayer {
	id := layerID(layer.Digest, layer.TOCDigest)
	ll := l.layers[id]
	if ll == nil {
		ll = newLazyLayer(l, layer)
		l.layers[id] = ll
		l.nodes[ll.node] = ll
	}
	ll.addRef(ref)
	return ll
}

// layer returns the layer of that ID; nil if it is not known.
func (l *Library) layer(id string) *lazyLayer {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.layers[id]
}

// completeData returns the path of the layer's data file if all of it is
// there, so that it can be used without the layer device.
func (ll *lazyLayer) completeData() (string, bool) {
	return layerdev.CompleteData(ll.lib.layerDir(ll.id))
}

// deviceFiles is the library as the layer device sees it.
type deviceFiles Library

// Lookup implements layerdev.Files.
func (f *deviceFiles) Lookup(name string) (node uint64, size int64, ok bool) {
	l := (*Library)(f)
	l.mu.Lock()
	defer l.mu.Unlock()
	ll := l.layers[name]
	if ll == nil {
		return 0, 0, false
	}
	return ll.node, ll.dataSize, true
}

// ByNode implements layerdev.Files.
func (f *deviceFiles) ByNode(node uint64) (layerdev.File, error) {
	l := (*Library)(f)
	l.mu.Lock()
	ll := l.nodes[node]
	l.mu.Unlock()
	if ll == nil {
		return nil, blob.Errorf(blob.NotFound, "find layer by node %#x: none is known", node)
	}
	return ll.open()
}

// Names implements layerdev.Files.
func (f *deviceFiles) Names() []string {
	l := (*Library)(f)
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.layers))
}

// LayerState says how much of a layer is here.
type LayerState struct {
	Digest digest.Digest
	// Size is the length of the layer blob in bytes.
	Size int64
	// DataSize and Present are bytes of file content: all, and those here.
	DataSize, Present int64
	// Complete means that the layer needs no source any more.
	Complete bool
}

// LayerStates returns the state of each of im's layers, bottom first.
func (l *Library) LayerStates(im *Image) []LayerState {
	states := make([]LayerState, 0, len(im.Layers))
	for _, layer := range im.Layers {
		states = append(states, l.layerState(layer))
	}
	return states
}

func (l *Library) layerState(layer Layer) LayerState {
	s := LayerState{Digest: layer.Digest, Size: layer.Size, DataSize: layer.DataSize}
	var err error
	if ll := l.layer(layerID(layer.Digest, layer.TOCDigest)); ll == nil {
		err = blob.Errorf(blob.NotFound, "it is not known any more")
	} else {
		var open *layerdev.Layer
		if open, err = ll.open(); err == nil {
			s.Complete = open.IsComplete()
			s.Present, s.DataSize, err = open.Progress()
		}
	}
	if err != nil {
		l.log.Warn("cannot tell the state of a layer", "layer", layer.Digest, "error", err)
	}
	return s
}

// PulledState is a pulled layer, how much of it is here, and whether
// containers may be running on it.
type PulledState struct {
	LayerState
	// Image is how the user called the image it was pulled for first.
	Image string
	// Mounted means that the layer is part of something that is mounted.
	Mounted bool
}

// PulledStates returns the state of all pulled layers, by image.
func (l *Library) PulledStates() []PulledState {
	type pulled struct {
		layer Layer
		image string
	}
	var all []pulled
	l.mu.Lock()
	for _, ll := range l.layers {
		if ref := ll.sources()[0]; ll.pulled {
			all = append(all, pulled{Layer{ref.Digest, ref.MediaType, ref.Size, ll.toc, ll.dataSize}, ll.image})
		}
	}
	l.mu.Unlock()
	mounted := l.mountedTOCs()
	states := make([]PulledState, 0, len(all))
	for _, p := range all {
		states = append(states, PulledState{l.layerState(p.layer), p.image, mounted[p.layer.TOCDigest]})
	}
	slices.SortFunc(states, func(a, b PulledState) int {
		return cmp.Or(strings.Compare(a.Image, b.Image), strings.Compare(string(a.Digest), string(b.Digest)))
	})
	return states
}

// Complete fetches all that im still misses, at background priority, and
// returns when it is durable: from then on the image can be mounted without
// this process. Errors are those of layerdev.Layer.Complete.
func (l *Library) Complete(ctx context.Context, im *Image) error {
	for _, layer := range im.Layers {
		open, err := l.layer(layerID(layer.Digest, layer.TOCDigest)).open()
		if err == nil {
			err = open.Complete(ctx)
		}
		if err != nil {
			return fmt.Errorf("complete layer %v: %w", layer.Digest, err)
		}
	}
	return nil
}

// Stats returns the counters of all layers that have been read since the
// library was opened, added up; Longest is the longest of all.
func (l *Library) Stats() layerdev.Stats {
	l.mu.Lock()
	layers := slices.Collect(maps.Values(l.layers))
	l.mu.Unlock()
	var sum layerdev.Stats
	for _, ll := range layers {
		ll.mu.Lock()
		if ll.layer != nil {
			sum = sum.Add(ll.layer.Stats())
		}
		ll.mu.Unlock()
	}
	return sum
}
