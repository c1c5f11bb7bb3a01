package blobtest

import (
	"bytes"
	"context"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// Memory is a Source over blobs in memory, for tests of what stands on a
// source. The zero value is empty and ready; it is safe for concurrent use.
type Memory struct {
	// Before, where set, is called ahead of every ReadRange and may block or
	// fail it; it stands for a slow or broken origin. Set it before first use.
	Before func(ctx context.Context, ref blob.Ref, r blob.Range) error

	mu    sync.Mutex
	blobs map[digest.Digest][]byte // mu guards
}

// Add stores p, which the caller must not change afterwards, and returns a
// reference to it.
func (m *Memory) Add(p []byte) blob.Ref {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.blobs == nil {
		m.blobs = make(map[digest.Digest][]byte)
	}
	d := digest.FromBytes(p)
	m.blobs[d] = p
	return blob.Ref{Digest: d, Size: int64(len(p)), Repository: "memory.test/blobs"}
}

// Open implements blob.Source.
func (m *Memory) Open(_ context.Context, ref blob.Ref) (blob.Blob, error) {
	if err := ref.Validate(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	p, ok := m.blobs[ref.Digest]
	m.mu.Unlock()
	if !ok {
		return nil, blob.Errorf(blob.NotFound, "open %v: no such blob in memory", ref)
	}
	return &memoryBlob{m, ref, p}, nil
}

type memoryBlob struct {
	m   *Memory
	ref blob.Ref
	p   []byte
}

func (b *memoryBlob) Size() int64  { return int64(len(b.p)) }
func (b *memoryBlob) Close() error { return nil }

func (b *memoryBlob) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	if err := r.Check(b.Size()); err != nil {
		return nil, err
	}
	if b.m.Before != nil {
		if err := b.m.Before(ctx, b.ref, r); err != nil {
			return nil, err
		}
	}
	return io.NopCloser(bytes.NewReader(b.p[r.Off:r.End()])), nil
}
