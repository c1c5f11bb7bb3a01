package ranges

import (
	"context"
	"io"
	"net/http"
	"sync"

	"skimmer/internal/blob"
)

// bufferSize is how many bytes are read at once from a source that does not
// write by itself.
const bufferSize = 64 << 10

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// lingers is below how many bytes what was written may stay in the server's
// own buffer.
const lingers = 4 << 10

// send sends the body, which has the ranges of set.
func (a *answer) send(ctx context.Context, set []blob.Range) error {
	var err error
	if a.boundary == "" {
		err = a.stream(ctx, set[0])
	} else {
		err = a.parts(ctx, set)
	}
	switch {
	case a.failed != nil:
		return blob.Errorf(blob.Canceled, "send bytes to the client: %w", a.failed)
	case a.excess != nil:
		return a.excess
	}
	return err
}

// stream sends the bytes of r.
func (a *answer) stream(ctx context.Context, r blob.Range) error {
	rc, err := a.c.Blob.ReadRange(ctx, r)
	if err != nil {
		return err
	}
	defer func() { _ = rc.Close() }() // how it ended is known by then
	a.left = r.Len
	if from, ok := rc.(io.WriterTo); ok {
		_, err = from.WriteTo(a)
	} else {
		err = a.copy(rc)
	}
	if err == nil && a.left > 0 && a.failed == nil {
		return blob.Errorf(blob.Corrupt, "send bytes %v: their source ended %d bytes early: %w", r, a.left, io.ErrUnexpectedEOF)
	}
	return err
}

// copy passes on what rc delivers.
func (a *answer) copy(rc io.Reader) error {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for {
		n, err := rc.Read(buf[:])
		if n > 0 {
			if _, err := a.Write(buf[:n]); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// Write sends bytes of the range that is being sent, and all that has to stand
// before them.
func (a *answer) Write(p []byte) (n int, err error) {
	if int64(len(p)) > a.left {
		if a.excess == nil {
			a.excess = blob.Errorf(blob.Corrupt, "send a range: its source sent more than it was asked for")
		}
		return 0, a.excess
	}
	if len(p) == 0 {
		return 0, nil
	}
	if a.sent.Status == 0 {
		a.begin()
	}
	if len(a.before) > 0 {
		if err := a.put(a.before); err != nil {
			return 0, err
		}
		a.before = a.before[:0]
	}
	n, err = a.w.Write(p)
	a.sent.Bytes += int64(n)
	a.left -= int64(n)
	if err != nil {
		a.failed = err
		return n, err
	}
	if a.left > 0 && len(p) < lingers {
		// Those behind them may take long. Where this fails, so does the next.
		_ = http.NewResponseController(a.w).Flush()
	}
	return n, nil
}

// put writes what is not of the blob.
func (a *answer) put(p []byte) error {
	_, err := a.w.Write(p)
	a.failed = err
	return err
}
