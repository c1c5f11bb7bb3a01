package store

import (
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// Info says what the store has of a blob.
type Info struct {
	Digest digest.Digest
	// Size is the blob's length in bytes, Present how many of them are held.
	Size, Present int64
	MediaType     string
	// Repository is where it came from first; URL, without its query, where a
	// plain URL had it.
	Repository, URL string
	// Complete is whether all of it is held and its digest, if it has one that
	// says what its bytes are, was right.
	Complete bool
	// Pinned is whether Pin keeps it.
	Pinned bool
	// LastUsed is when it was last opened or closed.
	LastUsed time.Time
}

// Stats counts what a store did since Open. Bytes and numbers only grow,
// except Used, Blobs and Full, which are as of now.
type Stats struct {
	// HitBytes were served from disk, FetchedBytes read from the source behind
	// to be kept, PassedBytes read from it without being kept.
	HitBytes, FetchedBytes, PassedBytes int64
	// Fetches counts runs asked for, Joins readers served by a run that another
	// reader had asked for.
	Fetches, Joins int64
	// EvictedBytes and EvictedBlobs were removed to make space.
	EvictedBytes, EvictedBlobs int64
	// CRCFailures counts pieces that were damaged on disk, DigestFailures blobs
	// whose content was not what their digest says, Rejected calls of Reject.
	CRCFailures, DigestFailures, Rejected int64
	// Used is the size of all pieces on disk in bytes, Blobs how many blobs
	// they belong to.
	Used, Blobs int64
	// Full is whether reads pass through because nothing can be kept.
	Full bool
}

type counters struct {
	hitBytes, fetchedBytes, passedBytes   atomic.Int64
	fetches, joins                        atomic.Int64
	evictedBytes, evictedBlobs            atomic.Int64
	crcFailures, digestFailures, rejected atomic.Int64
}

// Stats returns the counters.
func (s *Store) Stats() Stats {
	c := &s.count
	st := Stats{
		HitBytes: c.hitBytes.Load(), FetchedBytes: c.fetchedBytes.Load(), PassedBytes: c.passedBytes.Load(),
		Fetches: c.fetches.Load(), Joins: c.joins.Load(),
		EvictedBytes: c.evictedBytes.Load(), EvictedBlobs: c.evictedBlobs.Load(),
		CRCFailures: c.crcFailures.Load(), DigestFailures: c.digestFailures.Load(), Rejected: c.rejected.Load(),
		Used: s.used.Load(), Full: s.room.closed.Load(),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.entries {
		if e.bytes > 0 {
			st.Blobs++
		}
	}
	return st
}

// List returns all blobs there is something of, sorted by digest. It
// reads the journals of blobs that were not used since Open.
func (s *Store) List() ([]Info, error) {
	var all []Info
	for _, e := range s.all() {
		i, err := s.Stat(e.digest)
		if blob.KindOf(err) == blob.NotFound {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, i)
	}
	slices.SortFunc(all, func(a, b Info) int { return strings.Compare(a.Digest.String(), b.Digest.String()) })
	return all, nil
}

// Stat says what is held of blob d; NotFound if nothing.
func (s *Store) Stat(d digest.Digest) (Info, error) {
	if err := blob.CheckDigest(d); err != nil {
		return Info{}, blob.Errorf(blob.Invalid, "stat blob: %w", err)
	}
	e, err := s.acquire(d)
	if err != nil {
		return Info{}, err
	}
	defer s.release(e)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.load()
	if !e.created {
		return Info{}, blob.Errorf(blob.NotFound, "stat blob %s: not held", d)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return Info{
		Digest: d, Size: e.geo.size, Present: e.presentBytes(),
		MediaType: e.info.MediaType, Repository: e.info.Repository, URL: e.info.URL,
		Complete: e.complete, Pinned: s.pins[d] > 0, LastUsed: e.lastUsed,
	}, nil
}

// Remove deletes blob d from disk. Errors: NotFound, and Busy while it is
// pinned or open.
func (s *Store) Remove(d digest.Digest) error {
	if _, err := s.Stat(d); err != nil {
		return err
	}
	s.mu.Lock()
	e := s.entries[d]
	for e != nil && e.refs > 0 && e.opens == 0 && s.pins[d] == 0 {
		s.idled.Wait() // for the store's own work on it
		e = s.entries[d]
	}
	s.mu.Unlock()
	if e == nil {
		return blob.Errorf(blob.NotFound, "remove blob %s: not held", d)
	}
	if _, err := s.removeIdle(e); err != nil {
		return blob.Errorf(blob.KindOf(err), "remove blob %s: %w", d, err)
	}
	return nil
}

// Missing returns the parts of r that are not held, in order and as few as
// can be; what is being fetched is not held yet. Errors: Invalid if ref is
// malformed or r not inside the blob.
func (s *Store) Missing(ref blob.Ref, r blob.Range) ([]blob.Range, error) {
	if err := ref.Validate(); err != nil {
		return nil, err
	}
	e, err := s.acquire(ref.Digest)
	if err != nil {
		return nil, err
	}
	defer s.release(e)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.load()
	size := ref.Size
	if e.sized {
		size = e.geo.size
	}
	if size == blob.SizeUnknown {
		size = maxSize
	}
	if err := r.Check(size); err != nil {
		return nil, err
	}
	if !e.sized && r.Len > 0 {
		return []blob.Range{r}, nil
	}
	return e.lacking(r), nil
}

// lacking returns the parts of r that are not held. Caller holds e.mu.
func (e *entry) lacking(r blob.Range) (gaps []blob.Range) {
	for off := r.Off; off < r.End(); {
		i := e.geo.piece(off)
		end := min(r.End(), e.geo.start(i+1))
		n := len(gaps)
		switch {
		case e.present.has(i):
		case n > 0 && gaps[n-1].End() == off:
			gaps[n-1].Len += end - off
		default:
			gaps = append(gaps, blob.Range{Off: off, Len: end - off})
		}
		off = end
	}
	return gaps
}
