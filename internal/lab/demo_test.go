package lab

import (
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	ocilayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sys/unix"
)

// eager is a product without any cleverness: it pushes images as they are, and
// to mount one it fetches and unpacks all of it, unless it did before.
type eager struct {
	dir     string // what it keeps
	mounts  int
	failing error // what Mount fails with
}

func (e *eager) Publish(ctx context.Context, dir, tag, ref string, report func(Progress)) (int64, error) {
	path, err := ocilayout.FromPath(dir)
	if err != nil {
		return 0, err
	}
	index, err := path.ImageIndex()
	if err != nil {
		return 0, err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return 0, err
	}
	var img v1.Image
	for _, d := range manifest.Manifests {
		if d.Annotations["org.opencontainers.image.ref.name"] == tag {
			if img, err = path.Image(d.Digest); err != nil {
				return 0, err
			}
		}
	}
	report(Progress{Step: "push", Fraction: 1})
	to, err := name.ParseReference(ref)
	if err != nil {
		return 0, err
	}
	if err := remote.Write(to, img, remote.WithContext(ctx)); err != nil {
		return 0, err
	}
	var size int64
	m, err := img.Manifest()
	if err != nil {
		return 0, err
	}
	for _, l := range m.Layers {
		size += l.Size
	}
	return size, nil
}

func (e *eager) Pull(ctx context.Context, ref, dir, tag string) error {
	from, err := name.ParseReference(ref)
	if err != nil {
		return err
	}
	img, err := remote.Image(from, remote.WithContext(ctx))
	if err != nil {
		return err
	}
	path, err := ocilayout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	return path.AppendImage(img, ocilayout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag}))
}

func (e *eager) Mount(ctx context.Context, ref, dir string) error {
	if e.failing != nil {
		return e.failing
	}
	e.mounts++
	bundle := filepath.Join(e.dir, "bundle")
	if _, err := os.Stat(bundle); err != nil {
		if err := e.Pull(ctx, ref, filepath.Join(e.dir, "layout"), "x"); err != nil {
			return err
		}
		out, err := exec.CommandContext(ctx, "umoci", "unpack", "--image", filepath.Join(e.dir, "layout")+":x", bundle).CombinedOutput()
		if err != nil {
			return errors.New(string(out))
		}
	}
	return unix.Mount(filepath.Join(bundle, "rootfs"), dir, "", unix.MS_BIND, "")
}

func (e *eager) Unmount(_ context.Context, dir string) error {
	e.mounts--
	return unix.Unmount(dir, 0)
}

func (e *eager) Forget(context.Context) error {
	return errors.Join(os.RemoveAll(e.dir), os.Mkdir(e.dir, 0o755))
}

func demoConfig(t *testing.T, e *eager) DemoConfig {
	t.Helper()
	needRoot(t)
	spec := busyboxSpec(t)
	dir := t.TempDir()
	e.dir = filepath.Join(dir, "eager")
	return DemoConfig{Dir: dir, Spec: spec, Publisher: e, Mounter: e}
}

func TestDemo(t *testing.T) {
	e := &eager{}
	cfg := demoConfig(t, e)
	var steps []string
	cfg.Report = func(p Progress) { steps = append(steps, p.Step) }
	kept := false
	cfg.Keep = func(_ context.Context, r DemoResult) error {
		kept = true
		if e.mounts != 1 {
			t.Errorf("%d mounts while kept", e.mounts)
		}
		if _, err := os.Stat(filepath.Join(r.Mount, "etc/hostname")); err != nil {
			t.Error(err)
		}
		return nil
	}
	r, err := Demo(t.Context(), cfg)
	must(t, err)
	if !kept || e.mounts != 0 {
		t.Errorf("kept %v, %d mounts left", kept, e.mounts)
	}
	if r.Image.Size == 0 || r.Image.TarSize <= r.Image.Size || r.Image.Layers != 3 {
		t.Errorf("image: %+v", r.Image)
	}
	var names []string
	for _, run := range r.Runs {
		for _, s := range run.Steps {
			names = append(names, run.Name+" "+s.Name)
			if s.Took <= 0 || (s.FirstOutput > 0) != (strings.TrimSpace(s.Output) == "Linux") {
				t.Errorf("%s %s: %+v", run.Name, s.Name, s)
			}
		}
		after, fetched := run.FirstOutput()
		if after < run.Steps[0].Took {
			t.Errorf("%s: first output after %v, the first step alone took %v", run.Name, after, run.Steps[0].Took)
		}
		// This product fetches everything the first time, and nothing but
		// what it asks of the manifest the second.
		switch whole := fetched > r.Image.Size; {
		case run.Name == RunWarm && (fetched != 0 || run.Steps[0].Requests != 0):
			t.Errorf("warm: %d bytes, %d requests", fetched, run.Steps[0].Requests)
		case run.Name != RunWarm && !whole:
			t.Errorf("%s: %d bytes of %d", run.Name, fetched, r.Image.Size)
		}
	}
	if got, want := strings.Join(names, ", "), "cold mount, cold version, warm mount, warm version, pull fetch all layers, pull unpack them, pull version"; got != want {
		t.Errorf("runs: %s, want %s", got, want)
	}
	if s := strings.Join(steps, "; "); !strings.Contains(s, "convert and push") {
		t.Errorf("steps: %s", s)
	}
	if resp, err := http.Get("http://" + strings.SplitN(r.Image.Reference, "/", 2)[0] + "/v2/"); err == nil {
		resp.Body.Close()
		t.Error("the registry still answers")
	}
}

func TestDemoCleansUp(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		name string
		set  func(e *eager, cfg *DemoConfig, cancel func())
		want error
	}{
		{"mount fails", func(e *eager, _ *DemoConfig, _ func()) { e.failing = broken }, broken},
		{"interrupted while mounted", func(_ *eager, cfg *DemoConfig, cancel func()) {
			cfg.Keep = func(ctx context.Context, _ DemoResult) error {
				cancel()
				return ctx.Err()
			}
		}, context.Canceled},
		{"interrupted before the second mount", func(_ *eager, cfg *DemoConfig, cancel func()) {
			cfg.Report = func(p Progress) {
				if p.Step == "the same again" {
					cancel()
				}
			}
		}, context.Canceled},
		{"a program fails", func(_ *eager, cfg *DemoConfig, _ func()) {
			cfg.Spec.Programs = []Program{{"false", []string{"/usr/bin/busybox", "false"}}}
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := &eager{}
			cfg := demoConfig(t, e)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			c.set(e, &cfg, cancel)
			_, err := Demo(ctx, cfg)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("err = %v, want %v", err, c.want)
			}
			if e.mounts != 0 {
				t.Errorf("%d mounts left", e.mounts)
			}
		})
	}
}
