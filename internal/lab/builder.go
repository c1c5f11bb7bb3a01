package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// builderVersion changes when the same packages would become another image, so
// that images built before are built again.
const builderVersion = 2

// architectures are Debian's names for the architectures an image can be
// built for, the directories of their libraries, and what images call them.
var architectures = map[string]struct{ multiarch, goarch, variant string }{
	"amd64":   {"x86_64-linux-gnu", "amd64", ""},
	"arm64":   {"aarch64-linux-gnu", "arm64", ""},
	"armhf":   {"arm-linux-gnueabihf", "arm", "v7"},
	"i386":    {"i386-linux-gnu", "386", ""},
	"ppc64el": {"powerpc64le-linux-gnu", "ppc64le", ""},
	"riscv64": {"riscv64-linux-gnu", "riscv64", ""},
	"s390x":   {"s390x-linux-gnu", "s390x", ""},
}

// builder makes one image from downloaded packages.
type builder struct {
	spec     Spec
	plan     plan
	debs     string // the directory they are in
	out      *layout
	python   *python // the image's, while layers are written; nil if it has none
	progress func(Progress)
}

// key identifies what the image is made of.
func (b *builder) key() (string, error) {
	data, err := json.Marshal(struct {
		Version int
		Spec    Spec
		Plan    plan
	}{builderVersion, b.spec, b.plan})
	return digest.FromBytes(data).String(), err
}

func (b *builder) build(ctx context.Context) (Image, error) {
	if _, ok := architectures[b.plan.Architecture]; !ok {
		return Image{}, fmt.Errorf("architecture %q is not known here", b.plan.Architecture)
	}
	key, err := b.key()
	if err != nil {
		return Image{}, err
	}
	if img, ok := b.out.find(b.spec.Name, key); ok {
		return img, nil
	}
	layers, newest, err := b.packageLayers(ctx)
	if err != nil {
		return Image{}, err
	}
	top, err := b.out.layer(func(w io.Writer) (int, error) { return b.top(w, newest) })
	if err != nil {
		return Image{}, fmt.Errorf("write top layer: %w", err)
	}
	img := Image{
		Spec:      b.spec,
		LayoutDir: b.out.dir,
		Tag:       b.spec.Name,
		Layers:    append(layers, top),
	}
	if img.Digest, err = b.manifest(img, newest); err != nil {
		return Image{}, err
	}
	return img, b.out.save(img, key)
}

// packageLayers writes the layers that consist of packages, side by side. It
// also returns the latest modification time in them.
func (b *builder) packageLayers(ctx context.Context) (_ []ImageLayer, _ time.Time, err error) {
	if b.python, err = b.unpackPython(ctx, b.out.dir); err != nil {
		return nil, time.Time{}, err
	}
	if b.python != nil {
		defer func() { err = errors.Join(err, b.python.close()) }()
	}
	done := make(chan advance)
	layers := make([]ImageLayer, len(b.plan.Layers))
	newest := make([]time.Time, len(layers))
	var report sync.WaitGroup
	report.Go(func() { b.report(done) })
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU() + 1)
	for i := range b.plan.Layers {
		g.Go(func() error {
			var err error
			layers[i], err = b.out.layer(func(w io.Writer) (entries int, err error) {
				entries, newest[i], err = b.packageLayer(ctx, w, i, done)
				return entries, err
			})
			layers[i].Packages = len(b.plan.Layers[i])
			if err != nil {
				return fmt.Errorf("write layer %d: %w", i, err)
			}
			return nil
		})
	}
	err = g.Wait()
	close(done)
	report.Wait()
	return layers, slices.MaxFunc(newest, time.Time.Compare), err
}

// advance is a piece of work: packages that were written, in bytes, Python
// modules that were found, and those that were compiled.
type advance struct {
	packed            int64
	modules, compiled int
}

