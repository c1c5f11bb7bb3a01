package swarm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
)

// lines is a log that can be looked at.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// eventually waits for something that other goroutines bring about.
func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("it never happens that %s", what)
		}
		<-tick.C
	}
}

// TestWithoutScheduler reads while the scheduler is gone, and after it came
// back without knowing anything.
func TestWithoutScheduler(t *testing.T) {
	w := newWorld(t)
	var log lines
	s, nodes := w.cluster(2, options{log: &log})
	a, b := nodes[0], nodes[1]
	content := blobtest.Bytes(1, 4<<20)
	ref := w.origin.add(content)
	a.mustRead(ref, content, blob.Range{Len: 1 << 20})
	s.kill()
	b.mustRead(ref, content, blob.Range{Off: 2 << 20, Len: 1 << 20})
	b.mustRead(ref, content, blob.Range{Off: 3 << 20, Len: 1 << 19})
	if n := log.count("no scheduler can be reached"); n != 1 {
		t.Errorf("the loss of the scheduler was logged %d times, want 1", n)
	}
	if b.swarm.Stats().WithoutScheduler == 0 {
		t.Error("reading without a scheduler was not counted")
	}
	s.start()
	eventually(t, "both have told the new scheduler", func() bool {
		return s.holders(ref) == 2
	})
	before := w.origin.egress(ref)
	a.mustRead(ref, content, blob.Range{Off: 2 << 20, Len: 3 << 19})
	b.mustRead(ref, content, blob.Range{Len: 1 << 20})
	if after := w.origin.egress(ref); after != before {
		t.Errorf("the origin was read again after the scheduler came back: %.3f of the blob before, %.3f after", before, after)
	}
	if n := log.count("a scheduler is there again"); n != 1 {
		t.Errorf("its return was logged %d times, want 1", n)
	}
}

// TestSchedulerRestartsMidway has nodes download while the scheduler dies and
// comes back.
func TestSchedulerRestartsMidway(t *testing.T) {
	w := newWorld(t)
	w.learn = 5 * time.Second // a busy machine takes long to end the leases that were under way, and they are told of then
	s, nodes := w.cluster(6, options{patience: time.Minute})
	content := blobtest.Bytes(2, 24<<20)
	ref := w.origin.add(content)
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() { n.mustStream(ref, content) })
	}
	eventually(t, "a third has arrived", func() bool { return w.origin.egress(ref) > 0.3 })
	s.kill()
	s.start()
	wg.Wait()
	if got := w.origin.egress(ref); got > once(ref, nodes) {
		t.Errorf("%.3f of the blob left the origin", got)
	}
}

// TestSeedWithoutScheduler has a node without a scheduler read from the seed,
// and the seed from the origin for it.
func TestSeedWithoutScheduler(t *testing.T) {
	w := newWorld(t)
	var log lines
	seed := w.node("seed", options{seed: true})
	a := w.node("a", options{log: &log})
	b := w.node("b", options{})
	content := blobtest.Bytes(3, 3<<20)
	ref := w.origin.add(content)
	for _, n := range []*node{a, b} {
		n.swarm.SetSeeds([]string{seed.addr})
		n.mustRead(ref, content, blob.Range{Off: 100, Len: 2 << 20})
		n.mustStream(ref, content)
	}
	if got := w.origin.egress(ref); got > 1.001 {
		t.Errorf("%.3f of the blob left the origin", got)
	}
	if s := a.swarm.Stats(); s.OriginBytes != 0 {
		t.Errorf("the node read %d bytes from the origin itself", s.OriginBytes)
	}
	// Without the seed too, the origin is read.
	seed.close()
	other := blobtest.Bytes(4, 1<<20)
	ref = w.origin.add(other)
	a.mustRead(ref, other, blob.Range{Len: 1 << 20})
	a.mustRead(ref, other, blob.Range{Len: 1 << 19})
	if n := log.count("no seed peer answers"); n != 1 {
		t.Errorf("the loss of the seed was logged %d times, want 1", n)
	}
}

// liar changes bytes of what it sends.
type liar struct{ blob.Source }

type lie struct{ blob.Blob }

func (l liar) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	b, err := l.Source.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	return lie{b}, nil
}

func (l lie) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	rc, err := l.Blob.ReadRange(ctx, r)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{flipped{rc}, rc}, nil
}

type flipped struct{ io.Reader }

func (f flipped) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if n > 0 {
		p[n/2] ^= 1
	}
	return n, err
}

// TestLiar has a node that sends wrong bytes among its sources: nobody sees
// them, it is not asked again, and the scheduler knows.
func TestLiar(t *testing.T) {
	w := newWorld(t)
	s := w.service("scheduler")
	s.start()
	bad := w.node("liar", options{uploads: func(src blob.Source) blob.Source { return liar{src} }})
	good := w.node("good", options{})
	content := blobtest.Bytes(5, 4<<20)
	ref := w.origin.add(content)
	s.join(bad)
	bad.mustStream(ref, content)
	s.join(good)
	good.mustStream(ref, content)
	if good.swarm.Stats().Corrupt == 0 {
		t.Error("nobody noticed the lie")
	}
	// One accuser does not take a source from others, who go there last; two do, from
	// everybody.
	accusers := 1
	for _, name := range []string{"third", "fourth", "fifth"} {
		n := w.node(name, options{})
		s.join(n)
		n.mustStream(ref, content)
		if n.swarm.Stats().Corrupt > 0 {
			accusers++
		}
	}
	if accusers > 2 {
		t.Errorf("the liar was asked by %d nodes; two had found it out", accusers)
	}
	// Once for the liar, once for all others; the third may ask a moment before
	// the last of what the second has was told.
	if got := w.origin.egress(ref); got > 2.2 {
		t.Errorf("%.3f of the blob left the origin", got)
	}
}

