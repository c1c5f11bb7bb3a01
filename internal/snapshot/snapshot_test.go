package snapshot_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"

	"skimmer/internal/snapshot"
	"skimmer/internal/testkit"
)

// pull does what containerd's unpacker does: it prepares the layers one after
// the other, unpacks those that are not there, and returns the name of the
// topmost snapshot and how many layers it had to unpack.
func (w *world) pull(t testing.TB, n *node, layers []layer, labels func(i int) map[string]string) (top string, unpacked int) {
	t.Helper()
	for i := range w.layers {
		key, target := "extract-"+strconv.Itoa(i), "chain-"+strconv.Itoa(i)
		all := labels(i)
		all["containerd.io/snapshot.ref"] = target
		mounts, err := n.Prepare(t.Context(), key, top, snapshots.WithLabels(all))
		switch {
		case errdefs.IsAlreadyExists(err):
			if _, err := n.Stat(t.Context(), target); err != nil {
				t.Fatalf("layer %d: is said to exist: %v", i, err)
			}
		case err != nil:
			t.Fatalf("layer %d: %v", i, err)
		default:
			unpacked++
			err := mount.WithTempMount(t.Context(), mounts, func(root string) error {
				for name, body := range layers[i].files {
					if err := os.WriteFile(filepath.Join(root, name), []byte(body), 0o644); err != nil {
						return err
					}
				}
				return nil
			})
			if err := errors.Join(err, n.Commit(t.Context(), target, key)); err != nil {
				t.Fatalf("layer %d: unpack: %v", i, err)
			}
		}
		top = target
	}
	return top, unpacked
}

// criLabels are those containerd and its CRI plugin set.
func (w *world) criLabels(i int) map[string]string {
	return map[string]string{
		snapshotters.TargetRefLabel:            imageName,
		snapshotters.TargetLayerDigestLabel:    w.layers[i].Digest.String(),
		snapshotters.TargetManifestDigestLabel: w.digest().String(),
	}
}

// stargzLabels are those of ctr-remote and older nerdctl.
func (w *world) stargzLabels(i int) map[string]string {
	return map[string]string{
		"containerd.io/snapshot/remote/stargz.reference": imageName,
		"containerd.io/snapshot/remote/stargz.digest":    w.layers[i].Digest.String(),
	}
}

// expect reads files below what mounts mount; empty content means that the
// file must not be there.
func expect(t testing.TB, mounts []mount.Mount, want map[string]string) {
	t.Helper()
	err := mount.WithTempMount(t.Context(), mounts, func(root string) error {
		for name, body := range want {
			got, err := os.ReadFile(filepath.Join(root, name))
			if body == "" && errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil || string(got) != body {
				t.Errorf("%s: %q, %v; want %q", name, got, err, body)
			}
		}
		return nil
	})
	if err != nil {
		t.Errorf("mount %v: %v", mounts, err)
	}
}

var twoLayers = []layer{
	{files: map[string]string{"a": "lower a", "b": "lower b", "c": strings.Repeat("lower c", 10000)}},
	{files: map[string]string{"b": "upper b", ".wh.a": ""}},
}

var merged = map[string]string{"a": "", "b": "upper b", "c": strings.Repeat("lower c", 10000)}

func TestLazyImage(t *testing.T) {
	for name, labels := range map[string]func(*world, int) map[string]string{
		"containerd's labels": (*world).criLabels, "ctr-remote's labels": (*world).stargzLabels,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, twoLayers...)
			n := startNode(t, t.TempDir(), w)
			top, unpacked := w.pull(t, n, twoLayers, func(i int) map[string]string { return labels(w, i) })
			if unpacked != 0 {
				t.Errorf("%d layers were unpacked", unpacked)
			}
			mounts, err := n.Prepare(t.Context(), "container", top)
			if err != nil {
				t.Fatal(err)
			}
			if lower := lowerDirs(mounts); len(lower) != 1 {
				t.Errorf("lower directories %q, want one for the whole image", lower)
			}
			expect(t, mounts, merged)
			view, err := n.View(t.Context(), "view", "chain-0")
			if err != nil {
				t.Fatal(err)
			}
			expect(t, view, map[string]string{"a": "lower a", "b": "lower b"})
		})
	}
}

func lowerDirs(mounts []mount.Mount) []string {
	for _, o := range mounts[0].Options {
		if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
			return strings.Split(dirs, ":")
		}
	}
	return nil
}

func TestNewSnapshotterIsEmpty(t *testing.T) {
	w := newWorld(t)
	n := startNode(t, t.TempDir(), w)
	err := n.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		t.Errorf("there is a snapshot: %v", info)
		return nil
	})
	if err := errors.Join(err, n.Cleanup(t.Context())); err != nil {
		t.Error(err)
	}
}

func TestManifestIsReadOnce(t *testing.T) {
	for name, labels := range map[string]func(*world, int) map[string]string{
		"containerd's labels": (*world).criLabels, "ctr-remote's labels": (*world).stargzLabels,
	} {
		w := newWorld(t, twoLayers...)
		n := startNode(t, t.TempDir(), w)
		w.pull(t, n, twoLayers, func(i int) map[string]string { return labels(w, i) })
		if asked := w.asked.Load(); asked != 1 {
			t.Errorf("%s: the registry was asked for %d manifests, want 1", name, asked)
		}
	}
}