// report passes on how much is done, from one place whoever did it.
func (b *builder) report(done <-chan advance) {
	var sum advance
	var total int64
	for _, debs := range b.plan.Layers {
		for _, d := range debs {
			total += d.Size
		}
	}
	for a := range done {
		sum.packed += a.packed
		sum.modules += a.modules
		sum.compiled += a.compiled
		if sum.packed < total || sum.modules == 0 {
			b.progress(Progress{Step: "build layers", Fraction: float64(sum.packed) / float64(total)})
		} else {
			b.progress(Progress{Step: "compile Python modules", Fraction: float64(sum.compiled) / float64(sum.modules)})
		}
	}
}

// packageLayer writes the tar of layer i.
func (b *builder) packageLayer(ctx context.Context, w io.Writer, i int, done chan<- advance) (_ int, _ time.Time, err error) {
	l := newLayerTar(w)
	l.top = i == 0
	l.modules = newModules(ctx, b.python, func(a advance) { done <- a })
	defer func() {
		// A process that failed is why what needs it was cancelled.
		if werr := l.modules.wait(); werr != nil {
			err = werr
		}
	}()
	for _, d := range b.plan.Layers[i] {
		if err := l.deb(ctx, filepath.Join(b.debs, d.Name)); err != nil {
			return 0, time.Time{}, err
		}
		done <- advance{packed: d.Size}
	}
	if i == 0 {
		if err := l.skeleton(); err != nil {
			return 0, time.Time{}, err
		}
	}
	err = l.finish()
	return l.entries, l.newest, err
}

// top writes the layer with what maintainer scripts would have done, and with
// a whiteout and an opaque directory, which any real image's upper layers have.
func (b *builder) top(w io.Writer, newest time.Time) (int, error) {
	l := newLayerTar(w)
	l.newest = newest
	arch := architectures[b.plan.Architecture]
	expand := strings.NewReplacer("$multiarch", arch.multiarch, "$arch", b.plan.Architecture).Replace
	for _, name := range slices.Sorted(maps.Keys(b.spec.Links)) {
		if err := l.symlink(expand(name), expand(b.spec.Links[name])); err != nil {
			return 0, err
		}
	}
	for _, name := range b.spec.Whiteouts {
		if err := l.file(filepath.Join(filepath.Dir(name), ".wh."+filepath.Base(name)), nil); err != nil {
			return 0, err
		}
	}
	for _, name := range b.spec.Opaque {
		err := errors.Join(
			l.dir(name, 0o755),
			l.file(name+"/.wh..wh..opq", nil),
			l.file(name+"/README", []byte("What was here is left out of this image.\n")))
		if err != nil {
			return 0, err
		}
	}
	if err := l.file("etc/hostname", []byte(b.spec.Name+"\n")); err != nil {
		return 0, err
	}
	return l.entries, l.finish()
}

// manifest writes the image's configuration and manifest.
func (b *builder) manifest(img Image, created time.Time) (digest.Digest, error) {
	created = created.UTC()
	arch := architectures[b.plan.Architecture]
	platform := ocispec.Platform{OS: "linux", Architecture: arch.goarch, Variant: arch.variant}
	config := ocispec.Image{
		Created:  &created,
		Platform: platform,
		Config: ocispec.ImageConfig{
			Env: b.spec.environ(),
			Cmd: b.spec.Programs[0].Args,
		},
		RootFS: ocispec.RootFS{Type: "layers"},
	}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	for i, l := range img.Layers {
		by := "files that maintainer scripts would have made"
		if i < len(b.spec.Layers) {
			by = "packages " + strings.Join(b.spec.Layers[i], " ")
		}
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.DiffID)
		config.History = append(config.History, ocispec.History{Created: &created, CreatedBy: by})
		m.Layers = append(m.Layers, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageLayerGzip, Digest: l.Digest, Size: l.Size,
		})
	}
	var err error
	if m.Config, err = b.out.json(ocispec.MediaTypeImageConfig, config); err != nil {
		return "", fmt.Errorf("write configuration: %w", err)
	}
	desc, err := b.out.json(ocispec.MediaTypeImageManifest, m)
	if err != nil {
		return "", fmt.Errorf("write manifest: %w", err)
	}
	desc.Platform = &platform
	return desc.Digest, b.out.tag(img.Tag, desc)
}
