package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

const kib, mib = int64(1) << 10, int64(1) << 20

// openStore opens a store that the test closes.
func openStore(t testing.TB, cfg Config) *Store {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return s
}

func openBlob(t testing.TB, src blob.Source, ref blob.Ref) blob.Blob {
	t.Helper()
	b, err := src.Open(t.Context(), ref)
	if err != nil {
		t.Fatalf("open %v: %v", ref, err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func read(ctx context.Context, b blob.Blob, r blob.Range) ([]byte, error) {
	p := make([]byte, r.Len)
	err := blob.ReadFull(ctx, b, p, r.Off)
	return p, err
}

// mustRead reads r of b and compares it with content.
func mustRead(t testing.TB, b blob.Blob, r blob.Range, content []byte) {
	t.Helper()
	p, err := read(t.Context(), b, r)
	if err != nil {
		t.Fatalf("read %v: %v", r, err)
	}
	if !bytes.Equal(p, content[r.Off:r.End()]) {
		t.Fatalf("read %v: wrong content", r)
	}
}

func whole(content []byte) blob.Range { return blob.Range{Len: int64(len(content))} }

// settle waits until the store does nothing in the background for blob d.
func settle(t testing.TB, s *Store, d digest.Digest) {
	t.Helper()
	e, err := s.acquire(d)
	if err != nil {
		t.Fatal(err)
	}
	defer s.release(e)
	for {
		e.mu.Lock()
		if len(e.flights) == 0 && !e.hashing {
			e.mu.Unlock()
			return
		}
		changed := e.wait()
		e.mu.Unlock()
		<-changed
	}
}

// quiet waits until nobody holds blob d, the store included.
func quiet(s *Store, d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.entries[d] != nil && s.entries[d].refs > 0 {
		s.idled.Wait()
	}
}

// down is a source that cannot be reached.
type down struct{}

func (down) Open(_ context.Context, ref blob.Ref) (blob.Blob, error) {
	return nil, blob.Errorf(blob.Unavailable, "open %v: network is down", ref)
}

func memory(contents [][]byte) (*blobtest.Memory, []blob.Ref) {
	m := &blobtest.Memory{}
	var refs []blob.Ref
	for _, p := range contents {
		refs = append(refs, m.Add(p))
	}
	return m, refs
}

// warm reads everything refs name through src.
func warm(t *testing.T, src blob.Source, refs []blob.Ref) {
	t.Helper()
	for _, ref := range refs {
		b := openBlob(t, src, ref)
		if _, err := read(t.Context(), b, blob.Range{Len: b.Size()}); err != nil {
			t.Fatalf("read %v: %v", ref, err)
		}
		b.Close()
	}
}

func TestConformance(t *testing.T) {
	t.Run("Cold", func(t *testing.T) {
		blobtest.Run(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
			m, refs := memory(contents)
			return openStore(t, Config{}).Through(m), refs
		})
	})
	t.Run("Warm", func(t *testing.T) {
		blobtest.Run(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
			m, refs := memory(contents)
			s := openStore(t, Config{})
			warm(t, s.Through(m), refs)
			return s.Local(), refs
		})
	})
	t.Run("Reopened", func(t *testing.T) {
		blobtest.Run(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
			m, refs := memory(contents)
			dir := t.TempDir()
			s := openStore(t, Config{Dir: dir})
			warm(t, s.Through(m), refs)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return openStore(t, Config{Dir: dir}).Local(), refs
		})
	})
	t.Run("FullDisk", func(t *testing.T) {
		blobtest.Run(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
			m, refs := memory(contents)
			d := &disk{}
			d.fail(errNoSpace, OpWrite)
			return openStore(t, Config{FS: d.fs()}).Through(m), refs
		})
	})
	t.Run("Stacked", func(t *testing.T) {
		blobtest.Run(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
			m, refs := memory(contents)
			return openStore(t, Config{}).Through(openStore(t, Config{}).Through(m)), refs
		})
	})
}

