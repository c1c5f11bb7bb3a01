package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// recorder notes which ranges a Memory was asked for.
type recorder struct {
	mu     sync.Mutex
	ranges []blob.Range
}

func (r *recorder) before(_ context.Context, _ blob.Ref, rg blob.Range) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ranges = append(r.ranges, rg)
	return nil
}

func (r *recorder) take() []blob.Range {
	r.mu.Lock()
	defer r.mu.Unlock()
	got := r.ranges
	r.ranges = nil
	return got
}

// tap is a source of one blob whose bytes come as far as the test lets them.
type tap struct {
	content []byte

	mu      sync.Mutex
	open    int64         // bytes before this offset flow
	opened  chan struct{} // closed and replaced when open grows
	asked   chan blob.Range
	stopped chan error // the end of each reader's context, once it has been noticed
}

func newTap(content []byte) *tap {
	return &tap{content: content, opened: make(chan struct{}), asked: make(chan blob.Range, 100), stopped: make(chan error, 100)}
}

func (s *tap) flow(to int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = to
	close(s.opened)
	s.opened = make(chan struct{})
}

func (s *tap) Open(context.Context, blob.Ref) (blob.Blob, error) { return s, nil }
func (s *tap) Size() int64                                       { return int64(len(s.content)) }
func (s *tap) Close() error                                      { return nil }

func (s *tap) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	s.asked <- r
	return &tapReader{s: s, ctx: ctx, off: r.Off, end: r.End()}, nil
}

type tapReader struct {
	s        *tap
	ctx      context.Context
	off, end int64
	told     bool
}

// Close tells of the end of the context where no Read did: whoever reads may
// have noticed it first.
func (r *tapReader) Close() error {
	r.tell()
	return nil
}

func (r *tapReader) tell() {
	if err := r.ctx.Err(); err != nil && !r.told {
		r.told = true
		r.s.stopped <- err
	}
}

func (r *tapReader) Read(p []byte) (int, error) {
	for {
		r.s.mu.Lock()
		open, opened := r.s.open, r.s.opened
		r.s.mu.Unlock()
		if r.off == r.end {
			return 0, io.EOF
		}
		if n := min(int64(len(p)), r.end-r.off, open-r.off); n > 0 {
			copy(p, r.s.content[r.off:r.off+n])
			r.off += n
			return int(n), nil
		}
		select {
		case <-opened:
		case <-r.ctx.Done():
			r.tell()
			return 0, r.ctx.Err()
		}
	}
}

func readRange(t *testing.T, ctx context.Context, b blob.Blob, r blob.Range) io.ReadCloser {
	t.Helper()
	rc, err := b.ReadRange(ctx, r)
	if err != nil {
		t.Fatalf("read %v: %v", r, err)
	}
	t.Cleanup(func() { rc.Close() })
	return rc
}

