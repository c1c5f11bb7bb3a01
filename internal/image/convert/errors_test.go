package convert

import (
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
)

// impatient takes the waits out of retries.
func impatient(t *testing.T) {
	old := retryDelays
	retryDelays = []time.Duration{0, 0}
	t.Cleanup(func() { retryDelays = old })
}

// TestErrors holds what goes wrong against the kind and the words that name
// the cause.
func TestErrors(t *testing.T) {
	impatient(t)
	dir := t.TempDir()
	write := func(name string, p []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	img := testImage(t, "amd64", types.DockerLayer)
	good := filepath.Join(dir, "good.tar")
	writeDockerSave(t, good, img)
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	reg := memoryRegistry(t)
	for _, c := range []struct {
		name, src string
		kind      blob.Kind
		words     string
	}{
		{"no such image", reg + "/absent:v1", blob.NotFound, "read image " + reg + "/absent:v1: the registry has no such image"},
		{"nobody listens", "127.0.0.1:1/app:v1", blob.Unavailable, "connection refused"},
		{"no layout", "oci:" + dir + "/nowhere", blob.NotFound, "not an OCI layout"},
		{"no such tag", writeLayout(t, "v1", img).String() + ":v2", blob.NotFound, "no image has that tag; there are: v1"},
		{"no archive", "docker-archive:" + dir + "/nowhere.tar", blob.NotFound, "no such file"},
		{"not a tar", "docker-archive:" + write("text.tar", []byte(strings.Repeat("no tar\n", 200))), blob.Corrupt, "read tar"},
		{"empty", write("empty.tar", nil), blob.Corrupt, "it is empty"},
		{"other tar", write("other.tar", makeTar(t, []entry{file_("readme", nil)})), blob.Invalid, "neither an OCI archive"},
		{"cut in a header", write("header.tar", whole[:300]), blob.Corrupt, "cut short"},
		{"cut in a layer", write("layer.tar", whole[:len(whole)/2]), blob.Corrupt, "cut short"},
		{"cut gzip", write("cut.tar.gz", gzipped(t, whole)[:5000]), blob.Corrupt, "decompress"},
		{"wrong image of an archive", "docker-archive:" + good + ":other", blob.NotFound, "there are: example.test/app:v1"},
		{"not an oci archive", "oci-archive:" + good, blob.Invalid, "no oci-layout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, err := ParseName(c.src)
			if err == nil {
				_, err = Convert(t.Context(), n, Name{Transport: Layout, Path: filepath.Join(t.TempDir(), "out")}, small(t))
			}
			if err == nil || blob.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.words) {
				t.Errorf("got %v (kind %v)\nwant kind %v and %q", err, blob.KindOf(err), c.kind, c.words)
			}
		})
	}
}

// TestBadContent damages an image in a layout.
func TestBadContent(t *testing.T) {
	impatient(t)
	path := func(n Name, d ocispec.Descriptor) string {
		return filepath.Join(n.Path, filepath.FromSlash(blobPath(d.Digest)))
	}
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, n Name)
		kind   blob.Kind
		words  string
	}{
		{"truncated layer", func(t *testing.T, n Name) {
			m := edit(t, n, func(*ocispec.Manifest) {})
			if err := os.Truncate(path(n, m.Layers[0]), m.Layers[0].Size/2); err != nil {
				t.Fatal(err)
			}
		}, blob.Corrupt, "truncated"},
		{"changed layer", func(t *testing.T, n Name) {
			m := edit(t, n, func(*ocispec.Manifest) {})
			p, err := os.ReadFile(path(n, m.Layers[0]))
			if err != nil {
				t.Fatal(err)
			}
			p[len(p)/2] ^= 1
			if err := os.WriteFile(path(n, m.Layers[0]), p, 0o600); err != nil {
				t.Fatal(err)
			}
		}, blob.Corrupt, "another digest"},
		{"missing layer", func(t *testing.T, n Name) {
			m := edit(t, n, func(*ocispec.Manifest) {})
			if err := os.Remove(path(n, m.Layers[0])); err != nil {
				t.Fatal(err)
			}
		}, blob.NotFound, "the image is incomplete"},
		{"encrypted layer", func(t *testing.T, n Name) {
			edit(t, n, func(m *ocispec.Manifest) { m.Layers[0].MediaType = ocispec.MediaTypeImageLayerGzip + "+encrypted" })
		}, blob.Invalid, "is encrypted"},
		{"strange layer", func(t *testing.T, n Name) {
			edit(t, n, func(m *ocispec.Manifest) { m.Layers[0].MediaType = "application/x-squashfs" })
		}, blob.Invalid, `media type "application/x-squashfs"`},
		{"too few layers", func(t *testing.T, n Name) {
			edit(t, n, func(m *ocispec.Manifest) { m.Layers = m.Layers[:1] })
		}, blob.Corrupt, "the manifest has 1 layers, its config 3"},
		{"layer that is no tar", func(t *testing.T, n Name) {
			edit(t, n, func(m *ocispec.Manifest) { m.Layers[0] = m.Config; m.Layers[0].MediaType = ocispec.MediaTypeImageLayer })
		}, blob.Invalid, "build layer"},
		{"artifact", func(t *testing.T, n Name) {
			edit(t, n, func(m *ocispec.Manifest) { m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json" })
		}, blob.Invalid, "not an image but an artifact"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := writeLayout(t, "v1", testImage(t, "amd64", types.DockerLayer))
			c.damage(t, n)
			out := filepath.Join(t.TempDir(), "out")
			_, err := Convert(t.Context(), n, Name{Transport: Layout, Path: out}, small(t))
			if err == nil || blob.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.words) {
				t.Errorf("got %v (kind %v)\nwant kind %v and %q", err, blob.KindOf(err), c.kind, c.words)
			}
			if _, err := os.Stat(filepath.Join(out, indexFile)); err == nil {
				t.Error("an index was written all the same")
			}
		})
	}
}

