package convert

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob/blobtest"
)

var testTime = time.Unix(1700000000, 0)

// entry is a tar entry with content.
type entry struct {
	tar.Header
	content []byte
}

func file_(name string, content []byte) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: testTime}, content}
}

func special(typ byte, name, link string) entry {
	return entry{tar.Header{Typeflag: typ, Name: name, Linkname: link, Mode: 0o755, ModTime: testTime, Devmajor: 1, Devminor: 3}, nil}
}

func makeTar(t testing.TB, entries []entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.content))
		if h.Typeflag != tar.TypeChar {
			h.Devmajor, h.Devminor = 0, 0
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// The layers of the test image: one with every type of entry, one that
// removes, one on top.
func baseTar(t testing.TB) []byte {
	caps := file_("bin/tool", blobtest.Bytes(1, 300<<10))
	caps.Mode = 0o4755
	caps.PAXRecords = map[string]string{"SCHILY.xattr.user.test": "value"}
	return makeTar(t, []entry{
		special(tar.TypeDir, "bin/", ""), caps,
		special(tar.TypeLink, "bin/same", "bin/tool"),
		special(tar.TypeSymlink, "bin/sh", "tool"),
		special(tar.TypeDir, "dev/", ""), special(tar.TypeChar, "dev/null", ""), special(tar.TypeFifo, "dev/fifo", ""),
		special(tar.TypeDir, "etc/", ""), file_("etc/motd", []byte("hello\n")), file_("etc/empty", nil),
		file_("etc/"+strings.Repeat("long", 60), []byte("long name\n")),
	})
}

func midTar(t testing.TB) []byte {
	return makeTar(t, []entry{
		special(tar.TypeDir, "etc/", ""), file_("etc/.wh.motd", nil),
		special(tar.TypeDir, "dev/", ""), file_("dev/.wh..wh..opq", nil),
	})
}

func topTar(t testing.TB, platform string) []byte {
	return makeTar(t, []entry{
		special(tar.TypeDir, "app/", ""),
		file_("app/main", append([]byte(platform), blobtest.Bytes(7, 20<<10)...)), file_("app/data", blobtest.Bytes(8, 90<<10)),
	})
}

func tarLayer(t testing.TB, p []byte, mt types.MediaType) v1.Layer {
	t.Helper()
	opts := []tarball.LayerOption{tarball.WithMediaType(mt)}
	if mt == types.OCILayerZStd {
		opts = append(opts, tarball.WithCompression(compression.ZStd))
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(p)), nil }, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// testImage is an image of Docker media types with three layers and a history
// that has entries without one.
func testImage(t testing.TB, arch string, mt types.MediaType) v1.Image {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		OS: "linux", Architecture: arch, Created: v1.Time{Time: testTime}, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{Cmd: []string{"/bin/sh", "-c", "a && b <c>"}, Env: []string{"PATH=/bin"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	img, err = mutate.Append(img,
		mutate.Addendum{Layer: tarLayer(t, baseTar(t), mt), History: v1.History{CreatedBy: "base"}},
		mutate.Addendum{History: v1.History{CreatedBy: "ENV PATH=/bin", EmptyLayer: true}},
		mutate.Addendum{Layer: tarLayer(t, midTar(t), mt), History: v1.History{CreatedBy: "rm"}},
		mutate.Addendum{Layer: tarLayer(t, topTar(t, arch), mt), History: v1.History{CreatedBy: "COPY app"}},
		mutate.Addendum{History: v1.History{CreatedBy: "CMD", EmptyLayer: true}},
	)
	if err != nil {
		t.Fatal(err)
	}
	if mt == types.DockerLayer {
		return img
	}
	return mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON)
}

// attestation is what BuildKit adds to an index for an image.
func attestation(t testing.TB, subject v1.Image) mutate.IndexAddendum {
	t.Helper()
	img, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON),
		static.NewLayer([]byte(`{"_type":"https://in-toto.io/Statement/v0.1"}`), "application/vnd.in-toto+json"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := subject.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
		Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"},
		Annotations: map[string]string{
			"vnd.docker.reference.type": "attestation-manifest", annotationReference: d.String(),
		},
	}}
}

