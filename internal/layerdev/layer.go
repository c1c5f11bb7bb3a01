package layerdev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"skimmer/internal/blob"
)

// The defaults of a LayerConfig.
const (
	DefaultIOTimeout    = 5 * time.Minute
	DefaultMaxReadahead = 8 << 20
)

// LayerConfig says where a Layer gets what it misses. Blob is required.
type LayerConfig struct {
	// Name is what logs and errors call the layer.
	Name string
	// Blob opens the layer blob. It is called when something is missed, again
	// after it failed, and never twice at a time. The layer closes the blob.
	Blob func(ctx context.Context) (blob.Blob, error)
	// Pool is shared by the layers of a node. Default: one per process.
	Pool *Pool
	// IOTimeout limits how long a reader waits for data, through whatever
	// failures of the source that may pass, and how long a fetch may go without
	// receiving any. Default DefaultIOTimeout.
	IOTimeout time.Duration
	// MaxReadahead limits how much is fetched ahead of a sequential reader, in
	// compressed bytes. Default DefaultMaxReadahead.
	MaxReadahead int64
	// Pace, where set, is called before n compressed bytes are fetched with
	// priority Background, and returns when they may be.
	Pace func(ctx context.Context, n int64) error
	// Logger receives what a person may need to know. Default: discard.
	Logger *slog.Logger
	// FileAt, where set, returns what people call the file that holds the byte
	// at off of the flat data, for logs and errors; empty where it does not
	// know. Default: the name in the layer's index. It is called with locks of
	// the layer held and must not call it.
	FileAt func(off int64) string
	// OnRead, where set, is told of every read with priority Demand, once it
	// can be answered, in the reader's goroutine; not of those of a layer that
	// was complete when it was opened. OnFetch is told of every range that was
	// asked of the source, once it is over. Both must be quick.
	OnRead  func(Access)
	OnFetch func(Fetched)
	// OnComplete, where set, is called once when nothing is missing any more
	// and that is durable; not for layers that are complete when opened.
	OnComplete func()
}

// Access is a read of a part of a layer.
type Access struct {
	// First and Last are the chunks [First, Last) it touched, by their numbers
	// in the layer's index; Bytes are those in them.
	First, Last int
	Bytes       int64
	// Missed is how many of them were missing; where that is 0, nothing of what
	// follows is set.
	Missed int
	// File is the name of the file that the first missing one is in.
	File string
	// At is when the reader began to wait, Wait how long it did.
	At   time.Time
	Wait time.Duration
	// From is where the bytes came from of the ranges of the blob that the
	// chunks were in, as far as they had come by then. Of several who wait for
	// one range, the first to be answered is told of its bytes.
	From Origins
	// Err is why it failed.
	Err error
}

// Fetched is a range of the blob that was asked of the source.
type Fetched struct {
	// First and Last are the first chunk in it and the one behind the last. Where
	// the source can leave out what lies between, not all between them are: Bytes
	// are those of flat data in the ones that are.
	First, Last int
	Bytes       int64
	Priority    blob.Priority
	// At is when it was asked for, Took how long it did.
	At   time.Time
	Took time.Duration
	From Origins
	Err  error
}

// Origins are compressed bytes by where they came from, as blob.Traffic has
// them.
type Origins struct{ Local, Peers, Origin int64 }

func originsOf(t *blob.Traffic) Origins {
	return Origins{t.Local.Load(), t.Peers.Load(), t.Origin.Load()}
}

func (o *Origins) add(p Origins) {
	o.Local += p.Local
	o.Peers += p.Peers
	o.Origin += p.Origin
}

// Layer is the flat data of a layer, of which any part may still be missing.
// All its methods are safe for concurrent use, except that nothing may be
// called after Close. It implements File.
type Layer struct {
	// Constant after OpenLayer.
	dir    string
	cfg    LayerConfig
	log    *slog.Logger
	pool   *Pool
	size   int64
	data   *os.File
	record *os.File        // nil in a layer that was complete when opened
	ctx    context.Context // ends when Close begins
	stop   context.CancelFunc
	work   sync.WaitGroup
	done   chan struct{} // closed when complete
	open   chan struct{} // holds one token: the right to open the blob

	// Atomics.
	stats    counters
	contents atomic.Pointer[contents] // nil before the first read, and in layers opened complete
	unsynced atomic.Int64             // bytes written since the last checkpoint
	syncing  atomic.Bool

	// loadMu is held while contents are loaded.
	loadMu sync.Mutex

	// mu guards what follows. It is never held while waiting.
	mu      sync.Mutex
	closed  bool
	blob    blob.Blob
	flights map[int]*flight // by stream
	growing *run            // the last one that streams may be added to; nil if none
	cursors cursors
	outage  outage
}

