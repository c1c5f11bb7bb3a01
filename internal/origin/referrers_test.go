package origin

import (
	"encoding/json"
	"errors"
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/testkit"
)

// TestReferrers looks for what is about an image at registries that list it, by
// type or not, that keep the list under a tag, and that have none.
func TestReferrers(t *testing.T) {
	const repo, mine = "some/repo", "application/vnd.test.mine"
	reg := testkit.NewRegistry(t, testkit.Options{Auth: testkit.TokenAuth})
	image := reg.AddImage(repo, "v1", []byte("a layer"))
	about := func(artifactType string, subject digest.Digest) ocispec.Descriptor {
		m := ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: artifactType,
			Config: ocispec.DescriptorEmptyJSON, Layers: []ocispec.Descriptor{}, Subject: &ocispec.Descriptor{Digest: subject, MediaType: image.MediaType, Size: image.Size},
		}
		data, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		ref := reg.AddManifest(repo, "", m.MediaType, data)
		return ocispec.Descriptor{MediaType: m.MediaType, Digest: ref.Digest, Size: ref.Size, ArtifactType: artifactType}
	}
	want := about(mine, image.Digest)
	other := about("application/vnd.test.other", image.Digest)
	about(mine, digest.FromString("another image"))
	noAPI := testkit.Fault{On: testkit.Other, Do: testkit.Status, Status: http.StatusNotFound}

	list := func(subject digest.Digest) []ocispec.Descriptor {
		t.Helper()
		got, err := newOrigin(t).Referrers(t.Context(), reg.Repo(repo), subject, mine)
		if err != nil {
			t.Errorf("list referrers: %v", err)
		}
		return got
	}
	check := func(what string, got []ocispec.Descriptor) {
		t.Helper()
		if len(got) != 1 || got[0].Digest != want.Digest || got[0].ArtifactType != mine {
			t.Errorf("%s: got %+v, want %v", what, got, want.Digest)
		}
	}
	check("with the API", list(image.Digest))
	if got := list(digest.FromString("nobody is about it")); len(got) != 0 {
		t.Errorf("of something nothing refers to: %+v", got)
	}
	reg.Inject(noAPI)
	if got := list(image.Digest); len(got) != 0 {
		t.Errorf("without API and tag: %+v", got)
	}
	// The tag lists all types.
	data, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{other, want},
	})
	if err != nil {
		t.Fatal(err)
	}
	reg.AddManifest(repo, "sha256-"+image.Digest.Encoded(), ocispec.MediaTypeImageIndex, data)
	check("with a tag", list(image.Digest))

	reg.ClearFaults()
	reg.Inject(testkit.Fault{On: testkit.Other, Do: testkit.Status, Status: http.StatusForbidden})
	if _, err := newOrigin(t).Referrers(t.Context(), reg.Repo(repo), image.Digest, mine); !errors.Is(err, blob.Forbidden) {
		t.Errorf("where it is not allowed: %v, want forbidden", err)
	}
	if _, err := newOrigin(t).Referrers(t.Context(), reg.Repo(repo), "sha256:../../x", mine); err == nil {
		t.Error("of what is no digest: no error")
	}
}
