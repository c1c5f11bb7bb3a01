package image

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
)

const (
	// anticipatedFor is how long what was read ahead of a pull waits for it.
	anticipatedFor = 30 * time.Second
	// maxAnticipated is how many tables of contents are read ahead of pulls, or
	// wait for them, at the same time.
	maxAnticipated = 64
)

// anticipated is a table of contents that was read before anybody asked for its
// layer.
type anticipated struct {
	done chan struct{} // closed when what follows is known

	// Constant once done is closed.
	toc *estargz.TOC
	err error
}

// Anticipate begins to read the tables of contents of an image whose manifest a
// client on this node has just read, and means to pull, and to look for its
// profile: containerd reads the configuration next, writes down what it has, and
// only then asks for the first layer. What a whole pull would bring is all that is
// read. It returns at once; ctx brings the credential. A manifest that is none,
// layers that cannot be mounted lazily, and what is known already, are left out.
func (l *Library) Anticipate(ctx context.Context, repository string, manifest []byte) {
	layers, err := parseManifest(manifest)
	if err != nil || l.noRanges(repository) {
		return
	}
	ctx = context.WithoutCancel(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	news := false
	for _, promise := range layers {
		key := anticipatedKey(repository, promise)
		if promise.TOC == "" || l.ctx.Err() != nil || len(l.ahead) >= maxAnticipated ||
			l.ahead[key] != nil || l.layers[layerID(promise.Digest, promise.TOC)] != nil {
			continue
		}
		news = true
		a := &anticipated{done: make(chan struct{})}
		l.ahead[key] = a
		l.work.Go(func() { l.readAnticipated(ctx, repository, promise, a) })
	}
	if news && l.profiles != nil {
		d, f := digest.FromBytes(manifest), &found{done: make(chan struct{})}
		l.founds[foundKey(repository, d)] = f
		l.work.Go(func() { l.findAhead(ctx, repository, d, f) })
	}
}

func (l *Library) findAhead(ctx context.Context, repository string, manifest digest.Digest, f *found) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	_ = l.look(ctx, f, repository, manifest) // who takes it goes on without; it was logged
	time.AfterFunc(anticipatedFor, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if key := foundKey(repository, manifest); l.founds[key] == f {
			delete(l.founds, key)
		}
	})
}

func foundKey(repository string, manifest digest.Digest) string {
	return repository + "@" + manifest.String()
}

// takeFound returns the profile that is looked for ahead of a pull, and forgets
// it; nil if none is.
func (l *Library) takeFound(repository string, manifest digest.Digest) *found {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := foundKey(repository, manifest)
	f := l.founds[key]
	delete(l.founds, key)
	return f
}

func (l *Library) readAnticipated(ctx context.Context, repository string, promise manifestLayer, a *anticipated) {
	ctx, cancel := context.WithTimeout(ctx, anticipatedFor)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()
	a.toc, a.err = l.readTOC(ctx, promise.ref(repository), promise.TOC, promise.Read)
	close(a.done)
	time.AfterFunc(anticipatedFor, func() { // nobody came
		l.mu.Lock()
		defer l.mu.Unlock()
		if key := anticipatedKey(repository, promise); l.ahead[key] == a {
			delete(l.ahead, key)
		}
	})
}

func anticipatedKey(repository string, promise manifestLayer) string {
	return repository + "@" + layerID(promise.Digest, promise.TOC)
}

// takeAnticipated returns what is read ahead of a layer, and forgets it; nil if
// nothing is.
func (l *Library) takeAnticipated(repository string, promise manifestLayer) *anticipated {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := anticipatedKey(repository, promise)
	a := l.ahead[key]
	delete(l.ahead, key)
	return a
}

// promisedTOC reads the table of contents of a layer, or waits for whoever does
// so already. What failed for them may not for us, with another credential.
func (l *Library) promisedTOC(ctx context.Context, repository string, promise manifestLayer) (*estargz.TOC, error) {
	if a := l.takeAnticipated(repository, promise); a != nil {
		if err := wait(ctx, a.done); err != nil {
			return nil, err
		}
		if a.err == nil {
			return a.toc, nil
		}
	}
	return l.readTOC(ctx, promise.ref(repository), promise.TOC, promise.Read)
}

// ref returns where the layer's blob can be had.
func (m manifestLayer) ref(repository string) blob.Ref {
	return blob.Ref{Digest: m.Digest, Size: m.Size, MediaType: m.MediaType, Repository: repository}
}
