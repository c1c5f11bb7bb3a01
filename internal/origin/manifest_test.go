package origin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"net/http"
	"net/http/httptest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/testkit"
)

func TestManifestAndResolve(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{Auth: testkit.TokenAuth})
	ref := reg.AddImage("some/repo", "v1", []byte("a layer"))
	data, _ := reg.Manifest("some/repo", "v1")
	for _, c := range []struct {
		name      string
		faults    []testkit.Fault
		reference string
		head, get int // requests Resolve makes, 401s included
	}{
		{"tag", nil, "v1", 2, 0},
		{"digest", nil, ref.Digest.String(), 2, 0},
		{"head tells nothing", []testkit.Fault{{On: testkit.ManifestHead, Do: testkit.NoDigest}}, "v1", 2, 1},
		{"head tells no length", []testkit.Fault{{On: testkit.ManifestHead, Do: testkit.NoLength}}, "v1", 2, 1},
		{"no head", []testkit.Fault{{On: testkit.ManifestHead, Do: testkit.Status, Status: 405}}, "v1", 1, 2},
		{"nobody tells", []testkit.Fault{{On: testkit.ManifestHead, Do: testkit.NoDigest}, {On: testkit.ManifestGet, Do: testkit.NoDigest}}, "v1", 2, 1},
		{"busy at first", []testkit.Fault{{On: testkit.ManifestHead, Do: testkit.Status, Status: 429, Times: 2}}, "v1", 4, 0},
		{"short at first", []testkit.Fault{{On: testkit.ManifestHead, Do: testkit.NoDigest}, {On: testkit.ManifestGet, Do: testkit.ShortBody, After: 9, Times: 1}}, "v1", 2, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			reg.ClearFaults()
			reg.ResetStats()
			for _, f := range c.faults {
				reg.Inject(f)
			}
			o := newOrigin(t)
			r := Reference{Repository: reg.Repo("some/repo"), Tag: c.reference}
			if strings.Contains(c.reference, ":") {
				r = Reference{Repository: r.Repository, Tag: "ignored", Digest: ref.Digest}
			}
			d, err := o.Resolve(t.Context(), r)
			if err != nil || d.Digest != ref.Digest || d.Size != ref.Size || d.MediaType != ref.MediaType {
				t.Errorf("resolve: got %v %d %s, want %v: %v", d.Digest, d.Size, d.MediaType, ref, err)
			}
			s := reg.Stats().Requests
			if s[testkit.ManifestHead] != c.head || s[testkit.ManifestGet] != c.get {
				t.Errorf("resolve made requests %v, want %d heads and %d gets", s, c.head, c.get)
			}
			got, mediaType, dgst, err := o.Manifest(t.Context(), r.Repository, c.reference)
			if err != nil || !bytes.Equal(got, data) || mediaType != ref.MediaType || dgst != ref.Digest {
				t.Errorf("manifest: got %d bytes, %s, %v: %v", len(got), mediaType, dgst, err)
			}
		})
	}
}

