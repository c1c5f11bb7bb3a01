package mirror

import (
	"bytes"
	"context"
	"io"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
)

const (
	// maxEmbedded is the largest blob that is kept of those that manifests bring, in
	// bytes, and maxEmbeds how many are.
	maxEmbedded = 64 << 10
	maxEmbeds   = 256
)

// embed keeps what a manifest brings of what it lists (OCI image-spec, "Descriptor":
// the field data), so that nobody is asked for that. Its digest says that it is right,
// whichever manifest it comes from.
func (m *Mirror) embed(d ocispec.Descriptor) {
	if len(d.Data) == 0 || len(d.Data) > maxEmbedded || int64(len(d.Data)) != d.Size {
		return
	}
	if _, ok := m.embedded.get(d.Digest); !ok && d.Digest.Algorithm().FromBytes(d.Data) == d.Digest {
		m.embedded.put(d.Digest, d.Data)
	}
}

// open opens a blob: one that a manifest brought, else the node's. The caller calls
// done, and says whether a read failed.
func (m *Mirror) open(ctx context.Context, o opening) (b blob.Blob, done func(failed bool), err error) {
	if data, ok := m.embedded.get(o.ref.Digest); ok {
		return embedded(data), func(bool) {}, nil
	}
	node, err := m.opens.get(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	return node.Blob, func(failed bool) { m.opens.put(node, failed) }, nil
}

// brought returns what a manifest brought of a blob, if one did.
func (m *Mirror) brought(d digest.Digest) bool {
	_, ok := m.embedded.get(d)
	return ok
}

// embedded is a blob in memory.
type embedded []byte

// Size implements blob.Blob.
func (e embedded) Size() int64 { return int64(len(e)) }

// ReadRange implements blob.Blob.
func (e embedded) ReadRange(_ context.Context, r blob.Range) (io.ReadCloser, error) {
	if err := r.Check(e.Size()); err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(e[r.Off:r.End()])), nil
}

// Close implements blob.Blob.
func (e embedded) Close() error { return nil }
