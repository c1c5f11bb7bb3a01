//go:build e2e

package docker

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/testkit"
)

// dataFile is in the top layer of every image.
const dataFile = "/data"

// image is an image that is in no registry yet: the tool below, random bytes
// above. Images of different names share nothing.
type image struct {
	config, manifest []byte
	layers           [][]byte
	sum              string // of dataFile, hex SHA-256
}

// file is a file in a layer.
type file struct {
	path    string
	content []byte
}

// newImage builds an image that depends on nothing but name.
func newImage(t *testing.T, name string) *image {
	t.Helper()
	program, err := os.ReadFile(tool)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(name))).Read(data) // it never fails
	sum := sha256.Sum256(data)
	im := &image{sum: hex.EncodeToString(sum[:])}
	var list []ocispec.Descriptor
	var diffs []digest.Digest
	for _, files := range [][]file{{{"tool", program}, {"name", []byte(name)}}, {{dataFile[1:], data}}} {
		packed, diff := pack(t, files)
		im.layers, diffs = append(im.layers, packed), append(diffs, diff)
		list = append(list, describe(ocispec.MediaTypeImageLayerGzip, packed))
	}
	im.config = encode(t, ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: diffs},
		Config:   ocispec.ImageConfig{Cmd: []string{"/tool", "pause"}},
	})
	im.manifest = encode(t, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: describe(ocispec.MediaTypeImageConfig, im.config), Layers: list,
	})
	return im
}

// pack returns a layer, and the digest of its tar.
func pack(t *testing.T, files []file) (packed []byte, diff digest.Digest) {
	t.Helper()
	var raw, out bytes.Buffer
	tw, zw := tar.NewWriter(&raw), gzip.NewWriter(&out)
	for _, f := range files {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.path, Mode: 0o755, Size: int64(len(f.content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(f.content); err != nil {
			t.Fatal(err)
		}
	}
	err1 := tw.Close()
	_, err2 := zw.Write(raw.Bytes())
	if err := errors.Join(err1, err2, zw.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), digest.FromBytes(raw.Bytes())
}

func describe(mediaType string, p []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(p), Size: int64(len(p))}
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	p, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// blobs returns layers and configuration.
func (im *image) blobs() [][]byte { return append([][]byte{im.config}, im.layers...) }

// add puts the image into a registry of ours as repo:v1.
func (im *image) add(r *testkit.Registry, repo string) {
	for _, p := range im.blobs() {
		r.AddBlob(repo, p)
	}
	r.AddManifest(repo, "v1", ocispec.MediaTypeImageManifest, im.manifest)
}

// push pushes the image to a registry at a base URL as repo:v1.
func (im *image) push(t *testing.T, base, repo string) {
	t.Helper()
	for _, p := range im.blobs() {
		testkit.PushBlob(t, base, repo, p)
	}
	testkit.PushManifest(t, base, repo+":v1", ocispec.MediaTypeImageManifest, im.manifest)
}

// expectSent checks, given what a registry has sent of each blob, that every
// byte of the image was sent once, or none at all.
func (im *image) expectSent(t *testing.T, sent map[digest.Digest]int64, times int64) {
	t.Helper()
	for _, p := range im.blobs() {
		if got, want := sent[digest.FromBytes(p)], times*int64(len(p)); got != want {
			t.Errorf("the registry sent %d bytes of a blob of %d, want %d", got, len(p), want)
		}
	}
}