// OpenLayer opens the layer in dir, which Create made. It reads one small
// header; index and record are read when first needed. A layer that is not
// complete can be open once at a time, in any process: Busy otherwise. A
// folder that is not a layer's is NotFound or Corrupt, and can be made again
// with Create after it has been removed.
func OpenLayer(dir string, cfg LayerConfig) (*Layer, error) {
	if cfg.Pool == nil {
		cfg.Pool = processPool()
	}
	if cfg.IOTimeout <= 0 {
		cfg.IOTimeout = DefaultIOTimeout
	}
	if cfg.MaxReadahead <= 0 {
		cfg.MaxReadahead = DefaultMaxReadahead
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Layer{
		dir:     dir,
		cfg:     cfg,
		log:     cfg.Logger.With("layer", cfg.Name),
		pool:    cfg.Pool,
		done:    make(chan struct{}),
		open:    make(chan struct{}, 1),
		flights: make(map[int]*flight),
	}
	if err := l.openFiles(); err != nil {
		l.closeFiles()
		return nil, blob.Errorf(blob.KindOf(err), "open layer folder %s: %w", dir, err)
	}
	// context.Background: the layer owns its lifetime and ends it in Close.
	l.ctx, l.stop = context.WithCancel(context.Background())
	return l, nil
}

func (l *Layer) openFiles() error {
	size, complete := completeSize(l.dir)
	if complete {
		l.size = size
		close(l.done)
	} else {
		var err error
		if l.record, err = os.OpenFile(filepath.Join(l.dir, presentName), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			return err
		}
		if err := lock(l.record); err != nil {
			return err
		}
		h, ok := readHeader(l.record)
		if !ok {
			if h, err = l.startOver(); err != nil {
				return err
			}
		}
		l.size = h.size
	}
	var err error
	l.data, err = os.OpenFile(filepath.Join(l.dir, dataName), os.O_RDWR|os.O_CREATE, 0o600)
	return err
}

// startOver makes the layer one of which nothing is present.
func (l *Layer) startOver() (header, error) {
	ix, sum, err := readIndex(l.dir)
	if err != nil {
		return header{}, err
	}
	l.log.Warn("record of present chunks is damaged or missing: fetching the layer anew")
	h := header{size: ix.DataSize, chunks: uint32(len(ix.Chunks)), indexSum: sum}
	return h, reset(l.dir, h)
}

func (l *Layer) closeFiles() {
	for _, f := range []*os.File{l.record, l.data} {
		if f != nil {
			f.Close() // Whatever had to be durable has been synced.
		}
	}
}

// Size implements File.
func (l *Layer) Size() int64 { return l.size }

// IsComplete reports whether nothing is missing, for good: the data file can
// be used without the Layer, see CompleteData.
func (l *Layer) IsComplete() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// Completed returns a channel that is closed when IsComplete becomes true.
func (l *Layer) Completed() <-chan struct{} { return l.done }

// Ready implements File: it fetches what is missing of the n bytes at off, and
// waits for it. It fetches with the priority of ctx, Demand when nobody said.
// With Demand it waits through failures of the source that may pass, trying
// again now and then; with others those are errors.
//
// Errors: Timeout after IOTimeout, Corrupt where the source delivers other
// bytes than the index promises, Canceled, and whatever the source fails
// with. Nothing of a failed fetch is kept, and the next reader tries again.
func (l *Layer) Ready(ctx context.Context, off, n int64) error {
	_, err := l.ready(ctx, off, off+n)
	return err
}

// ReadAt implements File: it reads flat data as io.ReaderAt does, waiting as
// Ready does. Where the disk has no room for what was fetched, the read is
// answered from memory.
func (l *Layer) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, blob.Errorf(blob.Invalid, "read layer %s at %d: negative offset", l.cfg.Name, off)
	}
	if off >= l.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), l.size-off))
	loose, err := l.ready(ctx, off, off+int64(n))
	if err != nil {
		return 0, err
	}
	if m, err := l.data.ReadAt(p[:n], off); err != nil {
		l.stats.errors.Add(1)
		return m, fmt.Errorf("read data file of layer %s: %w", l.cfg.Name, err)
	}
	for _, c := range loose {
		from := max(off, c.off)
		to := min(off+int64(n), c.off+int64(len(c.data)))
		if from < to {
			copy(p[from-off:to-off], c.data[from-c.off:])
		}
	}
	l.stats.read.Add(int64(n))
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// looseChunk is a chunk that is in memory because it is not on the disk.
type looseChunk struct {
	off  int64
	data []byte
}

