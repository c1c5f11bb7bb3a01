package profile

import (
	"context"

	"github.com/opencontainers/go-digest"
)

// ArtifactType is the type of a manifest that keeps a profile beside an image:
// its subject is the image's manifest, its one layer the encoding.
const ArtifactType = "application/vnd.skimmer.profile.v1"

// Exchange is where the cluster's profiles are. Its methods may be called
// concurrently.
type Exchange interface {
	// Lookup returns the cluster's profile of an image, encoded; the caller
	// decodes and so checks it. NotFound: the cluster has none. Unavailable:
	// there is nobody to ask.
	Lookup(ctx context.Context, manifest digest.Digest) ([]byte, error)
	// Offer gives the cluster a profile. It does not block, and nothing is
	// heard of what became of it.
	Offer(manifest digest.Digest, encoded []byte)
}
