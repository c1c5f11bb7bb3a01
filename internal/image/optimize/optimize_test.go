package optimize

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/estargz"
	"skimmer/internal/image/convert"
	"skimmer/internal/image/profile"
	"skimmer/internal/testkit"
)

// program is the workload of the test's image. It is built without cgo, so
// that nothing else has to be in the image.
const program = `package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	for _, name := range os.Args[1:] {
		switch name {
		case "wait":
			stop := make(chan os.Signal, 1)
			signal.Notify(stop, syscall.SIGTERM)
			<-stop
			return
		case "fail":
			fmt.Println("this is why")
			os.Exit(3)
		case "who":
			dir, _ := os.Getwd()
			fmt.Println(os.Getuid(), dir, os.Getenv("GREETING"))
			continue
		}
		data, err := os.ReadFile(name)
		if err != nil {
			panic(err)
		}
		fmt.Println(name, len(data))
	}
}
`

// needRunc skips the test loudly, or fails it where CI is set, where no
// workload can be run.
func needRunc(t *testing.T) {
	t.Helper()
	testkit.NeedMount(t)
	if _, err := exec.LookPath("runc"); err == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("there is no runc, and CI must have it")
	}
	t.Skip("NOT TESTED: there is no runc")
}

func buildProgram(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"main.go": program, "go.mod": "module example.test/work\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "build", "-ldflags=-s -w", "-o", "work", ".")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data, err := os.ReadFile(filepath.Join(dir, "work"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// pushImage pushes an image of two layers: the upper one replaces a file of the
// lower one.
func pushImage(t *testing.T, reference string) {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		OS: "linux", Architecture: runtime.GOARCH, RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{
			Entrypoint: []string{"/bin/work"}, Cmd: []string{"/data/second", "who", "/data/first"},
			User: "1234:1234", WorkingDir: "/data", Env: []string{"GREETING=hello"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	files := func(seed uint64, names ...string) map[string][]byte {
		m := make(map[string][]byte)
		for i, name := range names {
			m[name] = blobtest.Bytes(seed+uint64(i), 300_000)
		}
		return m
	}
	lower := files(1, "data/aaa", "data/first", "data/second", "data/replaced", "data/zzz")
	lower["bin/work"] = buildProgram(t)
	for _, layer := range []map[string][]byte{lower, files(9, "data/never", "data/replaced")} {
		if img, err = mutate.AppendLayers(img, tarLayer(t, layer)); err != nil {
			t.Fatal(err)
		}
	}
	ref, err := name.NewTag(reference)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
}

func tarLayer(t *testing.T, files map[string][]byte) v1.Layer {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, dir := range []string{"bin/", "data/", "proc/", "sys/", "dev/"} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			t.Fatal(err)
		}
	}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(files[name]))})
		if err == nil {
			_, err = tw.Write(files[name])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// world is a registry with the image in it, and options for it.
type world struct {
	host string
	opts Options
}

func newWorld(t *testing.T) *world {
	t.Helper()
	needRunc(t)
	quiet := log.New(io.Discard, "", 0)
	srv := httptest.NewServer(registry.New(registry.Logger(quiet), registry.WithReferrersSupport(true)))
	t.Cleanup(srv.Close)
	w := &world{host: strings.TrimPrefix(srv.URL, "http://")}
	pushImage(t, w.host+"/app:plain")
	w.opts = Options{Source: w.name(t, "app:plain"), Attach: true, TempDir: t.TempDir()}
	w.opts.Convert.Layer = estargz.BuildOptions{ChunkSize: 64 << 10, Level: 1}
	return w
}

func (w *world) name(t *testing.T, name string) convert.Name {
	t.Helper()
	n, err := convert.ParseName(w.host + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// attached returns the profile that was stored beside a manifest as the last
// result says.
func (w *world) attached(t *testing.T, repo string, r *Result) profile.Profile {
	t.Helper()
	get := func(ref string) name.Digest {
		d, err := name.NewDigest(w.host + "/" + repo + "@" + ref)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	index, err := remote.Referrers(get(r.Manifest.String()))
	if err != nil {
		t.Fatal(err)
	}
	list, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(list.Manifests, func(d v1.Descriptor) bool { return d.Digest.String() == r.Attached.String() }) {
		t.Errorf("%v is not listed beside the image, only %+v", r.Attached, list.Manifests)
	}
	img, err := remote.Image(get(r.Attached.String()))
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := img.RawManifest()
	if err != nil || !bytes.Contains(raw, []byte(`"artifactType":"`+profile.ArtifactType+`"`)) || m.Subject.Digest.String() != r.Manifest.String() {
		t.Errorf("the artifact is %s, %v", raw, err)
	}
	layer, err := remote.Layer(get(m.Layers[0].Digest.String()))
	if err != nil {
		t.Fatal(err)
	}
	rc, err := layer.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	data, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	p, err := profile.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// clean finds that nothing is left of a workload.
func (w *world) clean(t *testing.T) {
	t.Helper()
	left, err := os.ReadDir(w.opts.TempDir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), w.opts.TempDir) {
		t.Errorf("still mounted, %v:\n%s", err, mounts)
	}
}

// TestOptimize optimizes an image by its own command, twice, and then makes a
// profile of the result by another command.
func TestOptimize(t *testing.T) {
	w := newWorld(t)
	var out bytes.Buffer
	w.opts.Workload.Output = &out
	w.opts.Destination = w.name(t, "app:fast")
	r, err := Optimize(t.Context(), w.opts)
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	w.clean(t)
	if got := out.String(); got != "/data/second 300000\n1234 /data hello\n/data/first 300000\n" {
		t.Errorf("the workload wrote %q", got)
	}
	if r.Files != 3 || r.Early != 3 || r.Converted == nil || len(r.Converted.Images) != 1 || r.Converted.Images[0].Digest != r.Manifest {
		t.Fatalf("result %+v", r)
	}
	toc := w.tocs(t, r)[0]
	var order []string
	for _, f := range toc.Index.Files {
		order = append(order, f.Name)
	}
	want := []string{"bin/work", "data/second", "data/first", "data/aaa", "data/replaced", "data/zzz"}
	if !slices.Equal(order, want) || toc.NoPrefetch || toc.Index.PrefetchEnd == 0 {
		t.Errorf("the files are in the order %v, want %v; the landmark is at %d", order, want, toc.Index.PrefetchEnd)
	}
	again := w.opts
	again.Source, again.Destination = w.opts.Destination, w.name(t, "app:again")
	second, err := Optimize(t.Context(), again)
	if err != nil || second.Manifest != r.Manifest || second.Converted.Uploaded != 0 {
		t.Errorf("optimized again, it is %+v, %v", second, err)
	}
	if diff := cmp.Diff(r.Profile, w.attached(t, "app", r)); diff != "" {
		t.Errorf("the profile beside the image differs: %s", diff)
	}

	only := w.opts
	only.Source, only.Destination = w.opts.Destination, convert.Name{}
	only.Workload.Args = []string{"/bin/work", "/data/replaced"}
	third, err := Optimize(t.Context(), only)
	if err != nil {
		t.Fatal(err)
	}
	if err := third.Profile.Validate(); err != nil || third.Manifest != r.Manifest || third.Converted != nil || third.Attached == "" || third.Files != 2 {
		t.Errorf("profile only: %+v, %v", third, err)
	}
	// The file the upper layer replaces is read there.
	if !slices.ContainsFunc(third.Profile.Reads, func(r profile.Read) bool { return r.Layer == 1 }) {
		t.Errorf("nothing is read of the upper layer: %+v", third.Profile.Reads)
	}
	w.clean(t)
}

// tocs returns the tables of contents of the image that was made, and checks
// that its profile is about it.
func (w *world) tocs(t *testing.T, r *Result) []*estargz.TOC {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	if _, err := convert.Copy(t.Context(), w.opts.Destination, convert.Name{Transport: convert.Layout, Path: dir}, convert.Options{}); err != nil {
		t.Fatal(err)
	}
	im, err := openImage(t.Context(), dir, r.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	tocs, err := readTOCs(t.Context(), im)
	if err != nil {
		t.Fatal(err)
	}
	if err := matches(r.Profile, tocs); err != nil {
		t.Error(err)
	}
	return tocs
}

// TestWorkloadStopped stops a server, and finds that what it read counts.
func TestWorkloadStopped(t *testing.T) {
	w := newWorld(t)
	w.opts.Destination = w.name(t, "app:fast")
	stop := make(chan struct{})
	said := writerFunc(func(p []byte) (int, error) {
		if bytes.Contains(p, []byte("first")) {
			close(stop)
		}
		return len(p), nil
	})
	w.opts.Workload = Workload{Args: []string{"/bin/work", "/data/first", "wait"}, Stop: stop, HostNetwork: true, Output: said}
	r, err := Optimize(t.Context(), w.opts)
	if err != nil || r.Files != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	w.clean(t)
}

// TestWorkloadErrors finds that what goes wrong is said, and nothing is left.
func TestWorkloadErrors(t *testing.T) {
	w := newWorld(t)
	w.opts.Destination = w.name(t, "app:fast")
	ctx, cancel := context.WithCancel(t.Context())
	interrupt := writerFunc(func(p []byte) (int, error) { cancel(); return len(p), nil })
	for name, c := range map[string]struct {
		ctx   context.Context
		edit  func(o *Options)
		kind  blob.Kind
		words string
	}{
		"it fails":    {t.Context(), func(o *Options) { o.Workload.Args = []string{"/bin/work", "fail"} }, blob.Invalid, "exit status 3: this is why"},
		"no program":  {t.Context(), func(o *Options) { o.Workload.Args = []string{"/no/such"} }, blob.Invalid, "/no/such"},
		"not lazy":    {t.Context(), func(o *Options) { o.Destination = convert.Name{} }, blob.Invalid, "cannot be mounted lazily"},
		"no image":    {t.Context(), func(o *Options) { o.Source = w.name(t, "nothing:here") }, blob.NotFound, "nothing"},
		"no platform": {t.Context(), func(o *Options) { o.Platform.OS = "plan9"; o.Platform.Architecture = "mips" }, blob.NotFound, "plan9/mips"},
		"interrupted": {ctx, func(o *Options) {
			o.Workload = Workload{Args: []string{"/bin/work", "/data/first", "wait"}, Output: interrupt}
		}, blob.Canceled, "canceled"},
		"no temporary": {t.Context(), func(o *Options) { o.TempDir = "/no/such/dir" }, blob.NotFound, "temporary"},
	} {
		opts := w.opts
		c.edit(&opts)
		r, err := Optimize(c.ctx, opts)
		if r != nil || !errors.Is(err, c.kind) && blob.KindOf(err) != c.kind || !strings.Contains(fmt.Sprint(err), c.words) {
			t.Errorf("%s: %v, want %v with %q", name, err, c.kind, c.words)
		}
		w.clean(t)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
