// Package store keeps blobs on disk, whole or in parts. It stands in the path
// of every byte a node reads: what it holds it serves from disk, the rest it
// fetches from the source behind it, once however many readers wait, and
// keeps for the next one.
//
// A blob is kept as a sparse file in which pieces arrive in any order, and a
// journal of the pieces that did. The promises:
//
//   - Bytes reach a reader as they arrive; nobody waits for a whole run.
//   - After a crash between any two file operations, or a power cut, the store
//     serves the bytes it was given or none. What was complete stays complete.
//   - The first read of a piece after the blob was opened from disk, and every
//     read that checks a digest, compares its CRC32C. A piece that fails is
//     forgotten and fetched again; the reader does not notice. Later reads
//     come from the page cache that was checked.
//   - A blob is called complete only after its digest was compared.
//   - A disk that is full, or fails, costs speed and not correctness: bytes
//     then pass from the source to the reader without being kept.
package store

import (
	"context"
	_ "crypto/sha256" // digests are computed by name
	_ "crypto/sha512"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"skimmer/internal/blob"
)

// Config says where a Store keeps blobs and how much it may keep. Dir is
// required; the zero value of the rest is what most machines want.
type Config struct {
	// Dir is the folder the store makes its "blobs" folder in.
	Dir string
	// HighWater is how many bytes of blobs may be kept before those used
	// longest ago are removed, down to LowWater. Blobs that are pinned or open
	// are not removed, so the store can grow past it. Default: 80 % of the
	// file system, and 7/8 of HighWater for LowWater (so 70 %).
	HighWater, LowWater int64
	// MinFree is how many bytes are left to others on the file system: below
	// it blobs are removed as above HighWater, and when that does not help
	// nothing more is kept. Default: 2 % of the file system, at most 4 GiB.
	// Negative: none.
	MinFree int64
	// PieceSize is how many bytes of a new blob are kept or missing together, a
	// power of two from MinPieceSize to MaxPieceSize; it is doubled for blobs
	// that would have more than 65,536 pieces. Small pieces suit readers of many
	// small parts. A blob on disk keeps the pieces it has. Default: 256 KiB.
	PieceSize int64
	// RandomRun is how many bytes at least are fetched for a read that stands
	// alone; a read that continues another gets twice as much as that one, up to
	// SequentialRun. Negative: reads fetch the pieces they ask for and nothing
	// more, for readers that look ahead themselves. SequentialRun is also the
	// most that is asked for at once. Both are rounded up to pieces. Defaults:
	// 256 KiB and 8 MiB.
	RandomRun, SequentialRun int64
	// DigestDelay is how long after its last piece came a blob is held against
	// its digest, if nobody waits for that. It is for sources whose pieces were
	// compared with something one by one. Default: while pieces arrive.
	DigestDelay time.Duration
	// Lost, where set, is told of blobs of which something is not held any more,
	// whatever the reason. It is called with locks held: it must be quick and
	// must not use the Store.
	Lost func(d digest.Digest)
	// Logger receives what a person may need to know. Default: discard.
	Logger *slog.Logger
	// FS lets tests fail file operations; leave it zero.
	FS FS
}

// settle fills in defaults, which may need the size of the file system.
func (c *Config) settle() error {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.PieceSize == 0 {
		c.PieceSize = DefaultPieceSize
	}
	if !isPieceSize(c.PieceSize, MaxPieceSize) {
		return blob.Errorf(blob.Invalid, "piece size %d: want a power of two in [%d, %d]", c.PieceSize, MinPieceSize, MaxPieceSize)
	}
	switch {
	case c.RandomRun == 0:
		c.RandomRun = 256 << 10
	case c.RandomRun < 0:
		c.RandomRun = 0 // which doubles to itself
	}
	if c.SequentialRun <= 0 {
		c.SequentialRun = 8 << 20
	}
	c.SequentialRun = max(c.SequentialRun, c.RandomRun)
	total, _, err := c.FS.space(c.Dir)
	if err != nil {
		return err
	}
	if c.HighWater == 0 {
		c.HighWater = total / 10 * 8
	}
	if c.LowWater == 0 {
		c.LowWater = c.HighWater / 8 * 7
	}
	if c.MinFree == 0 {
		c.MinFree = min(total/50, 4<<30)
	}
	if c.HighWater < 0 || c.LowWater < 0 || c.LowWater > c.HighWater {
		return blob.Errorf(blob.Invalid, "water marks: low %d and high %d bytes: want 0 <= low <= high", c.LowWater, c.HighWater)
	}
	return nil
}

// Store is a folder of blobs. One process uses it at a time. Its methods are
// safe for concurrent use.
type Store struct {
	// Constant after Open.
	cfg    Config
	fs     *FS
	log    *slog.Logger
	root   string
	lock   *os.File
	ctx    context.Context // ends when Close begins
	stop   context.CancelFunc
	kick   chan struct{} // asks the keeper for a round; holds one
	dirty  chan struct{} // tells the keeper that there is something to sync; holds one
	hashes chan struct{} // a slot per blob that may be hashed at a time

	// Atomics.
	used  atomic.Int64 // bytes of pieces on disk
	fresh atomic.Int64 // bytes kept since the keeper's last round
	count counters

	evicting sync.Mutex     // held while blobs are removed for space
	work     sync.WaitGroup // everything the store runs; joined by Close
	room     room           // whether bytes are kept at all

	// mu guards what follows. It is the innermost lock.
	mu      sync.Mutex
	closed  bool
	entries map[digest.Digest]*entry
	pins    map[digest.Digest]int
	idled   *sync.Cond // on mu: nobody holds some entry any more
}

