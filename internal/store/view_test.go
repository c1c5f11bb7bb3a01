package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"testing"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// views is a source whose readers have bytes in memory, chunk bytes at a time. It
// overwrites them when they are not lent any more.
type views struct {
	blob.Source
	chunk int

	mu     sync.Mutex
	places map[*byte]bool // where bytes were lent, every 4 KiB of them
}

// lent returns a copy of p that is lent.
func (v *views) lent(p []byte) []byte {
	q := bytes.Clone(p)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.places == nil {
		v.places = map[*byte]bool{}
	}
	for i := 0; i < len(q); i += 4 << 10 {
		v.places[&q[i]] = true
	}
	return q
}

// has reports whether p, which is not empty, begins at such a place.
func (v *views) has(p []byte) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.places[&p[0]]
}

func (v *views) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	b, err := v.Source.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	return &viewsBlob{b, v}, nil
}

type viewsBlob struct {
	blob.Blob
	v *views
}

func (b *viewsBlob) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	rc, err := b.Blob.ReadRange(ctx, r)
	if err != nil {
		return nil, err
	}
	return &viewsReader{ReadCloser: rc, v: b.v}, nil
}

// ReadRanges lends what it lands.
func (b *viewsBlob) ReadRanges(ctx context.Context, ranges []blob.Range, land blob.Land) error {
	if err := blob.CheckRanges(ranges, b.Size()); err != nil {
		return err
	}
	buf := make([]byte, b.v.chunk)
	for i, r := range ranges {
		err := blob.LandRange(ctx, b.Blob, r, buf, func(off int64, p []byte) error {
			q := b.v.lent(p)
			defer clear(q)
			return land(i, off, q)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// viewsReader reads as usual, too.
type viewsReader struct {
	io.ReadCloser
	v    *views
	last []byte
}

func (r *viewsReader) View() ([]byte, error) {
	clear(r.last)
	p := make([]byte, r.v.chunk)
	n, err := io.ReadFull(r.ReadCloser, p)
	if err == io.ErrUnexpectedEOF {
		err = nil // the next call says that it ended
	}
	r.last = r.v.lent(p[:n])
	return r.last, err
}

func (r *viewsReader) Close() error {
	clear(r.last)
	return r.ReadCloser.Close()
}

func TestConformanceViews(t *testing.T) {
	for _, chunk := range []int64{700, 256*kib + 1} {
		for _, cfg := range []Config{{}, exact("")} {
			t.Run(fmt.Sprintf("%dOf%d", chunk, cfg.PieceSize), func(t *testing.T) {
				open := func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
					m, refs := memory(contents)
					return openStore(t, cfg).Through(&views{Source: m, chunk: int(chunk)}), refs
				}
				blobtest.Run(t, open)
				blobtest.RunSeveral(t, open)
			})
		}
	}
}

// Blocks that a source has whole are written from its memory.
func TestWholeBlocksAreNotCopied(t *testing.T) {
	const size = 2*mib + 300
	content := blobtest.Bytes(1, int(size))
	m, refs := memory([][]byte{content})
	one := []blob.Range{{Len: size}}
	two := []blob.Range{{Len: 768 * kib}, {Off: mib, Len: size - mib}}
	for _, c := range []struct {
		chunk        int64
		ranges       []blob.Range
		lent, copied int // blocks
	}{
		{256 * kib, one, 9, 0}, // the last one is short
		{256 * kib, two, 8, 0},
		{512 * kib, one, 9, 0}, // several each
		{512 * kib, two, 8, 0},
		{100 * kib, one, 1, 8}, // but for the last, which is in one chunk
		{100 * kib, two, 1, 7},
		{260 * kib, one, 2, 7}, // the first and the last
		{260 * kib, two, 3, 5},
	} {
		v := &views{Source: m, chunk: int(c.chunk)}
		var mu sync.Mutex
		var lent, copied int
		s := openStore(t, Config{FS: FS{Before: func(op Op) error {
			if op.Name != OpWrite || filepath.Base(op.Path) != dataName {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			if v.has(op.Data) {
				lent++
			} else {
				copied++
			}
			return nil
		}}})
		b := openBlob(t, s.Through(v), refs[0])
		if err := b.(Keeper).Keep(t.Context(), c.ranges); err != nil {
			t.Fatal(err)
		}
		settle(t, s, refs[0].Digest)
		var want int64
		for _, r := range c.ranges {
			mustRead(t, b, r, content)
			want += r.Len
		}
		if got := s.Stats().FetchedBytes; got != want {
			t.Errorf("%d ranges by %d: fetched %d bytes, want %d", len(c.ranges), c.chunk, got, want)
		}
		mu.Lock()
		if lent != c.lent || copied != c.copied {
			t.Errorf("%d ranges by %d: wrote %d lent blocks and %d copies, want %d and %d", len(c.ranges), c.chunk, lent, copied, c.lent, c.copied)
		}
		mu.Unlock()
	}
}

// Readers get bytes of a block while it is written from where it is lent.
func TestLentBytesAreServedAsTheyArrive(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	m, refs := memory([][]byte{content})
	served := make(chan struct{})
	s := openStore(t, Config{FS: FS{Before: func(op Op) error {
		if op.Name == OpWrite && filepath.Base(op.Path) == dataName {
			<-served
		}
		return nil
	}}})
	b := openBlob(t, s.Through(&views{Source: m, chunk: int(256 * kib)}), refs[0])
	first := readRange(t, t.Context(), b, whole(content))
	second := readRange(t, t.Context(), b, blob.Range{Off: 500, Len: mib - 500})
	var got [2][1000]byte
	for i, rc := range []io.Reader{first, second} {
		if _, err := io.ReadFull(rc, got[i][:]); err != nil {
			t.Fatal(err)
		}
	}
	close(served)
	for i, rc := range []io.Reader{first, second} {
		rest, err := io.ReadAll(rc)
		if err != nil || !bytes.Equal(append(got[i][:], rest...), content[i*500:]) {
			t.Errorf("reader %d: %d bytes, %v", i, 1000+len(rest), err)
		}
	}
}

func TestLentBytesThatCannotBeKept(t *testing.T) {
	content := blobtest.Bytes(1, int(4*mib))
	m, refs := memory([][]byte{content})
	d := &disk{match: func(op Op) bool { return filepath.Base(op.Path) == dataName && op.Off >= 2*mib }}
	s := openStore(t, Config{FS: d.fs()})
	d.fail(errNoSpace, OpWrite)
	b := openBlob(t, s.Through(&views{Source: m, chunk: int(512 * kib)}), refs[0])
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			p, err := read(t.Context(), b, whole(content))
			if err != nil || !bytes.Equal(p, content) {
				t.Errorf("read: %v, or wrong content", err)
			}
		})
	}
	wg.Wait()
	mustRead(t, b, whole(content), content)
	if st := s.Stats(); !st.Full || st.Used != 2*mib || st.PassedBytes < 2*mib {
		t.Errorf("full %v, used %d, passed %d", st.Full, st.Used, st.PassedBytes)
	}
}

func TestShortViewsAreCorrupt(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	m, refs := memory([][]byte{content})
	s := openStore(t, Config{})
	b := openBlob(t, s.Through(&views{Source: short{m}, chunk: int(300 * kib)}), refs[0])
	if p, err := read(t.Context(), b, whole(content)); !errors.Is(err, blob.Corrupt) {
		t.Errorf("read: %d bytes, %v, want corrupt", len(p), err)
	}
	settle(t, s, refs[0].Digest)
	// It may have been asked again for what did not come.
	gaps, err := s.Missing(refs[0], whole(content))
	if err != nil || len(gaps) != 1 || gaps[0].Off < 512*kib || gaps[0].End() != mib {
		t.Fatalf("missing: %v, %v, want what came to be kept", gaps, err)
	}
	mustRead(t, openBlob(t, s.Local(), refs[0]), blob.Range{Len: gaps[0].Off}, content)
}

// What is in a view beyond the end of a fetch, which moved meanwhile, is left to
// whoever fetches that.
func TestViewsBehindAnEndThatMoved(t *testing.T) {
	const size = 8 << 20
	content := blobtest.Bytes(1, size)
	src := newTap(content)
	ref := blob.Ref{Digest: digestOf(content), Size: size}
	s := openStore(t, Config{})
	b := openBlob(t, s.Through(&views{Source: src, chunk: int(300 * kib)}), ref)
	background := readRange(t, blob.WithPriority(t.Context(), blob.Background), b, blob.Range{Len: size})
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if p, err := io.ReadAll(background); err != nil || !bytes.Equal(p, content) {
			t.Errorf("background read: %d bytes, %v", len(p), err)
		}
	})
	<-src.asked
	wg.Go(func() {
		if _, err := read(t.Context(), b, blob.Range{Off: 600 * kib, Len: 10}); err != nil {
			t.Error(err)
		}
	})
	if got, want := <-src.asked, (blob.Range{Off: 512 * kib, Len: 256 * kib}); got != want {
		t.Errorf("demand read asked for %v, want %v", got, want)
	}
	src.flow(size)
	wg.Wait()
	if got := s.Stats().FetchedBytes; got != size {
		t.Errorf("fetched %d bytes, want each once: %d", got, size)
	}
}
