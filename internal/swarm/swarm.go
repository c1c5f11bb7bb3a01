// Package swarm is where a node gets the bytes of blobs from: what its store
// has is served from disk, the rest comes from other peers, and from the
// origin where a scheduler says so, or where there is nobody else to ask.
//
// A blob is cut into pieces. For those that somebody reads and the store does
// not have, the blob's scheduler is asked; what it grants are peers to take
// them from, or the lease to read them from the origin. Bytes of a peer are
// compared with digests that came from the scheduler, never from that peer,
// before a reader, the store, or another peer sees any of them. A piece that
// several readers want is fetched once.
//
// Everything degrades and nothing stops. A source that is slow, busy, gone or
// lying costs time, and its pieces are granted again. Without a scheduler
// seeds are asked, without seeds the origin. Each such step is logged once,
// counted, and taken back as soon as the better way is there again.
package swarm

import (
	"context"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
	"skimmer/internal/schedule"
	"skimmer/internal/store"
	"skimmer/internal/transfer"
)

// Config says what a Swarm is made of. Store, Origin and Client are required.
type Config struct {
	// Store keeps what was fetched.
	Store *store.Store
	// Origin is read where the scheduler grants it, or where nobody else can be
	// asked.
	Origin blob.Source
	// Client reads from peers.
	Client *transfer.Client
	// Self are the addresses, "host:port", that this node can be reached at; see
	// SetSeeds.
	Self []string
	// Seed says that this node reads from origins for others.
	Seed bool
	// Dir is where the digests of pieces that were read from origins are kept.
	Dir string
	// Patience is how long readers wait for a scheduler that was there and went
	// away, before they do without: those that are blocked, and the others.
	// Defaults: 1 s and 10 s.
	Patience, BulkPatience time.Duration
	// Logger receives what a person may need to know. Default: discard.
	Logger *slog.Logger
}

// Swarm is a blob.Source over the store, other peers, and the origin. New
// makes it, Close ends it. Its methods are safe for concurrent use.
type Swarm struct {
	// Constant after New.
	cfg  Config
	log  *slog.Logger
	top  blob.Source // the store, over what peers and the origin have
	sums *sumFiles

	profiles *Profiles

	count counters
	pace  pace

	moveKick, lostKick chan struct{} // hold a wish for watch

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup

	// mu guards what follows. Order: content.mu, mu.
	mu        sync.Mutex
	closed    bool
	contents  map[digest.Digest]*content
	links     []*Link // by name
	alone     bool    // no scheduler is there, and that was said
	seedless  bool    // no seed answered either, and that was said
	nextWant  uint64
	told      map[digest.Digest]time.Time // since when its scheduler was there that knows what is held of a blob
	seeds     []string
	seedsDown map[string]time.Time   // until when seeds are left alone
	lost      map[digest.Digest]bool // blobs the store gave up some of
	coming    chan struct{}          // closed, and made anew, when a content is
}

// New returns a Swarm that knows no scheduler yet; see Attach.
func New(cfg Config) *Swarm {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Patience <= 0 {
		cfg.Patience = time.Second
	}
	if cfg.BulkPatience <= 0 {
		cfg.BulkPatience = 10 * time.Second
	}
	s := &Swarm{
		cfg: cfg, log: cfg.Logger, contents: map[digest.Digest]*content{}, sums: &sumFiles{dir: cfg.Dir},
		told: map[digest.Digest]time.Time{}, seedsDown: map[string]time.Time{}, lost: map[digest.Digest]bool{}, coming: make(chan struct{}),
		moveKick: make(chan struct{}, 1), lostKick: make(chan struct{}, 1),
	}
	// context.Background: Close ends it.
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.top = cfg.Store.Through(beyond{s})
	s.profiles = newProfiles(s)
	s.wg.Go(s.watch)
	s.wg.Go(s.profiles.run)
	return s
}

// SetSeeds says which seed peers, as "host:port", are asked while there is no
// scheduler. It can be called again at any time.
func (s *Swarm) SetSeeds(addrs []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seeds = addrs
}

// Close ends all that is being fetched and waits for it. What was opened
// fails from then on. Sessions are to be closed before, the store after.
func (s *Swarm) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	for _, c := range s.all() {
		c.mu.Lock()
		c.wakeAll()
		c.mu.Unlock()
		c.release()
	}
	s.wg.Wait()
	s.sums.close()
}

