package convert

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
)

// TestCopyAround sends an index through every kind of place and back.
func TestCopyAround(t *testing.T) {
	src := testIndex(t)
	want, err := src.Digest()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	debian, memory := dockerRegistry(t, ""), memoryRegistry(t)
	at := writeLayout(t, "v1", src)
	for _, s := range []string{
		debian + "/app:a", debian + "/other:a", memory + "/x/app:b", "oci-archive:" + filepath.Join(dir, "a.tar") + ":v9",
		"oci:" + filepath.Join(dir, "layout"),
	} {
		to := parse(t, s)
		for _, again := range []bool{false, true} {
			r, err := Copy(t.Context(), at, to, Options{})
			if err != nil {
				t.Fatalf("copy %v to %v: %v", at, to, err)
			}
			if r.Digest.String() != want.String() {
				t.Errorf("copy %v to %v: digest %v, want %v", at, to, r.Digest, want)
			}
			if (r.Uploaded == 0) != again && to.Transport != OCIArchive {
				t.Errorf("copy %v to %v, again %v: %d bytes uploaded", at, to, again, r.Uploaded)
			}
		}
		if to.Transport != OCIArchive {
			checkWhole(t, resultIndex(t, to))
		}
		at = to
	}
	// The layout took the tag over from the archive.
	if _, err := Inspect(t.Context(), parse(t, "oci:"+filepath.Join(dir, "layout")+":v9"), InspectOptions{}); err != nil {
		t.Error(err)
	}
}

