package lab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layout is an OCI image layout directory (image-spec, image-layout.md) that
// is being written to. Blobs may be written concurrently, tags not.
type layout struct{ dir string }

// openLayout creates dir as an empty layout if it is not one.
func openLayout(dir string) (*layout, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return nil, fmt.Errorf("create layout: %w", err)
	}
	l := &layout{dir}
	data, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err == nil {
		err = writeFile(filepath.Join(dir, ocispec.ImageLayoutFile), data)
	}
	if err != nil {
		return nil, fmt.Errorf("create layout: %w", err)
	}
	return l, nil
}

func blobPath(dir string, d digest.Digest) string {
	return filepath.Join(dir, "blobs", d.Algorithm().String(), d.Encoded())
}

// layer compresses the tar that write writes and stores it. write returns the
// number of entries.
func (l *layout) layer(write func(w io.Writer) (int, error)) (_ ImageLayer, err error) {
	f, err := os.CreateTemp(filepath.Join(l.dir, "blobs", "sha256"), ".new-")
	if err != nil {
		return ImageLayer{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	blob, diff := newMeasure(), newMeasure()
	buf := bufio.NewWriterSize(io.MultiWriter(f, blob), 1<<20)
	zw := gzip.NewWriter(buf)
	entries, err := write(io.MultiWriter(zw, diff))
	if err == nil {
		err = errors.Join(zw.Close(), buf.Flush(), f.Chmod(0o644))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return ImageLayer{}, err
	}
	d := blob.Digest()
	if err := os.Rename(f.Name(), blobPath(l.dir, d)); err != nil {
		return ImageLayer{}, err
	}
	return ImageLayer{Digest: d, DiffID: diff.Digest(), Size: blob.n, TarSize: diff.n, Entries: entries}, nil
}

// measure counts and digests what is written to it.
type measure struct {
	digest.Digester
	n int64
}

func newMeasure() *measure { return &measure{Digester: digest.SHA256.Digester()} }

func (m *measure) Write(p []byte) (int, error) {
	m.n += int64(len(p))
	return m.Hash().Write(p)
}

// json stores a document and describes it.
func (l *layout) json(mediaType string, v any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	d := digest.FromBytes(data)
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}, writeFile(blobPath(l.dir, d), data)
}

// tag makes desc the one image in the layout that is called name.
func (l *layout) tag(name string, desc ocispec.Descriptor) error {
	index, err := l.index()
	if err != nil {
		return err
	}
	index.Manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
		return d.Annotations[ocispec.AnnotationRefName] == name
	})
	desc.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	index.Manifests = append(index.Manifests, desc)
	data, err := json.Marshal(index)
	if err == nil {
		err = writeFile(filepath.Join(l.dir, ocispec.ImageIndexFile), data)
	}
	if err != nil {
		return fmt.Errorf("write layout's index: %w", err)
	}
	return nil
}

func (l *layout) index() (ocispec.Index, error) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	data, err := os.ReadFile(filepath.Join(l.dir, ocispec.ImageIndexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return index, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &index)
	}
	if err != nil {
		return index, fmt.Errorf("read layout's index: %w", err)
	}
	return index, nil
}

// note is what we remember of an image beside its layout's standard files.
type note struct {
	Key   string `json:"key"`
	Image Image  `json:"image"`
}

func (l *layout) notePath(name string) string {
	return filepath.Join(l.dir, "skimmer-lab-"+name+".json")
}

// save remembers that img was made of what key stands for.
func (l *layout) save(img Image, key string) error {
	data, err := json.MarshalIndent(note{key, img}, "", " ")
	if err == nil {
		err = writeFile(l.notePath(img.Tag), data)
	}
	if err != nil {
		return fmt.Errorf("save image's record: %w", err)
	}
	return nil
}

// find returns the image called name if it was made of what key stands for
// and all of it is still there.
func (l *layout) find(name, key string) (Image, bool) {
	data, err := os.ReadFile(l.notePath(name))
	if err != nil {
		return Image{}, false
	}
	var n note
	if json.Unmarshal(data, &n) != nil || n.Key != key {
		return Image{}, false
	}
	index, err := l.index()
	if err != nil || !slices.ContainsFunc(index.Manifests, func(d ocispec.Descriptor) bool {
		return d.Digest == n.Image.Digest && d.Annotations[ocispec.AnnotationRefName] == name
	}) {
		return Image{}, false
	}
	for _, layer := range n.Image.Layers {
		st, err := os.Stat(blobPath(l.dir, layer.Digest))
		if err != nil || st.Size() != layer.Size {
			return Image{}, false
		}
	}
	n.Image.LayoutDir = l.dir
	return n.Image, true
}