// all returns what is known of all blobs in use, to be released.
func (s *Swarm) all() (cs []*content) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.contents {
		c.refs++
		cs = append(cs, c)
	}
	return cs
}

// spawn runs f, which ends when s.ctx does, unless the Swarm is closed.
func (s *Swarm) spawn(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Go(f)
	return true
}

// Open implements blob.Source. Blobs implement blob.MultiReader and
// blob.Rejecter.
func (s *Swarm) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	b, err := s.top.Open(ctx, ref)
	if err != nil {
		return nil, err
	}
	return &opened{Blob: b, s: s, ref: ref}, nil
}

// opened is a blob of the store, whose rejections the scheduler hears of too.
type opened struct {
	blob.Blob
	s   *Swarm
	ref blob.Ref
}

func (o *opened) ReadRanges(ctx context.Context, ranges []blob.Range, land blob.Land) error {
	return blob.ReadRanges(ctx, o.Blob, ranges, land)
}

// ReadRange implements blob.Blob.
func (o *opened) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	if ref, ok := o.streams(r); ok {
		return o.s.stream(ctx, ref)
	}
	return o.Blob.ReadRange(ctx, r)
}

// Reject implements blob.Rejecter.
func (o *opened) Reject(r blob.Range) {
	if b, ok := o.Blob.(blob.Rejecter); ok {
		b.Reject(r)
	}
	if r.Check(o.Size()) != nil || r.Len == 0 {
		return
	}
	o.s.count.rejected.Add(1)
	c := o.s.content(o.ref.Digest, o.Size())
	defer c.release()
	c.reject([]schedule.Run{c.geo.around(r)})
}

// beyond is what is behind the store.
type beyond struct{ s *Swarm }

// Open implements blob.Source. It contacts the origin only to learn a size.
func (y beyond) Open(ctx context.Context, ref blob.Ref) (blob.Blob, error) {
	if err := ref.Validate(); err != nil {
		return nil, err
	}
	h := &remote{s: y.s, ref: ref, opening: make(chan struct{}, 1)}
	if ref.Size == blob.SizeUnknown {
		b, err := h.origin(ctx)
		if err != nil {
			return nil, err
		}
		h.ref.Size = b.Size()
	}
	h.c = y.s.content(ref.Digest, h.ref.Size)
	return h, nil
}

// remote is a blob that somebody opened, as the store sees it.
type remote struct {
	// Constant after Open.
	s   *Swarm
	ref blob.Ref
	c   *content

	opening chan struct{} // holds one: who may open from

	// mu guards what follows.
	mu   sync.Mutex
	from blob.Blob // at the origin; nil until needed
	shut bool      // nobody closes from any more

	course course // guarded by c.mu
}

func (h *remote) Size() int64 { return h.ref.Size }

func (h *remote) Close() error {
	h.c.release()
	// A worker may be about to open it.
	h.mu.Lock()
	defer h.mu.Unlock()
	h.shut = true
	if h.from != nil {
		return h.from.Close()
	}
	return nil
}

// origin returns the blob at the origin, opened once. After Close it is closed with
// ctx.
func (h *remote) origin(ctx context.Context) (blob.Blob, error) {
	select {
	case h.opening <- struct{}{}:
		defer func() { <-h.opening }()
	case <-ctx.Done():
		return nil, blob.Errorf(blob.KindOf(ctx.Err()), "open %v at its origin: %w", h.ref, ctx.Err())
	}
	h.mu.Lock()
	b := h.from
	h.mu.Unlock()
	if b != nil {
		return b, nil
	}
	b, err := h.s.cfg.Origin.Open(ctx, h.ref)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.shut {
		context.AfterFunc(ctx, func() { _ = b.Close() }) // it was only read
		return b, nil
	}
	h.from = b
	return b, nil
}

func (h *remote) ReadRange(ctx context.Context, r blob.Range) (io.ReadCloser, error) {
	if err := r.Check(h.ref.Size); err != nil {
		return nil, err
	}
	if r.Len == 0 {
		return io.NopCloser(eof{}), nil
	}
	return &reader{j: h.start(ctx, []blob.Range{r})}, nil
}

// ReadRanges implements blob.MultiReader.
func (h *remote) ReadRanges(ctx context.Context, ranges []blob.Range, land blob.Land) error {
	if err := blob.CheckRanges(ranges, h.ref.Size); err != nil {
		return err
	}
	if len(ranges) == 0 {
		return nil
	}
	j := h.start(ctx, ranges)
	defer j.end()
	return j.deliver(land)
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }
