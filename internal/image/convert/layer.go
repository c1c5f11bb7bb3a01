package convert

import (
	"context"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
)

// convertLayer fetches, rebuilds and stores one layer.
func (c *conversion) convertLayer(ctx context.Context, l *layer) error {
	in, err := c.input(ctx, l.src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := newSpool(c.opts.TempDir)
	if err != nil {
		return err
	}
	defer out.Close()

	opts := c.build
	opts.TempDir = c.opts.TempDir
	if c.prefetch != nil {
		opts.Prefetch = c.prefetch(l.src.Digest)
	}
	c.report(Event{Blob: l.src, State: Converting, Total: in.Size()})
	var done int64
	opts.Progress = func(n int64) {
		done += n
		c.report(Event{Blob: l.src, State: Converting, Done: done, Total: in.Size()})
	}
	l.built, err = estargz.Build(ctx, out, in, in.Size(), opts)
	if err != nil {
		return fmt.Errorf("convert layer %v: %w", l.src.Digest, err)
	}
	return c.store(ctx, l.descriptor(), l.src, content{open: out.reader})
}

// input returns a layer's bytes, checked: the file itself where there is one,
// else a copy in a spool.
func (c *conversion) input(ctx context.Context, d ocispec.Descriptor) (file, error) {
	local, ok := c.src.(localSource)
	if !ok {
		return c.fetch(ctx, d)
	}
	f, err := local.openAt(d.Digest)
	if err != nil {
		return nil, err
	}
	rc := io.NopCloser(io.NewSectionReader(f, 0, f.Size()))
	if _, err := io.Copy(io.Discard, c.counted(checked(ctx, rc, d), d, Fetching, d.Size)); err != nil {
		f.Close()
		return nil, fmt.Errorf("read layer of %v: %w", c.from, err)
	}
	return f, nil
}

// fetch copies a layer into a spool.
func (c *conversion) fetch(ctx context.Context, d ocispec.Descriptor) (file, error) {
	s, err := newSpool(c.opts.TempDir)
	if err != nil {
		return nil, err
	}
	err = retry(ctx, retryDelays, func() error {
		if err := s.reset(); err != nil {
			return err
		}
		rc, err := c.src.open(ctx, d)
		if err != nil {
			return err
		}
		defer rc.Close()
		if _, err := io.Copy(s, c.counted(checked(ctx, rc, d), d, Fetching, d.Size)); err != nil {
			return blob.Errorf(blob.KindOf(err), "fetch layer %v: %w", d.Digest, err)
		}
		return nil
	})
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}
