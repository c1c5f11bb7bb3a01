package image

import (
	"context"
	"errors"
	"io"
	"sync"

	"skimmer/internal/blob"
)

// anywhere is the blob of a layer in all the repositories that have it. Each
// read goes to the first of them; one that fails is made the last, so that
// whoever tries again, as layers do, tries elsewhere.
type anywhere struct {
	// Constant.
	ll *lazyLayer

	// mu guards what is open, by repository. It is not held while opening: of
	// two that open the same, one closes again.
	mu     sync.Mutex
	opened map[string]blob.Blob
}

// openBlob returns the layer's blob.
func (ll *lazyLayer) openBlob(ctx context.Context) (blob.Blob, error) {
	b := &anywhere{ll: ll, opened: make(map[string]blob.Blob)}
	if _, _, err := b.first(ctx); err != nil {
		return nil, err
	}
	return b, nil
}

// first returns the blob in the first repository that it can be opened in.
func (b *anywhere) first(ctx context.Context) (blob.Blob, blob.Ref, error) {
	var errs []error
	for _, ref := range b.ll.sources() {
		b.mu.Lock()
		open := b.opened[ref.Repository]
		b.mu.Unlock()
		if open != nil {
			return open, ref, nil
		}
		open, err := b.ll.lib.cfg.Source.Open(ctx, ref)
		if err == nil {
			return b.keep(ref, open), ref, nil
		}
		b.ll.demote(ref)
		errs = append(errs, err)
	}
	return nil, blob.Ref{}, errors.Join(errs...)
}

// keep enters what was opened, unless somebody else was faster.
func (b *anywhere) keep(ref blob.Ref, open blob.Blob) blob.Blob {
	b.mu.Lock()
	other := b.opened[ref.Repository]
	if other == nil {
		b.opened[ref.Repository] = open
	}
	b.mu.Unlock()
	if other == nil {
		return open
	}
	if err := open.Close(); err != nil {
		b.ll.lib.log.Debug("cannot close a blob", "blob", ref, "error", err)
	}
	return other
}

func (b *anywhere) Size() int64 { return b.ll.sources()[0].Size }

func (b *anywhere) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, open := range b.opened {
		errs = append(errs, open.Close())
	}
	clear(b.opened)
	return errors.Join(errs...)
}

func (b *anywhere) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	open, ref, err := b.first(ctx)
	if err != nil {
		return nil, err
	}
	rc, err := open.ReadRange(ctx, r)
	if err != nil {
		return nil, b.failed(ctx, ref, err)
	}
	return &anywhereReader{rc, ctx, b, ref}, nil
}

// ReadRanges implements blob.MultiReader.
func (b *anywhere) ReadRanges(ctx context.Context, ranges []blob.Range, land blob.Land) error {
	open, ref, err := b.first(ctx)
	if err != nil {
		return err
	}
	return b.failed(ctx, ref, blob.ReadRanges(ctx, open, ranges, land))
}

// Reject implements blob.Rejecter.
func (b *anywhere) Reject(r blob.Range) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, open := range b.opened {
		if rejecter, ok := open.(blob.Rejecter); ok {
			rejecter.Reject(r)
		}
	}
}

// failed demotes ref if the read that err ended was not given up by its
// reader.
func (b *anywhere) failed(ctx context.Context, ref blob.Ref, err error) error {
	if err != nil && ctx.Err() == nil {
		b.ll.demote(ref)
	}
	return err
}

type anywhereReader struct {
	io.ReadCloser
	ctx context.Context
	b   *anywhere
	ref blob.Ref
}

func (r *anywhereReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = r.b.failed(r.ctx, r.ref, err)
	}
	return n, err
}
