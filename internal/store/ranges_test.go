package store

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// many is a source of one blob that takes several ranges in one request. It
// counts requests and how often each byte was sent.
type many struct {
	content []byte
	reverse bool // send the last range first
	// before, where set, is called ahead of each range and may block or fail.
	before func(ctx context.Context, r blob.Range) error

	mu       sync.Mutex
	requests [][]blob.Range // mu guards
	sent     []uint8        // mu guards; times, by byte
}

func newMany(content []byte) *many { return &many{content: content, sent: make([]uint8, len(content))} }

func (m *many) ref() blob.Ref {
	return blob.Ref{Digest: digestOf(m.content), Size: int64(len(m.content))}
}

func (m *many) Open(_ context.Context, ref blob.Ref) (blob.Blob, error) {
	if ref.Digest != digestOf(m.content) {
		return nil, blob.Errorf(blob.NotFound, "open %v: another", ref)
	}
	return m, nil
}
func (m *many) Size() int64  { return int64(len(m.content)) }
func (m *many) Close() error { return nil }

func (m *many) take() [][]blob.Range {
	m.mu.Lock()
	defer m.mu.Unlock()
	got := m.requests
	m.requests = nil
	return got
}

func (m *many) ask(rs ...blob.Range) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.requests = append(m.requests, slices.Clone(rs))
}

// most returns how often the byte sent most often was sent, and how many
// bytes were sent.
func (m *many) most() (times uint8, bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.sent {
		times = max(times, n)
		bytes += int64(n)
	}
	return times, bytes
}

func (m *many) send(ctx context.Context, r blob.Range) ([]byte, error) {
	if m.before != nil {
		if err := m.before(ctx, r); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := r.Off; i < r.End(); i++ {
		m.sent[i]++
	}
	return m.content[r.Off:r.End()], nil
}

func (m *many) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	m.ask(r)
	return &manyReader{m: m, ctx: ctx, r: r}, nil
}

type manyReader struct {
	m   *many
	ctx context.Context
	r   blob.Range
}

func (r *manyReader) Close() error { return nil }
func (r *manyReader) Read(p []byte) (int, error) {
	if r.r.Len == 0 {
		return 0, io.EOF
	}
	n := min(r.r.Len, int64(len(p)), 3000)
	q, err := r.m.send(r.ctx, blob.Range{Off: r.r.Off, Len: n})
	r.r.Off, r.r.Len = r.r.Off+int64(len(q)), r.r.Len-int64(len(q))
	return copy(p, q), err
}

func (m *many) ReadRanges(ctx context.Context, rs []blob.Range, land blob.Land) error {
	if err := blob.CheckRanges(rs, m.Size()); err != nil {
		return err
	}
	m.ask(rs...)
	for k, r := range rs {
		i := k
		if m.reverse {
			i = len(rs) - 1 - k
			r = rs[i]
		}
		p, err := m.send(ctx, r)
		if err != nil {
			return err
		}
		for off := 0; off < len(p); off += 5000 {
			if err := land(i, r.Off+int64(off), p[off:min(len(p), off+5000)]); err != nil {
				return err
			}
		}
	}
	return nil
}

// readMany reads rs of b and compares.
func readMany(t testing.TB, ctx context.Context, b blob.Blob, rs []blob.Range, content []byte) error {
	t.Helper()
	l := blobtest.NewLanding(rs)
	err := blob.ReadRanges(ctx, b, rs, l.Land)
	if err := l.Check(content, err == nil); err != nil {
		t.Error(err)
	}
	return err
}

func TestConformanceSeveralRanges(t *testing.T) {
	for _, reverse := range []bool{false, true} {
		blobtest.RunSeveral(t, func(t *testing.T, contents [][]byte) (blob.Source, []blob.Ref) {
			m := newMany(contents[0])
			m.reverse = reverse
			return openStore(t, exact("")).Through(m), []blob.Ref{m.ref()}
		})
	}
}

