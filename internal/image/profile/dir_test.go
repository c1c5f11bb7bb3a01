package profile

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skimmer/internal/blob"
)

func openTestDir(t *testing.T) *Dir {
	t.Helper()
	d, err := OpenDir(filepath.Join(t.TempDir(), "profiles"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// numbered returns a profile of another image for every i.
func numbered(i int) Profile {
	p := random(rand.New(rand.NewPCG(uint64(i), 11)))
	p.Manifest = testDigest("manifest", i)
	return p
}

func TestDir(t *testing.T) {
	d, p := openTestDir(t), numbered(1)
	if _, err := d.Get(p.Manifest); blob.KindOf(err) != blob.NotFound {
		t.Errorf("from an empty directory: %v", err)
	}
	if _, err := d.Get("../../etc"); blob.KindOf(err) != blob.Invalid {
		t.Errorf("not a digest: %v", err)
	}
	if err := d.Put(Profile{}); blob.KindOf(err) != blob.Invalid {
		t.Errorf("nothing was stored: %v", err)
	}
	for range 2 {
		if err := d.Put(p); err != nil {
			t.Fatal(err)
		}
	}
	got, err := d.Get(p.Manifest)
	if diff := cmp.Diff(p, got); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	d, err = OpenDir(d.path) // as the next process does
	if err != nil {
		t.Fatal(err)
	}
	list, err := d.List()
	want := []Info{{
		Manifest: p.Manifest, Platform: p.Platform, Starts: p.Starts, Layers: len(p.Layers), Reads: len(p.Reads),
		Chunks: p.Chunks(), Bytes: int64(len(mustEncode(t, p))), Recorded: p.Recorded,
	}}
	if diff := cmp.Diff(want, list); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	if err := d.Remove(p.Manifest); err != nil || d.count != 0 {
		t.Errorf("removed: %v, %d are left", err, d.count)
	}
	if err := d.Remove(p.Manifest); blob.KindOf(err) != blob.NotFound {
		t.Errorf("removed twice: %v", err)
	}
}

// TestDirDamage finds that a damaged file, one that another image's name
// stands on, and one of a newer version are as good as none.
func TestDirDamage(t *testing.T) {
	d, p := openTestDir(t), numbered(1)
	if err := d.Put(p); err != nil {
		t.Fatal(err)
	}
	path, _ := d.file(p.Manifest)
	newer := mustEncode(t, p)
	newer[len(magic)]++
	for name, c := range map[string]struct {
		content []byte
		removed bool
	}{
		"empty":           {nil, true},
		"cut":             {mustEncode(t, p)[:100], true},
		"too large":       {make([]byte, 3*MaxSize), true},
		"another's":       {mustEncode(t, numbered(2)), true},
		"a newer version": {newer, false},
	} {
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		if list, err := d.List(); err != nil || len(list) > 0 {
			t.Errorf("%s: list %v, %v", name, list, err)
		}
		if _, err := d.Get(p.Manifest); blob.KindOf(err) != blob.NotFound {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(path); os.IsNotExist(err) != c.removed {
			t.Errorf("%s: afterwards, the file: %v", name, err)
		}
	}
}

func TestDirBounded(t *testing.T) {
	d := openTestDir(t)
	d.limit = 3
	old := time.Now().Add(-2 * tempAge)
	for i := range 6 {
		p := numbered(i)
		if err := d.Put(p); err != nil {
			t.Fatal(err)
		}
		path, _ := d.file(p.Manifest)
		if err := os.Chtimes(path, time.Time{}, old.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 6 {
		if _, err := d.Get(numbered(i).Manifest); (err == nil) != (i >= 3) {
			t.Errorf("profile %d: %v", i, err)
		}
	}
	left := filepath.Join(d.path, "sha256", tempPrefix+"1")
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(left, old, old); err != nil {
		t.Fatal(err)
	}
	again, err := OpenDir(d.path)
	if err != nil || again.count != 3 {
		t.Errorf("opened again, it has %d files: %v", again.count, err)
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("a forgotten temporary file is still there: %v", err)
	}
}

// TestDirConcurrent lets several use a directory at once; the race detector
// watches, and no reader may see half a profile.
func TestDirConcurrent(t *testing.T) {
	d := openTestDir(t)
	d.limit = 4
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 20 {
				p := numbered((i + j) % 6)
				if err := d.Put(p); err != nil {
					t.Error(err)
				}
				if got, err := d.Get(p.Manifest); err == nil && len(got.Reads) != len(p.Reads) {
					t.Errorf("%d reads, want %d", len(got.Reads), len(p.Reads))
				}
				if err := d.Remove(p.Manifest); err != nil && blob.KindOf(err) != blob.NotFound {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if d.count != 0 {
		t.Errorf("%d files are counted that are not there", d.count)
	}
}