// Open opens the store in cfg.Dir, making it where there is none. It reads
// what every blob is, but its pieces only when the blob is used, so it is
// quick. A folder that another process uses is refused with a Busy error.
// The caller closes the Store.
func Open(cfg Config) (*Store, error) {
	s, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("open blob store %s: %w", cfg.Dir, err)
	}
	s.work.Go(s.keep)
	return s, nil
}

func open(cfg Config) (*Store, error) {
	s := &Store{
		root:    filepath.Join(cfg.Dir, "blobs"),
		kick:    make(chan struct{}, 1),
		dirty:   make(chan struct{}, 1),
		hashes:  make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
		entries: make(map[digest.Digest]*entry),
		pins:    make(map[digest.Digest]int),
	}
	s.idled = sync.NewCond(&s.mu)
	if cfg.Dir == "" {
		return nil, blob.Errorf(blob.Invalid, "no directory given")
	}
	if err := cfg.FS.mkdirAll(s.root); err != nil {
		return nil, err
	}
	if err := cfg.settle(); err != nil {
		return nil, err
	}
	s.cfg, s.fs, s.log = cfg, &s.cfg.FS, cfg.Logger
	lock, err := lockDir(s.root)
	if err != nil {
		return nil, err
	}
	s.lock = lock
	if err := s.scan(); err != nil {
		lock.Close()
		return nil, err
	}
	// context.Background: the store owns its lifetime and ends it in Close.
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s, nil
}

// lockDir takes the folder for this process. The kernel gives it back when
// the process ends, however it does.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, blob.Errorf(blob.Busy, "another process uses it: stop that one or choose another directory")
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// scan makes an entry for every blob in the folder and clears away what is
// left of those whose creation or removal was interrupted.
func (s *Store) scan() error {
	for _, alg := range []digest.Algorithm{digest.SHA256, digest.SHA384, digest.SHA512, blob.AlgorithmURL} {
		prefixes, err := names(filepath.Join(s.root, alg.String()))
		if err != nil {
			return err
		}
		for _, prefix := range prefixes {
			hexes, err := names(filepath.Join(s.root, alg.String(), prefix))
			if err != nil {
				return err
			}
			for _, hex := range hexes {
				d := digest.NewDigestFromEncoded(alg, hex)
				if blob.CheckDigest(d) == nil && hex[:2] == prefix {
					s.survey(newEntry(s, d))
				}
			}
		}
	}
	return nil
}

// survey adds e, whose folder exists, if it is a blob.
func (s *Store) survey(e *entry) {
	known, err := e.survey()
	if err != nil {
		s.log.Warn("dropping a blob whose record is damaged", "digest", e.digest, "error", err)
	}
	if known {
		s.entries[e.digest] = e
		return
	}
	if err := e.removeFiles(); err != nil {
		s.log.Warn("cannot clear away the rest of a blob", "path", e.dir, "error", err)
	}
}

// names returns the names in dir, none if there is no such folder.
func names(dir string) ([]string, error) {
	list, err := os.ReadDir(dir)
	if err != nil && !isMissing(err) {
		return nil, err
	}
	var all []string
	for _, entry := range list {
		all = append(all, entry.Name())
	}
	return all, nil
}

// Close ends all fetches, makes what was kept durable and gives the folder
// up. Blobs that are still open fail from then on, with an Unavailable error;
// they are to be closed all the same.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.work.Wait()

	var errs []error
	for _, e := range s.all() {
		s.hold(e)
		errs = append(errs, e.checkpoint())
		s.release(e)
		e.close()
	}
	errs = append(errs, s.lock.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close blob store %s: %w", s.cfg.Dir, err)
	}
	return nil
}

// Pin keeps the blob d, where and as far as it is held, now or later, from
// being removed until release was called as often as Pin. Calling one release
// again does nothing.
func (s *Store) Pin(d digest.Digest) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pins[d]++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.pins[d]--; s.pins[d] == 0 {
			delete(s.pins, d)
		}
	})
}

// errClosed is why nothing works after Close.
func (s *Store) errClosed() error {
	return blob.Errorf(blob.Unavailable, "blob store %s is closed", s.cfg.Dir)
}

// spawn runs f, which holds e, in a goroutine that Close waits for; false
// once closed.
func (s *Store) spawn(e *entry, f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	e.refs++
	s.work.Go(func() {
		defer s.release(e)
		f()
	})
	return true
}

// acquire returns the entry of d, which then stays as it is in memory and on
// disk until release.
func (s *Store) acquire(d digest.Digest) (*entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, s.errClosed()
	}
	e := s.entries[d]
	if e == nil {
		e = newEntry(s, d)
		s.entries[d] = e
	}
	e.refs++
	return e, nil
}

// hold is acquire for an entry that the caller already holds.
func (s *Store) hold(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.refs++
}

func (s *Store) release(e *entry) {
	s.mu.Lock()
	e.refs--
	idle := e.refs == 0
	if idle {
		s.idled.Broadcast()
	}
	s.mu.Unlock()
	if idle {
		e.rest()
	}
}

// idle reports whether nobody holds e.
func (s *Store) idle(e *entry) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.refs == 0
}

// forget removes e, of which nothing is on disk, unless somebody holds it.
func (s *Store) forget(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.refs == 0 && s.entries[e.digest] == e {
		delete(s.entries, e.digest)
	}
}

// all returns the entries there are now, in no order.
func (s *Store) all() []*entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	es := make([]*entry, 0, len(s.entries))
	for _, e := range s.entries {
		es = append(es, e)
	}
	return es
}

// isMissing reports an error that says a file is not there.
func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
