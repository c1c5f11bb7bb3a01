// Package blob holds the words the data path is written in: what a blob is
// called, which part of it is wanted, how it is read, and how reading fails.
//
// Every hop that bytes pass on their way from a registry to a container
// implements [Source] or wraps one, so the path of a byte is an expression:
// a layer device reads from a store, the store from a swarm, the swarm from
// an origin. This package imports nothing of ours.
package blob

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
)

// SizeUnknown is the Size of a Ref whose length its holder does not know.
const SizeUnknown int64 = -1

// Ref names one blob and says where it can be had. The zero Ref names
// nothing; a useful one has a Digest and a Repository or URL.
type Ref struct {
	// Digest is the blob's identity: whoever has bytes with this digest has
	// the blob, wherever they came from. See CheckDigest for what it can be.
	Digest digest.Digest
	// Size is the blob's length in bytes, or SizeUnknown. A Source trusts it
	// only until it learns better, and reports a contradiction as Corrupt.
	Size int64
	// MediaType is the type the manifest gave the blob, or empty.
	MediaType string
	// Repository says where a registry holds the blob, as
	// "registry.example:5000/library/python": a host, an optional port and a
	// path, never a scheme, tag or digest.
	Repository string
	// URL is where a plain URL has it; empty for blobs of registries. Package
	// origin/web makes it and says what its parts mean. Its query may be a
	// signature, so it is not for logs.
	URL string
}

// Place says where the blob comes from, for people: its repository, or its URL
// without what may be secret or is only for us.
func (r Ref) Place() string {
	if r.URL == "" {
		return r.Repository
	}
	place, _, _ := strings.Cut(r.URL, "#")
	place, _, _ = strings.Cut(place, "?")
	return place
}

// String returns the reference as people write it, place@digest.
func (r Ref) String() string {
	if place := r.Place(); place != "" {
		return place + "@" + r.Digest.String()
	}
	return r.Digest.String()
}

// Validate reports a Ref that cannot be opened, as an Invalid error.
func (r Ref) Validate() error {
	if err := CheckDigest(r.Digest); err != nil {
		return Errorf(Invalid, "check blob reference %q: %w", r.String(), err)
	}
	if r.Size < SizeUnknown {
		return Errorf(Invalid, "check blob reference %q: size %d is negative", r.String(), r.Size)
	}
	return nil
}

// AlgorithmURL is the algorithm of the identities of blobs that a plain URL
// has. They are derived from where a blob is and from what its server calls
// this version of it, not from its bytes, so nothing can be compared with
// them.
const AlgorithmURL digest.Algorithm = "url"

// CheckDigest reports, as an Invalid error, what cannot be a blob's identity:
// a digest that package digest knows (SHA-256, SHA-384, SHA-512), or
// AlgorithmURL with 64 hexadecimal digits.
func CheckDigest(d digest.Digest) error {
	if common(string(d)) {
		return nil
	}
	err := d.Validate()
	if hex, ok := strings.CutPrefix(string(d), string(AlgorithmURL)+":"); ok {
		// It has the form of a SHA-256.
		err = digest.NewDigestFromEncoded(digest.SHA256, hex).Validate()
	}
	if err != nil {
		return Errorf(Invalid, "digest %q: %w", d, err)
	}
	return nil
}

