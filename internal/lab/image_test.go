package lab

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// busyboxSpec returns the small image's spec where it can be built and
// unpacked.
func busyboxSpec(t *testing.T) Spec {
	t.Helper()
	for _, tool := range []string{"apt-get", "umoci"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skipf("NOT TESTED: %v", err)
		}
	}
	spec, ok := SpecNamed("busybox")
	if !ok {
		t.Fatal("no spec busybox")
	}
	return spec
}

// buildBusybox builds the small image with the user's package cache, so that
// only the first run on a machine needs the network.
func buildBusybox(t *testing.T) Image {
	t.Helper()
	spec := busyboxSpec(t)
	steps := map[string]bool{}
	img, err := Build(t.Context(), spec, BuildOptions{
		LayoutDir: filepath.Join(t.TempDir(), "layout"),
		Progress: func(p Progress) {
			steps[p.Step] = true
			if p.Fraction > 1 {
				t.Errorf("progress: %+v", p)
			}
		},
	})
	must(t, err)
	if !steps["build layers"] {
		t.Errorf("steps reported: %v", steps)
	}
	return img
}

func TestBuildIsReproducible(t *testing.T) {
	a, b := buildBusybox(t), buildBusybox(t)
	if a.Digest != b.Digest {
		t.Errorf("two builds: %s and %s", a.Digest, b.Digest)
	}
	if len(a.Layers) != 3 || a.Size() == 0 || a.TarSize() <= a.Size() {
		t.Errorf("image: %+v", a)
	}
	// Once more into the same layout: nothing to do, and the same answer.
	again, err := Build(t.Context(), a.Spec, BuildOptions{
		LayoutDir: a.LayoutDir,
		Progress: func(p Progress) {
			if p.Step == "build layers" {
				t.Error("an image that was there was built again")
			}
		},
	})
	must(t, err)
	if again.Digest != a.Digest || again.LayoutDir != a.LayoutDir || !slices.Equal(again.Layers, a.Layers) {
		t.Errorf("the image that was there: %+v, want %+v", again, a)
	}
	// A layer that is gone is noticed.
	must(t, os.Remove(blobPath(a.LayoutDir, a.Layers[0].Digest)))
	again, err = Build(t.Context(), a.Spec, BuildOptions{LayoutDir: a.LayoutDir})
	must(t, err)
	if _, err := os.Stat(blobPath(a.LayoutDir, a.Layers[0].Digest)); err != nil || again.Digest != a.Digest {
		t.Errorf("after a layer was lost: %v, %v", again.Digest, err)
	}
}

func TestLayerTar(t *testing.T) {
	img := buildBusybox(t)
	for i, layer := range img.Layers {
		rc, err := img.LayerTar(i)
		must(t, err)
		dgst := digest.SHA256.Digester()
		n, err := io.Copy(dgst.Hash(), rc)
		must(t, err, rc.Close())
		if n != layer.TarSize || dgst.Digest() != layer.DiffID {
			t.Errorf("layer %d: %d bytes, %v; want %d, %v", i, n, dgst.Digest(), layer.TarSize, layer.DiffID)
		}
	}
	for _, n := range []int{-1, len(img.Layers)} {
		if _, err := img.LayerTar(n); err == nil {
			t.Errorf("layer %d was opened", n)
		}
	}
}

func TestBuiltImageRuns(t *testing.T) {
	needRoot(t)
	img := buildBusybox(t)
	root := unpack(t, img)
	for _, p := range img.Spec.Programs {
		res, err := Run(t.Context(), root, img.Environ(), p.Args)
		must(t, err)
		if strings.TrimSpace(res.Output) != "Linux" || res.FirstOutput <= 0 || res.FirstOutput > res.Total {
			t.Errorf("%s: %+v", p.Name, res)
		}
	}
	for name, want := range map[string]uint32{
		"etc/passwd": unix.S_IFREG | 0o644, "etc/hostname": unix.S_IFREG | 0o644, "bin": unix.S_IFLNK | 0o777,
		"tmp": unix.S_IFDIR | 0o1777, "dev/null": unix.S_IFCHR | 0o666, "usr/share/doc/README": unix.S_IFREG | 0o644,
	} {
		if st, err := lstat(filepath.Join(root, name)); err != nil || st == nil || st.Mode != want {
			t.Errorf("%s: %+v, %v, want mode %o", name, st, err, want)
		}
	}
	// The top layer deletes these.
	for _, name := range []string{"usr/share/base-files/motd", "usr/share/doc/base-files"} {
		if _, err := os.Lstat(filepath.Join(root, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there: %v", name, err)
		}
	}
	runEdges(t, root, img.Environ())
}

// runEdges tries what can go wrong when a program is run.
func runEdges(t *testing.T, root string, env []string) {
	sh := func(ctx context.Context, script string) (Result, error) {
		return Run(ctx, root, env, []string{"/bin/sh", "-c", script})
	}
	if res, err := sh(t.Context(), "echo out; echo err >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "exit status 3: out\nerr") {
		t.Errorf("a program that fails: %+v, %v", res, err)
	}
	if res, err := sh(t.Context(), "true"); err == nil {
		t.Errorf("a program that says nothing: %+v", res)
	}
	if _, err := Run(t.Context(), root, env, []string{"/no/such/program"}); err == nil || !strings.Contains(err.Error(), "exit status 127") {
		t.Errorf("a program that is not there: %v", err)
	}
	// /proc and /dev are there for the program and not for anybody else; what
	// it starts does not outlive it.
	res, err := sh(t.Context(), `test -e /proc/self/exe && echo x >/dev/null && (sleep 1000 & echo started)`)
	must(t, err)
	if res.Output != "started\n" || res.Total > 100*time.Second {
		t.Errorf("result = %+v", res)
	}
	if _, err := os.Stat(filepath.Join(root, "proc/self")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("/proc stayed mounted: %v", err)
	}
	// Too much output is cut, not kept.
	res, err = sh(t.Context(), "head -c 1000000 /dev/zero | tr '\\0' x")
	must(t, err)
	if len(res.Output) != maxOutput || strings.Trim(res.Output, "x") != "" {
		t.Errorf("%d bytes of output kept", len(res.Output))
	}
	// The program tells through the file system that it runs, then is ended.
	ctx, cancel := context.WithCancel(t.Context())
	started := filepath.Join(root, "started")
	must(t, unix.Mkfifo(started, 0o600))
	var said []byte
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cancel()
		if said, err = os.ReadFile(started); err != nil {
			t.Error(err)
		}
	})
	if _, err := sh(ctx, "echo now >/started; sleep 1000"); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled program: %v", err)
	}
	wg.Wait()
	if string(said) != "now\n" {
		t.Errorf("the program said %q", said)
	}
}

