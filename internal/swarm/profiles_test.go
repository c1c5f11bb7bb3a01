package swarm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/image/profile"
	"skimmer/internal/schedule"
	"skimmer/internal/scheduler"
	joining "skimmer/internal/scheduler/remote"
)

func manifestOf(i int) digest.Digest { return digest.FromString(fmt.Sprint("manifest ", i)) }

// recorded returns the profile of one start of an image.
func recorded(t *testing.T, image, chunks int) []byte {
	t.Helper()
	return recordedAt(t, image, chunks, time.Unix(1_700_000_000, 0))
}

func recordedAt(t *testing.T, image, chunks int, at time.Time) []byte {
	t.Helper()
	data, err := profile.Encode(profile.Profile{
		Manifest: manifestOf(image), Platform: "linux/amd64", Recorded: at, Starts: 1,
		Layers: []profile.Layer{{Digest: digest.FromString("layer"), TOC: digest.FromString("toc"), Chunks: 1000}},
		Reads:  []profile.Read{{Count: chunks, Starts: 1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// shelf is the profiles a node keeps.
type shelf struct {
	mu   sync.Mutex
	data map[digest.Digest][]byte
}

func (s *shelf) put(manifest digest.Digest, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.data[manifest] = data
}

func (s *shelf) list() (all []digest.Digest, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for manifest := range s.data {
		all = append(all, manifest)
	}
	return all, nil
}

func (s *shelf) read(manifest digest.Digest) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if data, ok := s.data[manifest]; ok {
		return data, nil
	}
	return nil, blob.Errorf(blob.NotFound, "read profile of %v", manifest)
}

// keep has a node keep profiles as a peer does.
func (n *node) keep() *shelf {
	s := &shelf{data: map[digest.Digest][]byte{}}
	n.swarm.Profiles().Hold(s.list, s.read)
	return s
}

// finds waits until a node finds the profile of an image, which must be data.
func (n *node) finds(image int, data []byte) {
	n.w.t.Helper()
	var got []byte
	eventually(n.w.t, fmt.Sprintf("%s finds profile %d", n.id, image), func() bool {
		var err error
		got, err = n.swarm.Profiles().Lookup(n.w.ctx, manifestOf(image))
		return err == nil
	})
	if digest.FromBytes(got) != digest.FromBytes(data) {
		n.w.t.Errorf("%s finds another profile of image %d than was given", n.id, image)
	}
}

// listening is a scheduler that nodes join over TCP.
type listening struct {
	w        *world
	addr     string
	service  *scheduler.Service
	served   chan error
	accepted atomic.Int64 // connections
}

// counted is a listener that counts.
type counted struct {
	net.Listener
	n *atomic.Int64
}

func (c counted) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.n.Add(1)
	}
	return conn, err
}

func (w *world) listen() *listening {
	l := &listening{w: w, addr: "127.0.0.1:0"}
	l.start()
	w.t.Cleanup(l.kill)
	return l
}

func (l *listening) start() {
	l.w.t.Helper()
	var ln net.Listener
	// One that begins anew may find that somebody got its port meanwhile, for a while.
	eventually(l.w.t, "the port can be had", func() bool {
		var err error
		ln, err = net.Listen("tcp", l.addr)
		return err == nil
	})
	l.addr, l.service, l.served = ln.Addr().String(), scheduler.New(scheduler.Config{}), make(chan error, 1)
	s, served := l.service, l.served
	l.w.wg.Go(func() { served <- s.Serve(counted{ln, &l.accepted}) })
}

func (l *listening) kill() {
	if l.service == nil {
		return
	}
	cut, cancel := context.WithCancel(context.Background())
	cancel()
	l.service.Close(cut)
	if err := <-l.served; err != nil {
		l.w.t.Error(err)
	}
	l.service = nil
}

// join has a node join and waits until it has. Its membership ends with the test.
func (l *listening) join(n *node) {
	t := l.w.t
	t.Helper()
	link := n.swarm.Attach(l.addr)
	s, err := joining.Dial(joining.Config{
		Addr: l.addr, Handler: link, Hello: joining.Hello{ID: schedule.PeerID(n.id), Addr: n.addr, Slots: n.slots},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	link.Bind(s)
	l.waitFor(n)
}

// waitFor waits until the scheduler is up for a node.
func (l *listening) waitFor(n *node) {
	l.w.t.Helper()
	eventually(l.w.t, "the node has joined", func() bool { return slices.Contains(n.swarm.Links(), LinkStatus{l.addr, true}) })
}

// TestProfiles has nodes give a scheduler elsewhere profiles and find them
// there, also when it begins anew.
func TestProfiles(t *testing.T) {
	w := newWorld(t)
	l := w.listen()
	a, b := w.node("a", options{}), w.node("b", options{})
	if _, err := b.swarm.Profiles().Lookup(t.Context(), manifestOf(1)); !errors.Is(err, blob.Unavailable) {
		t.Errorf("without a scheduler: error %v, want Unavailable", err)
	}
	one, two := recorded(t, 1, 10), recorded(t, 2, 20)
	a.swarm.Profiles().Offer(manifestOf(1), one) // it waits for a scheduler
	l.join(a)
	l.join(b)
	b.finds(1, one)
	a.swarm.Profiles().Offer(manifestOf(2), two)
	b.finds(2, two)
	if _, err := b.swarm.Profiles().Lookup(t.Context(), manifestOf(3)); !errors.Is(err, blob.NotFound) {
		t.Errorf("of an image nobody started: error %v, want NotFound", err)
	}
	if _, err := b.swarm.Profiles().Lookup(t.Context(), "nothing"); !errors.Is(err, blob.Invalid) {
		t.Errorf("of nothing: error %v, want Invalid", err)
	}

	// What is kept is offered to the next scheduler, by one of those who do.
	for _, n := range []*node{a, b} {
		s := n.keep()
		s.put(manifestOf(1), one)
		s.put(manifestOf(2), two)
	}
	l.kill()
	eventually(t, "b notices", func() bool { return !slices.Contains(b.swarm.Links(), LinkStatus{l.addr, true}) })
	if _, err := b.swarm.Profiles().Lookup(t.Context(), manifestOf(1)); !errors.Is(err, blob.Unavailable) {
		t.Errorf("without its scheduler: error %v, want Unavailable", err)
	}
	l.start()
	l.waitFor(b)
	b.finds(1, one)
	b.finds(2, two)
	if s := l.service.Stats(); s.Profiles != 2 {
		t.Errorf("the new scheduler has %d profiles, want 2", s.Profiles)
	}
	before := l.accepted.Load()
	for range 100 {
		b.finds(1, one)
	}
	if after := l.accepted.Load(); after != before {
		t.Errorf("lookups opened %d connections", after-before)
	}
}

// TestProfilesAreRemoved removes a profile that other nodes keep from all
// schedulers, also from those that it does not belong to now.
func TestProfilesAreRemoved(t *testing.T) {
	w := newWorld(t)
	a, b := w.node("a", options{}), w.node("b", options{})
	if err := b.swarm.Profiles().Remove(t.Context(), manifestOf(1)); !errors.Is(err, blob.Unavailable) {
		t.Errorf("without a scheduler: error %v, want Unavailable", err)
	}
	if err := b.swarm.Profiles().Remove(t.Context(), "nothing"); !errors.Is(err, blob.Invalid) {
		t.Errorf("of nothing: error %v, want Invalid", err)
	}
	b.swarm.Profiles().Offer(manifestOf(1), recorded(t, 1, 10))
	if err := b.swarm.Profiles().Remove(t.Context(), manifestOf(1)); err == nil || len(b.swarm.Profiles().queue) != 0 {
		t.Errorf("error %v, and %d profiles wait", err, len(b.swarm.Profiles().queue))
	}
	l, other := w.listen(), w.service("other")
	other.start()
	one := recorded(t, 1, 10)
	a.keep().put(manifestOf(1), one)
	other.join(a)
	other.join(b)
	b.finds(1, one)
	l.join(a)
	l.join(b)
	b.finds(1, one) // whoever it belongs to now
	if err := b.swarm.Profiles().Remove(t.Context(), manifestOf(1)); err != nil {
		t.Fatal(err)
	}
	if err := b.swarm.Profiles().Remove(t.Context(), manifestOf(1)); err != nil {
		t.Errorf("of what is not there: %v", err)
	}
	// a offers what it holds, and is asked for nothing, by neither.
	mustLack := func() {
		t.Helper()
		if err := offerNow(a); err != nil {
			t.Error(err)
		}
		if _, err := b.swarm.Profiles().Lookup(t.Context(), manifestOf(1)); !errors.Is(err, blob.NotFound) {
			t.Errorf("of what was removed: error %v, want NotFound", err)
		}
	}
	mustLack()
	l.kill()
	for _, n := range []*node{a, b} {
		eventually(t, "both notice", func() bool { return !slices.Contains(n.swarm.Links(), LinkStatus{l.addr, true}) })
	}
	mustLack()

	later := recordedAt(t, 1, 20, time.Now().Add(time.Hour))
	a.swarm.Profiles().Offer(manifestOf(1), later)
	b.finds(1, later)
}

// offerNow offers the profile of image 1 that a node keeps, as if the scheduler
// that it belongs to had not heard of it.
func offerNow(n *node) error {
	p := n.swarm.Profiles()
	to, _ := p.owner(manifestOf(1))
	data, err := p.read(manifestOf(1))
	if err != nil {
		return err
	}
	offers := map[digest.Digest]digest.Digest{manifestOf(1): digest.FromBytes(data)}
	return p.offerChunk(to, offers, p.read, func(digest.Digest) {})
}

// TestLookupEnds has a scheduler that does not answer.
func TestLookupEnds(t *testing.T) {
	w := newWorld(t)
	n := w.node("a", options{})
	link, silent := n.swarm.Attach("silent"), &silent{asked: make(chan time.Duration, 1)}
	link.Bind(silent)
	link.Up()
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	w.wg.Go(func() {
		_, err := n.swarm.Profiles().Lookup(ctx, manifestOf(1))
		failed <- err
	})
	if limit := <-silent.asked; limit > lookupLimit || limit <= 0 {
		t.Errorf("the scheduler has %v to answer, want %v at most", limit, lookupLimit)
	}
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of the context", err)
	}
}

// silent is a session with a scheduler that does not answer.
type silent struct {
	ProfileSession
	asked chan time.Duration // how long it had
}

func (s *silent) Send(schedule.Event) {}

func (s *silent) GetProfile(ctx context.Context, _ digest.Digest) ([]byte, error) {
	deadline, _ := ctx.Deadline()
	s.asked <- time.Until(deadline)
	<-ctx.Done()
	return nil, ctx.Err()
}

// TestProfilesMerge has two nodes start an image differently.
func TestProfilesMerge(t *testing.T) {
	w := newWorld(t)
	_, nodes := w.cluster(2, options{})
	for i, n := range nodes {
		n.swarm.Profiles().Offer(manifestOf(1), recorded(t, 1, 10*(i+1)))
	}
	eventually(t, "both starts are in it", func() bool {
		data, err := nodes[0].swarm.Profiles().Lookup(w.ctx, manifestOf(1))
		if err != nil {
			return false
		}
		p, err := profile.Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		return p.Starts == 2 && p.Chunks() == 20
	})
}

// TestProfilesOfSeveralSchedulers shares profiles among three schedulers. What
// one that leaves had, the others are given by who keeps it, and it is given its
// share again when it is back.
func TestProfilesOfSeveralSchedulers(t *testing.T) {
	w := newWorld(t)
	a, b := w.node("a", options{}), w.node("b", options{})
	var all []*service
	for i := range 3 {
		s := w.service(fmt.Sprint("scheduler", i))
		s.start()
		s.join(a)
		s.join(b)
		all = append(all, s)
	}
	const images = 24
	shelf := a.keep()
	for i := range images {
		data := recorded(t, i, i+1)
		shelf.put(manifestOf(i), data)
		a.swarm.Profiles().Offer(manifestOf(i), data)
	}
	check := func() {
		t.Helper()
		for i := range images {
			b.finds(i, recorded(t, i, i+1))
		}
	}
	kept := func(s *service) int64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.running.Stats().Profiles
	}
	check()
	share := kept(all[1])
	if sum := kept(all[0]) + share + kept(all[2]); sum != images || share == 0 || share == images {
		t.Fatalf("the schedulers have %d profiles, one of them %d", sum, share)
	}
	all[1].kill()
	check()
	if sum := kept(all[0]) + kept(all[2]); sum != images {
		t.Errorf("those that are left have %d profiles, want %d", sum, images)
	}
	all[1].start()
	eventually(t, "it has its share again", func() bool { return kept(all[1]) == share })
	check()
}

// TestManyProfilesWait has a node offer more than it keeps for a scheduler that
// is away; nothing blocks, and the others arrive.
func TestManyProfilesWait(t *testing.T) {
	w := newWorld(t)
	n := w.node("a", options{})
	for i := range maxQueued + 10 {
		n.swarm.Profiles().Offer(manifestOf(i), recorded(t, i, 1))
	}
	n.swarm.Profiles().Offer(manifestOf(0), recorded(t, 0, 7)) // in place of the first
	n.swarm.Profiles().Offer("nothing", nil)
	s := w.service("scheduler")
	s.start()
	s.join(n)
	eventually(t, "the later one of the first is there", func() bool {
		// The earlier one may have been on its way already, and then is part of it.
		data, err := n.swarm.Profiles().Lookup(w.ctx, manifestOf(0))
		if err != nil {
			return false
		}
		p, err := profile.Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		return p.Chunks() == 7
	})
	n.finds(maxQueued-1, recorded(t, maxQueued-1, 1))
	eventually(t, "nothing waits", func() bool {
		p := n.swarm.Profiles()
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.queue) == 0
	})
	if _, err := n.swarm.Profiles().Lookup(t.Context(), manifestOf(maxQueued)); !errors.Is(err, blob.NotFound) {
		t.Errorf("what did not fit in the queue: error %v, want NotFound", err)
	}
}

// failing is a scheduler's session on which calls fail until it is healed.
type failing struct {
	Session
	ProfileSession
	left chan struct{} // a failure for each
}

func (f *failing) PutProfile(ctx context.Context, manifest digest.Digest, data []byte) error {
	select {
	case <-f.left:
		return blob.Errorf(blob.Busy, "put profile: too often")
	default:
		return f.ProfileSession.PutProfile(ctx, manifest, data)
	}
}

// TestProfilesAreOfferedAgain fails when a profile is given: it is given
// again.
func TestProfilesAreOfferedAgain(t *testing.T) {
	w := newWorld(t)
	s, nodes := w.cluster(1, options{})
	n := nodes[0]
	f := &failing{left: make(chan struct{}, 1)}
	f.left <- struct{}{}
	s.mu.Lock()
	m := s.members[0]
	f.Session, f.ProfileSession = m.session, m.session
	m.link.Bind(f)
	s.mu.Unlock()
	n.swarm.Profiles().Offer(manifestOf(1), recorded(t, 1, 1))
	n.finds(1, recorded(t, 1, 1))
	if len(f.left) != 0 {
		t.Error("nothing failed")
	}
}