func TestRunSizes(t *testing.T) {
	content := blobtest.Bytes(1, int(32*mib))
	m, refs := memory([][]byte{content})
	var rec recorder
	m.Before = rec.before
	s := openStore(t, Config{})
	b := openBlob(t, s.Through(m), refs[0])
	expect := func(what string, want ...blob.Range) {
		t.Helper()
		settle(t, s, refs[0].Digest)
		if diff := cmp.Diff(want, rec.take()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
	const k = 1 << 10

	mustRead(t, b, blob.Range{Off: 20<<20 + 5, Len: 100}, content)
	expect("a small read", blob.Range{Off: 20 << 20, Len: 256 * k})
	mustRead(t, b, blob.Range{Off: 10<<20 - 5, Len: 10}, content)
	expect("a small read across two pieces", blob.Range{Off: 10<<20 - 256*k, Len: 512 * k})
	mustRead(t, b, blob.Range{Off: 10<<20 - 100, Len: 4 * k}, content)
	expect("a read of what is there")

	b = openBlob(t, s.Through(m), refs[0])
	for off := int64(0); off < 3<<20; off += 64 * k {
		mustRead(t, b, blob.Range{Off: off, Len: 64 * k}, content)
		settle(t, s, refs[0].Digest)
	}
	expect("sequential small reads",
		blob.Range{Off: 0, Len: 256 * k}, blob.Range{Off: 256 * k, Len: 512 * k},
		blob.Range{Off: 768 * k, Len: 1024 * k}, blob.Range{Off: 1792 * k, Len: 2048 * k})

	b = openBlob(t, s.Through(m), refs[0])
	mustRead(t, b, whole(content), content)
	settle(t, s, refs[0].Digest)
	var sum, longest int64
	for _, r := range rec.take() {
		sum += r.Len
		longest = max(longest, r.Len)
	}
	if have := int64(256*k + 512*k + 3840*k); sum != 32<<20-have || longest != 8<<20 {
		t.Errorf("the rest of the blob came as %d bytes, at most %d at once; want %d, at most 8 MiB", sum, longest, 32<<20-have)
	}

	// Nobody is blocked on a background read: it gets what it asked for.
	m, refs = memory([][]byte{content})
	m.Before = rec.before
	b = openBlob(t, openStore(t, Config{}).Through(m), refs[0])
	ctx := blob.WithPriority(t.Context(), blob.Background)
	for i := range int64(4) {
		if _, err := read(ctx, b, blob.Range{Off: i << 20, Len: 1 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(rec.take()); got != 4 {
		t.Errorf("4 background reads made %d fetches", got)
	}
}

func TestOneFetchForManyReaders(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	m, refs := memory([][]byte{content})
	const readers = 20
	var rec recorder
	asked, joined := make(chan struct{}, readers), make(chan struct{})
	m.Before = func(ctx context.Context, ref blob.Ref, r blob.Range) error {
		asked <- struct{}{}
		<-joined
		return rec.before(ctx, ref, r)
	}
	s := openStore(t, Config{})
	var wg sync.WaitGroup
	for range readers {
		// Different sources and open blobs share fetches all the same.
		b := openBlob(t, s.Through(m), refs[0])
		wg.Go(func() {
			p, err := read(t.Context(), b, whole(content))
			if err != nil || !bytes.Equal(p, content) {
				t.Errorf("read: %v", err)
			}
		})
	}
	<-asked
	for s.Stats().Joins < readers-1 {
		// The readers that did not ask all join; nothing else is under way.
		if len(asked) > 0 {
			t.Fatal("a second fetch was made")
		}
		runtime.Gosched()
	}
	close(joined)
	wg.Wait()
	if got := rec.take(); len(got) != 1 {
		t.Errorf("%d readers made %d fetches: %v", readers, len(got), got)
	}
	if st := s.Stats(); st.FetchedBytes != mib {
		t.Errorf("fetched %d bytes, want %d", st.FetchedBytes, mib)
	}
}

func TestBytesAreServedAsTheyArrive(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	src := newTap(content)
	ref := blob.Ref{Digest: digestOf(content), Size: mib}
	b := openBlob(t, openStore(t, Config{}).Through(src), ref)
	rc := readRange(t, t.Context(), b, whole(content))
	second := readRange(t, t.Context(), b, blob.Range{Off: 500, Len: mib - 500})
	var got []byte
	for _, to := range []int64{1000, 1001, 300 * kib, 700*kib + 3, mib} {
		src.flow(to)
		p := make([]byte, min(to, mib-1)-int64(len(got)))
		if _, err := io.ReadFull(rc, p); err != nil {
			t.Fatalf("read up to %d: %v", to, err)
		}
		got = append(got, p...)
		p = make([]byte, 100)
		if _, err := io.ReadFull(second, p); err != nil {
			t.Fatalf("second reader: %v", err)
		}
	}
	rest, err := io.ReadAll(rc)
	if got = append(got, rest...); err != nil || !bytes.Equal(got, content) {
		t.Errorf("whole: %d bytes, %v", len(got), err)
	}
}

// Who begins where another one fetches, and goes on beyond that, has the rest fetched
// meanwhile.
func TestWhatFollowsTheFetchOfAnotherIsAskedForAtOnce(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	src := newTap(content)
	ref := blob.Ref{Digest: digestOf(content), Size: mib}
	s := openStore(t, Config{})
	b := openBlob(t, s.Through(src), ref)
	src.flow(10)
	first := readRange(t, t.Context(), b, blob.Range{Len: 256 * kib})
	if _, err := io.ReadFull(first, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if got := <-src.asked; got.End() != 256*kib {
		t.Fatalf("the first asked for %v", got)
	}
	r := blob.Range{Off: 200 * kib, Len: 300 * kib}
	second := readRange(t, t.Context(), b, r)
	read := make(chan error, 1)
	var got []byte
	go func() {
		var err error
		got, err = io.ReadAll(second)
		read <- err
	}()
	if got := <-src.asked; got.Off != 256*kib {
		t.Errorf("while the first fetch waits, %v was asked for", got)
	}
	src.flow(mib)
	if err := <-read; err != nil || !bytes.Equal(got, content[r.Off:r.End()]) {
		t.Errorf("the second reader has %d bytes, %v", len(got), err)
	}
}

func TestFetchOutlivesItsReaderWhileOthersWait(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	src := newTap(content)
	ref := blob.Ref{Digest: digestOf(content), Size: mib}
	s := openStore(t, Config{})
	b := openBlob(t, s.Through(src), ref)
	src.flow(10)
	ctx, cancel := context.WithCancel(t.Context())
	first := readRange(t, ctx, b, whole(content))
	second := readRange(t, t.Context(), b, whole(content))
	for _, rc := range []io.Reader{first, second} {
		if _, err := io.ReadFull(rc, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if _, err := first.Read(make([]byte, 10)); blob.KindOf(err) != blob.Canceled {
		t.Errorf("cancelled reader: %v", err)
	}
	src.flow(mib)
	if p, err := io.ReadAll(second); err != nil || !bytes.Equal(p, content[10:]) {
		t.Errorf("other reader: %d bytes, %v", len(p), err)
	}
	if n := len(src.asked); n != 1 {
		t.Errorf("%d fetches were made, want 1", n)
	}
}

func TestFetchNobodyWaitsForIsCancelled(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	src := newTap(content)
	ref := blob.Ref{Digest: digestOf(content), Size: mib}
	s := openStore(t, Config{})
	b := openBlob(t, s.Through(src), ref)
	src.flow(300 * kib)
	rc := readRange(t, t.Context(), b, whole(content))
	if _, err := io.ReadFull(rc, make([]byte, 300*kib)); err != nil {
		t.Fatal(err)
	}
	rc.Close()
	if err := <-src.stopped; !errors.Is(err, context.Canceled) {
		t.Errorf("fetch ended with %v", err)
	}
	settle(t, s, ref.Digest)
	if i, err := s.Stat(ref.Digest); err != nil || i.Present != 256*kib {
		t.Errorf("after a cancelled fetch: %+v, %v; want the first piece", i, err)
	}
	src.flow(mib)
	mustRead(t, b, whole(content), content)
}

func TestFetchGoesOnForReadersThatGotWhatTheyWanted(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	src := newTap(content)
	ref := blob.Ref{Digest: digestOf(content), Size: mib}
	s := openStore(t, Config{})
	b := openBlob(t, s.Through(src), ref)
	src.flow(100)
	mustRead(t, b, blob.Range{Len: 100}, content)
	src.flow(mib)
	settle(t, s, ref.Digest)
	if i, err := s.Stat(ref.Digest); err != nil || i.Present != 256*kib {
		t.Errorf("after a read of 100 bytes: %+v, %v; want one piece", i, err)
	}
}

func TestDemandDoesNotWaitForBackground(t *testing.T) {
	const size = 16 << 20
	content := blobtest.Bytes(1, size)
	src := newTap(content)
	ref := blob.Ref{Digest: digestOf(content), Size: size}
	s := openStore(t, Config{})
	b := openBlob(t, s.Through(src), ref)
	background := readRange(t, blob.WithPriority(t.Context(), blob.Background), b, blob.Range{Len: size})
	src.flow(10)
	if _, err := io.ReadFull(background, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if got := <-src.asked; got != (blob.Range{Len: 8 << 20}) {
		t.Fatalf("background read asked for %v", got)
	}

	// A blocked reader wants the third piece: it asks for it at once, and the
	// background fetch stops there.
	done := make(chan error)
	go func() {
		_, err := read(t.Context(), b, blob.Range{Off: 600 * kib, Len: 10})
		done <- err
	}()
	if got := <-src.asked; got != (blob.Range{Off: 512 * kib, Len: 256 * kib}) {
		t.Errorf("demand read asked for %v", got)
	}
	src.flow(size)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if p, err := io.ReadAll(background); err != nil || !bytes.Equal(p, content[10:]) {
		t.Errorf("background read: %d bytes, %v", len(p), err)
	}
	if got := s.Stats().FetchedBytes; got != size {
		t.Errorf("fetched %d bytes, want each once: %d", got, size)
	}
}

func TestFailedFetchFailsOnlyItsReaders(t *testing.T) {
	content := blobtest.Bytes(1, int(4*mib))
	m, refs := memory([][]byte{content})
	var mu sync.Mutex
	broken := true
	m.Before = func(_ context.Context, _ blob.Ref, r blob.Range) error {
		mu.Lock()
		defer mu.Unlock()
		if broken && r.Off == 0 {
			return blob.Errorf(blob.Busy, "come back later")
		}
		return nil
	}
	b := openBlob(t, openStore(t, Config{}).Through(m), refs[0])
	if _, err := read(t.Context(), b, blob.Range{Len: 10}); !errors.Is(err, blob.Busy) {
		t.Errorf("read: %v, want busy", err)
	}
	mustRead(t, b, blob.Range{Off: 3 * mib, Len: 100}, content)
	mu.Lock()
	broken = false
	mu.Unlock()
	mustRead(t, b, blob.Range{Len: 10}, content)
}

func TestReaderOfAnotherSourceTriesItsOwn(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	m, refs := memory([][]byte{content})
	asked, fail := make(chan struct{}), make(chan struct{})
	bad := &blobtest.Memory{Before: func(context.Context, blob.Ref, blob.Range) error {
		close(asked)
		<-fail
		return blob.Errorf(blob.Forbidden, "not for you")
	}}
	bad.Add(content)
	s := openStore(t, Config{})
	first, second := openBlob(t, s.Through(bad), refs[0]), openBlob(t, s.Through(m), refs[0])
	done := make(chan error)
	go func() {
		_, err := read(t.Context(), first, blob.Range{Len: 10})
		done <- err
	}()
	<-asked
	rc := readRange(t, t.Context(), second, blob.Range{Len: 10})
	go func() {
		for s.Stats().Joins == 0 {
			runtime.Gosched()
		}
		close(fail)
	}()
	if p, err := io.ReadAll(rc); err != nil || !bytes.Equal(p, content[:10]) {
		t.Errorf("reader whose own source works: %q, %v", p, err)
	}
	if err := <-done; !errors.Is(err, blob.Forbidden) {
		t.Errorf("reader whose source fails: %v, want forbidden", err)
	}
}

// short is a source whose readers end early without an error.
type short struct{ blob.Source }

func (s short) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	b, err := s.Source.Open(ctx, ref)
	return shortBlob{b}, err
}

type shortBlob struct{ blob.Blob }

func (b shortBlob) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	return b.Blob.ReadRange(ctx, blob.Range{Off: r.Off, Len: r.Len / 2})
}

func TestShortSourceIsCorrupt(t *testing.T) {
	content := blobtest.Bytes(1, int(mib))
	m, refs := memory([][]byte{content})
	d := &disk{}
	s := openStore(t, Config{FS: d.fs()})
	b := openBlob(t, s.Through(short{m}), refs[0])
	if p, err := read(t.Context(), b, whole(content)); !errors.Is(err, blob.Corrupt) {
		t.Errorf("read: %d bytes, %v, want corrupt", len(p), err)
	}
	d.fail(errNoSpace, OpWrite)
	s.noRoom(errNoSpace)
	if _, err := read(t.Context(), b, blob.Range{Off: 900 * kib, Len: 100}); !errors.Is(err, blob.Corrupt) {
		t.Errorf("read passing through: %v, want corrupt", err)
	}
	d.fail(nil)
}