// TestCopyMounts copies within a registry without sending a blob.
func TestCopyMounts(t *testing.T) {
	reg := dockerRegistry(t, "")
	from := pushed(t, reg+"/one:v1", testIndex(t))
	var pushedBytes atomic.Int64
	r, err := Copy(t.Context(), from, parse(t, reg+"/two:v1"), Options{Report: func(e Event) {
		if e.State == Pushing {
			pushedBytes.Add(e.Done)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if pushedBytes.Load() != 0 {
		t.Errorf("%d bytes were sent, uploaded %d", pushedBytes.Load(), r.Uploaded)
	}
}

func TestCopyPlatform(t *testing.T) {
	src := testIndex(t)
	to := parse(t, memoryRegistry(t)+"/app:arm")
	opts := Options{Platforms: []ocispec.Platform{{OS: "linux", Architecture: "arm64"}}}
	r, err := Copy(t.Context(), writeLayout(t, "v1", src), to, opts)
	if err != nil {
		t.Fatal(err)
	}
	if r.MediaType != string(types.DockerManifestList) || len(r.Images) != 1 || r.Images[0].Digest != r.Images[0].SourceDigest {
		t.Errorf("result %+v", r)
	}
	checkWhole(t, resultIndex(t, to))
	all, err := Copy(t.Context(), to, parse(t, "oci:"+filepath.Join(t.TempDir(), "l")), opts)
	if err != nil || all.Digest != r.Digest {
		t.Errorf("the part copied again: %v, %v, want digest %v", all, err, r.Digest)
	}
}

// TestCopyArtifact copies what is not an image.
func TestCopyArtifact(t *testing.T) {
	n := writeLayout(t, "v1", testImage(t, "amd64", types.DockerLayer))
	edit(t, n, func(m *ocispec.Manifest) { m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json" })
	to := parse(t, memoryRegistry(t)+"/chart:v1")
	r, err := Copy(t.Context(), n, to, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Images) != 0 || r.Uploaded == 0 {
		t.Errorf("result %+v", r)
	}
	in, err := Inspect(t.Context(), to, InspectOptions{})
	if err != nil || len(in.Others) != 1 || in.Others[0].Digest != r.Digest {
		t.Errorf("inspect an artifact: %+v, %v", in, err)
	}
}

// TestBrokenTransfers has the registry break the first transfers off.
func TestBrokenTransfers(t *testing.T) {
	impatient(t)
	inner := registry.New(registry.Logger(discardLogger))
	var failures atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		blobs := strings.Contains(r.URL.Path, "/blobs/sha256:") && r.Method == http.MethodGet
		if !blobs || failures.Add(-1) < 0 {
			inner.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		inner.ServeHTTP(rec, r)
		w.Header().Set("Content-Length", rec.Header().Get("Content-Length"))
		_, _ = io.CopyN(w, rec.Body, int64(rec.Body.Len()/2))
		panic(http.ErrAbortHandler)
	}))
	defer srv.Close()
	img := testImage(t, "amd64", types.DockerLayer)
	from := pushed(t, strings.TrimPrefix(srv.URL, "http://")+"/app:v1", img)
	for _, copying := range []bool{false, true} {
		failures.Store(2)
		to := Name{Transport: Layout, Path: filepath.Join(t.TempDir(), "out"), Tag: "x"}
		var err error
		if copying {
			_, err = Copy(t.Context(), from, to, Options{})
		} else {
			_, err = Convert(t.Context(), from, to, small(t))
		}
		if err != nil {
			t.Errorf("copying %v: two broken transfers: %v", copying, err)
		}
	}
	failures.Store(1 << 30)
	_, err := Copy(t.Context(), from, Name{Transport: Layout, Path: filepath.Join(t.TempDir(), "out")}, Options{})
	if blob.KindOf(err) != blob.Unavailable {
		t.Errorf("broken for good: %v, kind %v", err, blob.KindOf(err))
	}
}

func TestLayoutIndex(t *testing.T) {
	n := writeLayout(t, "v1", testImage(t, "amd64", types.DockerLayer))
	other := writeLayout(t, "v2", testImage(t, "arm64", types.DockerLayer))
	n.Tag = ""
	add := func(tag string, from Name) {
		t.Helper()
		to := n
		to.Tag = tag
		if _, err := Copy(t.Context(), from, to, Options{}); err != nil {
			t.Fatal(err)
		}
	}
	first := n
	first.Tag = "v1"
	add("v2", other)
	add("v3", first)
	add("v2", first) // replaces
	if _, err := Inspect(t.Context(), n, InspectOptions{}); blob.KindOf(err) != blob.Invalid ||
		!strings.Contains(err.Error(), "it holds 3 images; choose one by appending :TAG: v1, v2, v3") {
		t.Errorf("ambiguous layout: %v", err)
	}
	var digests []string
	for _, tag := range []string{"v1", "v2", "v3"} {
		in, err := Inspect(t.Context(), parse(t, n.String()+":"+tag), InspectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, in.Digest.String())
	}
	if diff := cmp.Diff([]string{digests[0], digests[0], digests[0]}, digests); diff != "" {
		t.Error(diff)
	}
	// By digest, also what only an index refers to.
	idx := writeLayout(t, "v1", testIndex(t))
	in, err := Inspect(t.Context(), idx, InspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	one, err := Inspect(t.Context(), parse(t, idx.String()+"@"+in.Images[1].Digest.String()), InspectOptions{})
	if err != nil || len(one.Images) != 1 || one.Images[0].Platform != "linux/arm64" {
		t.Errorf("by digest: %+v, %v", one, err)
	}
}

// TestLayoutIsIndex reads a layout whose index.json is the image's own index.
func TestLayoutIsIndex(t *testing.T) {
	img := testImage(t, "amd64", types.DockerLayer)
	n := writeLayout(t, "v1", withPlatforms(t, img, "linux/amd64", "linux/arm64"))
	raw, err := resultIndex(t, n).RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.Path, indexFile), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	to := parse(t, memoryRegistry(t)+"/app:v1")
	r, err := Convert(t.Context(), n, to, small(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Images) != 2 {
		t.Errorf("%d images, want 2", len(r.Images))
	}
}

// TestRepairsLayout stores a blob again whose file is cut short.
func TestRepairsLayout(t *testing.T) {
	src := writeLayout(t, "v1", testImage(t, "amd64", types.DockerLayer))
	to := Name{Transport: Layout, Path: filepath.Join(t.TempDir(), "out")}
	r, err := Copy(t.Context(), src, to, Options{})
	if err != nil {
		t.Fatal(err)
	}
	l := r.Images[0].Layers[0]
	path := filepath.Join(to.Path, filepath.FromSlash(blobPath(l.Digest)))
	if err := os.Truncate(path, 10); err != nil {
		t.Fatal(err)
	}
	if r, err = Copy(t.Context(), src, to, Options{}); err != nil || r.Uploaded != l.Size {
		t.Errorf("uploaded %d, want %d (%v)", r.Uploaded, l.Size, err)
	}
	if err := validate.Image(resultImage(t, to)); err != nil {
		t.Error(err)
	}
}

// TestArchiveIsReproducible writes the same archive twice.
func TestArchiveIsReproducible(t *testing.T) {
	src := writeLayout(t, "v1", testIndex(t))
	var all [][]byte
	for range 2 {
		path := filepath.Join(t.TempDir(), "a.tar")
		if _, err := Copy(t.Context(), src, parse(t, "oci-archive:"+path), Options{}); err != nil {
			t.Fatal(err)
		}
		p, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if !bytes.Equal(all[0], all[1]) {
		t.Error("archives of the same image differ")
	}
}

// TestNestedIndex goes no deeper than it should.
func TestNestedIndex(t *testing.T) {
	idx := testIndex(t)
	for range maxDepth {
		idx = mutate.AppendManifests(emptyIndex, mutate.IndexAddendum{Add: idx})
	}
	n := writeLayout(t, "v1", idx)
	_, err := Copy(t.Context(), n, Name{Transport: Layout, Path: filepath.Join(t.TempDir(), "o")}, Options{})
	if blob.KindOf(err) != blob.Invalid || !strings.Contains(err.Error(), "nested") {
		t.Errorf("got %v", err)
	}
	one := mutate.AppendManifests(emptyIndex, mutate.IndexAddendum{Add: testIndex(t)})
	to := parse(t, memoryRegistry(t)+"/app:v1")
	opts := small(t)
	opts.Platforms = []ocispec.Platform{{OS: "linux", Architecture: "amd64"}}
	r, err := Convert(t.Context(), writeLayout(t, "v1", one), to, opts)
	if err != nil || len(r.Images) != 1 {
		t.Fatalf("index in an index: %+v, %v", r, err)
	}
	ref, err := name.NewDigest(to.Repository() + "@" + r.Images[0].Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(ref)
	if err == nil {
		err = validate.Image(img)
	}
	if err != nil {
		t.Error(err)
	}
}