func TestBadTargets(t *testing.T) {
	src := writeLayout(t, "v1", testImage(t, "amd64", types.DockerLayer))
	used := t.TempDir()
	if err := os.WriteFile(filepath.Join(used, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for dst, words := range map[string]string{
		"oci:" + used: "in use and not an OCI layout",
		"docker-archive:" + filepath.Join(used, "x.tar"):                  "images are written to",
		"127.0.0.1:1/app@sha256:" + strings.Repeat("0", 64):               "name a tag",
		"oci-archive:" + filepath.Join(used, "nowhere", "x.tar"):          "no such file",
		"oci:" + filepath.Join(used, "n@sha256:"+strings.Repeat("0", 64)): "name a tag",
	} {
		_, err := Copy(t.Context(), src, parse(t, dst), Options{})
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("to %s: %v, want %q", dst, err, words)
		}
	}
}

// password is a Keychain with one user.
type password struct{ user, pass string }

func (p password) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: p.user, Password: p.pass}, nil
}

func TestCredentials(t *testing.T) {
	reg := dockerRegistry(t, htpasswd)
	src := writeLayout(t, "v1", testImage(t, "amd64", types.DockerLayer))
	to := parse(t, reg+"/private/app:v1")
	_, err := Copy(t.Context(), src, to, Options{Access: Access{Keychain: password{"user", "wrong"}}})
	if blob.KindOf(err) != blob.Unauthorized || !strings.Contains(err.Error(), "docker login") {
		t.Errorf("wrong password: %v", err)
	}
	good := Options{Access: Access{Keychain: password{"user", "secret"}}}
	if _, err := Copy(t.Context(), src, to, good); err != nil {
		t.Errorf("right password: %v", err)
	}
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	_, err = Inspect(t.Context(), to, InspectOptions{})
	if blob.KindOf(err) != blob.Unauthorized {
		t.Errorf("no password: %v", err)
	}
	conf := `{"auths":{"` + reg + `":{"username":"user","password":"secret"}}}`
	if err := os.WriteFile(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = Inspect(t.Context(), to, InspectOptions{}); err != nil {
		t.Errorf("password from docker's config: %v", err)
	}
}

// TestPlainHTTP finds that a registry which is not this machine is not spoken
// to without TLS unless asked.
func TestPlainHTTP(t *testing.T) {
	n := parse(t, "10.255.255.1:5000/app:v1")
	s, err := Access{}.open(1)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	ref, err := s.reference(n.Ref)
	if err != nil {
		t.Fatal(err)
	}
	req := httpRequest(t, "http://"+ref.Context().RegistryStr()+"/v2/")
	if _, err := (tlsOnly{}).RoundTrip(req); err == nil || !strings.Contains(err.Error(), "--plain-http") {
		t.Errorf("plain HTTP: %v", err)
	}
	if s, err = (Access{PlainHTTP: true}).open(1); err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if ref, err = s.reference(n.Ref); err != nil || ref.Context().Scheme() != "http" {
		t.Errorf("--plain-http: scheme %s, %v", ref.Context().Scheme(), err)
	}
	if _, err := (Access{CAFile: "/nonexistent"}).open(1); blob.KindOf(err) != blob.Invalid {
		t.Errorf("missing CA file: %v", err)
	}
}

// withPlatforms makes an index with one image per platform.
func withPlatforms(t *testing.T, img v1.Image, platforms ...string) v1.ImageIndex {
	t.Helper()
	var adds []mutate.IndexAddendum
	for _, s := range platforms {
		p, err := v1.ParsePlatform(s)
		if err != nil {
			t.Fatal(err)
		}
		one, err := mutate.AppendLayers(img, tarLayer(t, makeTar(t, []entry{file_("platform", []byte(s))}), types.DockerLayer))
		if err != nil {
			t.Fatal(err)
		}
		adds = append(adds, mutate.IndexAddendum{Add: one, Descriptor: v1.Descriptor{Platform: p}})
	}
	return mutate.AppendManifests(emptyIndex, adds...)
}

// TestPrivateCA reaches a registry whose certificate only a CA file vouches
// for.
func TestPrivateCA(t *testing.T) {
	impatient(t)
	srv := httptest.NewUnstartedServer(registry.New(registry.Logger(discardLogger)))
	srv.Config.ErrorLog = discardLogger // the handshake that is to fail
	srv.StartTLS()
	defer srv.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(ca, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	src := writeLayout(t, "v1", testImage(t, "amd64", types.DockerLayer))
	to := parse(t, strings.TrimPrefix(srv.URL, "https://")+"/app:v1")
	if _, err := Copy(t.Context(), src, to, Options{}); err == nil || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("without the CA file: %v", err)
	}
	opts := Options{Access: Access{CAFile: ca}}
	r, err := Copy(t.Context(), src, to, opts)
	if err != nil {
		t.Fatal(err)
	}
	back, err := Copy(t.Context(), to, Name{Transport: Layout, Path: filepath.Join(t.TempDir(), "out")}, opts)
	if err != nil || back.Digest != r.Digest {
		t.Errorf("reading it back: %v, %v", back, err)
	}
}