func TestManifestErrors(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{})
	ref := reg.AddImage("some/repo", "v1", []byte("a layer"))
	big := reg.AddManifest("some/repo", "big", ocispec.MediaTypeImageIndex, make([]byte, MaxManifest+1))
	flip := testkit.Fault{On: testkit.ManifestGet, Do: testkit.CorruptBody, After: 3}
	for _, c := range []struct {
		name, repo, reference string
		fault                 testkit.Fault
		want                  blob.Kind
		text                  string
	}{
		{"unknown tag", "some/repo", "v2", testkit.Fault{}, blob.NotFound, "404 Not Found: manifest unknown (MANIFEST_UNKNOWN)"},
		{"unknown repository", "other/repo", "v1", testkit.Fault{}, blob.NotFound, "read manifest v1 of " + reg.Host() + "/other/repo"},
		{"corrupt, by digest", "some/repo", ref.Digest.String(), flip, blob.Corrupt, "the bytes have digest sha256:"},
		{"corrupt, by tag", "some/repo", "v1", flip, blob.Corrupt, "the bytes have digest sha256:"},
		{"too large", "some/repo", "big", testkit.Fault{}, blob.Invalid, "larger than 4194304 bytes"},
		{"too large, length not told", "some/repo", big.Digest.String(), testkit.Fault{On: testkit.ManifestGet, Do: testkit.NoLength}, blob.Invalid, "larger than 4194304 bytes"},
		{"down", "some/repo", "v1", testkit.Fault{On: testkit.ManifestGet, Do: testkit.Status, Status: 502}, blob.Unavailable, "502 Bad Gateway"},
		{"no reference", "some/repo", "", testkit.Fault{}, blob.Invalid, "neither a tag nor a digest"},
		{"path for a tag", "some/repo", "../../x", testkit.Fault{}, blob.Invalid, "neither a tag nor a digest"},
		{"bad digest", "some/repo", "sha256:12", testkit.Fault{}, blob.Invalid, "neither a tag nor a digest"},
		{"path for a repository", "../repo", "v1", testkit.Fault{}, blob.Invalid, "not a repository path"},
	} {
		t.Run(c.name, func(t *testing.T) {
			reg.ClearFaults()
			reg.Inject(c.fault)
			data, _, _, err := newOrigin(t).Manifest(t.Context(), reg.Repo(c.repo), c.reference)
			if data != nil || blob.KindOf(err) != c.want || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %d bytes and %v, want kind %v saying %q", len(data), err, c.want, c.text)
			}
		})
	}
}

func TestManifestOfDockerRegistry(t *testing.T) {
	base := "http://" + testkit.DockerRegistry(t)
	config := testkit.PushBlob(t, base, "some/repo", []byte("{}"))
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	m.SchemaVersion = 2
	m.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: config.Digest, Size: config.Size}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	want := testkit.PushManifest(t, base, "some/repo:v1", m.MediaType, data)
	o := newOrigin(t)
	d, err := o.Resolve(t.Context(), Reference{Repository: want.Repository, Tag: "v1"})
	if err != nil || d.Digest != want.Digest || d.Size != want.Size || d.MediaType != want.MediaType {
		t.Errorf("resolve: %+v, want %v: %v", d, want, err)
	}
	got, _, _, err := o.Manifest(t.Context(), want.Repository, want.Digest.String())
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("manifest: %q: %v", got, err)
	}
	if _, _, _, err = o.Manifest(t.Context(), want.Repository, "v2"); blob.KindOf(err) != blob.NotFound {
		t.Errorf("unknown tag: %v", err)
	}
}

func TestTLS(t *testing.T) {
	reg := testkit.NewRegistry(t, testkit.Options{TLS: true})
	ref := reg.AddBlob("some/repo", blobtest.Bytes(1, 100))
	withCA := func(cfg *Config) { cfg.CAFiles = map[string][]string{"127.0.0.1": {reg.CAFile()}} }
	if _, err := read(t, newOrigin(t, withCA), ref, blob.Range{Len: 100}); err != nil {
		t.Errorf("with the authority's file: %v", err)
	}
	reg.ResetStats()
	systemOnly := func(cfg *Config) { cfg.CAFiles = map[string][]string{reg.Host(): nil} }
	_, err := read(t, newOrigin(t, systemOnly), ref, blob.Range{Len: 100})
	outcome{err: err, kind: blob.Unavailable, text: "add the authority's file to the host's CA files"}.check(t, ref, nil)
	if n := reg.Stats().Conns; n > 1 {
		t.Errorf("tried a certificate nobody trusts %d times", n)
	}

	plain := testkit.NewRegistry(t, testkit.Options{})
	ref = plain.AddBlob("some/repo", blobtest.Bytes(1, 100))
	wantTLS := func(cfg *Config) { cfg.CAFiles = map[string][]string{plain.Host(): nil} }
	_, err = read(t, newOrigin(t, wantTLS), ref, blob.Range{Len: 100})
	outcome{err: err, kind: blob.Unavailable, text: "the server speaks plain HTTP; list the host as insecure"}.check(t, ref, nil)
}

func TestCAFileErrors(t *testing.T) {
	empty := t.TempDir() + "/empty.pem"
	if err := os.WriteFile(empty, []byte("not a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{"/nonexistent.pem": "no such file", empty: "holds no PEM certificate"} {
		_, err := New(Config{CAFiles: map[string][]string{"registry.example": {file}}})
		if err == nil || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), "registry.example") {
			t.Errorf("%s: %v, want an error saying %q", file, err, text)
		}
	}
}

