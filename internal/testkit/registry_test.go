package testkit

import (
	"bytes"
	"io"
	"net/http"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestRegistry pushes and pulls as a client does, once against ours and once
// against the real one, so that ours does not drift from it.
func TestRegistry(t *testing.T) {
	ours := NewRegistry(t, Options{})
	t.Run("testkit", func(t *testing.T) { testPushPull(t, ours.URL()) })
	t.Run("docker-registry", func(t *testing.T) { testPushPull(t, "http://"+DockerRegistry(t)) })
}

func testPushPull(t *testing.T, base string) {
	layer := []byte("0123456789 a layer, as far as a registry is concerned")
	ref := PushBlob(t, base, "some/repo", layer)
	config := PushBlob(t, base, "some/repo", []byte("{}"))
	manifest := []byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `",` +
		`"config":{"mediaType":"` + ocispec.MediaTypeImageConfig + `","digest":"` + config.Digest.String() + `","size":2},` +
		`"layers":[{"mediaType":"` + ocispec.MediaTypeImageLayerGzip + `","digest":"` + ref.Digest.String() + `","size":53}]}`)
	pushed := PushManifest(t, base, "some/repo:v1", ocispec.MediaTypeImageManifest, manifest)

	for _, c := range []struct {
		name, method, path, rng string
		status                  int
		header, value           string // one header of the answer
		body                    string
	}{
		{"ping", "GET", "/v2/", "", 200, "", "", "{}"},
		{"head blob", "HEAD", "/v2/some/repo/blobs/" + ref.Digest.String(), "", 200, "Content-Length", "53", ""},
		{"get blob", "GET", "/v2/some/repo/blobs/" + ref.Digest.String(), "", 200, "Docker-Content-Digest", ref.Digest.String(), string(layer)},
		{"get range", "GET", "/v2/some/repo/blobs/" + ref.Digest.String(), "bytes=3-5", 206, "Content-Range", "bytes 3-5/53", "345"},
		{"range outside", "GET", "/v2/some/repo/blobs/" + ref.Digest.String(), "bytes=53-60", 416, "Content-Range", "bytes */53", ""},
		{"unknown blob", "GET", "/v2/other/repo/blobs/" + ref.Digest.String(), "", 404, "", "", ""},
		{"manifest by tag", "GET", "/v2/some/repo/manifests/v1", "", 200, "Content-Type", ocispec.MediaTypeImageManifest, string(manifest)},
		{"manifest by digest", "HEAD", "/v2/some/repo/manifests/" + pushed.Digest.String(), "", 200, "Docker-Content-Digest", pushed.Digest.String(), ""},
		{"unknown manifest", "HEAD", "/v2/some/repo/manifests/v2", "", 404, "", "", ""},
		{"tags", "GET", "/v2/some/repo/tags/list", "", 200, "", "", `{"name":"some/repo","tags":["v1"]}`},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, base+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept", ocispec.MediaTypeImageManifest)
		if c.rng != "" {
			req.Header.Set("Range", c.rng)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if c.status == 416 {
			err = nil // the real one promises more than its error message has
		}
		if err != nil || resp.StatusCode != c.status {
			t.Errorf("%s: %s, want %d (%v)", c.name, resp.Status, c.status, err)
		}
		if c.header != "" && resp.Header.Get(c.header) != c.value {
			t.Errorf("%s: %s is %q, want %q", c.name, c.header, resp.Header.Get(c.header), c.value)
		}
		if c.body != "" && !bytes.Equal(bytes.TrimSpace(body), []byte(c.body)) {
			t.Errorf("%s: got %q, want %q", c.name, body, c.body)
		}
	}
	if resp := push(t, http.MethodPut, base+"/v2/some/repo/manifests/bad", ocispec.MediaTypeImageManifest,
		bytes.ReplaceAll(manifest, []byte(ref.Digest.Encoded()), make64('0'))); resp.StatusCode != http.StatusBadRequest &&
		resp.StatusCode != http.StatusNotFound {
		t.Errorf("manifest of a layer that is not there: %s", resp.Status)
	}
}

func make64(c byte) []byte { return bytes.Repeat([]byte{c}, 64) }