func TestLayoutOnDisk(t *testing.T) {
	dir := t.TempDir()
	content := blobtest.Bytes(1, int(3*DefaultPieceSize+100))
	m, refs := memory([][]byte{content})
	refs[0].MediaType = "application/vnd.oci.image.layer.v1.tar+gzip"
	s := openStore(t, Config{Dir: dir})
	warm(t, s.Through(m), refs)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	hex := refs[0].Digest.Encoded()
	folder := filepath.Join(dir, "blobs", "sha256", hex[:2], hex)
	data, err := os.ReadFile(filepath.Join(folder, "data"))
	if err != nil || !bytes.Equal(data, content) {
		t.Errorf("data is not the blob: %d bytes, %v", len(data), err)
	}
	journal, err := os.ReadFile(filepath.Join(folder, "pieces"))
	if err != nil {
		t.Fatal(err)
	}
	state, doubtful := decodeJournal(journal, 4)
	if !state.complete || len(doubtful) != 0 || int(state.records)*recordSize != len(journal) {
		t.Errorf("journal after a clean stop: complete %v, doubtful %v, %d of %d bytes valid",
			state.complete, doubtful, state.records*recordSize, len(journal))
	}
	text, err := os.ReadFile(filepath.Join(folder, "info.json"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeInfo(text)
	want := info{1, refs[0].Digest, int64(len(content)), 256 << 10, refs[0].MediaType, refs[0].Repository, ""}
	if err != nil || got != want {
		t.Errorf("info.json = %+v, %v, want %+v", got, err, want)
	}
}

func TestGeometry(t *testing.T) {
	for _, c := range []struct {
		size, pieceSize int64
		pieces          int
	}{
		{0, 256 * kib, 0},
		{1, 256 * kib, 1},
		{256 * kib, 256 * kib, 1},
		{256*kib + 1, 256 * kib, 2},
		{65536 * 256 * kib, 256 * kib, 65536},
		{65536*256*kib + 1, 512 * kib, 32769},
		{maxSize, 16 * mib, 65536},
	} {
		g := geometryOf(c.size, DefaultPieceSize)
		if g.pieceSize != c.pieceSize || g.pieces != c.pieces {
			t.Errorf("%d bytes: %d pieces of %d, want %d of %d", c.size, g.pieces, g.pieceSize, c.pieces, c.pieceSize)
		}
		var sum int64
		for i := range g.pieces {
			sum += g.length(i)
		}
		if sum != c.size {
			t.Errorf("%d bytes: pieces have %d", c.size, sum)
		}
	}
}

func TestRestartWithoutNetwork(t *testing.T) {
	dir := t.TempDir()
	contents := [][]byte{blobtest.Bytes(1, int(2*mib)), blobtest.Bytes(2, int(2*mib))}
	m, refs := memory(contents)
	s := openStore(t, Config{Dir: dir})
	warm(t, s.Through(m), refs[:1])
	part := blob.Range{Off: 700 * kib, Len: 10 * kib} // in the third piece
	mustRead(t, openBlob(t, s.Through(m), refs[1]), part, contents[1])
	settle(t, s, refs[1].Digest)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = openStore(t, Config{Dir: dir})
	src := s.Through(down{})
	for i := range refs {
		refs[i].Size = blob.SizeUnknown
	}
	mustRead(t, openBlob(t, src, refs[0]), whole(contents[0]), contents[0])
	b := openBlob(t, src, refs[1])
	mustRead(t, b, part, contents[1])
	if _, err := read(t.Context(), b, blob.Range{Len: 1}); !errors.Is(err, blob.Unavailable) {
		t.Errorf("read of a missing part with the network down: %v, want unavailable", err)
	}
	if _, err := read(t.Context(), openBlob(t, s.Local(), refs[1]), blob.Range{Len: 1}); !errors.Is(err, blob.NotFound) {
		t.Errorf("local read of a missing part: %v, want not found", err)
	}
	if i, err := s.Stat(refs[0].Digest); err != nil || !i.Complete {
		t.Errorf("stat after restart: %+v, %v; want complete", i, err)
	}
	if st := s.Stats(); st.FetchedBytes != 0 || st.HitBytes != 2*mib+10*kib {
		t.Errorf("fetched %d bytes and served %d from disk, want 0 and %d", st.FetchedBytes, st.HitBytes, 2*mib+10*kib)
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, Config{Dir: dir})
	if second, err := Open(Config{Dir: dir}); err == nil {
		second.Close()
		t.Error("a store was opened twice")
	} else if !errors.Is(err, blob.Busy) {
		t.Errorf("second open: kind %v, want busy: %v", blob.KindOf(err), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openStore(t, Config{Dir: dir})
}

func TestBadConfigIsRefused(t *testing.T) {
	for _, cfg := range []Config{
		{},
		{Dir: t.TempDir(), HighWater: 10, LowWater: 20},
		{Dir: t.TempDir(), HighWater: -1},
	} {
		if s, err := Open(cfg); err == nil {
			s.Close()
			t.Errorf("%+v was accepted", cfg)
		} else if !errors.Is(err, blob.Invalid) {
			t.Errorf("%+v: kind %v, want invalid: %v", cfg, blob.KindOf(err), err)
		}
	}
}

func TestClosedStore(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	m, refs := memory([][]byte{content})
	s := openStore(t, Config{})
	b := openBlob(t, s.Through(m), refs[0])
	mustRead(t, b, whole(content), content)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := read(t.Context(), b, whole(content)); !errors.Is(err, blob.Unavailable) {
		t.Errorf("read after close: %v, want unavailable", err)
	}
	if _, err := s.Through(m).Open(t.Context(), refs[0]); !errors.Is(err, blob.Unavailable) {
		t.Errorf("open after close: %v, want unavailable", err)
	}
}

func TestCloseEndsFetches(t *testing.T) {
	m, refs := memory([][]byte{blobtest.Bytes(1, int(mib))})
	asked := make(chan struct{})
	m.Before = func(ctx context.Context, _ blob.Ref, _ blob.Range) error {
		close(asked)
		<-ctx.Done()
		return ctx.Err()
	}
	s := openStore(t, Config{})
	b := openBlob(t, s.Through(m), refs[0])
	failed := make(chan error)
	go func() {
		_, err := read(t.Context(), b, blob.Range{Len: 1})
		failed <- err
	}()
	<-asked
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; !errors.Is(err, blob.Unavailable) {
		t.Errorf("read while the store was closed: %v, want unavailable", err)
	}
}

func TestInspect(t *testing.T) {
	contents := [][]byte{blobtest.Bytes(1, int(mib)), blobtest.Bytes(2, int(mib)+1)}
	m, refs := memory(contents)
	s := openStore(t, Config{})
	warm(t, s.Through(m), refs[:1])
	b := openBlob(t, s.Through(m), refs[1])
	mustRead(t, b, blob.Range{Off: 600 * kib, Len: 1}, contents[1])
	mustRead(t, b, blob.Range{Off: mib, Len: 1}, contents[1])
	for _, ref := range refs {
		settle(t, s, ref.Digest)
	}
	release := s.Pin(refs[0].Digest)

	got, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	want := []Info{
		{Digest: refs[0].Digest, Size: mib, Present: mib, Repository: refs[0].Repository, Complete: true, Pinned: true},
		{Digest: refs[1].Digest, Size: mib + 1, Present: 256*kib + 1, Repository: refs[1].Repository},
	}
	if want[0].Digest > want[1].Digest {
		want[0], want[1] = want[1], want[0]
	}
	for i := range got {
		if time.Since(got[i].LastUsed) > time.Hour {
			t.Errorf("last used at %v", got[i].LastUsed)
		}
		got[i].LastUsed = time.Time{}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}

	gaps, err := s.Missing(refs[1], blob.Range{Off: 1, Len: mib})
	wantGaps := []blob.Range{{Off: 1, Len: 512*kib - 1}, {Off: 768 * kib, Len: 256 * kib}}
	if diff := cmp.Diff(wantGaps, gaps); diff != "" || err != nil {
		t.Errorf("missing: %v (-want +got):\n%s", err, diff)
	}
	other := blob.Ref{Digest: digest.FromString("x"), Size: 100}
	if gaps, err := s.Missing(other, blob.Range{Off: 5, Len: 10}); err != nil || len(gaps) != 1 || gaps[0] != (blob.Range{Off: 5, Len: 10}) {
		t.Errorf("missing of an unknown blob = %v, %v", gaps, err)
	}
	if _, err := s.Missing(other, blob.Range{Off: 95, Len: 10}); !errors.Is(err, blob.Invalid) {
		t.Errorf("missing outside the blob: %v, want invalid", err)
	}

	if err := s.Remove(refs[0].Digest); !errors.Is(err, blob.Busy) {
		t.Errorf("remove of a pinned blob: %v, want busy", err)
	}
	if err := s.Remove(refs[1].Digest); !errors.Is(err, blob.Busy) {
		t.Errorf("remove of an open blob: %v, want busy", err)
	}
	release()
	release()
	if err := s.Remove(refs[0].Digest); err != nil {
		t.Errorf("remove: %v", err)
	}
	if _, err := s.Stat(refs[0].Digest); !errors.Is(err, blob.NotFound) {
		t.Errorf("stat after remove: %v, want not found", err)
	}
	if err := s.Remove(refs[0].Digest); !errors.Is(err, blob.NotFound) {
		t.Errorf("remove again: %v, want not found", err)
	}
	if st := s.Stats(); st.Used != 256*kib+1 || st.Blobs != 1 {
		t.Errorf("used %d bytes by %d blobs, want %d by 1", st.Used, st.Blobs, 256*kib+1)
	}
}

func TestSizeContradiction(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	m, refs := memory([][]byte{content})
	s := openStore(t, Config{})
	src := s.Through(m)
	wrong := refs[0]
	wrong.Size = mib - 1

	b := openBlob(t, src, wrong)
	if _, err := read(t.Context(), b, blob.Range{Len: 10}); !errors.Is(err, blob.Corrupt) {
		t.Errorf("read by a wrong size: %v, want corrupt", err)
	}
	if _, err := src.Open(t.Context(), refs[0]); !errors.Is(err, blob.Corrupt) {
		t.Errorf("open while another reads by a different size: %v, want corrupt", err)
	}
	b.Close()
	quiet(s, refs[0].Digest)
	mustRead(t, openBlob(t, src, refs[0]), whole(content), content)
	settle(t, s, refs[0].Digest)
	if _, err := src.Open(t.Context(), wrong); !errors.Is(err, blob.Corrupt) {
		t.Errorf("open of a complete blob by a wrong size: %v, want corrupt", err)
	}
}

func TestWriteTo(t *testing.T) {
	content := blobtest.Bytes(1, int(3*mib)+5)
	m, refs := memory([][]byte{content})
	s := openStore(t, Config{})
	for _, state := range []string{"cold", "warm"} {
		rc, err := openBlob(t, s.Through(m), refs[0]).ReadRange(t.Context(), whole(content))
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		n, err := rc.(io.WriterTo).WriteTo(&out)
		rc.Close()
		if err != nil || n != int64(len(content)) || !bytes.Equal(out.Bytes(), content) {
			t.Errorf("%s: wrote %d bytes, %v", state, n, err)
		}
	}
}
