package swarm

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"

	"skimmer/internal/schedule"
)

// sumFiles keeps the digests of pieces this node read from origins. Only who
// read a piece from there says which bytes it has, and has to be able to say it
// again when a scheduler begins anew, or else the piece is read a second time.
//
// A file is a sequence of records: the piece (4 bytes, big-endian), its SHA-256,
// and the CRC32C of both. The last record of a piece counts; one that is broken,
// as the last can be after a crash, is passed over. Losing a file costs a read
// of the origin, so nothing is synced.
type sumFiles struct {
	dir string // empty: nothing is kept

	// mu guards all files, and what follows: the one that was written last, which
	// stays open, for there is more to come most of the time. Nil if none is.
	mu   sync.Mutex
	last *os.File
	of   digest.Digest // what last is about
}

const sumRecord = 4 + 32 + 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (s *sumFiles) path(d digest.Digest) string {
	return filepath.Join(s.dir, strings.ReplaceAll(d.String(), ":", "-"))
}

// add appends sums.
func (s *sumFiles) add(d digest.Digest, sums []schedule.PieceSum) {
	if s.dir == "" || len(sums) == 0 {
		return
	}
	p := make([]byte, 0, len(sums)*sumRecord)
	for _, sum := range sums {
		at := len(p)
		p = binary.BigEndian.AppendUint32(p, uint32(sum.Piece))
		p = append(p, sum.Sum[:]...)
		p = binary.BigEndian.AppendUint32(p, crc32.Checksum(p[at:], castagnoli))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.open(d); f != nil {
		// Whatever fails here, the scheduler has the sums for now.
		_, _ = f.Write(p)
	}
}

// open returns the file about d, to append to, or nil. Caller holds s.mu.
func (s *sumFiles) open(d digest.Digest) *os.File {
	if s.last != nil && s.of == d {
		return s.last
	}
	s.shut()
	const how = os.O_WRONLY | os.O_APPEND | os.O_CREATE
	f, err := os.OpenFile(s.path(d), how, 0o600)
	if errors.Is(err, fs.ErrNotExist) && os.MkdirAll(s.dir, 0o700) == nil {
		f, err = os.OpenFile(s.path(d), how, 0o600)
	}
	if err != nil {
		return nil
	}
	s.last, s.of = f, d
	return f
}

// shut closes the file that is open. Caller holds s.mu.
func (s *sumFiles) shut() {
	if s.last != nil {
		_ = s.last.Close() // nothing is lost that writing did not lose
		s.last = nil
	}
}

// close closes what is open. Sums that are added later open it again.
func (s *sumFiles) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shut()
}

// load returns what is known of a blob of n pieces, in order.
func (s *sumFiles) load(d digest.Digest, n int) []schedule.PieceSum {
	if s.dir == "" {
		return nil
	}
	s.mu.Lock()
	p, err := os.ReadFile(s.path(d))
	s.mu.Unlock()
	if err != nil {
		return nil
	}
	return parseSums(p, n)
}

// parseSums reads the records in p of the pieces of a blob that has n.
func parseSums(p []byte, n int) (out []schedule.PieceSum) {
	known := map[int]schedule.Sum{}
	for ; len(p) >= sumRecord; p = p[sumRecord:] {
		body, crc := p[:sumRecord-4], binary.BigEndian.Uint32(p[sumRecord-4:])
		piece := binary.BigEndian.Uint32(body)
		if crc32.Checksum(body, castagnoli) == crc && int64(piece) < int64(n) {
			known[int(piece)] = schedule.Sum(body[4:])
		}
	}
	for i := range n {
		if sum, ok := known[i]; ok {
			out = append(out, schedule.PieceSum{Piece: i, Sum: sum})
		}
	}
	return out
}

// forget drops what is known of a blob.
func (s *sumFiles) forget(d digest.Digest) {
	if s.dir == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == d {
		s.shut()
	}
	_ = os.Remove(s.path(d)) // if it stays, it is read and says the same again
}