// ready makes [off, end) readable from the data file, but for what it returns.
func (l *Layer) ready(ctx context.Context, off, end int64) ([]looseChunk, error) {
	if off >= end || l.IsComplete() && l.contents.Load() == nil {
		return nil, nil
	}
	c, err := l.load()
	if err != nil {
		return nil, err
	}
	first, last := c.chunks(off, end)
	prio := blob.PriorityOf(ctx)
	if prio == blob.Demand {
		l.use(c, first, last)
	}
	if c.present.all(first, last) {
		if prio == blob.Demand {
			if c.missing.Load() > 0 {
				l.runAhead(c, off, end)
			}
			if l.cfg.OnRead != nil && first < last {
				l.cfg.OnRead(Access{First: first, Last: last, Bytes: c.bytes(first, last)})
			}
		}
		return nil, nil
	}
	return l.demand(ctx, c, want{off: off, end: end, first: first, last: last, prio: prio})
}

// Close ends all fetching, makes what is present durable and frees the
// layer. Readers that still wait fail. Closing again does nothing.
func (l *Layer) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	b := l.blob
	l.blob = nil
	l.mu.Unlock()
	l.stop()
	l.work.Wait()
	var errs []error
	if b != nil {
		errs = append(errs, b.Close())
	}
	if c := l.contents.Load(); c != nil && l.unsynced.Load() > 0 {
		errs = append(errs, c.journal.checkpoint(l.data))
	}
	l.pool.dropLayer(l)
	l.closeFiles()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close layer %s: %w", l.cfg.Name, err)
	}
	return nil
}

// spawn runs f in a goroutine that Close waits for. l.mu is held, so that
// Close either sees it or has been seen.
func (l *Layer) spawn(f func()) bool {
	if l.closed {
		return false
	}
	l.work.Go(f)
	return true
}

// counters are what Stats is made from.
type counters struct {
	runs, fetched, streams, chunks, inflated, read   atomic.Int64
	used                                             atomic.Int64
	faults, waits, waited, longest, errors, timeouts atomic.Int64
	corrupt, loose, outages, retries                 atomic.Int64
}

// Stats are a layer's counters since it was opened. Bytes, but for times.
type Stats struct {
	Runs     int64 // ranges asked of the source
	Fetched  int64 // compressed bytes received
	Streams  int64 // streams inflated
	Chunks   int64 // chunks verified and made present
	Inflated int64 // bytes in them
	Read     int64 // bytes ReadAt returned
	Used     int64 // bytes in chunks that readers wanted, each chunk once
	Faults   int64 // reads that had to wait
	Waits    int64 // chunks waited for in them
	Errors   int64 // failed fetches and waits, cancelled ones not counted
	Timeouts int64 // waits that ended because they took too long
	Corrupt  int64 // streams whose content was not what the index promises
	Loose    int64 // chunks kept in memory because the disk was full
	Outages  int64 // times readers began to wait because the source failed
	Retries  int64 // fetches tried again for them

	Waited  time.Duration // by all readers together
	Longest time.Duration // by one reader
}

// Stats returns the layer's counters.
func (l *Layer) Stats() Stats {
	s := &l.stats
	return Stats{
		Runs: s.runs.Load(), Fetched: s.fetched.Load(), Streams: s.streams.Load(),
		Chunks: s.chunks.Load(), Inflated: s.inflated.Load(), Read: s.read.Load(), Used: s.used.Load(),
		Faults: s.faults.Load(), Waits: s.waits.Load(), Errors: s.errors.Load(),
		Timeouts: s.timeouts.Load(), Corrupt: s.corrupt.Load(), Loose: s.loose.Load(),
		Outages: s.outages.Load(), Retries: s.retries.Load(),
		Waited: time.Duration(s.waited.Load()), Longest: time.Duration(s.longest.Load()),
	}
}

func (s *counters) wait(d time.Duration) {
	s.waited.Add(int64(d))
	for {
		old := s.longest.Load()
		if int64(d) <= old || s.longest.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}
