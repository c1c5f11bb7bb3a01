package convert

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
)

// Options is what Convert and Copy have in common; its zero value is good.
type Options struct {
	// Access says how registries are reached.
	Access Access
	// Platforms selects what of a multi-platform image is wanted; none means
	// all. That an image has nothing for one of them is an error.
	Platforms []ocispec.Platform
	// Jobs is how many layers are worked on at a time; 0 means one for each
	// CPU.
	Jobs int
	// TempDir is where layers are kept meanwhile; empty means the system's
	// temporary directory. The largest layers, compressed twice and for each
	// job, have to fit.
	TempDir string
	// Report, where set, is told how each layer gets on. It is called from
	// several goroutines, often, and must not block.
	Report func(Event)
}

// State is how far a layer is.
type State string

// The states in their order; a copy has no Fetching and Converting.
const (
	Waiting    State = "waiting"
	Fetching   State = "fetching"
	Converting State = "converting"
	Pushing    State = "pushing"
	// Done is stored at the destination, Present was there before.
	Done    State = "done"
	Present State = "present"
)

// Event says how far a layer is.
type Event struct {
	// Blob is the layer in the source.
	Blob ocispec.Descriptor
	// State is what is being done to it.
	State State
	// Done and Total are the bytes that State has dealt with and those it has
	// to; Total is 0 where it is unknown. They begin anew with each State.
	Done, Total int64
}

// Result says what Convert or Copy made. Its JSON form is what commands
// print.
type Result struct {
	// Source and Destination are the names, complete.
	Source      string `json:"source"`
	Destination string `json:"destination"`
	// Digest and MediaType are those of the index or manifest that the
	// destination now names.
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	// SourceSize and Size are the bytes of all layers before and after, a
	// layer that several images share counted once.
	SourceSize int64 `json:"sourceSize"`
	Size       int64 `json:"size"`
	// Uploaded is how many bytes the destination did not have yet.
	Uploaded int64 `json:"uploaded"`
	// Images are the image's platforms in the order of the index, attestations
	// left out.
	Images []ImageResult `json:"images"`
	// Warnings are what the user should know, in whole sentences.
	Warnings []string `json:"warnings,omitempty"`
}

// ImageResult is one platform of a Result.
type ImageResult struct {
	// Platform is os/architecture[/variant].
	Platform string `json:"platform"`
	// SourceDigest and Digest are the digests of the manifest before and after.
	SourceDigest digest.Digest `json:"sourceDigest"`
	Digest       digest.Digest `json:"digest"`
	// Layers are in the order of the manifest.
	Layers []LayerResult `json:"layers"`
}

// LayerResult is one layer of an ImageResult. Sizes are in bytes.
type LayerResult struct {
	// Source and SourceSize are the layer in the source.
	Source     digest.Digest `json:"source"`
	SourceSize int64         `json:"sourceSize"`
	// Digest, Size and MediaType are the layer as it is now.
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
	MediaType string        `json:"mediaType"`
	// Converted is whether the layer was rebuilt; the rest is known only then.
	Converted        bool          `json:"converted"`
	UncompressedSize int64         `json:"uncompressedSize,omitempty"`
	DiffID           digest.Digest `json:"diffID,omitempty"`
	TOCDigest        digest.Digest `json:"tocDigest,omitempty"`
}

// transfer is an image on its way from a source to a target.
type transfer struct {
	// Constant after begin.
	opts     Options
	from, to Name
	src      source
	dst      target
	session  *session

	uploaded atomic.Int64

	mu       sync.Mutex
	warnings []string // mu guards
}

// begin opens both ends; the caller closes the transfer.
func begin(ctx context.Context, from, to Name, opts Options) (_ *transfer, err error) {
	if opts.Jobs <= 0 {
		opts.Jobs = runtime.GOMAXPROCS(0)
	}
	if to.Transport != Registry && to.Tag == "" {
		to.Tag = from.shortTag()
	}
	t := &transfer{opts: opts, from: from, to: to}
	if t.session, err = opts.Access.open(opts.Jobs); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	if t.dst, err = openTarget(to, t.session); err != nil {
		return nil, err
	}
	t.src, err = openSource(ctx, from, t.session, opts.TempDir)
	return t, err
}

func (t *transfer) close() {
	if t.src != nil {
		_ = t.src.close()
	}
	if t.dst != nil {
		_ = t.dst.close()
	}
	t.session.close()
}

// openSource opens the image n for reading.
func openSource(ctx context.Context, n Name, s *session, tempDir string) (source, error) {
	switch n.Transport {
	case Registry:
		ref, err := s.reference(n.Ref)
		if err != nil {
			return nil, blob.Errorf(blob.Invalid, "open image %v: %w", n, err)
		}
		return &registrySource{n, ref, s}, nil
	case Layout:
		return openLayout(n)
	case OCIArchive, DockerArchive, Archive:
		return openArchiveSource(ctx, n, tempDir)
	}
	return nil, blob.Errorf(blob.Invalid, "open image: it has no name")
}

func openArchiveSource(ctx context.Context, n Name, tempDir string) (source, error) {
	files, err := openArchive(ctx, n.Path, tempDir)
	if err != nil {
		return nil, blob.Errorf(blob.KindOf(err), "open image %v: %w", n, err)
	}
	var src source
	switch oci := files.has(layoutFile) && files.has(indexFile); {
	case oci && n.Transport != DockerArchive:
		return &layoutSource{n, files}, nil
	case n.Transport == OCIArchive:
		err = blob.Errorf(blob.Invalid, "open image %v: not an OCI archive: it has no %s", n, layoutFile)
	case n.Transport == Archive && !files.has(dockerIndexFile):
		err = blob.Errorf(blob.Invalid, "open image %v: neither an OCI archive (it has no %s) nor one of docker save (it has no %s)", n, layoutFile, dockerIndexFile)
	default:
		src, err = openDocker(ctx, n, files)
	}
	if err != nil {
		files.Close()
		return nil, err
	}
	return src, nil
}