// common reports whether d is what nearly every blob is called: a SHA-256, or
// AlgorithmURL. It is asked so often that package digest, which matches regular
// expressions, would be noticed.
func common(d string) bool {
	hex, ok := strings.CutPrefix(d, string(digest.SHA256)+":")
	if !ok {
		hex, ok = strings.CutPrefix(d, string(AlgorithmURL)+":")
	}
	if !ok || len(hex) != 64 {
		return false
	}
	for i := range len(hex) {
		if c := hex[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// Verifiable reports whether d, which CheckDigest takes, says what the blob's
// bytes are.
func Verifiable(d digest.Digest) bool { return d.Algorithm() != AlgorithmURL }

// Source opens blobs. Implementations are safe for concurrent use.
//
// The conformance suite in blobtest says the rest in code; a Source that
// passes it can stand anywhere in the stack.
type Source interface {
	// Open returns the blob ref names. It contacts the network only when it
	// must to learn the blob's size, so opening is cheap where ref.Size is
	// known, and a blob that does not exist may be noticed only on reading.
	// The caller closes the Blob.
	//
	// Errors: Invalid for a malformed ref, NotFound, Unauthorized, Forbidden,
	// Unavailable, Timeout, Busy.
	Open(ctx context.Context, ref Ref) (Blob, error)
}

// Blob is an open blob. All methods are safe for concurrent use, except that
// nothing may be called after Close.
type Blob interface {
	// Size returns the blob's length in bytes; it is always known.
	Size() int64

	// ReadRange returns the bytes of r, in order and as they arrive, so the
	// first byte does not wait for the last. The reader delivers exactly
	// r.Len bytes and then io.EOF, or fails with an error that has a Kind; a
	// short read is never reported as success. An empty range inside the
	// blob is at once at its end. Cancelling ctx fails the reader too, and
	// closing the reader early frees what it holds. The caller closes it.
	//
	// Bytes of a partial read are what the source's source sent: only a whole
	// blob can be held against its digest, so whoever needs certainty about a
	// part checks it against something that was promised (a chunk digest).
	//
	// Errors: Invalid if r is not inside [0, Size), and any Kind.
	ReadRange(ctx context.Context, r Range) (io.ReadCloser, error)

	// Close releases the blob. Readers it gave out stay usable until they are
	// closed themselves.
	Close() error
}

// Rejecter is implemented by blobs that keep what they read. Content below a
// whole blob can be checked only by whoever knows what it should be, so that
// one says when it is not.
type Rejecter interface {
	// Reject reports that the bytes of r, as this blob delivered them, are not
	// what they should be: what is kept of them is forgotten, and the next
	// read asks the source behind again. Rejecting what is not kept does
	// nothing. Safe for concurrent use.
	Reject(r Range)
}

// Range is the part [Off, Off+Len) of a blob, in bytes.
type Range struct {
	Off, Len int64
}

// End returns the first offset behind the range.
func (r Range) End() int64 { return r.Off + r.Len }

// String writes the range as HTTP does, with an inclusive end.
func (r Range) String() string {
	if r.Len <= 0 {
		return fmt.Sprintf("%d-(empty)", r.Off)
	}
	return fmt.Sprintf("%d-%d", r.Off, r.End()-1)
}

// Check reports, as an Invalid error, a range that is not inside a blob of
// the given size.
func (r Range) Check(size int64) error {
	if r.Off < 0 || r.Len < 0 || r.Off > size || r.Len > size-r.Off {
		return Errorf(Invalid, "read range %d+%d: outside a blob of %d bytes", r.Off, r.Len, size)
	}
	return nil
}

// ReadFull fills p with the bytes of b from off on. It returns nil only when
// all of p was filled.
func ReadFull(ctx context.Context, b Blob, p []byte, off int64) error {
	rc, err := b.ReadRange(ctx, Range{Off: off, Len: int64(len(p))})
	if err != nil {
		return err
	}
	defer rc.Close()
	_, err = io.ReadFull(rc, p)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return Errorf(Corrupt, "read range %v: source ended early: %w", Range{off, int64(len(p))}, err)
	}
	return err
}

// readerAt adapts a Blob to io.ReaderAt.
type readerAt struct {
	ctx context.Context
	b   Blob
}

// ReaderAt returns b as an io.ReaderAt whose reads end when ctx does. It is
// for libraries that want one; each call is one ReadRange.
func ReaderAt(ctx context.Context, b Blob) io.ReaderAt { return readerAt{ctx, b} }

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	want := int64(len(p))
	if off < 0 {
		return 0, Errorf(Invalid, "read at %d: negative offset", off)
	}
	if off >= r.b.Size() {
		return 0, io.EOF
	}
	n := min(want, r.b.Size()-off)
	if err := ReadFull(r.ctx, r.b, p[:n], off); err != nil {
		return 0, err
	}
	if n < want {
		return int(n), io.EOF
	}
	return int(n), nil
}

// Priority says how urgently a read is wanted. It travels in the context,
// because it belongs to the request and crosses every hop unchanged.
type Priority uint8

// The priorities, most urgent first. Their order is fixed: it is sent
// between nodes.
const (
	// Demand is a read somebody is blocked on.
	Demand Priority = iota
	// Prefetch is a read that will probably be wanted soon.
	Prefetch
	// Background is a read that only completes what is held.
	Background
)

// String returns the priority's name as logs and metrics write it.
func (p Priority) String() string {
	switch p {
	case Demand:
		return "demand"
	case Prefetch:
		return "prefetch"
	case Background:
		return "background"
	}
	return fmt.Sprintf("priority(%d)", uint8(p))
}

type priorityKey struct{}

// WithPriority returns a context whose reads have priority p.
func WithPriority(ctx context.Context, p Priority) context.Context {
	return context.WithValue(ctx, priorityKey{}, p)
}

// PriorityOf returns the priority of reads made with ctx; Demand when nobody
// said.
func PriorityOf(ctx context.Context) Priority {
	p, _ := ctx.Value(priorityKey{}).(Priority)
	return p
}
