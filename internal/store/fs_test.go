package store

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// cachedBytes returns how much of a file is in the page cache once nothing of it has
// to be written any more.
func cachedBytes(t *testing.T, f *os.File) int64 {
	t.Helper()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	// The kernel drops pages when their writing has ended, a moment after Sync knows.
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	least := int64(1 << 62)
	for range 20 {
		<-tick.C
		var st unix.Cachestat_t
		if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &st, 0); err != nil {
			t.Fatal(err)
		}
		least = min(least, int64(st.Cache)*int64(os.Getpagesize()))
	}
	return least
}

// What nobody waits for is read by nobody here: it is not to push out of memory what
// is. The other files show that the kernel does keep what is written as usual, but for
// a block that readahead of the hashing met before it was written.
func TestBackgroundLeavesPageCache(t *testing.T) {
	dir := t.TempDir()
	probe, err := (&FS{}).create(filepath.Join(dir, "probe"))
	if err != nil {
		t.Fatal(err)
	}
	defer probe.close()
	if err := probe.writeThrough([]byte("x"), 0); err != nil || probe.cached.Load() {
		if os.Getenv("CI") != "" {
			t.Fatalf("the kernel or the file system of %s cannot write past the page cache, and CI's must: %v", dir, err)
		}
		t.Skipf("NOT TESTED: the kernel or the file system of %s cannot write past the page cache: %v", dir, err)
	}
	content := blobtest.Bytes(9, 8<<20)
	for _, tc := range []struct {
		prio        blob.Priority
		least, most int64
	}{
		{blob.Demand, int64(len(content)) / 4 * 3, int64(len(content))},
		{blob.Background, 0, int64(len(content)) / 4},
	} {
		t.Run(tc.prio.String(), func(t *testing.T) {
			src := newMany(content)
			var data string
			s := openStore(t, Config{FS: FS{Before: func(op Op) error {
				if op.Name == OpWrite && len(op.Data) > 64<<10 {
					data = op.Path
				}
				return nil
			}}})
			b := openBlob(t, s.Through(src), src.ref())
			if err := keep(blob.WithPriority(t.Context(), tc.prio), t, b, whole(content)); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(data)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if n := cachedBytes(t, f); n < tc.least || n > tc.most {
				t.Errorf("%d of %d bytes are in the page cache, want %d to %d", n, len(content), tc.least, tc.most)
			}
			mustRead(t, openBlob(t, s.Local(), src.ref()), whole(content), content)
		})
	}
}

// Where the kernel cannot, it is written as usual, and what fails says where.
func TestWriteThrough(t *testing.T) {
	f, err := (&FS{}).create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	content := blobtest.Bytes(10, 300<<10)
	for _, cached := range []bool{false, true} {
		f.cached.Store(cached)
		if err := f.writeThrough(content, 5); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(content))
		if _, err := f.readThrough(got, 5); err != nil || !bytes.Equal(got, content) {
			t.Errorf("cached %v: it has other bytes, or %v", cached, err)
		}
		if n, err := f.readThrough(make([]byte, 10), int64(len(content))); n != 5 || err != io.EOF {
			t.Errorf("cached %v: at the end of the file come %d bytes and %v, want 5 and EOF", cached, n, err)
		}
		if err := f.truncate(0); err != nil {
			t.Fatal(err)
		}
	}
	closed, err := (&FS{}).create(filepath.Join(t.TempDir(), "closed"))
	if err != nil {
		t.Fatal(err)
	}
	closed.close()
	var failure *os.PathError
	if err := closed.writeThrough(content, 0); !errors.As(err, &failure) || failure.Path != closed.os.Name() {
		t.Errorf("a file that is closed: %v", err)
	}
}