func TestBuildRefuses(t *testing.T) {
	if _, err := Build(t.Context(), Spec{Name: "x"}, BuildOptions{CacheDir: t.TempDir()}); err == nil {
		t.Error("a spec without layers was built")
	}
	t.Setenv("PATH", t.TempDir())
	spec, _ := SpecNamed("busybox")
	if _, err := Build(t.Context(), spec, BuildOptions{CacheDir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "apt-get") {
		t.Errorf("without apt: %v", err)
	}
}

func TestProcessesTakeTurns(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	ctx, cancel := context.WithCancel(t.Context())
	var said []string
	progress := func(p Progress) {
		said = append(said, p.Step)
		cancel()
	}
	first, err := lockDir(t.Context(), dir, progress)
	must(t, err)
	if _, err := lockDir(ctx, dir, progress); !errors.Is(err, context.Canceled) {
		t.Errorf("a second lock: %v", err)
	}
	if len(said) != 1 || !strings.Contains(said[0], dir) {
		t.Errorf("said while waiting: %q", said)
	}
	must(t, first.Close())
	second, err := lockDir(t.Context(), dir, progress)
	must(t, err)
	must(t, second.Close())
}

func TestSpecs(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range Specs() {
		if seen[s.Name] || s.About == "" || len(s.Programs) == 0 {
			t.Errorf("spec %+v", s)
		}
		seen[s.Name] = true
		for _, p := range s.Programs {
			if !filepath.IsAbs(p.Args[0]) {
				t.Errorf("spec %s: program %s has no absolute path", s.Name, p.Name)
			}
		}
		for link := range s.Links {
			if mergeUsr(cleanName(link)) != link {
				t.Errorf("spec %s: link %q is not where a merged system has it", s.Name, link)
			}
		}
	}
	if _, ok := SpecNamed("nothing"); ok {
		t.Error("a spec that is not there was found")
	}
}

// TestRunLetsGo makes sure that nothing keeps the root busy once Run returned:
// what a file system's data lies on can be unmounted right after it.
func TestRunLetsGo(t *testing.T) {
	needRoot(t)
	const inside = "SKIMMER_TEST_IN_NAMESPACE"
	if os.Getenv(inside) == "" {
		// Any process on the machine that makes a mount namespace meanwhile
		// would hold copies of our mounts, so these are made out of its sight.
		cmd := exec.CommandContext(t.Context(), "unshare", "--mount", os.Args[0], "-test.run=^TestRunLetsGo$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestRunLetsGo") {
			t.Errorf("in a mount namespace: %v\n%s", err, out)
		}
		return
	}
	detachCopies(t)
	img := buildBusybox(t)
	mkfs, err := exec.LookPath("mkfs.erofs")
	must(t, err) // erofs-utils; the kernel has what it makes
	disk, below, dir := t.TempDir(), t.TempDir(), t.TempDir()
	if out, err := exec.CommandContext(t.Context(), mkfs, "--quiet", disk+"/image", unpack(t, img)).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v: %s", err, out)
	}
	for i := range 20 {
		must(t, unix.Mount(disk, below, "", unix.MS_BIND, ""))
		must(t, unix.Mount(below+"/image", dir, "erofs", unix.MS_RDONLY, ""))
		_, err := Run(t.Context(), dir, img.Environ(), img.Spec.Programs[0].Args)
		if err := errors.Join(err, unix.Unmount(dir, 0), unix.Unmount(below, 0)); err != nil {
			_ = unix.Unmount(below, unix.MNT_DETACH)
			t.Fatalf("round %d: %v", i, err)
		}
	}
}

// detachCopies detaches, in this namespace, what was mounted by other tests when it
// was made: a copy keeps in use what they are about to take away.
func detachCopies(t *testing.T) {
	t.Helper()
	p, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for _, line := range slices.Backward(strings.Split(string(p), "\n")) {
		// They may be below one that was detached already.
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], os.TempDir()+"/") {
			_ = unix.Unmount(f[4], unix.MNT_DETACH)
		}
	}
}

// unpack unpacks an image with umoci and returns its root file system.
func unpack(t *testing.T, img Image) string {
	t.Helper()
	bundle := filepath.Join(t.TempDir(), "bundle")
	out, err := exec.CommandContext(t.Context(), "umoci", "unpack", "--image", img.LayoutDir+":"+img.Tag, bundle).CombinedOutput()
	if err != nil {
		t.Fatalf("umoci: %v: %s", err, out)
	}
	return filepath.Join(bundle, "rootfs")
}
