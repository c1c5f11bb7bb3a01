package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
)

// Names inside an image layout (OCI image specification, image-layout.md).
const (
	layoutFile = ocispec.ImageLayoutFile
	indexFile  = ocispec.ImageIndexFile
)

// annotationImageName is where containerd and docker save keep the whole
// reference of an image, beside the tag in org.opencontainers.image.ref.name.
const annotationImageName = "io.containerd.image.name"

// maxManifest is the largest manifest, index or config accepted, in bytes;
// registries take 4 MiB.
const maxManifest = 16 << 20

func blobPath(d digest.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// files is the tree of a layout: a directory, or the members of an archive.
// Opening what does not exist gives an error that is fs.ErrNotExist.
type files interface {
	open(name string) (file, error)
	io.Closer
}

type dirFile struct {
	*os.File
	size int64
}

func (f dirFile) Size() int64 { return f.size }

type dirFiles string

func (d dirFiles) open(name string) (file, error) {
	f, err := os.Open(filepath.Join(string(d), filepath.FromSlash(name)))
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", f.Name())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return dirFile{f, info.Size()}, nil
}

func (dirFiles) Close() error { return nil }

func readFile(fsys files, name string) ([]byte, error) {
	f, err := fsys.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f.Size() > maxManifest {
		return nil, blob.Errorf(blob.Invalid, "read %s: %d bytes are more than a manifest or config may have", name, f.Size())
	}
	p := make([]byte, f.Size())
	if _, err := f.ReadAt(p, 0); err != nil && err != io.EOF {
		return nil, err
	}
	return p, nil
}

// layoutSource reads an OCI image layout.
type layoutSource struct {
	name  Name
	files files
}

func openLayout(n Name) (source, error) {
	s := &layoutSource{n, dirFiles(n.Path)}
	if _, err := readFile(s.files, layoutFile); err != nil {
		return nil, blob.Errorf(blob.NotFound, "open image %v: not an OCI layout: %w", n, err)
	}
	return s, nil
}

func (s *layoutSource) root(ctx context.Context) (ocispec.Descriptor, []byte, error) {
	raw, err := readFile(s.files, indexFile)
	if err != nil {
		return ocispec.Descriptor{}, nil, blob.Errorf(blob.NotFound, "open image %v: read the layout's index: %w", s.name, err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return ocispec.Descriptor{}, nil, blob.Errorf(blob.Corrupt, "open image %v: decode the layout's index: %w", s.name, err)
	}
	d, whole, err := selectImage(s.name, index.Manifests)
	if err != nil {
		return d, nil, err
	}
	if whole {
		d = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
		return d, raw, nil
	}
	raw, err = s.manifest(ctx, d)
	if err == nil && d.Size == 0 {
		d.Size = int64(len(raw))
	}
	return d, raw, err
}

// selectImage returns the entry of a layout's index that n asks for; whole
// says that it is the index itself, as tools write that put a multi-platform
// image straight into it.
func selectImage(n Name, all []ocispec.Descriptor) (d ocispec.Descriptor, whole bool, err error) {
	if n.Digest != "" {
		for _, d := range all {
			if d.Digest == n.Digest {
				return d, false, nil
			}
		}
		// A manifest that only an index refers to: it says itself what it is.
		return ocispec.Descriptor{Digest: n.Digest}, false, nil
	}
	var names []string
	for _, d := range all {
		tag, full := d.Annotations[ocispec.AnnotationRefName], d.Annotations[annotationImageName]
		if n.Tag != "" && (tag == n.Tag || full == n.Tag || sameReference(full, n.Tag)) {
			return d, false, nil
		}
		if tag == "" {
			tag = full
		}
		if tag != "" {
			names = append(names, tag)
		}
	}
	slices.Sort(names)
	switch {
	case len(all) == 0:
		return d, false, blob.Errorf(blob.NotFound, "open image %v: it holds no images", n)
	case n.Tag != "":
		return d, false, blob.Errorf(blob.NotFound, "open image %v: no image has that tag; there are: %s", n, orNone(names))
	case len(all) == 1:
		return all[0], false, nil
	case len(names) == 0:
		return d, true, nil
	}
	return d, false, blob.Errorf(blob.Invalid, "open image %v: it holds %d images; choose one by appending :TAG: %s", n, len(all), orNone(names))
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none with a name"
	}
	return strings.Join(names, ", ")
}

// sameReference reports whether a and b are the same reference once short
// forms are written out.
func sameReference(a, b string) bool {
	ra, errA := name.ParseReference(a)
	rb, errB := name.ParseReference(b)
	return errA == nil && errB == nil && ra.Name() == rb.Name()
}

func (s *layoutSource) manifest(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
	if err := d.Digest.Validate(); err != nil {
		return nil, blob.Errorf(blob.Corrupt, "read manifest %q of %v: %w", d.Digest, s.name, err)
	}
	raw, err := readFile(s.files, blobPath(d.Digest))
	if err != nil {
		return nil, s.missing("manifest", d.Digest, err)
	}
	if d.Digest.Algorithm().FromBytes(raw) != d.Digest {
		return nil, blob.Errorf(blob.Corrupt, "read manifest %v of %v: its content has another digest", d.Digest, s.name)
	}
	return raw, nil
}

// missing explains a blob that could not be opened.
func (s *layoutSource) missing(what string, d digest.Digest, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return blob.Errorf(blob.NotFound, "read %s %v of %v: it is not there; the image is incomplete", what, d, s.name)
	}
	return blob.Errorf(blob.KindOf(err), "read %s %v of %v: %w", what, d, s.name, err)
}

