package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
)

// Spec says what an image is made of. See [Specs] for those that are ready.
type Spec struct {
	// Name is what the image is called; it becomes the tag in the layout.
	Name string `json:"name"`
	// About is one line for people who choose.
	About string `json:"about"`
	// Layers are the packages of each layer, from the bottom. What packages
	// depend on is added to the first layer that needs it; recommended packages
	// are not.
	Layers [][]string `json:"layers"`
	// Links are symlinks that maintainer scripts would have made (mostly those
	// of the alternatives system), path to target. They are in the top layer.
	// In both, $arch stands for Debian's name of the architecture and
	// $multiarch for that of its library directory.
	Links map[string]string `json:"links,omitempty"`
	// Whiteouts are paths that the top layer deletes.
	Whiteouts []string `json:"whiteouts,omitempty"`
	// Opaque are directories that the top layer empties.
	Opaque []string `json:"opaque,omitempty"`
	// Env is the environment of its programs besides PATH.
	Env []string `json:"env,omitempty"`
	// Programs are commands worth timing. The first is the image's command.
	Programs []Program `json:"programs"`
}

// environ returns the environment of the image's configuration.
func (s Spec) environ() []string {
	return append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, s.Env...)
}

// Program is a command to run in an image.
type Program struct {
	Name string   `json:"name"`
	Args []string `json:"args"`
}

// Image is an image that was built, in an OCI layout.
type Image struct {
	Spec Spec `json:"spec"`
	// LayoutDir is the OCI layout directory, Tag the image's name in it.
	LayoutDir string        `json:"-"`
	Tag       string        `json:"tag"`
	Digest    digest.Digest `json:"digest"` // of the manifest
	Layers    []ImageLayer  `json:"layers"`
}

// ImageLayer is one layer of an Image.
type ImageLayer struct {
	Digest   digest.Digest `json:"digest"`
	DiffID   digest.Digest `json:"diffID"`  // of the tar
	Size     int64         `json:"size"`    // of the blob, in bytes
	TarSize  int64         `json:"tarSize"` // of the tar, in bytes
	Entries  int           `json:"entries"` // in the tar
	Packages int           `json:"packages"`
}

// Size returns the size of all layer blobs, in bytes.
func (i Image) Size() (n int64) {
	for _, l := range i.Layers {
		n += l.Size
	}
	return n
}

// TarSize returns the size of all layers decompressed, in bytes.
func (i Image) TarSize() (n int64) {
	for _, l := range i.Layers {
		n += l.TarSize
	}
	return n
}

// Environ returns the environment the image's programs expect.
func (i Image) Environ() []string { return i.Spec.environ() }

// LayerTar opens layer n, from the bottom, as a tar. Reading to the end checks
// gzip's checksum. The caller closes it.
func (i Image) LayerTar(n int) (io.ReadCloser, error) {
	if n < 0 || n >= len(i.Layers) {
		return nil, fmt.Errorf("open layer %d of image %s: it has %d", n, i.Tag, len(i.Layers))
	}
	f, err := os.Open(blobPath(i.LayoutDir, i.Layers[n].Digest))
	if err != nil {
		return nil, fmt.Errorf("open layer %d of image %s: %w", n, i.Tag, err)
	}
	zr, err := gzip.NewReader(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open layer %d of image %s: %w", n, i.Tag, err), f.Close())
	}
	return &layerReader{zr, f}, nil
}

type layerReader struct {
	*gzip.Reader
	f *os.File
}

func (r *layerReader) Close() error { return errors.Join(r.Reader.Close(), r.f.Close()) }

// BuildOptions says where [Build] works. The zero value is good.
type BuildOptions struct {
	// CacheDir keeps packages and images between runs, whose content does not
	// change until it is removed. Empty means [DefaultCacheDir].
	CacheDir string
	// LayoutDir is the OCI layout to write to. Empty means one of the image's
	// own in the cache. It may hold other images.
	LayoutDir string
	// Progress, where set, is told what is being done. It is not called
	// concurrently.
	Progress func(Progress)
}

// Progress is how far a long step is.
type Progress struct {
	Step string
	// Fraction is the part that is done, 0 to 1, or negative where nobody
	// knows.
	Fraction float64
}

// DefaultCacheDir returns the directory packages and images are kept in when
// nobody says otherwise: skimmer/packages in the user's cache directory.
func DefaultCacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find cache directory: %w", err)
	}
	return filepath.Join(dir, "skimmer", "packages"), nil
}

// Build makes a real image of a Debian system out of packages, without root
// and without running the packages' scripts: a layer for each list of packages
// and a small one on top, gzip, OCI media types. One program out of them is
// run, the Python interpreter where there is one, to compile the modules as
// those scripts would, into the layer they are in. The image is built for the
// machine's architecture and with the machine's apt sources; the same packages
// give the same digests. Where the image is in the layout already, Build only
// looks.
// Processes that share a cache wait for each other while they download, and
// those that share a layout until it is written.
func Build(ctx context.Context, spec Spec, opts BuildOptions) (Image, error) {
	img, err := build(ctx, spec, opts)
	if err != nil {
		return Image{}, fmt.Errorf("build image %s: %w", spec.Name, err)
	}
	return img, nil
}

func build(ctx context.Context, spec Spec, opts BuildOptions) (Image, error) {
	if spec.Name == "" || len(spec.Layers) == 0 || len(spec.Programs) == 0 {
		return Image{}, errors.New("the spec lacks a name, layers or programs")
	}
	if opts.CacheDir == "" {
		dir, err := DefaultCacheDir()
		if err != nil {
			return Image{}, err
		}
		opts.CacheDir = dir
	}
	cache, err := filepath.Abs(opts.CacheDir)
	if err != nil {
		return Image{}, err
	}
	if opts.LayoutDir == "" {
		opts.LayoutDir = filepath.Join(cache, "images", spec.Name)
	}
	if opts.Progress == nil {
		opts.Progress = func(Progress) {}
	}
	a := &apt{dir: cache, progress: opts.Progress}
	opts.Progress(Progress{Step: "resolve packages", Fraction: -1})
	p, err := a.plan(ctx, spec.Layers)
	if err != nil {
		return Image{}, err
	}
	lock, err := lockDir(ctx, opts.LayoutDir, opts.Progress)
	if err != nil {
		return Image{}, err
	}
	defer lock.Close()
	out, err := openLayout(opts.LayoutDir)
	if err != nil {
		return Image{}, err
	}
	b := &builder{spec: spec, plan: p, debs: a.debs(), out: out, progress: opts.Progress}
	return b.build(ctx)
}
