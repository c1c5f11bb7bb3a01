package pull

import (
	"context"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	ctdsnapshotters "github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"

	"skimmer/internal/blob"
	"skimmer/internal/lab"
	"skimmer/internal/testkit"
)

// remote is a snapshotter that claims to have mounted every layer it is told
// the origin of, and remembers what it was told.
type remote struct {
	snapshots.Snapshotter

	mu   sync.Mutex
	told []map[string]string // mu guards
}

func (r *remote) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	var info snapshots.Info
	for _, o := range opts {
		if err := o(&info); err != nil {
			return nil, err
		}
	}
	mounts, err := r.Snapshotter.Prepare(ctx, key, parent, opts...)
	target := info.Labels["containerd.io/snapshot.ref"]
	if err != nil || target == "" || info.Labels[labelReference] == "" {
		return mounts, err
	}
	r.mu.Lock()
	r.told = append(r.told, info.Labels)
	r.mu.Unlock()
	if err := r.Commit(ctx, target, key, opts...); err != nil {
		return nil, err
	}
	return nil, errdefs.ErrAlreadyExists
}

// binaries returns the containerds of this machine: the installed one, and
// those that scripts/setup fetched.
func binaries(t *testing.T) []string {
	t.Helper()
	testkit.NeedMount(t)
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	found, err := filepath.Glob(filepath.Join(cache, "skimmer", "containerd-*", "containerd"))
	if err != nil {
		t.Fatal(err)
	}
	if path, err := exec.LookPath("containerd"); err == nil {
		found = append(found, path)
	}
	if len(found) == 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI must have containerd")
		}
		t.Skip("NOT TESTED: needs containerd")
	}
	return found
}

// world starts containerd with a remote snapshotter named lazy.
func world(t *testing.T, binary string) (containerd string, r *remote) {
	t.Helper()
	dir := t.TempDir()
	inner, err := native.NewSnapshotter(filepath.Join(dir, "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	r = &remote{Snapshotter: inner}
	socket := filepath.Join(dir, "s.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(srv, snapshotservice.FromSnapshotter(r))
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() { srv.Stop(); wg.Wait(); inner.Close() })
	c, err := lab.StartContainerd(t.Context(), lab.ContainerdConfig{Binary: binary, Dir: filepath.Join(dir, "c"), Plugins: map[string]string{"lazy": socket}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c.Address(), r
}

func TestPull(t *testing.T) {
	for _, binary := range binaries(t) {
		t.Run(filepath.Base(filepath.Dir(binary)), func(t *testing.T) { testPull(t, binary) })
	}
}

func testPull(t *testing.T, binary string) {
	containerd, snap := world(t, binary)
	reg := testkit.NewRegistry(t, testkit.Options{Auth: testkit.TokenAuth, Users: map[string]string{"u": "p"}, Private: []string{"app"}})
	layers := [][]byte{[]byte("first layer"), []byte("second layer, larger"), []byte("third")}
	ref := reg.AddImage("app", "v1", layers...)
	name := reg.Host() + "/app:v1"
	opts := Options{Address: containerd, Snapshotter: "lazy", Image: name, Namespace: "tests", Platform: "linux/amd64"}

	opts.Keychain = authn.NewMultiKeychain()
	if _, err := Pull(t.Context(), opts); err == nil {
		t.Error("a private image was pulled without credentials")
	}
	opts.Keychain = keychain{"u", "p"}
	img, err := Pull(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Inspect(t.Context(), img, opts.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	want := Result{Image: name, Digest: ref.Digest, Layers: 3, Lazy: 3, Size: int64(len(slices.Concat(layers...)))}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("result -want +got:\n%s", d)
	}
	var digests []string
	sent := reg.Stats().Bytes
	for _, l := range layers {
		d := digest.FromBytes(l)
		digests = append(digests, d.String())
		if n := sent[d]; n != 0 {
			t.Errorf("%d bytes of layer %s were downloaded", n, d)
		}
	}
	snap.mu.Lock()
	defer snap.mu.Unlock()
	if len(snap.told) != 3 {
		t.Fatalf("the snapshotter was told of %d layers", len(snap.told))
	}
	for i, labels := range snap.told {
		rest := strings.Join(digests[i:], ",")
		for key, want := range map[string]string{
			labelReference: name, labelDigest: digests[i], labelLayers: rest,
			ctdsnapshotters.TargetRefLabel: name, ctdsnapshotters.TargetLayerDigestLabel: digests[i],
			ctdsnapshotters.TargetImageLayersLabel: rest, ctdsnapshotters.TargetManifestDigestLabel: ref.Digest.String(),
		} {
			if labels[key] != want {
				t.Errorf("layer %d: label %s is %q, want %q", i, key, labels[key], want)
			}
		}
	}
	if again, err := Pull(t.Context(), opts); err != nil || again.Target().Digest != ref.Digest {
		t.Errorf("pulled again: %v", err)
	}

	opts.Snapshotter = "nothing"
	if _, err := Pull(t.Context(), opts); blob.KindOf(err) != blob.NotFound || !strings.Contains(err.Error(), "skimmer install containerd") {
		t.Errorf("unknown snapshotter: %v", err)
	}
	opts.Snapshotter, opts.Image = "lazy", reg.Host()+"/app:none"
	if _, err := Pull(t.Context(), opts); blob.KindOf(err) != blob.NotFound {
		t.Errorf("image that is not there: %v", err)
	}
}

type keychain struct{ user, password string }

func (k keychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: k.user, Password: k.password}, nil
}

func TestNoContainerd(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "c.sock")
	opts := Options{Address: socket, Image: "localhost:1/x", DialTimeout: 100 * time.Millisecond}
	_, err := Pull(t.Context(), opts)
	if blob.KindOf(err) != blob.Unavailable || !strings.Contains(err.Error(), socket) {
		t.Errorf("no socket: %v", err)
	}
	// A socket that takes connections and says nothing.
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Pull(t.Context(), opts); blob.KindOf(err) != blob.Unavailable {
		t.Errorf("socket that does not answer: %v", err)
	}
}

// TestLayerList makes sure that an image of very many layers keeps its labels
// within containerd's limit.
func TestLayerList(t *testing.T) {
	var layers []ocispec.Descriptor
	for i := range 200 {
		layers = append(layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromBytes([]byte{byte(i)})})
	}
	h := Labels("example.test/x:1")(images.HandlerFunc(func(context.Context, ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		return append([]ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageConfig}}, layers...), nil
	}))
	children, err := h.Handle(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("m")})
	if err != nil {
		t.Fatal(err)
	}
	if len(children[0].Annotations) != 0 {
		t.Errorf("the configuration got %q", slices.Collect(maps.Keys(children[0].Annotations)))
	}
	for i, c := range children[1:] {
		list := strings.Split(c.Annotations[labelLayers], ",")
		if len(labelLayers)+len(c.Annotations[labelLayers]) > 4096 || list[0] != c.Digest.String() {
			t.Fatalf("layer %d: %d bytes that begin with %s", i, len(c.Annotations[labelLayers]), list[0])
		}
		if want := min(len(layers)-i, 56); len(list) < want-1 || len(list) > want {
			t.Fatalf("layer %d: %d layers in the label, want about %d", i, len(list), want)
		}
	}
}
