package swarm

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/blob/blobtest"
	"skimmer/internal/schedule"
	"skimmer/internal/scheduler"
	"skimmer/internal/store"
	"skimmer/internal/transfer"
)

// world is nodes that exchange blobs over the loopback interface, an origin,
// and schedulers in the same process.
type world struct {
	t      testing.TB
	origin *origin
	wg     sync.WaitGroup
	ctx    context.Context
	// lease is how long a lease lives: long, as one that expires because the machine
	// is busy has the origin read twice.
	lease time.Duration
	// learn is how long a scheduler that begins anew decides nothing; default: its own.
	learn time.Duration
	// blobs is with how many a node may have to do; default: as the scheduler has it.
	blobs int
}

func newWorld(t testing.TB) *world {
	ctx, cancel := context.WithCancel(t.Context())
	w := &world{t: t, origin: &origin{left: map[string][]int32{}}, ctx: ctx, lease: time.Minute}
	t.Cleanup(func() {
		cancel()
		w.wg.Wait()
	})
	return w
}

// origin counts how often each 4 KiB of its blobs left it.
type origin struct {
	memory blobtest.Memory
	fails  atomic.Pointer[error]
	reads  atomic.Int64
	// refuses, where set, says whom it lets read; it is set before the nodes are.
	refuses func(ctx context.Context) error

	mu   sync.Mutex
	left map[string][]int32
}

const block = 4 << 10

func (o *origin) add(p []byte) blob.Ref {
	ref := o.memory.Add(p)
	ref.Repository = "registry.test/library/thing"
	o.mu.Lock()
	defer o.mu.Unlock()
	o.left[ref.Digest.String()] = make([]int32, len(p)/block+1)
	return ref
}

func (o *origin) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	if err := o.fails.Load(); err != nil {
		return nil, *err
	}
	if o.refuses != nil {
		if err := o.refuses(ctx); err != nil {
			return nil, err
		}
	}
	b, err := o.memory.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	return &originBlob{b, o, ref}, nil
}

type originBlob struct {
	blob.Blob
	o   *origin
	ref blob.Ref
}

func (b *originBlob) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	if err := b.o.fails.Load(); err != nil {
		return nil, *err
	}
	rc, err := b.Blob.ReadRange(ctx, r)
	if err != nil {
		return nil, err
	}
	b.o.reads.Add(1)
	return &originReader{rc, b, r.Off, r.Off / block}, nil
}

// originReader counts what is taken of an answer: who gives up in the middle, or
// dies, has not read the rest.
type originReader struct {
	io.ReadCloser
	b     *originBlob
	off   int64
	block int64 // the next to be counted
}

func (r *originReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.off += int64(n)
	o := r.b.o
	o.mu.Lock()
	defer o.mu.Unlock()
	for ; r.block*block < r.off; r.block++ {
		o.left[r.b.ref.Digest.String()][r.block]++
	}
	return n, err
}

// egress returns how much of a blob left the origin, as multiple of its size.
func (o *origin) egress(ref blob.Ref) float64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	sum := 0
	for _, n := range o.left[ref.Digest.String()] {
		sum += int(n)
	}
	return float64(sum) / float64((ref.Size+block-1)/block)
}

// once returns how much of a blob may leave the origin, as multiple of its size,
// if every byte does once. A machine that stands still for seconds has nodes give
// a source up that they may have to wait for: what it was to send, a run of a blob
// at most and as much ahead as is asked for with it, is then read again.
func once(ref blob.Ref, nodes []*node) float64 {
	const run = 8<<20 + maxAhead
	var failures int64
	for _, n := range nodes {
		failures += n.swarm.Stats().PeerFailures
	}
	return 1.02 + float64(failures*run)/float64(ref.Size)
}

// service is a scheduler that can die and begin anew.
type service struct {
	w    *world
	name string

	mu      sync.Mutex
	running *scheduler.Service // nil while it is dead
	members []*member
}

// member is a node's membership.
type member struct {
	s       *service
	n       *node
	link    *Link
	session *scheduler.Session // nil before the first
}

func (w *world) service(name string) *service { return &service{w: w, name: name} }

// start begins with nothing known.
func (s *service) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	svc := scheduler.New(scheduler.Config{Learn: s.w.learn, Schedule: schedule.Options{LeaseLife: s.w.lease, MaxBlobs: s.w.blobs}})
	s.running = svc
	s.w.t.Cleanup(func() { svc.Close(context.Background()) })
	for _, m := range s.members {
		m.connect(svc)
	}
}

func (m *member) connect(svc *scheduler.Service) {
	hello := scheduler.Hello{
		ID: m.n.id, Hostname: string(m.n.id), Addr: m.n.addr, Seed: m.n.seed, Slots: m.n.slots, Again: m.session != nil,
	}
	session, err := svc.Connect(hello, m.link)
	if err != nil {
		m.s.w.t.Error(err)
		return
	}
	m.session = session
	m.link.Bind(session)
}

// kill ends it; what is under way to and from it is lost.
func (s *service) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	cut, cancel := context.WithCancel(context.Background())
	cancel()
	s.running.Close(cut)
	s.running = nil
	for _, m := range s.members {
		m.session.Close()
		m.link.Down(io.EOF)
		m.link.Bind(nil)
	}
}

func (s *service) join(n *node) {
	m := &member{s: s, n: n, link: n.swarm.Attach(s.name)}
	n.members = append(n.members, m)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.members = append(s.members, m)
	if s.running != nil {
		m.connect(s.running)
		eventually(s.w.t, "the node has joined", func() bool {
			st := n.swarm.Links()
			return slices.ContainsFunc(st, func(l LinkStatus) bool { return l.Scheduler == s.name && l.Up })
		})
	}
}

// holders returns how many nodes the scheduler knows to hold some of a blob.
func (s *service) holders(ref blob.Ref) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, _ := s.running.Blob(ref.Digest.String())
	return st.Complete + st.Partial
}

// waitFor waits until the scheduler knows of n nodes that have all of a blob.
func (s *service) waitFor(n int, ref blob.Ref) {
	s.w.t.Helper()
	eventually(s.w.t, "the scheduler knows who has the blob", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		st, _ := s.running.Blob(ref.Digest.String())
		return st.Complete == n
	})
}

func (s *service) leave(m *member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.members = slices.DeleteFunc(s.members, func(x *member) bool { return x == m })
	if m.session != nil {
		m.session.Close()
	}
}

// node is a peer.
type node struct {
	w       *world
	id      schedule.PeerID
	addr    string
	seed    bool
	slots   int
	store   *store.Store
	swarm   *Swarm
	client  *transfer.Client
	server  *transfer.Server
	members []*member
	gone    bool
}

// options change a node before it starts.
type options struct {
	seed  bool
	slots int
	dir   string
	// patience is how long a node waits for a scheduler that went away; default: it
	// goes on without, soon.
	patience time.Duration
	// uploads, where set, stands between what the node has and what it sends.
	uploads func(blob.Source) blob.Source
	log     io.Writer
}

func (w *world) node(name string, o options) *node {
	t := w.t
	t.Helper()
	if o.slots == 0 {
		o.slots = 16
	}
	if o.dir == "" {
		o.dir = t.TempDir()
	}
	patience, bulk := 200*time.Millisecond, time.Second
	if o.patience > 0 {
		patience, bulk = o.patience, o.patience
	}
	n := &node{w: w, id: schedule.PeerID(name), seed: o.seed, slots: o.slots}
	log := slog.New(slog.DiscardHandler)
	if o.log != nil {
		log = slog.New(slog.NewTextHandler(o.log, nil))
	}
	var err error
	n.store, err = store.Open(store.Config{
		Dir: o.dir, MinFree: -1, PieceSize: smallestPiece, RandomRun: -1, DigestDelay: 10 * time.Second,
		Lost: func(d digest.Digest) { n.swarm.Lost(d) },
	})
	if err != nil {
		t.Fatal(err)
	}
	n.client = transfer.NewClient(transfer.ClientConfig{DialTimeout: time.Minute, StallTimeout: time.Minute})
	n.swarm = New(Config{
		Store: n.store, Origin: w.origin, Client: n.client, Seed: o.seed, Dir: o.dir + "/sums",
		Patience: patience, BulkPatience: bulk, Logger: log,
	})
	src := n.swarm.Uploads()
	if o.uploads != nil {
		src = o.uploads(src)
	}
	n.server, err = transfer.NewServer(transfer.ServerConfig{Source: src, Slots: o.slots})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.addr = l.Addr().String()
	w.wg.Go(func() {
		if err := n.server.Serve(l); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	})
	t.Cleanup(n.close)
	return n
}

// close ends the node as a crash does, except that its memory is freed.
func (n *node) close() {
	if n.gone {
		return
	}
	n.gone = true
	for _, m := range n.members {
		m.s.leave(m)
	}
	cut, cancel := context.WithCancel(context.Background())
	cancel()
	_ = n.server.Close(cut) // cut off is how it is meant to end
	n.swarm.Close()
	n.client.Close()
	if err := n.store.Close(); err != nil {
		n.w.t.Error(err)
	}
}

// cluster is nodes that have joined one scheduler.
func (w *world) cluster(n int, o options) (*service, []*node) {
	s := w.service("scheduler")
	s.start()
	var nodes []*node
	for i := range n {
		node := w.node(fmt.Sprintf("node%d", i), o)
		s.join(node)
		nodes = append(nodes, node)
	}
	return s, nodes
}

// untold reports whether n has something of a blob that it has not told the
// scheduler of yet.
func (n *node) untold(ref blob.Ref) bool {
	c := n.swarm.known(ref.Digest)
	if c == nil {
		return false
	}
	defer c.release()
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.report.runs) > 0
}

func (n *node) read(ref blob.Ref, r blob.Range) ([]byte, error) {
	b, err := n.swarm.Open(n.w.ctx, ref)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	p := make([]byte, r.Len)
	return p, blob.ReadFull(n.w.ctx, b, p, r.Off)
}

func (n *node) mustRead(ref blob.Ref, content []byte, r blob.Range) {
	n.w.t.Helper()
	p, err := n.read(ref, r)
	if err != nil {
		n.w.t.Fatalf("%s reads %v: %v", n.id, r, err)
	}
	if !bytes.Equal(p, content[r.Off:r.End()]) {
		n.w.t.Fatalf("%s reads wrong bytes at %v", n.id, r)
	}
}

// mustStream reads all of ref as a download does.
func (n *node) mustStream(ref blob.Ref, content []byte) {
	b, err := n.swarm.Open(n.w.ctx, ref)
	if err != nil {
		n.w.t.Errorf("%s opens: %v", n.id, err)
		return
	}
	defer b.Close()
	rc, err := b.ReadRange(n.w.ctx, blob.Range{Len: ref.Size})
	if err != nil {
		n.w.t.Errorf("%s opens a stream: %v", n.id, err)
		return
	}
	defer rc.Close()
	p, err := io.ReadAll(rc)
	if err != nil {
		n.w.t.Errorf("%s streams: %v after %d bytes", n.id, err, len(p))
	} else if !bytes.Equal(p, content) {
		n.w.t.Errorf("%s streams wrong bytes", n.id)
	}
}
