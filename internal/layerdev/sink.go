package layerdev

import (
	"fmt"

	"skimmer/internal/blob"
)

// maxLoose is the longest chunk that is kept in memory when the disk is full,
// in bytes.
const maxLoose = 64 << 20

// sink takes the chunks of one stream to the data file.
type sink struct {
	l    *Layer
	c    *contents
	f    *flight
	done []extent

	chunk int    // being written
	loose []byte // its bytes, where the disk has no room for them
	drop  bool   // nobody waits for it, and it has no room either
}

// Write implements estargz.Sink.
func (s *sink) Write(chunk int, off int64, p []byte) error {
	if chunk != s.chunk {
		s.chunk, s.loose, s.drop = chunk, nil, false
	}
	switch {
	case s.drop:
		return nil
	case s.loose != nil:
		copy(s.loose[off:], p)
		return nil
	case s.c.present.has(chunk):
		// It is good as it is, and these bytes are not verified yet.
		return nil
	}
	_, err := s.l.data.WriteAt(p, s.c.ix.Chunks[chunk].DataOff+off)
	if err == nil {
		return nil
	}
	if blob.KindOf(err) != blob.Full {
		return fmt.Errorf("write data file: %w", err)
	}
	return s.noRoom(chunk, off, p)
}

// noRoom goes on in memory with a chunk that the disk took off bytes of, if
// somebody waits for it.
func (s *sink) noRoom(chunk int, off int64, p []byte) error {
	if !s.l.wantedNow(s.f, chunk) {
		s.drop = true
		return nil
	}
	c := s.c.ix.Chunks[chunk]
	if c.Size > maxLoose {
		return blob.Errorf(blob.Full, "disk is full, and a chunk of %d bytes is too long to be read without it", c.Size)
	}
	s.loose = make([]byte, c.Size)
	if _, err := s.l.data.ReadAt(s.loose[:off], c.DataOff); err != nil {
		return fmt.Errorf("read data file: %w", err)
	}
	copy(s.loose[off:], p)
	return nil
}

// Done implements estargz.Sink.
func (s *sink) Done(chunk int) error {
	switch {
	case s.drop || s.c.present.has(chunk):
		return nil
	case s.loose != nil:
		s.l.stats.loose.Add(1)
		s.l.arrived(s.f, chunk, s.loose)
		return nil
	}
	s.c.present.set(chunk)
	if n := len(s.done); n > 0 && s.done[n-1].first+s.done[n-1].count == uint32(chunk) {
		s.done[n-1].count++
	} else {
		s.done = append(s.done, extent{uint32(chunk), 1})
	}
	s.l.arrived(s.f, chunk, nil)
	return nil
}
