package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skimmer/internal/blob"
	"skimmer/internal/image/convert"
)

// runImage runs a command as main does and returns what it printed.
func runImage(ctx context.Context, stdin string, args ...string) (stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	root := newRootCommand(&app{stdin: strings.NewReader(stdin), stdout: &out, stderr: &errs})
	root.SetArgs(args)
	err = root.ExecuteContext(ctx)
	return out.String(), errs.String(), err
}

// mustRun is runImage for what should work.
func mustRun(t *testing.T, stdin string, args ...string) (stdout, stderr string) {
	t.Helper()
	stdout, stderr, err := runImage(t.Context(), stdin, args...)
	if err != nil {
		t.Fatalf("skimmer %s: %v\n%s", strings.Join(args, " "), err, stderr)
	}
	return stdout, stderr
}

// savedImage writes an archive as docker save does, of an image with two
// layers.
func savedImage(t *testing.T) string {
	t.Helper()
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{OS: "linux", Architecture: "amd64", RootFS: v1.RootFS{Type: "layers"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"bin/tool", "etc/motd"} {
		var buf bytes.Buffer
		tw := tar.NewWriter(&buf)
		content := strings.Repeat(file, 10000)
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: file, Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(tw, content); err != nil {
			t.Fatal(err)
		}
		if err := tw.Close(); err != nil {
			t.Fatal(err)
		}
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	tag, err := name.NewTag("example.test/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "app.tar")
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		t.Fatal(err)
	}
	return path
}

func testRegistry(t *testing.T) string {
	t.Helper()
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

// TestImageCommands takes an image from docker save to a registry, a layout
// and another registry, as somebody new to it would.
func TestImageCommands(t *testing.T) {
	saved, reg, dir := savedImage(t), testRegistry(t), t.TempDir()
	esgz := reg + "/app:esgz"
	stdout, stderr := mustRun(t, "/bin/tool\n\nno/such/file\r\n", "image", "convert", "--prefetch-file", "-", "--chunk-size", "16KiB", saved, esgz)
	var converted convert.Result
	again, _ := mustRun(t, "bin/tool\n", "image", "convert", "--prefetch-file", "-", "--chunk-size", "16384", saved, esgz, "-o", "json")
	if err := json.Unmarshal([]byte(again), &converted); err != nil {
		t.Fatalf("%v in %s", err, again)
	}
	if converted.Uploaded != 0 || !converted.Images[0].Layers[0].Converted {
		t.Errorf("again: %s", again)
	}
	for _, words := range []string{"linux/amd64", esgz, "\n" + converted.Digest.String() + "\n"} {
		if !strings.Contains(stdout, words) {
			t.Errorf("convert printed\n%swithout %q", stdout, words)
		}
	}
	for _, words := range []string{"warning: prefetch list: no file no/such/file", "(2 of 2)"} {
		if !strings.Contains(stderr, words) {
			t.Errorf("convert reported\n%swithout %q", stderr, words)
		}
	}

	var in convert.Inspection
	stdout, stderr = mustRun(t, "", "image", "inspect", esgz, "--output", "json")
	if err := json.Unmarshal([]byte(stdout), &in); err != nil {
		t.Fatalf("%v in %s", err, stdout)
	}
	first := in.Images[0].Layers[0].TOC
	if in.Digest != converted.Digest || !in.Images[0].Lazy || first.Chunks != 5 || first.PrefetchSize == 0 || stderr != "" {
		t.Errorf("inspect printed %s%s", stdout, stderr)
	}

	layout := filepath.Join(dir, "layout")
	mustRun(t, "", "image", "pull", esgz, layout)
	table, _ := mustRun(t, "", "image", "inspect", layout)
	for _, words := range []string{"oci:" + layout, "lazily mountable", "tar+gzip", "PREFETCH", "nothing", "yes"} {
		if !strings.Contains(table, words) {
			t.Errorf("inspect printed\n%swithout %q", table, words)
		}
	}
	if _, stderr = mustRun(t, "", "image", "push", layout, reg+"/other:v1", "-q"); stderr != "" {
		t.Errorf("push --quiet reported %s", stderr)
	}
	stdout, _ = mustRun(t, "", "image", "cp", reg+"/other:v1", "oci-archive:"+filepath.Join(dir, "a.tar"))
	if !strings.HasSuffix(stdout, "\n"+converted.Digest.String()+"\n") {
		t.Errorf("after all that, cp printed %s, want digest %v", stdout, converted.Digest)
	}
	stdout, _ = mustRun(t, "", "image", "inspect", saved)
	if !strings.Contains(stdout, "no: no table of contents; skimmer image convert adds one") {
		t.Errorf("inspect of a plain image printed\n%s", stdout)
	}
}

// TestImageFlags finds that bad flags are refused by name before anything is
// done.
func TestImageFlags(t *testing.T) {
	saved, out := savedImage(t), filepath.Join(t.TempDir(), "out")
	for _, c := range []struct {
		args  string
		words string
	}{
		{"convert --chunk-size 1GiB", "--chunk-size 1GiB"},
		{"convert --chunk-size lots", "--chunk-size"},
		{"convert --min-chunk-size 65MiB", "--min-chunk-size 65MiB"},
		{"convert --compression-level 10", "--compression-level 10: must be between 1 and 9"},
		{"convert --zstdchunked --compression-level 23", "between 1 and 22"},
		{"convert --platform linux", `--platform: parse platform "linux"`},
		{"convert --platform linux/arm64", "it has nothing for platform linux/arm64, only for linux/amd64"},
		{"convert --platform linux/arm64 --all-platforms", "if any flags in the group"},
		{"convert --prefetch-file /nonexistent", "read prefetch list"},
		{"convert --jobs -1", "--jobs -1"},
		{"cp --ca-file /nonexistent", "read CA file"},
		{"cp --output xml", "--output"},
	} {
		args := append([]string{"image"}, strings.Fields(c.args)...)
		_, _, err := runImage(t.Context(), "", append(args, saved, "oci:"+out)...)
		if err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want %q", c.args, err, c.words)
		}
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("something was written")
	}
	for _, args := range [][]string{{"frob"}, {"convert", saved}, {"inspect"}, {"pull", "oci:x", out}, {"inspect", "./nowhere"}} {
		if stdout, _, err := runImage(t.Context(), "", append([]string{"image"}, args...)...); err == nil {
			t.Errorf("skimmer image %v succeeded: %s", args, stdout)
		}
	}
}

func TestImageInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	tmp := t.TempDir()
	_, _, err := runImage(ctx, "", "image", "convert", "--temp-dir", tmp, savedImage(t), "oci:"+filepath.Join(tmp, "out"))
	if blob.KindOf(err) != blob.Canceled {
		t.Errorf("got %v, want canceled", err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestImageCompletion(t *testing.T) {
	for args, want := range map[string]string{
		"image convert --platform |":    "linux/arm64",
		"image convert oc|":             "oci-archive:",
		"image |":                       "inspect\tShow an image's layers",
		"image pull x |":                ":16",
		"image convert --ca-file |":     ":0",
		"image inspect something |":     ":4",
		"image convert --output json |": ":0",
	} {
		words := append([]string{"__complete"}, strings.Split(strings.TrimSuffix(args, "|"), " ")...)
		stdout, _ := mustRun(t, "", words...)
		if !strings.Contains(stdout, want) {
			t.Errorf("completing %s gives\n%swant %q", args, stdout, want)
		}
	}
}

// TestProgress reports to a writer that is no terminal.
func TestProgress(t *testing.T) {
	var out bytes.Buffer
	p := newProgress(&out)
	d := ocispec.Descriptor{Digest: digest.Digest("sha256:" + strings.Repeat("ab", 32)), Size: 2048}
	for _, e := range []convert.Event{
		{Blob: d, State: convert.Waiting}, {Blob: d, State: convert.Fetching, Done: 5, Total: 2048},
		{Blob: d, State: convert.Pushing, Done: 1, Total: 1024}, {Blob: d, State: convert.Done, Done: 1024, Total: 1024},
		{Blob: d, State: convert.Done, Done: 1024, Total: 1024},
	} {
		p.report(e)
	}
	p.close()
	if got, want := out.String(), "layer abababababab done, 1.0 KiB (1 of 1)\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	var none *progress
	none.close()
}

// TestImagePrivateCA converts to a registry with a private CA and inspects
// there: two clients have to trust it.
func TestImagePrivateCA(t *testing.T) {
	srv := httptest.NewTLSServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	if err := os.WriteFile(ca, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	image := strings.TrimPrefix(srv.URL, "https://") + "/app:esgz"
	mustRun(t, "", "image", "convert", "--ca-file", ca, savedImage(t), image)
	stdout, _ := mustRun(t, "", "image", "inspect", "--ca-file", ca, image)
	if !strings.Contains(stdout, ", lazily mountable") {
		t.Errorf("inspect printed\n%s", stdout)
	}
}
