package mirror

import (
	"encoding/json"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob/blobtest"
	"skimmer/internal/testkit"
)

// TestConformance runs the distribution specification's own conformance test
// for registries that are only read, against a mirror with nothing in it, and
// again when all is held.
func TestConformance(t *testing.T) {
	path, err := exec.Command("go", "tool", "-n", "conformance").Output()
	if err != nil {
		t.Fatalf("build the conformance test: %v", err)
	}
	reg := testkit.NewRegistry(t, testkit.Options{})
	image := reg.AddImage("some/repo", "v1", blobtest.Bytes(1, 5000), blobtest.Bytes(2, 70000))
	data, mediaType := reg.Manifest("some/repo", "v1")
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	m.Subject = &ocispec.Descriptor{MediaType: mediaType, Digest: image.Digest, Size: image.Size}
	signature, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	referrer := reg.AddManifest("some/repo", "", mediaType, signature)
	blobs := []string{m.Config.Digest.String()}
	for _, l := range m.Layers {
		blobs = append(blobs, l.Digest.String())
	}
	w := newWorld(t, reg, nil)
	u, err := url.Parse(w.url)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cold", "warm"} {
		dir := t.TempDir()
		cmd := exec.CommandContext(t.Context(), strings.TrimSpace(string(path)))
		cmd.Dir = dir
		cmd.Env = append(os.Environ(),
			"OCI_REGISTRY="+u.Host, "OCI_TLS=disabled", "OCI_REPO1=some/repo", "OCI_RESULTS_DIR="+dir,
			"OCI_API_PUSH=false", "OCI_API_BLOBS_DELETE=false", "OCI_API_MANIFESTS_DELETE=false", "OCI_API_TAGS_DELETE=false",
			"OCI_API_BLOBS_DIGEST_HEADER=true",
			"OCI_RO_DATA_TAGS=v1", "OCI_RO_DATA_MANIFESTS="+image.Digest.String()+" "+referrer.Digest.String(),
			"OCI_RO_DATA_BLOBS="+strings.Join(blobs, " "), "OCI_RO_DATA_REFERRERS="+image.Digest.String())
		// In this mode it fails once its report is written: that is what counts.
		out, _ := cmd.CombinedOutput()
		for _, want := range []string{"Result: Pass", "head: Pass", "pull: Pass", "tag-list: Pass", "referrers: Pass", "missing-manifest: Pass", "invalid-digest-format: Pass"} {
			if !strings.Contains(string(out), want+"\n") {
				t.Errorf("%s: no %q\n%s", name, want, out)
			}
		}
	}
}
