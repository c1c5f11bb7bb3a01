package image

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
)

const (
	// maxAnticipated is how many images are indexed, or wait to be pulled, that nobody
	// has asked for a layer of.
	maxAnticipated = 16
	// maxConfig is the largest configuration of an image that is read, in bytes.
	maxConfig = 1 << 20
)

// Anticipate begins to index an image whose manifest a client on this node has just
// read, and means to pull, as the first PrepareLayer would: containerd reads the
// configuration next, writes down what it has, and only then asks for the first layer.
// What a start reads first is fetched, too. Whoever pulls the image in another way
// needs all of these bytes, so what is lost then is to have inflated them. It returns
// at once; ctx brings the credential. A manifest that is none, and one whose layers
// cannot be mounted lazily or are known already, is left alone.
func (l *Library) Anticipate(ctx context.Context, repository string, manifest []byte) {
	layers, err := parseManifest(manifest)
	if err != nil || l.noRanges(repository) {
		return
	}
	d := digest.FromBytes(manifest)
	l.mu.Lock()
	defer l.mu.Unlock()
	unknown := slices.ContainsFunc(layers, func(m manifestLayer) bool {
		return m.TOC != "" && l.layers[layerID(m.Digest, m.TOC)] == nil
	})
	if !unknown || l.indexings[indexingKey(repository, d)] != nil || l.anticipated() >= maxAnticipated {
		return
	}
	name := Name{Repository: repository, Digest: d}
	l.beginIndexing(ctx, name, "", given(d, manifest, l.configOf(repository, manifest)), true)
}

// anticipated returns how many images were indexed that nobody has asked for. l.mu is
// held.
func (l *Library) anticipated() (n int) {
	for _, ix := range l.indexings {
		if ix.unclaimed {
			n++
		}
	}
	return n
}

// configOf returns a Content that reads the configuration that a manifest names from
// where its layers are.
func (l *Library) configOf(repository string, manifest []byte) Content {
	return func(ctx context.Context, want digest.Digest) ([]byte, error) {
		var m ocispec.Manifest
		if err := json.Unmarshal(manifest, &m); err != nil {
			return nil, blob.Errorf(blob.Invalid, "decode manifest: %w", err)
		}
		if want != m.Config.Digest || m.Config.Size < 0 || m.Config.Size > maxConfig {
			return nil, blob.Errorf(blob.NotFound, "%v is not here", want)
		}
		b, err := l.cfg.Source.Open(ctx, blob.Ref{Digest: want, Size: m.Config.Size, MediaType: m.Config.MediaType, Repository: repository})
		if err != nil {
			return nil, err
		}
		defer b.Close()
		p := make([]byte, m.Config.Size)
		return p, blob.ReadFull(ctx, b, p, 0)
	}
}

// ref returns where the layer's blob can be had.
func (m manifestLayer) ref(repository string) blob.Ref {
	return blob.Ref{Digest: m.Digest, Size: m.Size, MediaType: m.MediaType, Repository: repository}
}
