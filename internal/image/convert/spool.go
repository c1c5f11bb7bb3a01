package convert

import (
	"fmt"
	"io"
	"os"
)

// spool is a temporary file that has no name, so that nothing is left of it
// however the program ends. It is written once, in order, and then read at
// any offset by any number of readers.
type spool struct {
	f    *os.File
	size int64
}

// newSpool makes an empty spool in dir, the system's temporary directory if
// dir is empty.
func newSpool(dir string) (*spool, error) {
	f, err := os.CreateTemp(dir, "skimmer-convert-*")
	if err != nil {
		return nil, fmt.Errorf("create temporary file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("create temporary file: %w", err)
	}
	return &spool{f: f}, nil
}

// Write appends p.
func (s *spool) Write(p []byte) (int, error) {
	n, err := s.f.Write(p)
	s.size += int64(n)
	return n, err
}

// reset empties the spool for another try.
func (s *spool) reset() error {
	s.size = 0
	if err := s.f.Truncate(0); err != nil {
		return err
	}
	_, err := s.f.Seek(0, io.SeekStart)
	return err
}

// ReadAt implements io.ReaderAt.
func (s *spool) ReadAt(p []byte, off int64) (int, error) { return s.f.ReadAt(p, off) }

// Size returns the number of bytes written.
func (s *spool) Size() int64 { return s.size }

// Close frees the file.
func (s *spool) Close() error { return s.f.Close() }

// reader returns a reader of what has been written.
func (s *spool) reader() (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(s.f, 0, s.size)), nil
}