func TestScheme(t *testing.T) {
	o := newOrigin(t, func(cfg *Config) {
		cfg.Insecure = []string{"plain.example", "port.example:80", "10.0.0.1"}
		cfg.CAFiles = map[string][]string{"localhost:443": nil}
	})
	for host, want := range map[string]string{
		"registry.example": "https", "registry.example:5000": "https", "10.0.0.2": "https", "notlocalhost": "https",
		"plain.example": "http", "plain.example:5000": "http", "port.example:80": "http", "port.example": "https", "10.0.0.1:5000": "http",
		"localhost": "http", "localhost:5000": "http", "localhost:443": "https", "a.localhost": "http",
		"127.0.0.1:5000": "http", "127.1.2.3": "http", "[::1]:5000": "http", "[::1]": "http", "[::2]:5000": "https",
	} {
		if got := o.x.Scheme(host); got != want {
			t.Errorf("scheme of %s = %s, want %s", host, got, want)
		}
	}
}

// TestHTTPSNotDowngraded has a registry on HTTPS redirect to plain HTTP.
func TestHTTPSNotDowngraded(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		http.Redirect(w, req, "http://storage.example/x?Signature="+secret, http.StatusTemporaryRedirect)
	})
	w := httptest.NewRecorder()
	o := newOrigin(t, func(cfg *Config) {
		cfg.transport = roundTripper(func(req *http.Request) (*http.Response, error) {
			if req.URL.Host != "registry.example" {
				return nil, errors.New("followed")
			}
			h(w, req)
			return w.Result(), nil
		})
	})
	ref := blob.Ref{Repository: "registry.example/x", Size: 5, Digest: digest.FromString("x")}
	_, err := read(t, o, ref, blob.Range{Len: 5})
	outcome{err: err, kind: blob.Unavailable, text: "redirected to plain HTTP on storage.example"}.check(t, ref, nil)
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// TestProxyFromEnvironment runs itself as a process of its own, because the
// environment is read once per process.
func TestProxyFromEnvironment(t *testing.T) {
	ref := blob.Ref{Repository: "registry.example/some/repo", Size: 100, Digest: digest.FromBytes(blobtest.Bytes(1, 100))}
	if os.Getenv("SKIMMER_TEST_PROXIED") != "" {
		o := newOrigin(t, func(cfg *Config) { cfg.Insecure = []string{"registry.example"} })
		if _, err := read(t, o, ref, blob.Range{Len: 100}); err != nil {
			t.Error(err)
		}
		return
	}
	reg := testkit.NewRegistry(t, testkit.Options{})
	reg.AddBlob("some/repo", blobtest.Bytes(1, 100))
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxyFromEnvironment$")
	cmd.Env = append(os.Environ(), "SKIMMER_TEST_PROXIED=1", "HTTP_PROXY="+reg.URL(), "http_proxy="+reg.URL(), "NO_PROXY=", "no_proxy=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("read through a proxy: %v\n%s", err, out)
	}
	if n := reg.Stats().Requests[testkit.BlobGet]; n != 1 {
		t.Errorf("the proxy saw %d requests, want 1", n)
	}
}

func TestClientsAreSharedAndBounded(t *testing.T) {
	o := newOrigin(t, func(cfg *Config) { cfg.MaxClients = 2 })
	client := func(repo string, cred ...Credential) *client {
		ctx := t.Context()
		for _, c := range cred {
			ctx = WithCredential(ctx, c)
		}
		c, err := o.client(ctx, repo)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	a := client("a.example/x")
	if client("a.example/x") != a {
		t.Error("two clients for one repository")
	}
	b := client("a.example/x", Credential{})
	if b == a || client("a.example/x", alice) == b {
		t.Error("credentials share a client")
	}
	if client("a.example/x", Credential{}) != b {
		t.Error("a client in use was forgotten")
	}
	if client("a.example/x") == a {
		t.Error("the client not used for longest is still there")
	}
	if got := fmt.Sprintf("%v %s", client("docker.io/python").repo, client("python").repo.host); got != "docker.io/library/python registry-1.docker.io" {
		t.Errorf("docker hub: %s", got)
	}
}
