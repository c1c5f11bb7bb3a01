package convert

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
)

// source is where an image is read from: a registry, a layout or an archive.
// Its methods may be called concurrently; the context of open bounds the
// source's life, that of a call the call and the readers it returned.
type source interface {
	// root returns the descriptor and the bytes of what the name selects.
	root(ctx context.Context) (ocispec.Descriptor, []byte, error)
	// manifest returns the bytes of a manifest or index, checked against
	// their digest.
	manifest(ctx context.Context, d ocispec.Descriptor) ([]byte, error)
	// open returns a reader of a blob, unchecked; see checked.
	open(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error)
	// origin returns the reference by which a registry can mount the blob
	// instead of having it sent, or nil.
	origin(d ocispec.Descriptor) name.Reference
	// close frees what the source holds.
	close() error
}

// localSource is a source whose blobs are files of this machine, which need
// no copy to be read at any offset.
type localSource interface {
	source
	// openAt returns a blob's bytes, unchecked.
	openAt(d digest.Digest) (file, error)
}

// target is where an image is written to. Its methods may be called
// concurrently, commit last and once.
type target interface {
	// has reports whether the blob is there already.
	has(ctx context.Context, d ocispec.Descriptor) (bool, error)
	// put stores a blob that is not there.
	put(ctx context.Context, d ocispec.Descriptor, c content) error
	// putManifest stores a manifest or index under its digest; everything it
	// refers to is there.
	putManifest(ctx context.Context, d ocispec.Descriptor, raw []byte) error
	// commit stores the root manifest or index and gives it the name; until
	// then nobody sees the image.
	commit(ctx context.Context, d ocispec.Descriptor, raw []byte) error
	// close frees what the target holds and, if nothing was committed, what
	// must not be left.
	close() error
}

// content is a blob on its way to a target.
type content struct {
	// open returns a reader of the whole blob, which fails in place of io.EOF
	// where the bytes are not what the digest promises. A target that tries
	// again calls it again.
	open func() (io.ReadCloser, error)
	// from is where the target's registry may have the blob, or nil.
	from name.Reference
}

// file is a blob on this machine.
type file interface {
	io.ReaderAt
	io.Closer
	// Size returns the length in bytes.
	Size() int64
}

// retryDelays is how long to wait before trying a request or transfer again.
// Tests shorten it.
var retryDelays = []time.Duration{time.Second, 3 * time.Second, 9 * time.Second}

// retry calls f until it succeeds, fails for good, or has been tried
// len(delays)+1 times. That nobody is there at all counts as for good: it is
// mostly a wrong name, and whoever wrote it should not wait to learn that.
func retry(ctx context.Context, delays []time.Duration, f func() error) error {
	for _, d := range delays {
		err := f()
		if err == nil || ctx.Err() != nil || !blob.KindOf(err).Temporary() || nobodyThere(err) {
			return err
		}
		t := time.NewTimer(d)
		select {
		case <-ctx.Done():
			t.Stop()
			return err
		case <-t.C:
		}
	}
	return f()
}

// bytesContent is content that is at hand.
func bytesContent(p []byte) content {
	return content{open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(p)), nil }}
}

func nobodyThere(err error) bool {
	var dns *net.DNSError
	return errors.Is(err, syscall.ECONNREFUSED) || errors.As(err, &dns) && dns.IsNotFound
}

// checkedReader reads a blob and fails where it ends before or behind its
// size, or is not what its digest says.
type checkedReader struct {
	ctx  context.Context
	rc   io.ReadCloser
	d    ocispec.Descriptor
	hash digest.Verifier
	n    int64
}

func checked(ctx context.Context, rc io.ReadCloser, d ocispec.Descriptor) io.ReadCloser {
	return &checkedReader{ctx: ctx, rc: rc, d: d, hash: d.Digest.Verifier()}
}

func (r *checkedReader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	n, err := r.rc.Read(p)
	r.n += int64(n)
	_, _ = r.hash.Write(p[:n])
	switch {
	case r.n > r.d.Size:
		return n, blob.Errorf(blob.Corrupt, "read blob %v: it is longer than the %d bytes its descriptor says", r.d.Digest, r.d.Size)
	case errors.Is(err, io.EOF) && r.n < r.d.Size:
		return n, blob.Errorf(blob.Corrupt, "read blob %v: it ends after %d of %d bytes; the image is truncated", r.d.Digest, r.n, r.d.Size)
	case errors.Is(err, io.EOF) && !r.hash.Verified():
		return n, blob.Errorf(blob.Corrupt, "read blob %v: its content has another digest", r.d.Digest)
	}
	return n, err
}

func (r *checkedReader) Close() error { return r.rc.Close() }

// tap calls f with the number of bytes of each read.
type tap struct {
	io.Reader
	f func(n int)
}

func (t tap) Read(p []byte) (int, error) {
	n, err := t.Reader.Read(p)
	t.f(n)
	return n, err
}