// A layer that is not eStargz is unpacked; lazy layers above it still hide
// what they delete in it.
func TestMixedImage(t *testing.T) {
	layers := []layer{
		{files: map[string]string{"a": "lowest a", "b": "lowest b", "d": "lowest d"}},
		{files: map[string]string{"c": "plain c", "b": "plain b"}, plain: true},
		{files: map[string]string{"d": "upper d", ".wh.c": "", ".wh.a": ""}},
	}
	w := newWorld(t, layers...)
	n := startNode(t, t.TempDir(), w)
	top, unpacked := w.pull(t, n, layers, w.criLabels)
	if unpacked != 1 {
		t.Errorf("%d layers were unpacked, want the one that is not eStargz", unpacked)
	}
	mounts, err := n.Prepare(t.Context(), "container", top)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, mounts, map[string]string{"a": "", "b": "plain b", "c": "", "d": "upper d"})
}

func TestRestartWithoutRegistry(t *testing.T) {
	w := newWorld(t, twoLayers...)
	root := t.TempDir()
	n := startNode(t, root, w)
	top, _ := w.pull(t, n, twoLayers, w.criLabels)
	mounts, err := n.Prepare(t.Context(), "container", top)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, mounts, merged)
	n.stop(t)
	w.away.Store(true)

	n = startNode(t, root, w)
	if mounts, err = n.Mounts(t.Context(), "container"); err != nil {
		t.Fatal(err)
	}
	expect(t, mounts, merged)
	if mounts, err = n.Prepare(t.Context(), "another", top); err != nil {
		t.Fatal(err)
	}
	expect(t, mounts, merged)
}

func TestCleanupFreesEverything(t *testing.T) {
	w := newWorld(t, twoLayers...)
	n := startNode(t, t.TempDir(), w)
	top, _ := w.pull(t, n, twoLayers, w.criLabels)
	if _, err := n.Prepare(t.Context(), "container", top); err != nil {
		t.Fatal(err)
	}
	layers := func() (n2 int) {
		dirs, _ := filepath.Glob(filepath.Join(n.root, "layers", "*", "*"))
		return len(dirs)
	}
	if err := n.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if layers() != 2 || count(t, filepath.Join(n.root, "stacks")) != 1 {
		t.Fatalf("clean-up took away what is in use: %d layers, %d stacks", layers(), count(t, filepath.Join(n.root, "stacks")))
	}
	if err := errors.Join(n.Remove(t.Context(), "container"), n.Cleanup(t.Context())); err != nil {
		t.Fatal(err)
	}
	if layers() != 2 || count(t, filepath.Join(n.root, "stacks")) != 1 {
		t.Errorf("without containers: %d layers, want 2; %d stacks, want 1, for the next", layers(), count(t, filepath.Join(n.root, "stacks")))
	}
	if err := errors.Join(n.Remove(t.Context(), "chain-1"), n.Remove(t.Context(), "chain-0"), n.Cleanup(t.Context())); err != nil {
		t.Fatal(err)
	}
	for _, left := range []string{"layers/*/*", "metadata/*", "stacks/*", "snapshotter/snapshots/*", "trash/*"} {
		if paths, _ := filepath.Glob(filepath.Join(n.root, left)); len(paths) != 0 {
			t.Errorf("left behind: %q", paths)
		}
	}
	// And it can be pulled again.
	w.pull(t, n, twoLayers, w.criLabels)
}

func TestUpdateKeepsLazySnapshotsLazy(t *testing.T) {
	w := newWorld(t, twoLayers...)
	n := startNode(t, t.TempDir(), w)
	top, _ := w.pull(t, n, twoLayers, w.criLabels)
	updated, err := n.Update(t.Context(), snapshots.Info{Name: top, Labels: map[string]string{"mine": "1"}}, "labels")
	if err != nil {
		t.Fatal(err)
	}
	if updated.Labels["mine"] != "1" || updated.Labels[snapshot.LayerLabel] == "" || updated.Labels[snapshot.RemoteLabel] == "" {
		t.Errorf("labels after update: %v", updated.Labels)
	}
	mounts, err := n.Prepare(t.Context(), "container", top)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, mounts, merged)
}

// While containerd still unpacks, what the image's command reads first is
// fetched, and nothing else.
func TestCommandIsFetchedAhead(t *testing.T) {
	layers := []layer{
		{files: map[string]string{"usr/bin/interpreter": strings.Repeat("interpreter", 5000), "other": strings.Repeat("other", 9000)}},
		{files: map[string]string{"usr/bin/tool": "#!/usr/bin/interpreter -x\n"}},
	}
	w := newWorld(t, layers...)
	n := startNode(t, t.TempDir(), w)
	w.pull(t, n, layers, w.criLabels)
	want := map[string]int64{"interpreter": 55000, "tool": 26}
	testkit.Eventually(t, time.Minute, "what the command reads is fetched", func() error {
		var present int64
		for _, s := range n.library.PulledStates() {
			present += s.Present
		}
		if all := want["interpreter"] + want["tool"]; present != all {
			return fmt.Errorf("%d bytes are here, want %d", present, all)
		}
		return nil
	})
}
