// Package transfer moves ranges of blobs between peers: a server that sends
// what a peer holds or is receiving, and a client that makes another peer a
// blob.Source. It decides nothing: who asks whom, what to do when a peer is
// busy, and whether bytes are what they should be is up to the caller.
//
// # Wire format
//
// HTTP/1.1 over connections that are kept. One request brings one range:
//
//	GET /blobs/sha256:<hex>
//	Range: bytes=<first>-<last>
//
//	206 Partial Content
//	Content-Range: bytes <first>-<last>/<size of the blob>
//
// The range is required, is one range with both ends, and has at most
// MaxRange bytes (64 MiB unless configured). The body comes in one of two
// forms.
//
//   - What is on disk whole has a Content-Length and the header
//     X-Skimmer-Crc32c, and is sent with sendfile.
//   - What is still arriving is relayed as it comes, chunked, with
//     X-Skimmer-Crc32c as trailer; or, when it stopped coming, the trailers
//     X-Skimmer-Status, which is what the status would have been, and
//     X-Skimmer-Error, the reason as text.
//
// X-Skimmer-Crc32c is "<segment>:<sums>": CRC32C (Castagnoli) of consecutive
// segments of the body, 8 hexadecimal digits each, at most 1024 of them. Segments
// end at the offsets of the blob that are multiples of <segment>, and at the
// end of the range; a <segment> of 0 makes the whole body one. The client
// never delivers the last byte of a segment whose sum is wrong. The sums find
// errors of transport and disks, not lies.
//
// HEAD of the same path, without a range, answers 200 with the blob's size
// as Content-Length and X-Skimmer-Held, the parts held: "0-262143,524288-786431",
// at most 512 of them, and none if the server cannot tell.
//
// A peer with no upload slot, or whose rate is used up, answers at once 503
// with Retry-After: 0, X-Skimmer-Busy, one word why, and X-Skimmer-Peers, up
// to 8 addresses of others that may have the bytes. More requests at a time
// from one remote than configured get the same with 429. Other failures have
// the status of their kind (see statusOf) and the reason as text. 404 also
// answers what is not a blob's path, 405 methods but GET and HEAD.
//
// A GET may have the header X-Skimmer-Origin, "<size> <place>", the blob's size
// and the repository or URL that has it. It allows a peer to read from there what
// it does not have, and is for peers that are there for that (see [WithOrigin]).
//
// With TLS (1.3, both ends require and verify the other's certificate) the
// same protocol is spoken, and nothing without.
package transfer

import "sync"

// The names of the headers and trailers.
const (
	headerCRC    = "X-Skimmer-Crc32c"
	headerStatus = "X-Skimmer-Status"
	headerError  = "X-Skimmer-Error"
	headerHeld   = "X-Skimmer-Held"
	headerBusy   = "X-Skimmer-Busy"
	headerPeers  = "X-Skimmer-Peers"
)

// Why a server is busy, in X-Skimmer-Busy.
const (
	busySlots   = "slots"   // all upload slots are taken
	busyRate    = "rate"    // the upload rate is used up
	busyRemote  = "remote"  // this remote has too many requests under way
	busyClosing = "closing" // the peer is leaving
)

// Limits of the wire format.
const (
	// DefaultMaxRange is how many bytes one request may ask for unless
	// configured.
	DefaultMaxRange = 64 << 20

	maxSums   = 1024 // segments of a body
	maxHeld   = 512  // runs in an answer to HEAD
	maxPeers  = 8    // other peers named in a busy answer
	maxReason = 300  // bytes of an error's text
)

// bufferSize is how many bytes are moved at a time where they pass through
// memory.
const bufferSize = 256 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

func getBuffer() *[bufferSize]byte  { return buffers.Get().(*[bufferSize]byte) }
func putBuffer(p *[bufferSize]byte) { buffers.Put(p) }
