package peer

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/estargz"
	"skimmer/internal/origin"
	"skimmer/internal/testkit"
)

// push builds a one-layer image of the given files and pushes it to the
// registry at host; it returns the image's name.
func push(t testing.TB, host, name string, files map[string][]byte) string {
	t.Helper()
	var raw, out bytes.Buffer
	tw := tar.NewWriter(&raw)
	for name, p := range files {
		err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(p)), Mode: 0o755})
		if err == nil {
			_, err = tw.Write(p)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	built, err := estargz.Build(t.Context(), &out, bytes.NewReader(raw.Bytes()), int64(raw.Len()), estargz.BuildOptions{})
	if err != nil {
		t.Fatal(err)
	}
	base := "http://" + host
	repo, _, _ := strings.Cut(name, ":")
	layer := testkit.PushBlob(t, base, repo, out.Bytes())
	config := testkit.PushBlob(t, base, repo, []byte("{}"))
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: config.Digest, Size: config.Size},
		Layers: []ocispec.Descriptor{{MediaType: built.MediaType, Digest: layer.Digest, Size: layer.Size, Annotations: built.Annotations}},
	})
	if err != nil {
		t.Fatal(err)
	}
	testkit.PushManifest(t, base, name, ocispec.MediaTypeImageManifest, manifest)
	return host + "/" + name
}

// start runs a peer until the test ends and returns a client to it.
func start(t testing.TB, edit func(*Config)) (*Peer, *Client) {
	t.Helper()
	testkit.NeedMount(t)
	dir, err := os.MkdirTemp("", "sk") // socket paths are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg := Config{
		DataDir: filepath.Join(dir, "data"), Socket: filepath.Join(dir, "s"),
		Origin: origin.Config{Retries: -1},
	}
	if edit != nil {
		edit(&cfg)
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- p.Run(ctx, func() { close(ready) }) }()
	<-ready
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-ended, p.Close()); err != nil {
			t.Error(err)
		}
	})
	return p, NewClient(cfg.Socket)
}

func TestMountOverTheControlSocket(t *testing.T) {
	p, c := start(t, nil)
	big := blobtest.Bytes(1, 3<<20)
	image := push(t, testkit.DockerRegistry(t), "some/image:v1", map[string][]byte{"dir/big": big, "small": []byte("x")})

	root := t.TempDir()
	m, err := c.Mount(t.Context(), image, root)
	if err != nil {
		t.Fatal(err)
	}
	if m.Target != root || m.Layers != 1 || m.Size < int64(len(big)) || m.Timing.Mount == 0 {
		t.Errorf("mounted = %+v", m)
	}
	got, err := os.ReadFile(filepath.Join(root, "dir/big"))
	if err != nil || !bytes.Equal(got, big) {
		t.Errorf("read big: %d bytes, %v", len(got), err)
	}
	s, err := c.Status(t.Context())
	if err != nil || len(s.Mounts) != 1 || s.Mounts[0].Layers[0].Present < int64(len(big)) || s.Origin.Bytes < int64(len(big)) {
		t.Errorf("status = %+v, %v", s, err)
	}
	if n := p.FromOrigin.Bytes.Load(); n > m.Size {
		t.Errorf("%d bytes of a %d byte blob were fetched: something twice", n, m.Size)
	}
	if err := c.Unmount(t.Context(), root, false); err != nil {
		t.Error(err)
	}
	if err := c.Unmount(t.Context(), root, false); blob.KindOf(err) != blob.NotFound {
		t.Errorf("unmount twice: %v", err)
	}
}

func TestFailuresCrossTheSocket(t *testing.T) {
	_, c := start(t, nil)
	host := testkit.DockerRegistry(t)
	for name, want := range map[string]blob.Kind{
		host + "/no/such:image": blob.NotFound,
		"UPPER CASE":            blob.Invalid,
		"127.0.0.1:1/x:y":       blob.Unavailable,
	} {
		_, err := c.Mount(t.Context(), name, t.TempDir())
		if blob.KindOf(err) != want || !strings.Contains(err.Error(), strings.Fields(name)[0]) {
			t.Errorf("mount %q: kind %v, %v; want %v", name, blob.KindOf(err), err, want)
		}
	}
	if _, err := c.Mount(t.Context(), host+"/a:b", "relative"); blob.KindOf(err) != blob.Invalid {
		t.Errorf("mount on a relative path: %v", err)
	}
	if _, err := NewClient(filepath.Join(t.TempDir(), "none")).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("status without a peer: %v", err)
	}
}

func TestOnePeerPerSocketAndDataDir(t *testing.T) {
	p, _ := start(t, nil)
	if other, err := New(Config{DataDir: p.cfg.DataDir, Socket: p.cfg.Socket}); err == nil {
		other.Close()
		t.Error("a second peer opened the data directory")
	} else if !strings.Contains(err.Error(), p.cfg.DataDir) {
		t.Errorf("the error does not name the directory: %v", err)
	}
	if ln, err := listen(p.cfg.Socket); err == nil {
		ln.Close()
		t.Error("a second peer took over the control socket of a living one")
	}
}

func TestExitWhenIdle(t *testing.T) {
	testkit.NeedMount(t)
	dir, err := os.MkdirTemp("", "sk")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	p, err := New(Config{DataDir: filepath.Join(dir, "data"), Socket: filepath.Join(dir, "s"), ExitWhenIdle: true})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- p.Run(t.Context(), func() { close(ready) }) }()
	<-ready
	image := push(t, testkit.DockerRegistry(t), "some/image:v1", map[string][]byte{"f": []byte("x")})
	c, root := NewClient(filepath.Join(dir, "s")), t.TempDir()
	if _, err := c.Mount(t.Context(), image, root); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		t.Fatalf("stopped with something mounted: %v", err)
	default:
	}
	if err := c.Unmount(t.Context(), root, false); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("did not stop when nothing was mounted any more")
	}
}

func TestStatusOfEveryKind(t *testing.T) {
	for _, k := range blob.Kinds() {
		status, ok := statusOf[k]
		if !ok || status == http.StatusOK {
			t.Errorf("kind %v has no status", k)
		}
		body, err := json.Marshal(errorBody{k.Error(), "what happened"})
		if err != nil {
			t.Fatal(err)
		}
		if err := remoteError(status, body); blob.KindOf(err) != k || err.Error() != "what happened" {
			t.Errorf("kind %v crossed the socket as %v: %v", k, blob.KindOf(err), err)
		}
	}
	if err := remoteError(500, []byte("<html>")); err == nil || !strings.Contains(err.Error(), "500") {
		t.Errorf("an answer that is no JSON: %v", err)
	}
}