// testIndex has two platforms that share a layer, and an attestation for
// each.
func testIndex(t testing.TB) v1.ImageIndex {
	t.Helper()
	amd, arm := testImage(t, "amd64", types.DockerLayer), testImage(t, "arm64", types.DockerLayer)
	return mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.DockerManifestList),
		mutate.IndexAddendum{Add: amd, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}}},
		attestation(t, amd), attestation(t, arm),
	)
}

// writeLayout makes a layout with one image or index called tag.
func writeLayout(t testing.TB, tag string, what mutate.Appendable) Name {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	opt := layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag})
	switch what := what.(type) {
	case v1.Image:
		err = p.AppendImage(what, opt)
	case v1.ImageIndex:
		err = p.AppendIndex(what, opt)
	}
	if err != nil {
		t.Fatal(err)
	}
	return Name{Transport: Layout, Path: dir}
}

// memoryRegistry starts a registry in this process.
func memoryRegistry(t testing.TB) string {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(discardLogger)))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// dockerRegistry starts Debian's docker-registry on a free port, with a
// password if htpasswd is not empty.
func dockerRegistry(t testing.TB, htpasswd string) string {
	t.Helper()
	bin, err := exec.LookPath("docker-registry")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("docker-registry is not installed")
		}
		t.Skip("SKIPPED: NEEDS docker-registry (apt install docker-registry)")
	}
	dir := t.TempDir()
	conf := fmt.Sprintf("version: 0.1\nlog: {level: info, formatter: json}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: 127.0.0.1:0}\n", dir)
	if htpasswd != "" {
		file := filepath.Join(dir, "htpasswd")
		if err := os.WriteFile(file, []byte(htpasswd), 0o600); err != nil {
			t.Fatal(err)
		}
		conf += fmt.Sprintf("auth: {htpasswd: {realm: test, path: %s}}\n", file)
	}
	path := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, "serve", path)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		var line struct {
			Msg string `json:"msg"`
		}
		_ = json.Unmarshal(lines.Bytes(), &line)
		if addr, ok := strings.CutPrefix(line.Msg, "listening on "); ok {
			go func() { _, _ = io.Copy(io.Discard, stderr) }() // ends with the process
			return addr
		}
	}
	t.Fatalf("docker-registry did not start: %v", lines.Err())
	return ""
}

// checkWhole finds everything an index refers to, intact.
func checkWhole(t *testing.T, idx v1.ImageIndex) {
	t.Helper()
	m, err := idx.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range m.Manifests {
		img, err := idx.Image(d.Digest)
		if err != nil {
			t.Errorf("manifest %v: %v", d.Digest, err)
			continue
		}
		if d.Platform.OS != "unknown" {
			if err := validate.Image(img); err != nil {
				t.Errorf("image for %v: %v", d.Platform, err)
			}
			continue
		}
		att, err := img.Manifest()
		if err != nil {
			t.Errorf("attestation %v: %v", d.Digest, err)
			continue
		}
		l, err := img.LayerByDigest(att.Layers[0].Digest)
		if err != nil {
			t.Errorf("attestation %v: %v", d.Digest, err)
			continue
		}
		rc, err := l.Compressed()
		if err != nil {
			t.Errorf("attestation %v: %v", d.Digest, err)
			continue
		}
		if _, err := io.Copy(io.Discard, rc); err != nil { // checks the digest
			t.Errorf("attestation %v: %v", d.Digest, err)
		}
		rc.Close()
	}
}