// openTarget prepares to write an image to n, and leaves n unchanged.
func openTarget(n Name, s *session) (target, error) {
	switch n.Transport {
	case Registry:
		ref, err := s.reference(n.Ref)
		if err != nil {
			return nil, blob.Errorf(blob.Invalid, "write image %v: %w", n, err)
		}
		tag, ok := ref.(name.Tag)
		if !ok {
			return nil, blob.Errorf(blob.Invalid, "write image %v: a digest cannot be chosen for what is written; name a tag", n)
		}
		return &registryTarget{n, tag, s}, nil
	case Layout:
		return createLayout(n)
	case OCIArchive:
		return createArchive(n)
	}
	return nil, blob.Errorf(blob.Invalid, "write image %v: images are written to a registry, oci:DIR[:TAG] or oci-archive:FILE[:TAG]", n)
}

func (t *transfer) report(e Event) {
	if t.opts.Report != nil && !isConfig(e.Blob.MediaType) {
		t.opts.Report(e)
	}
}

func (t *transfer) warn(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.warnings = append(t.warnings, fmt.Sprintf(format, args...))
}

// counted returns a reader of a blob that reports each read as progress of
// state.
func (t *transfer) counted(rc io.ReadCloser, d ocispec.Descriptor, state State, total int64) io.ReadCloser {
	var done int64
	t.report(Event{Blob: d, State: state, Total: total})
	return struct {
		io.Reader
		io.Closer
	}{tap{rc, func(n int) {
		done += int64(n)
		t.report(Event{Blob: d, State: state, Done: done, Total: total})
	}}, rc}
}

// store puts a blob where it is missing. shown is the layer to report it as.
func (t *transfer) store(ctx context.Context, d, shown ocispec.Descriptor, c content) error {
	present := false
	err := retry(ctx, retryDelays, func() (err error) {
		if present, err = t.dst.has(ctx, d); present || err != nil {
			return err
		}
		return t.dst.put(ctx, d, content{from: c.from, open: func() (io.ReadCloser, error) {
			rc, err := c.open()
			if err != nil {
				return nil, err
			}
			return t.counted(rc, shown, Pushing, d.Size), nil
		}})
	})
	switch {
	case err != nil:
		return err
	case present:
		t.report(Event{Blob: shown, State: Present, Done: d.Size, Total: d.Size})
	default:
		t.uploaded.Add(d.Size)
		t.report(Event{Blob: shown, State: Done, Done: d.Size, Total: d.Size})
	}
	return nil
}

// copyBlob stores a blob of the source as it is.
func (t *transfer) copyBlob(ctx context.Context, d ocispec.Descriptor) error {
	return t.store(ctx, d, d, content{from: t.src.origin(d), open: func() (io.ReadCloser, error) {
		rc, err := t.src.open(ctx, d)
		if err != nil {
			return nil, err
		}
		return checked(ctx, rc, d), nil
	}})
}

// storeBytes stores a small blob, unreported.
func (t *transfer) storeBytes(ctx context.Context, d ocispec.Descriptor, p []byte) error {
	return retry(ctx, retryDelays, func() error {
		if ok, err := t.dst.has(ctx, d); ok || err != nil {
			return err
		}
		return t.dst.put(ctx, d, bytesContent(p))
	})
}

// finish stores all documents, children first, and commits the root.
func (t *transfer) finish(ctx context.Context, root *node) error {
	err := root.walk(func(n *node) error {
		if n == root || n.raw == nil {
			return nil
		}
		return retry(ctx, retryDelays, func() error { return t.dst.putManifest(ctx, n.desc, n.raw) })
	})
	if err != nil {
		return err
	}
	// Past this point the image is there; an interrupt comes before or after.
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return retry(ctx, retryDelays, func() error { return t.dst.commit(ctx, root.desc, root.raw) })
}

// result describes what was made of root; describe adds to each layer.
func (t *transfer) result(root *node, describe func(*LayerResult)) *Result {
	r := &Result{
		Source: t.from.String(), Destination: t.to.String(),
		Digest: root.desc.Digest, MediaType: root.desc.MediaType,
		Uploaded: t.uploaded.Load(), Images: []ImageResult{},
	}
	before, after := make(map[digest.Digest]bool), make(map[digest.Digest]bool)
	_ = root.walk(func(n *node) error {
		if n.config == nil {
			return nil
		}
		img := ImageResult{
			Platform: platformString(n.platform()), SourceDigest: n.srcDesc.Digest, Digest: n.desc.Digest, Layers: []LayerResult{},
		}
		for i, d := range n.manifest.Layers {
			s := n.srcLayers[i]
			l := LayerResult{Source: s.Digest, SourceSize: s.Size, Digest: d.Digest, Size: d.Size, MediaType: d.MediaType}
			describe(&l)
			img.Layers = append(img.Layers, l)
			if !before[s.Digest] {
				before[s.Digest] = true
				r.SourceSize += s.Size
			}
			if !after[d.Digest] {
				after[d.Digest] = true
				r.Size += d.Size
			}
		}
		r.Images = append(r.Images, img)
		return nil
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	r.Warnings = slices.Clone(t.warnings)
	return r
}