func (s *layoutSource) openAt(d digest.Digest) (file, error) {
	if err := d.Validate(); err != nil {
		return nil, blob.Errorf(blob.Invalid, "read blob %q of %v: %w", d, s.name, err)
	}
	f, err := s.files.open(blobPath(d))
	if err != nil {
		return nil, s.missing("blob", d, err)
	}
	return f, nil
}

func (s *layoutSource) open(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	f, err := s.openAt(d.Digest)
	if err != nil {
		return nil, err
	}
	return fileReader(f), nil
}

func (s *layoutSource) origin(ocispec.Descriptor) name.Reference { return nil }
func (s *layoutSource) close() error                             { return s.files.Close() }

// fileReader reads f from its beginning and closes it.
func fileReader(f file) io.ReadCloser {
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, 0, f.Size()), f}
}

// layoutTarget writes an OCI image layout. Blobs appear under their names
// only when complete; the index is replaced as a whole, last.
type layoutTarget struct {
	name Name
	dir  string
}

func createLayout(n Name) (target, error) {
	entries, err := os.ReadDir(n.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, blob.Errorf(blob.Invalid, "create layout %v: %w", n, err)
	}
	foreign := slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() != ocispec.ImageBlobsDir })
	if _, err := os.Stat(filepath.Join(n.Path, layoutFile)); err != nil && foreign {
		return nil, blob.Errorf(blob.Invalid, "create layout %v: the directory is in use and not an OCI layout; choose a new or empty one", n)
	}
	if n.Digest != "" {
		return nil, blob.Errorf(blob.Invalid, "create layout %v: a digest cannot be chosen for what is written; name a tag", n)
	}
	return &layoutTarget{n, n.Path}, nil
}

func (t *layoutTarget) path(d digest.Digest) string {
	return filepath.Join(t.dir, filepath.FromSlash(blobPath(d)))
}

func (t *layoutTarget) has(_ context.Context, d ocispec.Descriptor) (bool, error) {
	if err := d.Digest.Validate(); err != nil {
		return false, blob.Errorf(blob.Invalid, "look up blob %q in %v: %w", d.Digest, t.name, err)
	}
	info, err := os.Stat(t.path(d.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up blob %v in %v: %w", d.Digest, t.name, err)
	}
	// A file of another size is damage that storing the blob again repairs.
	return info.Size() == d.Size, nil
}

func (t *layoutTarget) put(_ context.Context, d ocispec.Descriptor, c content) error {
	rc, err := c.open()
	if err != nil {
		return err
	}
	defer rc.Close()
	if err := replaceFile(t.path(d.Digest), copyFrom(rc)); err != nil {
		return blob.Errorf(blob.KindOf(err), "write blob %v to %v: %w", d.Digest, t.name, err)
	}
	return nil
}

func (t *layoutTarget) putManifest(ctx context.Context, d ocispec.Descriptor, raw []byte) error {
	if ok, err := t.has(ctx, d); ok || err != nil {
		return err
	}
	return t.put(ctx, d, bytesContent(raw))
}

func (t *layoutTarget) commit(ctx context.Context, d ocispec.Descriptor, raw []byte) error {
	if err := t.putManifest(ctx, d, raw); err != nil {
		return err
	}
	// Two programs may write to one layout; the directory is the lock, so
	// that none is left behind.
	lock, err := os.Open(t.dir)
	if err != nil {
		return fmt.Errorf("write index of %v: %w", t.name, err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("write index of %v: lock %s: %w", t.name, t.dir, err)
	}
	if err := t.writeIndex(d); err != nil {
		return blob.Errorf(blob.KindOf(err), "write index of %v: %w", t.name, err)
	}
	return nil
}

// writeIndex puts d into the layout's index in the place of whatever had its
// name.
func (t *layoutTarget) writeIndex(d ocispec.Descriptor) error {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	old, err := os.ReadFile(filepath.Join(t.dir, indexFile))
	if err == nil {
		err = json.Unmarshal(old, &index)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the present index: %w", err)
	}
	d.Annotations = nil
	if t.name.Tag != "" {
		d.Annotations = map[string]string{ocispec.AnnotationRefName: t.name.Tag}
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(o ocispec.Descriptor) bool {
		return o.Annotations[ocispec.AnnotationRefName] == t.name.Tag
	})
	index.Manifests = append(index.Manifests, d)
	slices.SortStableFunc(index.Manifests, func(a, b ocispec.Descriptor) int {
		return strings.Compare(a.Annotations[ocispec.AnnotationRefName], b.Annotations[ocispec.AnnotationRefName])
	})
	raw, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(t.dir, indexFile), copyFrom(bytes.NewReader(append(raw, '\n')))); err != nil {
		return err
	}
	version, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	return replaceFile(filepath.Join(t.dir, layoutFile), copyFrom(bytes.NewReader(append(version, '\n'))))
}

func (t *layoutTarget) close() error { return nil }

// copyFrom returns what replaceFile wants of one who has a reader.
func copyFrom(r io.Reader) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.Copy(w, r)
		return err
	}
}

// replaceFile has write fill path so that path has its old content or,
// durably, the new one, and nothing else is left.
func replaceFile(path string, write func(io.Writer) error) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