func TestSeveralRangesAreOneRequest(t *testing.T) {
	const k = 1 << 10
	m := newMany(blobtest.Bytes(1, int(8*mib)))
	s := openStore(t, exact(""))
	b := openBlob(t, s.Through(m), m.ref())
	mustRead(t, b, blob.Range{Off: 200 * k, Len: 10}, m.content)
	settle(t, s, m.ref().Digest)
	m.take()

	rs := []blob.Range{
		{Off: 5, Len: 10},            // one piece
		{Off: 20 * k, Len: 20 * k},   // the two that follow, so one run
		{Off: 100*k - 1, Len: 2},     // apart
		{Off: 190 * k, Len: 30 * k},  // around a held piece
		{Off: 220 * k, Len: 10},      // in a piece of the range before
		{Off: 8*mib - 100, Len: 100}, // the end
	}
	if err := readMany(t, t.Context(), b, rs, m.content); err != nil {
		t.Fatal(err)
	}
	want := [][]blob.Range{{
		{Off: 0, Len: 48 * k}, {Off: 96 * k, Len: 16 * k}, {Off: 176 * k, Len: 16 * k},
		{Off: 208 * k, Len: 16 * k}, {Off: 8*mib - 16*k, Len: 16 * k},
	}}
	if diff := cmp.Diff(want, m.take()); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	if st := s.Stats(); st.HitBytes != 16*k || st.Joins != 0 || st.FetchedBytes != (16+48+16*4)*k {
		t.Errorf("hit %d, fetched %d bytes, %d joins; want one piece, 8, none", st.HitBytes, st.FetchedBytes, st.Joins)
	}
	if err := readMany(t, t.Context(), b, rs, m.content); err != nil {
		t.Fatal(err)
	}
	if got := m.take(); len(got) != 0 {
		t.Errorf("what is held was asked for again: %v", got)
	}
}

func TestManyBytesAreSeveralRequests(t *testing.T) {
	m := newMany(blobtest.Bytes(1, int(8*mib)))
	cfg := exact("")
	cfg.SequentialRun = mib
	b := openBlob(t, openStore(t, cfg).Through(m), m.ref())
	var rs []blob.Range
	for off := int64(0); off < 4*mib; off += 200 * kib {
		rs = append(rs, blob.Range{Off: off, Len: 100 * kib})
	}
	rs = append(rs, blob.Range{Off: 5 * mib, Len: 3 * mib})
	if err := readMany(t, t.Context(), b, rs, m.content); err != nil {
		t.Fatal(err)
	}
	for _, got := range m.take() {
		var sum int64
		for _, r := range got {
			sum += r.Len
		}
		if sum > mib+128*kib {
			t.Errorf("%d bytes were asked for at once: %v", sum, got)
		}
	}
	if times, _ := m.most(); times != 1 {
		t.Errorf("a byte was sent %d times", times)
	}
}

