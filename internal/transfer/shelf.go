package transfer

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/blob"
)

// The limits of what a shelf keeps while nobody uses it.
const (
	shelfSize  = 128             // blobs
	shelfTime  = 2 * time.Second // since the last use
	spareFiles = 4               // descriptors of one blob
)

// shelf keeps blobs open between requests, because opening one, and a
// descriptor of its file, costs more than sending a small range of it.
type shelf struct {
	src blob.Source // constant

	// mu guards what follows.
	mu      sync.Mutex
	volumes map[digest.Digest]*volume
	sweeper *time.Timer // runs sweep; nil while the shelf is empty
	closed  bool
}

// volume is an open blob on a shelf, or one that was.
type volume struct {
	blob.Blob
	digest digest.Digest
	s      *shelf

	// Guarded by s.mu.
	users int
	since time.Time // when the last of them left
	off   bool      // the shelf: whoever leaves last closes it
	lent  *os.File  // what spare are copies of
	spare []*os.File
}

// get returns blob d, open until put.
func (s *shelf) get(ctx context.Context, d digest.Digest) (*volume, error) {
	s.mu.Lock()
	v := s.volumes[d]
	if v != nil {
		v.users++
	}
	s.mu.Unlock()
	if v != nil {
		return v, nil
	}
	b, err := s.src.Open(ctx, blob.Ref{Digest: d, Size: blob.SizeUnknown})
	if err != nil {
		return nil, err
	}
	v = &volume{Blob: b, digest: d, s: s, users: 1}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed || s.volumes[d] != nil:
		v.off = true // another request was quicker; this one uses its own
	default:
		s.shelve(v)
	}
	return v, nil
}

// shelve puts v in its place. Caller holds mu.
func (s *shelf) shelve(v *volume) {
	if s.volumes == nil {
		s.volumes = make(map[digest.Digest]*volume)
	}
	s.volumes[v.digest] = v
	if s.sweeper == nil {
		s.sweeper = time.AfterFunc(shelfTime, s.sweep)
	}
	if len(s.volumes) > shelfSize {
		var oldest *volume
		for _, w := range s.volumes {
			if w.users == 0 && (oldest == nil || w.since.Before(oldest.since)) {
				oldest = w
			}
		}
		if oldest != nil {
			oldest.remove()
		}
	}
}

// put gives v back.
func (s *shelf) put(v *volume) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v.users--
	v.since = time.Now()
	if v.users == 0 && v.off {
		v.close()
	}
}

// sweep closes what was not used for a while.
func (s *shelf) sweep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	for _, v := range s.volumes {
		if v.users == 0 && time.Since(v.since) >= shelfTime {
			v.remove()
		}
	}
	if len(s.volumes) == 0 {
		s.sweeper = nil
		return
	}
	s.sweeper.Reset(shelfTime)
}

// forget takes blob d off the shelf, and closes it if nobody uses it.
func (s *shelf) forget(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.volumes[d]; v != nil {
		v.remove()
	}
}

// close takes all blobs off the shelf; those in use are closed when they are
// given back.
func (s *shelf) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.sweeper != nil {
		s.sweeper.Stop()
	}
	for _, v := range s.volumes {
		v.remove()
	}
}

// remove takes v off the shelf. Caller holds s.mu.
func (v *volume) remove() {
	delete(v.s.volumes, v.digest)
	v.off = true
	if v.users == 0 {
		v.close()
	}
}

// close ends v. Caller holds s.mu.
func (v *volume) close() {
	v.drop()
	// Nothing was written through it: there is no failure to report.
	_ = v.Blob.Close()
}

// drop closes the spare descriptors. Caller holds s.mu.
func (v *volume) drop() {
	for _, f := range v.spare {
		_ = f.Close()
	}
	v.spare, v.lent = nil, nil
}

// file returns a descriptor of the file behind lent that has an offset of its
// own, because sendfile as net uses it reads from there. Give it back with
// putFile.
func (v *volume) file(lent *os.File) (*os.File, error) {
	v.s.mu.Lock()
	if v.lent != lent {
		v.drop()
	}
	v.lent = lent
	if n := len(v.spare); n > 0 {
		f := v.spare[n-1]
		v.spare = v.spare[:n-1]
		v.s.mu.Unlock()
		return f, nil
	}
	v.s.mu.Unlock()

	conn, err := lent.SyscallConn()
	if err != nil {
		return nil, err
	}
	// A duplicate would share the offset; opening the same file again does not.
	var f *os.File
	cerr := conn.Control(func(fd uintptr) { f, err = os.Open(fmt.Sprintf("/proc/self/fd/%d", fd)) })
	if cerr != nil {
		return nil, cerr
	}
	return f, err
}

// putFile gives back what file returned for lent.
func (v *volume) putFile(f, lent *os.File) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if v.lent != lent || v.off || len(v.spare) >= spareFiles {
		_ = f.Close()
		return
	}
	v.spare = append(v.spare, f)
}