// stuck answers nothing.
type stuck struct {
	blob.Source
	release <-chan struct{}
}

func (s stuck) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	select {
	case <-s.release:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return s.Source.Open(ctx, ref)
}

// TestHungSource has a source that accepts a request and then does nothing: a
// blocked reader gets its bytes from somebody else.
func TestHungSource(t *testing.T) {
	w := newWorld(t)
	s := w.service("scheduler")
	s.start()
	release := make(chan struct{})
	defer close(release)
	hung := w.node("hung", options{uploads: func(src blob.Source) blob.Source { return stuck{src, release} }})
	content := blobtest.Bytes(6, 2<<20)
	ref := w.origin.add(content)
	s.join(hung)
	hung.mustStream(ref, content)
	reader := w.node("reader", options{})
	s.join(reader)
	reader.mustRead(ref, content, blob.Range{Off: 5000, Len: 100_000})
	if st := reader.swarm.Stats(); st.PeerFailures == 0 {
		t.Errorf("giving up on the source was not counted: %+v", st)
	}
	// With another holder the reader does not wait until it gives up.
	second := w.node("second", options{})
	s.join(second)
	second.mustRead(ref, content, blob.Range{Off: 5000, Len: 100_000})
}

// TestOriginFails hands the origin's own error to the reader, and reads again
// when that is over.
func TestOriginFails(t *testing.T) {
	w := newWorld(t)
	_, nodes := w.cluster(2, options{})
	content := blobtest.Bytes(7, 1<<20)
	ref := w.origin.add(content)
	down := blob.Errorf(blob.Unavailable, "the registry is on holiday")
	w.origin.fails.Store(&down)
	_, err := nodes[0].read(ref, blob.Range{Len: 1000})
	if blob.KindOf(err) != blob.Unavailable || !errors.Is(err, down) {
		t.Errorf("the reader gets %v, want what the origin said", err)
	}
	w.origin.fails.Store(nil)
	eventually(t, "the origin is read again", func() bool {
		_, err := nodes[0].read(ref, blob.Range{Len: 1000})
		return err == nil
	})
	nodes[1].mustRead(ref, content, blob.Range{Len: 1000})
}

// TestReject has a reader find that bytes are wrong though they are what the
// origin's reader reported: everybody forgets them, and they are read anew.
func TestReject(t *testing.T) {
	w := newWorld(t)
	w.lease = 2 * time.Second // that of who rejected, and may not want it again, is waited for
	s, nodes := w.cluster(3, options{})
	content := blobtest.Bytes(8, 2<<20) // of which they read one half: a whole blob has proved right
	ref := w.origin.add(content)
	for _, n := range nodes {
		n.mustRead(ref, content, blob.Range{Len: 1 << 20})
	}
	// Who rejects tells what it has by itself.
	eventually(t, "the others have told what they have", func() bool {
		return s.holders(ref) > 1 && !nodes[0].untold(ref) && !nodes[2].untold(ref)
	})
	before := w.origin.egress(ref)
	b, err := nodes[1].swarm.Open(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r, ok := b.(blob.Rejecter)
	if !ok {
		t.Fatal("blobs of a swarm cannot be rejected")
	}
	r.Reject(blob.Range{Off: 300_000, Len: 10})
	eventually(t, "the others are told", func() bool {
		return nodes[0].swarm.Stats().Forgotten > 0 && nodes[2].swarm.Stats().Forgotten > 0
	})
	nodes[0].mustRead(ref, content, blob.Range{Len: 1 << 20})
	nodes[1].mustRead(ref, content, blob.Range{Len: 1 << 20})
	if after := w.origin.egress(ref); after <= before || after > before+0.05 {
		t.Errorf("%.3f of the blob left the origin before, %.3f after", before, after)
	}
}

// TestNodeDiesMidway kills a node that others fetch from.
func TestNodeDiesMidway(t *testing.T) {
	w := newWorld(t)
	_, nodes := w.cluster(5, options{})
	content := blobtest.Bytes(9, 24<<20)
	ref := w.origin.add(content)
	var wg sync.WaitGroup
	for _, n := range nodes[1:] {
		wg.Go(func() { n.mustStream(ref, content) })
	}
	fetched := make(chan struct{})
	go func() {
		defer close(fetched)
		_ = nodes[0].swarm.Fetch(w.ctx, ref) // it is killed
	}()
	eventually(t, "a third has arrived", func() bool { return w.origin.egress(ref) > 0.3 })
	nodes[0].close()
	<-fetched
	wg.Wait()
	// What the dead node read is read again, and so is what somebody has got but
	// not told of: this origin is so quick that either may be most of the blob. If
	// each read for itself it would be 4.
	if got := w.origin.egress(ref); got > 3 {
		t.Errorf("%.3f of the blob left the origin", got)
	}
}

// TestRestartedNode has a node announce what it has, and the digests of what it
// read from the origin, after both it and the scheduler began anew.
func TestRestartedNode(t *testing.T) {
	w := newWorld(t)
	s := w.service("scheduler")
	s.start()
	dir := t.TempDir()
	a := w.node("a", options{dir: dir})
	s.join(a)
	content := blobtest.Bytes(10, 3<<20)
	ref := w.origin.add(content)
	a.mustStream(ref, content)
	a.close()
	s.kill()
	s.start()
	a = w.node("a", options{dir: dir})
	b := w.node("b", options{})
	s.join(a)
	s.join(b)
	eventually(t, "it has told the scheduler", func() bool {
		return s.holders(ref) == 1
	})
	b.mustStream(ref, content)
	if got := w.origin.egress(ref); got > 1.001 {
		t.Errorf("%.3f of the blob left the origin", got)
	}
}
