package store

import (
	"bytes"
	"errors"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

func follow(t *testing.T, b blob.Blob, r blob.Range) Follower {
	t.Helper()
	f, err := b.(Exposer).Follow(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func expose(t *testing.T, b blob.Blob) *os.File {
	t.Helper()
	f, err := b.(Exposer).Expose()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// mustFollow follows r to its end and compares what the file has, each time as far
// as it is said to be there.
func mustFollow(t *testing.T, b blob.Blob, r blob.Range, content []byte) {
	t.Helper()
	file, f, at := expose(t, b), follow(t, b, r), r.Off
	for {
		off, err := f.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("at %d: %v", at, err)
		}
		if off <= at || off > r.End() {
			t.Fatalf("after %d comes %d of %v", at, off, r)
		}
		p := make([]byte, off-at)
		if _, err := file.ReadAt(p, at); err != nil || !bytes.Equal(p, content[at:off]) {
			t.Fatalf("wrong bytes from %d to %d: %v", at, off, err)
		}
		at = off
	}
	if at != r.End() {
		t.Errorf("it ends at %d, want %d", at, r.End())
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func TestFollow(t *testing.T) {
	content := blobtest.Bytes(9, 5<<20+17)
	src := newMany(content)
	s := openStore(t, Config{})
	b := openBlob(t, s.Through(src), src.ref())
	mustRead(t, b, blob.Range{Off: 2 << 20, Len: 10}, content)
	mustFollow(t, b, blob.Range{Off: 100, Len: 3 << 20}, content)
	mustFollow(t, b, whole(content), content)
	mustFollow(t, b, whole(content), content)
	mustFollow(t, b, blob.Range{Off: 7}, content)
	if times, n := src.most(); times != 1 || n != int64(len(content)) {
		t.Errorf("%d bytes came, one of them %d times", n, times)
	}
	if held, err := s.Stat(src.ref().Digest); err != nil || !held.Complete {
		t.Errorf("after all of it was said to be there: %+v, %v", held, err)
	}
	if _, err := b.(Exposer).Follow(t.Context(), blob.Range{Off: 1, Len: 5<<20 + 17}); !errors.Is(err, blob.Invalid) {
		t.Errorf("outside of the blob: %v", err)
	}
	if _, err := expose(t, b).WriteAt([]byte("x"), 0); err == nil {
		t.Error("what is exposed can be written to")
	}
}

// TestFollowArriving says what is there while the rest is still to come, and ends
// the fetching when nobody follows.
func TestFollowArriving(t *testing.T) {
	content := blobtest.Bytes(10, 4<<20)
	src := newTap(content)
	s := openStore(t, Config{})
	b := openBlob(t, s.Through(src), newMany(content).ref())
	f := follow(t, b, whole(content))
	src.flow(3 << 19)
	if off, err := f.Next(); off != 1<<20 || err != nil {
		t.Fatalf("%d, %v, want the first MiB", off, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-src.stopped; err == nil {
		t.Error("the fetching goes on")
	}
	if _, err := f.Next(); !errors.Is(err, blob.Invalid) {
		t.Errorf("after Close: %v", err)
	}
}

// TestFollowDamaged has bytes on disk change: they are fetched again before they are
// said to be there.
func TestFollowDamaged(t *testing.T) {
	content := blobtest.Bytes(11, 3<<20)
	src := newMany(content)
	dir := t.TempDir()
	s, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	b := openBlob(t, s.Through(src), src.ref())
	mustFollow(t, b, whole(content), content)
	path := expose(t, b).Name()
	if err := errors.Join(b.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	data, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := data.WriteAt([]byte("damage"), 2<<20); err != nil {
		t.Fatal(err)
	}
	data.Close()
	s = openStore(t, Config{Dir: dir})
	mustFollow(t, openBlob(t, s.Through(src), src.ref()), whole(content), content)
	if n := s.Stats().CRCFailures; n != 1 {
		t.Errorf("%d pieces were found damaged, want 1", n)
	}
}

// TestFollowWrong has a source whose bytes are not those of the digest: they are not
// said to be all there.
func TestFollowWrong(t *testing.T) {
	content := blobtest.Bytes(12, 2<<20)
	src := newTap(blobtest.Bytes(13, 2<<20))
	src.flow(2 << 20)
	s := openStore(t, Config{})
	f := follow(t, openBlob(t, s.Through(src), newMany(content).ref()), whole(content))
	for {
		off, err := f.Next()
		if errors.Is(err, blob.Corrupt) {
			break
		}
		if err != nil || off == 2<<20 {
			t.Fatalf("%d bytes are said to be there: %v", off, err)
		}
	}
}

// TestFollowFull has no room: what can be kept is there, and the rest is an error.
func TestFollowFull(t *testing.T) {
	content := blobtest.Bytes(14, 2<<20)
	src := newMany(content)
	s := openStore(t, Config{FS: FS{Before: func(op Op) error {
		if op.Name == OpWrite && strings.HasSuffix(op.Path, dataName) && op.Off >= 1<<20 {
			return unix.ENOSPC
		}
		return nil
	}}})
	f := follow(t, openBlob(t, s.Through(src), src.ref()), whole(content))
	for {
		_, err := f.Next()
		if errors.Is(err, blob.Full) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestExposedOutlivesItsBlob removes a blob whose file somebody has.
func TestExposedOutlivesItsBlob(t *testing.T) {
	content := blobtest.Bytes(15, 1<<20)
	src := newMany(content)
	s := openStore(t, Config{})
	b := openBlob(t, s.Through(src), src.ref())
	mustFollow(t, b, whole(content), content)
	file := expose(t, b)
	settle(t, s, src.ref().Digest)
	b.Close()
	err := s.Remove(src.ref().Digest)
	for ; errors.Is(err, blob.Busy); err = s.Remove(src.ref().Digest) {
		runtime.Gosched() // it is still made durable
	}
	if err != nil {
		t.Fatal(err)
	}
	if p, err := io.ReadAll(file); err != nil || !bytes.Equal(p, content) {
		t.Errorf("%d bytes, %v", len(p), err)
	}
}
