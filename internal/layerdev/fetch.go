package layerdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"skimmer/internal/blob"
)

const (
	// batchBytes is how many compressed bytes of small streams are inflated in
	// one go.
	batchBytes = 256 << 10
	// maxBuffered is the longest stream that is taken into memory before it is
	// inflated, in compressed bytes.
	maxBuffered = 8 << 20
	// checkpointBytes is how much may be written between checkpoints.
	checkpointBytes = 64 << 20
)

// fetch fetches a run: one range of the blob, whose streams are inflated in
// parallel while the rest is still arriving.
func (l *Layer) fetch(c *contents, r *run) {
	var err error
	if r.over != nil {
		defer r.over()
	}
	if r.pieces {
		l.gatherPieces(r)
	}
	ctx, cancel := context.WithCancelCause(blob.WithPriority(l.ctx, r.prio))
	defer cancel(nil)
	stalled := blob.Errorf(blob.Timeout, "source has delivered nothing for %v", l.cfg.IOTimeout)
	watchdog := time.AfterFunc(l.cfg.IOTimeout, func() { cancel(stalled) })
	defer watchdog.Stop()

	var tasks sync.WaitGroup
	defer tasks.Wait()
	in := &inflow{l: l, c: c, r: r, tasks: &tasks, watchdog: watchdog}
	if l.cfg.OnFetch != nil {
		defer l.tellFetched(c, r, time.Now(), &err)
	}
	err = in.receive(blob.WithTraffic(ctx, &r.traffic))
	if r.received != nil {
		r.received()
	}
	if err == nil {
		return
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if l.ctx.Err() != nil {
		err = errClosed
	}
	left := in.left()
	l.fetchFailed(c, r, left, err)
	for _, f := range left {
		l.land(f, err, false)
	}
}

// tellFetched tells who wants to know that a run is over, which began at start.
func (l *Layer) tellFetched(c *contents, r *run, start time.Time, err *error) {
	first, last := c.ix.Streams[r.first], c.ix.Streams[r.last()]
	f := Fetched{
		First: int(first.FirstChunk), Last: int(last.FirstChunk + last.NumChunks), Priority: r.prio,
		At: start, Took: time.Since(start), From: originsOf(&r.traffic), Err: *err,
	}
	for _, flight := range r.flights {
		s := c.ix.Streams[flight.stream]
		f.Bytes += c.bytes(int(s.FirstChunk), int(s.FirstChunk+s.NumChunks))
	}
	l.cfg.OnFetch(f)
}

// left returns the flights that have not been handed over.
func (in *inflow) left() []*flight {
	if in.handed == nil {
		return in.r.flights[in.next:]
	}
	var left []*flight
	for i, f := range in.r.flights {
		if !in.handed[i] {
			left = append(left, f)
		}
	}
	return left
}

// fetchFailed counts a run that broke off with some flights left. Readers who
// wait for it, and whoever asked for it to be prefetched, say themselves what
// it means to them.
func (l *Layer) fetchFailed(c *contents, r *run, left []*flight, err error) {
	if errors.Is(err, errClosed) {
		return
	}
	l.stats.errors.Add(1)
	s := c.ix.Streams[r.last()]
	if len(left) > 0 {
		s = c.ix.Streams[left[0].stream]
	}
	l.log.Debug("cannot fetch layer data", "file", l.fileAt(c, c.ix.Chunks[s.FirstChunk].DataOff),
		"blobOffset", s.Off, "streams", len(left), "error", err)
}

// inflow is a run being received.
type inflow struct {
	l        *Layer
	c        *contents
	r        *run
	tasks    *sync.WaitGroup
	watchdog *time.Timer
	src      io.Reader
	b        blob.Blob
	pos      int64  // in the blob, of src
	next     int    // flights before it have been handed over
	handed   []bool // which flights have, where they come in any order
}

// Read implements io.Reader over the source, noting progress.
func (in *inflow) Read(p []byte) (int, error) {
	n, err := in.src.Read(p)
	if n > 0 {
		in.pos += int64(n)
		in.l.stats.fetched.Add(int64(n))
		in.watchdog.Reset(in.l.cfg.IOTimeout)
	}
	return n, err
}

// receive reads the run's range and hands its streams over to be inflated.
func (in *inflow) receive(ctx context.Context) error {
	b, err := in.l.openBlob(ctx)
	if err != nil {
		return err
	}
	in.b = b
	streams := in.c.ix.Streams
	rg := blob.Range{Off: streams[in.r.first].Off}
	rg.Len = streams[in.r.last()].End - rg.Off
	if rg.End() > b.Size() {
		return blob.Errorf(blob.Corrupt, "blob has %d bytes, its index is of one with %d", b.Size(), in.c.ix.BlobSize)
	}
	in.l.stats.runs.Add(1)
	if m, ok := b.(blob.MultiReader); ok && in.r.several && len(in.r.flights) > 1 {
		return in.receiveSeveral(ctx, m)
	}
	rc, err := b.ReadRange(ctx, rg)
	if err != nil {
		return err
	}
	defer rc.Close()
	in.src, in.pos = rc, rg.Off
	for in.next < len(in.r.flights) {
		if err := in.skip(streams[in.r.flights[in.next].stream].Off); err != nil {
			return err
		}
		n, bytes := in.batch()
		if bytes <= maxBuffered && in.l.pool.reserve(bytes) {
			err = in.handOver(n, bytes)
		} else {
			err = in.inline()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// skip reads up to an offset of the blob.
func (in *inflow) skip(off int64) error {
	n, err := io.CopyN(io.Discard, in, off-in.pos)
	return short(err, n, "layer blob")
}

// short makes the early end of what a source delivers an error of a kind.
func short(err error, n int64, what string) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return blob.Errorf(blob.Unavailable, "source ended after %d bytes of the %s", n, what)
	}
	return err
}

// batch returns how many of the next streams to inflate in one go, and how
// many bytes they take: one, or several small ones.
func (in *inflow) batch() (n int, bytes int64) {
	streams, left := in.c.ix.Streams, in.r.flights[in.next:]
	start := streams[left[0].stream].Off
	for n = 1; n < len(left) && streams[left[n].stream].End-start <= batchBytes; n++ {
	}
	return n, streams[left[n-1].stream].End - start
}

var compressedBuffers sync.Pool // of *[]byte

// handOver reads the next n streams, whose bytes have been reserved, and has
// them inflated while it goes on.
func (in *inflow) handOver(n int, size int64) error {
	bp, _ := compressedBuffers.Get().(*[]byte)
	if bp == nil || int64(cap(*bp)) < size {
		p := make([]byte, max(size, batchBytes))
		bp = &p
	}
	p := (*bp)[:size]
	free := func() {
		compressedBuffers.Put(bp)
		in.l.pool.unreserve(size)
	}
	if got, err := io.ReadFull(in, p); err != nil {
		free()
		return short(err, int64(got), "stream")
	}
	flights := in.r.flights[in.next : in.next+n]
	in.next += n
	start := in.c.ix.Streams[flights[0].stream].Off
	parts := make([]part, n)
	for i, f := range flights {
		s := in.c.ix.Streams[f.stream]
		parts[i] = part{f, p[s.Off-start : s.End-start]}
	}
	in.tasks.Go(func() {
		defer free()
		in.inflateAll(parts)
	})
	return nil
}

// part is one stream's compressed bytes.
type part struct {
	f *flight
	p []byte
}

// inflateAll inflates streams, on a processor of the pool.
func (in *inflow) inflateAll(parts []part) {
	in.l.pool.acquire(in.r.prio)
	defer in.l.pool.release()
	in.inflateParts(parts)
}

// inflateParts inflates streams and records what is in them.
func (in *inflow) inflateParts(parts []part) {
	var done []extent
	for _, x := range parts {
		done = in.inflate(x.f, bytes.NewReader(x.p), done)
	}
	in.l.commit(in.c, done)
}

// inline inflates the next stream while it arrives.
func (in *inflow) inline() error {
	f := in.r.flights[in.next]
	s := in.c.ix.Streams[f.stream]
	in.next++
	var lost error
	part := readerFunc(func(p []byte) (int, error) {
		left := s.End - in.pos
		if left == 0 {
			return 0, io.EOF
		}
		n, err := in.Read(p[:min(int64(len(p)), left)])
		if err == io.EOF && in.pos < s.End {
			err = short(err, in.pos-s.Off, "stream")
		}
		if err != nil && err != io.EOF {
			lost = err
		}
		return n, err
	})
	in.l.commit(in.c, in.inflate(f, part, nil))
	if lost != nil {
		return lost
	}
	return in.skip(s.End)
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// inflate inflates one stream, ends its flight and appends its good chunks.
func (in *inflow) inflate(f *flight, compressed io.Reader, done []extent) []extent {
	l := in.l
	l.stats.streams.Add(1)
	s := &sink{l: l, c: in.c, f: f, chunk: -1, done: done}
	err := in.c.ix.Inflate(f.stream, compressed, s)
	refused := false
	if err != nil && l.ctx.Err() == nil {
		if errors.Is(err, blob.Corrupt) {
			l.stats.corrupt.Add(1)
			refused = in.refuse(f)
		}
		l.stats.errors.Add(1)
		l.log.Error("cannot use layer data", "error", err, "kind", blob.KindOf(err).Error())
	}
	l.land(f, err, refused)
	return s.done
}

// refuse tells a source that keeps what it reads that a stream of it is not
// what it should be.
func (in *inflow) refuse(f *flight) bool {
	r, ok := in.b.(blob.Rejecter)
	if ok {
		s := in.c.ix.Streams[f.stream]
		r.Reject(blob.Range{Off: s.Off, Len: s.End - s.Off})
	}
	return ok
}

// commit records chunks that were written and takes a checkpoint now and
// then.
func (l *Layer) commit(c *contents, done []extent) {
	if len(done) == 0 {
		return
	}
	if err := c.journal.add(done); err != nil {
		l.log.Warn("cannot record fetched chunks; the next process may fetch them again", "error", err)
	}
	var n, size int64
	for _, x := range done {
		n += int64(x.count)
		for i := x.first; i < x.first+x.count; i++ {
			size += c.ix.Chunks[i].Size
		}
	}
	l.stats.chunks.Add(n)
	l.stats.inflated.Add(size)
	if c.missing.Add(-n) == 0 {
		l.complete(c)
		return
	}
	if l.unsynced.Add(size) >= checkpointBytes && l.syncing.CompareAndSwap(false, true) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.spawn(func() { l.checkpoint(c) })
	}
}

func (l *Layer) checkpoint(c *contents) {
	defer l.syncing.Store(false)
	n := l.unsynced.Load()
	if err := c.journal.checkpoint(l.data); err != nil {
		l.log.Warn("cannot make fetched chunks durable", "error", err)
	}
	l.unsynced.Add(-n)
}

// openBlob returns the layer's blob, opened once.
func (l *Layer) openBlob(ctx context.Context) (blob.Blob, error) {
	select {
	case l.open <- struct{}{}:
		defer func() { <-l.open }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	l.mu.Lock()
	b := l.blob
	l.mu.Unlock()
	if b != nil {
		return b, nil
	}
	b, err := l.cfg.Blob(ctx)
	if err != nil {
		return nil, fmt.Errorf("open layer blob: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.Join(errClosed, b.Close())
	}
	l.blob = b
	return b, nil
}
