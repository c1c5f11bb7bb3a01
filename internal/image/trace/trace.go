// Package trace is the record of what happened while an image started: what was
// fetched, mounted and waited for, and where it came from.
package trace

import (
	"time"

	"github.com/opencontainers/go-digest"
)

// Kind is what an event is about.
type Kind string

// The kinds.
const (
	Manifest Kind = "manifest" // the image's manifest was read
	Index    Kind = "index"    // a layer's table of contents was read
	Profile  Kind = "profile"  // a profile was looked for
	Metadata Kind = "metadata" // the file system's metadata was built
	Mount    Kind = "mount"    // a container's layers were mounted
	Prefetch Kind = "prefetch" // something was fetched before anybody asked
	Fault    Kind = "fault"    // somebody had to wait for missing data
)

// Start is the timeline of one image's start.
type Start struct {
	// Image is the name it was asked for by, Manifest the digest it stood for.
	Image    string        `json:"image"`
	Manifest digest.Digest `json:"manifest"`
	// Began is when the image was asked for; all times count from here.
	Began time.Time `json:"began"`
	// Settled is when reading had settled, 0 while it has not.
	Settled time.Duration `json:"settled"`
	// Profile says where the profile came from that was fetched by: "node",
	// "cluster", "registry", or "" for none.
	Profile string `json:"profile"`
	// Wanted and Used are the bytes of flat data the profile named, and those
	// of them that were read.
	Wanted int64 `json:"wanted"`
	Used   int64 `json:"used"`
	// Read and Fetched are the bytes of flat data that were read (each once),
	// and the compressed bytes that were fetched meanwhile; their ratio, taken
	// in flat bytes, is the read amplification.
	Read     int64 `json:"read"`
	Inflated int64 `json:"inflated"`
	Fetched  int64 `json:"fetched"`
	// Dropped is how many events there was no room for.
	Dropped int `json:"dropped"`
	// Events are in the order in which they began.
	Events []Event `json:"events"`
}

// Event is something that took time.
type Event struct {
	Kind Kind `json:"kind"`
	// At is when it began, Took how long it did.
	At   time.Duration `json:"at"`
	Took time.Duration `json:"took"`
	// Layer is the layer's digest, where it is about one.
	Layer digest.Digest `json:"layer,omitempty"`
	// File is the file that was read, with Chunk, the first chunk, and Chunks,
	// how many there were.
	File   string `json:"file,omitempty"`
	Chunk  int    `json:"chunk,omitempty"`
	Chunks int    `json:"chunks,omitempty"`
	// Bytes are those of flat data (Fault, Prefetch) or of the document.
	Bytes int64 `json:"bytes,omitempty"`
	// Local, Peers and Origin are the compressed bytes it took, by where they
	// came from: this node's disk, other nodes, the registry.
	Local  int64 `json:"local,omitempty"`
	Peers  int64 `json:"peers,omitempty"`
	Origin int64 `json:"origin,omitempty"`
	// Error is what went wrong, if something did.
	Error string `json:"error,omitempty"`
}