// parse is ParseName for names that are right.
func parse(t testing.TB, s string) Name {
	t.Helper()
	n, err := ParseName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// pushed puts what into a registry under s.
func pushed(t testing.TB, s string, what remote.Taggable) Name {
	t.Helper()
	ref, err := name.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Push(ref, what); err != nil {
		t.Fatal(err)
	}
	return parse(t, s)
}

// resultIndex reads the index at n with the registry library.
func resultIndex(t testing.TB, n Name) v1.ImageIndex {
	t.Helper()
	var idx v1.ImageIndex
	var err error
	if n.Transport == Registry {
		idx, err = remote.Index(n.Ref)
	} else if idx, err = layout.ImageIndexFromPath(n.Path); err == nil {
		idx, err = idx.ImageIndex(only(t, idx).Digest)
	}
	if err != nil {
		t.Fatal(err)
	}
	return idx
}

// resultImage reads the image at n with the registry library.
func resultImage(t testing.TB, n Name) v1.Image {
	t.Helper()
	var img v1.Image
	var err error
	if n.Transport == Registry {
		img, err = remote.Image(n.Ref)
	} else {
		var idx v1.ImageIndex
		if idx, err = layout.ImageIndexFromPath(n.Path); err == nil {
			img, err = idx.Image(only(t, idx).Digest)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func only(t testing.TB, idx v1.ImageIndex) v1.Descriptor {
	t.Helper()
	m, err := idx.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Manifests) != 1 {
		t.Fatalf("layout has %d images, want 1", len(m.Manifests))
	}
	return m.Manifests[0]
}

// htpasswd has the user "user" with the password "secret".
const htpasswd = "user:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n"

var emptyIndex = empty.Index

func httpRequest(t testing.TB, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// tarEntries yields the entries of a tar with their contents.
func tarEntries(t testing.TB, r io.Reader) iter.Seq[entry] {
	t.Helper()
	return func(yield func(entry) bool) {
		tr := tar.NewReader(r)
		for {
			h, err := tr.Next()
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			p, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			if !yield(entry{*h, p}) {
				return
			}
		}
	}
}

// writeDockerSave writes img as older versions of docker save do: plain
// layers, and a link in the place of a layer that was there already.
func writeDockerSave(t testing.TB, path string, img v1.Image) {
	t.Helper()
	conf, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	entries := []entry{file_("config.json", conf)}
	list := dockerImage{Config: "config.json", RepoTags: []string{"example.test/app:v1"}}
	for i, l := range layers {
		rc, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		p, err := io.ReadAll(rc)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, file_(fmt.Sprintf("real%d/layer.tar", i), p))
		switch i {
		case 0:
			list.Layers = append(list.Layers, "real0/layer.tar")
		case 1:
			entries = append(entries, special(tar.TypeSymlink, "link1/layer.tar", "../real1/layer.tar"))
			list.Layers = append(list.Layers, "link1/layer.tar")
		default:
			entries = append(entries, special(tar.TypeLink, fmt.Sprintf("link%d.tar", i), fmt.Sprintf("real%d/layer.tar", i)))
			list.Layers = append(list.Layers, fmt.Sprintf("./link%d.tar", i))
		}
	}
	raw, err := json.Marshal([]dockerImage{list})
	if err != nil {
		t.Fatal(err)
	}
	entries = append(entries, file_("manifest.json", raw))
	if err := os.WriteFile(path, makeTar(t, entries), 0o600); err != nil {
		t.Fatal(err)
	}
}

func gzipped(t testing.TB, p []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	if _, err := zw.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipFile(t testing.TB, from, to string) {
	t.Helper()
	p, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, gzipped(t, p), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// descriptorOf describes p.
func descriptorOf(mt string, p []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mt, Digest: digest.FromBytes(p), Size: int64(len(p))}
}

// imageOf is an image of the given tars.
func imageOf(t testing.TB, tars ...[]byte) v1.Image {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range tars {
		if img, err = mutate.AppendLayers(img, tarLayer(t, p, types.DockerLayer)); err != nil {
			t.Fatal(err)
		}
	}
	return img
}
