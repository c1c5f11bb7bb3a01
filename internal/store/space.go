package store

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"skimmer/internal/blob"
)

const (
	// checkpointAfter is how long kept bytes may wait to be made durable.
	checkpointAfter = 10 * time.Second
	// retryKeeping is how long a full disk is left alone.
	retryKeeping = 5 * time.Second
	// lookEvery is how many bytes are kept between two looks at free space.
	lookEvery = 64 << 20
)

// wake sends to a channel that holds one wish.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// keep makes kept bytes durable and room for more, until Close.
func (s *Store) keep() {
	var soon <-chan time.Time
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-s.dirty:
			if soon == nil {
				soon = time.After(checkpointAfter)
			}
		case <-s.kick:
			s.tend(checkpointEvery)
		case <-soon:
			soon = nil
			s.tend(1)
		}
	}
}

// tend is one round of keep: blobs of which at least dirty bytes are not
// known to be durable are synced, and space is made.
func (s *Store) tend(dirty int64) {
	for _, e := range s.all() {
		e.mu.Lock()
		due := e.dirty >= dirty
		if !e.unjudged.IsZero() && time.Since(e.unjudged) >= s.cfg.DigestDelay {
			e.unjudged = time.Time{}
			e.kickHash()
		} else if !e.unjudged.IsZero() {
			wake(s.dirty) // to come back to it
		}
		e.mu.Unlock()
		if !due {
			continue
		}
		s.hold(e)
		if err := e.checkpoint(); err != nil {
			s.log.Warn("cannot make a blob durable", "error", err)
		}
		s.release(e)
	}
	s.makeSpace()
}

// makeSpace removes blobs if there are too many.
func (s *Store) makeSpace() {
	s.fresh.Store(0)
	var goal, free int64
	if used := s.used.Load(); used > s.cfg.HighWater {
		goal = used - s.cfg.LowWater
	}
	low := false
	if s.cfg.MinFree > 0 {
		var err error
		if _, free, err = s.fs.space(s.root); err != nil {
			s.log.Warn("cannot tell how much space is free", "error", err)
		} else if low = free < s.cfg.MinFree; low {
			goal = max(goal, s.cfg.MinFree+s.cfg.MinFree/4-free)
		}
	}
	if goal == 0 {
		s.room.crowded.Store(false)
		return
	}
	freed := s.evict(goal)
	if low && free+freed < s.cfg.MinFree {
		s.noRoom(blob.Errorf(blob.Full, "%d bytes free on the file system of %s, want %d", free+freed, s.root, s.cfg.MinFree))
	}
	if freed < goal && !s.room.crowded.Swap(true) {
		s.log.Warn("blob store exceeds its limit: what is left is mounted or open",
			"used", s.used.Load(), "highWater", s.cfg.HighWater)
	}
}

// evict removes blobs, least recently used first, until goal bytes are gone
// or nothing more may go. It returns how many went.
func (s *Store) evict(goal int64) (freed int64) {
	s.evicting.Lock()
	defer s.evicting.Unlock()
	for _, e := range s.victims() {
		if freed >= goal {
			break
		}
		n, err := s.removeIdle(e)
		if err != nil && blob.KindOf(err) != blob.Busy {
			s.log.Warn("cannot remove a blob to make space", "digest", e.digest, "error", err)
		}
		if n > 0 {
			freed += n
			s.count.evictedBytes.Add(n)
			s.count.evictedBlobs.Add(1)
			s.log.Debug("removed a blob to make space", "digest", e.digest, "bytes", n)
		}
	}
	return freed
}

// victims returns what may be removed, least recently used first.
func (s *Store) victims() []*entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	var es []*entry
	for _, e := range s.entries {
		if e.bytes > 0 && !s.busy(e) {
			es = append(es, e)
		}
	}
	slices.SortFunc(es, func(a, b *entry) int { return a.lastUsed.Compare(b.lastUsed) })
	return es
}

// busy reports whether e has to stay. Caller holds s.mu.
func (s *Store) busy(e *entry) bool { return e.refs > 0 || s.pins[e.digest] > 0 }

// removeIdle removes e from disk unless it is busy, and returns the bytes
// that freed.
func (s *Store) removeIdle(e *entry) (freed int64, err error) {
	s.mu.Lock()
	if s.closed || s.busy(e) {
		s.mu.Unlock()
		return 0, blob.Errorf(blob.Busy, "blob %s is mounted or being read", e.digest)
	}
	e.refs++ // nobody else erases it; who opens it now finds it gone
	freed = e.bytes
	s.mu.Unlock()
	defer s.release(e)

	e.mu.Lock()
	defer e.mu.Unlock()
	e.loaded = true
	if err := e.erase(); err != nil {
		return 0, err
	}
	s.room.retryNow()
	return freed, nil
}

// room says whether what is fetched is kept. A write that fails for want of
// space, or at all, closes it; it opens again when one succeeds.
type room struct {
	// Atomics.
	closed  atomic.Bool
	crowded atomic.Bool // said that HighWater cannot be kept

	// mu guards what follows.
	mu    sync.Mutex
	trial bool      // a fetch was let through to see whether it works again
	retry time.Time // when to try next
}

func (r *room) retryNow() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.retry = time.Time{}
}

// keeping reports whether a fetch about to start may keep what it gets.
func (s *Store) keeping() bool {
	r := &s.room
	if !r.closed.Load() {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Now().Before(r.retry) {
		return false
	}
	r.retry = time.Now().Add(retryKeeping)
	if s.cfg.MinFree > 0 {
		if _, free, err := s.fs.space(s.root); err == nil && free < s.cfg.MinFree {
			return false
		}
	}
	r.trial = true
	return true
}

// noRoom notes that nothing can be kept for now, and says so once.
func (s *Store) noRoom(why error) {
	r := &s.room
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trial = false
	r.retry = time.Now().Add(retryKeeping)
	if !r.closed.Swap(true) {
		s.log.Warn("cannot keep blobs on disk: reads pass through until there is room", "error", why)
	}
}

// kept notes that n bytes were written.
func (s *Store) kept(n int64) {
	if s.fresh.Add(n) >= lookEvery || s.used.Load() > s.cfg.HighWater {
		wake(s.kick)
	}
	r := &s.room
	if !r.closed.Load() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.trial {
		r.trial = false
		r.closed.Store(false)
		s.log.Info("keeping blobs on disk again")
	}
}
