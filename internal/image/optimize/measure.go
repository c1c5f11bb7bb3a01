package optimize

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
	"skimmer/internal/image"
	"skimmer/internal/image/convert"
	"skimmer/internal/image/profile"
)

// repository is what an image of a layout is called by while it is measured.
const repository = "layout.invalid/image"

// never is longer than any workload: it ends its recording itself.
const never = 24 * time.Hour

// layoutImage is one platform's image in a layout.
type layoutImage struct {
	dir      string
	manifest digest.Digest
	document ocispec.Manifest
}

// openImage reads the manifest of an image in the layout dir.
func openImage(ctx context.Context, dir string, manifest digest.Digest) (*layoutImage, error) {
	data, err := convert.LayoutDocument(ctx, dir, manifest)
	if err != nil {
		return nil, err
	}
	im := &layoutImage{dir: dir, manifest: manifest}
	if err := json.Unmarshal(data, &im.document); err != nil {
		return nil, blob.Errorf(blob.Corrupt, "decode manifest %v: %w", manifest, err)
	}
	return im, nil
}

func (im *layoutImage) config(ctx context.Context) (ocispec.Image, error) {
	var c ocispec.Image
	data, err := convert.LayoutDocument(ctx, im.dir, im.document.Config.Digest)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, blob.Errorf(blob.Corrupt, "decode config %v: %w", im.document.Config.Digest, err)
	}
	return c, nil
}

// Manifest implements image.Resolver for what a layout has.
func (im *layoutImage) Manifest(ctx context.Context, _, reference string) ([]byte, string, digest.Digest, error) {
	d := digest.Digest(reference)
	data, err := convert.LayoutDocument(ctx, im.dir, d)
	return data, ocispec.MediaTypeImageManifest, d, err
}

func (im *layoutImage) layers() []digest.Digest {
	var all []digest.Digest
	for _, d := range im.document.Layers {
		all = append(all, d.Digest)
	}
	return all
}

// readTOCs returns the tables of contents of an image's layers.
func readTOCs(ctx context.Context, im *layoutImage) ([]*estargz.TOC, error) {
	blobs := convert.LayoutBlobs(im.dir)
	var tocs []*estargz.TOC
	for _, d := range im.document.Layers {
		b, err := blobs.Open(ctx, blob.Ref{Digest: d.Digest, Size: d.Size, MediaType: d.MediaType, Repository: repository})
		if err != nil {
			return nil, err
		}
		want, opts := estargz.Promised(d.Annotations)
		toc, err := estargz.ReadTOC(ctx, b, want, opts)
		if err = errors.Join(err, b.Close()); err != nil {
			return nil, fmt.Errorf("read table of contents of layer %v: %w", d.Digest, err)
		}
		tocs = append(tocs, toc)
	}
	return tocs, nil
}

// measurement is one run of an image's workload. All it makes is below dir.
type measurement struct {
	dir      string
	runc     string
	image    *layoutImage
	platform image.Platform
	workload Workload
	log      *slog.Logger
}

// run runs the workload on the image, mounted lazily, and returns what it read.
func (m *measurement) run(ctx context.Context) (profile.Profile, error) {
	config, err := m.image.config(ctx)
	if err != nil {
		return profile.Profile{}, err
	}
	if err := m.record(ctx, config.Config); err != nil {
		return profile.Profile{}, err
	}
	// The library keeps what it recorded when it is closed.
	kept, err := profile.OpenDir(filepath.Join(m.dir, "library", "profiles"))
	if err != nil {
		return profile.Profile{}, err
	}
	p, err := kept.Get(m.image.manifest)
	if blob.KindOf(err) == blob.NotFound && err != nil {
		return p, blob.Errorf(blob.Invalid, "run workload: it read nothing of the image")
	}
	return p, err
}

func (m *measurement) record(ctx context.Context, config ocispec.ImageConfig) (err error) {
	lib, err := image.Open(image.Config{
		Dir: filepath.Join(m.dir, "library"), Source: convert.LayoutBlobs(m.image.dir), Resolver: m.image,
		Platform: m.platform, Profiles: true, StartSettle: never, Logger: m.log,
	})
	if err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	defer func() { err = errors.Join(err, lib.Close()) }()
	target := filepath.Join(m.dir, "image")
	name := image.Name{Repository: repository, Digest: m.image.manifest}
	if _, _, err := lib.Mount(ctx, name, target); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lib.Unmount(target, true)) }()
	c := &container{dir: m.dir, id: "skimmer-optimize-" + filepath.Base(m.dir), runc: m.runc, config: config}
	if err := os.MkdirAll(filepath.Join(m.dir, "bundle"), 0o711); err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	defer func() { err = errors.Join(err, c.unmount()) }()
	if err := c.mount(target); err != nil {
		return err
	}
	if err := c.prepare(ctx, m.workload); err != nil {
		return err
	}
	return c.run(ctx, m.workload)
}
