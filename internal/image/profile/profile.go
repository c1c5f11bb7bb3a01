// Package profile says which parts of an image a start of it reads, so that the
// next start, here or on another node, can have them fetched before it asks.
//
// A profile names chunks by number. It has no content and no names of files:
// who sees it learns how much of an image's layers a start reads, and when.
package profile

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// Profile is what one or several starts of an image read.
type Profile struct {
	// Manifest is the image's, of one platform: the key. Since it fixes the
	// image's configuration, too, it stands for one command.
	Manifest digest.Digest
	// Platform is that of the image, as linux/amd64.
	Platform string
	// Recorded is when the last of the starts was, in whole seconds.
	Recorded time.Time
	// Starts is how many starts were merged, at least 1.
	Starts int
	// Layers are those of the image that can be mounted lazily, bottom first.
	Layers []Layer
	// Reads are in the order in which they came, no chunk twice.
	Reads []Read
}

// Layer is a layer as its table of contents cuts it.
type Layer struct {
	// Digest is the blob's, TOC that of its table of contents.
	Digest, TOC digest.Digest
	// Chunks is how many there are.
	Chunks int
}

// Read is a run of chunks of one layer that were read one after the other.
type Read struct {
	// Layer is an index into Profile.Layers; the chunks are First to
	// First+Count-1, by their numbers in the layer's index.
	Layer, First, Count int
	// At is how long after the image was asked for, in whole milliseconds.
	At time.Duration
	// Starts is how many of the starts read it, at least 1.
	Starts int
}
