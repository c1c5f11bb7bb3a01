// Package optimize makes images start sooner. It runs an image's workload on
// the image, mounted lazily, sees which files that reads, and writes the image
// anew with these files first in their layers, before the landmark up to
// which lazy readers, ours and others, fetch ahead. What was read is also
// a profile, which it stores beside the image.
package optimize

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/estargz"
	"skimmer/internal/image"
	"skimmer/internal/image/convert"
	"skimmer/internal/image/profile"
)

// Options is how Optimize works. Source is required.
type Options struct {
	// Source is the image, Destination where the optimized one is written. With
	// a zero Destination the image stays as it is: only its profile is made.
	Source, Destination convert.Name
	// Convert is how images are read and layers built; its Platforms and
	// Prefetch are filled in.
	Convert convert.ConvertOptions
	// Platform is which image of several is optimized, and must be one that
	// this machine can run. The zero value is that of this machine.
	Platform image.Platform
	// Workload is what is run.
	Workload Workload
	// Attach stores the profile beside the image in its registry.
	Attach bool
	// TempDir is where the image is kept meanwhile, up to twice; empty means
	// the system's own.
	TempDir string
	// Step, where set, is told what begins.
	Step func(string)
	// Logger receives what a person may need to know; nil discards it.
	Logger *slog.Logger
}

// Result says what Optimize found and made. Sizes are in bytes of files.
type Result struct {
	// Platform and Manifest are those of the image the profile is of: the
	// optimized one, or the source where there is none.
	Platform string        `json:"platform"`
	Manifest digest.Digest `json:"manifest"`
	// Files is how many files the workload read, and Read how much of them, in
	// whole chunks; Early is how many of them are fetched ahead, with EarlySize.
	Files     int   `json:"files"`
	Read      int64 `json:"read"`
	Early     int   `json:"early"`
	EarlySize int64 `json:"earlySize"`
	// Attached is the digest of the manifest of the profile in the registry.
	Attached digest.Digest `json:"attached,omitempty"`
	// Converted is the image that was written, nil where none was.
	Converted *convert.Result `json:"converted,omitempty"`
	// Profile is what was read, by the chunks of Manifest.
	Profile profile.Profile `json:"profile"`
}

