package image

import (
	"context"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
)

const (
	// anticipatedFor is how long what was read ahead of a pull waits for it, and how
	// long the reading may take.
	anticipatedFor = 30 * time.Second
	// maxAnticipated is how many images are read ahead of, or wait to be pulled, at
	// the same time.
	maxAnticipated = 16
)

// anticipation is what is read of an image before anybody asks for its layers.
// It is constant.
type anticipation struct {
	found *found                       // nil where profiles are turned off
	tocs  map[string]*anticipatedTable // by layerID
}

// anticipatedTable is a table of contents of an anticipation.
type anticipatedTable struct {
	done chan struct{} // closed when what follows is known

	// Constant once done is closed.
	toc *estargz.TOC
	err error
}

// Anticipate begins to read the tables of contents of an image whose manifest a
// client on this node has just read, and means to pull, to look for its profile, and
// to fetch what that names: containerd reads the configuration next, writes down what
// it has, and only then asks for the first layer. What a whole pull would bring is all
// that is read. It returns at once; ctx brings the credential. A manifest that is none,
// layers that cannot be mounted lazily, and what is known already, are left out.
func (l *Library) Anticipate(ctx context.Context, repository string, manifest []byte) {
	layers, err := parseManifest(manifest)
	if err != nil || l.noRanges(repository) {
		return
	}
	d := digest.FromBytes(manifest)
	key := indexingKey(repository, d)
	l.mu.Lock()
	defer l.mu.Unlock()
	layers = slices.DeleteFunc(layers, func(m manifestLayer) bool {
		return m.TOC == "" || l.layers[layerID(m.Digest, m.TOC)] != nil
	})
	if len(layers) == 0 || l.ctx.Err() != nil || l.ahead[key] != nil || len(l.ahead) >= maxAnticipated {
		return
	}
	a := &anticipation{tocs: make(map[string]*anticipatedTable)}
	l.ahead[key] = a
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), anticipatedFor)
	stop := context.AfterFunc(l.ctx, cancel)
	time.AfterFunc(anticipatedFor, func() {
		cancel()
		stop()
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.ahead[key] == a {
			delete(l.ahead, key) // nobody came
		}
	})
	for _, promise := range layers {
		t := &anticipatedTable{done: make(chan struct{})}
		a.tocs[layerID(promise.Digest, promise.TOC)] = t
		l.work.Go(func() {
			defer close(t.done)
			t.toc, t.err = l.readTOC(ctx, promise.ref(repository), promise.TOC, promise.Read)
		})
	}
	if l.profiles != nil {
		a.found = &found{done: make(chan struct{})}
		l.work.Go(func() { _ = l.look(ctx, a.found, repository, d) }) // it was logged, and who wants it goes on without
		l.work.Go(func() { l.fetchAhead(ctx, a, repository, layers) })
	}
}

// takeAnticipated returns what is read ahead of an image, and forgets it; what has
// nothing in it if nothing is.
func (l *Library) takeAnticipated(key string) *anticipation {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.ahead[key]
	delete(l.ahead, key)
	if a == nil {
		return new(anticipation)
	}
	return a
}

// table returns the table of contents of a layer, if it was read ahead: it waits for
// whoever does so still. What failed for them may not for us, with another credential.
func (a *anticipation) table(ctx context.Context, promise manifestLayer) *estargz.TOC {
	t := a.tocs[layerID(promise.Digest, promise.TOC)]
	if t == nil || wait(ctx, t.done) != nil {
		return nil
	}
	return t.toc
}

// ref returns where the layer's blob can be had.
func (m manifestLayer) ref(repository string) blob.Ref {
	return blob.Ref{Digest: m.Digest, Size: m.Size, MediaType: m.MediaType, Repository: repository}
}