// TestSeveralAndSingleReadsFetchOnce has readers of both kinds at work on the
// same parts.
func TestSeveralAndSingleReadsFetchOnce(t *testing.T) {
	m := newMany(blobtest.Bytes(1, int(2*mib)))
	s := openStore(t, exact(""))
	var wg sync.WaitGroup
	for g := range uint64(12) {
		b := openBlob(t, s.Through(m), m.ref())
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(g, 1))
			for k := range uint64(6) {
				if g%3 == 0 {
					off := rng.Int64N(2*mib - 50_000)
					mustReadErr(t, b, blob.Range{Off: off, Len: 50_000}, m.content)
				} else if err := readMany(t, t.Context(), b, blobtest.Several(k+g%2, 20, 2*mib), m.content); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	times, sum := m.most()
	if times != 1 {
		t.Errorf("a byte was sent %d times, want once", times)
	}
	settle(t, s, m.ref().Digest)
	if i, err := s.Stat(m.ref().Digest); err != nil || i.Present != sum || s.Stats().FetchedBytes != sum {
		t.Errorf("sent %d bytes, fetched %d, held %d, %v", sum, s.Stats().FetchedBytes, i.Present, err)
	}
}

// mustReadErr is mustRead for goroutines.
func mustReadErr(t *testing.T, b blob.Blob, r blob.Range, content []byte) {
	if p, err := read(t.Context(), b, r); err != nil || !slices.Equal(p, content[r.Off:r.End()]) {
		t.Errorf("read %v: %v", r, err)
	}
}

func TestSeveralRangesCutOff(t *testing.T) {
	m := newMany(blobtest.Bytes(1, int(8*mib)))
	s := openStore(t, exact(""))
	broken := true
	m.before = func(_ context.Context, r blob.Range) error {
		if broken && r.Off >= 4*mib {
			return blob.Errorf(blob.Unavailable, "cut off")
		}
		return nil
	}
	var rs []blob.Range
	for i := range int64(8) {
		rs = append(rs, blob.Range{Off: i*mib + 1000, Len: 100})
	}
	b := openBlob(t, s.Through(m), m.ref())
	if err := readMany(t, t.Context(), b, rs, m.content); !errors.Is(err, blob.Unavailable) {
		t.Errorf("read that is cut off: %v, want unavailable", err)
	}
	settle(t, s, m.ref().Digest)
	if i, err := s.Stat(m.ref().Digest); err != nil || i.Present != 4*16*kib {
		t.Errorf("after a cut-off: %+v, %v; want what came before it", i, err)
	}
	m.take()
	broken = false
	if err := readMany(t, t.Context(), b, rs, m.content); err != nil {
		t.Error(err)
	}
	if got := m.take(); len(got) != 1 || len(got[0]) != 4 {
		t.Errorf("afterwards %v was asked for, want the 4 that are missing", got)
	}
	if times, _ := m.most(); times != 1 {
		t.Errorf("a byte was sent %d times", times)
	}
}

// TestSeveralRangesOneCallerLeaves cancels the one of two callers that made
// the request.
func TestSeveralRangesOneCallerLeaves(t *testing.T) {
	m := newMany(blobtest.Bytes(1, int(8*mib)))
	s := openStore(t, exact(""))
	asked, flow := make(chan context.Context, 100), make(chan struct{})
	m.before = func(ctx context.Context, _ blob.Range) error {
		asked <- ctx
		select {
		case <-flow:
		case <-ctx.Done():
		}
		return ctx.Err()
	}
	b := openBlob(t, s.Through(m), m.ref())
	rs := []blob.Range{{Off: 0, Len: 100}, {Off: mib, Len: 100}, {Off: 2 * mib, Len: 100}}
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { first <- readMany(t, ctx, b, rs, m.content) })
	fetch := <-asked
	wg.Go(func() {
		second <- readMany(t, t.Context(), b, []blob.Range{rs[1], {Off: 2*mib + 50, Len: 10}}, m.content)
	})
	for s.Stats().Joins == 0 {
		// The second waits for a fetch of the first.
		runtime.Gosched()
	}
	cancel()
	if err := <-first; blob.KindOf(err) != blob.Canceled {
		t.Errorf("canceled caller: %v", err)
	}
	if err := fetch.Err(); err != nil {
		t.Errorf("the fetch ended with its caller: %v", err)
	}
	close(flow)
	if err := <-second; err != nil {
		t.Errorf("other caller: %v", err)
	}
	if got := m.take(); len(got) != 1 {
		t.Errorf("requests %v, want one", got)
	}
}

func TestSeveralRangesAllCallersLeave(t *testing.T) {
	m := newMany(blobtest.Bytes(1, int(8*mib)))
	s := openStore(t, exact(""))
	asked := make(chan context.Context, 100)
	hang := true
	m.before = func(ctx context.Context, _ blob.Range) error {
		if hang {
			asked <- ctx
			<-ctx.Done()
		}
		return ctx.Err()
	}
	b := openBlob(t, s.Through(m), m.ref())
	rs := []blob.Range{{Off: 0, Len: 100}, {Off: mib, Len: 100}}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- readMany(t, ctx, b, rs, m.content) }()
	fetch := <-asked
	cancel()
	if err := <-done; blob.KindOf(err) != blob.Canceled {
		t.Errorf("canceled caller: %v", err)
	}
	<-fetch.Done() // nobody waits for it
	settle(t, s, m.ref().Digest)
	hang = false
	if err := readMany(t, t.Context(), b, rs, m.content); err != nil {
		t.Errorf("after it: %v", err)
	}
}

func TestSeveralRangesOfTheStoreAlone(t *testing.T) {
	m := newMany(blobtest.Bytes(1, int(mib)))
	s := openStore(t, exact(""))
	mustRead(t, openBlob(t, s.Through(m), m.ref()), blob.Range{Off: 500 * kib, Len: 10}, m.content)
	settle(t, s, m.ref().Digest)
	b := openBlob(t, s.Local(), m.ref())
	rs := []blob.Range{{Off: 0, Len: 10}, {Off: 500 * kib, Len: 10}}
	l := blobtest.NewLanding(rs)
	if err := blob.ReadRanges(t.Context(), b, rs, l.Land); !errors.Is(err, blob.NotFound) {
		t.Errorf("ranges one of which is held: %v, want not found", err)
	}
	if err := l.Check(m.content, false); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := readMany(t, t.Context(), b, rs, m.content); !errors.Is(err, blob.Unavailable) {
		t.Errorf("after close: %v, want unavailable", err)
	}
}