// Optimize runs an image's workload and makes of it what Options say. It needs
// root, /dev/fuse and runc. The same image whose workload read the same files
// in the same order becomes the same image.
//
// Nothing of the workload and nothing temporary is left when it returns.
//
// Errors: Invalid for a workload that fails or reads nothing, a machine that
// cannot run it, and an image of which only a profile is wanted but which
// cannot be mounted lazily; those of convert.Convert and of image.Library.
func Optimize(ctx context.Context, opts Options) (_ *Result, err error) {
	o := &optimization{Options: opts}
	if o.Platform == (image.Platform{}) {
		o.Platform = image.HostPlatform()
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if os.Geteuid() != 0 {
		return nil, blob.Errorf(blob.Invalid, "run workload: mounting its image needs root")
	}
	if o.runc, err = findRunc(); err != nil {
		return nil, err
	}
	if o.dir, err = os.MkdirTemp(opts.TempDir, "skimmer-optimize-"); err != nil {
		return nil, fmt.Errorf("make temporary directory: %w", err)
	}
	// A workload that runs as somebody else has to get to its files.
	if err := os.Chmod(o.dir, 0o711); err != nil {
		return nil, errors.Join(fmt.Errorf("make temporary directory: %w", err), os.RemoveAll(o.dir))
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	return o.run(ctx)
}

type optimization struct {
	Options
	dir, runc string
}

func (o *optimization) run(ctx context.Context) (*Result, error) {
	o.Convert.Platforms = []ocispec.Platform{{OS: o.Platform.OS, Architecture: o.Platform.Architecture, Variant: o.Platform.Variant}}
	local, err := o.fetch(ctx)
	if err != nil {
		return nil, err
	}
	source, measured, err := o.lazy(ctx, local)
	if err != nil {
		return nil, err
	}
	o.Step("run the workload")
	m := &measurement{dir: o.dir, runc: o.runc, image: measured, platform: o.Platform, workload: o.Workload, log: o.Logger}
	p, err := m.run(ctx)
	if err != nil {
		return nil, err
	}
	tocs, err := readTOCs(ctx, measured)
	if err != nil {
		return nil, err
	}
	if err := os.RemoveAll(filepath.Join(o.dir, "converted")); err != nil {
		return nil, fmt.Errorf("remove what was measured: %w", err)
	}
	files, err := Files(p, tocs)
	if err != nil {
		return nil, err
	}
	r := summary(files)
	r.Platform, r.Manifest, r.Profile = o.Platform.String(), p.Manifest, p
	if o.Destination.Transport == "" {
		return r, o.attach(ctx, o.Source, r)
	}
	written, err := o.write(ctx, local, source, Prefetch(files, len(tocs)), r)
	if err != nil {
		return nil, err
	}
	if err := o.translate(ctx, written, tocs, r); err != nil {
		return nil, err
	}
	return r, o.attach(ctx, o.Destination, r)
}

func summary(files []File) *Result {
	r := &Result{Files: len(files)}
	for _, f := range files {
		r.Read += f.Read
		if f.early() {
			r.Early++
			r.EarlySize += f.Size
		}
	}
	return r
}

// fetch returns the source's name in a layout on this machine.
func (o *optimization) fetch(ctx context.Context) (convert.Name, error) {
	if o.Source.Transport == convert.Layout {
		return o.Source, nil
	}
	o.Step("fetch the image")
	local := convert.Name{Transport: convert.Layout, Path: filepath.Join(o.dir, "source"), Tag: "source"}
	_, err := convert.Copy(ctx, o.Source, local, o.Convert.Options)
	return local, err
}

// lazy returns the image as it is in the source, and one of the same files
// that can be mounted lazily: the same, or a converted one.
func (o *optimization) lazy(ctx context.Context, local convert.Name) (source, measured *layoutImage, err error) {
	in, err := o.inspect(ctx, local)
	if err != nil {
		return nil, nil, err
	}
	if source, err = openImage(ctx, local.Path, in.Digest); err != nil || in.Lazy {
		return source, source, err
	}
	if o.Destination.Transport == "" {
		return nil, nil, blob.Errorf(blob.Invalid, "profile %v: it cannot be mounted lazily, so a profile is of no use to it; skimmer image convert, or optimize to another name, makes one that can", o.Source)
	}
	o.Step("make it lazily mountable")
	converted := convert.Name{Transport: convert.Layout, Path: filepath.Join(o.dir, "converted"), Tag: "converted"}
	opts := o.Convert
	opts.Layer.Level = 1 // it is read once, by this machine
	if _, err := convert.Convert(ctx, local, converted, opts); err != nil {
		return nil, nil, err
	}
	if in, err = o.inspect(ctx, converted); err != nil {
		return nil, nil, err
	}
	if !in.Lazy {
		return nil, nil, blob.Errorf(blob.Invalid, "optimize %v: not all of its layers can be made lazily mountable", o.Source)
	}
	measured, err = openImage(ctx, converted.Path, in.Digest)
	return source, measured, err
}

// inspect looks at the image in a layout that will be run.
func (o *optimization) inspect(ctx context.Context, n convert.Name) (convert.ImageInfo, error) {
	in, err := convert.Inspect(ctx, n, convert.InspectOptions{Platforms: o.Convert.Platforms, Jobs: o.Convert.Jobs})
	if err != nil {
		return convert.ImageInfo{}, err
	}
	if len(in.Images) == 0 {
		return convert.ImageInfo{}, blob.Errorf(blob.Invalid, "optimize %v: it is not an image", o.Source)
	}
	return in.Images[0], nil
}

// write writes the optimized image, and returns it as it is in a layout on
// this machine.
func (o *optimization) write(ctx context.Context, local convert.Name, source *layoutImage, prefetch [][]string, r *Result) (*layoutImage, error) {
	o.Step("write the image with these files first")
	lists := make(map[digest.Digest][]string)
	for i, d := range source.layers() {
		lists[d] = append(lists[d], prefetch[i]...)
	}
	opts := o.Convert
	opts.Prefetch = func(d digest.Digest) []string { return lists[d] }
	// Not to the destination at once: what was made is looked into again.
	made := convert.Name{Transport: convert.Layout, Path: filepath.Join(o.dir, "optimized"), Tag: o.tag()}
	converted, err := convert.Convert(ctx, local, made, opts)
	if err != nil {
		return nil, err
	}
	o.Step("store it as " + o.Destination.String())
	copied, err := convert.Copy(ctx, made, o.Destination, o.Convert.Options)
	if err != nil {
		return nil, err
	}
	converted.Source, converted.Destination, converted.Uploaded = o.Source.String(), copied.Destination, copied.Uploaded
	r.Converted = converted
	for _, im := range converted.Images {
		if im.SourceDigest == source.manifest {
			return openImage(ctx, made.Path, im.Digest)
		}
	}
	return nil, blob.Errorf(blob.Internal, "write %v: the image for %v is not in it", o.Destination, o.Platform)
}

// tag returns the tag the image has in the source, or one for it.
func (o *optimization) tag() string {
	if o.Source.Tag != "" {
		return o.Source.Tag
	}
	if t, ok := o.Source.Ref.(name.Tag); ok {
		return t.TagStr()
	}
	return "optimized"
}

// translate makes r's profile one of the image that was written.
func (o *optimization) translate(ctx context.Context, to *layoutImage, tocs []*estargz.TOC, r *Result) (err error) {
	target := Target{Manifest: to.manifest, Layers: to.layers()}
	if target.TOCs, err = readTOCs(ctx, to); err != nil {
		return err
	}
	r.Manifest = to.manifest
	r.Profile, err = Translate(r.Profile, tocs, target)
	return err
}

// attach stores the profile beside an image in a registry.
func (o *optimization) attach(ctx context.Context, n convert.Name, r *Result) (err error) {
	if !o.Attach || n.Transport != convert.Registry {
		return nil
	}
	o.Step("store the profile beside the image")
	r.Attached, err = Attach(ctx, n, r.Profile, o.Convert.Access)
	return err
}

// Attach stores a profile in the repository of the image n as a referrer of
// the manifest it is of, which the registry has to have, and returns the digest
// of the referrer's manifest. Errors are those of profile.Encode and
// convert.Attach.
func Attach(ctx context.Context, n convert.Name, p profile.Profile, access convert.Access) (digest.Digest, error) {
	data, err := profile.Encode(p)
	if err != nil {
		return "", err
	}
	return convert.Attach(ctx, n, p.Manifest, convert.Artifact{Type: profile.ArtifactType, Data: data, Created: p.Recorded}, access)
}
