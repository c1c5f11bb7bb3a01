package transfer

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/store"
)

func TestStat(t *testing.T) {
	dir := newFolder(t)
	ref := dir.add(t, make([]byte, 1000))
	_, addr := serve(t, ServerConfig{Source: dir})
	c := connect(t, ClientConfig{})
	h, err := c.Stat(t.Context(), addr, ref.Digest)
	if err != nil || h.Size != 1000 || len(h.Held) != 1 || h.Held[0] != (blob.Range{Len: 1000}) {
		t.Errorf("stat = %+v, %v", h, err)
	}
	if _, err := c.Stat(t.Context(), addr, digest.FromString("not here")); !errors.Is(err, blob.NotFound) {
		t.Errorf("stat of what is not held: %v", err)
	}
	if _, err := c.Stat(t.Context(), "no address", ref.Digest); !errors.Is(err, blob.Invalid) {
		t.Errorf("stat at no address: %v", err)
	}
}

// TestFilesAreSent proves that what is lent leaves without being read, that
// descriptors are shared, and that all alignments arrive right.
func TestFilesAreSent(t *testing.T) {
	const size = 3<<20 + 777
	dir := newFolder(t)
	content := blobtest.Bytes(3, size)
	ref := dir.add(t, content)
	s, addr := serve(t, ServerConfig{Source: dir})
	b := open(t, connect(t, ClientConfig{}), addr, ref)
	var bytesLarge int64
	for _, r := range []blob.Range{
		{Off: 0, Len: size}, {Off: 0, Len: 2 << 20}, {Off: 1 << 20, Len: size - 1<<20}, {Off: piece, Len: piece},
		{Off: 1, Len: size - 1}, {Off: 1, Len: size - 2}, {Off: piece - 1, Len: 2*piece + 2}, {Off: 10, Len: 200_000},
		{Off: piece + 10, Len: piece - 10}, {Off: piece, Len: piece - 1}, {Off: 3 << 20, Len: 777}, {Off: 5, Len: 1},
	} {
		got, err := fetch(t.Context(), b, r)
		if err != nil || !bytes.Equal(got, content[r.Off:r.End()]) {
			t.Errorf("range %v: %d bytes, %v", r, len(got), err)
		}
		if r.Len > smallUpload {
			bytesLarge += r.Len
		}
	}
	idle(t, s)
	st := s.Stats()
	if st.SentFile != bytesLarge || st.Relayed != 0 || st.Bytes != bytesLarge+778 {
		t.Errorf("stats = %+v, want %d bytes sent from files", st, bytesLarge)
	}
	if n := len(s.shelf.volumes[ref.Digest].spare); n != 1 {
		t.Errorf("%d descriptors are kept, want 1", n)
	}
	s.Forget(ref.Digest)
	if n := len(s.shelf.volumes); n != 0 {
		t.Errorf("%d blobs are kept open after Forget", n)
	}
}

func TestPiecesTooManyForAHeader(t *testing.T) {
	dir := newFolder(t)
	dir.piece = 512
	content := blobtest.Bytes(4, 1<<20)
	ref := dir.add(t, content)
	s, addr := serve(t, ServerConfig{Source: dir})
	got, err := fetch(t.Context(), open(t, connect(t, ClientConfig{}), addr, ref), blob.Range{Len: 1 << 20})
	idle(t, s)
	if err != nil || !bytes.Equal(got, content) || s.Stats().Relayed != 1<<20 {
		t.Errorf("%d bytes, %v, stats %+v", len(got), err, s.Stats())
	}
}

// TestDamageIsNoticed has a piece on disk that is not what its sum says.
func TestDamageIsNoticed(t *testing.T) {
	dir := newFolder(t)
	dir.lie = func(crcs []uint32) { crcs[1]++ }
	ref := dir.add(t, blobtest.Bytes(5, 4*piece))
	_, addr := serve(t, ServerConfig{Source: dir})
	c := connect(t, ClientConfig{})
	p, err := fetch(t.Context(), open(t, c, addr, ref), blob.Range{Len: 4 * piece})
	if !errors.Is(err, blob.Corrupt) || len(p) < piece || len(p) >= 2*piece {
		t.Errorf("%d bytes and %v, want corrupt before the end of the second piece", len(p), err)
	}
	if n := c.Stats().Corrupt; n != 1 {
		t.Errorf("client counts %d corrupt answers", n)
	}
}

// TestStoreIsServed serves a real store: what it holds, what is arriving, and
// nothing else.
func TestStoreIsServed(t *testing.T) {
	origin := &blobtest.Memory{}
	content := blobtest.Bytes(6, 5<<20)
	ref := origin.Add(content)
	s, err := store.Open(store.Config{Dir: t.TempDir(), HighWater: 1 << 30, MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	_, addr := serve(t, ServerConfig{Source: s.Local()})
	b := open(t, connect(t, ClientConfig{}), addr, ref)
	if _, err := fetch(t.Context(), b, blob.Range{Len: 1000}); !errors.Is(err, blob.NotFound) {
		t.Errorf("before it is held: %v, want not found", err)
	}
	through, err := s.Through(origin).Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fetch(t.Context(), through, blob.Range{Off: 1 << 20, Len: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if err := through.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := fetch(t.Context(), b, blob.Range{Off: 1<<20 + 5, Len: 1<<20 - 10})
	if err != nil || !bytes.Equal(got, content[1<<20+5:2<<20-5]) {
		t.Errorf("what is held: %d bytes, %v", len(got), err)
	}
	if _, err := fetch(t.Context(), b, blob.Range{Off: 4 << 20, Len: 1000}); !errors.Is(err, blob.NotFound) {
		t.Errorf("what is not: %v, want not found", err)
	}
}

func TestShelfClosesWhatIsNotUsed(t *testing.T) {
	dir := newFolder(t)
	s := &shelf{src: dir}
	for i := range shelfSize + 10 {
		v, err := s.get(t.Context(), dir.add(t, []byte(fmt.Sprint(i))).Digest)
		if err != nil {
			t.Fatal(err)
		}
		s.put(v)
	}
	if n := len(s.volumes); n != shelfSize {
		t.Errorf("%d blobs are open, want %d", n, shelfSize)
	}
	used, err := s.get(t.Context(), dir.add(t, []byte("used")).Digest)
	if err != nil {
		t.Fatal(err)
	}
	s.close()
	if n := len(s.volumes); n != 0 {
		t.Errorf("%d blobs are open after close", n)
	}
	if p, err := fetch(t.Context(), used, blob.Range{Len: 4}); string(p) != "used" || err != nil {
		t.Errorf("blob in use after close: %q, %v", p, err)
	}
	s.put(used)
	if err := used.Blob.Close(); err == nil {
		t.Error("blob was not closed with its last user")
	}
}
