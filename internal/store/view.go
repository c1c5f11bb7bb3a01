package store

import (
	"io"
)

// Viewer is a reader of a source below a Store whose bytes are in memory before
// anybody asks: whole blocks of them are written from there, and not copied.
type Viewer interface {
	// View returns what Read would deliver next, at least one byte of it without
	// an error, and counts as a Read of all of it. The bytes are not changed, by
	// anybody, before the next call of any method. io.EOF comes without bytes.
	//
	// Errors: those of Read.
	View() ([]byte, error)
}

// receiveViews is receive where nothing has to be copied to be received.
func (f *flight) receiveViews(v Viewer) error {
	for f.hungry() {
		p, err := v.View()
		if err == io.EOF {
			return f.early()
		} else if err != nil {
			return err
		}
		for len(p) > 0 {
			n, err := f.put(p)
			if err != nil {
				return err
			}
			if n == 0 {
				return nil // the rest is of pieces that others fetch by now
			}
			p = p[n:]
		}
	}
	return nil
}

// hungry reports whether the flight wants more bytes.
func (f *flight) hungry() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wants() > 0
}

// put takes the next bytes, which p starts with, and returns how many, as far as the
// current block goes; 0 if the flight wants no more. p is not used after it.
func (f *flight) put(p []byte) (int, error) {
	if n, err := f.lend(p); n > 0 {
		return n, err
	}
	n := copy(f.room(), p)
	if n == 0 {
		return 0, nil
	}
	return n, f.arrived(n)
}

// lend has p stand in for the buffer while a block that it has whole goes to disk and
// readers take bytes of it, and returns how many bytes that were; 0 if p has less than
// a block, or some of it came before.
func (f *flight) lend(p []byte) (int, error) {
	f.mu.Lock()
	n := f.wants()
	if n == 0 || f.filled > 0 || n > len(p) {
		f.mu.Unlock()
		return 0, nil
	}
	own := f.buf
	f.buf, f.filled = p[:n], n
	f.signal()
	f.mu.Unlock()
	f.h.e.s.count.fetchedBytes.Add(int64(n))
	err := f.land()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.buf, f.filled = own, 0 // if it could not be kept, nobody gets more of it here
	return n, err
}
