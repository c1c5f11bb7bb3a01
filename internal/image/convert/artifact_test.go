package convert

import (
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// TestAttach stores an artifact beside an image, in registries that list
// referrers and in those that do not, and twice.
func TestAttach(t *testing.T) {
	for _, lists := range []bool{true, false} {
		srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(lists)))
		defer srv.Close()
		n, err := ParseName(strings.TrimPrefix(srv.URL, "http://") + "/app:v1")
		if err != nil {
			t.Fatal(err)
		}
		img, err := random.Image(100, 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(n.Ref, img); err != nil {
			t.Fatal(err)
		}
		d, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		a := Artifact{Type: "application/vnd.test.thing.v1", Data: []byte("content"), Created: time.Unix(1_700_000_000, 0)}
		var attached []digest.Digest
		for range 2 {
			got, err := Attach(t.Context(), n, digest.Digest(d.String()), a, Access{})
			if err != nil {
				t.Fatal(err)
			}
			attached = append(attached, got)
		}
		index, err := remote.Referrers(n.Ref.Context().Digest(d.String()))
		if err != nil {
			t.Fatal(err)
		}
		list, err := index.IndexManifest()
		if err != nil {
			t.Fatal(err)
		}
		if attached[0] != attached[1] || len(list.Manifests) != 1 || list.Manifests[0].Digest.String() != attached[0].String() {
			t.Errorf("referrers listed: %v; attached are %v, listed %+v", lists, attached, list.Manifests)
		}
		layer, err := remote.Layer(n.Ref.Context().Digest(digest.FromBytes(a.Data).String()))
		if err != nil {
			t.Fatal(err)
		}
		if size, err := layer.Size(); err != nil || size != int64(len(a.Data)) {
			t.Errorf("the data has %d bytes, %v", size, err)
		}
		if tag := attachedTo(t, n.Ref); tag != d.String() {
			t.Errorf("the image's tag now names %s", tag)
		}
		if _, err := Attach(t.Context(), n, digest.FromString("nothing"), a, Access{}); blob.KindOf(err) != blob.NotFound {
			t.Errorf("beside nothing: %v", err)
		}
	}
	if _, err := Attach(t.Context(), Name{Transport: Layout, Path: "x"}, digest.FromString("x"), Artifact{}, Access{}); blob.KindOf(err) != blob.Invalid {
		t.Errorf("in a layout: %v", err)
	}
}

// attachedTo returns the digest a tag names.
func attachedTo(t *testing.T, ref name.Reference) string {
	t.Helper()
	got, err := remote.Get(ref)
	if err != nil {
		t.Fatal(err)
	}
	return got.Digest.String()
}

func TestLayoutDocument(t *testing.T) {
	dir, content := t.TempDir(), []byte("{}")
	d := digest.FromBytes(content)
	path := filepath.Join(dir, "blobs", "sha256", d.Encoded())
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := LayoutDocument(t.Context(), dir, d); blob.KindOf(err) != blob.NotFound {
		t.Errorf("what is not there: %v", err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := LayoutDocument(t.Context(), dir, d); err != nil || string(got) != "{}" {
		t.Errorf("%q, %v", got, err)
	}
	b, err := LayoutBlobs(dir).Open(t.Context(), blob.Ref{Digest: d, Size: 2})
	if err != nil || b.Size() != 2 {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte("[]"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LayoutDocument(t.Context(), dir, d); blob.KindOf(err) != blob.Corrupt {
		t.Errorf("changed: %v", err)
	}
}
